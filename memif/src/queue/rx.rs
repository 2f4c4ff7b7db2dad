//! The receiving end of a ring.

use core::sync::atomic::Ordering;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use super::event::EventFd;
use super::memory::{BadDescriptor, Buffers, Windows};
use super::{MAX_FRAME, MAX_SEGMENTS, RingFault, Role};
use crate::bytes::Lent;
use crate::region::Region;
use crate::ring::{AtomicU16, Descriptor, MASK_INT, Ring, fence};

/// Takes the frames of one [`RxQueue::receive`].
pub trait FrameSink<'a> {
    /// Frames it can take now. It is asked once, at the start.
    fn room(&self) -> usize;

    /// Takes a frame that lies in one piece: nearly all do.
    fn frame(&mut self, frame: Lent<'a>);

    /// Takes a frame of `total` bytes that lies in several pieces.
    fn chain(&mut self, segments: &[Lent<'a>], total: usize);
}

/// Packets of the peer's that were thrown away, by what was wrong with a descriptor of theirs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RxFaults {
    /// No such region.
    pub bad_region: u64,
    /// Bytes beyond the end of the region.
    pub out_of_bounds: u64,
    /// A descriptor of no bytes.
    pub zero_length: u64,
    /// More bytes than the longest packet has, in one descriptor or in all of a chain.
    pub too_long: u64,
    /// More descriptors than a chain may have, or a chain that fills the ring and does not end.
    pub chain_too_long: u64,
}

impl RxFaults {
    /// All of them.
    pub const fn total(&self) -> u64 {
        self.bad_region + self.out_of_bounds + self.zero_length + self.too_long + self.chain_too_long
    }

    fn count(&mut self, bad: BadDescriptor) {
        match bad {
            BadDescriptor::Region => self.bad_region += 1,
            BadDescriptor::Bounds => self.out_of_bounds += 1,
            BadDescriptor::Empty => self.zero_length += 1,
            BadDescriptor::TooLong => self.too_long += 1,
        }
    }
}

/// The end of a ring that packets come out of.
#[derive(Debug)]
pub struct RxQueue {
    ring: Ring,
    windows: Windows,
    role: Role,
    /// Index of the first slot not yet lent.
    next: u16,
    /// Slots lent and not yet released: those before `next`.
    lent: u16,
    /// The peer's index as last read; never more than the ring's size ahead of `next`.
    seen: u16,
    /// Some of the lent slots were chained, and their flags must be cleared.
    chained: bool,
    /// The middle of a packet that was thrown away: its end is still to come.
    skipping: bool,
    faults: RxFaults,
    event: EventFd,
    /// The client's: what to post again.
    buffers: Option<Buffers>,
}

/// What became of a descriptor that is not a whole good packet.
enum Irregular {
    /// A chain of this many good descriptors.
    Chain(u16),
    /// This many descriptors are consumed with nothing to show for it.
    Skip(u16),
    /// A chain whose end is not there yet.
    Wait,
}

/// The pieces of one chain.
struct Pieces<'a> {
    list: [Lent<'a>; MAX_SEGMENTS],
    count: usize,
    total: usize,
}

impl RxQueue {
    pub(super) fn server(ring: Ring, regions: &Arc<[Arc<Region>]>, event: EventFd) -> Self {
        ring.tail().store(0, Ordering::Release);
        Self::new(ring, regions, event, Role::Server, None)
    }

    /// Posts every buffer.
    pub(super) fn client(ring: Ring, regions: &Arc<[Arc<Region>]>, event: EventFd, buffers: Buffers) -> Self {
        for slot in 0..ring.size() {
            ring.slots().store(slot, buffers.descriptor(slot));
        }
        ring.head().store(ring.size(), Ordering::Release);
        Self::new(ring, regions, event, Role::Client, Some(buffers))
    }

    fn new(
        ring: Ring,
        regions: &Arc<[Arc<Region>]>,
        event: EventFd,
        role: Role,
        buffers: Option<Buffers>,
    ) -> Self {
        ring.flags().store(MASK_INT, Ordering::Relaxed);
        Self {
            ring,
            windows: Windows::new(regions),
            role,
            next: 0,
            lent: 0,
            seen: 0,
            chained: false,
            skipping: false,
            faults: RxFaults::default(),
            event,
            buffers,
        }
    }

    /// Lends as many waiting frames as the sink has room for, and returns how many that were.
    ///
    /// The frames may be looked at until [`release`](Self::release). Several bursts may be lent before one release, up to a
    /// whole ring of them.
    /// A frame whose descriptors are bad is consumed and counted ([`take_faults`](Self::take_faults)).
    ///
    /// # Errors
    /// [`RingFault`]: the connection is beyond repair.
    #[inline]
    pub fn receive<'a, S: FrameSink<'a>>(&'a mut self, sink: &mut S) -> Result<usize, RingFault> {
        let room = sink.room();
        self.windows.check_poison()?;
        if usize::from(self.seen.wrapping_sub(self.next)) < room {
            self.look()?;
        }
        let (mut at, mut frames) = (self.next, 0);
        loop {
            let budget = usize::from(self.seen.wrapping_sub(at)).min(room - frames);
            let (plain, other) = self.receive_plain(at, budget, sink);
            at = at.wrapping_add(plain as u16);
            frames += plain;
            let Some(other) = other else { break };
            let Some((after, whole)) = self.receive_irregular(at, other, sink)? else { break };
            at = after;
            frames += usize::from(whole);
        }
        self.lent = self.lent.wrapping_add(at.wrapping_sub(self.next));
        self.next = at;
        Ok(frames)
    }

    /// Lends frames that lie in one piece each, up to `budget` of them or to the first descriptor that is something else: how
    /// many those were, and that descriptor. Nearly all packets go through this loop and through nothing else.
    #[inline(always)]
    fn receive_plain<'a, S: FrameSink<'a>>(
        &self,
        from: u16,
        budget: usize,
        sink: &mut S,
    ) -> (usize, Option<Descriptor>) {
        let (slots, view, skipping) = (self.ring.slots(), self.windows.view(), self.skipping);
        for done in 0..budget {
            let descriptor = slots.load(from.wrapping_add(done as u16));
            match view.resolve(descriptor) {
                Some(start) if !descriptor.goes_on() && !skipping => {
                    // SAFETY: `resolve` has checked that the bytes lie in a region, which stays mapped while self does.
                    sink.frame(unsafe { Lent::new(start, descriptor.len) });
                }
                _ => return (done, Some(descriptor)),
            }
        }
        (budget, None)
    }

    /// Reads the peer's index. The only place that does.
    #[inline]
    fn look(&mut self) -> Result<(), RingFault> {
        let peer = self.theirs().load(Ordering::Acquire);
        // Measured from what was seen before, not from `next`: an index that goes back is as wrong as one that jumps.
        let distance = peer.wrapping_sub(self.seen);
        let bound = self.ring.size() - self.lent - self.seen.wrapping_sub(self.next);
        if distance > bound {
            return Err(self.windows.why(RingFault::Corrupt { peer, distance, bound }));
        }
        self.seen = peer;
        Ok(())
    }

    #[inline(always)]
    fn theirs(&self) -> &AtomicU16 {
        match self.role {
            Role::Client => self.ring.tail(),
            Role::Server => self.ring.head(),
        }
    }

    /// Handles a chain or a bad descriptor: the index after it, and whether it was a frame. `None` if it must wait.
    #[cold]
    #[inline(never)]
    fn receive_irregular<'a, S: FrameSink<'a>>(
        &mut self,
        at: u16,
        first: Descriptor,
        sink: &mut S,
    ) -> Result<Option<(u16, bool)>, RingFault> {
        let mut pieces = Pieces::new();
        match self.irregular(at, first, &mut pieces)? {
            Irregular::Chain(count) => {
                sink.chain(&pieces.list[..pieces.count], pieces.total);
                Ok(Some((at.wrapping_add(count), true)))
            }
            Irregular::Skip(count) => Ok(Some((at.wrapping_add(count), false))),
            Irregular::Wait => Ok(None),
        }
    }

    fn irregular<'a>(
        &mut self,
        at: u16,
        first: Descriptor,
        pieces: &mut Pieces<'a>,
    ) -> Result<Irregular, RingFault> {
        self.chained |= first.goes_on();
        if self.skipping {
            self.skipping = first.goes_on();
            return Ok(Irregular::Skip(1));
        }
        let mut bad = pieces.take(&self.windows, first).err();
        let (mut last, mut count) = (first, 1);
        while last.goes_on() && usize::from(count) < MAX_SEGMENTS {
            if !self.is_visible(at.wrapping_add(count))? {
                return Ok(self.unfinished(at, count));
            }
            last = self.ring.slots().load(at.wrapping_add(count));
            bad = bad.or(pieces.take(&self.windows, last).err());
            count += 1;
        }
        if last.goes_on() {
            return Ok(self.endless(count));
        }
        match bad {
            None => Ok(Irregular::Chain(count)),
            Some(bad) => {
                self.faults.count(bad);
                Ok(Irregular::Skip(count))
            }
        }
    }

    fn is_visible(&mut self, index: u16) -> Result<bool, RingFault> {
        if index == self.seen {
            self.look()?;
        }
        Ok(index != self.seen)
    }

    /// A chain of `count` visible descriptors without an end. It may still come, unless there is no slot left for it.
    fn unfinished(&mut self, at: u16, count: u16) -> Irregular {
        let before = at.wrapping_sub(self.next).wrapping_add(self.lent);
        if before == 0 && count == self.ring.size() { self.endless(count) } else { Irregular::Wait }
    }

    fn endless(&mut self, count: u16) -> Irregular {
        self.faults.chain_too_long += 1;
        self.skipping = true;
        Irregular::Skip(count)
    }

    /// Gives everything lent back to the peer. (For the client: posts the buffers again.)
    #[inline]
    pub fn release(&mut self) {
        if self.lent == 0 {
            return;
        }
        match self.buffers {
            Some(buffers) => self.post_again(buffers),
            None => self.give_back(),
        }
        self.lent = 0;
    }

    #[inline]
    fn post_again(&mut self, buffers: Buffers) {
        let first = self.next.wrapping_sub(self.lent);
        for i in 0..self.lent {
            let index = first.wrapping_add(i);
            self.ring.slots().store(index, buffers.descriptor(index & self.ring.mask()));
        }
        self.chained = false;
        self.ring.head().store(self.next.wrapping_add(self.ring.size()), Ordering::Release);
    }

    #[inline]
    fn give_back(&mut self) {
        if self.chained {
            self.clear_flags();
        }
        self.ring.tail().store(self.next, Ordering::Release);
    }

    /// Some clients (DPDK 22.11) never clear the flags of a first descriptor: what is left set comes back with the next packet.
    #[cold]
    fn clear_flags(&mut self) {
        let first = self.next.wrapping_sub(self.lent);
        for i in 0..self.lent {
            let index = first.wrapping_add(i);
            let descriptor = self.ring.slots().load(index);
            if descriptor.goes_on() {
                self.ring.slots().store_first(index, Descriptor { flags: 0, ..descriptor });
            }
        }
        self.chained = false;
    }

    /// Slots that wait to be received. An index of the peer's that is out of bounds counts as one, so that the next
    /// [`receive`](Self::receive) finds it.
    pub fn backlog(&self) -> usize {
        let waiting = self.theirs().load(Ordering::Acquire).wrapping_sub(self.next);
        if waiting > self.ring.size() { 1 } else { usize::from(waiting) }
    }

    /// Asks the peer not to interrupt: it is polled. This is the state at the start.
    pub fn mask(&self) {
        self.ring.flags().store(MASK_INT, Ordering::Relaxed);
    }

    /// Asks the peer to write the event descriptor when it has sent something.
    ///
    /// Look at [`backlog`](Self::backlog) once more before sleeping, and sleep for a bounded time (a millisecond): peers do not
    /// order their index before their look at this flag, so that a wake-up can be lost.
    pub fn unmask(&self) {
        self.ring.flags().store(0, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Takes note of interrupts: until the next one the event descriptor is not readable.
    pub fn drain_event(&self) {
        self.event.drain();
    }

    /// Readable when the peer has interrupted.
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// The counts since the last call.
    pub fn take_faults(&mut self) -> RxFaults {
        core::mem::take(&mut self.faults)
    }

    /// Slots of the ring.
    pub fn size(&self) -> usize {
        usize::from(self.ring.size())
    }
}

impl Pieces<'_> {
    fn new() -> Self {
        Self { list: [Lent::from(&[][..]); MAX_SEGMENTS], count: 0, total: 0 }
    }

    fn take(&mut self, windows: &Windows, descriptor: Descriptor) -> Result<(), BadDescriptor> {
        let start = windows.resolve(descriptor).ok_or_else(|| windows.blame(descriptor))?;
        self.total += descriptor.len as usize;
        if self.total > MAX_FRAME {
            return Err(BadDescriptor::TooLong);
        }
        // SAFETY: as in `RxQueue::receive`. The count is bounded by the loop of `irregular`.
        self.list[self.count] = unsafe { Lent::new(start, descriptor.len) };
        self.count += 1;
        Ok(())
    }
}
