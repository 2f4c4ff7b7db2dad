use super::*;
use etherparse::PacketBuilder;

const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 9];

fn line() -> Line {
    let v4: IpAddr = "192.0.2.1".parse().unwrap();
    let v6: IpAddr = "2001:db8::1".parse().unwrap();
    Line {
        mac: Mac(OWN),
        addresses: vec![v4, v6],
        endpoints: vec![SocketAddr::new(v4, 4789), SocketAddr::new(v6, 4789)],
    }
}

/// A datagram with an inner frame of `inner` bytes.
fn frame(v6: bool, to_port: u16, inner: usize) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2(OTHER, OWN);
    let payload = [&[8, 0, 0, 0, 0, 0, 42, 0][..], &vec![0x5a; inner]].concat();
    let mut frame = Vec::new();
    let from = "2001:db8::2".parse::<Ipv6Addr>().unwrap().octets();
    let to = "2001:db8::1".parse::<Ipv6Addr>().unwrap().octets();
    let ip = match v6 {
        false => ethernet.ipv4([192, 0, 2, 2], [192, 0, 2, 1], 64),
        true => ethernet.ipv6(from, to, 64),
    };
    ip.udp(50_000, to_port).write(&mut frame, &payload).unwrap();
    frame
}

/// Makes the IPv4 header's checksum right again.
fn mend(frame: &mut [u8]) {
    let len = usize::from(frame[14] & 15) * 4;
    frame[24..26].fill(0);
    let sum = header_checksum(&frame[14..14 + len]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}

fn judged(frame: &[u8]) -> Result<Verdict, DropReason> {
    judge(&frame[..frame.len().min(HEAD)], frame.len(), &line())
}

fn is_other(frame: &[u8]) -> bool {
    matches!(judged(frame), Ok(Verdict::Other))
}

#[test]
fn a_datagram_for_a_tunnel_says_where_its_frame_is() {
    for (v6, at, sender) in [(false, 50, "192.0.2.2"), (true, 70, "2001:db8::2")] {
        for inner in [14, 60, 1400] {
            let frame = frame(v6, 4789, inner);
            let Ok(Verdict::Datagram(found)) = judged(&frame) else { panic!("v6 {v6}, {inner} bytes") };
            assert_eq!(
                (found.frame(), found.frame_len(), found.sender),
                (at, inner, sender.parse().unwrap())
            );
            assert_eq!(found.key.vni().unwrap().get(), 42);
        }
    }
}

#[test]
fn a_short_frame_is_not_longer_for_its_padding() {
    let mut frame = frame(false, 4789, 14);
    frame.resize(100, 0xee);
    let Ok(Verdict::Datagram(found)) = judged(&frame) else { panic!("not a datagram") };
    assert_eq!(found.frame_len(), 14);
}

#[test]
fn what_is_for_others_is_left_alone() {
    for v6 in [false, true] {
        let good = frame(v6, 4789, 60);
        assert!(is_other(&frame(v6, 4790, 60)), "another UDP port");
        let mut elsewhere = good.clone();
        elsewhere[5] = 77;
        assert!(matches!(judged(&elsewhere), Ok(Verdict::Elsewhere)));
        let mut address = good.clone();
        address[if v6 { 53 } else { 33 }] = 77;
        assert!(is_other(&address), "another address");
        let mut tcp = good.clone();
        tcp[if v6 { 20 } else { 23 }] = 6;
        assert!(is_other(&tcp), "another protocol");
    }
    let mut vlan = frame(false, 4789, 60);
    vlan[12..14].copy_from_slice(&[0x81, 0]);
    assert!(is_other(&vlan));
}

#[test]
fn fragments_and_extension_headers_are_no_datagrams() {
    for bits in [[0x20, 0], [0, 1], [0x1f, 0xff]] {
        let mut fragment = frame(false, 4789, 60);
        fragment[20..22].copy_from_slice(&bits);
        mend(&mut fragment);
        assert!(is_other(&fragment), "{bits:?}");
    }
    let mut reserved = frame(false, 4789, 60);
    reserved[20..22].copy_from_slice(&[0x40, 0]);
    mend(&mut reserved);
    assert!(matches!(judged(&reserved), Ok(Verdict::Datagram(_))), "\"don't fragment\" is no fragment");
    let mut extended = frame(true, 4789, 60);
    extended[20] = 44;
    assert!(is_other(&extended));
}

#[test]
fn lengths_must_agree() {
    let refused = |edit: &dyn Fn(&mut Vec<u8>), v6| {
        let mut frame = frame(v6, 4789, 60);
        edit(&mut frame);
        if !v6 && frame.len() > 34 {
            mend(&mut frame);
        }
        judged(&frame).err()
    };
    use DropReason::{BadIpHeader, BadUdp, VxlanShort};
    assert_eq!(refused(&|f| f[16] = 0xff, false), Some(BadIpHeader), "total length beyond the frame");
    assert_eq!(refused(&|f| f[17] = 27, false), Some(BadIpHeader), "no room for UDP");
    assert_eq!(refused(&|f| f[14] = 0x44, false), Some(BadIpHeader), "a header of 16 bytes");
    assert_eq!(refused(&|f| f[18] = 0xff, true), Some(BadIpHeader));
    assert_eq!(refused(&|f| f.truncate(100), true), Some(BadIpHeader));
    assert_eq!(refused(&|f| f[38] = 0xff, false), Some(BadUdp), "UDP length beyond the packet");
    assert_eq!(refused(&|f| f[39] = 7, false), Some(BadUdp), "shorter than its header");
    assert_eq!(refused(&|f| f[39] = 8 + 8 + 13, false), Some(VxlanShort));
    assert_eq!(refused(&|f| f[59] = 8 + 8 + 13, true), Some(VxlanShort));
    let mut sum = frame(false, 4789, 60);
    sum[24] ^= 1;
    assert_eq!(judged(&sum).err(), Some(BadIpHeader), "the header's checksum");
    assert_eq!(judged(&sum[..13]).err(), Some(DropReason::TooShort));
}

#[test]
fn ipv6_without_a_checksum_is_refused_and_ipv4_is_not() {
    let (mut v4, mut v6) = (frame(false, 4789, 60), frame(true, 4789, 60));
    v4[40..42].fill(0);
    v6[60..62].fill(0);
    assert!(matches!(judged(&v4), Ok(Verdict::Datagram(Datagram { checksum: 0, .. }))));
    assert_eq!(judged(&v6).err(), Some(DropReason::BadUdp));
}

#[test]
fn ip_options_are_stepped_over() {
    let plain = frame(false, 4789, 60);
    let mut frame = [&plain[..34], &[1; 8], &plain[34..]].concat();
    frame[14] = 0x47;
    frame[17] += 8;
    mend(&mut frame);
    let Ok(Verdict::Datagram(found)) = judged(&frame) else { panic!("not a datagram") };
    assert_eq!((found.frame(), found.frame_len()), (58, 60));
}

#[test]
fn the_underlay_hears_arp_neighbour_discovery_and_icmp_to_itself() {
    let mut arp = vec![0; 42];
    arp[..6].fill(0xff);
    arp[12..14].copy_from_slice(&[8, 6]);
    assert!(matches!(judged(&arp), Ok(Verdict::Control)));
    let mut echo = frame(false, 4789, 60);
    echo[23] = 1;
    assert!(matches!(judged(&echo), Ok(Verdict::Control)));
    let mut nd = frame(true, 4789, 60);
    nd[20] = 58;
    assert!(matches!(judged(&nd), Ok(Verdict::Control)));
    nd[..6].copy_from_slice(&[0x33, 0x33, 0xff, 0, 0, 1]);
    nd[38..54].copy_from_slice(&"ff02::1:ff00:1".parse::<Ipv6Addr>().unwrap().octets());
    assert!(is_other(&nd), "not neighbour discovery, and not to us");
    nd[54] = 135;
    assert!(matches!(judged(&nd), Ok(Verdict::Control)));
}

#[test]
fn every_prefix_of_a_frame_is_judged_without_harm() {
    for v6 in [false, true] {
        let whole = frame(v6, 4789, 60);
        for len in 0..whole.len() {
            assert!(!matches!(judged(&whole[..len]), Ok(Verdict::Datagram(_))), "{len} bytes");
        }
    }
}
