//! Links by which peers dial us: who is let in, and what has to be out of the way for it.

use std::time::SystemTime;

use ipnet::IpNet;
use tokio::time::Instant;
use tonic::Status;

use super::{Links, State};
use crate::domain;
use crate::vl3::peers::announced::{Announced, Refused};
use crate::vl3::peers::pairing::{Admission, Caller};

/// Most callers whose refusal is remembered: names are theirs to choose.
const MOST_TURNED_AWAY: usize = 64;

/// A link by which we were dialled.
pub(super) struct Theirs {
    pub caller: Caller,
    /// Our name for the connection, which is its port's, too.
    pub port: String,
    pub announced: Announced,
    /// True once a Request came to its end.
    pub up: bool,
}

/// A peer's call that was let in: what it may have, and what it finds in its way.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::vl3::peers) struct Entry {
    /// What may lead to it.
    pub routes: Vec<IpNet>,
    /// The peer our link to which gives way.
    pub ours: Option<String>,
    /// The port of the same link of the peer's former life: it has died without a Close, and has come back with its name alone.
    pub former: Option<String>,
}

impl Links {
    /// A peer dials us, or refreshes its link. Returns what has to be out of the way first.
    ///
    /// # Errors
    /// FAILED_PRECONDITION if it announces what it must not; ALREADY_EXISTS if our own link to it stays, or if the link of this id is
    /// another's.
    pub fn admit(&self, id: &str, port: &str, caller: Caller, said: Announced) -> Result<Entry, Status> {
        let mut state = self.lock();
        let name = state.pairing.name_of(&caller).map_or_else(|| caller.name.clone(), str::to_owned);
        let before = state.theirs.get(id);
        if before.is_some_and(|before| before.caller.identity != caller.identity) {
            return Err(Status::already_exists(format!(
                "connection id {id}: it is the link of another endpoint"
            )));
        }
        let former = before.filter(|before| before.port != port).map(|before| before.port.clone());
        let routes = match self.judge(&state, &name, Some(port), &said) {
            Ok(routes) => routes.into_iter().chain(said.hosts.iter().copied()).collect(),
            Err(refused) => {
                state.turn_away(&name, &refused);
                return Err(Status::failed_precondition(format!(
                    "connection.context.ip_context.dst_routes: peer {name}: {refused}; it is not linked"
                )));
            }
        };
        let attached = state.ours.get(&name).is_some_and(|ours| ours.attached);
        let admission = state.pairing.may_come(id, &caller, attached);
        if admission == Admission::Refused {
            return Err(Status::already_exists(format!(
                "endpoint {name} is linked already, by {}; two links of one pair are one too many",
                state.pairing.link_id(&name)
            )));
        }
        let entry = Theirs { caller, port: port.to_owned(), announced: said, up: false };
        let up = former.is_none() && state.theirs.get(id).is_some_and(|before| before.up);
        state.theirs.insert(id.to_owned(), Theirs { up, ..entry });
        state.turned_away.remove(domain::target(&name));
        Ok(Entry { routes, ours: (admission == Admission::InPlaceOfOurs).then_some(name), former })
    }

    /// Removes the port of a link whose dialler has lost it, with its routes: they lead to nobody. What else there is of the connection
    /// ends with its token.
    pub async fn forget_port(&self, port: &str) {
        if let Err(status) = self.ports.detach(port).await {
            tracing::warn!(port, error = %status.message(), "removing the port of a peer's former link");
        }
    }

    /// The Request that was admitted has come to its end.
    pub fn admitted(&self, id: &str, well: bool) {
        let mut state = self.lock();
        let Some(theirs) = state.theirs.get_mut(id) else { return };
        if well {
            if !theirs.up {
                tracing::info!(peer = theirs.caller.name, routes = ?theirs.announced.prefixes, "a peer's link to us");
            }
            theirs.up = true;
            let caller = theirs.caller.clone();
            state.pairing.incoming(id, caller);
        } else if !theirs.up {
            state.theirs.remove(id);
        }
        drop(state);
        self.changed.notify_one();
    }

    /// A peer's link to us is closed; not a later one of the same id.
    pub fn ended(&self, id: &str, port: &str) {
        let mut state = self.lock();
        if state.theirs.get(id).is_some_and(|theirs| theirs.port == port) {
            state.theirs.remove(id);
            state.pairing.incoming_gone(id, Instant::now());
        }
        drop(state);
        self.changed.notify_one();
    }
}

impl State {
    /// A peer's call is refused: for the log, once, and for `vwire status`. The caller hears it, too.
    fn turn_away(&mut self, name: &str, refused: &Refused) {
        self.refused += 1;
        let text = format!("peer {name}: {refused}; it is not linked");
        let key = domain::target(name);
        if self.turned_away.get(key).is_none_or(|(_, before)| *before != text) {
            tracing::warn!(peer = name, error = text, "a peer's call is refused");
        }
        if self.turned_away.len() < MOST_TURNED_AWAY || self.turned_away.contains_key(key) {
            self.turned_away.insert(key.to_owned(), (SystemTime::now(), text));
        }
    }

    /// Links by which this peer dialled us.
    pub(super) fn their_links<'a>(&'a self, peer: &'a str) -> impl Iterator<Item = &'a Theirs> {
        self.theirs.values().filter(move |theirs| self.name_of(&theirs.caller) == peer)
    }

    pub(super) fn name_of<'a>(&'a self, caller: &'a Caller) -> &'a str {
        self.pairing.name_of(caller).unwrap_or(&caller.name)
    }
}
