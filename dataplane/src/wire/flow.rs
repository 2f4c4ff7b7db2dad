//! Which flow a frame belongs to, as a hash: the outer UDP source port comes from it (RFC 7348 §5), so that the network
//! spreads flows over its paths and keeps each one in order on its own.

/// Bytes of a frame that [`hash`] looks at: Ethernet, one tag, IPv6 and both ports.
pub const HEAD_LEN: usize = 64;

const ETHERNET: usize = 14;
const TAG: usize = 4;
const FRAGMENT_BITS: u16 = 0x3fff; // "more fragments" and the offset

/// A hash of the frame's flow: addresses, protocol and ports of IPv4 and IPv6, else the MAC addresses and the EtherType.
/// The two directions of a flow differ. `head` is the frame's first [`HEAD_LEN`] bytes, or all of a shorter frame.
#[inline]
pub fn hash(head: &[u8]) -> u32 {
    let (ethertype, l3) = network_layer(head);
    let mixed = match ethertype {
        0x0800 => ipv4(l3),
        0x86dd => ipv6(l3),
        _ => None,
    };
    folded(mixed.unwrap_or_else(|| ethernet(head, ethertype)))
}

/// [`hash`] of a packet that begins with its IP header. All that is neither IPv4 nor IPv6 is one flow.
#[inline]
pub fn hash_packet(head: &[u8]) -> u32 {
    let mixed = match head.first().map_or(0, |first| first >> 4) {
        4 => ipv4(head),
        6 => ipv6(head),
        _ => None,
    };
    folded(mixed.unwrap_or(0))
}

#[inline]
const fn folded(mixed: u64) -> u32 {
    (mixed ^ mixed >> 32) as u32
}

/// The EtherType behind up to two tags, and the bytes after it.
#[inline]
fn network_layer(head: &[u8]) -> (u16, &[u8]) {
    let mut at = ETHERNET;
    for _ in 0..2 {
        match word16(head, at - 2) {
            Some(0x8100 | 0x88a8) => at += TAG,
            _ => break,
        }
    }
    (word16(head, at - 2).unwrap_or(0), head.get(at..).unwrap_or(&[]))
}

#[inline]
fn ipv4(packet: &[u8]) -> Option<u64> {
    let fixed = packet.first_chunk::<20>()?;
    let addresses = u64::from_be_bytes(*fixed[12..].first_chunk()?);
    let header_len = usize::from(fixed[0] & 0x0f) * 4;
    // Only a datagram's first fragment has ports; leaving them out of all keeps the fragments together.
    let whole = u16::from_be_bytes([fixed[6], fixed[7]]) & FRAGMENT_BITS == 0;
    let ports = if whole { ports(fixed[9], packet.get(header_len..)) } else { 0 };
    Some(mix(addresses, u64::from(ports) << 8 | u64::from(fixed[9])))
}

#[inline]
fn ipv6(packet: &[u8]) -> Option<u64> {
    let fixed = packet.first_chunk::<40>()?;
    let word = |at: usize| fixed[at..].first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
    let addresses = mix(mix(word(8), word(16)), mix(word(24), word(32)).rotate_left(17));
    let ports = ports(fixed[6], packet.get(40..));
    // The flow label stands in for ports behind extension headers, which are not walked.
    let label = u32::from_be_bytes([0, fixed[1] & 0x0f, fixed[2], fixed[3]]);
    Some(mix(addresses ^ u64::from(label) << 40, u64::from(ports) << 8 | u64::from(fixed[6])))
}

/// Source and destination port of TCP, UDP and SCTP; 0 for others, whose first bytes may change with each packet.
#[inline]
fn ports(protocol: u8, segment: Option<&[u8]>) -> u32 {
    match (protocol, segment.and_then(|bytes| bytes.first_chunk::<4>())) {
        (6 | 17 | 132, Some(ports)) => u32::from_be_bytes(*ports),
        _ => 0,
    }
}

#[inline]
fn ethernet(head: &[u8], ethertype: u16) -> u64 {
    let Some(macs) = head.first_chunk::<12>() else { return 0 };
    let low = macs.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
    let high = macs.last_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
    mix(low, u64::from(high) << 16 | u64::from(ethertype))
}

/// Folds a 128-bit product: every input bit reaches every output bit, in one multiplication.
#[inline]
fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a ^ 0x9e37_79b9_7f4a_7c15) * u128::from(b ^ 0xd6e8_feb8_6659_fd93);
    (product >> 64) as u64 ^ product as u64
}

#[inline]
fn word16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|word| u16::from_be_bytes(*word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;
    use std::collections::HashSet;

    fn udp4(from: u16, to: u16, payload: usize) -> Vec<u8> {
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
        builder.udp(from, to).write(&mut frame, &vec![0x55; payload]).unwrap();
        frame
    }

    fn tcp6(from: u16) -> Vec<u8> {
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv6([1; 16], [2; 16], 64);
        builder.tcp(from, 80, 1, 1000).write(&mut frame, &[0; 40]).unwrap();
        frame
    }

    fn hash_of(frame: &[u8]) -> u32 {
        hash(&frame[..frame.len().min(HEAD_LEN)])
    }

    #[test]
    fn packets_of_a_flow_agree_whatever_they_carry() {
        assert_eq!(hash_of(&udp4(1000, 53, 10)), hash_of(&udp4(1000, 53, 900)));
        assert_ne!(hash_of(&udp4(1000, 53, 10)), hash_of(&udp4(1001, 53, 10)));
        assert_ne!(hash_of(&udp4(53, 1000, 10)), hash_of(&udp4(1000, 53, 10)), "directions differ");
    }

    #[test]
    fn a_packet_has_the_flow_of_the_frame_that_it_was_in() {
        for frame in [udp4(1000, 53, 30), tcp6(9)] {
            assert_eq!(hash_packet(&frame[14..]), hash(&frame));
        }
        assert_eq!(hash_packet(&[0; 40]), hash_packet(&[0xff; 40]));
    }

    #[test]
    fn a_tag_does_not_hide_the_flow() {
        let plain = udp4(1000, 53, 10);
        let tagged = [&plain[..12], &[0x81, 0, 0, 7], &plain[12..]].concat();
        assert_eq!(hash_of(&plain), hash_of(&tagged));
    }

    #[test]
    fn fragments_of_a_datagram_stay_together() {
        let mut first = udp4(1000, 53, 30);
        first[20] |= 0x20;
        let mut second = udp4(7777, 99, 30);
        second[21] = 3;
        assert_eq!(hash_of(&first), hash_of(&second));
    }

    #[test]
    fn flows_spread_over_few_buckets_evenly() {
        for frames in
            [(0..4096).map(|i| udp4(1024 + i, 53, 4)).collect::<Vec<_>>(), (0..4096).map(tcp6).collect()]
        {
            let hashes: HashSet<_> = frames.iter().map(|frame| hash_of(frame)).collect();
            assert!(hashes.len() > 4090, "{} distinct hashes of 4096", hashes.len());
            let mut buckets = [0; 16];
            hashes.iter().for_each(|hash| buckets[*hash as usize & 15] += 1);
            assert!(buckets.iter().all(|n| (180..340).contains(n)), "{buckets:?}");
        }
    }

    #[test]
    fn any_bytes_of_any_length_have_a_hash() {
        let frame = tcp6(1);
        for len in 0..=HEAD_LEN {
            hash(&frame[..len]);
            hash(&[0xff; HEAD_LEN][..len]);
            hash_packet(&frame[14.min(len)..len]);
        }
    }
}
