//! Opening ports on interfaces by AF_XDP, and what becomes of them while the interface changes, goes and comes back.

use std::time::{Duration, Instant};

use vwire_proto::stats::PortState;

use super::super::memif_sockets::Source;
use super::super::open_error::{Cause, OpenError};
use super::super::underlays::KernelSide;
use super::super::{Link, SentFds, sent};
use super::{Backing, Ports, up};
use crate::model::{AfXdpSpec, CopyMode, Netns, PortName};
use crate::port::af_xdp::{
    self, AfXdpDevice, AfXdpError, Interface, LinkChange, LinkEvents, QueueChoice, Steerer, Steering,
};
use crate::port::{PortIndex, PortParts};
use crate::tables::WorkerId;

/// A port that failed is not opened again sooner than this, unless its interface changed.
const RETRY: Duration = Duration::from_secs(1);

/// An interface that a port is on, or was and will be again.
pub(in crate::agent) struct Nic {
    spec: af_xdp::AfXdpSpec,
    events: LinkEvents,
    /// `None` while the interface is not there, or won't do.
    device: Option<AfXdpDevice>,
    opened: Instant,
}

impl Nic {
    /// Says which datagrams come to the port, if not all frames do, while there is an interface.
    pub(in crate::agent) fn steerer(&self) -> Option<Steerer> {
        self.device.as_ref()?.steerer()
    }

    /// The interface, while it is there.
    pub(in crate::agent) fn interface(&self) -> Option<&Interface> {
        self.device.as_ref().map(AfXdpDevice::interface)
    }

    /// What of the interface is the kernel's, if the port gets only some of its frames.
    pub(super) fn kernel_side(&self) -> Option<KernelSide<'_>> {
        let (steerer, interface) = (self.steerer()?, self.interface()?);
        let steer = move |to, ours| {
            let done = if ours { steerer.add(to) } else { steerer.remove(to) };
            done.map_err(|error| error.to_string())
        };
        let netns = self.spec.netns.as_ref().map(std::os::fd::AsFd::as_fd);
        Some(KernelSide { index: interface.index, netns, steer: Box::new(steer) })
    }

    /// The namespace that it was given in a descriptor.
    pub(super) fn take_netns(&mut self) -> Option<std::os::fd::OwnedFd> {
        self.spec.netns.take()
    }

    /// Opens it; a share for each of its workers.
    fn open(&mut self, index: PortIndex) -> Result<Vec<PortParts>, AfXdpError> {
        self.opened = Instant::now();
        let (device, shares) = af_xdp::open(&self.spec, index)?;
        self.device = Some(device);
        Ok(shares)
    }

    /// The device goes; where its datagrams went is kept.
    fn lose(&mut self) -> bool {
        let Some(device) = self.device.take() else { return false };
        if let Some(steerer) = device.steerer() {
            self.spec.steering = Steering::Datagrams(steerer.destinations());
        }
        true
    }

    fn link(&self) -> Link {
        let ifname = self.spec.ifname.as_str();
        match &self.device {
            Some(device) if device.interface().up => {
                let copies = if device.is_zero_copy() { "zero copy" } else { "copies" };
                let hook = if device.is_native() { "native" } else { "generic" };
                up(&format!("{ifname} ({hook} XDP, {copies})"))
            }
            Some(_) => {
                Link { reason: format!("interface {ifname} is down, or has no carrier"), ..Link::default() }
            }
            None => Link { reason: format!("interface {ifname} is gone"), ..Link::default() },
        }
    }
}

impl Ports {
    pub(super) fn open_af_xdp(
        &mut self,
        port: &PortName,
        spec: &AfXdpSpec,
        index: PortIndex,
        workers: &[WorkerId],
        fds: &SentFds,
    ) -> Result<(Backing, Link), OpenError> {
        // An underlay takes its tunnels' datagrams, once there are tunnels; the rest of the interface stays the kernel's.
        let steering = match self.engine.is_underlay(index) {
            true => Steering::Datagrams(Vec::new()),
            false => Steering::All,
        };
        let spec = port_spec(spec, steering, fds)?;
        let events = LinkEvents::open(&spec).map_err(OpenError::system)?;
        let mut nic = Nic { spec, events, device: None, opened: Instant::now() };
        let shares = nic.open(index).map_err(refused)?;
        let source = Source::Nic(port.clone());
        self.watched.add(std::os::fd::AsFd::as_fd(&nic.events), source.clone())?;
        if let Err(error) = self.engine.share(index, workers.iter().copied().zip(shares).collect()) {
            self.watched.forget(&source);
            return Err(error.into());
        }
        let link = nic.link();
        Ok((Backing::AfXdp(Box::new(nic)), link))
    }

    /// Says which datagrams come to a port that does not get all frames; `None` for others, and while the interface is gone.
    pub fn steerer(&self, port: &PortName) -> Option<Steerer> {
        match &self.open.get(port)?.backing {
            Backing::AfXdp(nic) => nic.steerer(),
            _ => None,
        }
    }

    pub(super) fn close_af_xdp(&mut self, port: &PortName) {
        self.watched.forget(&Source::Nic(port.clone()));
    }

    fn nic(&mut self, port: &PortName) -> Option<(&mut Nic, PortIndex)> {
        let open = self.open.get_mut(port)?;
        match &mut open.backing {
            Backing::AfXdp(nic) => Some((nic, open.index)),
            _ => None,
        }
    }

    /// Something happened to the interface of a port.
    pub(in crate::agent) fn nic_changed(&mut self, port: &PortName) {
        let Some((nic, _)) = self.nic(port) else { return };
        for change in nic.events.take() {
            let change = match change {
                LinkChange::Unknown => self.look_again(port),
                change => change,
            };
            match change {
                LinkChange::Is(interface) => self.nic_is(port, &interface),
                LinkChange::Gone => self.nic_gone(port),
                LinkChange::Unknown => {}
            }
        }
    }

    fn look_again(&mut self, port: &PortName) -> LinkChange {
        let Some((nic, _)) = self.nic(port) else { return LinkChange::Unknown };
        match Interface::look(&nic.spec) {
            Ok(Some(interface)) => LinkChange::Is(interface),
            Ok(None) => LinkChange::Gone,
            Err(_) => LinkChange::Unknown,
        }
    }

    fn nic_is(&mut self, port: &PortName, interface: &Interface) {
        let Some((nic, _)) = self.nic(port) else { return };
        match &mut nic.device {
            Some(device) if device.interface().index == interface.index => {
                let before = device.interface().up;
                device.note(interface);
                if before != interface.up {
                    self.say_link(port);
                }
            }
            Some(_) => {
                self.nic_gone(port);
                self.reopen(port);
            }
            None => self.reopen(port),
        }
    }

    fn nic_gone(&mut self, port: &PortName) {
        let Some((nic, _)) = self.nic(port) else { return };
        let lost = nic.lose();
        let reason = nic.link().reason;
        if lost {
            self.down(port, reason);
        } else {
            // A worker noticed first.
            self.explain(port, reason);
        }
    }

    /// Makes the link what the interface's is. The port keeps its halves: an interface comes up again as it was.
    fn say_link(&mut self, port: &PortName) {
        let Some((nic, index)) = self.nic(port) else { return };
        let link = nic.link();
        tracing::info!(%port, up = link.up, reason = %link.reason, "link changed");
        self.counters.port(index).set_state(if link.up { PortState::Up } else { PortState::Down });
        if let Some(open) = self.open.get_mut(port) {
            open.link = link;
        }
        self.touched.insert(port.clone());
        let up = self.open.get(port).is_some_and(|open| open.link.up);
        if up { self.carrier_up(port) } else { self.carrier_down(port) }
    }

    /// A worker gave the port up. Its interface may be gone, of which we shall hear; if not, the port is opened anew.
    pub(in crate::agent) fn nic_fault(&mut self, port: &PortName) {
        let Some((nic, _)) = self.nic(port) else { return };
        nic.lose();
        if nic.opened.elapsed() >= RETRY {
            self.reopen(port);
        }
    }

    fn reopen(&mut self, port: &PortName) {
        let Some((nic, index)) = self.nic(port) else { return };
        let opened = nic.open(index);
        let Some(workers) = self.open.get(port).map(|open| self.workers_of(open)) else { return };
        match opened {
            Ok(shares) => match self.engine.share(index, workers.into_iter().zip(shares).collect()) {
                Ok(()) => {
                    self.say_link(port);
                    self.republish(port);
                }
                Err(error) => tracing::error!(%port, "{error}"),
            },
            Err(error) => {
                self.explain(port, error.to_string());
            }
        }
    }
}

fn refused(error: AfXdpError) -> OpenError {
    match error {
        AfXdpError::Setting(_) | AfXdpError::TooFewQueues { .. } => OpenError::new(Cause::Request, error),
        _ => OpenError::system(error),
    }
}

fn port_spec(spec: &AfXdpSpec, steering: Steering, fds: &SentFds) -> Result<af_xdp::AfXdpSpec, OpenError> {
    let netns = match &spec.netns {
        None => None,
        Some(Netns::Sent(inode)) => Some(sent::any_netns(fds, *inode)?.into()),
        Some(Netns::Path(path)) => Some(crate::netns::open(path.as_ref()).map_err(OpenError::system)?.into()),
    };
    let queues = match &spec.queues[..] {
        [] => QueueChoice::All,
        queues => QueueChoice::These(queues.iter().map(|queue| queue.get().into()).collect()),
    };
    Ok(af_xdp::AfXdpSpec {
        netns,
        queues,
        frame_size: spec.frame_size.get(),
        ring_size: spec.ring_size.get(),
        mode: match spec.mode {
            CopyMode::Auto => af_xdp::CopyMode::Auto,
            CopyMode::ZeroCopy => af_xdp::CopyMode::ZeroCopy,
            CopyMode::Copy => af_xdp::CopyMode::Copy,
            CopyMode::Generic => af_xdp::CopyMode::Generic,
        },
        busy_poll: spec.busy_poll,
        workers: spec.workers.get(),
        steering,
        ..af_xdp::AfXdpSpec::new(spec.ifname.as_str())
    })
}
