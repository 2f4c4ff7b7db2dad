//! Adaptive mode: spin while there is work, sleep when there is none.
//!
//! The order that loses no wake-up: ask every port for wake-ups, look at all of them once more, then sleep. Some memif peers
//! have no fence between publishing and looking at our request (reference/dataplane.md §1.4), so their first frame may come
//! without a wake-up: the first sleep is therefore short, and every sleep is bounded.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll;

use super::schedule::Schedule;
use crate::doorbell::Doorbell;
use crate::port::Rx;

/// Spinning without work before the first sleep: longer than the gap between bursts of a busy peer, far shorter than what a
/// person or a scheduler notices.
const SPIN: Duration = Duration::from_micros(50);
/// Turns between two looks at the clock.
const TURNS_PER_LOOK: u32 = 32;
/// First sleep after work: what a lost wake-up may cost.
const SLEEP_MIN: Duration = Duration::from_millis(1);
/// Longest sleep: what the agent's and the clock's needs may wait.
const SLEEP_MAX: Duration = Duration::from_millis(10);
/// Turns with frames after a wake-up, until the worker counts as busy and wake-ups as a waste.
const BUSY_TURNS: u32 = 64;

pub(super) struct Sleeper {
    epoll: OwnedFd,
    bell: Doorbell,
    idle_turns: u32,
    idle_since: Option<Instant>,
    busy_turns: u32,
    armed: bool,
    next_sleep: Duration,
}

impl Sleeper {
    pub fn new(bell: Doorbell) -> std::io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, bell.as_fd(), epoll::EventData::new_u64(0), edge())?;
        Ok(Self {
            epoll,
            bell,
            idle_turns: 0,
            idle_since: None,
            busy_turns: 0,
            armed: false,
            next_sleep: SLEEP_MIN,
        })
    }

    /// Watches a receiver's descriptor. Without one, or if the kernel refuses it, the bound of the sleep applies.
    pub fn watch(&mut self, rx: &dyn Rx) {
        if let Some(fd) = rx.wake_fd() {
            let _ = epoll::add(&self.epoll, fd, epoll::EventData::new_u64(1), edge());
        }
        self.armed = false;
    }

    pub fn forget(&mut self, rx: &dyn Rx) {
        if let Some(fd) = rx.wake_fd() {
            let _ = epoll::delete(&self.epoll, fd);
        }
    }

    /// Notes what a turn moved, and says whether it is time to sleep.
    #[inline]
    pub fn should_sleep(&mut self, moved: usize, now: impl Fn() -> Instant) -> bool {
        if moved > 0 {
            self.idle_turns = 0;
            self.idle_since = None;
            self.next_sleep = SLEEP_MIN;
            self.busy_turns += 1;
            return false;
        }
        self.idle_turns += 1;
        if !self.idle_turns.is_multiple_of(TURNS_PER_LOOK) {
            std::hint::spin_loop();
            return false;
        }
        // Where the cores are shared, somebody else may be waiting for this one, and what we wait for may be that somebody's.
        std::thread::yield_now();
        let now = now();
        let since = *self.idle_since.get_or_insert(now);
        now.duration_since(since) >= SPIN
    }

    /// Asks everybody for wake-ups, unless that is still in force.
    pub fn lie_down(&mut self, schedule: &mut Schedule) {
        self.bell.lie_down();
        if !self.armed {
            schedule.receivers().for_each(|rx| rx.arm());
            self.armed = true;
            self.next_sleep = SLEEP_MIN;
        }
        self.busy_turns = 0;
    }

    /// Sleeps until a wake-up or the bound.
    pub fn wait(&mut self) {
        let timeout = rustix::event::Timespec { tv_sec: 0, tv_nsec: self.next_sleep.as_nanos() as i64 };
        let mut events = [const { std::mem::MaybeUninit::uninit() }; 8];
        // An error (a signal) only ends the sleep early.
        let _ = epoll::wait(&self.epoll, &mut events, Some(&timeout));
        self.next_sleep = (self.next_sleep * 2).min(SLEEP_MAX);
    }

    /// The worker turns again; senders inside the process need not ring.
    pub fn get_up(&mut self) {
        self.bell.get_up();
    }

    /// After enough turns with frames: tells every peer to stop waking a worker that is awake.
    pub fn disarm_if_busy(&mut self, schedule: &mut Schedule) {
        if self.armed && self.busy_turns > BUSY_TURNS {
            schedule.receivers().for_each(|rx| rx.disarm());
            self.armed = false;
        }
    }
}

/// Edge-triggered: a wake-up is only a reason to poll, so nothing has to be read from the descriptor.
fn edge() -> epoll::EventFlags {
    epoll::EventFlags::IN | epoll::EventFlags::ET
}
