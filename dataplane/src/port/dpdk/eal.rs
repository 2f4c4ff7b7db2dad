//! DPDK's environment abstraction layer: one in a process, started once, its log in ours, and our threads known to it.
//!
//! Unsafe: calls of functions that take no more than text, and a callback for the log.

use std::cell::Cell;
use std::collections::VecDeque;
use std::ffi::{CStr, CString, c_char, c_int};
use std::sync::{LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};

use dpdk_sys as sys;

use super::error::DpdkError;
use super::spec::Settings;

static SETTINGS: OnceLock<Settings> = OnceLock::new();
static STARTED: OnceLock<Result<(), DpdkError>> = OnceLock::new();

/// Says how the EAL is to be started. The first word counts, since there is one EAL in a process; false if this is another one.
pub fn configure(settings: &Settings) -> bool {
    SETTINGS.get_or_init(|| settings.clone()) == settings
}

/// The settings in force.
pub(super) fn settings() -> &'static Settings {
    SETTINGS.get_or_init(Settings::default)
}

/// Starts the EAL unless it runs.
///
/// # Errors
/// [`DpdkError::Eal`], the same each time: DPDK can't be started twice.
pub fn start() -> Result<(), DpdkError> {
    let started = STARTED.get_or_init(|| {
        // A thread of its own: the EAL pins the one that starts it, and what it starts inherits that.
        let starter = std::thread::Builder::new().name("dpdk-start".into()).spawn(start_here);
        let starter = starter.map_err(|error| DpdkError::Thread(error.to_string()))?;
        starter.join().unwrap_or_else(|_| Err(DpdkError::Eal("its start panicked".into())))
    });
    started.clone()
}

fn start_here() -> Result<(), DpdkError> {
    let cores: Vec<usize> =
        core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect();
    let arguments = settings().arguments(&cores);
    tracing::info!(arguments = arguments.join(" "), "starting DPDK's EAL");
    let owned: Vec<CString> = arguments.into_iter().map(|a| CString::new(a).unwrap_or_default()).collect();
    let mut pointers: Vec<*mut c_char> = owned.iter().map(|a| a.as_ptr().cast_mut()).collect();
    let count = pointers.len() as c_int;
    pointers.push(std::ptr::null_mut());
    // SAFETY: `hear` takes text and a length, and lives as long as the program.
    let deaf = unsafe { sys::vwire_log_to(Some(hear)) };
    if deaf != 0 {
        tracing::warn!("DPDK logs to standard output: {}", text_of(deaf));
    }
    let mark = mark();
    // SAFETY: argv as for main(): `count` strings that end with NUL, then null. It may permute the pointers, which are ours.
    let done = unsafe { sys::rte_eal_init(count, pointers.as_mut_ptr()) };
    // The EAL keeps pointers into the strings.
    std::mem::forget(owned);
    if done < 0 {
        // SAFETY: reads a thread's own variable.
        let error = unsafe { sys::vwire_errno() };
        return Err(DpdkError::Eal(said_since(mark).unwrap_or_else(|| text_of(error))));
    }
    Ok(())
}

/// The text of an errno, as DPDK knows it.
pub(super) fn text_of(error: c_int) -> String {
    // SAFETY: it returns a static or thread-local string that ends with NUL; it is copied at once.
    unsafe {
        let text = sys::rte_strerror(error.abs());
        if text.is_null() { error.to_string() } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
    }
}

/// Why a call failed: what DPDK logged since `mark`, and its number in words.
pub(super) fn why(mark: u64, error: c_int) -> String {
    let number = text_of(error);
    said_since(mark).map_or(number.clone(), |said| format!("{number} ({said})"))
}

thread_local! {
    static LCORE: Lcore = const { Lcore(Cell::new(false)) };
}

/// A thread's number with DPDK, given back when the thread ends.
struct Lcore(Cell<bool>);

impl Drop for Lcore {
    fn drop(&mut self) {
        if self.0.get() {
            // SAFETY: only undoes what `register` did, on the same thread.
            unsafe { sys::rte_thread_unregister() }
        }
    }
}

/// Makes the calling thread known to DPDK, so that it has its own cache of each pool's buffers. Costs a look at a flag afterwards.
#[inline]
pub(super) fn register() {
    LCORE.with(|lcore| {
        if !lcore.0.get() {
            register_now(lcore);
        }
    });
}

#[cold]
fn register_now(lcore: &Lcore) {
    lcore.0.set(true);
    // SAFETY: the EAL runs, since a port exists. It leaves the thread's affinity alone.
    if unsafe { sys::rte_thread_register() } != 0 {
        tracing::warn!("DPDK has no number left for this thread, which takes buffers more slowly for it");
    }
}

/// Lines that are kept, to say why something failed.
const KEPT: usize = 32;

#[derive(Default)]
struct Heard {
    line: String,
    lines: VecDeque<String>,
    count: u64,
}

static HEARD: LazyLock<Mutex<Heard>> = LazyLock::new(Mutex::default);

fn heard() -> MutexGuard<'static, Heard> {
    HEARD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many lines DPDK has logged.
pub(super) fn mark() -> u64 {
    heard().count
}

/// The last lines logged since `mark`, by whatever thread.
fn said_since(mark: u64) -> Option<String> {
    let heard = heard();
    let new = usize::try_from(heard.count - mark).unwrap_or(KEPT).min(heard.lines.len());
    let lines: Vec<&str> = heard.lines.iter().skip(heard.lines.len() - new).map(String::as_str).collect();
    let last = lines.len().saturating_sub(3);
    (!lines.is_empty()).then(|| lines[last..].join("; "))
}

/// DPDK's log: kept for error messages, and passed on.
unsafe extern "C" fn hear(text: *const c_char, len: usize) {
    if text.is_null() {
        return;
    }
    // SAFETY: DPDK's stdio stream gives `len` readable bytes, which are copied before this returns.
    let text = unsafe { std::slice::from_raw_parts(text.cast::<u8>(), len) };
    // SAFETY: reads the level of the message that is being written by this thread.
    let level = unsafe { sys::rte_log_cur_msg_loglevel() };
    let mut heard = heard();
    for piece in String::from_utf8_lossy(text).split_inclusive('\n') {
        heard.line.push_str(piece);
        if !piece.ends_with('\n') {
            continue;
        }
        let line = std::mem::take(&mut heard.line).trim().to_owned();
        if line.is_empty() {
            continue;
        }
        match level {
            // rte_log.h: 4 is an error, 5 a warning. What they spoil is reported as such by who called; here they explain.
            ..=4 => tracing::info!(target: "dpdk", "{line}"),
            _ => tracing::debug!(target: "dpdk", "{line}"),
        }
        if heard.lines.len() == KEPT {
            heard.lines.pop_front();
        }
        heard.lines.push_back(line);
        heard.count += 1;
    }
}
