//! Which links there should be, decided from what is known; it does nothing itself.
//!
//! Each endpoint decides alone, from what the registry says and from the links that it sees. That comes to one link for each pair:
//!
//! - The later of two dials the earlier one ([`Age`]). The earlier one waits, but not for ever: a Go endpoint looks once, at its start,
//!   for whom to dial, so one that has been waited for in vain is dialled.
//! - If both have dialled, both see two links. The link whose id (its dialler's) is the greater one stays; the other's dialler hangs up.
//!   Both compare the same two ids, whatever each believes of the other's age.
//! - A Go endpoint never hangs up. Which peers do is seen by the mark in their Requests; to a link of one without it ours gives way.
//! - An endpoint that leaves the registry is hung up on. Its own links to us end with it.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::order::Age;
use crate::domain;

/// An endpoint that the registry told of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// As the registry calls it: with its domain, if it is of another one.
    pub name: String,
    /// The SPIFFE ID that registered it, if the registry says.
    pub identity: Option<String>,
    /// Its place in the order.
    pub age: Age,
}

/// Who dialled us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The name in the path's first segment: without a domain.
    pub name: String,
    /// The SPIFFE ID of the first segment's token, if there is one.
    pub identity: Option<String>,
    /// True if it hangs up on its own when there are two links.
    pub yields: bool,
}

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Open a link to the endpoint `peer` with this id.
    Dial {
        /// Its name in the registry.
        peer: String,
        /// Of the link.
        id: String,
    },
    /// Close our link to it; [`Pairing::hung_up`] is to be told when that is done.
    HangUp {
        /// Its name in the registry.
        peer: String,
        /// Why: for the log.
        why: &'static str,
    },
}

/// What becomes of a peer's call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// There is no link of ours to it.
    Taken,
    /// Ours gives way; it has to be taken out of the network first.
    InPlaceOfOurs,
    /// Ours stays.
    Refused,
}

/// What is known of one peer, and what we do about it.
#[derive(Debug)]
struct Entry {
    /// None: it is not registered, or no more.
    candidate: Option<Candidate>,
    ours: Ours,
    /// Since when it could be linked and is not.
    alone_since: Instant,
}

/// Our link to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ours {
    None,
    Open,
    Closing,
}

/// The links of one endpoint.
#[derive(Debug)]
pub struct Pairing {
    name: String,
    identity: Option<String>,
    age: Option<Age>,
    patience: Duration,
    entries: BTreeMap<String, Entry>,
    /// By the id that the dialler gave.
    incoming: BTreeMap<String, Caller>,
}

impl Pairing {
    /// Of the endpoint `name`, which waits for `patience` until it dials one that should have dialled it. Nothing is decided before
    /// it knows its own age.
    pub fn new(name: &str, identity: Option<String>, patience: Duration) -> Self {
        let (entries, incoming) = (BTreeMap::new(), BTreeMap::new());
        Self { name: name.to_owned(), identity, age: None, patience, entries, incoming }
    }

    /// We are registered, as this.
    pub fn registered_as(&mut self, age: Age) {
        self.age = Some(age);
    }

    /// The registry tells of an endpoint, for the first time or again.
    pub fn registered(&mut self, candidate: Candidate, now: Instant) {
        if self.is_self(&candidate) {
            return;
        }
        let fresh = || Entry { candidate: None, ours: Ours::None, alone_since: now };
        let entry = self.entries.entry(candidate.name.clone()).or_insert_with(fresh);
        if entry.candidate.is_none() {
            entry.alone_since = now;
        }
        entry.candidate = Some(candidate);
    }

    /// An endpoint left the registry.
    pub fn unregistered(&mut self, name: &str) {
        if let Some(entry) = self.entries.get_mut(name) {
            entry.candidate = None;
        }
        self.forget();
    }

    /// Whether a call is taken, where ours to the same peer works or not (`linked`). One that works stays if its id is the greater
    /// one; the caller hears of ours, too, and gives up. One that does not must not keep another from working.
    pub fn may_come(&self, id: &str, caller: &Caller, linked: bool) -> Admission {
        let Some(peer) = self.name_of(caller) else { return Admission::Taken };
        let open = self.entries.get(peer).is_some_and(|entry| entry.ours == Ours::Open);
        match open {
            false => Admission::Taken,
            true if linked && caller.yields && self.link_id(peer).as_str() > id => Admission::Refused,
            true => Admission::InPlaceOfOurs,
        }
    }

    /// A link to us was made, by its dialler's id, or is refreshed.
    pub fn incoming(&mut self, id: &str, caller: Caller) {
        self.incoming.insert(id.to_owned(), caller);
    }

    /// A link to us is gone.
    pub fn incoming_gone(&mut self, id: &str, now: Instant) {
        let Some(caller) = self.incoming.remove(id) else { return };
        for entry in self.entries.values_mut() {
            if entry.candidate.as_ref().is_some_and(|one| domain::target(&one.name) == caller.name) {
                entry.alone_since = now;
            }
        }
    }

    /// Our link to a peer is closed.
    pub fn hung_up(&mut self, peer: &str, now: Instant) {
        if let Some(entry) = self.entries.get_mut(peer) {
            (entry.ours, entry.alone_since) = (Ours::None, now);
        }
        self.forget();
    }

    /// Names of the endpoints that are registered, ourselves not among them.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.values().filter_map(|entry| entry.candidate.as_ref()).map(|one| one.name.as_str())
    }

    /// The name in the registry of whoever dialled us; None if it is not registered.
    pub fn name_of(&self, caller: &Caller) -> Option<&str> {
        let all = self.entries.values().filter_map(|entry| entry.candidate.as_ref());
        all.into_iter().find(|candidate| self.is_from(caller, candidate)).map(|one| one.name.as_str())
    }

    /// What is to be done now. It counts as begun.
    pub fn decide(&mut self, now: Instant) -> Vec<Action> {
        let verdicts: Vec<Action> =
            self.entries.iter().filter_map(|(peer, entry)| self.verdict(peer, entry, now)).collect();
        for action in &verdicts {
            let (peer, ours) = match action {
                Action::Dial { peer, .. } => (peer, Ours::Open),
                Action::HangUp { peer, .. } => (peer, Ours::Closing),
            };
            if let Some(entry) = self.entries.get_mut(peer) {
                entry.ours = ours;
            }
        }
        verdicts
    }

    /// When waiting for a peer's call ends, if nothing else happens before.
    pub fn next_look(&self) -> Option<Instant> {
        let waits = |entry: &&Entry| entry.candidate.is_some() && entry.ours == Ours::None;
        let linked = |entry: &&Entry| {
            entry.candidate.as_ref().is_some_and(|one| self.links_from(one).next().is_some())
        };
        let waiting = self.entries.values().filter(waits).filter(|entry| !linked(entry));
        waiting.map(|entry| entry.alone_since + self.patience).min()
    }

    /// The id of our link to a peer: one for each pair and direction, the same after a restart.
    pub fn link_id(&self, peer: &str) -> String {
        format!("{}-peer-{peer}", self.name)
    }

    fn verdict(&self, peer: &str, entry: &Entry, now: Instant) -> Option<Action> {
        let hang_up = |why| Some(Action::HangUp { peer: peer.to_owned(), why });
        let Some(candidate) = &entry.candidate else {
            return if entry.ours == Ours::Open { hang_up("it left the registry") } else { None };
        };
        let id = self.link_id(peer);
        match entry.ours {
            Ours::Closing => None,
            Ours::Open => {
                let mut theirs = self.links_from(candidate);
                let stays = |(other, caller): (&String, &Caller)| !caller.yields || *other > id;
                if theirs.any(stays) { hang_up("its own link to us stays") } else { None }
            }
            Ours::None => {
                let ours = self.age.as_ref()?;
                if self.links_from(candidate).next().is_some() {
                    return None;
                }
                let waited = now.saturating_duration_since(entry.alone_since) >= self.patience;
                let dial = ours.dials(&candidate.age) || waited;
                dial.then(|| Action::Dial { peer: peer.to_owned(), id })
            }
        }
    }

    fn links_from(&self, candidate: &Candidate) -> impl Iterator<Item = (&String, &Caller)> {
        self.incoming.iter().filter(move |(_, caller)| self.is_from(caller, candidate))
    }

    /// By name; and where endpoints of several domains have one name, by identity.
    fn is_from(&self, caller: &Caller, candidate: &Candidate) -> bool {
        let target = domain::target(&candidate.name);
        let named =
            |entry: &&Entry| entry.candidate.as_ref().is_some_and(|one| domain::target(&one.name) == target);
        let alone =
            self.entries.values().filter(named).nth(1).is_none() && target != domain::target(&self.name);
        caller.name == target
            && (alone
                || caller.identity.is_none()
                || candidate.identity.is_none()
                || caller.identity == candidate.identity)
    }

    /// A name that is ours, or ours as another domain's registry calls it.
    fn is_self(&self, candidate: &Candidate) -> bool {
        let same_identity = self.identity.is_some() && self.identity == candidate.identity;
        candidate.name == self.name
            || (domain::target(&candidate.name) == domain::target(&self.name) && same_identity)
    }

    fn forget(&mut self) {
        self.entries.retain(|_, entry| entry.candidate.is_some() || entry.ours != Ours::None);
    }
}
