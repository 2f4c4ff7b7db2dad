//! The index protocol of a single-producer, single-consumer ring.
//!
//! Two positions that only grow; the ring's slot is the position modulo the capacity. Each side owns one, keeps it privately,
//! and publishes it once per burst; each keeps a copy of the other's last published position and looks again only when that
//! copy says full or empty. So a burst costs one cache line transfer per side.
//!
//! | | writes | reads |
//! |---|---|---|
//! | producer | `head`, release, after the records | `tail`, acquire, before it writes over old records |
//! | consumer | `tail`, release, after its last read | `head`, acquire, before it reads new records |

use crossbeam::utils::CachePadded;

use crate::sync::{Arc, AtomicUsize, Ordering};

struct Positions {
    head: CachePadded<AtomicUsize>,
    tail: CachePadded<AtomicUsize>,
}

/// The producer's end.
pub struct ProducerCursor {
    shared: Arc<Positions>,
    capacity: usize,
    head: usize,
    tail_seen: usize,
}

/// The consumer's end.
pub struct ConsumerCursor {
    shared: Arc<Positions>,
    tail: usize,
    head_seen: usize,
}

/// The two ends of an empty ring of `capacity` units. The capacity must be a power of two, so that positions may wrap.
pub fn cursors(capacity: usize) -> (ProducerCursor, ConsumerCursor) {
    debug_assert!(capacity.is_power_of_two());
    let shared = Arc::new(Positions {
        head: CachePadded::new(AtomicUsize::new(0)),
        tail: CachePadded::new(AtomicUsize::new(0)),
    });
    (
        ProducerCursor { shared: Arc::clone(&shared), capacity, head: 0, tail_seen: 0 },
        ConsumerCursor { shared, tail: 0, head_seen: 0 },
    )
}

impl ProducerCursor {
    /// Where the next unit is written.
    #[inline]
    pub fn position(&self) -> usize {
        self.head
    }

    /// True if `units` more can be written.
    #[inline]
    pub fn has_room(&mut self, units: usize) -> bool {
        if self.capacity - self.head.wrapping_sub(self.tail_seen) >= units {
            return true;
        }
        self.tail_seen = self.shared.tail.load(Ordering::Acquire);
        self.capacity - self.head.wrapping_sub(self.tail_seen) >= units
    }

    /// Says that `units` were written.
    #[inline]
    pub fn advance(&mut self, units: usize) {
        self.head = self.head.wrapping_add(units);
    }

    /// Shows everything written to the consumer.
    #[inline]
    pub fn publish(&mut self) {
        self.shared.head.store(self.head, Ordering::Release);
    }
}

impl ConsumerCursor {
    /// Where the next unit is read.
    #[inline]
    pub fn position(&self) -> usize {
        self.tail
    }

    /// Units that are published and not yet read.
    #[inline]
    pub fn available(&mut self) -> usize {
        if self.head_seen == self.tail {
            self.head_seen = self.shared.head.load(Ordering::Acquire);
        }
        self.head_seen.wrapping_sub(self.tail)
    }

    /// Says that `units` were read; the producer learns of it with [`ConsumerCursor::release`].
    #[inline]
    pub fn advance(&mut self, units: usize) {
        self.tail = self.tail.wrapping_add(units);
    }

    /// Gives everything read back to the producer.
    #[inline]
    pub fn release(&mut self) {
        self.shared.tail.store(self.tail, Ordering::Release);
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::cell::UnsafeCell;

    struct Slots<const N: usize>([UnsafeCell<u64>; N]);
    // SAFETY: whether the cursors really give each slot to one side at a time is what loom checks here.
    unsafe impl<const N: usize> Sync for Slots<N> {}
    // SAFETY: as above.
    unsafe impl<const N: usize> Send for Slots<N> {}

    /// Writes the next number if there is room, as a packet path does: it never waits. Returns the last number written.
    fn offer<const N: usize>(producer: &mut ProducerCursor, slots: &Slots<N>, last: u64) -> u64 {
        if !producer.has_room(1) {
            return last;
        }
        // SAFETY: the slot is the producer's; loom reports it if not.
        slots.0[producer.position() % N].with_mut(|slot| unsafe { *slot = last + 1 });
        producer.advance(1);
        last + 1
    }

    /// Reads all that is published and checks that it follows `last`. Returns the last number read.
    fn poll<const N: usize>(consumer: &mut ConsumerCursor, slots: &Slots<N>, mut last: u64) -> u64 {
        while consumer.available() > 0 {
            // SAFETY: the slot is the consumer's; loom reports it if not.
            let got = slots.0[consumer.position() % N].with(|slot| unsafe { *slot });
            last += 1;
            assert_eq!(got, last);
            consumer.advance(1);
        }
        consumer.release();
        last
    }

    /// Every interleaving of a producer that offers `count` numbers to `N` slots, in bursts of `burst`, and a consumer that
    /// polls `polls` times meanwhile and once at the end.
    fn explore<const N: usize>(count: u64, burst: u64, polls: u32) {
        loom::model(move || {
            let slots = Arc::new(Slots::<N>(std::array::from_fn(|_| UnsafeCell::new(0))));
            let (mut producer, mut consumer) = cursors(N);
            let theirs = Arc::clone(&slots);
            let writer = loom::thread::spawn(move || {
                let mut last = 0;
                for i in 1..=count {
                    last = offer(&mut producer, &theirs, last);
                    if i % burst == 0 {
                        producer.publish();
                    }
                }
                producer.publish();
                last
            });
            let seen = (0..polls).fold(0, |last, _| poll(&mut consumer, &slots, last));
            let sent = writer.join().unwrap();
            assert_eq!(poll(&mut consumer, &slots, seen), sent, "nothing published is lost");
        });
    }

    #[test]
    fn two_slots_four_numbers_one_by_one() {
        explore::<2>(4, 1, 3);
    }

    #[test]
    fn two_slots_five_numbers_in_bursts_of_two() {
        explore::<2>(5, 2, 3);
    }

    #[test]
    fn four_slots_seven_numbers_in_bursts_of_three() {
        explore::<4>(7, 3, 2);
    }
}
