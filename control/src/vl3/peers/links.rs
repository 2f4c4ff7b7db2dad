//! What there is: our links, theirs, and what each peer announces. Decisions are `pairing`'s.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tonic::Status;
use vwire_proto::nsm::connection::Connection;

use super::Peer;
use super::announced::{Announced, Refused, Territory};
use super::order::Age;
use super::pairing::{Action, Admission, Caller, Candidate, Pairing};
use super::ports::{Leg, Ports};
use crate::client::{Phase, Session, SessionStatus};
use crate::dataplane::wanted::short;
use crate::domain;

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

/// Most callers whose refusal is remembered: names are theirs to choose.
const MOST_TURNED_AWAY: usize = 64;

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

/// A link that we dialled.
struct Ours {
    session: Option<Session>,
    status: watch::Receiver<SessionStatus>,
    /// What was last announced and admitted, and the leg that leads there.
    leg: Option<(Announced, Leg)>,
    attached: bool,
    /// Packets were not answered.
    suspect: bool,
    error: Option<String>,
}

/// A link by which we were dialled.
struct Theirs {
    caller: Caller,
    /// Our name for the connection, which is its port's, too.
    port: String,
    announced: Announced,
    /// True once a Request came to its end.
    up: bool,
}

/// A peer's call that was let in: what it may have, and what it finds in its way.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    /// What may lead to it.
    pub routes: Vec<IpNet>,
    /// The peer our link to which gives way.
    pub ours: Option<String>,
    /// The port of the same link of the peer's former life: it has died without a Close, and has come back with its name alone.
    pub former: Option<String>,
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

    pub fn opened(&self, peer: &str, session: Session) {
        let status = session.status();
        let ours =
            Ours { session: Some(session), status, leg: None, attached: false, suspect: false, error: None };
        self.lock().ours.insert(peer.to_owned(), ours);
    }

    /// Runs `with` on each of our sessions.
    pub fn each_session(&self, mut with: impl FnMut(&Session)) {
        self.lock().ours.values().filter_map(|ours| ours.session.as_ref()).for_each(&mut with);
    }

    /// Gives up one of our links; its session is to be closed, and then [`hung_up`](Self::hung_up) told.
    pub fn give_up(&self, peer: &str) -> Option<Session> {
        self.lock().ours.get_mut(peer)?.session.take()
    }

    pub fn hung_up(&self, peer: &str) {
        let mut state = self.lock();
        state.ours.remove(peer);
        state.pairing.hung_up(peer, Instant::now());
        drop(state);
        self.changed.notify_one();
    }

    /// All that we dialled.
    pub fn dialled(&self) -> Vec<String> {
        self.lock().ours.keys().cloned().collect()
    }

    /// The name of our port to a peer.
    pub fn port_of(&self, peer: &str) -> String {
        format!("to.{}", short(peer))
    }

    /// Whether what a peer said of itself in an answer may be so.
    ///
    /// # Errors
    /// FAILED_PRECONDITION that names the peer and the route.
    pub fn judge_answer(&self, peer: &str, connection: &Connection) -> Result<(), Status> {
        let mut state = self.lock();
        let said = Announced::in_answer(connection, &state.own.network);
        let judged = self.judge(&state, peer, None, &said);
        match judged {
            Ok(_) => Ok(()),
            Err(refused) => {
                state.refused += 1;
                let text = format!("peer {peer}: {refused}; it is not linked");
                if let Some(ours) = state.ours.get_mut(peer) {
                    ours.error = Some(text.clone());
                }
                Err(Status::failed_precondition(text))
            }
        }
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

    /// Our link to a peer was made or refreshed: what it leads to. Then [`attach`](Self::attach) is to be called.
    pub fn answered(&self, peer: &str, connection: &Connection, socket: String, mtu: u32) {
        let mut state = self.lock();
        let said = Announced::in_answer(connection, &state.own.network);
        let Ok(routes) = self.judge(&state, peer, None, &said) else { return };
        let leg = Leg { socket, mtu, routes, via: said.addresses.clone() };
        if let Some(ours) = state.ours.get_mut(peer) {
            // Also what was attached like this is looked at again: its link may be down.
            ours.attached = false;
            ours.leg = Some((said, leg));
        }
    }

    /// The packets of our link to a peer are not answered: whatever its port looks like, it is made anew with the next answer.
    pub fn suspect(&self, peer: &str) {
        if let Some(ours) = self.lock().ours.get_mut(peer) {
            ours.suspect = true;
        }
    }

    /// Puts our link to a peer into the network, unless it is there, or theirs is.
    pub async fn attach(&self, peer: &str) {
        let Some(leg) = self.leg_to_attach(peer) else { return };
        let suspect = self.lock().ours.get_mut(peer).is_some_and(|ours| std::mem::take(&mut ours.suspect));
        if suspect && let Err(status) = self.ports.detach(&self.port_of(peer)).await {
            tracing::warn!(peer, error = %status.message(), "removing a peer's port");
        }
        let attached = self.ports.attach(&self.port_of(peer), &leg).await;
        let mut state = self.lock();
        let Some(ours) = state.ours.get_mut(peer) else { return };
        match attached {
            Ok(()) if ours.leg.as_ref().is_some_and(|(_, wanted)| *wanted == leg) => {
                (ours.attached, ours.error) = (true, None);
                state.turned_away.remove(domain::target(peer));
                tracing::debug!(peer, routes = ?leg.routes, "a link of ours to a peer");
            }
            Ok(()) => {}
            Err(status) => {
                let text = status.message().to_owned();
                if ours.error.as_ref() != Some(&text) {
                    tracing::warn!(peer, error = text, "a peer's routes are not set; trying on");
                }
                ours.error = Some(text);
            }
        }
        drop(state);
        self.changed.notify_one();
    }

    fn leg_to_attach(&self, peer: &str) -> Option<Leg> {
        let state = self.lock();
        let ours = state.ours.get(peer).filter(|ours| ours.session.is_some() && !ours.attached)?;
        let leg = ours.leg.as_ref()?.1.clone();
        // While theirs has the routes, or is about to, ours waits.
        state.their_links(peer).next().is_none().then_some(leg)
    }

    /// Links of ours whose routes could not be set yet.
    pub fn waiting(&self) -> Vec<String> {
        let state = self.lock();
        let waits =
            |(_, ours): &(&String, &Ours)| ours.leg.is_some() && !ours.attached && ours.session.is_some();
        state.ours.iter().filter(waits).map(|(peer, _)| peer.clone()).collect()
    }

    /// Takes our link to a peer out of the network. It comes back if it stays open and there is no other.
    pub async fn detach(&self, peer: &str) {
        if let Some(ours) = self.lock().ours.get_mut(peer) {
            ours.attached = false;
        }
        if let Err(status) = self.ports.detach(&self.port_of(peer)).await {
            tracing::warn!(peer, error = %status.message(), "removing a peer's port");
        }
    }

    /// The addresses of a peer that we dialled, if our link is in the network.
    pub fn addresses_of(&self, peer: &str) -> Vec<IpAddr> {
        let state = self.lock();
        let ours = state.ours.get(peer).filter(|ours| ours.attached).and_then(|ours| ours.leg.as_ref());
        ours.map(|(said, _)| said.addresses.clone()).unwrap_or_default()
    }

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

    /// Tells who is linked, if that has changed.
    pub fn publish(&self) {
        let now = self.lock().linked();
        self.told.send_if_modified(|told| {
            let changed = *told != now;
            if changed {
                *told = now;
            }
            changed
        });
    }

    /// For `vwire status`: each endpoint that is registered or linked.
    pub fn report(&self) -> Vec<Value> {
        self.lock().report()
    }

    /// Connections that we dialled, as last answered.
    pub fn connections(&self) -> Vec<Connection> {
        let state = self.lock();
        state.ours.values().filter_map(|ours| ours.status.borrow().connection.clone()).collect()
    }

    /// How many announcements were refused.
    pub fn refused(&self) -> u64 {
        self.lock().refused
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
    fn their_links<'a>(&'a self, peer: &'a str) -> impl Iterator<Item = &'a Theirs> {
        self.theirs.values().filter(move |theirs| self.name_of(&theirs.caller) == peer)
    }

    fn name_of<'a>(&'a self, caller: &'a Caller) -> &'a str {
        self.pairing.name_of(caller).unwrap_or(&caller.name)
    }

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

    /// Whoever packets can be sent to, by name.
    fn linked(&self) -> Vec<Peer> {
        let mut all: BTreeMap<String, Peer> = BTreeMap::new();
        let mut add = |name: &str, said: &Announced| {
            let peer = Peer { name: name.to_owned(), prefixes: said.prefixes.clone(), dns: said.dns.clone() };
            all.insert(name.to_owned(), peer);
        };
        for theirs in self.theirs.values().filter(|theirs| theirs.up) {
            add(self.name_of(&theirs.caller), &theirs.announced);
        }
        for (name, ours) in self.ours.iter().filter(|(_, ours)| ours.attached) {
            ours.leg.iter().for_each(|(said, _)| add(name, said));
        }
        all.into_values().collect()
    }

    fn report(&self) -> Vec<Value> {
        let linked = self.linked();
        let mut names: Vec<&str> = self.pairing.names().collect();
        names.extend(linked.iter().map(|peer| peer.name.as_str()));
        let known: BTreeSet<&str> = names.iter().map(|name| domain::target(name)).collect();
        names.extend(self.turned_away.keys().map(String::as_str).filter(|name| !known.contains(name)));
        names.sort_unstable();
        names.dedup();
        names.into_iter().map(|name| self.line(name, &linked)).collect()
    }

    fn line(&self, name: &str, linked: &[Peer]) -> Value {
        let peer = linked.iter().find(|peer| peer.name == name);
        let ours = self.ours.get(name);
        let status = ours.map(|ours| ours.status.borrow().clone());
        let away = self.turned_away.get(domain::target(name)).filter(|_| peer.is_none());
        let failed = status.as_ref().and_then(|status| status.last_error.as_ref());
        let failed = failed.map(|(at, status)| (at, status.message()));
        let failed = failed.or(away.map(|(at, text)| (at, text.as_str())));
        let theirs = self.their_links(name).find(|theirs| theirs.up);
        let state = match (peer, ours) {
            (Some(_), _) => "linked".to_owned(),
            (None, Some(_)) => status
                .as_ref()
                .map_or_else(String::new, |status| format!("{:?}", status.phase).to_lowercase()),
            (None, None) if away.is_some() => "refused".to_owned(),
            (None, None) => "waits for its call".to_owned(),
        };
        json!({
            "name": name,
            "state": state,
            "dialled_by": if theirs.is_some() { "them" } else if ours.is_some() { "us" } else { "" },
            "connection": theirs.map_or_else(|| ours.map(|_| self.pairing.link_id(name)), |theirs| Some(theirs.port.clone())),
            "prefixes": peer.map(|peer| peer.prefixes.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap_or_default(),
            "dns": peer.map(|peer| peer.dns.clone()).unwrap_or_default(),
            "heals": status.as_ref().map_or(0, |status| status.heals),
            "error": ours.and_then(|ours| ours.error.clone()).or_else(|| away.map(|(_, text)| text.clone())),
            "last_error": failed.map(|(at, text)| json!({
                "at": at.duration_since(std::time::UNIX_EPOCH).map_or(0, |at: Duration| at.as_secs()),
                "text": text,
            })),
        })
    }
}
