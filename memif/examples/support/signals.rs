//! A clean end: SIGINT and SIGTERM set a flag and interrupt the sleep.

use std::sync::atomic::{AtomicBool, Ordering};

static STOPPED: AtomicBool = AtomicBool::new(false);

extern "C" fn stop(_: libc::c_int) {
    STOPPED.store(true, Ordering::Relaxed);
}

/// Takes over both signals.
pub fn install() {
    let handler = stop as extern "C" fn(libc::c_int) as libc::sighandler_t;
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the handler stores one atomic, which may be done in a signal handler.
        unsafe { libc::signal(signal, handler) };
    }
}

/// True once one of them has come.
pub fn stopped() -> bool {
    STOPPED.load(Ordering::Relaxed)
}
