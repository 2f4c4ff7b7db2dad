//! What a tunnel puts on the wire: source ports, order, segments of large frames, and what is counted when the path fails.

mod lab;

use std::collections::{BTreeSet, HashMap};
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use etherparse::PacketBuilder;
use lab::{Family, Netns, Node, UNDERLAY, two_nodes, wait_until};
use vwire_dataplane::DropReason;
use vwire_dataplane::burst::{Gso, Offload};
use vwire_dataplane::port::PortIndex;
use vwire_dataplane::port::pipe::{PipeEnd, pipe};
use vwire_dataplane::wire::vxlan;

const VNI: u32 = 42;
const TUNNEL: PortIndex = PortIndex(1);

struct Sender {
    node: Node,
    host: PipeEnd,
    peer: UdpSocket,
    ours: Netns,
    theirs: Netns,
}

fn sender(family: Family) -> Sender {
    let (ours, theirs) = two_nodes(family);
    let mut node = Node::new(&ours, family.local());
    let (near, host) = pipe(4 << 20).unwrap();
    node.tunnel(TUNNEL.0, VNI, family.remote(), near.into_parts());
    let peer = theirs.within(|| UdpSocket::bind((family.remote(), vxlan::PORT)).unwrap());
    peer.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    Sender { node, host, peer, ours, theirs }
}

impl Sender {
    fn inject(&mut self, frame: &[u8]) {
        let Self { host, .. } = self;
        wait_until("room in the pipe", || host.inject(frame));
    }

    /// The next datagram: its sender and the inner frame.
    fn receive(&self) -> (SocketAddr, Vec<u8>) {
        let mut buffer = vec![0; 65_536];
        let (len, from) = self.peer.recv_from(&mut buffer).expect("a datagram within ten seconds");
        let (key, inner) = vxlan::split(&buffer[..len]).unwrap();
        assert_eq!(key.vni().map(|vni| vni.get()), Ok(VNI));
        (from, inner.to_vec())
    }

    fn wait_for_sent(&self, frames: u64) {
        let done = || {
            let stats = self.node.stats(TUNNEL);
            stats.tx.0 + stats.dropped_in_all() >= frames
        };
        wait_until("all frames sent or counted", done);
    }
}

/// A frame of `flow`, numbered, with `payload` bytes.
fn udp_frame(flow: u16, number: u32, payload: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    let mut bytes = vec![flow as u8; payload.max(4)];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    let ip = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
    ip.udp(flow, 9).write(&mut frame, &bytes).unwrap();
    frame
}

fn flow_and_number(frame: &[u8]) -> (u16, u32) {
    (u16::from_be_bytes([frame[34], frame[35]]), u32::from_be_bytes(frame[42..46].try_into().unwrap()))
}

#[test]
fn flows_have_source_ports_of_their_own_in_the_range_for_entropy() {
    for family in [Family::V4, Family::V6] {
        let mut sender = sender(family);
        let mut ports: HashMap<u16, BTreeSet<u16>> = HashMap::new();
        for number in 0..200 {
            let flow = (number % 50) as u16;
            sender.inject(&udp_frame(flow, number, 100));
            let (from, inner) = sender.receive();
            assert_eq!((from.ip(), inner), (family.local(), udp_frame(flow, number, 100)));
            ports.entry(flow).or_default().insert(from.port());
        }
        assert!(ports.values().all(|ports| ports.len() == 1), "a flow has one port: {ports:?}");
        let all: BTreeSet<_> = ports.values().flatten().copied().collect();
        assert_eq!(all.len(), 4, "{all:?}");
        assert!(all.iter().all(|port| *port >= 49_152), "{all:?}");
    }
}

#[test]
fn every_flow_arrives_in_order_whatever_its_frames_lengths() {
    let mut sender = sender(Family::V4);
    let (mut state, mut next) = (7u64, HashMap::<u16, Vec<u32>>::new());
    for round in 0..40 {
        let mut given: HashMap<u16, Vec<u32>> = HashMap::new();
        for number in 0..100 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (flow, payload) = ((state >> 60) as u16, [4, 64, 500, 1300][(state >> 50) as usize & 3]);
            sender.inject(&udp_frame(flow, round * 100 + number, payload + (state >> 40) as usize % 3));
            given.entry(flow).or_default().push(round * 100 + number);
        }
        next.clear();
        for _ in 0..100 {
            let (flow, number) = flow_and_number(&sender.receive().1);
            next.entry(flow).or_default().push(number);
        }
        assert_eq!(next, given);
    }
    let stats = sender.node.stats(TUNNEL);
    assert_eq!((stats.tx.0, stats.dropped_in_all()), (4000, 0));
}

/// A TCP frame with an open checksum, to be cut.
fn large_tcp(payload: usize, segment: u16) -> (Vec<u8>, Offload) {
    let mut frame = Vec::new();
    let ip = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
    let bytes: Vec<u8> = (0..payload).map(|i| (i / 7) as u8).collect();
    ip.tcp(1000, 80, 1, 1000).psh().ack(1).write(&mut frame, &bytes).unwrap();
    // An open checksum field holds the pseudo header's sum: addresses, protocol, and the length from TCP's header on.
    let words = [0x0a00, 1, 0x0a00, 2, 6, payload as u32 + 20];
    let sum: u32 = words.iter().sum();
    frame[50..52].copy_from_slice(&((sum & 0xffff) as u16 + (sum >> 16) as u16).to_be_bytes());
    let gso = Gso::Tcp4;
    let offload =
        Offload { needs_csum: true, gso, hdr_len: 54, gso_size: segment, csum_start: 34, csum_offset: 16 };
    (frame, offload)
}

#[test]
fn a_large_tcp_frame_is_cut_into_whole_segments() {
    let mut sender = sender(Family::V4);
    let (frame, offload) = large_tcp(60_000, 1396);
    assert!(sender.host.inject_with(&frame, Some(offload)));
    let mut stream = Vec::new();
    while stream.len() < 60_000 {
        let (_, segment) = sender.receive();
        let parsed = etherparse::PacketHeaders::from_ethernet_slice(&segment).unwrap();
        let Some(etherparse::TransportHeader::Tcp(tcp)) = &parsed.transport else { panic!("no TCP") };
        let Some(etherparse::NetHeaders::Ipv4(ip, _)) = &parsed.net else { panic!("no IPv4") };
        let payload = parsed.payload.slice();
        assert_eq!(tcp.checksum, tcp.calc_checksum_ipv4(ip, payload).unwrap());
        assert_eq!(ip.header_checksum, ip.calc_header_checksum());
        assert_eq!(tcp.sequence_number as usize, 1 + stream.len());
        stream.extend_from_slice(payload);
        assert!(payload.len() == 1396 || stream.len() == 60_000);
    }
    assert_eq!(stream, frame[54..]);
    sender.wait_for_sent(43);
    assert_eq!(sender.node.stats(TUNNEL).tx.0, 60_000_u64.div_ceil(1396), "each segment counts");
}

#[test]
fn offloads_that_lie_and_segments_that_do_not_fit_are_counted() {
    let mut sender = sender(Family::V4);
    let (frame, good) = large_tcp(10_000, 1396);
    for bad in [Offload { csum_start: 60_000, ..good }, Offload { gso_size: 0, ..good }] {
        assert!(sender.host.inject_with(&frame, Some(bad)));
    }
    assert!(sender.host.inject_with(&frame, Some(Offload { gso_size: 1500, ..good })));
    sender.wait_for_sent(3);
    let stats = sender.node.stats(TUNNEL);
    assert_eq!((stats.dropped(DropReason::BadOffload), stats.dropped(DropReason::TooBig)), (2, 1));
    sender.inject(&udp_frame(1, 1, 100));
    assert_eq!(sender.receive().1, udp_frame(1, 1, 100));
}

/// "Port unreachable" comes back for what was sent; the kernel reports it at a later call, whose own frames must not be lost.
#[test]
fn a_peer_that_does_not_listen_costs_no_frames() {
    for family in [Family::V4, Family::V6] {
        let mut sender = sender(family);
        sender.theirs.run("sysctl -q -w net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0");
        let nobody = sender.theirs.within(|| UdpSocket::bind((family.remote(), 0)).unwrap());
        let listening = std::mem::replace(&mut sender.peer, nobody);
        drop(listening);
        for number in 0..300 {
            sender.inject(&udp_frame(1, number, 100));
            sender.wait_for_sent(u64::from(number) + 1);
        }
        let stats = sender.node.stats(TUNNEL);
        assert_eq!((stats.tx.0, stats.dropped_in_all()), (300, 0), "{stats:?}");
    }
}

#[test]
fn frames_without_a_route_are_counted_as_refused() {
    let mut sender = sender(Family::V4);
    sender.ours.ip("link set u0 down");
    (0..5).for_each(|number| sender.inject(&udp_frame(number as u16, number, 100)));
    sender.wait_for_sent(5);
    assert_eq!(sender.node.dropped(TUNNEL, DropReason::KernelRefused), 5, "{:?}", sender.node.stats(TUNNEL));
    sender.ours.ip("link set u0 up");
    sender.inject(&udp_frame(9, 9, 100));
    assert_eq!(sender.receive().1, udp_frame(9, 9, 100));
}

#[test]
fn a_frame_of_the_limit_passes_and_one_byte_more_does_not() {
    for (family, limit) in [(Family::V4, 1464), (Family::V6, 1444)] {
        let mut sender = sender(family);
        sender.inject(&vec![0x11; limit]);
        sender.inject(&vec![0x22; limit + 1]);
        sender.inject(&[0x33; 60]);
        assert_eq!(sender.receive().1, vec![0x11; limit]);
        assert_eq!(sender.receive().1, vec![0x33; 60]);
        assert_eq!(sender.node.dropped(TUNNEL, DropReason::TooBig), 1);
    }
}

/// Two of our engines: nothing is lost or changed between them, and both agree on the counts.
#[test]
fn two_engines_exchange_frames_of_every_length() {
    for family in [Family::V4, Family::V6] {
        let (a, b) = two_nodes(family);
        let ends = [(&a, family.local(), family.remote()), (&b, family.remote(), family.local())].map(
            |(space, local, remote)| {
                let mut node = Node::new(space, local);
                let (near, host) = pipe(4 << 20).unwrap();
                node.tunnel(TUNNEL.0, VNI, remote, near.into_parts());
                (node, host)
            },
        );
        let [(node_a, mut host_a), (node_b, mut host_b)] = ends;
        let (mut sent, mut got) = (0u64, 0u64);
        for round in 0..40u32 {
            let frames: Vec<_> =
                (0..100).map(|i| udp_frame((i % 3) as u16, round * 100 + i, (i * 13) as usize)).collect();
            frames.iter().for_each(|frame| wait_until("room", || host_a.inject(frame)));
            let mut arrived = Vec::new();
            wait_until("all frames of the round", || {
                arrived.extend(host_b.collect().into_iter().map(|(frame, _)| frame));
                arrived.len() >= frames.len()
            });
            for flow in 0..3 {
                let of = |frames: &[Vec<u8>]| -> Vec<Vec<u8>> {
                    frames.iter().filter(|frame| flow_and_number(frame).0 == flow).cloned().collect()
                };
                assert_eq!(of(&arrived), of(&frames), "flow {flow}, in order and unchanged");
            }
            sent += frames.len() as u64;
            got += arrived.len() as u64;
        }
        assert_eq!((node_a.stats(TUNNEL).tx, got), (node_b.stats(TUNNEL).rx, sent));
        assert_eq!(node_a.stats(TUNNEL).dropped_in_all() + node_b.stats(UNDERLAY).dropped_in_all(), 0);
    }
}
