//! ICMP errors: what a router says to the sender of a packet that it can't pass on (RFC 792, 1812 §4.3, 4443).

use std::net::IpAddr;

use super::control::{Arrival, icmp_v4, icmp_v6};
use super::domain::Mac;
use super::packet::{Packet, is_routable};

/// Longest ICMPv4 error (RFC 1812 §4.3.2.3).
const LONGEST_V4: usize = 576;
/// Longest ICMPv6 error: IPv6's smallest MTU (RFC 4443 §2.4).
const LONGEST_V6: usize = 1280;
/// Bytes of a packet that an error may quote.
pub const QUOTE: usize = LONGEST_V6 - 48;

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Problem {
    /// No route leads there.
    Unreachable,
    /// The next hop does not say where it is.
    Silent,
    /// Nothing listens there: the destination is the domain itself.
    NoListener,
    /// One hop too many.
    TimeExceeded,
    /// Longer than this MTU.
    TooBig(u16),
}

impl Problem {
    /// Type, code and the four bytes after the checksum.
    const fn v4(self) -> (u8, u8, u32) {
        match self {
            Self::Unreachable => (3, 0, 0),
            Self::Silent => (3, 1, 0),
            Self::NoListener => (3, 3, 0),
            Self::TimeExceeded => (11, 0, 0),
            // RFC 1191 §4.
            Self::TooBig(mtu) => (3, 4, mtu as u32),
        }
    }

    const fn v6(self) -> (u8, u8, u32) {
        match self {
            Self::Unreachable => (1, 0, 0),
            Self::Silent => (1, 3, 0),
            Self::NoListener => (1, 4, 0),
            Self::TimeExceeded => (3, 0, 0),
            Self::TooBig(mtu) => (2, 0, mtu as u32),
        }
    }
}

/// The frame that tells the sender of `packet`, which begins with `bytes`, what is wrong; `from` is the station that sent it and
/// `to` the one that it was for. `None` about what errors are not sent about, and if the domain has no address to send it from.
pub fn error(
    arrival: &Arrival<'_>,
    problem: Problem,
    packet: &Packet,
    bytes: &[u8],
    (to, from): (Mac, Mac),
) -> Option<Vec<u8>> {
    if arrival.member.link == crate::offload::Link::Ethernet && (to.0[0] & 1 == 1 || !from.is_station()) {
        return None;
    }
    let bytes = &bytes[..bytes.len().min(packet.len)];
    if !is_routable(packet.source) || !is_routable(packet.destination) || !may_be_told(packet, bytes) {
        return None;
    }
    let message = |(kind, code, about): (u8, u8, u32), longest: usize, header: usize| {
        let mut icmp = vec![kind, code, 0, 0];
        icmp.extend_from_slice(&about.to_be_bytes());
        icmp.extend_from_slice(&bytes[..bytes.len().min(longest - header - 8)]);
        icmp
    };
    let error = match packet.source {
        IpAddr::V4(source) => {
            icmp_v4(arrival.domain.gateway_v4()?, source, message(problem.v4(), LONGEST_V4, 20))
        }
        IpAddr::V6(source) => {
            icmp_v6(arrival.domain.gateway_v6()?, source, message(problem.v6(), LONGEST_V6, 40), 64)
        }
    };
    Some(arrival.packet(from, &error))
}

/// Not about errors, nor about any but the first fragment.
fn may_be_told(packet: &Packet, bytes: &[u8]) -> bool {
    match packet.source {
        IpAddr::V4(_) => {
            let later_fragment = bytes.get(6..8).is_none_or(|word| word[0] & 0x1f | word[1] != 0);
            let kind = || bytes.get(packet.header);
            // Of ICMP, only what is known to be no error (RFC 1122 §3.2.2): redirects are among them, too.
            let query = || matches!(kind(), Some(0 | 8 | 13..=18));
            !later_fragment && (packet.protocol != 1 || query())
        }
        IpAddr::V6(_) => v6_may_be_told(packet, bytes),
    }
}

fn v6_may_be_told(packet: &Packet, bytes: &[u8]) -> bool {
    let (mut next, mut at) = (packet.protocol, packet.header);
    // As many extension headers as are ever seen; behind more of them may be anything.
    for _ in 0..4 {
        match (next, bytes.get(at..at + 8)) {
            (58, header) => return header.is_some_and(|header| header[0] >= 128 && header[0] != 137),
            (44, Some(header)) => {
                if header[2] != 0 || header[3] & 0xf8 != 0 {
                    return false;
                }
                (next, at) = (header[0], at + 8);
            }
            (0 | 43 | 60, Some(header)) => (next, at) = (header[0], at + 8 + usize::from(header[1]) * 8),
            (0 | 43 | 44 | 60, None) => return false,
            _ => return true,
        }
    }
    false
}
