//! Frames of one flow with whatever damage come out once each: as they were, or joined into a frame that can be cut into them
//! again, byte by byte.
#![no_main]

use libfuzzer_sys::fuzz_target;
use memif::Lent;
use vwire_dataplane::burst::Burst;
use vwire_dataplane::offload::checksum::{Sum, header_checksum};
use vwire_dataplane::offload::coalesce::{Coalescer, Link, Output};
use vwire_dataplane::offload::segment::Segmenter;
use vwire_dataplane::port::PortIndex;

/// Consecutive segments (or equal datagrams), with right checksums.
fn flow(shape: u8, size: usize) -> Vec<Vec<u8>> {
    let (tcp, v6) = (shape & 1 == 0, shape & 2 == 0);
    (0..2 + usize::from(shape >> 2 & 7)).map(|i| frame(tcp, v6, i, size)).collect()
}

fn frame(tcp: bool, v6: bool, i: usize, size: usize) -> Vec<u8> {
    let (l4, l4_header) = (if v6 { 54 } else { 34 }, if tcp { 20 } else { 8 });
    let mut frame = vec![0u8; l4 + l4_header + size];
    let l4_len = (l4_header + size) as u16;
    let protocol = if tcp { 6 } else { 17 };
    frame[12..14].copy_from_slice(if v6 { &[0x86, 0xdd] } else { &[8, 0] });
    if v6 {
        frame[14] = 0x60;
        frame[18..20].copy_from_slice(&l4_len.to_be_bytes());
        frame[20] = protocol;
    } else {
        frame[14] = 0x45;
        frame[16..18].copy_from_slice(&(20 + l4_len).to_be_bytes());
        frame[18..20].copy_from_slice(&(i as u16).to_be_bytes());
        frame[23] = protocol;
        let checksum = header_checksum(&frame[14..34]);
        frame[24..26].copy_from_slice(&checksum.to_be_bytes());
    }
    if tcp {
        frame[l4 + 4..l4 + 8].copy_from_slice(&((i * size) as u32).to_be_bytes());
        frame[l4 + 12..l4 + 14].copy_from_slice(&[0x50, 0x10]);
    } else {
        frame[l4 + 4..l4 + 6].copy_from_slice(&l4_len.to_be_bytes());
    }
    frame[l4 + l4_header..].fill(i as u8 + 1);
    let mut sum = Sum::starting_at(l4_len);
    sum.add_word(u16::from(protocol));
    sum.add(&frame[if v6 { 22 } else { 26 }..]);
    let field = l4 + if tcp { 16 } else { 6 };
    frame[field..field + 2].copy_from_slice(&sum.checksum().to_be_bytes());
    frame
}

fuzz_target!(|bytes: &[u8]| {
    let [shape, size, damage @ ..] = bytes else { return };
    let mut all = flow(*shape, 1 + usize::from(*size));
    all.extend(flow(shape.rotate_left(3), 1 + usize::from(*size)));
    for change in damage.chunks_exact(4) {
        let which = usize::from(change[0]) % all.len();
        let frame = &mut all[which];
        let at = usize::from(u16::from_le_bytes([change[1], change[2]])) % frame.len();
        match change[0] >> 6 {
            0 => frame.truncate(at.max(1)),
            1 => frame.push(change[3]),
            _ => frame[at] ^= change[3],
        }
    }
    let mut burst = Burst::new(PortIndex(0));
    all.iter().for_each(|frame| burst.push(Lent::from(&frame[..])));
    let (_, frames) = burst.runs().next().expect("two flows");
    let mut out: Vec<Vec<u8>> = Vec::new();
    Coalescer::new(Link::Ethernet, true).run(&frames, |output| match output {
        Output::Frame(i) => out.push(all[i].clone()),
        Output::Joined { header, offload, members } => {
            let mut joined = header.to_vec();
            members.clone().for_each(|i| joined.extend(&all[i][header.len()..]));
            let mut segmenter = Segmenter::new(Lent::from(&joined[..]), &[], &offload).expect("a good offload");
            assert_eq!(segmenter.segments(), members.clone().count());
            for member in members {
                let mut segment = vec![0; segmenter.next_len().expect("one for each member")];
                segmenter.write_next(&mut segment);
                out.push(comparable(&segment, &all[member]));
            }
        }
    });
    let mut sent = all.clone();
    sent.sort();
    out.sort();
    assert_eq!(out, sent, "every frame leaves once, and none is changed");
});

/// A cut segment may differ from the original in two ways that mean nothing: an identification that can't matter (DF), with the
/// header checksum that follows from it; and zero written as 0xffff in a checksum, or PSH inside, which joining may move to the
/// end. Returns the original if that is all.
fn comparable(segment: &[u8], original: &[u8]) -> Vec<u8> {
    let mut segment = segment.to_vec();
    let v4 = original[12..14] == [8, 0];
    if v4 && original[20] & 0x40 != 0 {
        segment[18..20].copy_from_slice(&original[18..20]);
        segment[24..26].copy_from_slice(&original[24..26]);
    }
    let (l4, tcp) = if v4 { (34, original[23] == 6) } else { (54, original[20] == 6) };
    let field = l4 + if tcp { 16 } else { 6 };
    if tcp && (segment[l4 + 13] ^ original[l4 + 13]) == 8 {
        segment[l4 + 13] = original[l4 + 13];
        segment[field..field + 2].copy_from_slice(&original[field..field + 2]);
    }
    let word = |bytes: &[u8]| u16::from_be_bytes([bytes[field], bytes[field + 1]]);
    if word(&segment) % 0xffff == word(original) % 0xffff {
        segment[field..field + 2].copy_from_slice(&original[field..field + 2]);
    }
    segment
}
