use std::sync::Mutex;

use super::*;
use crate::burst::{Gso, Offload};
use crate::offload::each_plain;
use crate::port::PortFault;
use crate::route::domain::Mac;
use crate::tables::{Hop, Vni};
use crate::wire::vxlan;
use etherparse::PacketBuilder;

const NIC: PortIndex = PortIndex(0);
const TUNNEL: PortIndex = PortIndex(1);

/// Keeps the plain frames that were sent; refuses all after the first `room`.
#[derive(Clone, Default)]
struct Kept {
    frames: Arc<Mutex<Vec<Vec<u8>>>>,
    room: Option<usize>,
}

impl Tx for Kept {
    fn send(&mut self, frames: Frames<'_, '_>, context: &mut TxContext<'_>) {
        let mut kept = self.frames.lock().unwrap();
        for (i, frame) in frames.as_slice().iter().enumerate() {
            if self.room.is_some_and(|room| kept.len() >= room) {
                context.refuse(i, DropReason::TxFull);
                continue;
            }
            let pushed = each_plain(&frames, frame, |views| {
                kept.push(views.iter().flat_map(Lent::to_vec).collect());
                true
            });
            assert_eq!(pushed, Ok(1));
            context.sent(1, frame.len() as u64);
        }
    }

    fn fault(&self) -> Option<PortFault> {
        self.room.map(|_| PortFault::Memif("the test's".into()))
    }
}

fn tunnel(v6: bool, link: Link) -> Tunnel {
    let remote = if v6 { "[2001:db8::2]:4789" } else { "192.0.2.2:4789" };
    let vni = Vni::new(42).unwrap();
    Tunnel { port: TUNNEL, underlay: NIC, remote: remote.parse().unwrap(), vni, max_frame: 1464, link }
}

fn tables(v6: bool) -> Tables {
    let mut tables = Tables { publication: 1, ..Tables::default() };
    let local = if v6 { "2001:db8::1".parse().unwrap() } else { "192.0.2.1".parse().unwrap() };
    let (from, to) = (Mac([2; 6]), Mac([4; 6]));
    tables.set_hop(TUNNEL, Some(Hop { from, to, local, max_frame: 1464 }));
    tables
}

struct Sent {
    /// Inner frames of the datagrams.
    inner: Vec<Vec<u8>>,
    counters: Counters,
    refused: Vec<(u8, DropReason)>,
    fault: Option<PortFault>,
}

fn send(
    tunnel: &Tunnel,
    tables: &Tables,
    room: Option<usize>,
    frames: &[(Vec<u8>, Option<Offload>)],
) -> Sent {
    let (kept, fault) = (Kept { room, ..Kept::default() }, Arc::new(Fault::default()));
    let mut tx = L2Tx::new(NIC, Box::new(kept.clone()), Arc::clone(&fault));
    let counters = Counters::anonymous(4).unwrap();
    let (mut refused, mut none) = (Refused::new(), Underlays::default());
    let mut burst = Burst::new(PortIndex(3));
    for (frame, offload) in frames {
        let views: Vec<_> = frame.chunks(700).map(Lent::from).collect();
        assert!(burst.push_with(&views, *offload));
    }
    for (_, frames) in burst.runs() {
        let refused = &mut refused;
        let mut context =
            TxContext { port: TUNNEL, counters: &counters, tables, underlays: &mut none, refused };
        tx.send(tunnel, frames, &mut context);
    }
    let header = if tunnel.remote.is_ipv6() { 70 } else { 50 };
    let inner = |frame: &Vec<u8>| {
        assert_eq!(frame[header - 8..header], vxlan::header(tunnel.vni));
        frame[header..].to_vec()
    };
    let inner = kept.frames.lock().unwrap().iter().map(inner).collect();
    Sent { inner, counters, refused: refused.to_vec(), fault: fault.take() }
}

fn udp(len: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
    builder.udp(1000, 80).write(&mut frame, &vec![0x5a; len - 42]).unwrap();
    frame
}

#[test]
fn frames_leave_behind_the_headers_whatever_their_views() {
    for v6 in [false, true] {
        let frames: Vec<_> = [60, 700, 1464].map(|len| (udp(len), None)).to_vec();
        let sent = send(&tunnel(v6, Link::Ethernet), &tables(v6), None, &frames);
        assert_eq!(sent.inner, frames.iter().map(|(frame, _)| frame.clone()).collect::<Vec<_>>());
        let (at_tunnel, at_nic) = (sent.counters.port(TUNNEL).snapshot(), sent.counters.port(NIC).snapshot());
        let more = if v6 { 70 } else { 50 };
        assert_eq!((at_tunnel.tx, at_nic.tx), ((3, 2224), (3, 2224 + 3 * more)));
    }
}

#[test]
fn packets_get_the_fixed_ethernet_header() {
    let packet = udp(300)[14..].to_vec();
    let sent =
        send(&tunnel(false, Link::Ip), &tables(false), None, &[(packet.clone(), None), (vec![0; 60], None)]);
    assert_eq!(sent.inner, [[&inner::header(0x45).unwrap()[..], &packet].concat()]);
    assert_eq!(sent.refused, [(1, DropReason::NotIp)]);
}

#[test]
fn a_large_frame_is_cut_and_what_does_not_fit_is_refused() {
    let mut large = Vec::new();
    let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
    builder.tcp(1000, 80, 7, 9).write(&mut large, &vec![0x5a; 60_000]).unwrap();
    let owed = |gso_size| Offload {
        needs_csum: true,
        gso: Gso::Tcp4,
        hdr_len: 54,
        gso_size,
        csum_start: 34,
        csum_offset: 16,
    };
    for v6 in [false, true] {
        let frames =
            [(large.clone(), Some(owed(1400))), (udp(1465), None), (large.clone(), Some(owed(1411)))];
        let sent = send(&tunnel(v6, Link::Ethernet), &tables(v6), None, &frames);
        let payload: usize = sent.inner.iter().map(|frame| frame.len() - 54).sum();
        assert_eq!((sent.inner.len(), payload), (60_000usize.div_ceil(1400), 60_000));
        assert!(sent.inner.iter().all(|frame| frame.len() <= 1464));
        assert_eq!(sent.refused, [(1, DropReason::TooBig), (2, DropReason::TooBig)]);
        assert_eq!(sent.counters.port(TUNNEL).snapshot().tx.0, 43);
    }
}

#[test]
fn nothing_leaves_while_the_next_hop_is_unknown_or_the_path_too_narrow() {
    let mut tables = tables(false);
    tables.hops[TUNNEL.slot()].as_mut().unwrap().max_frame = 100;
    let sent = send(&tunnel(false, Link::Ethernet), &tables, None, &[(udp(100), None), (udp(101), None)]);
    assert_eq!((sent.inner.len(), sent.refused), (1, vec![(1, DropReason::TooBig)]));
    tables.set_hop(TUNNEL, None);
    let sent = send(&tunnel(false, Link::Ethernet), &tables, None, &[(udp(100), None)]);
    assert_eq!((sent.inner.len(), sent.refused), (0, vec![(0, DropReason::NoNeighbour)]));
}

#[test]
fn what_the_port_refuses_counts_at_the_tunnel_too_and_its_fault_is_the_ports() {
    let frames = vec![(udp(100), None); 5];
    let sent = send(&tunnel(false, Link::Ethernet), &tables(false), Some(2), &frames);
    let at_tunnel = sent.counters.port(TUNNEL).snapshot();
    assert_eq!((at_tunnel.tx, at_tunnel.dropped(DropReason::TxFull)), ((2, 200), 3));
    assert_eq!(sent.refused.iter().map(|(i, _)| *i).collect::<Vec<_>>(), [2, 3, 4]);
    assert_eq!(sent.fault, Some(PortFault::Memif("the test's".into())));
}
