//! Any batch of datagrams from the underlay, as the kernel hands it over: each is lent to a tunnel or counted, none twice, and
//! nothing lies outside the buffer.
#![no_main]

use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use vwire_dataplane::burst::Burst;
use vwire_dataplane::offload::Link;
use vwire_dataplane::port::{PortIndex, RxContext};
use vwire_dataplane::stats::Counters;
use vwire_dataplane::tables::{Tables, Tunnel, Vni};
use vwire_dataplane::underlay::decap::{Decap, Run};

const UNDERLAY: PortIndex = PortIndex(0);
const OWN: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 9, 0, 1));

struct World {
    tables: Tables,
    counters: Counters,
}

fn world() -> World {
    let mut tables = Tables { generation: 1, ..Tables::default() };
    for (port, vni, remote) in [(1, 0, 2), (2, 42, 2), (3, 42, 3), (4, 0xff_ffff, 3)] {
        let tunnel = Tunnel {
            port: PortIndex(port),
            underlay: UNDERLAY,
            remote: ([10, 9, 0, remote], 4789).into(),
            vni: Vni::new(vni).unwrap(),
            max_frame: 1464,
            link: Link::Ethernet,
        };
        assert!(tables.tunnels.insert(&tunnel));
    }
    World { tables, counters: Counters::anonymous(8).unwrap() }
}

thread_local!(static WORLD: World = world());

fn batch(decap: &mut Decap, world: &World, sender: u8, datagram_len: usize, buffer: &[u8]) {
    let context = RxContext { tables: &world.tables, counters: &world.counters };
    let before = world.counters.port(UNDERLAY).snapshot().dropped_in_all();
    let mut run = Run { sender: [10, 9, 0, sender].into(), datagram_len, next: 0, len: buffer.len() };
    let mut lent = 0;
    while !run.is_done() {
        let mut burst = Burst::new(UNDERLAY);
        decap.lend(buffer, &mut run, &mut burst, &context);
        for (port, frames) in burst.runs() {
            assert!((1..=4).contains(&port.0));
            for frame in frames.as_slice() {
                assert!(frame.len() >= 14 && frame.len() + 8 <= buffer.len().min(datagram_len.max(1)));
                assert!(buffer.as_ptr_range().contains(&frame.first().as_ptr()));
                frames.to_vec(frame);
                lent += 1;
            }
        }
    }
    let dropped = world.counters.port(UNDERLAY).snapshot().dropped_in_all() - before;
    assert_eq!(lent + dropped, buffer.len().div_ceil(datagram_len.max(1)) as u64);
}

// A batch is its sender's last octet, its datagrams' length (two bytes), its own length (two bytes), and the bytes.
fuzz_target!(|input: &[u8]| WORLD.with(|world| {
    let mut decap = Decap::new(UNDERLAY, OWN);
    let mut rest = input;
    while let Some((head, bytes)) = rest.split_first_chunk::<5>() {
        let len = usize::from(u16::from_be_bytes([head[3], head[4]])).min(bytes.len());
        let (buffer, next) = bytes.split_at(len);
        batch(&mut decap, world, head[0], u16::from_be_bytes([head[1], head[2]]).into(), buffer);
        rest = next;
    }
}));
