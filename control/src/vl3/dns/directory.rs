//! What an endpoint's name server knows, and what it makes of a question.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::Duration;

use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::{DNSClass, LowerName, Name, RData, Record, RecordType};
use ipnet::IpNet;
use vwire_proto::nsm::connection::Connection;

use super::records::{Held, MAX_NAMES, Records};
use super::template::Template;
use crate::dns::PORT;
use crate::dns::question::Reply;
use crate::domain;
use crate::endpoint::hosts;

/// Most name servers of other endpoints that are known.
pub const MAX_PEERS: usize = 512;
/// The label that names clients in Kubernetes.
const POD_NAME: &str = "podName";
/// Most prefixes that the network is said to have.
const MAX_PREFIXES: usize = 64;

/// How names are made.
#[derive(Debug, Clone)]
pub struct Naming {
    /// Of each client's names: `NSM_DNS_TEMPLATES`.
    pub templates: Vec<Template>,
    /// The endpoint's services: connections to others get no names, since a client could give itself any name by one of its own.
    pub services: Vec<String>,
    /// How long those who ask may remember an answer. Names go at once when their client goes, so this is how long one may be wrong.
    pub ttl: Duration,
}

/// Names of clients, where other endpoints' name servers are, and what belongs to the network.
#[derive(Debug)]
pub struct Directory {
    naming: Naming,
    /// What all names of the templates end in, as far as that is not the client's to say.
    zones: Vec<LowerName>,
    /// The network's prefixes: names of their addresses (PTR) are ours to deny.
    prefixes: RwLock<Vec<IpNet>>,
    /// By who says so: a connection, or the list of peers.
    peers: Mutex<BTreeMap<String, Vec<SocketAddr>>>,
    /// What is known of clients.
    pub records: Records,
}

/// What is to be done about a question.
#[derive(Debug)]
pub(super) enum Step {
    /// This is the answer.
    Answer(Reply),
    /// Others are to be asked; if they don't know either, this is.
    Ask(Reply),
}

impl Directory {
    /// Knows no names yet.
    pub fn new(naming: Naming) -> Self {
        let zones = zones(&naming);
        Self {
            naming,
            zones,
            prefixes: RwLock::default(),
            peers: Mutex::default(),
            records: Records::default(),
        }
    }

    /// The names that the templates make of a connection. What is no name is left out, and said.
    pub fn names(&self, connection: &Connection) -> Vec<Name> {
        let own = |service: &String| domain::target(service) == domain::target(&connection.network_service);
        if !self.naming.services.iter().any(own) {
            return Vec::new();
        }
        let connection = &named_by_itself(connection);
        let mut names: Vec<Name> = Vec::new();
        for template in self.naming.templates.iter().take(MAX_NAMES) {
            match template.fill(connection).and_then(|text| name(&text)) {
                Ok(name) if !names.contains(&name) => names.push(name),
                Ok(_) => {}
                Err(reason) => {
                    tracing::info!(connection = %root(connection), %template, "no name by this template: {reason}");
                }
            }
        }
        names
    }

    /// A connection has been answered so: its client's addresses have these names, and its routes are the network.
    pub(super) fn set(&self, connection: &Connection, names: &[Name]) {
        let context = connection.context.as_ref().and_then(|context| context.ip_context.as_ref());
        let addresses = context.map(|context| hosts(&context.src_ip_addrs)).unwrap_or_default();
        self.records.set(&connection.id, names, &addresses);
        let routes = context.map(|context| context.src_routes.as_slice()).unwrap_or_default();
        self.set_prefixes(routes.iter().filter_map(|route| route.prefix.parse().ok()));
    }

    /// A connection of an earlier process of ours: its client does not ask again soon, and has its names all the same.
    pub fn take_over(&self, connection: &Connection) {
        self.set(connection, &self.names(connection));
    }

    /// Whether there are names at all.
    pub fn has_templates(&self) -> bool {
        !self.naming.templates.is_empty()
    }

    /// The name servers of other endpoints that `who` knows of, in place of those that it knew before.
    pub fn set_peers(&self, who: &str, servers: impl IntoIterator<Item = SocketAddr>) {
        let servers: Vec<SocketAddr> = servers.into_iter().take(MAX_PEERS).collect();
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        match servers.is_empty() {
            true => peers.remove(who),
            false => peers.insert(who.to_owned(), servers),
        };
    }

    /// As [`Self::set_peers`], at the usual port.
    pub fn set_peer_addresses(&self, who: &str, servers: impl IntoIterator<Item = IpAddr>) {
        self.set_peers(who, servers.into_iter().map(|address| SocketAddr::new(address, PORT)));
    }

    /// All name servers of other endpoints.
    pub fn peers(&self) -> Vec<SocketAddr> {
        let peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<SocketAddr> = peers.values().flatten().copied().collect();
        all.sort_unstable();
        all.dedup();
        all.truncate(MAX_PEERS);
        all
    }

    /// The network has these prefixes.
    pub fn set_prefixes(&self, prefixes: impl IntoIterator<Item = IpNet>) {
        // A route for everything is no prefix of ours.
        let mut prefixes: Vec<IpNet> =
            prefixes.into_iter().filter(|net| net.prefix_len() > 0).take(MAX_PREFIXES).collect();
        prefixes.sort_unstable();
        prefixes.dedup();
        if *self.prefixes.read().unwrap_or_else(PoisonError::into_inner) != prefixes {
            *self.prefixes.write().unwrap_or_else(PoisonError::into_inner) = prefixes;
        }
    }

    /// What becomes of a question by `from`. A question by a peer, or one that shall not be passed on (RD is 0, as in Go peers'), is
    /// answered by what is known here: so no question goes round.
    pub(super) fn step(&self, query: &Message, from: IpAddr, own: Option<IpAddr>) -> Step {
        let Some(asked) = query.queries.first() else {
            return Step::Answer(Reply::to(query, ResponseCode::FormErr));
        };
        if asked.query_class() != DNSClass::IN
            || matches!(asked.query_type(), RecordType::AXFR | RecordType::IXFR)
        {
            return Step::Answer(Reply::to(query, ResponseCode::Refused));
        }
        let name = LowerName::from(asked.name());
        let unknown = match self.records.find(&name) {
            Held::Data(data) => return Step::Answer(self.reply(query, &data)),
            Held::Empty => ResponseCode::NoError,
            Held::Nothing if self.is_ours(&name) => ResponseCode::NXDomain,
            Held::Nothing => ResponseCode::Refused,
        };
        let mut reply = Reply::to(query, unknown);
        reply.message.metadata.authoritative = unknown != ResponseCode::Refused;
        let peers = self.peers();
        let by_peer = Some(from) == own || peers.iter().any(|peer| peer.ip() == from);
        match query.metadata.recursion_desired && !by_peer && !peers.is_empty() {
            true => Step::Ask(reply),
            false => Step::Answer(reply),
        }
    }

    /// These records, as far as they are asked for; none if the name has others only.
    fn reply(&self, query: &Message, data: &[RData]) -> Reply {
        let asked = &query.queries[0];
        let wanted =
            |data: &&RData| asked.query_type() == RecordType::ANY || asked.query_type() == data.record_type();
        let ttl = u32::try_from(self.naming.ttl.as_secs()).unwrap_or(u32::MAX);
        let record = |data: &RData| Record::from_rdata(asked.name().clone(), ttl, data.clone());
        let mut reply = Reply::to(query, ResponseCode::NoError);
        reply.message.answers = data.iter().filter(wanted).map(record).collect();
        reply.message.metadata.authoritative = true;
        reply
    }

    /// Whether a name that is not there can be said not to be.
    fn is_ours(&self, name: &LowerName) -> bool {
        if self.zones.iter().any(|zone| zone.zone_of(name)) {
            return true;
        }
        let prefixes = self.prefixes.read().unwrap_or_else(PoisonError::into_inner);
        let reverse = || Name::from(name.clone()).parse_arpa_name().ok();
        !prefixes.is_empty()
            && reverse().is_some_and(|of| prefixes.iter().any(|prefix| prefix.trunc().contains(&of)))
    }
}

/// With the client's own name as its label `podName` if it has none: outside of Kubernetes nobody else gives it one.
fn named_by_itself(connection: &Connection) -> Cow<'_, Connection> {
    let first = connection.path.as_ref().and_then(|path| path.path_segments.first());
    match first.map(|segment| domain::target(&segment.name)) {
        Some(name) if !connection.labels.contains_key(POD_NAME) => {
            let mut named = connection.clone();
            named.labels.insert(POD_NAME.to_owned(), name.to_owned());
            Cow::Owned(named)
        }
        _ => Cow::Borrowed(connection),
    }
}

/// The connection's id at its client, by which logs know it.
pub(super) fn root(connection: &Connection) -> &str {
    let first = connection.path.as_ref().and_then(|path| path.path_segments.first());
    first.map_or(connection.id.as_str(), |segment| segment.id.as_str())
}

/// A name of an evaluated template: dots side by side are one, as in Go, and one at the end is added.
///
/// # Errors
/// Which label is none, or that the name is too long.
fn name(text: &str) -> Result<Name, String> {
    if text.starts_with('.') {
        return Err(format!("{text:?} begins with a dot: what should be before it is empty"));
    }
    let labels: Vec<&str> = text.split('.').filter(|label| !label.is_empty()).collect();
    if labels.is_empty() {
        return Err("it is empty".to_owned());
    }
    for label in &labels {
        if label.len() > 63 || !label.chars().all(|c| c.is_ascii_graphic()) {
            return Err(format!("{label:?} is no label of a name: 1 to 63 visible ASCII characters"));
        }
    }
    let mut name =
        Name::from_labels(labels.iter().map(|label| label.as_bytes())).map_err(|error| error.to_string())?;
    name.set_fqdn(true);
    Ok(name)
}

/// What the templates make of a connection of which only the service is known, without what is empty then.
fn zones(naming: &Naming) -> Vec<LowerName> {
    let mut zones = Vec::new();
    for service in &naming.services {
        let connection = Connection { network_service: service.clone(), ..Default::default() };
        for template in &naming.templates {
            let filled = template.fill(&connection).unwrap_or_default();
            // A first part that is there without a client may still be one of several that a client has.
            let Ok(zone) = name(filled.trim_start_matches('.')) else { continue };
            let zone = if filled.starts_with('.') { zone } else { zone.base_name() };
            if !zone.is_root() && !zones.contains(&LowerName::from(&zone)) {
                zones.push(LowerName::from(zone));
            }
        }
    }
    zones
}

/// The domains that names are in: `pod.d1.d2.` is in d1.d2 and in d2. Without the dot at the end, as NSM has it.
pub(super) fn search_domains(names: &[Name]) -> Vec<String> {
    let mut domains = Vec::new();
    for name in names {
        let labels: Vec<_> = name.iter().map(String::from_utf8_lossy).collect();
        for first in 1..labels.len() {
            let domain = labels[first..].join(".");
            if !domains.contains(&domain) {
                domains.push(domain);
            }
        }
    }
    domains
}

#[cfg(test)]
#[path = "directory_tests.rs"]
mod tests;
