use super::*;
use std::net::Ipv4Addr;

const OWN: Mac = Mac([2, 0, 0, 0, 0, 1]);
const PEER: Mac = Mac([2, 0, 0, 0, 0, 2]);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn station() -> Station {
    let addresses = [(ip("192.0.2.1"), 24), (ip("2001:db8::1"), 64)];
    Station::new(OWN, 1500, &addresses, &[ip("192.0.2.254"), ip("fe80::1")])
}

/// The peer's side of the link.
fn peer() -> Station {
    Station::new(PEER, 1500, &[(ip("192.0.2.2"), 24), (ip("2001:db8::2"), 64)], &[])
}

#[test]
fn what_is_not_on_link_goes_by_the_gateway_of_its_family() {
    let station = station();
    assert_eq!(station.next_hop(ip("192.0.2.77")), Some(ip("192.0.2.77")));
    assert_eq!(station.next_hop(ip("198.51.100.1")), Some(ip("192.0.2.254")));
    assert_eq!(station.next_hop(ip("2001:db8::77")), Some(ip("2001:db8::77")));
    assert_eq!(station.next_hop(ip("2001:db8:1::77")), Some(ip("fe80::1")));
    assert_eq!(peer().next_hop(ip("198.51.100.1")), None);
}

#[test]
fn two_stations_learn_each_other_by_one_question() {
    for (asked, asker) in [("192.0.2.2", "192.0.2.1"), ("2001:db8::2", "2001:db8::1")] {
        for to in [None, Some(PEER)] {
            let question = station().question(ip(asked), to);
            assert_eq!(question[..6] == PEER.0, to.is_some());
            let heard = peer().hear(&question);
            assert_eq!(heard.claim, Some((ip(asker), OWN)));
            let answer = heard.reply.expect("it is asked for its own address");
            assert_eq!(station().hear(&answer).claim, Some((ip(asked), PEER)));
        }
    }
}

fn arp(operation: u8, mac: Mac, sender: &str, target: &str) -> Vec<u8> {
    let v4 = |text: &str| text.parse::<Ipv4Addr>().unwrap().octets();
    let mut frame = [&[0xff; 6][..], &mac.0, &[8, 6, 0, 1, 8, 0, 6, 4, 0, operation], &mac.0].concat();
    frame.extend_from_slice(&v4(sender));
    frame.extend_from_slice(&[0; 6]);
    frame.extend_from_slice(&v4(target));
    frame
}

#[test]
fn claims_that_can_not_be_are_not_heard() {
    let claim = |mac, sender: &str| station().hear(&arp(2, mac, sender, "192.0.2.1")).claim;
    assert!(claim(PEER, "192.0.2.9").is_some());
    assert_eq!(claim(PEER, "198.51.100.9"), None, "not on link");
    assert_eq!(claim(PEER, "192.0.2.1"), None, "our own address");
    assert_eq!(claim(Mac::BROADCAST, "192.0.2.9"), None);
    assert_eq!(claim(Mac([3, 0, 0, 0, 0, 1]), "192.0.2.9"), None, "a group's address");
    assert_eq!(claim(Mac([0; 6]), "192.0.2.9"), None);
    let whole = arp(2, PEER, "192.0.2.9", "192.0.2.1");
    for len in 0..whole.len() {
        assert_eq!(station().hear(&whole[..len]), Heard::default(), "{len} bytes");
    }
}

#[test]
fn only_who_asks_for_our_addresses_is_answered() {
    let reply = |target: &str| station().hear(&arp(1, PEER, "192.0.2.2", target)).reply;
    assert!(reply("192.0.2.1").is_some());
    assert_eq!(reply("192.0.2.3"), None);
    assert_eq!(station().hear(&arp(2, PEER, "192.0.2.2", "192.0.2.1")).reply, None, "an answer");
}

/// An error of a router about a datagram of ours.
fn too_big(v6: bool, mtu: u16, from: &str, port: u16) -> Vec<u8> {
    use crate::route::control::{icmp_v4, icmp_v6};
    let mut quoted = vec![0u8; if v6 { 48 } else { 28 }];
    let (remote, router) =
        if v6 { ("2001:db8:9::2", "2001:db8::fe") } else { ("198.51.100.2", "192.0.2.254") };
    let put = |bytes: &mut [u8], at: usize, address: &str| match ip(address) {
        IpAddr::V4(v4) => bytes[at..at + 4].copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => bytes[at..at + 16].copy_from_slice(&v6.octets()),
    };
    let udp = quoted.len() - 8;
    (quoted[0], quoted[if v6 { 6 } else { 9 }]) = (if v6 { 0x60 } else { 0x45 }, 17);
    put(&mut quoted, if v6 { 8 } else { 12 }, from);
    put(&mut quoted, if v6 { 24 } else { 16 }, remote);
    quoted[udp + 2..udp + 4].copy_from_slice(&port.to_be_bytes());
    let [hi, lo] = mtu.to_be_bytes();
    let head = if v6 { [2, 0, 0, 0, 0, 0, hi, lo] } else { [3, 4, 0, 0, 0, 0, hi, lo] };
    let icmp = [&head[..], &quoted].concat();
    let packet = match (ip(router), ip(if v6 { "2001:db8::1" } else { "192.0.2.1" })) {
        (IpAddr::V4(router), IpAddr::V4(own)) => icmp_v4(router, own, icmp),
        (IpAddr::V6(router), IpAddr::V6(own)) => icmp_v6(router, own, icmp, 64),
        _ => unreachable!(),
    };
    let kind: &[u8] = if v6 { &[0x86, 0xdd] } else { &[8, 0] };
    [&OWN.0[..], &PEER.0, kind, &packet].concat()
}

#[test]
fn a_router_can_say_that_a_path_is_narrower() {
    let narrow = |v6, mtu, from: &str| station().hear(&too_big(v6, mtu, from, 4789)).narrow;
    let (v4, v6) = ("198.51.100.2:4789".parse().unwrap(), "[2001:db8:9::2]:4789".parse().unwrap());
    assert_eq!(narrow(false, 1400, "192.0.2.1"), Some((v4, 1400)));
    assert_eq!(narrow(true, 1400, "2001:db8::1"), Some((v6, 1400)));
    assert_eq!(narrow(false, 100, "192.0.2.1"), Some((v4, 576)), "no path is that narrow");
    assert_eq!(narrow(true, 100, "2001:db8::1"), Some((v6, 1280)));
    assert_eq!(narrow(false, 0, "192.0.2.1"), None, "a router of before RFC 1191");
    assert_eq!(narrow(false, 1400, "192.0.2.7"), None, "not a datagram of ours");
}

#[test]
fn a_damaged_error_is_not_believed() {
    for v6 in [false, true] {
        let good = too_big(v6, 1400, if v6 { "2001:db8::1" } else { "192.0.2.1" }, 4789);
        assert!(station().hear(&good).narrow.is_some());
        for at in [good.len() - 1, good.len() - 20] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert_eq!(station().hear(&bad).narrow, None, "byte {at}");
        }
        for len in 0..good.len() {
            assert_eq!(station().hear(&good[..len]).narrow, None, "{len} bytes");
        }
    }
}
