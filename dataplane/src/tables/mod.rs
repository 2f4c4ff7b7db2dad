//! Where each port's frames go. A [`Tables`] never changes: the agent makes a new one and swaps it in whole (see [`swap`]), so
//! a worker sees one state or the next, never a mixture, and a packet path needs no lock.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::offload::Link;
use crate::port::PortIndex;
use crate::route::domain::{Domain, DomainIndex, MemberIndex};

mod line;
mod owners;
pub mod swap;

pub use line::{Hop, Line};
pub use owners::Owners;

/// Which worker, by its place in `[workers] cores`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct WorkerId(pub u16);

/// What becomes of the frames that enter by a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Forward {
    /// Nothing is configured: they are dropped as `no_egress`.
    #[default]
    Nowhere,
    /// All leave by this port.
    Xconnect(PortIndex),
    /// Each packet goes where its domain's longest prefix leads.
    Route(Place),
}

/// A port's place in a routing domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The domain, by its place in [`Tables::domains`].
    pub domain: DomainIndex,
    /// The port's own.
    pub member: MemberIndex,
}

/// One port's line in the tables.
#[derive(Debug, Clone, Copy, Default)]
pub struct Entry {
    /// What becomes of frames that enter here.
    pub forward: Forward,
    /// The workers that have the port, if it is attached to any.
    pub owner: Option<Owners>,
}

/// A VXLAN network identifier: 24 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Vni(u32);

impl Vni {
    /// The VNI, unless it needs more than 24 bits.
    pub const fn new(raw: u32) -> Option<Self> {
        if raw < 1 << 24 { Some(Self(raw)) } else { None }
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// A point-to-point VXLAN tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// The port that stands for the tunnel in the tables.
    pub port: PortIndex,
    /// The underlay that carries it; it knows the local address and UDP port.
    pub underlay: PortIndex,
    /// The peer's address and UDP port.
    pub remote: std::net::SocketAddr,
    /// The network identifier, in both directions.
    pub vni: Vni,
    /// Longest inner Ethernet frame that is sent, in bytes: the underlay's MTU less 50 (IPv4) or 70 (IPv6), plus 14. With
    /// [`Link::Ip`] the frame includes the Ethernet header that is put before each packet.
    pub max_frame: usize,
    /// What the port's frames begin with. On the wire there is always an Ethernet header.
    pub link: Link,
}

/// Which tunnel a datagram belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TunnelLookup {
    /// It enters by this port, as a frame that begins so.
    Found(PortIndex, Link),
    /// No tunnel of this underlay has this VNI.
    UnknownVni,
    /// There is such a tunnel, but its peer is another.
    UnknownSender,
}

/// What is known of the tunnel with a key.
#[derive(Debug, Clone, Copy)]
struct Keyed {
    port: PortIndex,
    max_frame: usize,
    link: Link,
}

/// All tunnels, keyed by underlay (that is: local address and UDP port), VNI and the sender's address. The sender's UDP port is
/// free: it carries the inner flow's entropy (RFC 7348 §5).
#[derive(Debug, Clone, Default)]
pub struct TunnelTable {
    by_key: HashMap<(PortIndex, Vni, IpAddr), Keyed>,
    vnis: HashMap<(PortIndex, Vni), u32>,
}

impl TunnelTable {
    /// Adds a tunnel. False if another has the same key.
    pub fn insert(&mut self, tunnel: &Tunnel) -> bool {
        let key = (tunnel.underlay, tunnel.vni, tunnel.remote.ip());
        if self.by_key.contains_key(&key) {
            return false;
        }
        let Tunnel { port, max_frame, link, .. } = *tunnel;
        self.by_key.insert(key, Keyed { port, max_frame, link });
        *self.vnis.entry((tunnel.underlay, tunnel.vni)).or_default() += 1;
        true
    }

    /// Takes a tunnel out again.
    pub fn remove(&mut self, tunnel: &Tunnel) {
        let key = (tunnel.underlay, tunnel.vni, tunnel.remote.ip());
        if self.by_key.get(&key).is_none_or(|found| found.port != tunnel.port) {
            return;
        }
        self.by_key.remove(&key);
        let vni = (tunnel.underlay, tunnel.vni);
        if let Some(count) = self.vnis.get_mut(&vni) {
            *count -= 1;
            if *count == 0 {
                self.vnis.remove(&vni);
            }
        }
    }

    /// Finds the tunnel of a datagram that `underlay` received.
    pub fn lookup(&self, underlay: PortIndex, vni: Vni, sender: IpAddr) -> TunnelLookup {
        match self.by_key.get(&(underlay, vni, sender)) {
            Some(found) => TunnelLookup::Found(found.port, found.link),
            None if self.vnis.contains_key(&(underlay, vni)) => TunnelLookup::UnknownSender,
            None => TunnelLookup::UnknownVni,
        }
    }

    /// The [`Tunnel::max_frame`] of the tunnel with this key.
    pub fn max_frame(&self, underlay: PortIndex, vni: Vni, sender: IpAddr) -> Option<usize> {
        self.by_key.get(&(underlay, vni, sender)).map(|found| found.max_frame)
    }
}

/// The forwarding state of the whole engine at one generation.
#[derive(Debug, Clone, Default)]
pub struct Tables {
    /// Raised by one with each change; what `Apply` names as its base.
    pub generation: u64,
    /// Which publication this is, as the engine counts them: a change may take several, and one that is undone takes some, too.
    pub publication: u64,
    /// By port index.
    pub entries: Vec<Entry>,
    /// The tunnels of all underlays.
    pub tunnels: TunnelTable,
    /// The routing domains, by index. Versions of the tables share those that did not change.
    pub domains: Vec<Option<Arc<Domain>>>,
    /// The underlays on Ethernet ports, by the port's index.
    pub lines: Vec<Option<Arc<Line>>>,
    /// Where the tunnels of those go, by the tunnel's port.
    pub hops: Vec<Option<Hop>>,
}

impl Tables {
    /// The line of `port`; ports beyond the table go nowhere and belong to no one.
    #[inline]
    pub fn entry(&self, port: PortIndex) -> Entry {
        self.entries.get(port.slot()).copied().unwrap_or_default()
    }

    /// The domain at this index.
    #[inline]
    pub fn domain(&self, at: DomainIndex) -> Option<&Domain> {
        self.domains.get(usize::from(at.0))?.as_deref()
    }

    /// The underlay that `port` is, if it is one on an Ethernet port.
    #[inline]
    pub fn line(&self, port: PortIndex) -> Option<&Line> {
        self.lines.get(port.slot())?.as_deref()
    }

    /// Where the tunnel at `port` goes.
    #[inline]
    pub fn hop(&self, port: PortIndex) -> Option<&Hop> {
        self.hops.get(port.slot())?.as_ref()
    }

    /// Says what underlay `port` is, if any.
    pub fn set_line(&mut self, port: PortIndex, line: Option<Arc<Line>>) {
        put(&mut self.lines, port, line);
    }

    /// Says where the tunnel at `port` goes, if that is known.
    pub fn set_hop(&mut self, port: PortIndex, hop: Option<Hop>) {
        put(&mut self.hops, port, hop);
    }

    /// Sets the line of `port`, growing the table as needed.
    pub fn set(&mut self, port: PortIndex, entry: Entry) {
        if self.entries.len() <= port.slot() {
            self.entries.resize(port.slot() + 1, Entry::default());
        }
        self.entries[port.slot()] = entry;
    }
}

fn put<T: Clone>(list: &mut Vec<Option<T>>, port: PortIndex, value: Option<T>) {
    if list.len() <= port.slot() {
        list.resize(port.slot() + 1, None);
    }
    list[port.slot()] = value;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tunnel(vni: u32, remote: &str) -> Tunnel {
        Tunnel {
            port: PortIndex(7),
            underlay: PortIndex(1),
            remote: remote.parse().unwrap(),
            vni: Vni::new(vni).unwrap(),
            max_frame: 1464,
            link: Link::Ip,
        }
    }

    #[test]
    fn a_tunnel_is_found_by_underlay_vni_and_sender_only() {
        let mut table = TunnelTable::default();
        assert!(table.insert(&tunnel(42, "10.9.0.2:4789")));
        let sender = "10.9.0.2".parse().unwrap();
        let vni = Vni::new(42).unwrap();
        assert_eq!(table.lookup(PortIndex(1), vni, sender), TunnelLookup::Found(PortIndex(7), Link::Ip));
        assert_eq!(table.lookup(PortIndex(2), vni, sender), TunnelLookup::UnknownVni);
        assert_eq!(table.lookup(PortIndex(1), Vni::new(43).unwrap(), sender), TunnelLookup::UnknownVni);
        assert_eq!(table.lookup(PortIndex(1), vni, "10.9.0.3".parse().unwrap()), TunnelLookup::UnknownSender);
        assert!(!table.insert(&tunnel(42, "10.9.0.2:4790")), "the key has no remote port");
        assert!(table.insert(&tunnel(42, "10.9.0.3:4789")));
        table.remove(&tunnel(42, "10.9.0.2:4789"));
        let gone = "10.9.0.2".parse().unwrap();
        assert_eq!(table.lookup(PortIndex(1), vni, gone), TunnelLookup::UnknownSender);
        table.remove(&Tunnel { port: PortIndex(8), ..tunnel(42, "10.9.0.3:4789") });
        table.remove(&tunnel(42, "10.9.0.3:4789"));
        table.remove(&tunnel(42, "10.9.0.3:4789"));
        assert_eq!(table.lookup(PortIndex(1), vni, gone), TunnelLookup::UnknownVni);
    }

    #[test]
    fn a_vni_has_24_bits() {
        assert_eq!(Vni::new((1 << 24) - 1).map(Vni::get), Some(0xff_ffff));
        assert_eq!(Vni::new(1 << 24), None);
    }
}
