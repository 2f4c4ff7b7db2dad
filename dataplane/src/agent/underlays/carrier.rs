//! One port that is an underlay: its tunnels, who is behind it, and what is to be said on the link.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use super::kernel::Kernel;
use crate::model::PortName;
use crate::port::PortIndex;
use crate::tables::{Hop, Line, Tables};
use crate::underlay::l2::kernel::Way;
use crate::underlay::l2::neighbours::{Neighbours, Question};
use crate::underlay::l2::station::Station;

/// A tunnel on its carrier.
pub(super) struct Carried {
    pub index: PortIndex,
    pub local: IpAddr,
    pub remote: SocketAddr,
    pub max_frame: usize,
    /// Who is asked for.
    pub next_hop: Option<IpAddr>,
}

/// One port that is an underlay.
pub(super) struct Carrier {
    pub index: PortIndex,
    pub station: Station,
    pub mtu: usize,
    pub tunnels: BTreeMap<PortName, Carried>,
    pub neighbours: Neighbours,
    /// Paths that are narrower than the link, and until when that is believed.
    pub narrow: HashMap<SocketAddr, (usize, Instant)>,
    /// Who does ARP, neighbour discovery and routes, if it is the kernel.
    pub kernel: Option<Kernel>,
    pub changed: bool,
}

impl Carrier {
    fn line(&self) -> Line {
        let mut endpoints: Vec<SocketAddr> =
            self.tunnels.values().map(|tunnel| SocketAddr::new(tunnel.local, tunnel.remote.port())).collect();
        endpoints.sort_unstable();
        endpoints.dedup();
        Line { mac: self.station.mac(), addresses: self.station.addresses().to_vec(), endpoints }
    }

    fn hop(&self, tunnel: &Carried) -> Option<Hop> {
        let to = self.neighbours.get(tunnel.next_hop?)?;
        let narrower = self.narrow.get(&tunnel.remote).map_or(0, |(mtu, _)| self.mtu.saturating_sub(*mtu));
        let max_frame = tunnel.max_frame.saturating_sub(narrower);
        Some(Hop { from: self.station.mac(), to, local: tunnel.local, max_frame })
    }

    pub fn put_into(&mut self, tables: &mut Tables) {
        self.changed = false;
        let line = self.line();
        if let Some(kernel) = &mut self.kernel {
            kernel.steer(&line.endpoints);
        }
        tables.set_line(self.index, Some(Arc::new(line)));
        for tunnel in self.tunnels.values() {
            tables.set_hop(tunnel.index, self.hop(tunnel));
        }
    }

    /// Who is asked for, to reach `remote`.
    pub fn next_hop(&mut self, local: IpAddr, remote: IpAddr) -> Option<IpAddr> {
        let Some(kernel) = self.kernel.as_mut().filter(|_| !self.station.has_gateway(remote)) else {
            return self.station.next_hop(remote);
        };
        match kernel.tables.way(local, remote) {
            Ok(Way::By(next_hop)) => Some(next_hop),
            Ok(Way::Elsewhere) => None,
            Err(error) => {
                tracing::warn!("asking the kernel for the way from {local} to {remote}: {error}");
                None
            }
        }
    }

    /// The kernel's routes have changed.
    pub fn find_ways(&mut self, now: Instant) {
        let ends: Vec<_> =
            self.tunnels.iter().map(|(name, t)| (name.clone(), t.local, t.remote.ip(), t.next_hop)).collect();
        for (name, local, remote, before) in ends {
            let after = self.next_hop(local, remote);
            if after == before {
                continue;
            }
            if let Some(after) = after {
                self.neighbours.want(after, now);
            }
            if let Some(before) = before {
                self.neighbours.leave(before);
            }
            if let Some(tunnel) = self.tunnels.get_mut(&name) {
                tunnel.next_hop = after;
            }
            if after.is_none() {
                say_no_way(local, remote);
            }
            self.changed = true;
        }
        let mac = self.kernel.as_mut().and_then(|kernel| kernel.tables.mac().ok().flatten());
        if let Some(mac) = mac.filter(|mac| *mac != self.station.mac()) {
            self.station = self.station.clone().with_mac(mac);
            self.changed = true;
        }
    }

    /// Reads the kernel's neighbours.
    pub fn find_neighbours(&mut self, now: Instant) {
        let Some(kernel) = &mut self.kernel else { return };
        let wanted: Vec<_> = self.neighbours.iter().map(|(address, _)| address).collect();
        for address in wanted {
            match kernel.tables.neighbour(address) {
                Ok(mac) => self.changed |= self.neighbours.told(address, mac, now),
                Err(error) => tracing::warn!("asking the kernel who has {address}: {error}"),
            }
        }
    }

    /// Does what is due. Returns what is to be said on the link.
    pub fn turn(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let (questions, lost) = self.neighbours.turn(now);
        let paths = self.narrow.len();
        self.narrow.retain(|_, (_, until)| *until > now);
        self.changed |= lost || paths != self.narrow.len();
        let Some(kernel) = &mut self.kernel else {
            let frame = |Question { address, to }: Question| self.station.question(address, to);
            return questions.into_iter().map(frame).collect();
        };
        for Question { address, .. } in &questions {
            if let Err(error) = kernel.tables.resolve(*address) {
                tracing::warn!("having the kernel find out who has {address}: {error}");
            }
        }
        if !questions.is_empty() {
            self.find_neighbours(now);
        }
        Vec::new()
    }

    /// When there is something to do.
    pub fn due(&self) -> Option<Instant> {
        let narrow = self.narrow.values().map(|(_, until)| *until).min();
        self.neighbours.due().into_iter().chain(narrow).min()
    }
}

/// Says in the log that a tunnel leads nowhere.
pub(super) fn say_no_way(local: IpAddr, remote: IpAddr) {
    tracing::warn!(
        "there is no way from {local} to {remote} by the underlay's interface; give the interface the address, or a route"
    );
}
