//! One descriptor to wait on for many: an epoll set with a timer in it.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags};

/// What the timer's events are called; no descriptor may be watched under it.
const TIMER: u64 = u64::MAX;

/// Descriptors looked at per round; the rest stays readable for the next.
const READY_PER_ROUND: usize = 64;

/// An epoll set and a timer.
#[derive(Debug)]
pub(crate) struct Poller {
    epoll: OwnedFd,
    timer: OwnedFd,
    armed: Option<Instant>,
}

impl Poller {
    pub(crate) fn new() -> Result<Self, Errno> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let poller = Self { epoll, timer, armed: None };
        poller.watch(&poller.timer, TIMER)?;
        Ok(poller)
    }

    /// Reports `fd` as `token` while it is readable or hung up.
    pub(crate) fn watch(&self, fd: impl AsFd, token: u64) -> Result<(), Errno> {
        epoll::add(&self.epoll, fd, epoll::EventData::new_u64(token), epoll::EventFlags::IN)
    }

    /// Ends the watch. Needed before closing too: another process may hold a copy of a descriptor that was
    /// handed over, and keep it in the set.
    pub(crate) fn forget(&self, fd: impl AsFd) {
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// The tokens that are ready now; never waits.
    pub(crate) fn ready(&mut self) -> Vec<u64> {
        let mut space = [MaybeUninit::uninit(); READY_PER_ROUND];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let Ok((events, _)) = epoll::wait(&self.epoll, &mut space[..], Some(&now)) else { return Vec::new() };
        let tokens: Vec<u64> =
            events.iter().map(|event| event.data.u64()).filter(|&token| token != TIMER).collect();
        if tokens.len() < events.len() {
            self.armed = None;
            let _ = rustix::io::read(&self.timer, &mut [0; 8]);
        }
        tokens
    }

    /// Makes the set readable at `deadline`, or at no particular time.
    pub(crate) fn arm(&mut self, deadline: Option<Instant>, now: Instant) {
        if self.armed == deadline {
            return;
        }
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let it_value = deadline.map_or(zero, |at| {
            // Zero would switch the timer off, so what is due already is due in a nanosecond.
            let left = at.saturating_duration_since(now).max(Duration::from_nanos(1));
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() }
        });
        let setting = Itimerspec { it_interval: zero, it_value };
        if rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &setting).is_ok() {
            self.armed = deadline;
        }
    }
}

impl AsFd for Poller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}
