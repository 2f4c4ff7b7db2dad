//! Devices come to DPDK, and leave it.
//!
//! Unsafe: calls with names, and with a port number that is ours alone.

use std::ffi::{CString, c_void};
use std::sync::mpsc::SyncSender;
use std::sync::{Mutex, MutexGuard, PoisonError};

use dpdk_sys as sys;

use super::eal;
use super::error::DpdkError;
use super::spec::DeviceSpec;

/// The devices that are some port's. Held while devices come and go: DPDK wants that from one thread at a time.
static TAKEN: Mutex<Vec<u16>> = Mutex::new(Vec::new());

fn taken() -> MutexGuard<'static, Vec<u16>> {
    TAKEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A device that DPDK knows by a port number. Stopped when dropped, and removed if it was added here.
pub(super) struct Plugged {
    pub id: u16,
    pub name: String,
    /// Not one of the EAL's own arguments (`--vdev`, `--allow`), which stay.
    ours: bool,
}

impl Plugged {
    /// Finds the device, or probes it.
    pub fn find(spec: &DeviceSpec) -> Result<Self, DpdkError> {
        let mut taken = taken();
        let name = spec.name().to_owned();
        let (id, ours) = match port_of(&name) {
            Some(id) => (id, false),
            None => (probe(spec)?, true),
        };
        if taken.contains(&id) {
            return Err(DpdkError::InUse { device: name });
        }
        taken.push(id);
        Ok(Self { id, name, ours })
    }
}

fn probe(spec: &DeviceSpec) -> Result<u16, DpdkError> {
    let failed = |reason: String| DpdkError::Probe { device: spec.device.clone(), reason };
    let arguments = CString::new(spec.device.as_str()).map_err(|_| failed("it contains a NUL".into()))?;
    let mark = eal::mark();
    // SAFETY: text that ends with NUL, which is copied.
    let error = unsafe { sys::rte_dev_probe(arguments.as_ptr()) };
    if error != 0 {
        return Err(failed(eal::why(mark, error)));
    }
    port_of(spec.name()).ok_or_else(|| DpdkError::NoPort { device: spec.device.clone() })
}

fn port_of(name: &str) -> Option<u16> {
    let name = CString::new(name).ok()?;
    let mut id = 0;
    // SAFETY: text that ends with NUL, and a number to write.
    let error = unsafe { sys::rte_eth_dev_get_port_by_name(name.as_ptr(), &raw mut id) };
    (error == 0).then_some(id)
}

/// This driver hears of its peer on DPDK's own thread, and ends the program if it is closed while it does (22.11).
pub(super) const NET_MEMIF: &str = "net_memif";

/// A port that DPDK's thread is to close, and who waits for it.
struct Closing {
    id: u16,
    ours: bool,
    done: SyncSender<()>,
}

/// # Safety
/// The port must be the caller's, and nobody may poll it any more.
unsafe fn close(id: u16, ours: bool) {
    // SAFETY: forwarded from the caller.
    unsafe {
        sys::rte_eth_dev_stop(id);
        if ours {
            sys::rte_eth_dev_close(id);
        }
    }
}

/// # Safety
/// As for [`close`].
unsafe fn close_on_dpdks_thread(id: u16, ours: bool) {
    let (done, closed) = std::sync::mpsc::sync_channel(1);
    let closing = Box::into_raw(Box::new(Closing { id, ours, done }));
    // SAFETY: the callback is a function of this program, which gets the box, and gets it once.
    let error = unsafe { sys::rte_eal_alarm_set(1, Some(close_now), closing.cast()) };
    if error == 0 {
        let _ = closed.recv();
    } else {
        // SAFETY: nobody else got the box; the port is as the caller says.
        unsafe { close_now(closing.cast()) }
    }
}

unsafe extern "C" fn close_now(closing: *mut c_void) {
    // SAFETY: `close_on_dpdks_thread` made it of a box, for this call, and waits, so that the port is as its caller says.
    unsafe {
        let closing = Box::from_raw(closing.cast::<Closing>());
        close(closing.id, closing.ours);
        let _ = closing.done.send(());
    }
}

impl Drop for Plugged {
    fn drop(&mut self) {
        let mut taken = taken();
        taken.retain(|id| *id != self.id);
        // SAFETY: the port is ours, and nobody polls it any more: the halves are gone with the device that this is a part of.
        let error = unsafe {
            let device = sys::vwire_device(self.id);
            match self.name.starts_with(NET_MEMIF) {
                true => close_on_dpdks_thread(self.id, self.ours),
                false => close(self.id, self.ours),
            }
            if self.ours && !device.is_null() { sys::rte_dev_remove(device) } else { 0 }
        };
        if error != 0 {
            tracing::warn!(device = self.name, "removing the device from DPDK: {}", eal::text_of(error));
        }
    }
}
