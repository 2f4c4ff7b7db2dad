//! The Ethernet header of IP packets in a tunnel. VXLAN carries Ethernet frames only (RFC 7348 §5), so a tunnel between ports of
//! IP packets puts one header, always the same but for the EtherType, before each packet, and takes it off at the other end.

/// Bytes of the header.
pub const HEADER_LEN: usize = 14;

/// Both addresses are locally administered: `02`, "vwir", and which end it is.
const TO: [u8; 6] = [0x02, b'v', b'w', b'i', b'r', 2];
const FROM: [u8; 6] = [0x02, b'v', b'w', b'i', b'r', 1];
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];

/// The header for a packet that begins with this byte; `None` unless that is the version of IPv4 or IPv6.
#[inline]
pub const fn header(first: u8) -> Option<[u8; HEADER_LEN]> {
    let [t0, t1] = match first >> 4 {
        4 => IPV4,
        6 => IPV6,
        _ => return None,
    };
    let ([a, b, c, d, e, f], [g, h, i, j, k, l]) = (TO, FROM);
    Some([a, b, c, d, e, f, g, h, i, j, k, l, t0, t1])
}

/// The packet in a frame, whoever it is addressed to; `None` unless EtherType and packet agree that it is IPv4 or IPv6.
#[inline]
pub fn packet(frame: &[u8]) -> Option<&[u8]> {
    let (header, packet) = frame.split_first_chunk::<HEADER_LEN>()?;
    let version = packet.first()? >> 4;
    let agrees = match [header[12], header[13]] {
        IPV4 => version == 4,
        IPV6 => version == 6,
        _ => false,
    };
    agrees.then_some(packet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_says_what_follows_and_comes_off_again() {
        for (first, ethertype) in [(0x45, [8, 0]), (0x4f, [8, 0]), (0x60, [0x86, 0xdd])] {
            let header = header(first).unwrap();
            assert_eq!((header[0], header[6], &header[12..]), (2, 2, &ethertype[..]));
            let frame = [&header[..], &[first, 1, 2]].concat();
            assert_eq!(packet(&frame), Some(&[first, 1, 2][..]));
        }
        for first in (0..=255u8).filter(|first| !matches!(first >> 4, 4 | 6)) {
            assert_eq!(header(first), None);
        }
    }

    #[test]
    fn what_is_not_ip_is_no_packet() {
        let frame = |ethertype: [u8; 2], first: u8| [&[2; 12][..], &ethertype, &[first, 0, 0]].concat();
        assert!(packet(&frame([8, 0], 0x45)).is_some());
        for (ethertype, first) in [([8, 6], 0), ([8, 0], 0x60), ([0x86, 0xdd], 0x45), ([0x81, 0], 0x45)] {
            assert_eq!(packet(&frame(ethertype, first)), None, "{ethertype:?} {first:#x}");
        }
        assert_eq!(packet(&frame([8, 0], 0x45)[..14]), None, "a header and no packet");
        assert_eq!(packet(&[]), None);
    }
}
