//! Joining consecutive TCP segments of a flow into one large frame, as Linux's GRO does: the opposite of [`super::segment`].
//!
//! Only what loses nothing is joined: the same addresses, ports, TOS, TTL, acknowledgement, window and options (time stamps
//! too), consecutive sequence numbers, equal sizes but for a shorter last one, and no flags but ACK and PSH. Segments of one flow
//! stay in order; different flows may pass each other by a burst, as they may anywhere in a network.
//!
//! A joined frame goes out with an open checksum, which the kernel takes as "verified". So each segment's own checksum is
//! verified before it is joined. One that fails is passed on untouched and alone, for the receiver's TCP to drop.

use arrayvec::ArrayVec;

use super::checksum::{Sum, header_checksum};
use super::{Layout, ethernet_len};
use crate::burst::{BURST, Frame, Frames, Gso, Offload};

/// Flows that are joined at the same time within a burst.
pub const FLOWS: usize = 8;
/// Bytes of headers that are looked at: more than Ethernet with a VLAN tag, IPv6 and the longest TCP header have together.
const HEAD: usize = 128;
/// Largest IP packet.
const MAX_IP: usize = 65_535;

const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const TCP: u8 = 6;

/// Whether frames begin with an Ethernet or with an IP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Link {
    /// Ethernet, without checksum trailer.
    #[default]
    Ethernet,
    /// IPv4 or IPv6.
    Ip,
}

/// What is to be sent.
pub enum Output<'x> {
    /// This frame of the burst, as it is.
    Frame(usize),
    /// One frame made of several.
    Joined {
        /// Its headers.
        header: &'x [u8],
        /// What it owes.
        offload: Offload,
        /// The frames whose bytes after the first `header.len()` are its payload, in order.
        members: Members<'x>,
    },
}

/// Indices of the frames of one [`Output::Joined`].
#[derive(Clone)]
pub struct Members<'x> {
    next: &'x [u8; BURST],
    at: u8,
    left: u8,
}

impl Iterator for Members<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        self.left = self.left.checked_sub(1)?;
        let member = usize::from(self.at);
        self.at = self.next[member];
        Some(member)
    }
}

/// Joins what can be joined within one burst. Keeps no frames between calls.
pub struct Coalescer {
    link: Link,
    groups: ArrayVec<Group, FLOWS>,
    next: [u8; BURST],
}

/// The headers of a TCP segment.
#[derive(Clone, Copy)]
struct Segment {
    head: [u8; HEAD],
    l3: usize,
    l4: usize,
    header: usize,
    payload: usize,
    v6: bool,
}

/// Segments of one flow that follow each other.
#[derive(Clone, Copy)]
struct Group {
    first: u8,
    last: u8,
    count: u8,
    /// False after a segment that must be the last: a short one, or one with PSH.
    open: bool,
    /// The first segment's checksum has been verified; done only when there is a second.
    verified: bool,
    /// The first segment's headers.
    segment: Segment,
    payload: usize,
}

/// What the frame's headers say about joining it.
enum Class {
    /// Not TCP: its order among TCP segments means nothing.
    Other,
    /// TCP, but of a form that is not looked into; it must not overtake its flow, whichever that is.
    Opaque,
    /// TCP that belongs to a flow; only joined if [`Segment::is_joinable`].
    Tcp(Segment),
}

impl Coalescer {
    /// For frames that begin as `link` says.
    pub fn new(link: Link) -> Self {
        Self { link, groups: ArrayVec::new(), next: [0; BURST] }
    }

    /// Calls `emit` for everything that is to be sent in place of `frames`.
    pub fn run(&mut self, frames: &Frames<'_, '_>, mut emit: impl FnMut(Output<'_>)) {
        if let [_] = frames.as_slice() {
            return emit(Output::Frame(0));
        }
        for (i, frame) in frames.as_slice().iter().enumerate() {
            self.add(frames, frame, i, &mut emit);
        }
        self.emit_all(&mut emit);
    }

    fn add(
        &mut self,
        frames: &Frames<'_, '_>,
        frame: &Frame<'_>,
        i: usize,
        emit: &mut impl FnMut(Output<'_>),
    ) {
        let class = match frames.offload(frame) {
            Some(_) => Class::Opaque,
            None => classify(self.link, frame),
        };
        match class {
            Class::Other => emit(Output::Frame(i)),
            Class::Opaque => {
                self.emit_all(emit);
                emit(Output::Frame(i));
            }
            Class::Tcp(segment) => self.add_tcp(frames, i, &segment, emit),
        }
    }

    fn add_tcp(
        &mut self,
        frames: &Frames<'_, '_>,
        i: usize,
        segment: &Segment,
        emit: &mut impl FnMut(Output<'_>),
    ) {
        let found = self.groups.iter().position(|group| group.segment.same_flow(segment));
        if let Some(found) = found {
            if self.try_join(frames, found, i, segment) {
                return;
            }
            let group = self.groups.remove(found);
            emit_group(&group, &self.next, emit);
        }
        if !segment.is_joinable() {
            return emit(Output::Frame(i));
        }
        if self.groups.is_full() {
            let oldest = self.groups.remove(0);
            emit_group(&oldest, &self.next, emit);
        }
        self.groups.push(Group::new(i as u8, segment));
    }

    /// Appends frame `i` to a group, if it follows it and both are what they claim to be.
    fn try_join(&mut self, frames: &Frames<'_, '_>, group: usize, i: usize, segment: &Segment) -> bool {
        let group = &mut self.groups[group];
        if !group.is_followed_by(segment) || !segment.is_intact(frames, i) {
            return false;
        }
        if !group.verified && !group.segment.is_intact(frames, usize::from(group.first)) {
            return false;
        }
        self.next[usize::from(group.last)] = i as u8;
        group.append(i as u8, segment);
        true
    }

    fn emit_all(&mut self, emit: &mut impl FnMut(Output<'_>)) {
        for group in &self.groups {
            emit_group(group, &self.next, emit);
        }
        self.groups.clear();
    }
}

fn emit_group(group: &Group, next: &[u8; BURST], emit: &mut impl FnMut(Output<'_>)) {
    if group.count == 1 {
        return emit(Output::Frame(usize::from(group.first)));
    }
    let (head, offload) = group.joined_head();
    let members = Members { next, at: group.first, left: group.count };
    emit(Output::Joined { header: &head[..group.segment.header], offload, members });
}

fn classify(link: Link, frame: &Frame<'_>) -> Class {
    let mut head = [0; HEAD];
    let copied = frame.first().copy_to(&mut head);
    if copied < HEAD && frame.is_chained() {
        return Class::Opaque;
    }
    let l3 = match link {
        Link::Ethernet => ethernet_len(&head[..copied]),
        Link::Ip => Some(0),
    };
    let Some(l3) = l3 else { return Class::Other };
    let (version, protocol) = (head[l3] >> 4, if head[l3] >> 4 == 4 { head[l3 + 9] } else { head[l3 + 6] });
    if copied < l3 + 40 || !(version == 4 || version == 6) || !may_be_tcp(version, protocol) {
        return Class::Other;
    }
    Segment::parse(head, copied, l3, version == 6, frame.len()).map_or(Class::Opaque, Class::Tcp)
}

/// IPv6 extension headers may hide a TCP header; they are not looked through.
fn may_be_tcp(version: u8, protocol: u8) -> bool {
    protocol == TCP || (version == 6 && matches!(protocol, 0 | 43 | 44 | 51 | 60))
}

impl Segment {
    /// Reads the headers of a frame of `len` bytes; `None` unless they are plain: no IP options, extensions or fragments, a right
    /// IPv4 checksum, and lengths that agree.
    fn parse(head: [u8; HEAD], copied: usize, l3: usize, v6: bool, len: usize) -> Option<Self> {
        let word = |at: usize| usize::from(u16::from_be_bytes([head[at], head[at + 1]]));
        let (l4, ip_len) = if v6 { (l3 + 40, 40 + word(l3 + 4)) } else { (l3 + 20, word(l3 + 2)) };
        let plain = if v6 {
            head[l3 + 6] == TCP
        } else {
            head[l3] == 0x45 && word(l3 + 6) & 0xbfff == 0 && header_checksum(&head[l3..l4]) == 0
        };
        let header = l4 + usize::from(*head.get(l4 + 12)? >> 4) * 4;
        let fits = ip_len == len - l3 && header >= l4 + 20 && header <= copied.min(len);
        (plain && fits).then(|| Self { head, l3, l4, header, payload: len - header, v6 })
    }

    fn flags(&self) -> u8 {
        self.head[self.l4 + 13]
    }

    fn sequence(&self) -> u32 {
        u32::from_be_bytes(core::array::from_fn(|i| self.head[self.l4 + 4 + i]))
    }

    fn identification(&self) -> u16 {
        u16::from_be_bytes([self.head[self.l3 + 4], self.head[self.l3 + 5]])
    }

    fn is_joinable(&self) -> bool {
        self.payload > 0 && self.flags() & !PSH == ACK
    }

    fn range_eq(&self, other: &Self, from: usize, to: usize) -> bool {
        self.head[from..to] == other.head[from..to]
    }

    /// Same link addresses, IP addresses and ports.
    fn same_flow(&self, other: &Self) -> bool {
        let (addresses, ports) = (if self.v6 { 8 } else { 12 }, self.l4 + 4);
        self.l4 == other.l4 && self.v6 == other.v6 && self.range_eq(other, self.l3 + addresses, ports)
    }

    /// Everything else in the headers that must be equal, but for what [`Group::is_followed_by`] compares itself.
    fn same_headers(&self, other: &Self) -> bool {
        let (l3, l4) = (self.l3, self.l4);
        let ip = if self.v6 {
            self.range_eq(other, l3, l3 + 4) && self.range_eq(other, l3 + 6, l3 + 8)
        } else {
            self.range_eq(other, l3, l3 + 2) && self.range_eq(other, l3 + 6, l3 + 10)
        };
        let tcp = self.range_eq(other, l4 + 8, l4 + 13) && self.range_eq(other, l4 + 14, l4 + 16);
        ip && tcp
            && self.header == other.header
            && self.range_eq(other, 0, l3)
            && self.range_eq(other, l4 + 18, self.header)
    }

    /// The identification counts up with each segment, or doesn't matter because the packet can't be fragmented.
    fn identification_follows(&self, first: &Self, index: u8) -> bool {
        let dont_fragment = self.head[self.l3 + 6] & 0x40 != 0;
        self.v6
            || dont_fragment
            || self.identification() == first.identification().wrapping_add(u16::from(index))
    }

    /// Verifies the TCP checksum of frame `i`, whose headers these are.
    fn is_intact(&self, frames: &Frames<'_, '_>, i: usize) -> bool {
        let frame = &frames.as_slice()[i];
        let mut sum = self.pseudo_header(self.header - self.l4 + self.payload);
        sum.add(&self.head[self.l4..self.header]);
        let mut skip = self.header;
        for view in frames.views(frame) {
            sum.add_view(view.skip(skip));
            skip = skip.saturating_sub(view.len());
        }
        sum.folded() == 0xffff
    }

    fn pseudo_header(&self, tcp_len: usize) -> Sum {
        let mut sum = Sum::starting_at(tcp_len as u16);
        sum.add_word(u16::from(TCP));
        sum.add(&self.head[self.l3 + if self.v6 { 8 } else { 12 }..self.l4]);
        sum
    }
}

impl Group {
    fn new(i: u8, segment: &Segment) -> Self {
        let open = segment.flags() & PSH == 0;
        Self {
            first: i,
            last: i,
            count: 1,
            open,
            verified: false,
            segment: *segment,
            payload: segment.payload,
        }
    }

    fn is_followed_by(&self, next: &Segment) -> bool {
        let first = &self.segment;
        let ip_len = first.header - first.l3 + self.payload + next.payload;
        self.open
            && next.is_joinable()
            && next.payload <= first.payload
            && next.sequence() == first.sequence().wrapping_add(self.payload as u32)
            && ip_len <= MAX_IP
            && first.same_headers(next)
            && next.identification_follows(first, self.count)
    }

    fn append(&mut self, i: u8, segment: &Segment) {
        self.verified = true;
        self.last = i;
        self.count += 1;
        self.payload += segment.payload;
        let push = segment.flags() & PSH;
        self.segment.head[self.segment.l4 + 13] |= push;
        self.open = push == 0 && segment.payload == self.segment.payload;
    }

    /// The first segment's headers with the lengths of the whole, and an open checksum.
    fn joined_head(&self) -> ([u8; HEAD], Offload) {
        let Segment { mut head, l3, l4, header, v6, .. } = self.segment;
        let mut put = |at: usize, value: u16| head[at..at + 2].copy_from_slice(&value.to_be_bytes());
        let tcp_len = header - l4 + self.payload;
        if v6 {
            put(l3 + 4, tcp_len as u16);
        } else {
            put(l3 + 2, (l4 - l3 + tcp_len) as u16);
            put(l3 + 10, 0);
        }
        put(l4 + 16, self.segment.pseudo_header(tcp_len).folded());
        if !v6 {
            let checksum = header_checksum(&head[l3..l4]);
            head[l3 + 10..l3 + 12].copy_from_slice(&checksum.to_be_bytes());
        }
        let offload = Offload {
            needs_csum: true,
            gso: if v6 { Gso::Tcp6 } else { Gso::Tcp4 },
            hdr_len: header as u16,
            gso_size: self.segment.payload as u16,
            csum_start: l4 as u16,
            csum_offset: 16,
        };
        debug_assert!(Layout::check(&head[..header], header + self.payload, &offload).is_ok());
        (head, offload)
    }
}
