//! Routing domains through the API, with pipes for ports: what is routed, what is answered, what is refused, and that a change of the
//! table loses nothing.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use etherparse::{
    IcmpEchoHeader, Icmpv4Type, Icmpv6Type, NetSlice, PacketBuilder, SlicedPacket, TransportSlice,
};
use tonic::Code;
use vwire_dataplane::burst::{Gso, Offload};
use vwire_dataplane::port::pipe::PipeEnd;
use vwire_proto::dataplane::v1 as pb;
use vwire_proto::dataplane::v1::op::Op;

mod support;
use support::{PATIENCE, Rig, collect, join, pipe, refused, remove, run, set};

/// The hosts behind ports a, b and c.
const MACS: [[u8; 6]; 3] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 3]];
/// What the domain calls itself at all ports.
const OWN: [u8; 6] = [2, 0, 0, 0, 0, 0xff];

fn op(op: Op) -> pb::Op {
    pb::Op { op: Some(op) }
}

fn domain_port(port: &str, known: bool) -> pb::DomainPort {
    let host = usize::from(port.as_bytes()[0] - b'a');
    let mac = MACS[host].map(|byte| format!("{byte:02x}")).join(":");
    let neighbour = |address: String| pb::Neighbour { address, mac: mac.clone(), ..Default::default() };
    pb::DomainPort {
        port: port.into(),
        mac: "02:00:00:00:00:ff".into(),
        neighbours: match known {
            true => {
                vec![neighbour(format!("10.0.{}.1", host + 1)), neighbour(format!("fd00:{}::1", host + 1))]
            }
            false => vec![],
        },
        ..Default::default()
    }
}

fn route(prefix: &str, port: &str) -> pb::Route {
    pb::Route { prefix: prefix.into(), port: port.into(), via: String::new() }
}

/// Ports a, b and c, each with 10.0.N.0/24 and fd00:N::/32 behind it; the domain is 10.0.0.1 and fd00::1.
fn blue(known: bool) -> pb::State {
    let ports = ["a", "b", "c"];
    let routes = ports.iter().zip(1..).flat_map(|(port, n)| {
        [route(&format!("10.0.{n}.0/24"), port), route(&format!("fd00:{n}::/32"), port)]
    });
    pb::State {
        ports: ports.iter().map(|port| pipe(port, port)).collect(),
        domains: vec![pb::Domain {
            name: "blue".into(),
            gateways: vec!["10.0.0.1".into(), "fd00::1".into()],
            ports: ports.iter().map(|port| domain_port(port, known)).collect(),
            routes: routes.collect(),
        }],
        ..Default::default()
    }
}

async fn rig(known: bool) -> (Rig, [PipeEnd; 3]) {
    let mut rig = Rig::new().await;
    rig.replace(blue(known)).await.unwrap();
    let ends = ["a", "b", "c"].map(|port| rig.far_end(port));
    (rig, ends)
}

fn v4(host: u8, net: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, net, host)
}

fn v6(host: u16, net: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, net, 0, 0, 0, 0, 0, host)
}

/// A datagram from host 1 of a port's network.
fn udp(from: IpAddr, to: IpAddr, ttl: u8, payload: usize) -> Vec<u8> {
    let net = match from {
        IpAddr::V4(v4) => v4.octets()[2].into(),
        IpAddr::V6(v6) => v6.segments()[1],
    };
    let ethernet = PacketBuilder::ethernet2(MACS[usize::from(net) - 1], OWN);
    let ip = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), ttl),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), ttl),
        _ => panic!("two families"),
    };
    let mut frame = Vec::new();
    ip.udp(1000, 2000).write(&mut frame, &(0..payload).map(|i| i as u8).collect::<Vec<_>>()).unwrap();
    frame
}

async fn routing(rig: &mut Rig) -> pb::GetRoutingResponse {
    let request = pb::GetRoutingRequest { domain: "blue".into(), ..Default::default() };
    rig.client.get_routing(request).await.unwrap().into_inner()
}

/// Waits until the domain's counters are as wanted.
async fn wait_routing(
    rig: &mut Rig,
    wanted: impl Fn(&pb::GetRoutingResponse) -> bool,
) -> pb::GetRoutingResponse {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = routing(rig).await;
        if wanted(&answer) {
            return answer;
        }
        assert!(Instant::now() < deadline, "still {answer:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn drops(expected: &[(&str, u64)]) -> HashMap<String, u64> {
    expected.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
}

/// The frame as it leaves: addressed to the next host, one hop less, all else as it was.
fn after_a_hop(mut frame: Vec<u8>, to: [u8; 6]) -> Vec<u8> {
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&OWN);
    if frame[12] == 0x86 {
        frame[21] -= 1;
        return frame;
    }
    frame[22] -= 1;
    frame[24..26].fill(0);
    let sum =
        frame[14..34].chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum::<u32>();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

#[test]
fn packets_of_both_families_go_where_the_longest_prefix_leads() {
    run(async {
        let (mut rig, [mut a, mut b, mut c]) = rig(true).await;
        let sizes = [0, 18, 86, 87, 100, 700, 1400];
        let mut sent = [Vec::new(), Vec::new()];
        for size in sizes {
            for (to, sent) in sent.iter_mut().enumerate() {
                let net = to as u16 + 2;
                for frame in [
                    udp(v4(1, 1).into(), v4(1, net as u8).into(), 64, size),
                    udp(v6(1, 1).into(), v6(1, net).into(), 64, size),
                ] {
                    assert!(a.inject(&frame));
                    sent.push(after_a_hop(frame, MACS[to + 1]));
                }
            }
        }
        let [at_b, at_c] = sent;
        let bytes = (at_b.iter().map(|frame| frame.len() as u64 - 14)).sum::<u64>();
        assert_eq!(collect(&mut b, at_b.len()).await, at_b);
        assert_eq!(collect(&mut c, at_c.len()).await, at_c);
        let all = 4 * sizes.len() as u64;
        let answer = wait_routing(&mut rig, |answer| answer.packets == all).await;
        assert_eq!((answer.bytes, answer.drops, answer.route_count), (2 * bytes, HashMap::new(), 6));
        let by_route: Vec<_> =
            answer.routes.iter().map(|r| (r.route.as_ref().unwrap().prefix.as_str(), r.packets)).collect();
        let each = sizes.len() as u64;
        let expected = [
            ("10.0.1.0/24", 0),
            ("10.0.2.0/24", each),
            ("10.0.3.0/24", each),
            ("fd00:1::/32", 0),
            ("fd00:2::/32", each),
            ("fd00:3::/32", each),
        ];
        assert_eq!(by_route, expected);
        // A longer prefix takes a host away, a default route takes the rest.
        let more = |prefix: &str| {
            let route = Some(route(prefix, "c"));
            op(Op::SetRoute(pb::SetRoute { domain: "blue".into(), route }))
        };
        rig.apply(vec![more("10.0.2.1/32"), more("0.0.0.0/0")]).await.unwrap();
        let mut known = domain_port("c", true);
        known.neighbours.push(pb::Neighbour {
            address: "10.0.2.1".into(),
            mac: "02:00:00:00:00:03".into(),
            ..Default::default()
        });
        let again = pb::SetDomainPort { domain: "blue".into(), port: Some(known) };
        rig.apply(vec![op(Op::SetDomainPort(again))]).await.unwrap();
        let frame = udp(v4(1, 1).into(), v4(1, 2).into(), 64, 100);
        assert!(a.inject(&frame));
        assert_eq!(collect(&mut c, 1).await, [after_a_hop(frame, MACS[2])]);
    });
}

#[test]
fn arp_is_answered_heard_and_asked() {
    run(async {
        let (mut rig, [mut a, mut b, _c]) = rig(false).await;
        // a asks for the gateway, and is known from then on.
        let ask = arp(1, MACS[0], v4(1, 1), v4(1, 0));
        assert!(a.inject(&ask));
        let answer = collect(&mut a, 1).await.remove(0);
        assert_eq!(answer, arp_from(2, OWN, MACS[0], v4(1, 0), v4(1, 1)));
        wait_routing(&mut rig, |r| r.neighbours.iter().any(|n| n.address == "10.0.1.1" && n.port == "a"))
            .await;
        // b is not known: it is asked for, and the packet waits for the answer.
        let frame = udp(v4(1, 1).into(), v4(1, 2).into(), 9, 10);
        assert!(a.inject(&frame));
        let question = collect(&mut b, 1).await.remove(0);
        assert_eq!(question, arp_from(1, OWN, [0; 6], v4(1, 0), v4(1, 2)));
        let waits = wait_routing(&mut rig, |r| r.waited == 1).await;
        assert_eq!((waits.drops, waits.packets), (drops(&[("for_domain", 1)]), 0));
        assert_eq!((waits.answers, waits.questions), (1, 1));
        assert!(b.inject(&arp(2, MACS[1], v4(1, 2), v4(1, 0))));
        assert_eq!(packets_at(&mut b, 1).await, [after_a_hop(frame.clone(), MACS[1])]);
        wait_routing(&mut rig, |r| r.neighbours.iter().any(|n| n.address == "10.0.2.1" && !n.configured))
            .await;
        assert!(a.inject(&frame));
        assert_eq!(packets_at(&mut b, 1).await, [after_a_hop(frame, MACS[1])]);
        // b can't take a's address.
        assert!(b.inject(&arp(2, MACS[1], v4(1, 1), v4(1, 0))));
        let refused = wait_routing(&mut rig, |r| r.drops.contains_key("bad_control")).await;
        let of_a = refused.neighbours.iter().find(|n| n.address == "10.0.1.1").unwrap();
        assert_eq!((of_a.mac.as_str(), of_a.port.as_str()), ("02:00:00:00:00:01", "a"));
    });
}

/// Waits until packets have come; questions, which are asked again while nobody answers, are left out.
async fn packets_at(end: &mut PipeEnd, count: usize) -> Vec<Vec<u8>> {
    let is_question = |frame: &[u8]| frame[12..14] == [8, 6] || (frame[12] == 0x86 && frame[54] == 135);
    let mut packets = Vec::new();
    while packets.len() < count {
        packets.extend(collect(end, 1).await.into_iter().filter(|frame| !is_question(frame)));
    }
    packets
}

#[test]
fn packets_of_both_families_wait_for_their_next_hop_in_order_and_none_is_lost() {
    run(async {
        let (mut rig, [mut a, mut b, mut c]) = rig(false).await;
        let several =
            |to: IpAddr, from: IpAddr| -> Vec<_> { (0..16).map(|i| udp(from, to, 64, 90 * i)).collect() };
        let four = several(v4(1, 2).into(), v4(1, 1).into());
        let six = several(v6(1, 3).into(), v6(1, 1).into());
        four.iter().zip(&six).for_each(|(four, six)| assert!(a.inject(four) && a.inject(six)));
        let waits = wait_routing(&mut rig, |r| r.waited == 32).await;
        assert_eq!((waits.drops, waits.packets, waits.questions >= 2), (HashMap::new(), 0, true));
        // One more for the same next hop has no room, while another next hop's has.
        assert!(a.inject(&four[0]));
        assert!(a.inject(&udp(v4(1, 1).into(), v4(9, 2).into(), 64, 1)));
        let full = wait_routing(&mut rig, |r| r.waited == 33).await;
        assert_eq!(full.drops, drops(&[("neighbour_queue_full", 1)]));
        let of_route =
            full.routes.iter().find(|r| r.route.as_ref().unwrap().prefix == "10.0.2.0/24").unwrap();
        assert_eq!(of_route.drops, full.drops);
        // The owner says who has the one, its port who has the other.
        rig.apply(vec![op(Op::SetDomainPort(pb::SetDomainPort {
            domain: "blue".into(),
            port: Some(domain_port("c", true)),
        }))])
        .await
        .unwrap();
        assert!(b.inject(&arp(2, MACS[1], v4(1, 2), v4(1, 0))));
        let hop =
            |frames: &[Vec<u8>], mac| frames.iter().map(|f| after_a_hop(f.clone(), mac)).collect::<Vec<_>>();
        assert_eq!(packets_at(&mut b, 16).await, hop(&four, MACS[1]));
        assert_eq!(packets_at(&mut c, 16).await, hop(&six, MACS[2]));
        let over = wait_routing(&mut rig, |r| r.packets == 32).await;
        assert_eq!((over.drops, over.waited), (drops(&[("neighbour_queue_full", 1), ("for_domain", 1)]), 33));
    });
}

#[test]
fn who_waited_in_vain_is_told_and_what_waits_goes_with_its_port() {
    run(async {
        let (mut rig, [mut a, mut b, mut c]) = rig(false).await;
        // a is known by what it asks; nobody answers for 10.0.2.1 and fd00:3::1.
        let (four, six) =
            (udp(v4(1, 1).into(), v4(1, 2).into(), 64, 30), udp(v6(1, 1).into(), v6(1, 3).into(), 64, 30));
        assert!(a.inject(&four) && a.inject(&six));
        let told = collect(&mut a, 2).await;
        for ((frame, what), told) in [(&four, (3, 1)), (&six, (1, 3))].into_iter().zip(&told) {
            let (kind, code, _, quoted) = error_of(told);
            assert_eq!((kind, code), what);
            assert!(frame[14..].starts_with(&quoted), "the packet as it came");
        }
        let over = wait_routing(&mut rig, |r| r.drops.contains_key("no_neighbour")).await;
        assert_eq!((over.drops, over.packets, over.waited), (drops(&[("no_neighbour", 2)]), 0, 2));
        // Each was asked for several times meanwhile.
        let asked = collect(&mut b, 3).await;
        assert!(asked.iter().all(|frame| *frame == arp_from(1, OWN, [0; 6], v4(1, 0), v4(1, 2))));
        assert!(collect(&mut c, 3).await.iter().all(|frame| frame[54] == 135));
        // A port that goes takes with it what came by it, and the packet of another stays.
        assert!(a.inject(&four) && c.inject(&udp(v4(1, 3).into(), v4(1, 2).into(), 64, 5)));
        wait_routing(&mut rig, |r| r.waited == 4).await;
        let leave = |port: &str, net: u8| {
            let gone = |prefix| op(Op::RemoveRoute(pb::RemoveRoute { domain: "blue".into(), prefix }));
            let prefixes = [format!("10.0.{net}.0/24"), format!("fd00:{net}::/32")].map(gone);
            prefixes.into_iter().chain([op(Op::RemoveDomainPort(port.into())), remove(port)]).collect()
        };
        rig.apply(leave("a", 1)).await.unwrap();
        assert!(b.inject(&arp(2, MACS[1], v4(1, 2), v4(1, 0))));
        let sent = packets_at(&mut b, 1).await;
        assert_eq!(sent, [after_a_hop(udp(v4(1, 3).into(), v4(1, 2).into(), 64, 5), MACS[1])]);
        wait_routing(&mut rig, |r| r.packets == 1).await;
    });
}

/// Allows a packet to be cut: the flag goes, and the checksum follows.
fn may_be_cut(mut frame: Vec<u8>) -> Vec<u8> {
    frame[20] &= !0x40;
    frame[24..26].fill(0);
    let words = frame[14..34].chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum = words.sum::<u32>();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

#[test]
fn what_may_be_cut_leaves_in_pieces_and_the_rest_is_told() {
    run(async {
        let (mut rig, [mut a, mut b, _c]) = rig(true).await;
        let narrow = pb::DomainPort { mtu: 576, ..domain_port("b", true) };
        let narrow = pb::SetDomainPort { domain: "blue".into(), port: Some(narrow) };
        rig.apply(vec![op(Op::SetDomainPort(narrow))]).await.unwrap();
        let (from, to) = (v4(1, 1).into(), v4(1, 2).into());
        let mut fragments = 0;
        for size in [549, 1000, 1472, 9000, 60_000] {
            // Before and behind it a short one: the order stays.
            let (first, last) = (udp(from, to, 64, 1), udp(from, to, 64, 2));
            let long = may_be_cut(udp(from, to, 64, size));
            assert!(a.inject(&first) && a.inject(&long) && a.inject(&last));
            let count = (size + 8usize).div_ceil(552);
            let mut seen = collect(&mut b, count + 2).await;
            assert_eq!(seen.remove(0), after_a_hop(first, MACS[1]));
            assert_eq!(seen.pop().unwrap(), after_a_hop(last, MACS[1]));
            assert!(seen.iter().all(|piece| piece.len() <= 590 && piece[..6] == MACS[1] && piece[22] == 63));
            let payload: Vec<u8> = seen.iter().flat_map(|piece| piece[34..].to_vec()).collect();
            assert_eq!(payload, long[34..]);
            fragments += count as u64;
        }
        let answer = wait_routing(&mut rig, |r| r.fragments == fragments && r.packets == 15).await;
        assert_eq!((answer.drops, answer.errors), (HashMap::new(), 0));
        // Not to be cut, or of IPv6, it is told.
        for (long, what) in
            [(udp(from, to, 64, 600), (3, 4)), (udp(v6(1, 1).into(), v6(1, 2).into(), 64, 600), (2, 0))]
        {
            assert!(a.inject(&long));
            let (kind, code, about, _) = error_of(&collect(&mut a, 1).await[0]);
            assert_eq!(((kind, code), about), (what, 576));
        }
    });
}

#[test]
fn checksums_and_segments_that_are_owed_are_made_before_a_packet_is_cut() {
    run(async {
        let (mut rig, [mut a, mut b, _c]) = rig(true).await;
        let narrow = pb::DomainPort { mtu: 576, ..domain_port("b", true) };
        let narrow = pb::SetDomainPort { domain: "blue".into(), port: Some(narrow) };
        rig.apply(vec![op(Op::SetDomainPort(narrow))]).await.unwrap();
        let whole = may_be_cut(udp(v4(1, 1).into(), v4(1, 2).into(), 64, 3000));
        // The pseudo header's sum is left in the field, the rest is owed.
        let mut open = whole.clone();
        let words = [&whole[26..34], &[0, 17], &whole[38..40]].concat();
        let sum = words.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum::<u32>();
        open[40..42].copy_from_slice(&((sum & 0xffff) as u16 + (sum >> 16) as u16).to_be_bytes());
        let owed = Offload { needs_csum: true, csum_start: 34, csum_offset: 6, ..Offload::default() };
        assert!(a.inject_with(&open, Some(owed)));
        let joined =
            |pieces: &[Vec<u8>]| pieces.iter().flat_map(|piece| piece[34..].to_vec()).collect::<Vec<_>>();
        let pieces = collect(&mut b, 6).await;
        assert_eq!(joined(&pieces), whole[34..], "the checksum, too");
        // Three datagrams of 1000 bytes in one frame, each of which is cut in two.
        let gso = Offload { gso: Gso::Udp, gso_size: 1000, hdr_len: 42, ..owed };
        assert!(a.inject_with(&open, Some(gso)));
        let pieces = collect(&mut b, 6).await;
        for (i, pieces) in pieces.chunks(2).enumerate() {
            let datagram = joined(pieces);
            assert_eq!(datagram[8..], whole[42..][1000 * i..1000 * (i + 1)]);
            let header = etherparse::UdpHeader::from_slice(&datagram).unwrap().0;
            let right = header.calc_checksum_ipv4_raw(v4(1, 1).octets(), v4(1, 2).octets(), &datagram[8..]);
            assert_eq!((header.checksum, usize::from(header.length)), (right.unwrap(), 1008));
        }
        let answer = wait_routing(&mut rig, |r| r.fragments == 12).await;
        assert_eq!((answer.packets, answer.drops), (2, HashMap::new()));
    });
}

/// An ARP packet from a host to all, with the domain as its target.
fn arp(operation: u8, mac: [u8; 6], sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = arp_from(operation, mac, [0; 6], sender, target);
    frame[..6].fill(0xff);
    frame
}

/// An ARP packet; to all if `to` is zero.
fn arp_from(operation: u8, mac: [u8; 6], to: [u8; 6], sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = if to == [0; 6] { vec![0xff; 6] } else { to.to_vec() };
    frame.extend_from_slice(&mac);
    frame.extend_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, operation]);
    frame.extend_from_slice(&mac);
    frame.extend_from_slice(&sender.octets());
    frame.extend_from_slice(&to);
    frame.extend_from_slice(&target.octets());
    frame
}

/// An ICMP error's type and code, the four bytes behind them, and what it quotes.
fn error_of(frame: &[u8]) -> (u8, u8, u32, Vec<u8>) {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let (header, payload) = match packet.transport.unwrap() {
        TransportSlice::Icmpv4(icmp) => {
            assert_eq!(icmp.header().icmp_type.calc_checksum(icmp.payload()), icmp.checksum());
            (icmp.slice()[..8].to_vec(), icmp.payload().to_vec())
        }
        TransportSlice::Icmpv6(icmp) => {
            let Some(NetSlice::Ipv6(ip)) = packet.net else { panic!("no IPv6") };
            assert!(icmp.is_checksum_valid(ip.header().source(), ip.header().destination()));
            (icmp.slice()[..8].to_vec(), icmp.payload().to_vec())
        }
        other => panic!("{other:?}"),
    };
    let about = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
    (header[0], header[1], about, payload)
}

#[test]
fn senders_are_told_what_is_wrong() {
    run(async {
        let (mut rig, [mut a, _b, _c]) = rig(true).await;
        let cases = [
            (udp(v4(1, 1).into(), v4(1, 2).into(), 1, 30), (11, 0, 0), "ttl_exceeded"),
            (udp(v6(1, 1).into(), v6(1, 2).into(), 1, 30), (3, 0, 0), "ttl_exceeded"),
            (udp(v4(1, 1).into(), v4(1, 2).into(), 9, 1473), (3, 4, 1500), "too_big"),
            (udp(v6(1, 1).into(), v6(1, 2).into(), 9, 1473), (2, 0, 1500), "too_big"),
            (udp(v4(1, 1).into(), v4(1, 99).into(), 9, 30), (3, 0, 0), "no_route"),
            (udp(v6(1, 1).into(), v6(1, 99).into(), 9, 30), (1, 0, 0), "no_route"),
            (udp(v4(1, 1).into(), v4(1, 0).into(), 1, 30), (3, 3, 0), "for_domain"),
            (udp(v6(1, 1).into(), v6(1, 0).into(), 1, 30), (1, 4, 0), "for_domain"),
        ];
        let mut expected = HashMap::new();
        for (frame, what, reason) in cases {
            assert!(a.inject(&frame));
            let answer = collect(&mut a, 1).await.remove(0);
            let (kind, code, about, quoted) = error_of(&answer);
            assert_eq!((kind, code, about), what, "{reason}");
            assert!(
                quoted.len() >= 28 && frame[14..].starts_with(&quoted),
                "{reason}: the packet as it came"
            );
            assert!(answer.len() - 14 <= 1280 && answer[..6] == MACS[0] && answer[6..12] == OWN);
            *expected.entry(reason.to_owned()).or_insert(0) += 1;
        }
        let answer = wait_routing(&mut rig, |r| r.errors == 8).await;
        assert_eq!(answer.drops, expected);
        let of = |prefix: &str| {
            let named = |r: &&pb::RouteStats| r.route.as_ref().is_some_and(|route| route.prefix == prefix);
            answer.routes.iter().find(named).unwrap().drops.clone()
        };
        assert_eq!(of("10.0.2.0/24"), drops(&[("ttl_exceeded", 1), ("too_big", 1)]));
        assert_eq!(rig.stats("a").await.drops, answer.drops);
    });
}

#[test]
fn errors_are_not_answered_by_errors_nor_are_later_fragments_and_there_is_a_limit() {
    run(async {
        let (mut rig, [mut a, _b, _c]) = rig(true).await;
        let mut about_an_error = Vec::new();
        let icmp = Icmpv4Type::TimeExceeded(etherparse::icmpv4::TimeExceededCode::TtlExceededInTransit);
        let ip = PacketBuilder::ethernet2(MACS[0], OWN).ipv4(v4(1, 1).octets(), v4(1, 2).octets(), 1);
        ip.icmpv4(icmp).write(&mut about_an_error, &[0; 28]).unwrap();
        let mut later_fragment = udp(v4(1, 1).into(), v4(1, 2).into(), 1, 30);
        // Offset 1, and the checksum that goes with it.
        later_fragment[21] = 1;
        let sum = u16::from_be_bytes([later_fragment[24], later_fragment[25]]);
        let more_fragments_cleared = 0x4000u16 & u16::from_be_bytes([later_fragment[20], 0]);
        later_fragment[20] = 0;
        let fixed = sum.wrapping_sub(1).wrapping_add(more_fragments_cleared);
        later_fragment[24..26].copy_from_slice(&fixed.to_be_bytes());
        for frame in [&about_an_error, &later_fragment] {
            assert!(a.inject(frame));
        }
        let answer = wait_routing(&mut rig, |r| r.drops.values().sum::<u64>() == 2).await;
        assert_eq!((answer.drops, answer.errors), (drops(&[("ttl_exceeded", 2)]), 0));
        // Two thousand at once: the port has a burst of 64, and one more each millisecond that this takes.
        let expired = udp(v4(1, 1).into(), v4(1, 2).into(), 1, 30);
        let start = Instant::now();
        let mut sent = 0;
        while sent < 2000 {
            match a.inject(&expired) {
                true => sent += 1,
                false => tokio::task::yield_now().await,
            }
        }
        let answer = wait_routing(&mut rig, |r| r.drops["ttl_exceeded"] == 2002).await;
        let allowed = 64 + start.elapsed().as_millis() as u64 + 1;
        assert!(answer.errors <= allowed, "{} errors, {allowed} are allowed", answer.errors);
        assert!(answer.errors >= 64);
    });
}

#[test]
fn an_address_belongs_to_the_port_that_it_is_routed_to() {
    run(async {
        let (mut rig, [mut a, mut b, _c]) = rig(true).await;
        let mut as_b = udp(v4(1, 2).into(), v4(1, 3).into(), 9, 10);
        as_b[6..12].copy_from_slice(&MACS[0]);
        let mut as_b6 = udp(v6(1, 2).into(), v6(1, 3).into(), 9, 10);
        as_b6[6..12].copy_from_slice(&MACS[0]);
        let mut to_another = udp(v4(1, 1).into(), v4(1, 2).into(), 9, 10);
        to_another[..6].copy_from_slice(&[2, 9, 9, 9, 9, 9]);
        let multicast = udp(v4(1, 1).into(), "224.0.0.5".parse().unwrap(), 9, 10);
        let mut broken = udp(v4(1, 1).into(), v4(1, 2).into(), 9, 10);
        broken[24] ^= 0xff;
        for frame in [&as_b, &as_b6, &to_another, &multicast, &broken] {
            assert!(a.inject(frame));
        }
        let expected = [("spoofed_source", 2), ("wrong_mac", 1), ("not_routed", 1), ("bad_ip_header", 1)];
        let answer = wait_routing(&mut rig, |r| r.drops.values().sum::<u64>() == 5).await;
        assert_eq!((answer.drops, answer.packets), (drops(&expected), 0));
        // Exempt, the port may.
        let exempt = pb::DomainPort { source_check: pb::SourceCheck::Off.into(), ..domain_port("a", true) };
        let exempt = pb::SetDomainPort { domain: "blue".into(), port: Some(exempt) };
        rig.apply(vec![op(Op::SetDomainPort(exempt))]).await.unwrap();
        let mut as_c = udp(v4(7, 3).into(), v4(1, 2).into(), 9, 10);
        as_c[6..12].copy_from_slice(&MACS[0]);
        assert!(a.inject(&as_c));
        assert_eq!(collect(&mut b, 1).await, [after_a_hop(as_c, MACS[1])]);
    });
}

#[test]
fn the_gateway_answers_echo_in_both_families() {
    run(async {
        let (mut rig, [mut a, _b, _c]) = rig(true).await;
        let echo = IcmpEchoHeader { id: 7, seq: 3 };
        let ethernet = || PacketBuilder::ethernet2(MACS[0], OWN);
        let payload: Vec<u8> = (0..1000).map(|i| i as u8).collect();
        let (mut four, mut six) = (Vec::new(), Vec::new());
        let ip = ethernet().ipv4(v4(1, 1).octets(), v4(1, 0).octets(), 1);
        ip.icmpv4(Icmpv4Type::EchoRequest(echo)).write(&mut four, &payload).unwrap();
        let ip = ethernet().ipv6(v6(1, 1).octets(), v6(1, 0).octets(), 1);
        ip.icmpv6(Icmpv6Type::EchoRequest(echo)).write(&mut six, &payload).unwrap();
        assert!(a.inject(&four) && a.inject(&six));
        let answers = collect(&mut a, 2).await;
        for (answer, kind) in answers.iter().zip([0, 129]) {
            let (found, code, about, data) = error_of(answer);
            assert_eq!((found, code, about), (kind, 0, 7 << 16 | 3));
            assert_eq!(data, payload);
        }
        let answer = wait_routing(&mut rig, |r| r.echoes == 2).await;
        assert_eq!(answer.drops, drops(&[("for_domain", 2)]));
    });
}

#[test]
fn routes_come_and_go_under_traffic_and_nothing_is_lost() {
    run(async {
        let (mut rig, [mut a, mut b, _c]) = rig(true).await;
        // The packets' way is one of twenty thousand, in their middle.
        let many = |i: u32| format!("{}/28", Ipv4Addr::from(0x1400_0000 + (i << 4)));
        let set_many = |i: u32, port: &str| {
            let route = Some(pb::Route { via: "10.0.2.1".into(), ..route(&many(i), port) });
            op(Op::SetRoute(pb::SetRoute { domain: "blue".into(), route }))
        };
        for some in (0..20_000).collect::<Vec<u32>>().chunks(4096) {
            rig.apply(some.iter().map(|i| set_many(*i, "b")).collect()).await.unwrap();
        }
        let to = Ipv4Addr::from(0x1400_0007 + (10_000 << 4));
        let frame = udp(v4(1, 1).into(), to.into(), 64, 100);
        let expected = after_a_hop(frame.clone(), MACS[1]);
        let stop = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&stop);
        let traffic = std::thread::spawn(move || {
            let (mut sent, mut received) = (0u64, 0u64);
            let deadline = Instant::now() + PATIENCE * 3;
            while !over.load(Ordering::Relaxed) || received < sent {
                // At most so many on the way, so that none is lost for want of room.
                if sent - received < 64 && !over.load(Ordering::Relaxed) {
                    sent += u64::from(a.inject(&frame));
                }
                for (frame, _) in b.collect() {
                    assert_eq!(frame, expected);
                    received += 1;
                }
                assert!(Instant::now() < deadline, "{received} of {sent}");
            }
            (sent, received)
        });
        for i in 0..200u32 {
            let prefix = format!("10.{}.0.0/16", 1 + i % 250);
            let route = Some(route(&prefix, ["b", "c"][i as usize % 2]));
            let set = op(Op::SetRoute(pb::SetRoute { domain: "blue".into(), route }));
            let gone = op(Op::RemoveRoute(pb::RemoveRoute { domain: "blue".into(), prefix }));
            // Beside it, a neighbour in the table leads elsewhere, and its own route is set anew.
            let near = set_many(9_999 - i % 16, ["c", "b"][i as usize % 2]);
            for ops in [vec![set, near], vec![gone, set_many(10_000, "b")]] {
                rig.apply(ops).await.unwrap();
            }
        }
        stop.store(true, Ordering::Relaxed);
        let (sent, received) = traffic.join().unwrap();
        assert_eq!(sent, received);
        assert!(sent > 200, "{sent} frames while 400 changes were made");
        let answer = wait_routing(&mut rig, |r| r.packets == sent).await;
        assert_eq!(answer.drops, HashMap::new());
    });
}

#[test]
fn a_hundred_thousand_routes_are_one_more_or_less_without_being_made_anew() {
    run(async {
        let (mut rig, [mut a, mut b, mut c]) = rig(true).await;
        let prefix = |i: u32| format!("{}/28", Ipv4Addr::from(0x1400_0000 + (i << 4)));
        let set = |prefix: String, port: &str| {
            let route = Some(pb::Route { via: "10.0.2.1".into(), ..route(&prefix, port) });
            op(Op::SetRoute(pb::SetRoute { domain: "blue".into(), route }))
        };
        let all: Vec<u32> = (0..100_000).collect();
        for some in all.chunks(4096) {
            rig.apply(some.iter().map(|i| set(prefix(*i), "b")).collect()).await.unwrap();
        }
        let answer = routing(&mut rig).await;
        assert_eq!((answer.route_count, answer.routes.len()), (100_006, 1000));
        let to = |i: u32| IpAddr::from(Ipv4Addr::from(0x1400_0007 + (i << 4)));
        let sent: Vec<_> = [0, 1, 4095, 54_321, 99_999].map(|i| udp(v4(1, 1).into(), to(i), 64, 50)).to_vec();
        sent.iter().for_each(|frame| assert!(a.inject(frame)));
        let expected: Vec<_> = sent.iter().map(|frame| after_a_hop(frame.clone(), MACS[1])).collect();
        assert_eq!(collect(&mut b, sent.len()).await, expected);
        // One of them leads elsewhere, and the next nowhere.
        let start = Instant::now();
        let gone = pb::RemoveRoute { domain: "blue".into(), prefix: prefix(1) };
        let elsewhere = pb::Route { via: "10.0.3.1".into(), ..route(&prefix(0), "c") };
        let elsewhere = pb::SetRoute { domain: "blue".into(), route: Some(elsewhere) };
        rig.apply(vec![op(Op::SetRoute(elsewhere)), op(Op::RemoveRoute(gone))]).await.unwrap();
        eprintln!("two changes among 100,000 routes, by the API: {:?}", start.elapsed());
        assert!(a.inject(&sent[0]) && a.inject(&sent[1]));
        assert_eq!(collect(&mut c, 1).await, [after_a_hop(sent[0].clone(), MACS[2])]);
        let (kind, code, ..) = error_of(&collect(&mut a, 1).await[0]);
        assert_eq!((kind, code), (3, 0), "network unreachable");
        rig.replace(pb::State::default()).await.unwrap();
    });
}

#[test]
fn bad_requests_name_the_field_and_change_nothing() {
    run(async {
        let (mut rig, _ends) = rig(true).await;
        let before = rig.snapshot().await;
        let set_route = |route| op(Op::SetRoute(pb::SetRoute { domain: "blue".into(), route: Some(route) }));
        let set_port =
            |port| op(Op::SetDomainPort(pb::SetDomainPort { domain: "blue".into(), port: Some(port) }));
        let a = || domain_port("a", true);
        let cases = [
            (
                vec![set_route(route("10.0.0.1/8", "a"))],
                Code::InvalidArgument,
                "ops[0].set_route.route.prefix: \"10.0.0.1/8\" has bits set behind its prefix length",
            ),
            (
                vec![set_route(route("10.0.0.0/33", "a"))],
                Code::InvalidArgument,
                "ops[0].set_route.route.prefix: \"10.0.0.0/33\" is no prefix like 10.60.0.0/16",
            ),
            (
                vec![set_route(pb::Route { via: "x".into(), ..route("10.0.0.0/8", "a") })],
                Code::InvalidArgument,
                "ops[0].set_route.route.via: \"x\" is not an IP address",
            ),
            (
                vec![set_route(route("10.0.0.0/8", "d"))],
                Code::InvalidArgument,
                "domain blue: route 10.0.0.0/8: it leads to port d, which is not in this domain",
            ),
            (
                vec![set_port(pb::DomainPort { mtu: 67, ..a() })],
                Code::InvalidArgument,
                "ops[0].set_domain_port.port.mtu: mtu can be 68 to 65535 bytes, not 67",
            ),
            (
                vec![set_port(pb::DomainPort { mac: "ff:ff:ff:ff:ff:ff".into(), ..a() })],
                Code::InvalidArgument,
                "ops[0].set_domain_port.port.mac: \"ff:ff:ff:ff:ff:ff\" is no station's hardware address like 02:00:00:00:00:01",
            ),
            (
                vec![set_port(pb::DomainPort { source_check: 9, ..a() })],
                Code::InvalidArgument,
                "ops[0].set_domain_port.port.source_check: there is no check 9",
            ),
            (
                vec![op(Op::SetDomain(pb::Domain {
                    name: "red".into(),
                    gateways: vec!["224.0.0.1".into()],
                    ..Default::default()
                }))],
                Code::InvalidArgument,
                "ops[0].set_domain.gateways[0]: 224.0.0.1 is not an address that one host can have",
            ),
            (
                vec![join("a", "b")],
                Code::InvalidArgument,
                "domain blue: port a: it is in xconnect a - b; a port can be in one of the two",
            ),
            (vec![remove("a")], Code::InvalidArgument, "domain blue: port a: there is no such port"),
            (vec![op(Op::RemoveDomain("red".into()))], Code::NotFound, "there is no domain red"),
            (
                vec![
                    set(pipe("d", "d")),
                    op(Op::RemoveRoute(pb::RemoveRoute {
                        domain: "blue".into(),
                        prefix: "10.9.0.0/24".into(),
                    })),
                ],
                Code::NotFound,
                "there is no route 10.9.0.0/24 in domain blue",
            ),
        ];
        for (ops, code, message) in cases {
            refused(rig.apply(ops).await, code, message);
            assert_eq!(rig.snapshot().await, before, "after: {message}");
        }
        let twice = pb::State {
            domains: vec![
                blue(true).domains.remove(0),
                pb::Domain { name: "red".into(), ports: vec![domain_port("a", true)], ..Default::default() },
            ],
            ..blue(true)
        };
        refused(
            rig.replace(twice).await,
            Code::InvalidArgument,
            "state.domains[1].ports[0].port: port a is in a domain already",
        );
        assert_eq!(rig.snapshot().await, before);
        let same = rig.replace(before.state.clone().unwrap()).await.unwrap();
        assert_eq!(
            (same.generation, same.changes),
            (before.generation, vec![]),
            "what agrees is not touched"
        );
    });
}

#[test]
fn ports_leave_their_domain_and_join_what_else_there_is() {
    run(async {
        let (mut rig, [mut a, mut b, mut c]) = rig(true).await;
        rig.apply(vec![op(Op::RemoveDomain("blue".into())), join("a", "b")]).await.unwrap();
        support::passes(&mut a, &mut b, 20).await;
        rig.replace(blue(true)).await.unwrap();
        let frame = udp(v4(1, 1).into(), v4(1, 3).into(), 64, 100);
        assert!(a.inject(&frame));
        assert_eq!(collect(&mut c, 1).await, [after_a_hop(frame, MACS[2])]);
        let changes = rig.replace(pb::State::default()).await.unwrap().changes;
        assert_eq!(changes[0], "routing: 4 changed", "no route leads to a port that is gone: {changes:?}");
        assert!(rig.snapshot().await.state.unwrap().domains.is_empty());
    });
}
