//! The headers of a TCP segment or UDP datagram, read once into private memory, and what joining asks about them.

use super::checksum::{Sum, header_checksum};
use super::ethernet_len;
use crate::burst::{Frame, Frames, Gso, Offload};

/// Bytes that are looked at: more than Ethernet with two VLAN tags, IPv6 and the longest TCP header have together.
pub(super) const HEAD: usize = 128;

const TCP: u8 = 6;
const UDP: u8 = 17;
const ACK: u8 = 0x10;
pub(super) const PSH: u8 = 0x08;

/// Whether frames begin with an Ethernet or with an IP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Link {
    /// Ethernet, without checksum trailer.
    #[default]
    Ethernet,
    /// IPv4 or IPv6.
    Ip,
}

/// What a frame's headers say about its place among others.
pub(super) enum Class {
    /// Neither TCP nor UDP: its order among them means nothing.
    Other,
    /// It may belong to a flow, but is of a form that is not looked into; it must not overtake any.
    Opaque,
    /// It belongs to this flow, if only [`Segment::is_joinable`] perhaps.
    Flow(Segment),
}

/// Reads the headers of `frame`.
pub(super) fn classify(link: Link, frame: &Frame<'_>, offload: Option<Offload>) -> Class {
    let mut head = [0; HEAD];
    let copied = frame.first().copy_to(&mut head);
    if copied < HEAD && frame.is_chained() {
        return Class::Opaque;
    }
    let l3 = match link {
        Link::Ethernet => ethernet_len(&head[..copied]),
        Link::Ip => Some(0),
    };
    let Some(l3) = l3.filter(|l3| copied >= l3 + 28) else { return Class::Other };
    let v6 = match head[l3] >> 4 {
        4 => false,
        6 => true,
        _ => return Class::Other,
    };
    if !may_have_ports(v6, head[l3 + if v6 { 6 } else { 9 }]) {
        return Class::Other;
    }
    Segment::parse(head, copied, l3, v6, frame.len(), offload).map_or(Class::Opaque, Class::Flow)
}

/// IPv6 extension headers may hide TCP or UDP; they are not looked through.
fn may_have_ports(v6: bool, protocol: u8) -> bool {
    protocol == TCP || protocol == UDP || (v6 && matches!(protocol, 0 | 43 | 44 | 51 | 60))
}

/// A segment's or datagram's headers.
#[derive(Clone, Copy)]
pub(super) struct Segment {
    pub head: [u8; HEAD],
    pub l3: usize,
    pub l4: usize,
    /// Length of all headers.
    pub header: usize,
    pub payload: usize,
    pub v6: bool,
    pub tcp: bool,
    /// The checksum is left open: the frame comes from a local kernel, and nothing has corrupted it since.
    open: bool,
    joinable: bool,
}

impl Segment {
    /// `None` unless the headers are plain: no IP options, extensions or fragments, a right IPv4 checksum.
    fn parse(
        head: [u8; HEAD],
        copied: usize,
        l3: usize,
        v6: bool,
        len: usize,
        offload: Option<Offload>,
    ) -> Option<Self> {
        let word = |at: usize| usize::from(u16::from_be_bytes([head[at], head[at + 1]]));
        let (l4, ip_len) = if v6 { (l3 + 40, 40 + word(l3 + 4)) } else { (l3 + 20, word(l3 + 2)) };
        let plain =
            v6 || head[l3] == 0x45 && word(l3 + 6) & 0xbfff == 0 && header_checksum(&head[l3..l4]) == 0;
        let tcp = match head[l3 + if v6 { 6 } else { 9 }] {
            TCP => true,
            UDP => false,
            _ => return None,
        };
        let header = l4 + if tcp { usize::from(head[l4 + 12] >> 4) * 4 } else { 8 };
        let shortest = l4 + if tcp { 20 } else { 8 };
        if !plain || header < shortest || header > copied {
            return None;
        }
        // A frame may be longer than its packet: Ethernet pads short ones.
        let exact = ip_len == len - l3 && (tcp || word(l4 + 4) == len - l4);
        let field = if tcp { 16 } else { 6 };
        let open = match offload {
            None => false,
            Some(owed) => {
                if usize::from(owed.csum_start) != l4 || usize::from(owed.csum_offset) != field {
                    return None;
                }
                owed.needs_csum
            }
        };
        let whole = offload.is_none_or(|owed| owed.gso == Gso::None);
        let mut segment =
            Self { head, l3, l4, header, payload: len - header, v6, tcp, open, joinable: false };
        segment.joinable = exact && whole && segment.may_be_joined();
        Some(segment)
    }

    fn may_be_joined(&self) -> bool {
        let summed = self.tcp || self.head[self.l4 + 6..self.l4 + 8] != [0, 0];
        self.payload > 0 && summed && (!self.tcp || self.flags() & !PSH == ACK)
    }

    /// It can be part of a larger frame: it has a payload, a checksum, and in TCP no flags but ACK and PSH.
    pub fn is_joinable(&self) -> bool {
        self.joinable
    }

    fn flags(&self) -> u8 {
        self.head[self.l4 + 13]
    }

    /// PSH is set, in TCP.
    pub fn push(&self) -> bool {
        self.tcp && self.flags() & PSH != 0
    }

    pub fn sequence(&self) -> u32 {
        u32::from_be_bytes(core::array::from_fn(|i| self.head[self.l4 + 4 + i]))
    }

    fn identification(&self) -> u16 {
        u16::from_be_bytes([self.head[self.l3 + 4], self.head[self.l3 + 5]])
    }

    fn range_eq(&self, other: &Self, from: usize, to: usize) -> bool {
        self.head[from..to] == other.head[from..to]
    }

    /// Same protocol, IP addresses and ports.
    pub fn same_flow(&self, other: &Self) -> bool {
        let addresses = self.l3 + if self.v6 { 8 } else { 12 };
        (self.l4, self.v6, self.tcp) == (other.l4, other.v6, other.tcp)
            && self.range_eq(other, addresses, self.l4 + 4)
    }

    /// Everything else that is neither length, identification, sequence number nor checksum.
    pub fn same_headers(&self, other: &Self) -> bool {
        let (l3, l4) = (self.l3, self.l4);
        let ip = if self.v6 {
            self.range_eq(other, l3, l3 + 4) && self.range_eq(other, l3 + 6, l3 + 8)
        } else {
            self.range_eq(other, l3, l3 + 2) && self.range_eq(other, l3 + 6, l3 + 10)
        };
        ip && self.header == other.header
            && self.range_eq(other, 0, l3)
            && (!self.tcp
                || self.range_eq(other, l4 + 8, l4 + 13)
                    && self.range_eq(other, l4 + 14, l4 + 16)
                    && self.range_eq(other, l4 + 18, self.header))
    }

    /// The identification counts up from that of the first, `index` before, or doesn't matter because the packet can't be
    /// fragmented.
    pub fn identification_follows(&self, first: &Self, index: u8) -> bool {
        let dont_fragment = self.head[self.l3 + 6] & 0x40 != 0;
        self.v6
            || dont_fragment
            || self.identification() == first.identification().wrapping_add(u16::from(index))
    }

    /// Verifies the TCP or UDP checksum of frame `i`, whose headers these are.
    pub fn is_intact(&self, frames: &Frames<'_, '_>, i: usize) -> bool {
        if self.open {
            return true;
        }
        let mut sum = self.pseudo_header(self.header - self.l4 + self.payload);
        sum.add(&self.head[self.l4..self.header]);
        let mut skip = self.header;
        for view in frames.views(&frames.as_slice()[i]) {
            sum.add_view(view.skip(skip));
            skip = skip.saturating_sub(view.len());
        }
        sum.folded() == 0xffff
    }

    fn pseudo_header(&self, l4_len: usize) -> Sum {
        let mut sum = Sum::starting_at(l4_len as u16);
        sum.add_word(u16::from(if self.tcp { TCP } else { UDP }));
        sum.add(&self.head[self.l3 + if self.v6 { 8 } else { 12 }..self.l4]);
        sum
    }

    /// These headers in front of `payload` bytes, to be cut into pieces of this segment's length, with an open checksum.
    pub fn joined(&self, payload: usize) -> ([u8; HEAD], Offload) {
        let Self { mut head, l3, l4, header, v6, tcp, .. } = *self;
        let mut put = |at: usize, value: u16| head[at..at + 2].copy_from_slice(&value.to_be_bytes());
        let l4_len = header - l4 + payload;
        let field = if tcp { 16 } else { 6 };
        if v6 {
            put(l3 + 4, l4_len as u16);
        } else {
            put(l3 + 2, (l4 - l3 + l4_len) as u16);
            put(l3 + 10, 0);
        }
        if !tcp {
            put(l4 + 4, l4_len as u16);
        }
        put(l4 + field, self.pseudo_header(l4_len).folded());
        if !v6 {
            let checksum = header_checksum(&head[l3..l4]);
            head[l3 + 10..l3 + 12].copy_from_slice(&checksum.to_be_bytes());
        }
        let offload = Offload {
            needs_csum: true,
            gso: match (tcp, v6) {
                (true, false) => Gso::Tcp4,
                (true, true) => Gso::Tcp6,
                (false, _) => Gso::Udp,
            },
            hdr_len: header as u16,
            gso_size: self.payload as u16,
            csum_start: l4 as u16,
            csum_offset: field as u16,
        };
        (head, offload)
    }
}
