//! The interrupt of a ring: an eventfd that the sender of packets writes and the receiver sleeps on.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::ReadWriteFlags;

use super::signal;
use crate::ring::{RingError, RingSpec};

const EVENTFD: &str = "anon_inode:[eventfd]";

/// A descriptor that was seen to be an eventfd.
#[derive(Debug)]
pub(super) struct EventFd(OwnedFd);

impl EventFd {
    /// Takes the descriptor of an announced ring if it is an eventfd, and makes it non-blocking.
    pub(super) fn new(spec: RingSpec) -> Result<Self, RingError> {
        let link = format!("/proc/self/fd/{}", spec.event.as_raw_fd());
        let found = std::fs::read_link(link).map(|path| path.to_string_lossy().into_owned());
        let found = found.unwrap_or_else(|error| format!("unreadable ({error})"));
        if found != EVENTFD {
            return Err(RingError::NotAnEventFd { offset: spec.location.offset, found });
        }
        // For our own reads of it (`drain`), and for writes where `signal` has nothing better.
        let _ = rustix::io::ioctl_fionbio(&spec.event, true);
        signal::never_blocks();
        Ok(Self(spec.event))
    }

    /// Wakes whoever sleeps on it.
    #[cold]
    pub(super) fn kick(&self) {
        signal::signal(self.0.as_fd());
    }

    /// Forgets the wake-ups so far, so that the next sleep is one.
    ///
    /// The peer may have made the descriptor blocking, and may empty it between a look and a read; `RWF_NOWAIT` reads
    /// regardless.
    pub(super) fn drain(&self) {
        let mut count = [0; 8];
        let mut list = [std::io::IoSliceMut::new(&mut count)];
        let _ = rustix::io::preadv2(&self.0, &mut list, u64::MAX, ReadWriteFlags::NOWAIT);
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
