//! What an underlay network may throw at a tunnel: every case ends as a count under its reason, or in the kernel, and the
//! tunnel goes on. After each case a good frame is sent behind it, so that "nothing came" is known and not guessed.

mod lab;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;

use etherparse::PacketBuilder;
use lab::{Family, Netns, Node, UNDERLAY, two_nodes, wait_until};
use rustix::net::{AddressFamily, Protocol, SendFlags, SocketType, sendto};
use vwire_dataplane::DropReason;
use vwire_dataplane::port::PortIndex;
use vwire_dataplane::port::pipe::{PipeEnd, pipe};
use vwire_dataplane::tables::Vni;
use vwire_dataplane::wire::vxlan;

const VNI: u32 = 42;
const TUNNEL: PortIndex = PortIndex(1);
/// A raw socket's protocol for "the IP header is in the data".
const RAW: u8 = 255;

struct Target {
    node: Node,
    host: PipeEnd,
    /// The true peer.
    peer: UdpSocket,
    ours: Netns,
    theirs: Netns,
    family: Family,
    markers: u32,
}

fn target(family: Family) -> Target {
    let (ours, theirs) = two_nodes(family);
    let mut node = Node::new(&ours, family.local());
    let (near, host) = pipe(1 << 20).unwrap();
    node.tunnel(TUNNEL.0, VNI, family.remote(), near.into_parts());
    let peer = theirs.within(|| UdpSocket::bind((family.remote(), 0)).unwrap());
    peer.set_nonblocking(true).unwrap();
    Target { node, host, peer, ours, theirs, family, markers: 0 }
}

/// A datagram with these flags and VNI around `inner`.
fn datagram(flags: u8, vni: u32, inner: &[u8]) -> Vec<u8> {
    let mut header = vxlan::header(Vni::new(vni).unwrap());
    header[0] = flags;
    [&header[..], inner].concat()
}

fn good(inner: &[u8]) -> Vec<u8> {
    datagram(8, VNI, inner)
}

fn frame(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7) as u8).collect()
}

impl Target {
    fn at(&self) -> SocketAddr {
        SocketAddr::new(self.family.local(), vxlan::PORT)
    }

    fn send(&self, payload: &[u8]) {
        self.peer.send_to(payload, self.at()).unwrap();
    }

    /// Sends a good frame and returns all that arrived before it.
    fn settle(&mut self) -> Vec<Vec<u8>> {
        self.markers += 1;
        let mut marker = frame(40);
        marker[36..].copy_from_slice(&self.markers.to_be_bytes());
        self.send(&good(&marker));
        let mut arrived = Vec::new();
        wait_until("a good frame behind the bad ones", || {
            arrived.extend(self.host.collect().into_iter().map(|(frame, _)| frame));
            arrived.last() == Some(&marker)
        });
        arrived.pop();
        arrived
    }

    /// The good frame arrives, nothing before it, and `reason` has been counted `times` at the underlay, and nothing else.
    fn only_counted(&mut self, reason: DropReason, times: u64) {
        assert_eq!(self.settle(), Vec::<Vec<u8>>::new());
        let underlay = self.node.stats(UNDERLAY);
        assert_eq!((underlay.dropped(reason), underlay.dropped_in_all()), (times, times), "{underlay:?}");
        self.nothing_came_back();
    }

    fn nothing_counted(&mut self) {
        self.only_counted(DropReason::VxlanShort, 0);
    }

    fn nothing_came_back(&self) {
        assert_eq!(self.node.stats(TUNNEL).tx, (0, 0));
        assert!(self.peer.recv_from(&mut [0; 100]).is_err(), "a datagram came back");
    }

    /// A raw socket of the peer's node.
    fn raw(&self) -> OwnedFd {
        let family = if self.family == Family::V4 { AddressFamily::INET } else { AddressFamily::INET6 };
        let protocol = Protocol::from_raw(std::num::NonZeroU32::new(RAW.into()).unwrap());
        self.theirs.within(|| rustix::net::socket(family, SocketType::RAW, Some(protocol)).unwrap())
    }

    fn send_raw(&self, socket: &OwnedFd, packet: &[u8]) {
        let to = SocketAddr::new(self.family.local(), 0);
        assert_eq!(sendto(socket, packet, SendFlags::empty(), &to).unwrap(), packet.len());
    }

    fn udp_counter(&self, name: &str) -> u64 {
        let text = self.ours.run("cat /proc/net/snmp");
        let mut lines = text.lines().filter(|line| line.starts_with("Udp:"));
        let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
        let at = names.split(' ').position(|n| n == name).unwrap();
        values.split(' ').nth(at).unwrap().parse().unwrap()
    }
}

fn v4(address: IpAddr) -> [u8; 4] {
    match address {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(_) => panic!("an IPv4 test"),
    }
}

/// An IPv4 packet from the peer with a UDP datagram to the tunnel's port.
fn packet4(payload: &[u8]) -> Vec<u8> {
    packet4_from(Family::V4.remote(), 64, payload)
}

fn packet4_from(sender: IpAddr, ttl: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    let ip = PacketBuilder::ipv4(v4(sender), v4(Family::V4.local()), ttl);
    ip.udp(50_000, vxlan::PORT).write(&mut packet, payload).unwrap();
    packet
}

#[test]
fn datagrams_too_short_for_both_headers_are_counted() {
    for family in [Family::V4, Family::V6] {
        let mut target = target(family);
        let whole = good(&frame(14));
        (0..whole.len()).for_each(|len| target.send(&whole[..len]));
        target.only_counted(DropReason::VxlanShort, 22);
    }
}

#[test]
fn every_cut_of_a_frame_that_leaves_an_ethernet_header_passes_as_it_is() {
    let mut target = target(Family::V4);
    let inner = frame(64);
    (14..=64).for_each(|len| target.send(&good(&inner[..len])));
    let arrived = target.settle();
    assert_eq!(arrived, (14..=64).map(|len| inner[..len].to_vec()).collect::<Vec<_>>());
    target.nothing_counted();
}

#[test]
fn headers_without_the_i_flag_are_counted_and_reserved_bits_are_not_looked_at() {
    let mut target = target(Family::V4);
    (0..=255).filter(|flags| flags & 8 == 0).for_each(|flags| target.send(&datagram(flags, VNI, &frame(60))));
    target.only_counted(DropReason::VxlanFlags, 128);

    let mut noisy = datagram(0xff, VNI, &frame(60));
    for at in [1, 2, 3, 7] {
        noisy[at] = 0xff;
    }
    target.send(&noisy);
    assert_eq!(target.settle(), [frame(60)]);
}

#[test]
fn unknown_vnis_are_counted() {
    for family in [Family::V4, Family::V6] {
        let mut target = target(family);
        [0, VNI - 1, VNI + 1, 0xff_ffff].iter().for_each(|vni| target.send(&datagram(8, *vni, &frame(60))));
        target.only_counted(DropReason::UnknownVni, 4);
    }
}

#[test]
fn a_known_vni_from_another_sender_is_counted() {
    for family in [Family::V4, Family::V6] {
        let mut target = target(family);
        family.assign(&target.theirs, 3);
        let stranger = target.theirs.within(|| UdpSocket::bind((family.address(3), 0)).unwrap());
        (0..5).for_each(|_| {
            stranger.send_to(&good(&frame(60)), target.at()).unwrap();
        });
        target.only_counted(DropReason::UnknownSender, 5);
    }
}

#[test]
fn a_spoofed_sender_gets_no_answer() {
    let mut target = target(Family::V4);
    let raw = target.raw();
    for host in [7, 77, 177] {
        target.send_raw(&raw, &packet4_from(Family::V4.address(host), 64, &good(&frame(60))));
    }
    target.only_counted(DropReason::UnknownSender, 3);
}

#[test]
fn what_seems_to_come_from_our_own_address_is_counted() {
    for family in [Family::V4, Family::V6] {
        let mut target = target(family);
        let inside = target.ours.within(|| UdpSocket::bind((family.local(), 0)).unwrap());
        (0..3).for_each(|_| {
            inside.send_to(&good(&frame(60)), target.at()).unwrap();
        });
        wait_until("the counts", || target.node.dropped(UNDERLAY, DropReason::OwnAddress) == 3);
        target.only_counted(DropReason::OwnAddress, 3);
    }
}

#[test]
fn our_own_address_from_the_wire_is_counted_where_the_kernel_lets_it_in() {
    let mut target = target(Family::V4);
    for (key, value) in [("rp_filter", 0), ("accept_local", 1)] {
        for interface in ["all", "u0"] {
            target.ours.run(&format!("sysctl -q -w net.ipv4.conf.{interface}.{key}={value}"));
        }
    }
    let raw = target.raw();
    target.send_raw(&raw, &packet4_from(Family::V4.local(), 64, &good(&frame(60))));
    target.only_counted(DropReason::OwnAddress, 1);
}

#[test]
fn another_address_or_port_of_this_node_is_not_the_tunnels() {
    for family in [Family::V4, Family::V6] {
        let mut target = target(family);
        family.assign(&target.ours, 4);
        target.peer.send_to(&good(&frame(60)), (family.address(4), vxlan::PORT)).unwrap();
        target.peer.send_to(&good(&frame(60)), (family.local(), vxlan::PORT + 1)).unwrap();
        // The kernel answers these with "port unreachable", which this socket hears of at its next call.
        let _ = target.peer.take_error();
        target.nothing_counted();
    }
}

#[test]
fn multicast_and_broadcast_do_not_reach_the_tunnel() {
    let mut target = target(Family::V4);
    target.peer.set_broadcast(true).unwrap();
    target.theirs.ip("route add 224.0.0.0/4 dev u0");
    for to in ["10.9.0.255", "255.255.255.255", "224.0.0.1", "239.1.2.3"] {
        let _ = target.peer.send_to(&good(&frame(60)), (to, vxlan::PORT));
    }
    target.nothing_counted();
}

#[test]
fn multicast_over_ipv6_does_not_reach_the_tunnel() {
    let mut target = target(Family::V6);
    target.theirs.ip("-6 route add ff0e::/16 dev u0 table local");
    let to: SocketAddr = format!("[ff0e::1]:{}", vxlan::PORT).parse().unwrap();
    target.peer.send_to(&good(&frame(60)), to).unwrap();
    target.nothing_counted();
}

#[test]
fn udp_lengths_that_lie_never_show_more_than_arrived() {
    let mut target = target(Family::V4);
    let raw = target.raw();
    let before = target.udp_counter("InErrors");
    let inner = frame(60);
    for (udp_len, arrives) in [(8 + 8 + 61, None), (65_535, None), (7, None), (8 + 8 + 20, Some(20))] {
        let mut packet = packet4(&good(&inner));
        packet[24..26].copy_from_slice(&(udp_len as u16).to_be_bytes());
        packet[26..28].fill(0);
        target.send_raw(&raw, &packet);
        let expected: Vec<_> = arrives.map(|len| inner[..len].to_vec()).into_iter().collect();
        assert_eq!(target.settle(), expected, "UDP length {udp_len}");
    }
    assert_eq!(target.udp_counter("InErrors") - before, 3, "the kernel counts what it refuses");
    target.nothing_counted();
}

#[test]
fn ipv4_checksums_may_be_absent_but_not_wrong() {
    let mut target = target(Family::V4);
    let raw = target.raw();
    let before = target.udp_counter("InCsumErrors");
    let mut packet = packet4(&good(&frame(60)));
    packet[26] ^= 0x55;
    target.send_raw(&raw, &packet);
    assert!(target.settle().is_empty());
    assert_eq!(target.udp_counter("InCsumErrors") - before, 1);
    packet[26..28].fill(0);
    target.send_raw(&raw, &packet);
    assert_eq!(target.settle(), [frame(60)]);
}

#[test]
fn ipv6_checksums_must_be_there() {
    let mut target = target(Family::V6);
    let raw = target.raw();
    let (IpAddr::V6(from), IpAddr::V6(to)) = (Family::V6.remote(), Family::V6.local()) else { panic!() };
    let mut packet = Vec::new();
    let ip = PacketBuilder::ipv6(from.octets(), to.octets(), 64);
    ip.udp(50_000, vxlan::PORT).write(&mut packet, &good(&frame(60))).unwrap();
    target.send_raw(&raw, &packet);
    assert_eq!(target.settle(), [frame(60)], "the packet itself is sound");
    packet[46..48].fill(0);
    target.send_raw(&raw, &packet);
    packet[46..48].fill(0x33);
    target.send_raw(&raw, &packet);
    target.nothing_counted();
}

#[test]
fn ip_options_and_low_ttls_do_not_matter() {
    let mut target = target(Family::V4);
    let raw = target.raw();
    let mut packet = packet4(&good(&frame(60)));
    // Four "no operation" options behind the fixed header.
    packet[0] = 0x46;
    packet.splice(20..20, [1, 1, 1, 1]);
    target.send_raw(&raw, &packet);
    assert_eq!(target.settle(), [frame(60)]);
    target.send_raw(&raw, &packet4_from(Family::V4.remote(), 1, &good(&frame(61))));
    assert_eq!(target.settle(), [frame(61)]);
    // A time to live of 0 is the last hop's business; whichever way the kernel takes, the tunnel goes on.
    target.send_raw(&raw, &packet4_from(Family::V4.remote(), 0, &good(&frame(62))));
    let arrived = target.settle();
    assert!(arrived.is_empty() || arrived == [frame(62)]);
}

#[test]
fn ipv6_extension_headers_are_the_kernels_business() {
    let mut target = target(Family::V6);
    let raw = target.raw();
    let (IpAddr::V6(from), IpAddr::V6(to)) = (Family::V6.remote(), Family::V6.local()) else { panic!() };
    let mut packet = Vec::new();
    let ip = PacketBuilder::ipv6(from.octets(), to.octets(), 64);
    ip.udp(50_000, vxlan::PORT).write(&mut packet, &good(&frame(60))).unwrap();
    // Destination options (60) of eight bytes, all padding, before UDP (17).
    packet.splice(40..40, [17, 0, 1, 4, 0, 0, 0, 0]);
    packet[6] = 60;
    let len = u16::from_be_bytes([packet[4], packet[5]]) + 8;
    packet[4..6].copy_from_slice(&len.to_be_bytes());
    target.send_raw(&raw, &packet);
    assert_eq!(target.settle(), [frame(60)]);
    // A chain that names itself as often as fits, and never ends in UDP.
    let mut endless = packet[..40].to_vec();
    (0..100).for_each(|_| endless.extend([60, 0, 1, 4, 0, 0, 0, 0]));
    endless[4..6].copy_from_slice(&800u16.to_be_bytes());
    target.send_raw(&raw, &endless);
    target.nothing_counted();
}

/// Cuts an IPv4 packet's payload into fragments that begin at `starts` (multiples of 8) and end at `ends`.
fn fragments(packet: &[u8], id: u16, pieces: &[(usize, usize)]) -> Vec<Vec<u8>> {
    let payload = &packet[20..];
    let piece = |(start, end): &(usize, usize)| {
        let mut fragment = [&packet[..20], &payload[*start..*end]].concat();
        let more = if *end < payload.len() { 0x2000 } else { 0 };
        fragment[4..6].copy_from_slice(&id.to_be_bytes());
        fragment[6..8].copy_from_slice(&(more | (start / 8) as u16).to_be_bytes());
        fragment
    };
    pieces.iter().map(piece).collect()
}

#[test]
fn fragments_arrive_whole_or_not_at_all() {
    let mut target = target(Family::V4);
    let raw = target.raw();
    let packet = packet4(&good(&frame(1000)));
    let end = packet.len() - 20;
    let send = |target: &Target, id, pieces: &[(usize, usize)]| {
        fragments(&packet, id, pieces).iter().for_each(|fragment| target.send_raw(&raw, fragment));
    };
    send(&target, 1, &[(0, 504)]);
    assert!(target.settle().is_empty(), "a first fragment alone");
    send(&target, 2, &[(504, end)]);
    assert!(target.settle().is_empty(), "a last fragment alone");
    send(&target, 3, &[(0, 504), (400, end)]);
    assert!(target.settle().is_empty(), "overlapping fragments");
    send(&target, 4, &[(504, end), (0, 504)]);
    assert_eq!(target.settle(), [frame(1000)], "both, in the wrong order");
    target.nothing_counted();
}

#[test]
fn frames_beyond_the_mtu_come_in_if_the_network_carried_them() {
    for family in [Family::V4, Family::V6] {
        let mut target = target(family);
        for len in [1465, 9000, 65_507 - 8] {
            target.send(&good(&frame(len)));
            assert_eq!(target.settle(), [frame(len)]);
        }
    }
}

#[test]
fn a_tunnel_inside_the_tunnel_is_only_a_frame() {
    let mut target = target(Family::V4);
    let mut inner = Vec::new();
    let packet =
        PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4(v4(Family::V4.remote()), v4(Family::V4.local()), 64);
    packet.udp(50_000, vxlan::PORT).write(&mut inner, &good(&frame(60))).unwrap();
    let outer = good(&inner);
    (0..10).for_each(|_| target.send(&outer));
    assert_eq!(target.settle(), vec![inner; 10]);
    target.nothing_counted();
}

#[test]
fn a_flood_of_everything_bad_leaves_the_tunnel_working() {
    let mut target = target(Family::V4);
    let mut state = 1u64;
    let mut arrived = Vec::new();
    for n in 0..20_000 {
        // Often enough that the socket's buffer holds what is under way, and no marker is lost.
        if n % 2000 == 0 {
            arrived.extend(target.settle());
        }
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let len = (state >> 50) as usize % 200;
        let payload: Vec<u8> = (0..len).map(|i| (state >> (i % 57)) as u8).collect();
        let _ = target.peer.send_to(&payload, target.at());
    }
    arrived.extend(target.settle());
    let underlay = target.node.stats(UNDERLAY);
    assert_eq!(underlay.dropped_in_all() + arrived.len() as u64, 20_000, "each is counted: {underlay:?}");
    target.nothing_came_back();
}
