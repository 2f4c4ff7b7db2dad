//! Tunnels between ports of IP packets: two engines, a tun on each side, and every offload that the kernel leaves to them.

mod lab;

use std::net::UdpSocket;
use std::time::Duration;

use lab::{Family, Netns, Node, UNDERLAY, tcp_echo, two_nodes, wait_until};
use vwire_dataplane::DropReason;
use vwire_dataplane::offload::Link;
use vwire_dataplane::port::PortIndex;
use vwire_dataplane::port::kernel::{self, KernelDevice, KernelSpec, Kind};
use vwire_dataplane::port::pipe::{PipeEnd, pipe};

const TUNNEL: PortIndex = PortIndex(1);
const HOST: PortIndex = PortIndex(2);
const VNI: u32 = 77;

/// A node whose tunnel ends at a tun with these addresses, in the same namespace.
struct Host {
    node: Node,
    space: Netns,
    _device: KernelDevice,
}

fn host(space: Netns, family: Family, here: u8, there: u8, mtu: u32) -> Host {
    let mut node = Node::new(&space, family.address(here));
    let addresses = [format!("10.60.0.{here}/24"), format!("fd60::{here}/64")];
    let spec = KernelSpec {
        kind: Kind::Tun,
        netns: Some(space.fd().try_clone_to_owned().unwrap()),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        mtu,
        ..KernelSpec::new("i0")
    };
    let (parts, device) = kernel::open(HOST, &spec).unwrap();
    node.tunnel_of(Link::Ip, TUNNEL.0, VNI, family.address(there), parts);
    Host { node, space, _device: device }
}

/// The longest packet of a tunnel over an underlay with an MTU of 1500.
fn inner_mtu(family: Family) -> u32 {
    1500 - if family == Family::V4 { 50 } else { 70 }
}

fn pair(family: Family) -> (Host, Host) {
    let (a, b) = two_nodes(family);
    let mtu = inner_mtu(family);
    (host(a, family, 1, 2, mtu), host(b, family, 2, 1, mtu))
}

/// Frames lost, but for what one kernel said of itself before the other node knew the tunnel.
fn lost(host: &Host) -> u64 {
    let all: u64 = [UNDERLAY, TUNNEL, HOST].iter().map(|port| host.node.stats(*port).dropped_in_all()).sum();
    all - host.node.dropped(UNDERLAY, DropReason::UnknownVni)
}

fn everything_passes(family: Family) {
    let (a, b) = pair(family);
    let whole = inner_mtu(family) as usize;
    for (from, to) in [(&a, 2), (&b, 1)] {
        from.space.run(&format!("ping -c 3 -i 0.05 -W 5 10.60.0.{to}"));
        // The longest packet; what an echo request adds is 28 bytes (IPv4) or 48 (IPv6).
        from.space.run(&format!("ping -c 2 -i 0.05 -W 5 -M do -s {} 10.60.0.{to}", whole - 28));
        from.space.run(&format!("ping -c 2 -i 0.05 -W 5 -M do -s {} fd60::{to}", whole - 48));
    }
    for (v4, v6, client, server) in [("10.60.0.2", "[fd60::2]", &a, &b), ("10.60.0.1", "[fd60::1]", &b, &a)] {
        tcp_echo(&client.space, &server.space, v4, 3_000_000);
        tcp_echo(&client.space, &server.space, v6, 3_000_000);
    }
    for host in [&a, &b] {
        let (tunnel, kernel) = (host.node.stats(TUNNEL), host.node.stats(HOST));
        assert!(tunnel.tx.1 > 12_000_000 && tunnel.rx.1 > 12_000_000, "{tunnel:?}");
        assert!(kernel.rx.1 / kernel.rx.0 > 3000, "the kernel left segmentation to us: {kernel:?}");
        assert!(tunnel.tx.1 / tunnel.tx.0 <= whole as u64 + 22, "and none left uncut: {tunnel:?}");
        assert_eq!(lost(host), 0, "{tunnel:?} {kernel:?}");
    }
}

#[test]
fn packets_and_tcp_pass_both_ways_over_ipv4() {
    everything_passes(Family::V4);
}

#[test]
fn packets_and_tcp_pass_both_ways_over_ipv6() {
    everything_passes(Family::V6);
}

#[test]
fn a_packet_of_one_byte_more_is_too_big() {
    let (a, b) = pair(Family::V4);
    let mtu = inner_mtu(Family::V4);
    a.space.ip(&format!("link set i0 mtu {}", mtu + 1));
    let one_more = format!("ping -c 1 -W 1 -M do -s {} 10.60.0.2", mtu - 27);
    assert!(!a.space.succeeds(&one_more));
    wait_until("the drop to be counted", || a.node.dropped(TUNNEL, DropReason::TooBig) == 1);
    assert_eq!((lost(&a), lost(&b)), (1, 0));
}

/// A node whose tunnel's packets go to and come from the test, and a socket in place of the peer.
fn against_a_socket() -> (Node, PipeEnd, UdpSocket, Netns, Netns) {
    let (a, b) = two_nodes(Family::V4);
    let mut node = Node::new(&a, Family::V4.local());
    let (near, far) = pipe(1 << 18).unwrap();
    node.tunnel_of(Link::Ip, TUNNEL.0, VNI, Family::V4.remote(), near.into_parts());
    let socket = b.within(|| UdpSocket::bind((Family::V4.remote(), 4789)).unwrap());
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    (node, far, socket, a, b)
}

#[test]
fn the_wire_has_an_ethernet_header_and_the_ports_have_none() {
    let (node, mut far, socket, _a, _b) = against_a_socket();
    for (packet, ethertype) in [([0x45, 1, 2, 3], [8, 0]), ([0x60, 4, 5, 6], [0x86, 0xdd])] {
        assert!(far.inject(&packet));
        let mut datagram = [0; 100];
        let (len, _) = socket.recv_from(&mut datagram).unwrap();
        assert_eq!(datagram[..8], [8, 0, 0, 0, 0, 0, VNI as u8, 0]);
        let (to, from) = (&datagram[8..14], &datagram[14..20]);
        assert!(to[0] & 3 == 2 && from[0] & 3 == 2 && to != from, "local addresses of one host each");
        assert_eq!((&datagram[20..22], &datagram[22..len]), (&ethertype[..], &packet[..]));
        socket.send_to(&datagram[..len], (Family::V4.local(), 4789)).unwrap();
        let mut back = Vec::new();
        wait_until("the packet to come back", || {
            back.extend(far.collect());
            !back.is_empty()
        });
        assert_eq!(back, [(packet.to_vec(), None)]);
    }
    assert!(far.inject(&[0xf5; 40]), "what is not IP is not sent");
    wait_until("it is counted", || node.dropped(TUNNEL, DropReason::NotIp) == 1);
}

#[test]
fn frames_without_a_packet_are_dropped_as_not_ip() {
    let (node, mut far, socket, _a, _b) = against_a_socket();
    let frame = |ethertype: [u8; 2], packet: &[u8]| {
        let header = [8, 0, 0, 0, 0, 0, VNI as u8, 0];
        [&header[..], &[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2], &ethertype, packet].concat()
    };
    let arp = frame([8, 6], &[0, 1, 8, 0, 6, 4]);
    let lie = frame([8, 0], &[0x60; 40]);
    let tagged = frame([0x81, 0], &[0, 7, 8, 0, 0x45, 0, 0, 20]);
    let nothing = frame([8, 0], &[]);
    for datagram in [&arp, &lie, &tagged, &nothing] {
        socket.send_to(datagram, (Family::V4.local(), 4789)).unwrap();
    }
    wait_until("all are counted", || node.dropped(TUNNEL, DropReason::NotIp) == 4);
    assert_eq!((far.collect().len(), node.stats(TUNNEL).rx.0), (0, 0));
    assert_eq!(node.stats(UNDERLAY).dropped_in_all(), 0);
}
