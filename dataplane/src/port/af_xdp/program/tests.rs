//! The programs run by an interpreter, against frames that another library made. That the kernel's verifier takes them, too, is
//! shown wherever a port is opened.

use std::cell::RefCell;
use std::net::SocketAddr;

use etherparse::{IpFragOffset, PacketBuilder};

use super::super::steering::key;
use super::*;

/// Where rbpf puts the frame's addresses, and, behind them, our queue's number.
const INTERPRETED: Context = Context { pointer: Size::Double, data: 0, end: 8, queue: 16 };
const REDIRECTED: u64 = 4;
const PASSED: u64 = 2;

thread_local! {
    /// Destinations that the map has.
    static MAP: RefCell<Vec<[u8; 20]>> = const { RefCell::new(Vec::new()) };
    /// What was redirected: queue and flags.
    static SENT: RefCell<Vec<(u64, u64)>> = const { RefCell::new(Vec::new()) };
}

fn lookup(_map: u64, key: u64, _: u64, _: u64, _: u64) -> u64 {
    // SAFETY: the program passes the address of 20 bytes on its stack.
    let key = unsafe { *(key as *const [u8; 20]) };
    MAP.with_borrow(|map| u64::from(map.contains(&key)))
}

fn redirected(_map: u64, queue: u64, flags: u64, _: u64, _: u64) -> u64 {
    SENT.with_borrow_mut(|sent| sent.push((queue, flags)));
    REDIRECTED
}

/// What the program does with a frame that came by queue 3.
fn run(code: &Code, frame: &[u8]) -> u64 {
    let mut vm = rbpf::EbpfVmMbuff::new(Some(&code.bytes)).unwrap();
    vm.register_helper(MAP_LOOKUP_ELEM as u32, lookup).unwrap();
    vm.register_helper(REDIRECT_MAP as u32, redirected).unwrap();
    let start = frame.as_ptr() as u64;
    let mut context = [0u8; 24];
    context[..8].copy_from_slice(&start.to_ne_bytes());
    context[8..16].copy_from_slice(&(start + frame.len() as u64).to_ne_bytes());
    context[16..20].copy_from_slice(&3u32.to_ne_bytes());
    SENT.with_borrow_mut(Vec::clear);
    let verdict = vm.execute_program(frame, &context).unwrap();
    let expected: &[(u64, u64)] = if verdict == REDIRECTED { &[(3, XDP_PASS as u64)] } else { &[] };
    SENT.with_borrow(|sent| assert_eq!(sent, expected));
    verdict
}

fn steer(to: &[&str]) -> Code {
    let keys = to.iter().map(|to| key(to.parse::<SocketAddr>().unwrap())).collect();
    MAP.set(keys);
    datagrams(INTERPRETED)
}

fn build(builder: etherparse::PacketBuilderStep<etherparse::UdpHeader>, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).unwrap();
    frame
}

fn ethernet() -> etherparse::PacketBuilderStep<etherparse::Ethernet2Header> {
    PacketBuilder::ethernet2([2; 6], [4; 6])
}

fn udp4(to: [u8; 4], port: u16) -> Vec<u8> {
    build(ethernet().ipv4([192, 0, 2, 9], to, 64).udp(7, port), b"12345678")
}

fn udp6(last: u8, port: u16) -> Vec<u8> {
    let mut to = [0; 16];
    (to[0], to[1], to[15]) = (0x20, 1, last);
    build(ethernet().ipv6([1; 16], to, 64).udp(7, port), b"12345678")
}

#[test]
fn all_frames_go_to_the_socket_of_their_queue() {
    for frame in [&[][..], &[0; 14], &udp4([192, 0, 2, 1], 4789)] {
        assert_eq!(run(&all(INTERPRETED), frame), REDIRECTED);
    }
}

#[test]
fn datagrams_to_a_steered_address_and_port_are_ours_and_others_the_kernels() {
    let code = steer(&["192.0.2.1:4789", "[2001::1]:4789"]);
    assert_eq!(run(&code, &udp4([192, 0, 2, 1], 4789)), REDIRECTED);
    assert_eq!(run(&code, &udp6(1, 4789)), REDIRECTED);
    assert_eq!(run(&code, &udp4([192, 0, 2, 2], 4789)), PASSED);
    assert_eq!(run(&code, &udp4([192, 0, 2, 1], 4790)), PASSED);
    assert_eq!(run(&code, &udp4([192, 0, 2, 1], 0xb512)), PASSED, "the port is not read backwards");
    assert_eq!(run(&code, &udp6(2, 4789)), PASSED);
    assert_eq!(run(&code, &udp6(1, 22)), PASSED);
    let nothing = steer(&[]);
    assert_eq!(run(&nothing, &udp4([192, 0, 2, 1], 4789)), PASSED);
}

#[test]
fn an_ipv4_address_written_as_ipv6_is_another_than_it() {
    let code = steer(&["192.0.2.1:4789"]);
    let mapped = std::net::Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped().octets();
    // Such a packet is none that a router would pass on, and the map cannot tell; the port's own checks do.
    assert_eq!(run(&code, &build(ethernet().ipv6([1; 16], mapped, 64).udp(7, 4789), b"x")), REDIRECTED);
}

#[test]
fn options_are_stepped_over() {
    let code = steer(&["192.0.2.1:4789"]);
    let plain = udp4([192, 0, 2, 1], 4789);
    for words in 1..=10usize {
        let mut frame = plain[..34].to_vec();
        frame[14] = 0x45 + words as u8;
        frame.extend(vec![1; words * 4]);
        frame.extend(&plain[34..]);
        assert_eq!(run(&code, &frame), REDIRECTED, "{words} words of options");
        // With options longer than the frame.
        assert_eq!(run(&code, &frame[..34 + words * 4 + 7]), PASSED);
    }
    for words in 0..5u8 {
        let mut frame = plain.clone();
        frame[14] = 0x40 + words;
        assert_eq!(run(&code, &frame), PASSED, "a header of {words} words");
    }
}

#[test]
fn fragments_are_the_kernels() {
    let code = steer(&["192.0.2.1:4789"]);
    for (more, offset) in [(true, 0), (false, 8), (true, 185), (false, 0x1fff)] {
        let mut frame = udp4([192, 0, 2, 1], 4789);
        let field = IpFragOffset::try_new(offset).unwrap().value() | if more { 0x2000 } else { 0 };
        frame[20..22].copy_from_slice(&field.to_be_bytes());
        assert_eq!(run(&code, &frame), PASSED, "offset {offset}, more {more}");
    }
    let mut whole = udp4([192, 0, 2, 1], 4789);
    whole[20] = 0x40;
    assert_eq!(run(&code, &whole), REDIRECTED, "don't fragment");
}

#[test]
fn other_protocols_tags_and_versions_are_the_kernels() {
    let code = steer(&["192.0.2.1:4789", "[2001::1]:4789"]);
    let (v4, v6) = (udp4([192, 0, 2, 1], 4789), udp6(1, 4789));
    let changed = |frame: &[u8], at: usize, value: u8| {
        let mut frame = frame.to_vec();
        frame[at] = value;
        frame
    };
    assert_eq!(run(&code, &changed(&v4, 23, 6)), PASSED, "TCP");
    assert_eq!(run(&code, &changed(&v6, 20, 6)), PASSED, "TCP");
    assert_eq!(run(&code, &changed(&v6, 20, 0)), PASSED, "hop-by-hop options");
    assert_eq!(run(&code, &changed(&v4, 14, 0x65)), PASSED, "version 6 in IPv4's EtherType");
    assert_eq!(run(&code, &changed(&v6, 14, 0x45)), PASSED, "version 4 in IPv6's EtherType");
    assert_eq!(run(&code, &changed(&v4, 13, 6)), PASSED, "ARP");
    let mut tagged = v4[..12].to_vec();
    tagged.extend([0x81, 0, 0, 5]);
    tagged.extend(&v4[12..]);
    assert_eq!(run(&code, &tagged), PASSED, "a VLAN tag");
}

#[test]
fn no_frame_is_read_beyond_its_end() {
    let code = steer(&["192.0.2.1:4789", "[2001::1]:4789"]);
    for (frame, shortest) in [(udp4([192, 0, 2, 1], 4789), 42), (udp6(1, 4789), 62)] {
        for len in 0..=frame.len() {
            // A copy of its own, so that the interpreter knows where it ends.
            let cut = frame[..len].to_vec();
            let expected = if len < shortest { PASSED } else { REDIRECTED };
            assert_eq!(run(&code, &cut), expected, "{len} bytes");
        }
    }
}
