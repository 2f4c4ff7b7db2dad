//! Swapping an immutable value under readers that never wait: quiescent-state reclamation, for a few readers that each pass a
//! point at which they hold nothing.
//!
//! * A [`Reader`] calls [`Reader::load`] once per turn. That is its quiescent point: `&mut self` proves that no earlier loan is
//!   alive. It announces the generation that it saw *before* it read the pointer, so what it holds is that old or newer.
//! * The [`Publisher`] swaps the pointer, raises the generation, and frees a retired value once every reader has announced a
//!   later generation than the value's own.
//!
//! A reader that never comes back keeps old values alive; it never makes a newer one disappear. Explored by loom (`tests` below).

use std::marker::PhantomData;
use std::sync::Mutex;

use crossbeam::utils::CachePadded;

use crate::sync::{Arc, AtomicPtr, AtomicU64, Ordering};

/// Has seen nothing yet.
const NEVER: u64 = 0;

struct Shared<T> {
    current: AtomicPtr<T>,
    generation: AtomicU64,
    seen: Mutex<Vec<Arc<CachePadded<AtomicU64>>>>,
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // SAFETY: `current` always holds a pointer from `Box::into_raw`; with the last owner of `Shared` gone, nobody reads it.
        drop(unsafe { Box::from_raw(self.current.load(Ordering::Acquire)) });
    }
}

/// The side that replaces the value.
pub struct Publisher<T> {
    shared: Arc<Shared<T>>,
    /// Values out of use, each with the generation that replaced it.
    retired: Vec<(u64, Box<T>)>,
}

/// The side that uses it; one per worker.
pub struct Reader<T> {
    shared: Arc<Shared<T>>,
    seen: Arc<CachePadded<AtomicU64>>,
    announced: u64,
    not_sync: PhantomData<std::cell::Cell<()>>,
}

impl<T: Send + Sync> Publisher<T> {
    /// Publishes a first value.
    pub fn new(value: T) -> Self {
        let current = AtomicPtr::new(Box::into_raw(Box::new(value)));
        let shared = Shared { current, generation: AtomicU64::new(1), seen: Mutex::new(Vec::new()) };
        Self { shared: Arc::new(shared), retired: Vec::new() }
    }

    /// Makes another reader.
    pub fn reader(&self) -> Reader<T> {
        let seen = Arc::new(CachePadded::new(AtomicU64::new(NEVER)));
        lock(&self.shared.seen).push(Arc::clone(&seen));
        Reader { shared: Arc::clone(&self.shared), seen, announced: NEVER, not_sync: PhantomData }
    }

    /// Replaces the value. Readers see the new one from their next turn on; the old one is kept until they do.
    pub fn publish(&mut self, value: T) {
        let old = self.shared.current.swap(Box::into_raw(Box::new(value)), Ordering::AcqRel);
        let generation = self.shared.generation.load(Ordering::Relaxed) + 1;
        self.shared.generation.store(generation, Ordering::Release);
        // SAFETY: `old` came from `Box::into_raw` and is no longer reachable for a reader's next load. Readers that still hold
        // it are waited for: the box is kept in `retired` and not dropped before `reclaim` finds that all have moved on. It is
        // not touched meanwhile.
        self.retired.push((generation, unsafe { Box::from_raw(old) }));
        self.reclaim();
    }

    /// Frees what no reader can hold any more. True if nothing retired is left: all readers use the newest value.
    pub fn reclaim(&mut self) -> bool {
        let oldest = self.oldest_seen();
        self.retired.retain(|(replaced_by, _)| *replaced_by > oldest);
        self.retired.is_empty()
    }

    /// The oldest generation that some reader may still be using.
    fn oldest_seen(&self) -> u64 {
        let mut seen = lock(&self.shared.seen);
        // A reader that is gone holds nothing; its announcement has one owner left, this list.
        seen.retain(|slot| Arc::strong_count(slot) > 1);
        seen.iter().map(|slot| slot.load(Ordering::Acquire)).min().unwrap_or(u64::MAX)
    }
}

impl<T> Reader<T> {
    /// The newest value, to be used until the next call.
    #[inline]
    pub fn load(&mut self) -> &T {
        // Generation first: the pointer read after it is then of this generation or a later one.
        let generation = self.shared.generation.load(Ordering::Acquire);
        if generation != self.announced {
            self.announced = generation;
            self.seen.store(generation, Ordering::Release);
        }
        // SAFETY: the pointer is from `Box::into_raw`. Its value is freed only after this reader announces a later generation,
        // which happens in the next `load`, and `&mut self` ends this loan before that.
        unsafe { &*self.shared.current.load(Ordering::Acquire) }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // The list is consistent after every operation on it, so a panic elsewhere does not spoil it.
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    struct Counted<'a>(u64, &'a AtomicUsize);
    impl Drop for Counted<'_> {
        fn drop(&mut self) {
            self.1.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn an_old_value_lives_until_every_reader_has_loaded_again() {
        let dropped = AtomicUsize::new(0);
        let mut publisher = Publisher::new(Counted(1, &dropped));
        let (mut a, mut b) = (publisher.reader(), publisher.reader());
        assert_eq!((a.load().0, b.load().0), (1, 1));
        publisher.publish(Counted(2, &dropped));
        assert_eq!(a.load().0, 2);
        assert!(!publisher.reclaim());
        assert_eq!(dropped.load(Ordering::SeqCst), 0, "b may still hold the first");
        assert_eq!(b.load().0, 2);
        assert!(publisher.reclaim());
        assert_eq!(dropped.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_reader_that_is_gone_keeps_nothing_alive() {
        let dropped = AtomicUsize::new(0);
        let mut publisher = Publisher::new(Counted(1, &dropped));
        let mut reader = publisher.reader();
        reader.load();
        publisher.publish(Counted(2, &dropped));
        drop(reader);
        assert!(publisher.reclaim());
        drop(publisher);
        assert_eq!(dropped.load(Ordering::SeqCst), 2);
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;

    /// A value that says whether it was freed: loom's own `Arc` panics on use after the last drop.
    struct Checked(loom::cell::UnsafeCell<u64>);
    // SAFETY: written only before publication and in `drop`; loom reports any access that races with either.
    unsafe impl Sync for Checked {}
    impl Drop for Checked {
        fn drop(&mut self) {
            // SAFETY: exclusive in drop; under loom a reader's concurrent access is reported as a race.
            self.0.with_mut(|value| unsafe { *value = u64::MAX });
        }
    }

    #[test]
    fn no_reader_ever_sees_a_freed_value() {
        loom::model(|| {
            let mut publisher = Publisher::new(Checked(loom::cell::UnsafeCell::new(1)));
            let mut reader = publisher.reader();
            let worker = loom::thread::spawn(move || {
                let mut last = 0;
                for _ in 0..2 {
                    // SAFETY: nobody writes a published value; loom reports it if drop does.
                    let value = reader.load().0.with(|value| unsafe { *value });
                    assert!(value >= last && value <= 2, "values only go forward: {last} then {value}");
                    last = value;
                }
            });
            publisher.publish(Checked(loom::cell::UnsafeCell::new(2)));
            publisher.reclaim();
            worker.join().unwrap();
            assert!(publisher.reclaim());
        });
    }
}
