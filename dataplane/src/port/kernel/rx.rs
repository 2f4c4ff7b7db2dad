//! The receiving half: frames read from the tap into one arena, packed, and lent from there.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

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

/// Empty reads in a row after which the interface counts as quiet.
const EAGER_READS: u32 = 64;
/// A quiet interface is read at least this often while the worker is busy …
const QUIET_INTERVAL: Duration = Duration::from_micros(10);
/// … and at least once in so many turns: an idle worker's take a tenth of a microsecond.
const QUIET_TURNS: u32 = 16;

/// One queue of the interface.
pub struct KernelRx {
    port: PortIndex,
    queue: Arc<OwnedFd>,
    quiet: Quiet,
    /// The kernel gives pages only to what has been written: a port that sees only small frames uses 64 times their length.
    arena: Box<[u8]>,
}

impl KernelRx {
    pub(super) fn new(port: PortIndex, queue: Arc<OwnedFd>) -> Self {
        Self { port, queue, quiet: Quiet::new(), arena: vec![0; TURN_BYTES + READ].into_boxed_slice() }
    }
}

/// Whether a read is worth its system call. One that finds nothing costs 0.3 to 0.5 µs, so a worker with a few quiet interfaces
/// and one busy port would spend more time on those than on frames.
struct Quiet {
    empty_reads: u32,
    skipped: u32,
    last_read: Instant,
    /// The worker may go to sleep, or has just been woken by this very interface: every poll must be a real one.
    armed: bool,
}

impl Quiet {
    fn new() -> Self {
        Self { empty_reads: 0, skipped: 0, last_read: Instant::now(), armed: false }
    }

    /// Whether to read in this turn. The clock is asked only while nothing comes.
    #[inline]
    fn is_read_due(&mut self) -> bool {
        if self.armed || self.empty_reads < EAGER_READS {
            return true;
        }
        let now = Instant::now();
        self.skipped += 1;
        let due = self.skipped >= QUIET_TURNS || now.duration_since(self.last_read) >= QUIET_INTERVAL;
        if due {
            self.skipped = 0;
            self.last_read = now;
        }
        due
    }

    #[inline]
    fn note(&mut self, frames: usize) {
        self.empty_reads = if frames == 0 { self.empty_reads.saturating_add(1) } else { 0 };
    }
}

impl Rx for KernelRx {
    fn receive<'a>(&'a mut self, burst: &mut Burst<'a>, context: &RxContext<'_>) -> Result<(), PortFault> {
        if !self.quiet.is_read_due() {
            return Ok(());
        }
        let before = burst.len();
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
        self.quiet.note(burst.len() - before);
        Ok(())
    }

    fn release(&mut self, _: u64) {}

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.queue.as_fd())
    }

    fn arm(&mut self) {
        self.quiet.armed = true;
    }

    fn disarm(&mut self) {
        self.quiet.armed = false;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn quiet() -> Quiet {
        let mut quiet = Quiet::new();
        (0..EAGER_READS).for_each(|_| quiet.note(0));
        quiet
    }

    #[test]
    fn a_quiet_interface_is_read_once_in_a_few_turns_and_a_busy_one_in_each() {
        let mut quiet = quiet();
        let reads = (0..QUIET_TURNS * 10).filter(|_| quiet.is_read_due()).count();
        assert!((10..QUIET_TURNS as usize * 10).contains(&reads), "{reads} reads");
        quiet.note(1);
        assert!((0..100).all(|_| quiet.is_read_due()));
    }

    #[test]
    fn no_read_is_skipped_while_the_worker_may_sleep() {
        let mut quiet = quiet();
        quiet.armed = true;
        assert!((0..100).all(|_| quiet.is_read_due()));
    }
}
