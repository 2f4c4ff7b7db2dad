//! Segmentation and coalescing against etherparse, against each other, and against lies.

use etherparse::{
    NetSlice, PacketBuilder, SlicedPacket, TcpOptionElement, TransportSlice, err::ValueTooBigError,
};
use memif::Lent;
use proptest::prelude::*;
use vwire_dataplane::burst::{BURST, Burst, Gso, Offload};
use vwire_dataplane::offload::coalesce::{Coalescer, Link, Output};
use vwire_dataplane::offload::segment::Segmenter;
use vwire_dataplane::offload::{complete_checksum, each_plain};
use vwire_dataplane::port::PortIndex;

const MACS: ([u8; 6], [u8; 6]) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);

/// A frame as a kernel would give it: complete but for the open checksum.
#[derive(Clone)]
struct Large {
    bytes: Vec<u8>,
    offload: Offload,
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 251) as u8).collect()
}

fn tcp(v6: bool, port: u16, sequence: u32, payload: &[u8], gso_size: u16) -> Large {
    let link = PacketBuilder::ethernet2(MACS.0, MACS.1);
    let ip =
        if v6 { link.ipv6([0xfd; 16], [0xfe; 16], 64) } else { link.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64) };
    let tcp = ip.tcp(port, 5201, sequence, 501).ack(77).psh();
    let tcp =
        tcp.options(&[TcpOptionElement::Noop, TcpOptionElement::Noop, TcpOptionElement::Timestamp(9, 8)]);
    let mut bytes = Vec::new();
    tcp.expect("the options fit").write(&mut bytes, payload).expect("a vector takes all");
    open_checksum(bytes, v6, 16, if v6 { Gso::Tcp6 } else { Gso::Tcp4 }, 32, gso_size)
}

fn udp(v6: bool, payload: &[u8], gso_size: u16) -> Large {
    let link = PacketBuilder::ethernet2(MACS.0, MACS.1);
    let ip =
        if v6 { link.ipv6([0xfd; 16], [0xfe; 16], 64) } else { link.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64) };
    let mut bytes = Vec::new();
    ip.udp(4000, 5201).write(&mut bytes, payload).expect("a vector takes all");
    open_checksum(bytes, v6, 6, Gso::Udp, 8, gso_size)
}

/// Puts the pseudo header's sum in place of the checksum.
fn open_checksum(
    mut bytes: Vec<u8>,
    v6: bool,
    field: usize,
    gso: Gso,
    l4_header: usize,
    gso_size: u16,
) -> Large {
    let l4 = if v6 { 54 } else { 34 };
    let addresses = if v6 { &bytes[22..54] } else { &bytes[26..34] };
    let protocol = if field == 16 { 6 } else { 17 };
    let words = addresses.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let mut sum: u32 = words.sum::<u32>() + protocol + (bytes.len() - l4) as u32;
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    bytes[l4 + field..l4 + field + 2].copy_from_slice(&(sum as u16).to_be_bytes());
    let offload = Offload {
        needs_csum: true,
        gso,
        hdr_len: (l4 + l4_header) as u16,
        gso_size,
        csum_start: l4 as u16,
        csum_offset: field as u16,
    };
    Large { bytes, offload }
}

/// Cuts `bytes` into views that end at `cuts`.
fn views<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<Lent<'a>> {
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).chain([bytes.len()]).collect();
    ends.sort_unstable();
    let mut start = 0;
    let mut views = Vec::new();
    for end in ends {
        views.push(Lent::from(&bytes[start..end]));
        start = end;
    }
    views
}

/// All segments, written.
fn written(large: &Large, cuts: &[usize]) -> Vec<Vec<u8>> {
    let views = views(&large.bytes, cuts);
    let mut segmenter = Segmenter::new(views[0], &views[1..], &large.offload).expect("a good offload");
    let mut segments = Vec::new();
    while let Some(len) = segmenter.next_len() {
        let mut segment = vec![0xaa; len + 3];
        assert_eq!(segmenter.write_next(&mut segment), Some(len));
        assert_eq!(segment.split_off(len), [0xaa; 3], "nothing is written behind the segment");
        segments.push(segment);
    }
    assert_eq!(segments.len(), segmenter.segments());
    segments
}

/// All segments, as views.
fn viewed(large: &Large, cuts: &[usize]) -> Vec<Vec<u8>> {
    let views = views(&large.bytes, cuts);
    let mut burst = Burst::new(PortIndex(0));
    assert!(burst.push_with(&views, Some(large.offload)));
    let (_, frames) = burst.runs().next().expect("one frame");
    let mut segments = Vec::new();
    let calls = each_plain(&frames, &frames.as_slice()[0], |views| {
        segments.push(views.iter().flat_map(Lent::to_vec).collect());
        true
    });
    assert_eq!(calls, Ok(segments.len()));
    segments
}

/// What the coalescer makes of plain frames: frames as they were, or joined ones.
fn coalesced(frames: &[Vec<u8>], cuts: &[usize]) -> Vec<(Vec<u8>, Option<Offload>)> {
    let frames: Vec<_> = frames.iter().map(|frame| (frame.clone(), None)).collect();
    coalesced_with(&frames, cuts, true)
}

fn coalesced_with(
    frames: &[(Vec<u8>, Option<Offload>)],
    cuts: &[usize],
    udp: bool,
) -> Vec<(Vec<u8>, Option<Offload>)> {
    let views: Vec<_> = frames.iter().map(|(frame, offload)| (views(frame, cuts), *offload)).collect();
    let mut burst = Burst::new(PortIndex(0));
    for (views, offload) in &views {
        assert!(burst.push_with(views, *offload));
    }
    let mut outputs = Vec::new();
    let Some((_, frames)) = burst.runs().next() else { return outputs };
    Coalescer::new(Link::Ethernet, udp).run(&frames, |output| match output {
        Output::Frame(i) => {
            let frame = &frames.as_slice()[i];
            outputs.push((frames.to_vec(frame), frames.offload(frame)));
        }
        Output::Joined { header, offload, members } => {
            let mut joined = header.to_vec();
            members.for_each(|i| joined.extend(&frames.to_vec(&frames.as_slice()[i])[header.len()..]));
            outputs.push((joined, Some(offload)));
        }
    });
    outputs
}

/// Parses a frame strictly and checks every checksum in it. Returns the payload of TCP or UDP.
fn verified(frame: &[u8]) -> Result<Vec<u8>, ValueTooBigError<usize>> {
    let packet = SlicedPacket::from_ethernet(frame).expect("a well-formed packet");
    let Some(net) = packet.net else { panic!("no IP header") };
    if let NetSlice::Ipv4(ip) = &net {
        let header = ip.header().to_header();
        assert_eq!(header.header_checksum, header.calc_header_checksum());
        assert_eq!(usize::from(header.total_len), frame.len() - 14);
    }
    match (packet.transport.expect("a transport header"), net) {
        (TransportSlice::Tcp(tcp), NetSlice::Ipv4(ip)) => {
            let (from, to) = (ip.header().source(), ip.header().destination());
            assert_eq!(tcp.checksum(), tcp.calc_checksum_ipv4(from, to)?);
            Ok(tcp.payload().to_vec())
        }
        (TransportSlice::Tcp(tcp), NetSlice::Ipv6(ip)) => {
            let (from, to) = (ip.header().source(), ip.header().destination());
            assert_eq!(tcp.checksum(), tcp.calc_checksum_ipv6(from, to)?);
            Ok(tcp.payload().to_vec())
        }
        (TransportSlice::Udp(udp), NetSlice::Ipv4(ip)) => {
            let header = udp.to_header();
            let (from, to) = (ip.header().source(), ip.header().destination());
            assert_eq!(header.checksum, header.calc_checksum_ipv4_raw(from, to, udp.payload())?);
            Ok(udp.payload().to_vec())
        }
        (TransportSlice::Udp(udp), NetSlice::Ipv6(ip)) => {
            let header = udp.to_header();
            let (from, to) = (ip.header().source(), ip.header().destination());
            assert_eq!(header.checksum, header.calc_checksum_ipv6_raw(from, to, udp.payload())?);
            Ok(udp.payload().to_vec())
        }
        _ => panic!("neither TCP nor UDP"),
    }
}

fn tcp_header(frame: &[u8]) -> etherparse::TcpHeader {
    match SlicedPacket::from_ethernet(frame).expect("a packet").transport {
        Some(TransportSlice::Tcp(tcp)) => tcp.to_header(),
        _ => panic!("not TCP"),
    }
}

#[test]
fn segments_of_tcp_are_correct_packets_that_carry_the_whole_stream_in_order() {
    for v6 in [false, true] {
        for (len, gso) in [(1, 1448), (1448, 1448), (1449, 1448), (60_000, 1378), (65_000, 8_900), (5, 2)] {
            let large = tcp(v6, 4000, u32::MAX - 2000, &payload(len), gso);
            let segments = written(&large, &[]);
            assert_eq!(segments.len(), len.div_ceil(usize::from(gso)));
            let mut stream = Vec::new();
            for (i, segment) in segments.iter().enumerate() {
                let header = tcp_header(segment);
                let last = i + 1 == segments.len();
                assert_eq!(header.sequence_number, (u32::MAX - 2000).wrapping_add(stream.len() as u32));
                assert_eq!((header.psh, header.ack, header.fin), (last, true, false));
                stream.extend(verified(segment).expect("lengths fit"));
                assert!(last || stream.len() % usize::from(gso) == 0);
            }
            assert_eq!(stream, payload(len));
        }
    }
}

#[test]
fn segments_of_udp_are_datagrams_with_their_own_length_and_checksum() {
    for v6 in [false, true] {
        let large = udp(v6, &payload(5000), 1200);
        let segments = written(&large, &[]);
        let lengths: Vec<_> = segments.iter().map(|segment| verified(segment).expect("fits").len()).collect();
        assert_eq!(lengths, [1200, 1200, 1200, 1200, 200]);
        assert_eq!(
            segments.iter().flat_map(|s| verified(s).expect("fits")).collect::<Vec<_>>(),
            payload(5000)
        );
    }
}

#[test]
fn identifications_count_up_and_flags_go_where_they_belong() {
    let mut large = tcp(false, 4000, 1, &payload(3000), 1000);
    large.bytes[18..20].copy_from_slice(&0xffffu16.to_be_bytes());
    large.bytes[47] |= 0x81; // CWR and FIN
    let segments = written(&large, &[]);
    let ids: Vec<_> = segments.iter().map(|s| u16::from_be_bytes([s[18], s[19]])).collect();
    assert_eq!(ids, [0xffff, 0, 1]);
    let flags: Vec<_> = segments.iter().map(|s| s[47]).collect();
    assert_eq!(flags, [0x90, 0x10, 0x19]);
}

#[test]
fn an_open_checksum_alone_is_completed_in_place_and_while_copying() {
    for large in [tcp(false, 4000, 1, &payload(777), 0), udp(true, &payload(1201), 0)] {
        let offload = Offload { gso: Gso::None, gso_size: 0, ..large.offload };
        let mut frame = large.bytes.clone();
        assert_eq!(complete_checksum(&mut frame, &offload), Ok(()));
        verified(&frame).expect("lengths fit");
        let large = Large { offload, ..large };
        assert_eq!(written(&large, &[333, 40]), [frame.clone()]);
        assert_eq!(viewed(&large, &[333, 40]), [frame]);
    }
}

#[test]
fn a_plain_frame_is_passed_on_untouched() {
    let bytes = payload(100);
    let mut burst = Burst::new(PortIndex(0));
    burst.push(Lent::from(&bytes[..]));
    burst.push_with(&[Lent::from(&bytes[..60]), Lent::from(&bytes[60..])], None);
    let (_, frames) = burst.runs().next().expect("two frames");
    for (frame, pieces) in frames.as_slice().iter().zip([1, 2]) {
        let mut seen = Vec::new();
        assert_eq!(
            each_plain(&frames, frame, |views| {
                assert_eq!(views.len(), pieces);
                seen = views.iter().flat_map(Lent::to_vec).collect();
                true
            }),
            Ok(1)
        );
        assert_eq!(seen, bytes);
    }
}

#[test]
fn segments_stop_when_the_egress_has_no_room() {
    let large = tcp(false, 4000, 1, &payload(10_000), 1000);
    let mut burst = Burst::new(PortIndex(0));
    burst.push_with(&[Lent::from(&large.bytes[..])], Some(large.offload));
    let (_, frames) = burst.runs().next().expect("one frame");
    let mut calls = 0;
    let result = each_plain(&frames, &frames.as_slice()[0], |_| {
        calls += 1;
        calls < 4
    });
    assert_eq!((result, calls), (Ok(4), 4));
}

#[test]
fn a_corrupted_segment_goes_on_alone_and_unchanged() {
    let segments = written(&tcp(false, 4000, 1, &payload(20_000), 1000), &[]);
    for (corrupted, expected) in [(0, vec![1, 19]), (7, vec![7, 1, 12]), (19, vec![19, 1])] {
        for byte in [40, 50, 66, 700, 1065] {
            let mut segments = segments.clone();
            segments[corrupted][byte] ^= 0x10;
            let outputs = coalesced(&segments, &[]);
            assert!(outputs.contains(&(segments[corrupted].clone(), None)), "byte {byte} of {corrupted}");
            if byte >= 66 {
                let sizes: Vec<_> = outputs.iter().map(|(frame, _)| (frame.len() - 66) / 1000).collect();
                assert_eq!(sizes, expected, "byte {byte} of {corrupted}");
            }
        }
    }
}

/// Whether two consecutive segments are joined after `both` was done to them and `second` to the second one; the checksums are
/// made right again.
fn joins_after(both: impl Fn(&mut Vec<u8>), second: impl Fn(&mut Vec<u8>)) -> bool {
    let mut segments = written(&tcp(false, 4000, 1, &payload(3000), 1000), &[]);
    segments.pop();
    segments.iter_mut().for_each(both);
    second(&mut segments[1]);
    segments.iter_mut().for_each(|segment| repair(segment));
    coalesced(&segments, &[]).len() == 1
}

fn repair(frame: &mut [u8]) {
    frame[24..26].fill(0);
    let ip = vwire_dataplane::offload::checksum::header_checksum(&frame[14..34]);
    frame[24..26].copy_from_slice(&ip.to_be_bytes());
    frame[50..52].fill(0);
    let tcp = match SlicedPacket::from_ethernet(frame).expect("a packet").transport {
        Some(TransportSlice::Tcp(tcp)) => tcp.calc_checksum_ipv4([10, 0, 0, 1], [10, 0, 0, 2]),
        _ => return,
    };
    frame[50..52].copy_from_slice(&tcp.expect("fits").to_be_bytes());
}

#[test]
fn only_segments_that_differ_in_nothing_else_are_joined() {
    assert!(joins_after(|_| {}, |_| {}), "consecutive segments are");
    let changes: [(&str, usize, u8); 14] = [
        ("source MAC", 11, 1),
        ("TOS", 15, 4),
        ("more fragments", 20, 0x20),
        ("fragment offset", 21, 1),
        ("TTL", 22, 1),
        ("source port", 35, 1),
        ("sequence", 41, 1),
        ("acknowledgement", 45, 1),
        ("NS flag", 46, 1),
        ("FIN", 47, 1),
        ("URG", 47, 0x20),
        ("ECE", 47, 0x40),
        ("window", 49, 1),
        ("time stamp", 60, 1),
    ];
    for (what, at, bits) in changes {
        assert!(
            !joins_after(|_| {}, |frame| frame[at] ^= bits),
            "a different {what} must keep segments apart"
        );
    }
    let may_fragment = |frame: &mut Vec<u8>| frame[20] &= !0x40;
    assert!(joins_after(may_fragment, |_| {}), "identifications that count up are in order");
    assert!(!joins_after(may_fragment, |frame| frame[19] ^= 4), "one out of order matters without DF");
    assert!(joins_after(|_| {}, |frame| frame[19] ^= 4), "and does not with DF");
}

#[test]
fn a_push_between_segments_moves_to_the_end() {
    let mut segments = written(&tcp(false, 4000, 1, &payload(3000), 1000), &[]);
    segments[0][47] |= 8;
    repair(&mut segments[0]);
    assert_eq!(coalesced(&segments, &[])[0].0, tcp(false, 4000, 1, &payload(3000), 1000).bytes);
    segments.pop();
    let outputs = coalesced(&segments, &[]);
    assert_eq!((outputs.len(), outputs[0].0[47]), (1, 0x18));
}

#[test]
fn flows_are_joined_beside_each_other_and_keep_their_order() {
    let flows: Vec<_> =
        (0..3).map(|i| written(&tcp(i == 1, 4000 + i, 1, &payload(9000), 1000), &[])).collect();
    let mixed: Vec<_> = (0..9).flat_map(|i| flows.iter().map(move |flow| flow[i].clone())).collect();
    let outputs = coalesced(&mixed, &[]);
    assert_eq!(outputs.len(), 3);
    for (flow, (frame, offload)) in (0..3u16).zip(&outputs) {
        assert_eq!(frame, &tcp(flow == 1, 4000 + flow, 1, &payload(9000), 1000).bytes);
        assert_eq!(offload.map(|owed| owed.gso_size), Some(1000));
    }
}

#[test]
fn more_flows_than_are_joined_at_once_lose_nothing() {
    let flows: Vec<_> =
        (0..30).map(|i| written(&tcp(false, 4000 + i, 1, &payload(2000), 1000), &[])).collect();
    let mixed: Vec<_> = (0..2).flat_map(|i| flows.iter().map(move |flow| flow[i].clone())).collect();
    let outputs = coalesced(&mixed, &[]);
    let mut bytes: Vec<_> = outputs.iter().map(|(frame, _)| frame.clone()).collect();
    let mut expected = mixed;
    bytes.sort();
    expected.sort();
    assert_eq!(bytes, expected, "with 30 flows in turn nothing can be joined, and nothing is lost");
}

#[test]
fn other_frames_pass_as_they_are() {
    let mut frames =
        vec![payload(60), written(&udp(false, &payload(100), 100), &[]).remove(0), vec![0; 1], payload(13)];
    let mut outputs: Vec<_> = coalesced(&frames, &[]).into_iter().map(|(frame, _)| frame).collect();
    outputs.sort();
    frames.sort();
    assert_eq!(outputs, frames);
}

#[test]
fn datagrams_are_joined_where_the_kernel_takes_them_so() {
    for v6 in [false, true] {
        let large = udp(v6, &payload(5000), 1200);
        let datagrams = written(&large, &[]);
        assert_eq!(coalesced(&datagrams, &[]), [(large.bytes, Some(large.offload))]);
        let plain: Vec<_> = datagrams.iter().map(|frame| (frame.clone(), None)).collect();
        assert_eq!(coalesced_with(&plain, &[], false), plain);
    }
}

#[test]
fn datagrams_without_a_checksum_or_with_a_wrong_one_or_length_stay_alone() {
    let datagrams = written(&udp(false, &payload(3000), 1000), &[]);
    for (at, bytes) in [(40, [0, 0]), (40, [1, 1]), (500, [0xff, 0xfe]), (38, [0, 100])] {
        let mut changed = datagrams.clone();
        changed[1][at..at + 2].copy_from_slice(&bytes);
        let outputs = coalesced(&changed, &[]);
        assert!(outputs.contains(&(changed[1].clone(), None)), "{bytes:?} at {at}");
    }
}

#[test]
fn frames_of_a_local_kernel_are_joined_with_their_checksums_open() {
    let open = |payload: &[u8]| {
        let frame = udp(false, payload, 0);
        (frame.bytes, Some(Offload { gso: Gso::None, hdr_len: 0, ..frame.offload }))
    };
    let datagrams: Vec<_> = payload(3500).chunks(1000).map(open).collect();
    let outputs = coalesced_with(&datagrams, &[], true);
    assert_eq!(outputs.len(), 1);
    let (joined, offload) = outputs[0].clone();
    assert_eq!((&joined[42..], offload), (&payload(3500)[..], Some(udp(false, &[0], 1000).offload)));
    let pieces = written(&Large { bytes: joined, offload: offload.expect("joined") }, &[]);
    let lengths: Vec<_> = pieces.iter().map(|piece| verified(piece).expect("fits").len()).collect();
    assert_eq!(lengths, [1000, 1000, 1000, 500], "the pieces are good datagrams again");

    let alone = [open(&payload(9)), (payload(60), None)];
    let outputs = coalesced_with(&alone, &[], true);
    assert!(outputs.len() == 2 && outputs.contains(&alone[0]), "a frame alone keeps what it owes");
}

#[test]
fn a_large_frame_is_not_overtaken_by_its_flow() {
    let large = tcp(false, 4000, 1, &payload(3000), 1000);
    let two: Vec<_> = written(&large, &[]).into_iter().take(2).map(|frame| (frame, None)).collect();
    let whole = (large.bytes.clone(), Some(large.offload));
    let frames = [two.clone(), vec![whole.clone()], two].concat();
    let outputs = coalesced_with(&frames, &[], true);
    assert_eq!((outputs.len(), &outputs[1]), (3, &whole));
}

fn any_offload() -> impl Strategy<Value = Offload> {
    let gso = prop::sample::select(vec![Gso::None, Gso::Tcp4, Gso::Tcp6, Gso::Udp]);
    let small = || prop_oneof![4 => 0u16..100, 1 => any::<u16>()];
    (any::<bool>(), gso, small(), prop_oneof![0u16..5, any::<u16>()], small(), small()).prop_map(
        |(needs_csum, gso, hdr_len, gso_size, csum_start, csum_offset)| Offload {
            needs_csum,
            gso,
            hdr_len,
            gso_size,
            csum_start,
            csum_offset,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn cutting_and_joining_again_gives_the_same_frame(
        v6: bool,
        len in 1usize..60_000,
        gso in 700u16..9000,
        sequence: u32,
        cuts in prop::collection::vec(any::<usize>(), 0..6),
    ) {
        let large = tcp(v6, 4000, sequence, &payload(len), gso);
        let segments = written(&large, &cuts);
        prop_assert_eq!(&viewed(&large, &cuts), &segments);
        prop_assume!(segments.len() <= BURST);
        let outputs = coalesced(&segments, &[]);
        prop_assert_eq!(outputs.len(), 1);
        if segments.len() > 1 {
            prop_assert_eq!(&outputs[0].0, &large.bytes);
            prop_assert_eq!(outputs[0].1, Some(large.offload));
        }
    }

    #[test]
    fn scattered_segments_are_joined_or_passed_on_but_never_changed(
        len in 1usize..30_000,
        cuts in prop::collection::vec(0usize..2000, 0..4),
    ) {
        let large = tcp(false, 4000, 5, &payload(len), 1000);
        let mut stream: Vec<u8> = Vec::new();
        for (frame, _) in coalesced(&written(&large, &[]), &cuts) {
            stream.extend(&frame[66..]);
        }
        prop_assert_eq!(stream, payload(len));
    }

    #[test]
    fn no_claim_about_any_frame_panics_or_makes_bytes_up(
        bytes in prop::collection::vec(any::<u8>(), 1..400),
        honest: bool,
        offload in any_offload(),
        cuts in prop::collection::vec(any::<usize>(), 0..4),
    ) {
        let mut bytes = bytes;
        if honest && bytes.len() > 60 {
            let real = tcp(false, 1, 2, &bytes, 100);
            bytes = real.bytes;
        }
        let views = views(&bytes, &cuts);
        if let Ok(mut segmenter) = Segmenter::new(views[0], &views[1..], &offload) {
            let mut payload = 0;
            let mut out = vec![0; 70_000];
            while let Some(len) = segmenter.write_next(&mut out) {
                payload += len;
            }
            prop_assert!(payload >= bytes.len());
        }
        let _ = complete_checksum(&mut bytes, &offload);
    }

    #[test]
    fn the_coalescer_takes_any_bytes(
        frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..120), 1..20),
        seeds in prop::collection::vec((any::<usize>(), any::<u8>()), 0..20),
    ) {
        let mut all: Vec<_> = frames;
        all.extend(written(&tcp(false, 4000, 1, &payload(3000), 300), &[]));
        all.extend(written(&tcp(true, 4000, 1, &payload(1500), 300), &[]));
        for (at, byte) in seeds {
            let frame = at % all.len();
            let frame = &mut all[frame];
            let at = at / 64 % frame.len();
            frame[at] = byte;
        }
        let outputs = coalesced(&all, &[]);
        prop_assert!(!outputs.is_empty());
        let single = outputs.iter().filter(|(_, offload)| offload.is_none());
        for (frame, _) in single {
            prop_assert!(all.contains(frame));
        }
    }
}
