//! The client's own name server (`NSM_LOCAL_DNS_SERVER_ENABLED`): names of the services that it is connected to, and all others.
//!
//! Each connection may come with name servers and search domains, by its endpoint's word; what `/etc/resolv.conf` named before is one
//! more such configuration, and stays when connections go. A question goes first to the servers whose search domains its name is in,
//! then to all others; the first answer counts. A name that nobody knows is tried again behind each search domain, several at once. Unlike the Go
//! client's server, this one says that there is no such name where the servers say so (Go answers SERVFAIL), and tells that a search
//! domain was added by a CNAME, which is what stub resolvers want to see. It remembers no answers: its servers are near.

mod ask;
mod follow;
mod resolv;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::rdata::CNAME;
use hickory_resolver::proto::rr::{Name, RData, Record};
use tokio_util::sync::{CancellationToken, DropGuard};
use vwire_proto::nsm::connectioncontext::DnsConfig;

use self::ask::{Found, ask};
pub use self::follow::Choice;
use self::resolv::Covered;
use super::Namespace;
use crate::dns::PORT;
use crate::dns::ask::From;
use crate::dns::question::{Read, Reply, read};
use crate::dns::serve::{self, Answers};

/// How long a question may take.
const TIME: Duration = Duration::from_secs(5);
/// Most configurations of one connection, and most servers and search domains of one configuration: endpoints may say anything.
const MOST: usize = 16;
/// How many names are looked up at once for one question.
const AT_ONCE: usize = 8;

/// A name server, until it is dropped.
pub struct Dns {
    names: Arc<Names>,
    address: SocketAddr,
    _covered: Option<Covered>,
    _end: DropGuard,
}

/// Where names are asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Config {
    servers: Vec<SocketAddr>,
    search: Vec<Name>,
}

/// What the server knows.
struct Names {
    from: From,
    /// Ourselves: never asked.
    own: SocketAddr,
    original: Config,
    connections: Mutex<BTreeMap<String, Vec<Config>>>,
}

impl Dns {
    /// Listens at `address`, UDP and TCP, in `namespace`, and is then the name server that `resolv_conf` names, if one is given.
    ///
    /// # Errors
    /// The kernel's, if the address or the file can't be had.
    pub async fn start(
        address: SocketAddr,
        namespace: Namespace,
        resolv_conf: Option<&Path>,
    ) -> io::Result<Self> {
        let listener = serve::bind(address, &namespace).await?;
        let own = listener.address()?;
        let seen: IpAddr = if own.ip().is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { own.ip() };
        let covered = resolv_conf.map(|file| Covered::put(file, seen)).transpose()?;
        let (covered, original) = covered
            .map_or((None, resolv::Original::default()), |(covered, original)| (Some(covered), original));
        let servers: Vec<String> = original.servers.iter().map(ToString::to_string).collect();
        let original = Config::read(&servers, &original.search);
        let names = Arc::new(Names {
            from: From { namespace, address: None },
            own,
            original,
            connections: Mutex::default(),
        });
        let end = CancellationToken::new();
        tokio::spawn(end.clone().run_until_cancelled_owned(listener.serve(Arc::clone(&names))));
        Ok(Self { names, address: own, _covered: covered, _end: end.drop_guard() })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A connection came with these name servers.
    pub fn put(&self, connection: &str, configs: &[DnsConfig]) {
        self.names.put(connection, configs);
    }

    /// A connection has gone.
    pub fn remove(&self, connection: &str) {
        self.names.remove(connection);
    }
}

impl Config {
    /// Leaves out what is no address or name, and says so.
    fn read(servers: &[String], search: &[String]) -> Self {
        let server = |text: &String| {
            let ip = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
            let read = ip.map(|ip| SocketAddr::new(ip, PORT)).or_else(|_| text.parse());
            read.inspect_err(|_| {
                tracing::warn!("dns_context: {text:?} is no address of a name server; left out")
            })
            .ok()
        };
        let domain = |text: &String| {
            let read = Name::from_utf8(text).map(|mut name| {
                name.set_fqdn(true);
                name
            });
            read.inspect_err(|_| tracing::warn!("dns_context: {text:?} is no domain; left out")).ok()
        };
        Self {
            servers: servers.iter().take(MOST).filter_map(server).collect(),
            search: search.iter().take(MOST).filter_map(domain).filter(|name| !name.is_root()).collect(),
        }
    }
}

impl Names {
    fn connections(&self) -> MutexGuard<'_, BTreeMap<String, Vec<Config>>> {
        // Every change is one insertion or removal, so a panic elsewhere does not spoil it.
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, connection: &str, configs: &[DnsConfig]) {
        let read = |config: &DnsConfig| Config::read(&config.dns_server_ips, &config.search_domains);
        let configs = configs.iter().take(MOST).map(read).collect();
        self.connections().insert(connection.to_owned(), configs);
    }

    fn remove(&self, connection: &str) {
        self.connections().remove(connection);
    }

    fn configs(&self) -> Vec<Config> {
        let mut configs: Vec<Config> = self.connections().values().flatten().cloned().collect();
        configs.push(self.original.clone());
        configs.iter_mut().for_each(|config| config.servers.retain(|server| *server != self.own));
        configs
    }

    async fn resolve(&self, query: &Message) -> Reply {
        let configs = self.configs();
        let asked = query.queries[0].name();
        let mut names = candidates(asked, &configs);
        // A name with dots is most likely meant as it is.
        let others = names.split_off(usize::from(asked.num_labels() > 1));
        let mut answer = ResponseCode::ServFail;
        for names in [names, others] {
            // Several at once: a server that is dead costs its time once, not for each search domain. The first in order counts.
            let look_up = |name| self.look_up(query, name, &configs);
            let mut found = stream::iter(names).map(look_up).buffered(AT_ONCE);
            while let Some((name, found)) = found.next().await {
                match found {
                    Found::Answer(found) => return told(query, *found, &name),
                    Found::NoName => answer = ResponseCode::NXDomain,
                    Found::Nothing => {}
                }
            }
        }
        Reply::to(query, answer)
    }

    /// What servers say of one name.
    async fn look_up(&self, query: &Message, name: Name, configs: &[Config]) -> (Name, Found) {
        let mut best = Found::Nothing;
        for servers in stages(&name, configs) {
            match ask(&self.from, &servers, query, &name).await {
                Found::Answer(found) => return (name, Found::Answer(found)),
                Found::NoName => best = Found::NoName,
                Found::Nothing => {}
            }
        }
        (name, best)
    }
}

impl Answers for Names {
    async fn answer(&self, bytes: &[u8], _: IpAddr) -> Option<Reply> {
        match read(bytes) {
            Read::Question(query) => {
                let resolved = tokio::time::timeout(TIME, self.resolve(&query)).await;
                Some(resolved.unwrap_or_else(|_| Reply::to(&query, ResponseCode::ServFail)))
            }
            Read::Refused(reply) => Some(reply),
            Read::Silence => None,
        }
    }
}

/// A name as it is, then behind each search domain.
fn candidates(asked: &Name, configs: &[Config]) -> Vec<Name> {
    let mut names = vec![asked.clone()];
    for domain in configs.iter().flat_map(|config| &config.search) {
        let longer = if domain.zone_of(asked) { continue } else { asked.clone().append_domain(domain) };
        if let Ok(longer) = longer
            && !names.contains(&longer)
        {
            names.push(longer);
        }
    }
    names
}

/// Servers in whose search domains a name is, then all others.
fn stages(name: &Name, configs: &[Config]) -> Vec<Vec<SocketAddr>> {
    let (near, far): (Vec<&Config>, Vec<&Config>) =
        configs.iter().partition(|config| config.search.iter().any(|domain| domain.zone_of(name)));
    let mut stages: Vec<Vec<SocketAddr>> = Vec::new();
    for stage in [near, far] {
        let mut servers: Vec<SocketAddr> = Vec::new();
        for server in stage.into_iter().flat_map(|config| &config.servers) {
            if !servers.contains(server) && !stages.iter().flatten().any(|before| before == server) {
                servers.push(*server);
            }
        }
        if !servers.is_empty() {
            stages.push(servers);
        }
    }
    stages
}

/// What was found, as the answer to what was asked.
fn told(query: &Message, mut found: Message, name: &Name) -> Reply {
    let asked = query.queries[0].name();
    if asked != name && !found.answers.is_empty() {
        let ttl = found.answers.iter().map(|record| record.ttl).min().unwrap_or_default();
        let alias = RData::CNAME(CNAME(name.clone()));
        found.answers.insert(0, Record::from_rdata(asked.clone(), ttl, alias));
    }
    found.metadata.id = query.metadata.id;
    found.metadata.recursion_available = true;
    found.metadata.authoritative = false;
    found.queries.clone_from(&query.queries);
    Reply::with(query, found)
}
