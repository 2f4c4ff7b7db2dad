//! Links that come and go. One thread looks at every device a few times a second, and at once when a driver says that there is
//! something to see; few virtual drivers say so.
//!
//! Unsafe: registering a callback that touches nothing but statics.

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use dpdk_sys as sys;

use super::LinkState;
use super::device::Device;
use super::error::DpdkError;

/// Between two looks, if nobody calls.
const INTERVAL: Duration = Duration::from_millis(50);
/// DPDK's port numbers are below its RTE_MAX_ETHPORTS, 32 as Debian builds it.
const PORTS: usize = 1024;

/// Whom to tell, and how.
pub(super) type Told = Box<dyn Fn(LinkState) + Send>;

struct Watched {
    device: Weak<Device>,
    told: Option<Told>,
}

#[derive(Default)]
struct Watch {
    watched: Vec<Watched>,
    running: bool,
}

static WATCH: Mutex<Watch> = Mutex::new(Watch { watched: Vec::new(), running: false });
static CALLED: Condvar = Condvar::new();
static REMOVED: [AtomicBool; PORTS] = [const { AtomicBool::new(false) }; PORTS];

fn watch() -> MutexGuard<'static, Watch> {
    WATCH.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Watches a device until it is dropped.
pub(super) fn add(device: &Arc<Device>) -> Result<(), DpdkError> {
    if let Some(removed) = REMOVED.get(usize::from(device.id())) {
        removed.store(false, Ordering::Relaxed);
    }
    for event in [sys::RTE_ETH_EVENT_INTR_LSC, sys::RTE_ETH_EVENT_INTR_RMV] {
        // Refused only for a port that is not there. SAFETY: the callback is a function of this program, and takes no argument.
        unsafe {
            sys::rte_eth_dev_callback_register(device.id(), event, Some(called), std::ptr::null_mut());
        }
    }
    let mut watch = watch();
    watch.watched.push(Watched { device: Arc::downgrade(device), told: None });
    if !watch.running {
        let thread = std::thread::Builder::new().name("dpdk-links".into()).spawn(run);
        thread.map_err(|error| DpdkError::Thread(error.to_string()))?;
        watch.running = true;
    }
    Ok(())
}

/// Says whom to tell of changes of a device's link.
pub(super) fn tell(device: &Arc<Device>, told: Told) {
    let mut watch = watch();
    let found = watch.watched.iter_mut().find(|one| std::ptr::eq(one.device.as_ptr(), Arc::as_ptr(device)));
    if let Some(one) = found {
        one.told = Some(told);
    }
}

/// Forgets a device. When this returns, the thread has no hold on it, and whoever drops it next closes it.
pub(super) fn forget(device: &Arc<Device>) {
    watch().watched.retain(|one| !std::ptr::eq(one.device.as_ptr(), Arc::as_ptr(device)));
}

/// Whether the driver has said that the device is gone.
pub(super) fn was_removed(id: u16) -> bool {
    REMOVED.get(usize::from(id)).is_some_and(|removed| removed.load(Ordering::Relaxed))
}

fn run() {
    let mut watch = watch();
    loop {
        watch.watched.retain(|one| one.device.strong_count() > 0);
        for one in &watch.watched {
            let Some(device) = one.device.upgrade() else { continue };
            if device.look()
                && let Some(told) = &one.told
            {
                told(LinkState::of(&device));
            }
        }
        watch =
            CALLED.wait_timeout(watch, INTERVAL).map_or_else(|error| error.into_inner().0, |woken| woken.0);
    }
}

/// A driver has news, on a thread of DPDK's.
unsafe extern "C" fn called(
    id: u16,
    event: sys::rte_eth_event_type,
    _: *mut c_void,
    _: *mut c_void,
) -> c_int {
    if event == sys::RTE_ETH_EVENT_INTR_RMV
        && let Some(removed) = REMOVED.get(usize::from(id))
    {
        removed.store(true, Ordering::Relaxed);
    }
    CALLED.notify_one();
    0
}
