//! A lock-free ring of records of any length, for one producer and one consumer: frames between workers, frames in a pipe,
//! packets on their way to a capture. It drops when full; the producer is never held up by its consumer.
//!
//! A ring of bytes rather than of buffers: a 60-byte frame takes 88 bytes of it and a 64 KiB one 64 KiB, no pool has to be
//! sized, and nothing is allocated after the start. Records are contiguous, so what is consumed is lent straight from the ring.
//!
//! ```text
//! record   len: u32 (WRAP: skip to the start) · unused: u32 · tag: [u64; 2] · bytes · padding to 8
//! ```
//! The index protocol is [`cursor`]'s, where loom explores it.

use std::cell::UnsafeCell;

use memif::Lent;

use crate::sync::Arc;

pub mod cursor;
use cursor::{ConsumerCursor, ProducerCursor};

/// Whatever the producer wants to say about a record.
pub type Tag = [u64; 2];

const HEADER: usize = 24;
const ALIGN: usize = 8;
/// In place of a length: the rest of the ring up to its end is unused.
const WRAP: u32 = u32::MAX;

/// 64 bytes, so that the storage begins on a cache line.
#[repr(align(64))]
#[derive(Clone)]
struct Line(#[expect(dead_code, reason = "only its size and alignment matter")] [u8; 64]);

struct Storage(UnsafeCell<Box<[Line]>>);

// SAFETY: the cursors give each byte to one side at a time: the producer writes only what the consumer has released, and the
// consumer reads only what the producer has published (release/acquire on the indices).
unsafe impl Sync for Storage {}
// SAFETY: plain bytes.
unsafe impl Send for Storage {}

impl Storage {
    fn start(&self) -> *mut u8 {
        // SAFETY: only the box's pointer is read; the box itself is never replaced.
        unsafe { (*self.0.get()).as_ptr().cast_mut().cast() }
    }
}

/// The side that writes.
pub struct Producer {
    cursor: ProducerCursor,
    storage: Arc<Storage>,
    mask: usize,
}

/// The side that reads.
pub struct Consumer {
    cursor: ConsumerCursor,
    storage: Arc<Storage>,
    mask: usize,
}

/// Makes a ring of at least `bytes` bytes (rounded up to a power of two, at least 4 KiB).
pub fn ring(bytes: usize) -> (Producer, Consumer) {
    let size = bytes.next_power_of_two().max(4096);
    let storage = Arc::new(Storage(UnsafeCell::new(vec![Line([0; 64]); size / 64].into_boxed_slice())));
    let (producer, consumer) = cursor::cursors(size);
    let mask = size - 1;
    (
        Producer { cursor: producer, storage: Arc::clone(&storage), mask },
        Consumer { cursor: consumer, storage, mask },
    )
}

fn record_size(len: usize) -> usize {
    HEADER + len.next_multiple_of(ALIGN)
}

impl Producer {
    /// Copies a record of `len` bytes into the ring, made of `views` in order. The consumer sees it after
    /// [`Producer::publish`]. False, and nothing written, if there is no room.
    #[inline]
    pub fn push<'a>(&mut self, tag: Tag, len: usize, views: impl Iterator<Item = Lent<'a>>) -> bool {
        let need = record_size(len);
        let at = self.cursor.position() & self.mask;
        let to_end = self.mask + 1 - at;
        let skip = if to_end < need { to_end } else { 0 };
        if !self.cursor.has_room(skip + need) {
            return false;
        }
        if skip > 0 {
            self.write_header(at, WRAP, [0; 2]);
            self.cursor.advance(skip);
        }
        let at = if skip > 0 { 0 } else { at };
        self.write_header(at, len as u32, tag);
        self.write_bytes(at + HEADER, len, views);
        self.cursor.advance(need);
        true
    }

    fn write_header(&mut self, at: usize, len: u32, tag: Tag) {
        // SAFETY: the caller has room for a header at `at`, or, for WRAP, at least ALIGN bytes up to the end of the storage
        // (all sizes are multiples of it); the cursor says that the consumer has released them.
        unsafe {
            let to = self.storage.start().add(at);
            to.cast::<u32>().write(len);
            if len != WRAP {
                to.add(8).cast::<Tag>().write(tag);
            }
        }
    }

    fn write_bytes<'a>(&mut self, at: usize, len: usize, views: impl Iterator<Item = Lent<'a>>) {
        // SAFETY: `len` bytes at `at` are inside the storage and the producer's own: `has_room` was asked for them.
        let to = unsafe { std::slice::from_raw_parts_mut(self.storage.start().add(at), len) };
        let mut written = 0;
        for view in views {
            written += view.copy_to(&mut to[written..]);
        }
    }

    /// Shows the consumer everything pushed so far.
    #[inline]
    pub fn publish(&mut self) {
        self.cursor.publish();
    }

    /// True if the consumer is gone: nobody will read what is pushed.
    pub fn is_abandoned(&self) -> bool {
        Arc::strong_count(&self.storage) == 1
    }
}

impl Consumer {
    /// Lends the next record, or `None` if no more are published. What was lent stays until [`Consumer::release`].
    ///
    /// Borrows for the caller's `'a` rather than from `&mut self`, so that a whole burst can be lent.
    ///
    /// # Safety
    /// No record may be used after the next call of [`Consumer::release`], or after the consumer is dropped.
    #[inline]
    pub unsafe fn lend<'a>(&mut self) -> Option<(Tag, Lent<'a>)> {
        loop {
            if self.cursor.available() == 0 {
                return None;
            }
            let at = self.cursor.position() & self.mask;
            // SAFETY: at least one whole record, which begins with a header, is published at `at`.
            let start = unsafe { self.storage.start().add(at) };
            // SAFETY: every record, also a WRAP, is at least ALIGN bytes and 8-aligned.
            let len = unsafe { start.cast::<u32>().read() };
            if len == WRAP {
                self.cursor.advance(self.mask + 1 - at);
                continue;
            }
            // SAFETY: a record that is no WRAP has a whole header.
            let tag = unsafe { start.add(8).cast::<Tag>().read() };
            // SAFETY: the record's bytes are published and stay untouched until `release`; not null, being inside a box.
            let view = unsafe { Lent::new(std::ptr::NonNull::new_unchecked(start.add(HEADER)), len) };
            self.cursor.advance(record_size(len as usize));
            return Some((tag, view));
        }
    }

    /// Passes each published record to `use_it` and releases them all. Returns how many there were.
    pub fn drain(&mut self, mut use_it: impl FnMut(Tag, Lent<'_>)) -> usize {
        let mut records = 0;
        // SAFETY: each record is used before `release`, and does not leave this function.
        while let Some((tag, view)) = unsafe { self.lend() } {
            use_it(tag, view);
            records += 1;
        }
        self.release();
        records
    }

    /// Gives all lent records' room back to the producer.
    #[inline]
    pub fn release(&mut self) {
        self.cursor.release();
    }

    /// True if nothing is published beyond what was lent.
    pub fn is_empty(&mut self) -> bool {
        self.cursor.available() == 0
    }

    /// True if the producer is gone. What it published before can still be read.
    pub fn is_abandoned(&self) -> bool {
        Arc::strong_count(&self.storage) == 1
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn push(producer: &mut Producer, tag: u64, bytes: &[u8]) -> bool {
        producer.push([tag, 0], bytes.len(), std::iter::once(Lent::from(bytes)))
    }

    #[test]
    fn records_of_all_lengths_come_out_as_they_went_in_across_many_wraps() {
        let (mut producer, mut consumer) = ring(4096);
        let source: Vec<u8> = (0..3000u32).map(|i| (i * 7 % 251) as u8).collect();
        let mut expected = std::collections::VecDeque::new();
        for round in 0..5000u64 {
            let len = (round * 131 % 1800) as usize;
            if push(&mut producer, round, &source[..len]) {
                expected.push_back((round, len));
            }
            producer.publish();
            if round % 3 == 0 {
                consumer.drain(|tag, view| {
                    let (round, len) = expected.pop_front().unwrap();
                    assert_eq!((tag[0], view.to_vec()), (round, source[..len].to_vec()));
                });
            }
        }
    }

    #[test]
    fn a_full_ring_refuses_and_takes_again_after_release() {
        let (mut producer, mut consumer) = ring(4096);
        let bytes = [5; 1000];
        let mut pushed = 0;
        while push(&mut producer, pushed, &bytes) {
            pushed += 1;
        }
        assert_eq!(pushed, 4);
        assert_eq!(consumer.drain(|_, _| ()), 0, "nothing is visible before publish");
        producer.publish();
        assert_eq!(consumer.drain(|_, _| ()), 4);
        assert!(push(&mut producer, 9, &bytes));
    }

    #[test]
    fn a_record_larger_than_the_ring_is_refused() {
        let (mut producer, _consumer) = ring(4096);
        assert!(!push(&mut producer, 0, &[0; 5000]));
        assert!(push(&mut producer, 0, &[0; 100]), "and the ring is none the worse");
    }

    #[test]
    fn a_consumer_sees_that_its_producer_is_gone() {
        let (mut producer, mut consumer) = ring(4096);
        push(&mut producer, 1, b"last words");
        producer.publish();
        assert!(!consumer.is_abandoned());
        drop(producer);
        assert!(consumer.is_abandoned());
        assert_eq!(consumer.drain(|_, view| assert_eq!(view.to_vec(), b"last words")), 1);
    }

    #[test]
    fn two_threads_lose_and_reorder_nothing() {
        let (mut producer, mut consumer) = ring(1 << 14);
        let count = 200_000u64;
        let writer = std::thread::spawn(move || {
            for i in 0..count {
                let bytes = [i as u8; 120];
                while !push(&mut producer, i, &bytes[..(i % 120) as usize]) {
                    producer.publish();
                    std::thread::yield_now();
                }
                if i % 16 == 0 {
                    producer.publish();
                }
            }
            producer.publish();
        });
        let mut next = 0;
        while next < count {
            let n = consumer.drain(|tag, view| {
                assert_eq!((tag[0], view.len() as u64), (next, next % 120));
                assert!(view.to_vec().iter().all(|b| *b == next as u8));
                next += 1;
            });
            if n == 0 {
                std::thread::yield_now();
            }
        }
        writer.join().unwrap();
    }
}
