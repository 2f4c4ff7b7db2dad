//! Survival of a peer that shrinks a file this process has mapped.
//!
//! A memif peer keeps the file behind a region it announced. Unless that file is sealed it can cut it short at any time, and the
//! next access of ours then raises SIGBUS, which would end the process and every other connection with it. The handler
//! installed here replaces such a region by private zero pages and marks it poisoned: the access that faulted goes on and reads
//! zeros, and the queues of that one connection notice the mark at their next burst. A fault anywhere else goes to whatever
//! handler was there before, or ends the process as it always did.
//!
//! Everything the handler does is safe inside a signal handler: it reads atomics, and calls `mmap`.

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering, fence};
use std::ptr;
use std::sync::OnceLock;

/// Peer regions that can be mapped at one time in this process.
pub const MAX_WATCHED: usize = 16_384;

/// One watched range. `version` is a sequence lock over the other two: odd while they change.
struct Watch {
    version: AtomicU32,
    poisoned: AtomicU32,
    start: AtomicUsize,
    len: AtomicUsize,
}

static WATCHES: [Watch; MAX_WATCHED] = [const {
    Watch {
        version: AtomicU32::new(0),
        poisoned: AtomicU32::new(0),
        start: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
    }
}; MAX_WATCHED];

/// Slots at or beyond this index have never been used; the handler looks no further.
static USED: AtomicUsize = AtomicUsize::new(0);

/// How many faults were survived so far in this process. Queues compare it once per burst, and look closer when it moved.
static FAULTS: AtomicU32 = AtomicU32::new(0);

static PREVIOUS: OnceLock<Previous> = OnceLock::new();

struct Previous(libc::sigaction);

/// The watch over one mapped range; dropping it ends the watch, so drop it **before** unmapping.
#[derive(Debug)]
pub(crate) struct Watched {
    slot: usize,
}

/// Every slot of the registry is taken.
#[derive(Debug, thiserror::Error)]
#[error(
    "{MAX_WATCHED} peer regions are mapped already, which is as many as this process watches for truncation"
)]
pub struct RegistryFull;

/// Number of faults survived since the process started.
#[inline]
pub fn faults() -> u32 {
    FAULTS.load(Ordering::Relaxed)
}

/// Installs the handler; later calls do nothing. Mapping a peer's region calls it.
///
/// A program that installs a SIGBUS handler of its own afterwards must chain to the one it found.
pub fn install() {
    PREVIOUS.get_or_init(|| {
        // SAFETY: sigaction is plain data for which zero is a valid value ("default action, no flags, empty mask").
        let mut action: libc::sigaction = unsafe { core::mem::zeroed() };
        action.sa_sigaction = on_sigbus as *const () as usize;
        // The alternate stack is used where the thread has one (Rust's threads do).
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: as above.
        let mut previous: libc::sigaction = unsafe { core::mem::zeroed() };
        // SAFETY: both point to live sigaction values, and the handler has the signature that SA_SIGINFO asks for. The call
        // fails only for a bad signal number.
        unsafe { libc::sigaction(libc::SIGBUS, &action, &mut previous) };
        Previous(previous)
    });
}

/// Watches `len` bytes at `start`, a mapping that the caller has just made and will unmap only after dropping the result.
pub(crate) fn watch(start: usize, len: usize) -> Result<Watched, RegistryFull> {
    install();
    let slot = WATCHES.iter().position(claim).ok_or(RegistryFull)?;
    let watch = &WATCHES[slot];
    // The version is odd here, since `claim`.
    watch.poisoned.store(0, Ordering::Relaxed);
    watch.start.store(start, Ordering::Relaxed);
    watch.len.store(len, Ordering::Relaxed);
    watch.version.fetch_add(1, Ordering::Release);
    USED.fetch_max(slot + 1, Ordering::SeqCst);
    Ok(Watched { slot })
}

/// Takes a slot that is free (length 0, version even) by making its version odd.
fn claim(watch: &Watch) -> bool {
    let version = watch.version.load(Ordering::Relaxed);
    let free = version.is_multiple_of(2) && watch.len.load(Ordering::Relaxed) == 0;
    free && watch
        .version
        .compare_exchange(version, version.wrapping_add(1), Ordering::AcqRel, Ordering::Relaxed)
        .is_ok()
}

impl Watched {
    /// True once a fault inside the range was survived.
    pub(crate) fn is_poisoned(&self) -> bool {
        WATCHES[self.slot].poisoned.load(Ordering::Acquire) != 0
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let watch = &WATCHES[self.slot];
        watch.version.fetch_add(1, Ordering::AcqRel);
        // A handler that sees the odd version skips the slot; one that does not sees it whole.
        fence(Ordering::Release);
        watch.start.store(0, Ordering::Relaxed);
        watch.len.store(0, Ordering::Relaxed);
        watch.version.fetch_add(1, Ordering::Release);
    }
}

impl Watch {
    /// The range if the slot is in use and did not change while it was read.
    ///
    /// Ranges that are watched at one moment are mapped at that moment, hence disjoint: a consistent slot that contains the
    /// faulting address is the right one.
    fn range(&self) -> Option<(usize, usize)> {
        let before = self.version.load(Ordering::Acquire);
        let (start, len) = (self.start.load(Ordering::Relaxed), self.len.load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        let after = self.version.load(Ordering::Relaxed);
        (before == after && before.is_multiple_of(2) && len > 0).then_some((start, len))
    }

    fn contains(&self, address: usize) -> Option<(usize, usize)> {
        self.range().filter(|&(start, len)| address.wrapping_sub(start) < len)
    }
}

extern "C" fn on_sigbus(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo to an SA_SIGINFO handler, and si_addr is set for SIGBUS.
    let address = unsafe { (*info).si_addr() } as usize;
    if !survive(address) {
        pass_on(signal, info, context);
    }
}

/// Puts zero pages where the fault happened. False if the address is in no watched range.
fn survive(address: usize) -> bool {
    let used = USED.load(Ordering::SeqCst).min(MAX_WATCHED);
    for watch in &WATCHES[..used] {
        if let Some((start, len)) = watch.contains(address) {
            return replace_by_zeros(watch, start, len);
        }
    }
    false
}

fn replace_by_zeros(watch: &Watch, start: usize, len: usize) -> bool {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
    // SAFETY: the range is a whole mapping of a `Region` that is alive, since the thread that faulted is using it. What it held
    // was the peer's, and nobody holds references into it. The call is a bare system call, allowed in a handler; errno is
    // saved by nobody here because the interrupted code was a memory access, not a call.
    let mapped = unsafe { libc::mmap(ptr::with_exposed_provenance_mut(start), len, prot, flags, -1, 0) };
    watch.poisoned.store(1, Ordering::Release);
    FAULTS.fetch_add(1, Ordering::Release);
    mapped != libc::MAP_FAILED
}

/// A fault that is none of ours: what would have happened without this module must happen.
fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let previous = PREVIOUS.get().map(|previous| &previous.0);
    match previous.map_or(libc::SIG_DFL, |previous| previous.sa_sigaction) {
        libc::SIG_DFL | libc::SIG_IGN => restore_default(signal),
        handler if previous.is_some_and(|previous| previous.sa_flags & libc::SA_SIGINFO != 0) => {
            // SAFETY: with SA_SIGINFO the previous owner registered a function of this signature.
            let call: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                unsafe { core::mem::transmute(handler) };
            call(signal, info, context);
        }
        handler => {
            // SAFETY: without SA_SIGINFO the previous owner registered a function of this signature.
            let call: extern "C" fn(libc::c_int) = unsafe { core::mem::transmute(handler) };
            call(signal);
        }
    }
}

/// Lets the faulting instruction run again with the default action, so that the process ends with a core at the right place.
fn restore_default(signal: libc::c_int) {
    // SAFETY: zero means the default action; the pointer to the old action may be null.
    unsafe {
        let action: libc::sigaction = core::mem::zeroed();
        libc::sigaction(signal, &action, ptr::null_mut());
    }
}
