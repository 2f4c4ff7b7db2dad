//! The interfaces of one socket: which there are, who has them, and what becomes of an offer for one.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use super::InterfaceConfig;
use crate::handshake::{Admission, Directory, HandshakeError, Offer, OfferedRegion, OfferedRing, PeerLimits};
use crate::link::Link;
use crate::queue::server_queues;
use crate::region::{Limits, Region};
use crate::ring::{Direction, RingSpec};
use crate::socket::PeerCredentials;

/// The interfaces of a listener, and who has them.
#[derive(Debug, Default)]
pub(super) struct Interfaces(BTreeMap<u32, Interface>);

#[derive(Debug)]
struct Interface {
    config: InterfaceConfig,
    /// The connection that has it, from INIT on.
    held_by: Option<u64>,
}

impl Interfaces {
    /// Adds one; `false` if the id is taken.
    pub(super) fn add(&mut self, id: u32, config: InterfaceConfig) -> bool {
        let free = !self.0.contains_key(&id);
        if free {
            self.0.insert(id, Interface { config, held_by: None });
        }
        free
    }

    /// Takes one away, with the connection that has it, if any.
    pub(super) fn remove(&mut self, id: u32) -> Option<Option<u64>> {
        self.0.remove(&id).map(|interface| interface.held_by)
    }

    /// The connection that has an interface.
    pub(super) fn holder(&self, id: u32) -> Option<u64> {
        self.0.get(&id)?.held_by
    }

    /// Notes that a connection has an interface, from INIT on.
    pub(super) fn hold(&mut self, id: u32, token: u64) {
        if let Some(interface) = self.0.get_mut(&id) {
            interface.held_by = Some(token);
        }
    }

    /// Frees the interface that a connection had.
    pub(super) fn release(&mut self, token: u64) -> Option<u32> {
        let (&id, interface) = self.0.iter_mut().find(|(_, interface)| interface.held_by == Some(token))?;
        interface.held_by = None;
        Some(id)
    }

    /// What HELLO may promise before it is known which interface is wanted.
    pub(super) fn widest_limits(&self) -> PeerLimits {
        let limits = self.0.values().map(|interface| interface.config.limits);
        limits
            .reduce(|a, b| PeerLimits {
                rings: a.rings.max(b.rings),
                regions: wider(a.regions, b.regions),
                ..a
            })
            .unwrap_or_default()
    }

    /// Maps what a client announced.
    pub(super) fn build(&self, offer: Offer<OwnedFd>, peer: PeerCredentials) -> Result<Link, HandshakeError> {
        // An interface removed during its handshake takes the connection with it, so it is still there.
        let limits = self.0.get(&offer.id).ok_or(HandshakeError::Removed)?.config.limits.regions;
        let map = |region: OfferedRegion<OwnedFd>| Region::map_peer(region.file, region.size, &limits);
        let regions = offer.regions.into_iter().map(map).collect::<Result<Vec<_>, _>>()?;
        let c2s = offer.c2s.into_iter().map(|ring| spec(Direction::ClientToServer, ring));
        let s2c = offer.s2c.into_iter().map(|ring| spec(Direction::ServerToClient, ring));
        let queues = server_queues(regions, c2s.chain(s2c).collect(), offer.header)?;
        Ok(Link::new(offer.mode, (offer.program, offer.interface), peer, queues))
    }
}

impl Directory for Interfaces {
    fn find(&self, id: u32) -> Option<Admission<'_>> {
        let Interface { config, held_by } = self.0.get(&id)?;
        let InterfaceConfig { mode, name, secret, limits } = config;
        Some(Admission { mode: *mode, secret, name, limits, busy: held_by.is_some() })
    }
}

fn wider(a: Limits, b: Limits) -> Limits {
    Limits { max_regions: a.max_regions.max(b.max_regions), ..a }
}

fn spec(direction: Direction, ring: OfferedRing<OwnedFd>) -> RingSpec {
    RingSpec { direction, location: ring.location, event: ring.event }
}
