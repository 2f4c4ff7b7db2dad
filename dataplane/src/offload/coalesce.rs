//! Joining consecutive TCP segments of a flow, and equal UDP datagrams, into one large frame, as Linux's GRO does: the opposite
//! of [`super::segment`].
//!
//! Only what loses nothing is joined: the same addresses, ports, TOS and TTL, equal sizes but for a shorter last one, and in TCP
//! consecutive sequence numbers, the same acknowledgement, window and options (time stamps too), and no flags but ACK and PSH.
//! Frames of one flow stay in order; different flows may pass each other by a burst, as they may anywhere in a network.
//!
//! PSH does not end a frame, as it does in Linux: what there is goes out at the end of the burst anyway. It moves to the end of
//! the joined frame; between two segments of a stream it says nothing to a receiver that gets both at once.
//!
//! A joined frame goes out with an open checksum, which the kernel takes as "verified". So each frame's own checksum is verified
//! before it is joined, unless a local kernel left it open. One that fails is passed on untouched and alone, for the receiver
//! to drop.

use arrayvec::ArrayVec;

pub use super::headers::Link;
use super::headers::{Class, PSH, Segment, classify};
use crate::burst::{BURST, Frames, Offload};

/// Flows that are joined at the same time within a burst.
pub const FLOWS: usize = 8;
/// Largest IP packet.
const MAX_IP: usize = 65_535;

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
    udp: bool,
    groups: ArrayVec<Group, FLOWS>,
    next: [u8; BURST],
}

/// Segments of one flow that follow each other.
#[derive(Clone, Copy)]
struct Group {
    first: u8,
    last: u8,
    count: u8,
    /// False after a short segment, which must be the last.
    open: bool,
    /// The first segment's checksum has been verified; done only when there is a second.
    verified: bool,
    /// The first segment's headers.
    segment: Segment,
    payload: usize,
}

impl Coalescer {
    /// For frames that begin as `link` says. `udp` says that joined datagrams are understood, too.
    pub fn new(link: Link, udp: bool) -> Self {
        Self { link, udp, groups: ArrayVec::new(), next: [0; BURST] }
    }

    /// Calls `emit` for everything that is to be sent in place of `frames`.
    pub fn run(&mut self, frames: &Frames<'_, '_>, mut emit: impl FnMut(Output<'_>)) {
        if let [_] = frames.as_slice() {
            return emit(Output::Frame(0));
        }
        for i in 0..frames.len() {
            self.add(frames, i, &mut emit);
        }
        self.emit_all(&mut emit);
    }

    #[inline]
    fn add(&mut self, frames: &Frames<'_, '_>, i: usize, emit: &mut impl FnMut(Output<'_>)) {
        let frame = &frames.as_slice()[i];
        match classify(self.link, frame, frames.offload(frame)) {
            Class::Other => emit(Output::Frame(i)),
            Class::Opaque => {
                self.emit_all(emit);
                emit(Output::Frame(i));
            }
            Class::Flow(segment) if segment.tcp || self.udp => self.add_to_flow(frames, i, &segment, emit),
            Class::Flow(_) => emit(Output::Frame(i)),
        }
    }

    fn add_to_flow(
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
    let (head, offload) = group.segment.joined(group.payload);
    let members = Members { next, at: group.first, left: group.count };
    emit(Output::Joined { header: &head[..group.segment.header], offload, members });
}

impl Group {
    fn new(i: u8, segment: &Segment) -> Self {
        Self {
            first: i,
            last: i,
            count: 1,
            open: true,
            verified: false,
            segment: *segment,
            payload: segment.payload,
        }
    }

    fn is_followed_by(&self, next: &Segment) -> bool {
        let first = &self.segment;
        let ip_len = first.header - first.l3 + self.payload + next.payload;
        let in_sequence = !first.tcp || next.sequence() == first.sequence().wrapping_add(self.payload as u32);
        self.open
            && next.is_joinable()
            && next.payload <= first.payload
            && in_sequence
            && ip_len <= MAX_IP
            && first.same_headers(next)
            && next.identification_follows(first, self.count)
    }

    fn append(&mut self, i: u8, segment: &Segment) {
        self.verified = true;
        self.last = i;
        self.count += 1;
        self.payload += segment.payload;
        if segment.push() {
            self.segment.head[self.segment.l4 + 13] |= PSH;
        }
        self.open = segment.payload == self.segment.payload;
    }
}
