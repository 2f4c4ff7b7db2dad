//! What a frame is that came by an underlay's port: a datagram for a tunnel, something that the underlay itself has to hear, or somebody
//! else's. Judged from the frame's first bytes, which are in private memory; pure.
//!
//! What is for a tunnel must be exact: a whole IPv4 or IPv6 packet (no fragment, no extension header) to one of the underlay's
//! addresses and UDP ports, with lengths that agree. What is not is never touched, so that a kernel behind the exception port sees
//! it as it came.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::DropReason;
use crate::offload::checksum::{Sum, header_checksum};
use crate::route::domain::Mac;
use crate::tables::Line;
use crate::wire::vxlan::{self, HeaderKey};

/// Bytes of a frame that are looked at: the longest outer headers (IPv4 with all options, 90) and what tells whether the inner frame
/// owes a checksum (two tags, IPv6 and TCP up to its checksum, 80), and then some.
pub const HEAD: usize = 192;
/// Length of an Ethernet header without tags.
pub const ETHERNET: usize = 14;
/// Length of a UDP header.
pub const UDP_LEN: usize = 8;

const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
const ARP: [u8; 2] = [0x08, 0x06];
const ICMP: u8 = 1;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
/// Neighbour solicitation and advertisement (RFC 4861 §4.3, §4.4).
const NEIGHBOUR: [u8; 2] = [135, 136];

/// See the module.
#[derive(Debug, Clone, Copy)]
pub enum Verdict {
    /// For a tunnel.
    Datagram(Datagram),
    /// ARP, neighbour discovery, or ICMP to the underlay's address.
    Control,
    /// Addressed to this station or to a group, and not for a tunnel.
    Other,
    /// Addressed to another station.
    Elsewhere,
}

/// A datagram for a tunnel.
#[derive(Debug, Clone, Copy)]
pub struct Datagram {
    /// Who sent it.
    pub sender: IpAddr,
    /// Which tunnel.
    pub key: HeaderKey,
    /// Where its UDP header begins.
    pub udp: usize,
    /// Length of UDP header and payload.
    pub udp_len: usize,
    /// What the UDP checksum field holds; 0 if there is none.
    pub checksum: u16,
    /// The sum of the pseudo header.
    pub pseudo: Sum,
}

impl Datagram {
    /// Where the inner frame begins.
    pub const fn frame(&self) -> usize {
        self.udp + UDP_LEN + vxlan::HEADER_LEN
    }

    /// Length of the inner frame.
    pub const fn frame_len(&self) -> usize {
        self.udp_len - UDP_LEN - vxlan::HEADER_LEN
    }

    /// True if the checksum field holds the pseudo header's sum: a sender that leaves checksums to a device (a kernel on this very
    /// machine) has left it open.
    pub fn is_open(&self) -> bool {
        self.checksum == self.pseudo.folded()
    }
}

/// Judges a frame of `len` bytes that begins with `head` (its first [`HEAD`] bytes, or all).
///
/// # Errors
/// Why it is dropped: what is for a tunnel, but is not sound, or is no frame at all.
#[inline]
pub fn judge(head: &[u8], len: usize, line: &Line) -> Result<Verdict, DropReason> {
    let Some((ethernet, _)) = head.split_first_chunk::<ETHERNET>() else { return Err(DropReason::TooShort) };
    let to: [u8; 6] = std::array::from_fn(|i| ethernet[i]);
    if Mac(to) != line.mac && to[0] & 1 == 0 {
        return Ok(Verdict::Elsewhere);
    }
    match [ethernet[12], ethernet[13]] {
        IPV4 => ipv4(head, len, line),
        IPV6 => ipv6(head, len, line),
        ARP => Ok(Verdict::Control),
        _ => Ok(Verdict::Other),
    }
}

#[inline]
fn ipv4(head: &[u8], len: usize, line: &Line) -> Result<Verdict, DropReason> {
    let Some(ip) = head[ETHERNET..].first_chunk::<20>() else { return Ok(Verdict::Other) };
    let to = IpAddr::V4(Ipv4Addr::new(ip[16], ip[17], ip[18], ip[19]));
    let fragment = u16::from_be_bytes([ip[6], ip[7]]) & 0x3fff != 0;
    match ip[9] {
        _ if !line.addresses.contains(&to) || fragment => return Ok(Verdict::Other),
        ICMP => return Ok(Verdict::Control),
        UDP => {}
        _ => return Ok(Verdict::Other),
    }
    let header = usize::from(ip[0] & 15) * 4;
    let udp = ETHERNET + header;
    if ip[0] >> 4 != 4 || header < 20 || udp + UDP_LEN > head.len() {
        return Err(DropReason::BadIpHeader);
    }
    if !is_endpoint(head, udp, to, line) {
        return Ok(Verdict::Other);
    }
    let total = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
    let whole = total >= header + UDP_LEN && ETHERNET + total <= len;
    if !whole || header_checksum(&head[ETHERNET..udp]) != 0 {
        return Err(DropReason::BadIpHeader);
    }
    let sender = IpAddr::V4(Ipv4Addr::new(ip[12], ip[13], ip[14], ip[15]));
    datagram(head, udp, total - header, &ip[12..20], sender)
}

#[inline]
fn ipv6(head: &[u8], len: usize, line: &Line) -> Result<Verdict, DropReason> {
    let Some(ip) = head[ETHERNET..].first_chunk::<40>() else { return Ok(Verdict::Other) };
    let address = |at: usize| Ipv6Addr::from(std::array::from_fn::<u8, 16, _>(|i| ip[at + i]));
    let (to, udp) = (IpAddr::V6(address(24)), ETHERNET + 40);
    let own = line.addresses.contains(&to);
    match ip[6] {
        ICMPV6 => {
            let neighbour = head.get(udp).is_some_and(|kind| NEIGHBOUR.contains(kind));
            return Ok(if own || neighbour { Verdict::Control } else { Verdict::Other });
        }
        UDP if own => {}
        _ => return Ok(Verdict::Other),
    }
    if ip[0] >> 4 != 6 || udp + UDP_LEN > head.len() {
        return Err(DropReason::BadIpHeader);
    }
    if !is_endpoint(head, udp, to, line) {
        return Ok(Verdict::Other);
    }
    let payload = usize::from(u16::from_be_bytes([ip[4], ip[5]]));
    if payload < UDP_LEN || udp + payload > len {
        return Err(DropReason::BadIpHeader);
    }
    datagram(head, udp, payload, &ip[8..40], IpAddr::V6(address(8)))
}

fn is_endpoint(head: &[u8], udp: usize, to: IpAddr, line: &Line) -> bool {
    let port = u16::from_be_bytes([head[udp + 2], head[udp + 3]]);
    line.endpoints.contains(&SocketAddr::new(to, port))
}

/// A UDP header at `udp`, with `room` bytes of the packet from there on.
#[inline]
fn datagram(
    head: &[u8],
    udp: usize,
    room: usize,
    addresses: &[u8],
    sender: IpAddr,
) -> Result<Verdict, DropReason> {
    let word = |at: usize| u16::from_be_bytes([head[udp + at], head[udp + at + 1]]);
    let (udp_len, checksum) = (word(4), word(6));
    let len = usize::from(udp_len);
    // IPv6 wants a checksum (RFC 8200 §8.1). RFC 6936 lets a receiver be told otherwise; the kernel's sockets are not, and the
    // underlay over those refuses it as well.
    if len < UDP_LEN || len > room || (checksum == 0 && sender.is_ipv6()) {
        return Err(DropReason::BadUdp);
    }
    let payload = &head[udp + UDP_LEN..head.len().min(udp + len)];
    let (key, _) = vxlan::split(payload).map_err(|_| DropReason::VxlanShort)?;
    let mut pseudo = Sum::default();
    pseudo.add(addresses);
    pseudo.add_word(u16::from(UDP));
    pseudo.add_word(udp_len);
    Ok(Verdict::Datagram(Datagram { sender, key, udp, udp_len: len, checksum, pseudo }))
}

#[cfg(test)]
#[path = "outer_tests.rs"]
mod tests;
