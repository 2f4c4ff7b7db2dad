//! Opening tunnels, and the underlay that carries them: with the first tunnel it comes, with the last it goes.

use std::net::SocketAddr;

use vwire_proto::stats::PortState;

use super::super::Link;
use super::super::open_error::{Cause, OpenError};
use super::{Backing, Ports, Underlay, link_of, up};
use crate::model::VxlanSpec;
use crate::port::PortIndex;
use crate::port::vxlan::VxlanTx;
use crate::tables::{Entry, Tunnel, WorkerId};
use crate::underlay::{MtuProbe, UdpSpec, UdpUnderlay};

/// An underlay's MTU where the kernel knows no route to the tunnel's peer yet.
const USUAL_MTU: usize = 1500;

impl Ports {
    pub(super) fn open_vxlan(
        &mut self,
        spec: &VxlanSpec,
        index: PortIndex,
        worker: WorkerId,
    ) -> Result<(Backing, Link), OpenError> {
        let local = spec.endpoint();
        if !self.underlays.contains_key(&local) {
            let underlay = self.open_underlay(local, worker)?;
            self.underlays.insert(local, underlay);
        }
        let Some(underlay) = self.underlays.get_mut(&local) else {
            return Err(OpenError::new(Cause::Engine, "the underlay went away"));
        };
        let tunnel = Tunnel {
            port: index,
            underlay: underlay.index,
            remote: SocketAddr::new(spec.remote, spec.port.get()),
            vni: spec.vni,
            max_frame: max_frame(spec, &underlay.probe),
            link: link_of(spec.mode),
        };
        let attached = self.engine.attach(index, underlay.worker, VxlanTx::new(tunnel.clone()).into_parts());
        underlay.tunnels += 1;
        if let Err(error) = attached {
            self.leave_underlay(local);
            return Err(error.into());
        }
        let peer = tunnel.remote.to_string();
        Ok((Backing::Vxlan(tunnel, local), up(&peer)))
    }

    fn open_underlay(&mut self, local: SocketAddr, worker: WorkerId) -> Result<Underlay, OpenError> {
        let index = self.take_slot(&underlay_name(local), "udp")?;
        let opened = UdpUnderlay::open(&UdpSpec::new(index, local)).map_err(OpenError::system);
        let attached = opened.and_then(|underlay| {
            let (parts, probe) = underlay.into_parts();
            self.engine.attach(index, worker, parts)?;
            Ok(probe)
        });
        let probe = attached.inspect_err(|_| self.give_slot(index))?;
        self.counters.port(index).set_state(PortState::Up);
        Ok(Underlay { index, worker, probe, tunnels: 0, fault: None })
    }

    /// One tunnel less; closes the underlay after its last.
    pub(super) fn leave_underlay(&mut self, local: SocketAddr) {
        let Some(underlay) = self.underlays.get_mut(&local) else { return };
        underlay.tunnels -= 1;
        if underlay.tunnels == 0 {
            let index = underlay.index;
            self.tables.set(index, Entry::default());
            self.underlays.remove(&local);
            self.promised.remove(&local);
            self.detach(index);
            self.give_slot(index);
        }
    }
}

/// Not a name that a port can have, as it contains a colon.
pub(in crate::agent) fn underlay_name(local: SocketAddr) -> String {
    format!("udp:{local}")
}

/// The longest frame of a tunnel: from the MTU that was given, or from what the kernel knows of the path now.
fn max_frame(spec: &VxlanSpec, probe: &MtuProbe) -> usize {
    if let Some(mtu) = spec.underlay_mtu {
        return spec.max_frame(mtu.get().into());
    }
    probe.max_frame(spec.remote).unwrap_or_else(|error| {
        // The route may come later, with the address or the routing daemon. Frames are counted as refused by
        // the kernel until then.
        tracing::warn!("{error}; assuming {USUAL_MTU} bytes");
        spec.max_frame(USUAL_MTU)
    })
}
