//! A doorbell: wakes a thread that sleeps on file descriptors, and costs one memory read while it is awake.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use rustix::event::{EventfdFlags, eventfd};

/// Shared by the thread that sleeps and those that wake it. Clones ring the same bell.
#[derive(Clone)]
pub struct Doorbell(Arc<Bell>);

struct Bell {
    asleep: AtomicBool,
    event: OwnedFd,
}

impl Doorbell {
    /// A doorbell whose sleeper is awake.
    ///
    /// # Errors
    /// The kernel's, if no event descriptor can be made (the process is out of file descriptors).
    pub fn new() -> std::io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Arc::new(Bell { asleep: AtomicBool::new(false), event })))
    }

    /// Called after publishing work: wakes the sleeper if it sleeps.
    #[inline]
    pub fn ring(&self) {
        // The fence orders the work's publication before the look at `asleep`; its twin is in `lie_down`. One of the two sides
        // then sees the other, so a wake-up is never lost.
        fence(Ordering::SeqCst);
        if self.0.asleep.load(Ordering::Relaxed) {
            self.ring_always();
        }
    }

    /// Wakes the sleeper without asking whether it sleeps.
    pub fn ring_always(&self) {
        // A full counter means that the bell has been ringing all along.
        let _ = rustix::io::write(&self.0.event, &1u64.to_ne_bytes());
    }

    /// Called by the sleeper before it looks for work one last time.
    pub fn lie_down(&self) {
        self.0.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Called by the sleeper when it is awake again; the next `ring` costs no system call.
    pub fn get_up(&self) {
        self.0.asleep.store(false, Ordering::Relaxed);
    }

    /// Resets the descriptor, for sleepers that watch it level-triggered.
    pub fn clear(&self) {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.0.event, &mut count);
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }
}
