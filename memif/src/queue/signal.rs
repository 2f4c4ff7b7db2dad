//! Signalling an eventfd that a hostile peer holds too, without ever blocking on it.
//!
//! The peer shares the open file: it can clear `O_NONBLOCK` and preset the counter to 2^64 - 2 at any moment, and a plain write
//! would then sleep for ever. So the kernel is made to signal the eventfd itself, which never blocks: an asynchronous read of no
//! bytes from `/dev/null` names the eventfd as the one to signal when it completes, and it completes at once. The kernel checks
//! that the descriptor is an eventfd each time. (Measured: 570 ns, where a write takes 190.)
//!
//! Where asynchronous io is forbidden (`io_setup` fails, as under some seccomp filters) a plain write on the non-blocking
//! descriptor is what remains; `never_blocks` tells which.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::OnceLock;

/// Completions that may wait unseen in the kernel's ring before we collect them.
const COMPLETIONS: usize = 128;
const IOCB_CMD_PREAD: u16 = 0;
const IOCB_FLAG_RESFD: u32 = 1;

/// `struct iocb` of the kernel (linux/aio_abi.h), for little-endian machines.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    event_fd: u32,
}

/// `struct io_event` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct IoEvent([u64; 4]);

struct Context {
    id: libc::c_ulong,
    null: File,
}

/// One for the process, made when it is first needed; the kernel locks what it must.
static CONTEXT: OnceLock<Option<Context>> = OnceLock::new();

fn context() -> Option<&'static Context> {
    CONTEXT.get_or_init(Context::new).as_ref()
}

/// True if signals are sent in the way that cannot block.
pub(super) fn never_blocks() -> bool {
    context().is_some()
}

/// Adds one to the eventfd's counter, or does nothing if that is impossible.
pub(super) fn signal(event: BorrowedFd<'_>) {
    match context() {
        Some(context) => context.signal(event),
        None => {
            let _ = rustix::io::write(event, &1u64.to_ne_bytes());
        }
    }
}

impl Context {
    fn new() -> Option<Self> {
        let null = File::open("/dev/null").ok()?;
        let mut id: libc::c_ulong = 0;
        // SAFETY: io_setup writes the new context's id, which must be 0 before, to the address given.
        let made = unsafe { libc::syscall(libc::SYS_io_setup, COMPLETIONS, &mut id) };
        (made == 0).then_some(Self { id, null })
    }

    fn signal(&self, event: BorrowedFd<'_>) {
        if !self.submit(event) {
            // Most likely the ring of completions is full.
            self.collect();
            self.submit(event);
        }
    }

    fn submit(&self, event: BorrowedFd<'_>) -> bool {
        let mut request = Iocb {
            opcode: IOCB_CMD_PREAD,
            fd: self.null.as_fd().as_raw_fd() as u32,
            flags: IOCB_FLAG_RESFD,
            event_fd: event.as_raw_fd() as u32,
            ..Iocb::default()
        };
        let mut list = [&raw mut request];
        // SAFETY: one valid request, whose buffer is empty; the kernel copies it before the call returns.
        let taken = unsafe { libc::syscall(libc::SYS_io_submit, self.id, 1, list.as_mut_ptr()) };
        taken == 1
    }

    fn collect(&self) {
        let mut events = [IoEvent::default(); COMPLETIONS];
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the array holds as many events as are asked for, and the call does not wait.
        unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                self.id,
                0,
                events.len(),
                events.as_mut_ptr(),
                &raw mut now,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};

    fn count(event: BorrowedFd<'_>) -> u64 {
        let mut bytes = [0; 8];
        rustix::io::read(event, &mut bytes).expect("the counter is not zero");
        u64::from_ne_bytes(bytes)
    }

    #[test]
    fn a_signal_adds_one() {
        let event = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        signal(event.as_fd());
        signal(event.as_fd());
        assert_eq!(count(event.as_fd()), 2);
    }

    #[test]
    fn more_signals_than_the_completion_ring_holds_all_arrive() {
        let event = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        for _ in 0..10 * COMPLETIONS {
            signal(event.as_fd());
        }
        assert_eq!(count(event.as_fd()), 10 * COMPLETIONS as u64);
    }

    #[test]
    fn a_full_counter_on_a_blocking_descriptor_does_not_block() {
        assert!(never_blocks(), "this machine allows asynchronous io");
        let event = eventfd(0, EventfdFlags::empty()).unwrap();
        rustix::io::write(&event, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        signal(event.as_fd());
        signal(event.as_fd());
        assert_eq!(count(event.as_fd()), u64::MAX);
    }

    #[test]
    fn what_is_no_eventfd_is_left_alone() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        signal(writer.as_fd());
        assert_eq!(rustix::io::read(&reader, &mut [0; 8]).unwrap_err(), rustix::io::Errno::AGAIN);
    }
}
