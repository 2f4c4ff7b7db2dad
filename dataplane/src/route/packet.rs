//! A packet's headers: read once into private memory, judged there, and rewritten there for the port it leaves by.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use memif::Lent;

use super::domain::Mac;
use crate::DropReason;
use crate::burst::{Frame, Frames, Gso, Offload};
use crate::offload::Link;
use crate::offload::checksum::header_checksum;

/// Length of an Ethernet header without tags.
pub const ETHERNET: usize = 14;
/// Bytes of a frame that are read into private memory. What lies behind is copied once, from port to port. Enough for what joining
/// TCP segments looks at (128) behind an Ethernet header; and short frames are one piece so.
pub const HEAD: usize = 128 + ETHERNET;

const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
const ARP: [u8; 2] = [0x08, 0x06];

/// The first bytes of a frame, with room before them for an Ethernet header that it did not have.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub struct Head {
    bytes: [u8; ETHERNET + HEAD],
    /// Where the frame begins: after the room, or in it.
    start: usize,
    end: usize,
}

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An IPv4 packet.
    V4,
    /// An IPv6 packet.
    V6,
    /// An ARP packet.
    Arp,
}

/// An IP header that is sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Who sends it.
    pub source: IpAddr,
    /// Who is to get it.
    pub destination: IpAddr,
    /// Its length with the IP header.
    pub len: usize,
    /// The same of its longest part, if it is to be cut.
    pub longest: usize,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// Length of the IP header, without IPv6's extensions.
    pub header: usize,
    /// The header that follows.
    pub protocol: u8,
}

impl Head {
    /// Room for one.
    pub const fn new() -> Self {
        Self { bytes: [0; ETHERNET + HEAD], start: ETHERNET, end: ETHERNET }
    }

    /// Reads the beginning of a frame: the only time that these bytes of it are read.
    #[inline]
    pub fn read(&mut self, frames: &Frames<'_, '_>, frame: &Frame<'_>) {
        self.start = ETHERNET;
        self.end = ETHERNET + frame.first().copy_to(&mut self.bytes[ETHERNET..]);
        if frame.is_chained() {
            self.read_on(frames.rest(frame));
        }
    }

    #[cold]
    fn read_on(&mut self, rest: &[Lent<'_>]) {
        for view in rest {
            self.end += view.copy_to(&mut self.bytes[self.end..]);
        }
    }

    /// The bytes as they are now.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// How many bytes of the frame were read.
    #[inline]
    pub fn taken(&self) -> usize {
        self.end - ETHERNET
    }

    /// Where the Ethernet frame goes and where it comes from.
    #[inline]
    pub fn macs(&self) -> (Mac, Mac) {
        let mac = |at: usize| Mac(std::array::from_fn(|i| self.bytes[ETHERNET + at + i]));
        (mac(0), mac(6))
    }

    /// What the frame carries, if it is something that is routed or has to do with it.
    ///
    /// # Errors
    /// Too short, or something else.
    #[inline]
    pub fn kind(&self, link: Link) -> Result<Kind, DropReason> {
        match (link, self.bytes()) {
            (Link::Ip, [first, ..]) => match first >> 4 {
                4 => Ok(Kind::V4),
                6 => Ok(Kind::V6),
                _ => Err(DropReason::NotIp),
            },
            (Link::Ethernet, bytes) if bytes.len() >= ETHERNET => match [bytes[12], bytes[13]] {
                IPV4 => Ok(Kind::V4),
                IPV6 => Ok(Kind::V6),
                ARP => Ok(Kind::Arp),
                _ => Err(DropReason::NotIp),
            },
            _ => Err(DropReason::TooShort),
        }
    }

    /// The IP header, judged: `frame_len` is the whole frame's length.
    ///
    /// # Errors
    /// [`DropReason::BadIpHeader`], or [`DropReason::BadOffload`] if the frame can't be cut as it asks.
    #[inline]
    pub fn packet(
        &self,
        kind: Kind,
        link: Link,
        frame_len: usize,
        offload: Option<&Offload>,
    ) -> Result<Packet, DropReason> {
        let l2 = l2_len(link);
        let (ip, room) = (&self.bytes()[l2..], frame_len - l2);
        let packet = match kind {
            Kind::V4 => v4(ip),
            _ => v6(ip),
        };
        let mut packet = packet.filter(|packet| packet.len <= room).ok_or(DropReason::BadIpHeader)?;
        if let Some(owed) = offload.filter(|owed| owed.gso != Gso::None) {
            packet.longest = longest_part(ip, l2, owed).ok_or(DropReason::BadOffload)?;
        }
        Ok(packet)
    }

    /// One hop less, in the header and its checksum (RFC 1624). The time to live is over 0.
    #[inline]
    pub fn decrement(&mut self, kind: Kind, link: Link) {
        let ip = ETHERNET + l2_len(link);
        if kind == Kind::V6 {
            self.bytes[ip + 7] -= 1;
            return;
        }
        self.bytes[ip + 8] -= 1;
        let old = u16::from_be_bytes([self.bytes[ip + 10], self.bytes[ip + 11]]);
        // The word that holds the time to live is 0x0100 less, so the checksum is as much more; the carry comes round.
        let (sum, carry) = old.overflowing_add(0x0100);
        let sum = sum + u16::from(carry);
        self.bytes[ip + 10..ip + 12].copy_from_slice(&sum.to_be_bytes());
    }

    /// Makes this the beginning of a frame for another port: without an Ethernet header, or with one of its own. What stood behind
    /// the packet (Ethernet's padding) is left out. Returns how many bytes of the packet lie behind this head.
    #[inline]
    pub fn readdress(&mut self, kind: Kind, from: Link, packet: &Packet, to: Option<(Mac, Mac)>) -> usize {
        let ip = ETHERNET + l2_len(from);
        self.end = self.end.min(ip + packet.len);
        let rest = ip + packet.len - self.end;
        self.start = match to {
            None => ip,
            Some((destination, source)) => {
                self.bytes[ip - 14..ip - 8].copy_from_slice(&destination.0);
                self.bytes[ip - 8..ip - 2].copy_from_slice(&source.0);
                self.bytes[ip - 2..ip].copy_from_slice(if kind == Kind::V6 { &IPV6 } else { &IPV4 });
                ip - ETHERNET
            }
        };
        rest
    }
}

impl Default for Head {
    fn default() -> Self {
        Self::new()
    }
}

/// Bytes before the IP header.
#[inline]
pub const fn l2_len(link: Link) -> usize {
    match link {
        Link::Ethernet => ETHERNET,
        Link::Ip => 0,
    }
}

/// What a frame owes when its beginning is `by` bytes longer than it was.
pub fn shifted(owed: Offload, from: Link, to: Link) -> Offload {
    let by = l2_len(to) as i16 - l2_len(from) as i16;
    let shift = |at: u16| at.saturating_add_signed(by);
    Offload {
        csum_start: if owed.needs_csum { shift(owed.csum_start) } else { owed.csum_start },
        hdr_len: if owed.gso == Gso::None { owed.hdr_len } else { shift(owed.hdr_len) },
        ..owed
    }
}

#[inline]
fn word(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]))
}

#[inline]
fn v4(ip: &[u8]) -> Option<Packet> {
    let header = usize::from(ip.first()? & 15) * 4;
    if ip[0] >> 4 != 4 || header < 20 || ip.len() < header {
        return None;
    }
    let len = word(ip, 2);
    if len < header || header_checksum(&ip[..header]) != 0 {
        return None;
    }
    let address = |at: usize| Ipv4Addr::from([ip[at], ip[at + 1], ip[at + 2], ip[at + 3]]);
    Some(Packet {
        source: address(12).into(),
        destination: address(16).into(),
        len,
        longest: len,
        ttl: ip[8],
        header,
        protocol: ip[9],
    })
}

#[inline]
fn v6(ip: &[u8]) -> Option<Packet> {
    if ip.len() < 40 || ip[0] >> 4 != 6 {
        return None;
    }
    let len = 40 + word(ip, 4);
    let address = |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&ip[at..at + 16]).unwrap_or_default());
    Some(Packet {
        source: address(8).into(),
        destination: address(24).into(),
        len,
        longest: len,
        ttl: ip[7],
        header: 40,
        protocol: ip[6],
    })
}

/// The length of the longest packet that a frame is to be cut into.
#[cold]
fn longest_part(ip: &[u8], l2: usize, owed: &Offload) -> Option<usize> {
    let l4 = usize::from(owed.csum_start).checked_sub(l2)?;
    let l4_header = match owed.gso {
        Gso::Udp => 8,
        _ => usize::from(ip.get(l4 + 12)? >> 4) * 4,
    };
    Some(l4 + l4_header + usize::from(owed.gso_size))
}

/// Whether a router passes on what is sent to this address (RFC 1812 §5.3.7, RFC 4291 §2.5 to 2.7).
#[inline]
pub fn is_routable(address: IpAddr) -> bool {
    match address {
        // 0/8, 127/8, 169.254/16, and 224/3: multicast, reserved, broadcast.
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            a != 0 && a != 127 && a < 224 && !(a == 169 && b == 254)
        }
        IpAddr::V6(v6) => {
            let first = v6.segments()[0];
            first < 0xfe80 && (first != 0 || u128::from(v6) > 1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::burst::Burst;
    use crate::port::PortIndex;
    use etherparse::PacketBuilder;

    fn head_of(frame: &[u8]) -> Head {
        let mut burst = Burst::new(PortIndex(0));
        burst.push(frame.into());
        let (_, frames) = burst.runs().next().unwrap();
        let mut head = Head::new();
        head.read(&frames, &frames.as_slice()[0]);
        head
    }

    fn udp4(ttl: u8, payload: usize) -> Vec<u8> {
        let builder =
            PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 0, 1], [10, 0, 0, 2], ttl).udp(1, 2);
        let mut frame = Vec::new();
        builder.write(&mut frame, &vec![7; payload]).unwrap();
        frame
    }

    #[test]
    fn a_hop_leaves_every_checksum_right() {
        for ttl in 1..=255 {
            let frame = udp4(ttl, 200);
            let mut head = head_of(&frame);
            let kind = head.kind(Link::Ethernet).unwrap();
            let packet = head.packet(kind, Link::Ethernet, frame.len(), None).unwrap();
            assert_eq!((packet.ttl, packet.len, packet.header), (ttl, 228, 20));
            head.decrement(kind, Link::Ethernet);
            let rest = head.readdress(kind, Link::Ethernet, &packet, Some((Mac([8; 6]), Mac([6; 6]))));
            let mut whole = head.bytes().to_vec();
            whole.extend_from_slice(&frame[frame.len() - rest..]);
            let sliced = etherparse::SlicedPacket::from_ethernet(&whole).unwrap();
            let Some(etherparse::NetSlice::Ipv4(ip)) = sliced.net else { panic!("no IPv4") };
            let header = ip.header();
            assert_eq!(
                (header.ttl(), header.header_checksum()),
                (ttl - 1, header.to_header().calc_header_checksum())
            );
            assert_eq!(
                (&whole[..6], &whole[6..12], &whole[14 + 20..]),
                (&[8; 6][..], &[6; 6][..], &frame[34..])
            );
        }
    }

    #[test]
    fn padding_goes_and_an_ethernet_header_comes_and_goes() {
        let mut frame = udp4(9, 4);
        frame.resize(60, 0xee);
        let mut head = head_of(&frame);
        let packet = head.packet(Kind::V4, Link::Ethernet, frame.len(), None).unwrap();
        assert_eq!(head.readdress(Kind::V4, Link::Ethernet, &packet, None), 0);
        assert_eq!(head.bytes(), &frame[14..46]);
        let packet_alone = head.bytes().to_vec();
        let mut head = head_of(&packet_alone);
        assert_eq!(head.kind(Link::Ip), Ok(Kind::V4));
        let packet = head.packet(Kind::V4, Link::Ip, packet_alone.len(), None).unwrap();
        head.readdress(Kind::V4, Link::Ip, &packet, Some((Mac([2; 6]), Mac([4; 6]))));
        assert_eq!(head.bytes()[12..], frame[12..46]);
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let good = udp4(9, 40);
        let judged = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut frame = good.clone();
            change(&mut frame);
            let head = head_of(&frame);
            head.kind(Link::Ethernet)
                .and_then(|kind| head.packet(kind, Link::Ethernet, frame.len(), None))
                .map(drop)
        };
        assert_eq!(judged(&|_| {}), Ok(()));
        assert_eq!(judged(&|frame| frame.truncate(13)), Err(DropReason::TooShort));
        for bad in [
            &(|frame: &mut Vec<u8>| frame.truncate(14)) as &dyn Fn(&mut Vec<u8>),
            &|frame| frame.truncate(33),
            &|frame| frame.truncate(60),
            &|frame| frame[14] = 0x44,
            &|frame| frame[14] = 0x65,
            &|frame| frame[14] = 0x4f,
            &|frame| frame[16] = 0xff,
            &|frame| frame[24] ^= 1,
        ] {
            assert_eq!(judged(bad), Err(DropReason::BadIpHeader));
        }
        assert_eq!(judged(&|frame| frame[12] = 0x81), Err(DropReason::NotIp));
    }
}
