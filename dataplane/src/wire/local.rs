//! Frames that never saw a wire.
//!
//! A kernel vxlan device on the same machine (another container, joined by veth) leaves work to a network card that is not
//! there: inner TCP and UDP checksums stay open, and TCP frames stay uncut, up to 64 KiB in one datagram. The kernel does not
//! tell a UDP socket, so the frame itself is asked: an open checksum field holds the sum of the pseudo header. By chance one
//! in 65,536 whole frames looks the same; completing its checksum then gives the value that it has already.

use crate::burst::{Gso, Offload};
use crate::offload::checksum::Sum;
use crate::offload::ethernet_len;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// What a frame that came alone in its datagram still owes: nothing, a checksum, or, being longer than `max_frame`, to be cut
/// into segments that are not.
pub fn owed(frame: &[u8], max_frame: Option<usize>) -> Option<Offload> {
    let l3 = ethernet_len(frame)?;
    let packet = &frame[l3..];
    let (v6, protocol, l4_at, sum) = pseudo_header(packet)?;
    let l4 = packet.get(l4_at..)?;
    let (field, l4_header) = match protocol {
        TCP => (16, usize::from(*l4.get(12)? >> 4) * 4),
        _ => (6, 8),
    };
    if *l4.get(field..)?.first_chunk::<2>()? != sum.folded().to_be_bytes() {
        return None;
    }
    let checksum = Offload {
        needs_csum: true,
        csum_start: u16::try_from(l3 + l4_at).ok()?,
        csum_offset: field as u16,
        ..Offload::default()
    };
    let hdr_len = l3 + l4_at + l4_header;
    let room = max_frame.unwrap_or(usize::MAX).saturating_sub(hdr_len);
    if protocol != TCP || frame.len() <= hdr_len + room || room == 0 {
        return Some(checksum);
    }
    let gso = if v6 { Gso::Tcp6 } else { Gso::Tcp4 };
    Some(Offload { gso, hdr_len: hdr_len as u16, gso_size: room as u16, ..checksum })
}

/// IP version 6 or not, protocol, where its header begins, and the sum of the pseudo header; for TCP and UDP only.
fn pseudo_header(packet: &[u8]) -> Option<(bool, u8, usize, Sum)> {
    let (v6, protocol, l4_at, l4_len, addresses) = match packet.first()? >> 4 {
        4 => {
            let fixed = packet.first_chunk::<20>()?;
            let header_len = usize::from(fixed[0] & 15) * 4;
            let whole = u16::from_be_bytes([fixed[6], fixed[7]]) & 0x3fff == 0;
            let len = usize::from(u16::from_be_bytes([fixed[2], fixed[3]])).checked_sub(header_len)?;
            (false, fixed[9], header_len, whole.then_some(len)?, &packet[12..20])
        }
        6 => {
            let fixed = packet.first_chunk::<40>()?;
            (true, fixed[6], 40, usize::from(u16::from_be_bytes([fixed[4], fixed[5]])), &packet[8..40])
        }
        _ => return None,
    };
    if !matches!(protocol, TCP | UDP) || l4_at < 20 {
        return None;
    }
    let mut sum = Sum::default();
    sum.add(addresses);
    sum.add_word(u16::from(protocol));
    sum.add_word(u16::try_from(l4_len).ok()?);
    Some((v6, protocol, l4_at, sum))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offload::complete_checksum;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    fn tcp(v6: bool, payload: usize) -> Vec<u8> {
        let mut frame = Vec::new();
        let ethernet = PacketBuilder::ethernet2([2; 6], [4; 6]);
        let ip = if v6 {
            ethernet.ipv6([1; 16], [2; 16], 64)
        } else {
            ethernet.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        };
        ip.tcp(1000, 80, 7, 9).write(&mut frame, &vec![0x5a; payload]).unwrap();
        frame
    }

    /// Opens the checksum as a sender with checksum offload does.
    fn open(frame: &mut [u8]) {
        let (_, protocol, l4, sum) = pseudo_header(&frame[14..]).unwrap();
        let field = 14 + l4 + if protocol == TCP { 16 } else { 6 };
        frame[field..field + 2].copy_from_slice(&sum.folded().to_be_bytes());
    }

    #[test]
    fn a_whole_frame_owes_nothing_and_an_open_one_its_checksum() {
        for v6 in [false, true] {
            let whole = tcp(v6, 333);
            assert_eq!(owed(&whole, Some(1464)), None);
            let mut frame = whole.clone();
            open(&mut frame);
            let offload = owed(&frame, Some(1464)).unwrap();
            assert_eq!((offload.needs_csum, offload.gso), (true, Gso::None));
            complete_checksum(&mut frame, &offload).unwrap();
            assert_eq!(frame, whole, "completing gives the checksum that a wire would have seen");
        }
    }

    #[test]
    fn a_long_tcp_frame_is_to_be_cut_to_what_the_path_carries() {
        for (v6, headers, gso) in [(false, 54, Gso::Tcp4), (true, 74, Gso::Tcp6)] {
            let mut frame = tcp(v6, 30_000);
            open(&mut frame);
            let offload = owed(&frame, Some(1464)).unwrap();
            assert_eq!((offload.gso, usize::from(offload.gso_size)), (gso, 1464 - headers));
            assert_eq!(usize::from(offload.hdr_len), headers);
        }
    }

    #[test]
    fn fragments_and_other_protocols_owe_nothing() {
        let mut frame = tcp(false, 100);
        open(&mut frame);
        for (at, value) in [(20, 0x20), (21, 1), (23, 1), (12, 9), (14, 0x41), (14, 0x15)] {
            let mut other = frame.clone();
            other[at] = value;
            assert_eq!(owed(&other, None), None, "byte {at} = {value}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), v6: bool, max: u16) {
            owed(&bytes, Some(max.into()));
            let ethertype: [u8; 2] = if v6 { [0x86, 0xdd] } else { [8, 0] };
            if bytes.len() > 14 {
                bytes[12..14].copy_from_slice(&ethertype);
                bytes[14] = if v6 { 0x60 } else { 0x45 };
                owed(&bytes, Some(max.into()));
            }
        }
    }
}
