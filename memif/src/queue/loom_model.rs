//! The queues themselves under loom, which tries every order in which two threads' accesses to the ring can take effect.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p memif --lib --release loom_model`. The indices, flags and descriptors are loom's; buffers
//! are memory as ever, so what is checked of a frame is its descriptor's length.

use std::sync::Arc as StdArc;

use loom::sync::Arc;
use loom::thread;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::event::EventFd;
use super::memory::Buffers;
use super::{FrameSink, RxQueue, TxQueue};
use crate::bytes::Lent;
use crate::region::{HugePages, Region};
use crate::ring::{AtomicU16, AtomicU64, Direction, Ring, RingLocation, RingSpec};

const SLOTS: usize = 2;

/// The words of one ring, and two rings over them: one for each end.
struct Words {
    header: [AtomicU16; 3],
    slots: [AtomicU64; 2 * SLOTS],
}

fn words() -> Arc<Words> {
    Arc::new(Words {
        header: core::array::from_fn(|_| AtomicU16::new(0)),
        slots: core::array::from_fn(|_| AtomicU64::new(0)),
    })
}

struct Ends {
    tx: TxQueue,
    rx: RxQueue,
}

fn ends(words: &Words, region: &StdArc<Region>, direction: Direction) -> Ends {
    let regions: StdArc<[StdArc<Region>]> = [StdArc::clone(region)].into();
    let ring = || Ring::over(&words.header, &words.slots, StdArc::clone(region));
    let buffers = Buffers { region: 0, offset: 0, size: 64, stride: 64 };
    let wrap = |event| {
        let location = RingLocation { region: 0, offset: 0, log2_size: 1 };
        EventFd::new(RingSpec { direction, location, event }).expect("an eventfd")
    };
    let event = eventfd(0, EventfdFlags::NONBLOCK).expect("eventfd");
    let (here, there) = (wrap(event.try_clone().expect("dup")), wrap(event));
    match direction {
        Direction::ClientToServer => Ends {
            rx: RxQueue::server(ring(), &regions, here),
            tx: TxQueue::client(ring(), &regions, there, buffers),
        },
        Direction::ServerToClient => Ends {
            tx: TxQueue::server(ring(), &regions, here),
            rx: RxQueue::client(ring(), &regions, there, buffers),
        },
    }
}

struct Lengths(Vec<usize>);

impl<'a> FrameSink<'a> for Lengths {
    fn room(&self) -> usize {
        1
    }

    fn frame(&mut self, frame: Lent<'a>) {
        self.0.push(frame.len());
    }

    fn chain(&mut self, segments: &[Lent<'a>], _: usize) {
        self.0.extend(segments.iter().map(Lent::len));
    }
}

/// Runs `check` in every order that differs by at most three preemptions.
fn explore(direction: Direction, check: impl Fn(Ends) + Sync + Send + 'static) {
    let region = Region::create(4096, HugePages::Never).expect("memory").0;
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || {
        let words = words();
        check(ends(&words, &region, direction));
    });
}

/// Three frames through a ring of two: the third waits for the first to be released.
fn frames_arrive_in_order(direction: Direction) {
    explore(direction, |Ends { mut tx, mut rx }| {
        let sender = thread::spawn(move || {
            for len in 1..=3 {
                while tx.push(Lent::from(&[0; 3][..len])).is_err() {
                    thread::yield_now();
                }
                tx.publish();
            }
            assert_eq!(tx.fault(), None);
        });
        let mut got = Lengths(Vec::new());
        while got.0.len() < 3 {
            if rx.receive(&mut got).expect("a sound ring") == 0 {
                thread::yield_now();
            }
            rx.release();
        }
        sender.join().expect("sender");
        assert_eq!(got.0, [1, 2, 3]);
    });
}

/// A receiver that unmasks, looks once more and then sleeps has either seen the frame or is woken.
fn no_wakeup_is_lost(direction: Direction) {
    explore(direction, |Ends { mut tx, rx }| {
        let sender = thread::spawn(move || {
            tx.push(Lent::from(&[0; 1][..])).expect("room");
            tx.publish();
        });
        rx.unmask();
        let seen = rx.backlog() > 0;
        sender.join().expect("sender");
        let mut event = [PollFd::from_borrowed_fd(rx.event_fd(), PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let woken = poll(&mut event, Some(&now)).expect("poll") == 1;
        assert!(seen || woken, "the receiver would sleep over a frame");
    });
}

#[test]
fn frames_to_the_server_arrive_in_order() {
    frames_arrive_in_order(Direction::ClientToServer);
}

#[test]
fn frames_to_the_client_arrive_in_order() {
    frames_arrive_in_order(Direction::ServerToClient);
}

#[test]
fn no_wakeup_of_a_server_is_lost() {
    no_wakeup_is_lost(Direction::ClientToServer);
}

#[test]
fn no_wakeup_of_a_client_is_lost() {
    no_wakeup_is_lost(Direction::ServerToClient);
}
