//! The tables that the workers read: what of them is to change, and putting them in force.

use std::net::IpAddr;

use super::super::domains::{Line, Lines};
use super::{Backing, Ports, link_of};
use crate::engine::EngineError;
use crate::model::{Mac, PortName, PortSpec, State, TouchedRouting, Xconnect};
use crate::port::PortIndex;
use crate::tables::{Entry, Forward};

impl Ports {
    /// Whether a cross-connect is in the tables.
    pub fn in_force(&self, xconnect: &Xconnect) -> bool {
        let [a, b] = xconnect.ends();
        self.joined.get(a) == Some(b)
    }

    /// The cross-connect that a port has in the tables.
    pub fn xconnect_of(&self, port: &PortName) -> Option<Xconnect> {
        Xconnect::new(port.clone(), self.joined.get(port)?.clone()).ok()
    }

    /// Joins two ports in the tables to come.
    pub fn join(&mut self, xconnect: &Xconnect) {
        let [a, b] = xconnect.ends();
        for (port, peer) in [(a, b), (b, a)] {
            if self.joined.insert(port.clone(), peer.clone()).as_ref() != Some(peer) {
                self.republish(port);
            }
            self.call_alike(port, peer);
        }
    }

    /// Separates them.
    pub fn part(&mut self, xconnect: &Xconnect) {
        if self.in_force(xconnect) {
            for port in xconnect.ends() {
                self.joined.remove(port);
                self.republish(port);
            }
        }
    }

    /// Makes what was touched of the routing domains as `state` says, in the tables to come.
    pub fn route(&mut self, touched: &TouchedRouting, state: &State) {
        let mut domains = std::mem::take(&mut self.domains);
        for port in domains.sync(touched, state, self) {
            self.republish(&port);
        }
        self.domains = domains;
        self.unpublished = true;
    }

    /// Somebody at a port said which hardware address is theirs.
    pub(in crate::agent) fn learn(&mut self, port: PortIndex, address: IpAddr, mac: Mac) {
        if let Forward::Route(place) = self.tables.entry(port).forward {
            self.unpublished |= self.domains.learn(place, address, mac);
        }
    }

    /// A port's line in the tables is to be made anew, and its peer's.
    pub(in crate::agent) fn republish(&mut self, port: &PortName) {
        self.stale.extend(self.joined.get(port).cloned());
        self.stale.insert(port.clone());
        self.unpublished = true;
    }

    /// True if ports came or went that the tables in force do not know of.
    pub fn unpublished(&self) -> bool {
        self.unpublished
    }

    /// Puts tables of the open ports in force, as they are joined.
    ///
    /// # Errors
    /// [`EngineError::Stuck`].
    pub fn publish(&mut self, generation: u64) -> Result<(), EngineError> {
        for port in std::mem::take(&mut self.stale) {
            let line = self.line(&port);
            self.domains.relink(&port, line);
            if let Some(open) = self.open.get(&port) {
                let peer = self.joined.get(&port).and_then(|peer| self.open.get(peer));
                let routed = || self.domains.place(&port).map_or(Forward::Nowhere, Forward::Route);
                let forward = peer.map_or_else(routed, |peer| Forward::Xconnect(peer.index));
                self.tables.set(open.index, Entry { forward, owner: self.engine.owner(open.index) });
            }
        }
        for underlay in self.underlays.values() {
            let owner = self.engine.owner(underlay.index);
            self.tables.set(underlay.index, Entry { forward: Forward::Nowhere, owner });
        }
        self.carriers.put_into(&mut self.tables);
        self.domains.put_into(&mut self.tables);
        self.tables.generation = generation;
        self.unpublished = false;
        self.engine.publish(self.tables.clone())?;
        self.domains.settled();
        self.carriers.wind();
        Ok(())
    }
}

impl Lines for Ports {
    fn line(&self, port: &PortName) -> Option<Line> {
        let open = self.open.get(port)?;
        let mtu = match (&open.spec, &open.backing) {
            (PortSpec::Kernel(spec), _) => spec.mtu.get(),
            (PortSpec::Dpdk(spec), _) => spec.mtu.get(),
            // Its frames are counted with an Ethernet header, also where the port's have none.
            (_, Backing::Vxlan(tunnel, _) | Backing::Carried(tunnel, _)) => {
                u16::try_from(tunnel.max_frame.saturating_sub(14)).unwrap_or(u16::MAX)
            }
            #[cfg(feature = "af_xdp")]
            (_, Backing::AfXdp(nic)) => {
                nic.interface().map_or(1500, |nic| u16::try_from(nic.mtu).unwrap_or(u16::MAX))
            }
            _ => 1500,
        };
        Some(Line { index: open.index, link: link_of(open.spec.mode().unwrap_or_default()), mtu })
    }
}
