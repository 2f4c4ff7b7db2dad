//! Opening ports on DPDK's devices, and hearing of their links.

use vwire_proto::stats::PortState;

use super::super::Link;
use super::super::open_error::{Cause, OpenError};
use super::{Backing, Ports, up};
use crate::model::DpdkSpec;
use crate::port::PortIndex;
use crate::port::dpdk::{self, DeviceSpec, DpdkDevice, DpdkError, LinkState};
use crate::tables::WorkerId;
use crate::worker::command::Event;

impl Ports {
    pub(super) fn open_dpdk(
        &mut self,
        spec: &DpdkSpec,
        index: PortIndex,
        workers: &[WorkerId],
    ) -> Result<(Backing, Link), OpenError> {
        let (shares, device) = dpdk::open(index, &device_spec(spec))?;
        self.engine.share(index, workers.iter().copied().zip(shares).collect())?;
        let events = self.engine.reporter();
        // Of a device that is gone the worker tells, and gives the port up.
        device.on_link(move |link| {
            if link != LinkState::Gone {
                events.send(Event::Link { port: index });
            }
        });
        let link = link_of(&device);
        Ok((Backing::Dpdk(device), link))
    }

    /// A device's link came or went. The port stays where it is: its sending half drops what can't be sent.
    pub(in super::super) fn take_link(&mut self, index: PortIndex) {
        // One that was detached after a fault stays down.
        if self.engine.owner(index).is_none() {
            return;
        }
        let Some((port, open)) = self.open.iter_mut().find(|(_, open)| open.index == index) else { return };
        let Backing::Dpdk(device) = &open.backing else { return };
        let link = link_of(device);
        if link != open.link {
            tracing::info!(%port, up = link.up, "link changed");
            self.counters.port(index).set_state(if link.up { PortState::Up } else { PortState::Down });
            open.link = link.clone();
            let port = port.clone();
            self.touched.insert(port.clone());
            if link.up { self.carrier_up(&port) } else { self.carrier_down(&port) }
        }
    }
}

fn link_of(device: &DpdkDevice) -> Link {
    match device.link() {
        LinkState::Up(_) => up(&device.about()),
        LinkState::Down => Link { reason: format!("{}: no link", device.about()), ..Link::default() },
        LinkState::Gone => Link { reason: format!("{}: was removed", device.about()), ..Link::default() },
    }
}

fn device_spec(spec: &DpdkSpec) -> DeviceSpec {
    DeviceSpec {
        device: spec.device.to_string(),
        queues: spec.queues.get(),
        workers: spec.workers.get(),
        rx_descriptors: spec.rx_descriptors.get(),
        tx_descriptors: spec.tx_descriptors.get(),
        mtu: spec.mtu.get(),
        promiscuous: spec.promiscuous,
        buffers: spec.buffers.map(|buffers| buffers.get()),
    }
}

impl From<DpdkError> for OpenError {
    fn from(error: DpdkError) -> Self {
        let cause = match &error {
            DpdkError::NotBuilt | DpdkError::Eal(_) | DpdkError::Probe { .. } => Cause::System,
            DpdkError::PoolTooSmall { .. } | DpdkError::Memory { .. } | DpdkError::Thread(_) => {
                Cause::Exhausted
            }
            DpdkError::Limit { .. } | DpdkError::Buffer { .. } | DpdkError::NoPort { .. } => Cause::Request,
            DpdkError::InUse { .. } | DpdkError::Device { .. } => Cause::System,
        };
        Self::new(cause, error)
    }
}
