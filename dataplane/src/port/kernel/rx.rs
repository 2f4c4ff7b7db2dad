//! The receiving half: frames read from the tap into one arena, packed, and lent from there.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use memif::Lent;
use rustix::io::Errno;

use super::vnet;
use crate::DropReason;
use crate::burst::{Burst, MAX_FRAME};
use crate::port::{PortFault, PortIndex, Rx, RxContext};

/// What one read may need: a header and the longest frame.
const READ: usize = vnet::HEADER + MAX_FRAME;
/// Bytes of frames read in a turn before the rest waits for the next. They are read into the same arena each time and copied on
/// while they are in the cache; 64 frames of 64 KiB would not fit there.
const TURN_BYTES: usize = 256 << 10;
/// Frames begin on this boundary, so that small ones share no cache line.
const ALIGN: usize = 64;

/// One queue of the interface.
pub struct KernelRx {
    port: PortIndex,
    queue: Arc<OwnedFd>,
    /// The kernel gives pages only to what has been written: a port that sees only small frames uses 64 times their length.
    arena: Box<[u8]>,
}

impl KernelRx {
    pub(super) fn new(port: PortIndex, queue: Arc<OwnedFd>) -> Self {
        Self { port, queue, arena: vec![0; TURN_BYTES + READ].into_boxed_slice() }
    }
}

impl Rx for KernelRx {
    fn receive<'a>(&'a mut self, burst: &mut Burst<'a>, context: &RxContext<'_>) -> Result<(), PortFault> {
        let mut free = &mut self.arena[..];
        while burst.room() > 0 && free.len() >= READ {
            let len = match rustix::io::read(&*self.queue, &mut free[..READ]) {
                Ok(len) => len,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(fault(error)),
            };
            let used = len.next_multiple_of(ALIGN).min(free.len());
            let (filled, rest) = std::mem::take(&mut free).split_at_mut(used);
            free = rest;
            let filled: &'a [u8] = filled;
            if let Err(reason) = lend(&filled[..len], burst) {
                context.counters.port(self.port).dropped(reason, 1);
            }
        }
        Ok(())
    }

    fn release(&mut self, _: u64) {}

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.queue.as_fd())
    }
}

/// Lends what one read gave.
#[inline]
fn lend<'a>(read: &'a [u8], burst: &mut Burst<'a>) -> Result<(), DropReason> {
    let (header, frame) = read.split_first_chunk().ok_or(DropReason::TooShort)?;
    if frame.is_empty() {
        return Err(DropReason::TooShort);
    }
    let offload = vnet::parse(header, frame).map_err(|_| DropReason::BadOffload)?;
    burst.push_with(&[Lent::from(frame)], offload);
    Ok(())
}

/// The interface, or the namespace it was in, has been deleted (EBADFD), or worse. Not for this port to mend.
fn fault(error: Errno) -> PortFault {
    let error = match error {
        Errno::BADFD => "the interface was deleted".to_owned(),
        other => std::io::Error::from(other).to_string(),
    };
    PortFault::Device { what: "reading from the kernel interface", error }
}
