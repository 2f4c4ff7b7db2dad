//! The four rings of a socket, shared with the kernel: one side writes entries and its index, the other reads them and moves its own.
//! Our own index is kept here and never read back; the kernel's is checked each time it is read.

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::ledger::{BadRing, filled};
use super::umem::Mapping;

/// `XDP_RING_NEED_WAKEUP`.
const NEED_WAKEUP: u32 = 1;

/// Where in its mapping a ring has its parts, in bytes (`struct xdp_ring_offset`).
#[derive(Debug, Clone, Copy)]
pub struct Offsets {
    /// The producer's index.
    pub producer: u64,
    /// The consumer's.
    pub consumer: u64,
    /// The kernel's flags.
    pub flags: u64,
    /// The entries.
    pub entries: u64,
}

/// A ring whose entries are `T`s: plain numbers, any bits of which are one.
struct Ring<T> {
    memory: Arc<Mapping>,
    offsets: Offsets,
    size: u32,
    entry: PhantomData<T>,
}

/// The offsets of a ring lie outside its mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the kernel's ring offsets lie outside the ring")]
pub struct BadOffsets;

impl<T: Copy> Ring<T> {
    fn new(memory: Arc<Mapping>, offsets: Offsets, size: u32) -> Result<Self, BadOffsets> {
        let len = memory.len() as u64;
        let inside = |offset: u64, bytes: u64, align: u64| {
            offset.is_multiple_of(align) && offset.checked_add(bytes).is_some_and(|end| end <= len)
        };
        let index = |offset| inside(offset, 4, 4);
        let entries = u64::from(size) * size_of::<T>() as u64;
        let good = size.is_power_of_two()
            && index(offsets.producer)
            && index(offsets.consumer)
            && index(offsets.flags)
            && inside(offsets.entries, entries, align_of::<T>() as u64);
        if good { Ok(Self { memory, offsets, size, entry: PhantomData }) } else { Err(BadOffsets) }
    }

    #[inline]
    fn word(&self, offset: u64) -> &AtomicU32 {
        // SAFETY: `new` checked that the word is inside the mapping and aligned; the kernel writes it as an atomic, too.
        unsafe { self.memory.start().add(offset as usize).cast().as_ref() }
    }

    #[inline]
    fn entry(&self, index: u32) -> NonNull<T> {
        let nth = (index & (self.size - 1)) as usize;
        // SAFETY: `new` checked that `size` entries are inside the mapping, and size is a power of two.
        unsafe { self.memory.start().add(self.offsets.entries as usize).cast::<T>().add(nth) }
    }
}

/// A ring that the kernel fills: receive and completion.
pub struct Consumer<T> {
    ring: Ring<T>,
    next: u32,
    end: u32,
}

impl<T: Copy> Consumer<T> {
    /// The ring in this memory. It must be new: indexes are taken to be zero.
    ///
    /// # Errors
    /// [`BadOffsets`].
    pub fn new(memory: Arc<Mapping>, offsets: Offsets, size: u32) -> Result<Self, BadOffsets> {
        Ok(Self { ring: Ring::new(memory, offsets, size)?, next: 0, end: 0 })
    }

    /// Entries that have not been taken. Looks at the kernel's index only if there is none left of the last look.
    ///
    /// # Errors
    /// [`BadRing::Index`].
    #[inline]
    pub fn available(&mut self) -> Result<u32, BadRing> {
        if self.next == self.end { self.look() } else { Ok(self.end.wrapping_sub(self.next)) }
    }

    /// As [`Consumer::available`], and looks in any case.
    ///
    /// # Errors
    /// [`BadRing::Index`].
    #[inline]
    pub fn look(&mut self) -> Result<u32, BadRing> {
        let end = self.ring.word(self.ring.offsets.producer).load(Ordering::Acquire);
        let available = filled(self.ring.size, end, self.next)?;
        self.end = end;
        Ok(available)
    }

    /// The `nth` entry from the next one on; read once.
    #[inline]
    pub fn read(&self, nth: u32) -> T {
        // SAFETY: inside the ring; the kernel may write it, so it is read as volatile, and T is good with any bits.
        unsafe { self.ring.entry(self.next.wrapping_add(nth)).read_volatile() }
    }

    /// Takes `n` entries, without giving them back yet.
    #[inline]
    pub fn take(&mut self, n: u32) {
        self.next = self.next.wrapping_add(n);
    }

    /// Gives all that was taken back to the kernel to fill again.
    #[inline]
    pub fn release(&mut self) {
        self.ring.word(self.ring.offsets.consumer).store(self.next, Ordering::Release);
    }
}

/// A ring that we fill: fill and transmit.
pub struct Producer<T> {
    ring: Ring<T>,
    next: u32,
    consumed: u32,
}

impl<T: Copy> Producer<T> {
    /// As [`Consumer::new`].
    ///
    /// # Errors
    /// [`BadOffsets`].
    pub fn new(memory: Arc<Mapping>, offsets: Offsets, size: u32) -> Result<Self, BadOffsets> {
        Ok(Self { ring: Ring::new(memory, offsets, size)?, next: 0, consumed: 0 })
    }

    /// Entries that can be written. Looks at the kernel's index only if the last look does not vouch for `wanted`.
    ///
    /// # Errors
    /// [`BadRing::Index`].
    #[inline]
    pub fn room(&mut self, wanted: u32) -> Result<u32, BadRing> {
        let known = self.ring.size - self.next.wrapping_sub(self.consumed);
        if known >= wanted { Ok(known) } else { Ok(self.ring.size - self.waiting()?) }
    }

    /// Entries that the kernel has not taken.
    ///
    /// # Errors
    /// [`BadRing::Index`].
    #[inline]
    pub fn waiting(&mut self) -> Result<u32, BadRing> {
        let consumed = self.ring.word(self.ring.offsets.consumer).load(Ordering::Acquire);
        let waiting = filled(self.ring.size, self.next, consumed)?;
        self.consumed = consumed;
        Ok(waiting)
    }

    /// Writes the next entry; there must be room for it. The kernel does not see it yet.
    #[inline]
    pub fn push(&mut self, entry: T) {
        debug_assert!(self.next.wrapping_sub(self.consumed) < self.ring.size);
        // SAFETY: inside the ring; the slot is ours until `publish`.
        unsafe { self.ring.entry(self.next).write_volatile(entry) };
        self.next = self.next.wrapping_add(1);
    }

    /// Shows the kernel all entries.
    #[inline]
    pub fn publish(&mut self) {
        self.ring.word(self.ring.offsets.producer).store(self.next, Ordering::Release);
    }

    /// Whether the kernel looks at this ring only if it is called.
    #[inline]
    pub fn needs_wakeup(&self) -> bool {
        self.ring.word(self.ring.offsets.flags).load(Ordering::Relaxed) & NEED_WAKEUP != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Offsets = Offsets { producer: 0, consumer: 64, flags: 128, entries: 192 };

    fn memory() -> Arc<Mapping> {
        Arc::new(Mapping::anonymous(4096).unwrap())
    }

    fn set(memory: &Mapping, offset: usize, value: u32) {
        // SAFETY: inside the mapping and aligned.
        unsafe { memory.start().add(offset).cast::<u32>().write_volatile(value) }
    }

    fn get(memory: &Mapping, offset: usize) -> u32 {
        // SAFETY: inside the mapping and aligned.
        unsafe { memory.start().add(offset).cast::<u32>().read_volatile() }
    }

    #[test]
    fn entries_come_out_as_the_other_side_put_them_in_round_and_round() {
        let memory = memory();
        let mut ours = Producer::<u64>::new(Arc::clone(&memory), AT, 4).unwrap();
        let mut kernels = Consumer::<u64>::new(Arc::clone(&memory), AT, 4).unwrap();
        for round in 0..10u64 {
            assert_eq!(ours.room(3), Ok(4));
            (0..3).for_each(|i| ours.push(round * 3 + i));
            assert_eq!(kernels.available(), Ok(0), "not before it is published");
            ours.publish();
            assert_eq!(kernels.available(), Ok(3));
            assert_eq!((0..3).map(|i| kernels.read(i)).collect::<Vec<_>>(), [0, 1, 2].map(|i| round * 3 + i));
            kernels.take(3);
            assert_eq!(ours.waiting(), Ok(3));
            assert_eq!(ours.room(2), Ok(1));
            kernels.release();
        }
    }

    #[test]
    fn indexes_that_cannot_be_are_refused() {
        let memory = memory();
        let mut rx = Consumer::<u64>::new(Arc::clone(&memory), AT, 4).unwrap();
        set(&memory, 0, 5);
        assert_eq!(rx.available(), Err(BadRing::Index { size: 4, filled: 5 }));
        let mut tx = Producer::<u64>::new(Arc::clone(&memory), AT, 4).unwrap();
        set(&memory, 64, 1);
        assert_eq!(tx.waiting(), Err(BadRing::Index { size: 4, filled: u32::MAX }));
        assert_eq!(get(&memory, 64), 1, "nobody wrote where the kernel writes");
    }

    #[test]
    fn rings_outside_their_mapping_are_refused() {
        let memory = memory();
        for offsets in [
            Offsets { producer: 4096, ..AT },
            Offsets { producer: 2, ..AT },
            Offsets { entries: 4096 - 24, ..AT },
            Offsets { entries: u64::MAX - 7, ..AT },
            Offsets { flags: u64::MAX, ..AT },
        ] {
            assert!(Consumer::<u64>::new(Arc::clone(&memory), offsets, 4).is_err(), "{offsets:?}");
        }
        assert!(Consumer::<u64>::new(Arc::clone(&memory), AT, 3).is_err());
    }

    #[test]
    fn the_kernels_wish_to_be_called_is_seen() {
        let memory = memory();
        let tx = Producer::<u64>::new(Arc::clone(&memory), AT, 4).unwrap();
        assert!(!tx.needs_wakeup());
        set(&memory, 128, 1);
        assert!(tx.needs_wakeup());
    }
}
