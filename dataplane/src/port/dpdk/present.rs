//! A port's halves, and the handle of its device.

use std::fmt;
use std::sync::Arc;

pub use super::eal::configure;

use super::device::Device;
use super::rx::DpdkRx;
use super::tx::DpdkTx;
use super::{DeviceSpec, DpdkError, LinkState, watch};
use crate::port::{PortIndex, PortParts, Rx};

/// A device of DPDK's that is a port's, as its owner outside the packet path sees it. Stopped and removed from DPDK when this and
/// the port's halves are all dropped.
pub struct DpdkDevice(Arc<Device>);

/// Probes, configures and starts a device, and makes a port of it: a share for each of `spec.workers`. Starts the EAL with the first.
/// Blocks for as long as the driver takes: milliseconds for virtual devices, up to seconds for physical ones.
///
/// # Errors
/// [`DpdkError`] names what to change; nothing is left behind then.
pub fn open(port: PortIndex, spec: &DeviceSpec) -> Result<(Vec<PortParts>, DpdkDevice), DpdkError> {
    let device = Device::open(spec)?;
    let rx = |queue| Box::new(DpdkRx::new(port, Arc::clone(&device), queue)) as Box<dyn Rx>;
    let share = |worker: u16| PortParts {
        rx: (worker..spec.queues).step_by(spec.workers.into()).map(rx).collect(),
        tx: Some(Box::new(DpdkTx::new(Arc::clone(&device), worker))),
        underlay: None,
    };
    let shares = (0..spec.workers).map(share).collect();
    Ok((shares, DpdkDevice(device)))
}

impl DpdkDevice {
    /// Its link, as last looked at.
    pub fn link(&self) -> LinkState {
        LinkState::of(&self.0)
    }

    /// What it is, in words: the name and the driver.
    pub fn about(&self) -> String {
        format!("{} ({})", self.0.name(), self.0.about().driver)
    }

    /// Its hardware address.
    pub fn mac(&self) -> [u8; 6] {
        self.0.about().mac
    }

    /// The driver's own counters ("extended statistics"), by its names for them.
    pub fn statistics(&self) -> Vec<(String, u64)> {
        self.0.statistics()
    }

    /// Buffers of its pool: those that nobody has, and all. Asking is slow; for tests and for explaining drops.
    pub fn buffers(&self) -> (u32, u32) {
        (self.0.pool().available(), self.0.pool().size())
    }

    /// Calls `told` after every change of the link, on a thread of its own.
    pub fn on_link(&self, told: impl Fn(LinkState) + Send + 'static) {
        watch::tell(&self.0, Box::new(told));
    }
}

impl LinkState {
    pub(super) fn of(device: &Device) -> Self {
        match device.check() {
            Err(_) => Self::Gone,
            Ok(()) if device.is_up() => Self::Up(device.mbps()),
            Ok(()) => Self::Down,
        }
    }
}

impl Drop for DpdkDevice {
    fn drop(&mut self) {
        watch::forget(&self.0);
    }
}

impl fmt::Debug for DpdkDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.about())
    }
}
