//! What the agent tells of its ports: links, as they are and as they change, and counters.

use tokio::sync::broadcast;

use super::Agent;
use crate::model::PortName;
use crate::stats::Snapshot;
use crate::tables::Owners;

/// Whether a port can move frames, and with whom.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Link {
    /// True while frames can flow.
    pub up: bool,
    /// Why not.
    pub reason: String,
    /// Who is at the other end.
    pub peer: String,
}

/// A change of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkNotice {
    /// It is new or different.
    Changed(PortName, Link),
    /// The port is gone.
    Removed(PortName),
}

/// A port's counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortReport {
    /// The port, or the underlay as `udp:address:port`.
    pub name: String,
    /// The kind's name.
    pub kind: String,
    /// True while frames can flow.
    pub up: bool,
    /// The workers that have the port, while it is up.
    pub owners: Option<Owners>,
    /// What was counted.
    pub counters: Snapshot,
    /// What the device's driver counted, by its own names; empty where there is none.
    pub device: Vec<(String, u64)>,
}

impl Agent {
    /// Tells the watchers which links have changed.
    pub(super) fn notify(&mut self) {
        for port in self.ports.take_touched() {
            let notice = match self.link(&port) {
                Some(link) => LinkNotice::Changed(port, link),
                None => LinkNotice::Removed(port),
            };
            // Nobody listening is no error.
            let _ = self.notices.send(notice);
        }
    }

    fn link(&self, port: &PortName) -> Option<Link> {
        let lost = || self.lost.get(port).map(|why| Link { reason: why.clone(), ..Link::default() });
        self.ports.link(port).cloned().or_else(lost)
    }

    /// All links.
    pub fn links(&self) -> Vec<(PortName, Link)> {
        let names = self.state.ports().keys();
        names.map(|port| (port.clone(), self.link(port).unwrap_or_default())).collect()
    }

    /// All links as they are, and the changes from here on.
    pub fn watch(&self) -> (Vec<(PortName, Link)>, broadcast::Receiver<LinkNotice>) {
        (self.links(), self.notices.subscribe())
    }

    /// The counters of all ports and underlays, by name.
    pub fn reports(&self) -> Vec<PortReport> {
        self.ports.reports()
    }
}
