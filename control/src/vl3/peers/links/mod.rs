//! What there is: our links, theirs, and what each peer announces. Decisions are `pairing`'s.
//!
//! | file | its part |
//! |---|---|
//! | here | what is known of the network, and what each peer may announce |
//! | `ours` | links that we dial |
//! | `theirs` | links by which we are dialled |
//! | `report` | what is told of both |

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use ipnet::IpNet;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::Peer;
use super::announced::{Announced, Refused, Territory};
use super::order::Age;
use super::pairing::{Action, Candidate, Pairing};
use super::ports::Ports;
use crate::client::Phase;
use crate::domain;

mod ours;
mod report;
mod theirs;

use ours::Ours;
#[cfg(test)]
pub(super) use theirs::Entry;
use theirs::Theirs;

/// What we are in the network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Own {
    /// Our addresses, each with the prefix that it is of.
    pub addresses: Vec<(IpAddr, IpNet)>,
    /// The whole network's prefixes, without bits behind their length.
    pub network: Vec<IpNet>,
}

impl Own {
    /// What an endpoint with these prefixes is: the first address of each is its own, and the network has half of the bits, as in the
    /// routes that clients get.
    pub fn of(prefixes: impl IntoIterator<Item = IpNet>) -> Self {
        let addresses: Vec<(IpAddr, IpNet)> =
            prefixes.into_iter().map(|prefix| (prefix.network(), prefix.trunc())).collect();
        let half = |(_, prefix): &(IpAddr, IpNet)| IpNet::new(prefix.network(), prefix.max_prefix_len() / 2);
        let mut network: Vec<IpNet> =
            addresses.iter().filter_map(|one| half(one).ok()).map(|one| one.trunc()).collect();
        network.dedup();
        Self { addresses, network }
    }
}

/// All links of one endpoint.
pub(super) struct Links {
    /// Its ports and routes.
    pub ports: Box<dyn Ports>,
    /// By which others' Requests to us are told from our own.
    pub mark: String,
    /// Something changed that decisions depend on.
    pub changed: Notify,
    state: Mutex<State>,
    told: watch::Sender<Vec<Peer>>,
}

struct State {
    pairing: Pairing,
    own: Own,
    ours: BTreeMap<String, Ours>,
    theirs: BTreeMap<String, Theirs>,
    /// What each endpoint is found by: `service` or `service@domain`.
    services: BTreeMap<String, String>,
    refused: u64,
    /// Why a peer's last call was refused, and when; by the peer's name without its domain, which a caller does not say.
    turned_away: BTreeMap<String, (SystemTime, String)>,
}

impl Links {
    pub fn new(pairing: Pairing, ports: Box<dyn Ports>) -> Self {
        let state = State {
            pairing,
            own: Own::default(),
            ours: BTreeMap::new(),
            theirs: BTreeMap::new(),
            services: BTreeMap::new(),
            refused: 0,
            turned_away: BTreeMap::new(),
        };
        let (told, _) = watch::channel(Vec::new());
        let mark = uuid::Uuid::new_v4().to_string();
        Self { ports, mark, changed: Notify::new(), state: Mutex::new(state), told }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Held for statements on plain data, which leave it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn peers(&self) -> watch::Receiver<Vec<Peer>> {
        self.told.subscribe()
    }

    pub fn own(&self) -> Own {
        self.lock().own.clone()
    }

    /// We are something else now. Returns whether that is so.
    pub fn set_own(&self, own: Own) -> bool {
        let mut state = self.lock();
        let changed = state.own != own;
        state.own = own;
        changed
    }

    pub fn registered_as(&self, age: Age) {
        self.lock().pairing.registered_as(age);
        self.changed.notify_one();
    }

    /// The registry tells of an endpoint, for the first time or again: it may just have come back. A link of ours to it that is not
    /// up is tried at once, whatever pause it is in.
    pub fn found(&self, service: &str, candidate: Candidate) {
        let mut state = self.lock();
        state.services.insert(candidate.name.clone(), service.to_owned());
        if let Some(ours) = state.ours.get(&candidate.name) {
            let waits = matches!(ours.status.borrow().phase, Phase::Requesting | Phase::Healing);
            ours.session.as_ref().filter(|_| waits).inspect(|session| session.refresh());
        }
        state.pairing.registered(candidate, Instant::now());
        drop(state);
        self.changed.notify_one();
    }

    pub fn left(&self, name: &str) {
        let mut state = self.lock();
        state.services.remove(name);
        state.turned_away.remove(domain::target(name));
        state.pairing.unregistered(name);
        drop(state);
        self.changed.notify_one();
    }

    /// What is to be done now; and when to look again, if nothing happens before.
    pub fn decide(&self) -> (Vec<Action>, Option<Instant>) {
        let mut state = self.lock();
        if state.own.addresses.is_empty() {
            return (Vec::new(), None);
        }
        let actions = state.pairing.decide(Instant::now());
        (actions, state.pairing.next_look())
    }

    /// What a peer is asked for by.
    pub fn service_of(&self, peer: &str) -> Option<String> {
        self.lock().services.get(peer).cloned()
    }

    /// Whom our link with this id leads to.
    pub fn peer_of(&self, id: &str) -> String {
        let state = self.lock();
        let found = state.ours.keys().find(|peer| state.pairing.link_id(peer) == id);
        found.cloned().unwrap_or_default()
    }

    /// The prefixes that may be routed to a peer.
    fn judge(
        &self,
        state: &State,
        peer: &str,
        port: Option<&str>,
        said: &Announced,
    ) -> Result<Vec<IpNet>, Refused> {
        said.admit(&state.territory(&*self.ports, peer, &self.port_of(peer), port))
    }

    /// How many announcements were refused.
    pub fn refused(&self) -> u64 {
        self.lock().refused
    }
}

impl State {
    /// What this peer must not announce.
    fn territory(
        &self,
        ports: &dyn Ports,
        peer: &str,
        our_port: &str,
        their_port: Option<&str>,
    ) -> Territory {
        let own: Vec<IpNet> = self.own.addresses.iter().map(|(_, prefix)| *prefix).collect();
        let mut taken = Vec::new();
        for (other, ours) in self.ours.iter().filter(|(other, _)| *other != peer) {
            let prefixes = ours.leg.iter().flat_map(|(said, _)| &said.prefixes);
            taken.extend(prefixes.map(|prefix| (format!("peer {other}"), *prefix)));
        }
        let mut peers_ports = vec![our_port];
        peers_ports.extend(their_port);
        for theirs in self.theirs.values() {
            let name = self.name_of(&theirs.caller);
            if name == peer {
                peers_ports.push(&theirs.port);
            } else if theirs.up {
                let prefixes = theirs.announced.prefixes.iter();
                taken.extend(prefixes.map(|prefix| (format!("peer {name}"), *prefix)));
            }
        }
        // What is left are clients that kept an address of an endpoint that is no more.
        let foreign = |prefix: &IpNet| !own.iter().any(|own| own.contains(prefix));
        let of_peers =
            |prefix: &IpNet, taken: &[(String, IpNet)]| taken.iter().any(|(_, one)| one.contains(prefix));
        for (prefix, port) in ports.routes() {
            if foreign(&prefix) && !peers_ports.contains(&port.as_str()) && !of_peers(&prefix, &taken) {
                taken.push((format!("port {port}"), prefix));
            }
        }
        Territory { own, network: self.own.network.clone(), taken }
    }
}
