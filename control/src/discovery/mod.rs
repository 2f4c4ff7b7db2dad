//! Where another domain's registry is, and its nsmgr-proxy.
//!
//! | asked in this order | found by | what of it |
//! |---|---|---|
//! | the static map | `VWIRE_DOMAIN_MAP` | registry and proxy as written there |
//! | an address in the name itself | `svc@10.0.0.1`, `svc@[fd00::1]:5002` | its port, or the usual ones |
//! | SRV `_nsm-registry._tcp.<domain>`, `_nsm-nsmgr._tcp.<domain>` | RFC 2782 | every address of every target, by priority and weight |
//! | SRV `registry.nsm-system.<domain>`, `nsmgr-proxy.nsm-system.<domain>` | sdk, `pkg/registry/common/dnsresolve` | the records' ports at the addresses of this same name, then at those of the targets |
//! | A and AAAA of `<domain>` | the first NSM had no SRV | the usual ports |
//!
//! A proxy that was guessed, by the last line or by an address without records, counts only if somebody answers there: a domain may
//! be a registry and no more.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use async_trait::async_trait;
use tonic::Status;

use crate::domain::Domain;
use crate::transport::Target;

mod options;
mod order;
mod reach;
mod resolver;

#[cfg(test)]
mod tests;

pub use options::{DomainEntry, Options};
pub use reach::{Reach, Reached};
pub use resolver::{Dns, NoResolver};

/// What of a domain is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// Who says what is registered there.
    Registry,
    /// Who takes Requests for it.
    Proxy,
}

impl Part {
    /// The SRV names, ours first.
    fn services(self) -> [&'static str; 2] {
        match self {
            Self::Registry => ["_nsm-registry._tcp", "registry.nsm-system"],
            Self::Proxy => ["_nsm-nsmgr._tcp", "nsmgr-proxy.nsm-system"],
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Registry => "registry",
            Self::Proxy => "nsmgr-proxy",
        })
    }
}

/// A record of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Srv {
    /// The lowest is asked first.
    pub priority: u16,
    /// Among those of one priority: its share of the first places.
    pub weight: u16,
    /// The port.
    pub port: u16,
    /// The host. Empty or `.`: the service is decidedly not there.
    pub host: String,
}

/// Why a query has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LookupError {
    /// The server says that there is none: `NXDOMAIN`, or a name without such records.
    None(String),
    /// Nobody said anything, or nothing of use.
    Failed(String),
}

impl fmt::Display for LookupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::None(said) | Self::Failed(said)) = self;
        f.write_str(said)
    }
}

/// Asks for records. Answers are remembered as long as their TTL says, by whoever implements this.
#[async_trait]
pub trait Lookup: Send + Sync + 'static {
    /// SRV records of a name, in any order.
    async fn srv(&self, name: &str) -> Result<Vec<Srv>, LookupError>;
    /// A and AAAA records of a name.
    async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, LookupError>;
    /// Who is asked, for errors.
    fn servers(&self) -> String;
}

/// Ports of what has no records.
#[derive(Debug, Clone)]
pub struct Ports {
    /// Registries, in the order in which they are tried.
    pub registry: Vec<u16>,
    /// Proxies, likewise.
    pub proxy: Vec<u16>,
}

impl Ports {
    fn of(&self, part: Part) -> &[u16] {
        match part {
            Part::Registry => &self.registry,
            Part::Proxy => &self.proxy,
        }
    }
}

/// Where a part of a domain may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// In the order in which they are to be tried.
    pub targets: Vec<Target>,
    /// True if nobody said that there is something: the usual ports of an address.
    pub guessed: bool,
    /// What was asked, and what the answer was, for errors.
    pub story: String,
}

/// Finds the parts of domains.
pub struct Discovery {
    known: HashMap<String, DomainEntry>,
    lookup: Arc<dyn Lookup>,
    ports: Ports,
}

impl Discovery {
    /// Asks `lookup` for what is not in `known`.
    pub fn new(known: Vec<DomainEntry>, lookup: Arc<dyn Lookup>, ports: Ports) -> Self {
        let known = known.into_iter().map(|entry| (entry.domain.to_ascii_lowercase(), entry)).collect();
        Self { known, lookup, ports }
    }

    /// Where a part of the domain may be: at least one target.
    ///
    /// # Errors
    /// INVALID_ARGUMENT if the domain can't be one; NOT_FOUND if nobody knows it; UNAVAILABLE if nobody could be asked. The text names
    /// the domain, each query and its answer.
    pub async fn find(&self, domain: &str, part: Part) -> Result<Found, Status> {
        if let Some(entry) = self.known.get(&domain.to_ascii_lowercase()) {
            return of_entry(entry, part);
        }
        let parsed = Domain::parse(domain).map_err(|error| Status::invalid_argument(error.to_string()))?;
        match parsed {
            Domain::Name(name) => self.by_name(domain, &name, part).await,
            Domain::Host(host) => Ok(self.at(&[host], part, "the name says the address".to_owned())),
            Domain::Address(address) => Ok(self.at_address(address, part)),
        }
    }

    async fn by_name(&self, shown: &str, name: &str, part: Part) -> Result<Found, Status> {
        let mut story = Story::default();
        for (index, service) in part.services().into_iter().enumerate() {
            let query = format!("{service}.{name}");
            let records = match self.lookup.srv(&query).await {
                Ok(records) => order::by_priority_and_weight(records),
                Err(error) => {
                    story.failed("SRV", &query, &error);
                    continue;
                }
            };
            // Go asks for the addresses of the very name that it asked the SRV records of.
            let own = if index == 1 { self.addresses(&query, &mut story).await } else { Vec::new() };
            let mut targets = with_ports(&own, &records);
            for record in &records {
                targets.extend(self.of_record(record, &mut story).await);
            }
            let targets = order::once_each(targets);
            if !targets.is_empty() {
                let said: Vec<String> =
                    records.iter().map(|srv| format!("{}:{}", srv.host, srv.port)).collect();
                story.said("SRV", &query, &said.join(" "));
                return Ok(Found { targets, guessed: false, story: story.text(&*self.lookup) });
            }
            story.said("SRV", &query, "no record with an address");
        }
        let hosts = self.addresses(name, &mut story).await;
        if hosts.is_empty() {
            return Err(story.status(shown, part, &*self.lookup));
        }
        story.said("A, AAAA", name, &hosts.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" "));
        let story = story.text(&*self.lookup);
        Ok(self.at(&hosts, part, story))
    }

    /// The addresses of one record's target.
    async fn of_record(&self, record: &Srv, story: &mut Story) -> Vec<Target> {
        let host = record.host.trim_end_matches('.');
        if host.is_empty() || record.port == 0 {
            return Vec::new();
        }
        let addresses = self.addresses(host, story).await;
        addresses.into_iter().map(|ip| target(ip, record.port)).collect()
    }

    async fn addresses(&self, name: &str, story: &mut Story) -> Vec<IpAddr> {
        self.lookup.addresses(name).await.unwrap_or_else(|error| {
            story.failed("A, AAAA", name, &error);
            Vec::new()
        })
    }

    /// At the usual ports of these hosts.
    fn at(&self, hosts: &[IpAddr], part: Part, story: String) -> Found {
        let at = |port: &u16| hosts.iter().map(|host| target(*host, *port)).collect::<Vec<_>>();
        Found { targets: self.ports.of(part).iter().flat_map(at).collect(), guessed: true, story }
    }

    /// An address with a port is a registry's; the proxy of that domain is at the same host.
    fn at_address(&self, address: SocketAddr, part: Part) -> Found {
        let story = "the name says the address".to_owned();
        match part {
            Part::Registry => {
                Found { targets: vec![target(address.ip(), address.port())], guessed: false, story }
            }
            Part::Proxy => self.at(&[address.ip()], part, story),
        }
    }
}

fn of_entry(entry: &DomainEntry, part: Part) -> Result<Found, Status> {
    let target = match part {
        Part::Registry => Some(&entry.registry),
        Part::Proxy => entry.proxy.as_ref(),
    };
    let story = "the static map says so".to_owned();
    match target {
        Some(target) => Ok(Found { targets: vec![target.clone()], guessed: false, story }),
        None => Err(Status::not_found(format!(
            "domain {:?}: the static map (VWIRE_DOMAIN_MAP) has no {part} of it",
            entry.domain
        ))),
    }
}

/// Go's way: each record's port at each address of one name.
fn with_ports(addresses: &[IpAddr], records: &[Srv]) -> Vec<Target> {
    let ports = records.iter().map(|record| record.port).filter(|port| *port != 0);
    ports.flat_map(|port| addresses.iter().map(move |ip| target(*ip, port))).collect()
}

fn target(ip: IpAddr, port: u16) -> Target {
    Target::Tcp(SocketAddr::new(ip, port).to_string())
}

/// What was asked, and what came of it.
#[derive(Default)]
struct Story {
    told: Vec<String>,
    unanswered: bool,
}

impl Story {
    fn said(&mut self, kind: &str, name: &str, answer: &str) {
        self.told.push(format!("{kind} {name}: {answer}"));
    }

    fn failed(&mut self, kind: &str, name: &str, error: &LookupError) {
        self.unanswered |= matches!(error, LookupError::Failed(_));
        self.said(kind, name, &error.to_string());
    }

    fn text(&self, lookup: &dyn Lookup) -> String {
        format!("{}; asked {}", self.told.join("; "), lookup.servers())
    }

    fn status(&self, domain: &str, part: Part, lookup: &dyn Lookup) -> Status {
        let text = format!("domain {domain:?}: no {part} of it was found: {}", self.text(lookup));
        if self.unanswered { Status::unavailable(text) } else { Status::not_found(text) }
    }
}
