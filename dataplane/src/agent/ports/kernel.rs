//! Opening ports that are interfaces of the kernel.

use std::os::fd::OwnedFd;

use super::super::open_error::{Cause, OpenError};
use super::super::{Link, SentFds, sent};
use super::{Backing, Ports, up};
use crate::model::{KernelSpec, Mode, Netns, PortName};
use crate::port::kernel::{self, InterfaceAddress, KernelDevice};
use crate::port::{PortIndex, PortParts};
use crate::tables::WorkerId;

impl Ports {
    pub(super) fn open_kernel(
        &mut self,
        port: &PortName,
        spec: &KernelSpec,
        index: PortIndex,
        worker: WorkerId,
        fds: &SentFds,
    ) -> Result<(Backing, Link), OpenError> {
        let (parts, device) = match spec.device {
            Some(inode) => adopt_kernel(spec, index, sent::copy(fds, inode)?)?,
            None => {
                let device = match self.made.remove(port) {
                    Some(device) => device,
                    None => self.make_here(spec, fds)?,
                };
                (device.parts(index), device)
            }
        };
        self.engine.attach(index, worker, parts)?;
        Ok((Backing::Kernel(device), up(spec.ifname.as_str())))
    }

    /// Makes an interface that could not be made ahead, because one that leaves had its name.
    fn make_here(&mut self, spec: &KernelSpec, fds: &SentFds) -> Result<KernelDevice, OpenError> {
        self.gone.clear();
        kernel::create(&kernel_spec(spec, fds)?).map_err(OpenError::system)
    }
}

pub(in crate::agent) fn kernel_spec(
    spec: &KernelSpec,
    fds: &SentFds,
) -> Result<kernel::KernelSpec, OpenError> {
    let netns = match &spec.netns {
        None => None,
        Some(Netns::Sent(inode)) => Some(sent::netns(fds, *inode)?.into()),
        Some(Netns::Path(path)) => Some(crate::netns::open(path.as_ref()).map_err(OpenError::system)?.into()),
    };
    let address =
        |prefix: &crate::model::Prefix| InterfaceAddress { address: prefix.address, prefix: prefix.len };
    Ok(kernel::KernelSpec {
        kind: match spec.mode {
            Mode::Ethernet => kernel::Kind::Tap,
            Mode::Ip => kernel::Kind::Tun,
        },
        netns,
        addresses: spec.addresses.iter().map(address).collect(),
        mtu: spec.mtu.get().into(),
        queues: spec.queues.get(),
        ..kernel::KernelSpec::new(spec.ifname.as_str())
    })
}

fn adopt_kernel(
    spec: &KernelSpec,
    index: PortIndex,
    queue: OwnedFd,
) -> Result<(PortParts, KernelDevice), OpenError> {
    let refused = |reason: String| OpenError::new(Cause::Request, reason);
    let (parts, device) = kernel::adopt(index, queue).map_err(|error| refused(error.to_string()))?;
    let mode = if device.kind() == kernel::Kind::Tun { Mode::Ip } else { Mode::Ethernet };
    if device.ifname() != spec.ifname.as_str() {
        let (found, wanted) = (device.ifname(), spec.ifname.as_str());
        return Err(refused(format!("the descriptor is of interface {found}, not of {wanted}")));
    }
    if mode != spec.mode {
        return Err(refused(format!(
            "interface {} is a {:?}, not what mode says",
            device.ifname(),
            device.kind()
        )));
    }
    Ok((parts, device))
}
