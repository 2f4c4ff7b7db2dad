//! The sending end of a ring.

use core::ptr::NonNull;
use core::sync::atomic::Ordering;
use std::sync::Arc;

use super::event::EventFd;
use super::memory::{Buffers, View, Windows};
use super::writer::{FrameWriter, Piece, Plan};
use super::{MAX_FRAME, MAX_SEGMENTS, RingFault};
use crate::bytes::{Lent, Slot};
use crate::region::Region;
use crate::ring::{AtomicU16, Descriptor, MASK_INT, Ring, Slots, fence};

/// Why a frame was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TxRefused {
    /// No free slot: the peer is slower than we are. (Or the ring is broken: [`TxQueue::fault`].)
    #[error("the ring is full")]
    Full,
    /// More bytes than the longest frame has, or more than all buffers of the ring hold together.
    #[error("the frame is longer than the ring can carry")]
    TooLong,
    /// A frame of no bytes.
    #[error("the frame is empty")]
    Empty,
    /// The peer posted a buffer that lies outside its regions. It was given back empty, and the frame is lost.
    #[error("the peer posted a buffer outside its regions")]
    BadSlot,
}

/// Where and why a burst stopped: the frame at index `at` was refused, those before it were taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// Index of the refused frame.
    pub at: usize,
    /// Why.
    pub why: TxRefused,
}

/// The end of a ring that packets go into.
#[derive(Debug)]
pub struct TxQueue {
    ring: Ring,
    windows: Windows,
    /// Index of the next slot to fill.
    next: u16,
    /// Our index as the peer sees it: slots from here to `next` are filled and not yet published.
    published: u16,
    /// One past the last slot that may be filled, as far as we have looked.
    limit: u16,
    /// Buffers posted outside the peer's regions.
    bad_slots: u64,
    fault: Option<RingFault>,
    event: EventFd,
    /// The client's own; the server fills what the peer posted.
    buffers: Option<Buffers>,
}

impl TxQueue {
    pub(super) fn server(ring: Ring, regions: &Arc<[Arc<Region>]>, event: EventFd) -> Self {
        ring.tail().store(0, Ordering::Release);
        Self::new(ring, regions, event, None)
    }

    pub(super) fn client(ring: Ring, regions: &Arc<[Arc<Region>]>, event: EventFd, buffers: Buffers) -> Self {
        Self::new(ring, regions, event, Some(buffers))
    }

    fn new(ring: Ring, regions: &Arc<[Arc<Region>]>, event: EventFd, buffers: Option<Buffers>) -> Self {
        let limit = if buffers.is_some() { ring.size() } else { 0 };
        let windows = Windows::new(regions);
        Self { ring, windows, next: 0, published: 0, limit, bad_slots: 0, fault: None, event, buffers }
    }

    /// Copies one frame into the ring, into several slots if it does not fit one. The peer sees it after
    /// [`publish`](Self::publish).
    ///
    /// # Errors
    /// [`TxRefused`]; the ring is as it was (but see [`TxRefused::BadSlot`]).
    #[inline]
    pub fn push(&mut self, frame: Lent<'_>) -> Result<(), TxRefused> {
        let piece = self.slot()?;
        if frame.len() > piece.room as usize || frame.is_empty() {
            return self.push_irregular(&[frame], frame.len());
        }
        self.fill(piece, frame);
        Ok(())
    }

    /// Copies one frame that lies in pieces into the ring.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn push_chain(&mut self, segments: &[Lent<'_>]) -> Result<(), TxRefused> {
        self.push_irregular(segments, segments.iter().map(Lent::len).sum())
    }

    /// Copies frames into the ring, in order, until one is refused.
    ///
    /// # Errors
    /// [`Stopped`] at the first frame that was refused; go on behind it, or give up if it says [`TxRefused::Full`].
    #[inline]
    pub fn push_burst(&mut self, frames: &[Lent<'_>]) -> Result<(), Stopped> {
        let mut at = 0;
        loop {
            at += self.push_plain(&frames[at..]);
            let Some(&frame) = frames.get(at) else { return Ok(()) };
            self.push(frame).map_err(|why| Stopped { at, why })?;
            at += 1;
        }
    }

    /// Copies frames as long as there is nothing special about them: how many.
    #[inline]
    fn push_plain(&mut self, frames: &[Lent<'_>]) -> usize {
        if usize::from(self.limit.wrapping_sub(self.next)) < frames.len() {
            self.look();
        }
        let room = usize::from(self.limit.wrapping_sub(self.next)).min(frames.len());
        let (slots, view, from) = (self.ring.slots(), self.windows.view(), self.next);
        let done = match self.buffers {
            Some(buffers) => fill_own(slots, view, from, buffers, &frames[..room]),
            None => fill_posted(slots, view, from, &frames[..room]),
        };
        self.next = from.wrapping_add(done as u16);
        done
    }

    /// Reserves slots for a frame of up to `len` bytes, lets `fill` write it piece by piece, and takes what it wrote.
    ///
    /// # Errors
    /// As [`push`](Self::push); `fill` is called only if there is room. [`TxRefused::Empty`] if it wrote nothing.
    #[inline]
    pub fn push_with(
        &mut self,
        len: usize,
        fill: impl FnOnce(&mut FrameWriter<'_>),
    ) -> Result<(), TxRefused> {
        let piece = self.slot()?;
        if len > piece.room as usize {
            return self.push_planned(len, fill);
        }
        let one = [piece];
        let mut writer = FrameWriter::new(&one);
        fill(&mut writer);
        let written = writer.written();
        self.finish(&one, written)
    }

    #[cold]
    fn push_irregular(&mut self, segments: &[Lent<'_>], total: usize) -> Result<(), TxRefused> {
        self.push_planned(total, |writer| segments.iter().for_each(|&segment| writer.append(segment)))
    }

    #[cold]
    fn push_planned(&mut self, len: usize, fill: impl FnOnce(&mut FrameWriter<'_>)) -> Result<(), TxRefused> {
        let plan = self.plan(len)?;
        let mut writer = FrameWriter::new(plan.pieces());
        fill(&mut writer);
        let written = writer.written();
        self.finish(plan.pieces(), written)
    }

    /// The next free slot, without taking it.
    #[inline(always)]
    fn slot(&mut self) -> Result<Piece, TxRefused> {
        if self.next == self.limit && self.look() == 0 {
            return Err(TxRefused::Full);
        }
        self.piece(self.next)
    }

    /// The buffer of a slot that is ours to fill. Reads a posted descriptor once; nothing of it is read again.
    #[inline(always)]
    fn piece(&mut self, index: u16) -> Result<Piece, TxRefused> {
        let descriptor = match &self.buffers {
            Some(buffers) => buffers.descriptor(index & self.ring.mask()),
            None => self.ring.slots().load(index),
        };
        match self.windows.resolve(descriptor) {
            Some(start) => Ok(Piece { start, room: descriptor.len, descriptor }),
            None => Err(self.give_back_bad(index)),
        }
    }

    /// Gives a slot back with a length of 0, which receivers ignore.
    #[cold]
    fn give_back_bad(&mut self, index: u16) -> TxRefused {
        self.bad_slots += 1;
        // Only the next slot can be given back alone; one in the middle of a chain will be when its turn comes.
        if index == self.next {
            self.ring.slots().store_first(index, Descriptor::default());
            self.next = self.next.wrapping_add(1);
        }
        TxRefused::BadSlot
    }

    #[inline(always)]
    fn fill(&mut self, piece: Piece, frame: Lent<'_>) {
        // SAFETY: `resolve` has checked the range; it stays mapped while self does, and no other Slot covers it now. (A peer
        // that posts one buffer twice gets what it asked for.)
        let mut slot = unsafe { Slot::new(piece.start, piece.room) };
        slot.write(0, frame);
        self.take(piece, frame.len() as u32, false);
    }

    /// Writes the descriptor of a filled slot.
    #[inline(always)]
    fn take(&mut self, piece: Piece, len: u32, goes_on: bool) {
        let descriptor = Descriptor { flags: u16::from(goes_on), len, ..piece.descriptor };
        match self.buffers {
            Some(_) => self.ring.slots().store(self.next, descriptor),
            None => self.ring.slots().store_first(self.next, descriptor),
        }
        self.next = self.next.wrapping_add(1);
    }

    /// Finds slots that hold `len` bytes together.
    fn plan(&mut self, len: usize) -> Result<Plan, TxRefused> {
        match len {
            0 => return Err(TxRefused::Empty),
            len if len > MAX_FRAME => return Err(TxRefused::TooLong),
            _ => {}
        }
        let mut plan = Plan::new();
        while plan.room() < len {
            let index = self.next.wrapping_add(plan.len() as u16);
            if plan.len() == MAX_SEGMENTS || plan.len() == self.size() {
                return Err(TxRefused::TooLong);
            }
            if index == self.limit && usize::from(self.look()) <= plan.len() {
                return Err(TxRefused::Full);
            }
            plan.add(self.piece(index)?);
        }
        Ok(plan)
    }

    /// Takes as many of the pieces as hold `written` bytes.
    #[inline]
    fn finish(&mut self, pieces: &[Piece], written: usize) -> Result<(), TxRefused> {
        let mut left = written;
        for &piece in pieces {
            if left == 0 {
                break;
            }
            let len = left.min(piece.room as usize);
            left -= len;
            self.take(piece, len as u32, left > 0);
        }
        if written == 0 { Err(TxRefused::Empty) } else { Ok(()) }
    }

    /// Reads the peer's index, the only place that does, and returns the number of free slots.
    #[inline]
    fn look(&mut self) -> u16 {
        if self.fault.is_some() {
            return 0;
        }
        let (peer, ahead) = match self.buffers {
            // The client may be a whole ring ahead of the server's tail.
            Some(_) => (self.theirs().load(Ordering::Acquire), self.ring.size()),
            // The server goes up to the client's head.
            None => (self.theirs().load(Ordering::Acquire), 0),
        };
        let limit = peer.wrapping_add(ahead);
        let distance = limit.wrapping_sub(self.limit);
        // The peer owns the slots that were published and are below the limit: it can move by so many at most.
        let bound = self.ring.size() - self.limit.wrapping_sub(self.published);
        if distance > bound {
            let fault = self.windows.why(RingFault::Corrupt { peer, distance, bound });
            return self.broken(fault);
        }
        self.limit = limit;
        limit.wrapping_sub(self.next)
    }

    #[cold]
    fn broken(&mut self, fault: RingFault) -> u16 {
        self.fault = Some(fault);
        self.limit = self.next;
        0
    }

    #[inline(always)]
    fn theirs(&self) -> &AtomicU16 {
        if self.buffers.is_some() { self.ring.tail() } else { self.ring.head() }
    }

    #[inline(always)]
    fn ours(&self) -> &AtomicU16 {
        if self.buffers.is_some() { self.ring.head() } else { self.ring.tail() }
    }

    /// Shows the peer all frames that were pushed, with one store, and interrupts it if it asked for that.
    #[inline]
    pub fn publish(&mut self) {
        if let Err(fault) = self.windows.check_poison() {
            self.broken(fault);
        }
        if self.next == self.published {
            return;
        }
        self.ours().store(self.next, Ordering::Release);
        self.published = self.next;
        // The index must be visible before the flag is read: a peer that unmasks and then looks at the index finds it.
        fence(Ordering::SeqCst);
        if self.ring.flags().load(Ordering::Relaxed) & MASK_INT == 0 {
            self.event.kick();
        }
    }

    /// For traffic generators: fills every slot of a ring that is empty, taking `frames` in turn, and publishes none of it.
    /// [`republish`](Self::republish) then sends these frames again and again without touching them. Only a client can do
    /// this, since its buffers are its own, and only towards a peer that leaves descriptors as they are.
    ///
    /// # Errors
    /// As [`push`](Self::push); [`TxRefused::Full`] if the ring is not empty, [`TxRefused::TooLong`] for a frame that needs
    /// more than one slot.
    pub fn prefill(&mut self, frames: &[Lent<'_>]) -> Result<(), TxRefused> {
        let Some(buffers) = self.buffers else { return Err(TxRefused::Full) };
        if self.free() < self.size() {
            return Err(TxRefused::Full);
        }
        for frame in frames.iter().cycle().take(self.size()) {
            if frame.len() > buffers.size as usize {
                return Err(TxRefused::TooLong);
            }
            self.push(*frame)?;
        }
        self.next = self.published;
        Ok(())
    }

    /// For traffic generators: publishes up to `max` of the prefilled slots once more, and returns how many were free.
    #[inline]
    pub fn republish(&mut self, max: usize) -> usize {
        let count = self.free().min(max);
        self.next = self.next.wrapping_add(count as u16);
        self.publish();
        count
    }

    /// Free slots.
    pub fn free(&mut self) -> usize {
        usize::from(self.look())
    }

    /// Why the ring can no longer be used, if that is so: the connection should be closed. Everything is refused as
    /// [`TxRefused::Full`] from then on.
    pub fn fault(&self) -> Option<RingFault> {
        self.fault
    }

    /// Buffers posted outside the peer's regions, since the last call.
    pub fn take_bad_slots(&mut self) -> u64 {
        core::mem::take(&mut self.bad_slots)
    }

    /// Slots of the ring.
    pub fn size(&self) -> usize {
        usize::from(self.ring.size())
    }
}

/// Copies each frame into the buffer that the client posted next, as long as both are good and the frame fits.
#[inline(always)]
fn fill_posted(slots: Slots, view: View<'_>, from: u16, frames: &[Lent<'_>]) -> usize {
    for (done, &frame) in frames.iter().enumerate() {
        let index = from.wrapping_add(done as u16);
        let posted = slots.load(index);
        match view.resolve(posted) {
            Some(start) if fits(frame, posted.len) => {
                // SAFETY: as in `TxQueue::fill`.
                unsafe { Slot::new(start, posted.len) }.write(0, frame);
                slots.store_first(index, Descriptor { flags: 0, len: frame.len() as u32, ..posted });
            }
            _ => return done,
        }
    }
    frames.len()
}

/// The same into our own buffers.
#[inline(always)]
fn fill_own(slots: Slots, view: View<'_>, from: u16, buffers: Buffers, frames: &[Lent<'_>]) -> usize {
    for (done, &frame) in frames.iter().enumerate() {
        let index = from.wrapping_add(done as u16);
        let empty = buffers.descriptor(slots.slot(index));
        match view.resolve(empty) {
            Some(start) if fits(frame, empty.len) => {
                // SAFETY: as in `TxQueue::fill`.
                unsafe { Slot::new(start, empty.len) }.write(0, frame);
                slots.store(index, Descriptor { len: frame.len() as u32, ..empty });
            }
            _ => return done,
        }
    }
    frames.len()
}

#[inline(always)]
fn fits(frame: Lent<'_>, room: u32) -> bool {
    !frame.is_empty() && frame.len() <= room as usize
}

/// Where a piece begins, for [`FrameWriter`].
pub(super) type Start = NonNull<u8>;
