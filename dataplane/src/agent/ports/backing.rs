//! What keeps a port of each kind alive, and what of it outlives the port.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use super::super::underlays::KernelSide;
use super::super::{SentFds, sent};
#[cfg(feature = "af_xdp")]
use super::af_xdp;
use crate::model::{Mac, MemifSpec, PortName, PortSpec};
use crate::port::PortParts;
use crate::port::dpdk::DpdkDevice;
use crate::port::kernel::KernelDevice;
use crate::tables::Tunnel;

/// What keeps a port alive beside its halves at the worker.
pub(in crate::agent) enum Backing {
    /// The control sockets keep it. A socket that was handed over is kept here too.
    Memif { spec: MemifSpec, handed_over: Option<OwnedFd> },
    /// The interface goes with this.
    Kernel(KernelDevice),
    /// The interface is the kernel's again when this goes.
    #[cfg(feature = "af_xdp")]
    AfXdp(Box<af_xdp::Nic>),
    /// Needs its underlay.
    Vxlan(Tunnel, SocketAddr),
    /// Needs the port that carries it.
    Carried(Tunnel, PortName),
    /// Nothing.
    Pipe,
    /// The device goes with this.
    Dpdk(DpdkDevice),
    /// The control sockets keep it; here is what it was made of.
    Relay(SentFds),
}

impl Backing {
    /// What the port was made of, for making it again. Not kept longer than needed: a namespace that is held
    /// open does not end.
    pub(super) fn reserve(&mut self, spec: &PortSpec) -> SentFds {
        let made_of = match self {
            Backing::Memif { handed_over, .. } => handed_over.take(),
            Backing::Kernel(device) => sent::namespace_of(device.queue()).ok(),
            #[cfg(feature = "af_xdp")]
            Backing::AfXdp(nic) => nic.take_netns(),
            Backing::Vxlan(..) | Backing::Carried(..) | Backing::Pipe | Backing::Dpdk(_) => None,
            Backing::Relay(fds) => return std::mem::take(fds),
        };
        spec.needs().zip(made_of).collect()
    }

    /// The hardware address that the device behind the port has.
    pub(in crate::agent) fn mac(&self) -> Option<Mac> {
        match self {
            Backing::Dpdk(device) => Some(Mac(device.mac())).filter(|mac| mac.is_station()),
            #[cfg(feature = "af_xdp")]
            Backing::AfXdp(nic) => nic.interface().map(|nic| Mac(nic.mac)).filter(|mac| mac.is_station()),
            _ => None,
        }
    }

    /// The interface whose addresses, routes and neighbours stay the kernel's, if the port is on one.
    pub(in crate::agent) fn kernel_side(&self) -> Option<KernelSide<'_>> {
        match self {
            #[cfg(feature = "af_xdp")]
            Backing::AfXdp(nic) => nic.kernel_side(),
            _ => None,
        }
    }

    /// The tunnel that it is.
    pub(in crate::agent) const fn tunnel(&self) -> Option<&Tunnel> {
        match self {
            Backing::Vxlan(tunnel, _) | Backing::Carried(tunnel, _) => Some(tunnel),
            _ => None,
        }
    }
}

/// A kernel interface that no port has any more. The kernel deletes it when this is dropped.
pub struct Gone {
    _device: KernelDevice,
    _parts: Vec<PortParts>,
}

impl Gone {
    /// A closed port's, with what its worker had of it.
    pub(super) fn closed(device: KernelDevice, parts: Vec<PortParts>) -> Self {
        Self { _device: device, _parts: parts }
    }

    /// One that never was a port's.
    pub fn unused(device: KernelDevice) -> Self {
        Self { _device: device, _parts: Vec::new() }
    }
}
