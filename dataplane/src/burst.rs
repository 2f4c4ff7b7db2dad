//! A burst: up to [`BURST`] frames that an ingress port lends for one turn of the loop.
//!
//! Nothing is copied when a burst is filled. A frame is one view of memory, or several where the sender chained buffers; the
//! egress port makes the one copy, from the lent view to its own slot. The borrow checker holds the contract: a burst borrows
//! from the port that lent it, and the port takes its buffers back only after the burst is gone.

use std::cell::Cell;

use arrayvec::ArrayVec;
use memif::Lent;

use crate::port::PortIndex;

/// Most frames in a burst. Bounded so that no port waits long for its turn, and small enough for a `u64` of flags.
pub const BURST: usize = 64;
/// Views that the chained frames of one burst may have together, beyond each frame's first.
pub const CHAIN_VIEWS: usize = 512;
/// Longest frame that any port accepts, in bytes.
pub const MAX_FRAME: usize = 65_536 + 64;

/// What a frame still owes before it may appear on a wire, as virtio-net's header states it: an open checksum, or that it is
/// to be cut into segments. Ports whose peer can take such frames pass this on; the others pay (see `crate::offload`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offload {
    /// The L4 checksum field holds only the pseudo header's sum; the sum over `csum_start..` is to be completed.
    pub needs_csum: bool,
    /// How the frame is to be cut.
    pub gso: Gso,
    /// Bytes of all headers (L2 to L4) that each segment repeats.
    pub hdr_len: u16,
    /// Payload bytes per segment.
    pub gso_size: u16,
    /// Where checksumming starts, from the frame's first byte.
    pub csum_start: u16,
    /// Where the checksum field lies, from `csum_start`.
    pub csum_offset: u16,
}

/// Kinds of segmentation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Gso {
    /// The frame is sent as it is.
    #[default]
    None = 0,
    /// TCP over IPv4.
    Tcp4 = 1,
    /// TCP over IPv6.
    Tcp6 = 4,
    /// UDP over IPv4 or IPv6, each segment a datagram of its own.
    Udp = 5,
}

/// One frame of a burst.
#[derive(Clone, Copy)]
pub struct Frame<'a> {
    first: Lent<'a>,
    len: u32,
    rest_start: u16,
    rest_len: u16,
    /// As wide as it is so that a plain frame's last fields are written by one store.
    offload: u32,
}

impl<'a> Frame<'a> {
    #[inline]
    const fn plain(view: Lent<'a>) -> Self {
        Self { first: view, len: view.len() as u32, rest_start: 0, rest_len: 0, offload: 0 }
    }

    /// Length of the whole frame in bytes.
    #[inline]
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// True for a frame of no bytes, which no port lends.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first view: the whole frame unless it is chained.
    #[inline]
    pub const fn first(&self) -> Lent<'a> {
        self.first
    }

    /// True if the frame is one view and owes nothing: the common case, which is copied and done with.
    #[inline]
    pub const fn is_plain(&self) -> bool {
        self.rest_len == 0 && self.offload == 0
    }

    /// True if the frame has more than one view.
    #[inline]
    pub const fn is_chained(&self) -> bool {
        self.rest_len > 0
    }
}

/// A run of frames that entered by the same port.
#[derive(Clone, Copy)]
struct Run {
    ingress: PortIndex,
    end: u8,
}

/// Frames lent for one turn. Filled by [`Rx::receive`](crate::port::Rx::receive).
pub struct Burst<'a> {
    frames: ArrayVec<Frame<'a>, BURST>,
    rest: ArrayVec<Lent<'a>, CHAIN_VIEWS>,
    offloads: ArrayVec<Offload, BURST>,
    runs: ArrayVec<Run, BURST>,
    ingress: PortIndex,
    taken: Cell<u64>,
    kept: bool,
}

impl<'a> Burst<'a> {
    /// An empty burst whose frames enter by `ingress` until [`Burst::from_port`] says otherwise.
    #[inline]
    pub fn new(ingress: PortIndex) -> Self {
        Self {
            // Not `new_const`, for which the compiler writes zeros to what is unused.
            frames: ArrayVec::new(),
            rest: ArrayVec::new(),
            offloads: ArrayVec::new(),
            runs: ArrayVec::new(),
            ingress,
            taken: Cell::new(0),
            kept: false,
        }
    }

    /// Says that the frames are looked at after they were sent (by a capture): then no egress port may take their buffers.
    #[inline]
    pub fn keep(&mut self) {
        self.kept = true;
    }

    /// Frames that still fit.
    #[inline]
    pub fn room(&self) -> usize {
        BURST - self.frames.len()
    }

    /// Views that chained frames may still have, together, beyond each frame's first.
    #[inline]
    pub fn chain_room(&self) -> usize {
        self.rest.remaining_capacity()
    }

    /// Frames in the burst.
    #[inline]
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// True if nothing was lent.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Names the port by which the frames pushed from here on enter: for a receiver that serves several (an underlay).
    #[inline]
    pub fn from_port(&mut self, ingress: PortIndex) {
        if ingress != self.ingress {
            self.close_run();
            self.ingress = ingress;
        }
    }

    fn close_run(&mut self) {
        let end = self.frames.len() as u8;
        if self.runs.last().map_or(0, |run| run.end) != end {
            self.runs.push(Run { ingress: self.ingress, end });
        }
    }

    /// Adds a frame of one view. A full burst ignores it; ask [`Burst::room`] first.
    #[inline]
    pub fn push(&mut self, view: Lent<'a>) {
        let _ = self.frames.try_push(Frame::plain(view));
    }

    /// Adds a frame of one view for each of `items`, as many as fit.
    #[inline]
    pub fn extend<T>(&mut self, items: &[T], lend: impl Fn(&T) -> Lent<'a>) {
        let items = &items[..items.len().min(self.room())];
        self.frames.extend(items.iter().map(|item| Frame::plain(lend(item))));
    }

    /// Adds a frame of several views and what it owes. False, and nothing added, if there is no room for it or `views` is empty.
    pub fn push_with(&mut self, views: &[Lent<'a>], offload: Option<Offload>) -> bool {
        let Some((first, rest)) = views.split_first() else { return false };
        if self.frames.is_full() || self.rest.remaining_capacity() < rest.len() {
            return false;
        }
        let rest_start = self.rest.len() as u16;
        self.rest.extend(rest.iter().copied());
        let offload = match offload {
            Some(owed) if owed != Offload::default() => {
                self.offloads.push(owed);
                self.offloads.len() as u32
            }
            _ => 0,
        };
        let len = views.iter().map(|view| view.len() as u32).sum();
        self.frames.push(Frame { first: *first, len, rest_start, rest_len: rest.len() as u16, offload });
        true
    }

    /// All frames, in runs of those that entered by the same port.
    #[inline]
    pub fn runs(&mut self) -> impl Iterator<Item = (PortIndex, Frames<'_, 'a>)> + use<'_, 'a> {
        self.close_run();
        let burst = &*self;
        let mut start = 0;
        burst.runs.iter().map(move |run| {
            let frames = Frames { burst, start, end: usize::from(run.end) };
            start = frames.end;
            (run.ingress, frames)
        })
    }

    /// Ends the burst: bit `i` is set if the egress port took frame `i`'s buffer for itself (see [`Frames::take`]).
    #[inline]
    pub fn finish(self) -> u64 {
        self.taken.get()
    }
}

/// Some frames of a burst: those that go the same way.
#[derive(Clone, Copy)]
pub struct Frames<'b, 'a> {
    burst: &'b Burst<'a>,
    start: usize,
    end: usize,
}

impl<'b, 'a> Frames<'b, 'a> {
    /// How many.
    #[inline]
    pub const fn len(&self) -> usize {
        self.end - self.start
    }

    /// True if there are none.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.end == self.start
    }

    /// The frames themselves.
    #[inline]
    pub fn as_slice(&self) -> &'b [Frame<'a>] {
        &self.burst.frames[self.start..self.end]
    }

    /// True if none of their burst is chained or owes anything: a quicker look than one at each.
    #[inline]
    pub fn are_plain(&self) -> bool {
        self.burst.rest.is_empty() && self.burst.offloads.is_empty()
    }

    /// Bytes of all of them together.
    #[inline]
    pub fn bytes(&self) -> u64 {
        self.as_slice().iter().map(|frame| frame.len() as u64).sum()
    }

    /// The views of a chained frame after its first one; empty for others.
    #[inline]
    pub fn rest(&self, frame: &Frame<'a>) -> &'b [Lent<'a>] {
        let start = usize::from(frame.rest_start);
        &self.burst.rest[start..start + usize::from(frame.rest_len)]
    }

    /// All views of a frame, in order.
    #[inline]
    pub fn views(&self, frame: &Frame<'a>) -> impl Iterator<Item = Lent<'a>> + use<'b, 'a> {
        core::iter::once(frame.first).chain(self.rest(frame).iter().copied())
    }

    /// What the frame still owes.
    #[inline]
    pub fn offload(&self, frame: &Frame<'a>) -> Option<Offload> {
        (frame.offload > 0).then(|| self.burst.offloads[frame.offload as usize - 1])
    }

    /// Copies the whole frame into a new vector: for slow paths and tests.
    pub fn to_vec(&self, frame: &Frame<'a>) -> Vec<u8> {
        self.views(frame).flat_map(|view| view.to_vec()).collect()
    }

    /// The place of the `i`-th of these frames in its burst.
    #[inline]
    pub const fn place(&self, i: usize) -> usize {
        self.start + i
    }

    /// Whether an egress port may [`Frames::take`] buffers of this burst.
    #[inline]
    pub const fn may_take(&self) -> bool {
        !self.burst.kept
    }

    /// Takes the buffer of the `i`-th of these frames: the egress port sends it on without a copy and returns it to the pool
    /// itself when the device is done, so the ingress port must not. Only a port that shares the ingress port's pool may, and only
    /// if [`Frames::may_take`] says so; nobody may look at the frame afterwards.
    #[inline]
    pub fn take(&self, i: usize) {
        self.burst.taken.set(self.burst.taken.get() | 1 << (self.start + i));
    }

    /// [`Frames::take`] for each of these frames.
    #[inline]
    pub fn take_all(&self) {
        if !self.is_empty() {
            self.burst.taken.set(self.burst.taken.get() | (u64::MAX >> (BURST - self.len())) << self.start);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_in_runs_of_their_ingress_port() {
        let bytes = [[1u8; 60], [2; 60], [3; 60]];
        let mut burst = Burst::new(PortIndex(9));
        burst.from_port(PortIndex(1));
        burst.push(Lent::from(&bytes[0][..]));
        burst.push(Lent::from(&bytes[1][..]));
        burst.from_port(PortIndex(2));
        burst.push(Lent::from(&bytes[2][..]));
        let seen: Vec<_> = burst
            .runs()
            .map(|(port, frames)| (port.0, frames.as_slice().iter().map(|f| f.first().to_vec()[0]).collect()))
            .collect();
        assert_eq!(seen, [(1, vec![1, 2]), (2, vec![3])]);
    }

    #[test]
    fn a_chained_frame_is_the_sum_of_its_views_and_keeps_what_it_owes() {
        let bytes = [7u8; 100];
        let owed = Offload { needs_csum: true, csum_start: 34, csum_offset: 16, ..Offload::default() };
        let mut burst = Burst::new(PortIndex(0));
        assert!(burst.push_with(&[Lent::from(&bytes[..60]), Lent::from(&bytes[60..])], Some(owed)));
        let (_, frames) = burst.runs().next().unwrap();
        let frame = &frames.as_slice()[0];
        assert_eq!((frame.len(), frame.is_plain(), frames.offload(frame)), (100, false, Some(owed)));
        assert_eq!(frames.to_vec(frame), bytes);
    }

    #[test]
    fn a_full_burst_takes_no_more() {
        let bytes = [0u8; 60];
        let mut burst = Burst::new(PortIndex(0));
        for _ in 0..BURST {
            assert!(burst.push_with(&[Lent::from(&bytes[..])], None));
        }
        assert!(!burst.push_with(&[Lent::from(&bytes[..])], None));
        assert_eq!((burst.len(), burst.room()), (BURST, 0));
    }
}
