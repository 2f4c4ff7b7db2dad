//! Any frames that come by an underlay's port, whole or in pieces, with any claims about what they owe: each is lent to a tunnel, to the
//! exception port, or counted; what is lent to a tunnel is a part of the frame that it came in.
#![no_main]

use std::net::IpAddr;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use memif::Lent;
use vwire_dataplane::burst::{Burst, Gso, Offload};
use vwire_dataplane::offload::Link;
use vwire_dataplane::port::{PortFault, PortIndex, Rx, RxContext};
use vwire_dataplane::route::domain::Mac;
use vwire_dataplane::stats::Counters;
use vwire_dataplane::tables::{Entry, Forward, Line, Tables, Tunnel, Vni};
use vwire_dataplane::underlay::l2::receive::L2Rx;
use vwire_dataplane::worker::command::Events;

const NIC: PortIndex = PortIndex(0);

/// Lends one frame in pieces, and says what it owes.
struct Played {
    frame: Vec<u8>,
    cut: usize,
    offload: Option<Offload>,
}

impl Rx for Played {
    fn receive<'a>(&'a mut self, burst: &mut Burst<'a>, _: &RxContext<'_>) -> Result<(), PortFault> {
        let views: Vec<_> = self.frame.chunks(self.cut).map(Lent::from).collect();
        burst.push_with(&views, self.offload);
        Ok(())
    }

    fn release(&mut self, _: u64) {}
}

fn tables(exception: bool) -> Tables {
    let mut tables = Tables { generation: 1, ..Tables::default() };
    for (port, remote, link) in [
        (1, "192.0.2.2:4789", Link::Ethernet),
        (2, "[2001:db8::2]:4789", Link::Ethernet),
        (3, "192.0.2.3:4789", Link::Ip),
    ] {
        let (port, remote, vni) = (PortIndex(port), remote.parse().unwrap(), Vni::new(42).unwrap());
        let tunnel = Tunnel { port, underlay: NIC, remote, vni, max_frame: 1464, link };
        assert!(tables.tunnels.insert(&tunnel));
    }
    let addresses: Vec<IpAddr> = ["192.0.2.1", "2001:db8::1"].map(|text| text.parse().unwrap()).to_vec();
    let endpoints = addresses.iter().map(|address| (*address, 4789).into()).collect();
    tables.set_line(NIC, Some(Arc::new(Line { mac: Mac([2, 0, 0, 0, 0, 1]), addresses, endpoints })));
    if exception {
        tables.set(NIC, Entry { forward: Forward::Xconnect(PortIndex(9)), owner: None });
    }
    tables
}

// Flags, a piece's length, two numbers of an offload, and the frame.
fuzz_target!(|input: &[u8]| {
    let Some((&[flags, cut, start, offset], frame)) = input.split_first_chunk::<4>() else { return };
    if frame.is_empty() {
        return;
    }
    let offload = (flags & 2 != 0).then(|| Offload {
        needs_csum: flags & 4 != 0,
        gso: if flags & 8 != 0 { Gso::Tcp4 } else { Gso::None },
        csum_start: start.into(),
        csum_offset: offset.into(),
        ..Offload::default()
    });
    let (tables, counters) = (tables(flags & 1 != 0), Counters::anonymous(4).unwrap());
    let (events, heard) = Events::new().unwrap();
    let played = Played { frame: frame.to_vec(), cut: usize::from(cut).max(frame.len() / 60 + 1), offload };
    let mut rx = L2Rx::new(NIC, Box::new(played), Arc::default(), events);
    let mut burst = Burst::new(NIC);
    rx.receive(&mut burst, &RxContext { tables: &tables, counters: &counters }).unwrap();
    let mut lent = 0;
    for (port, frames) in burst.runs() {
        for one in frames.as_slice() {
            let bytes = frames.to_vec(one);
            if port == NIC {
                assert!(flags & 1 != 0 && bytes == frame);
            } else {
                let header = if port == PortIndex(2) { 70 } else { 50 };
                assert!(!bytes.is_empty() && bytes.len() + header <= frame.len());
                assert!(frame.windows(bytes.len()).skip(header).any(|window| window == bytes));
                if let Some(owed) = frames.offload(one) {
                    assert!(usize::from(owed.csum_start) + header <= 255 + 192 && owed.gso == Gso::None);
                }
            }
            lent += 1;
        }
    }
    let dropped: u64 = (0..4).map(|port| counters.port(PortIndex(port)).snapshot().dropped_in_all()).sum();
    assert_eq!(lent + dropped, 1);
    assert!(heard.try_iter().count() <= 1);
});
