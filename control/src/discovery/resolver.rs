//! Records by DNS.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use async_trait::async_trait;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::rr::{RData, RecordType};
use hickory_resolver::system_conf;

use super::{Lookup, LookupError, Srv};

/// How long one server may take for one try.
const TRY: Duration = Duration::from_secs(1);
/// Tries of each server.
const TRIES: usize = 2;
/// How long a negative answer may be remembered: a domain that was just made must not stay unknown.
const NEGATIVE: Duration = Duration::from_secs(5);
/// Answers that are remembered.
const REMEMBERED: u64 = 4096;

/// Asks DNS servers, and remembers answers as long as their TTL says. An answer of none is remembered for 5 s at most.
pub struct Dns {
    resolver: TokioResolver,
    servers: String,
}

/// A resolver that can't be made.
#[derive(Debug, thiserror::Error)]
#[error("NSM_DNS_SERVER, /etc/resolv.conf: {0}")]
pub struct NoResolver(#[from] NetError);

impl Dns {
    /// Those of `/etc/resolv.conf`, as it is now, and `/etc/hosts`. As in libc, the server on this machine if the file names none.
    ///
    /// # Errors
    /// [`NoResolver`].
    pub fn system() -> Result<Self, NoResolver> {
        match system_conf::read_system_conf() {
            Ok((config, options)) if !config.name_servers().is_empty() => Self::build(config, options),
            read => {
                let reason =
                    read.err().map_or_else(|| "it names no server".to_owned(), |error| error.to_string());
                tracing::warn!("/etc/resolv.conf: {reason}; asking 127.0.0.1 (NSM_DNS_SERVER names others)");
                Self::servers(&[SocketAddr::from(([127, 0, 0, 1], 53))])
            }
        }
    }

    /// These.
    ///
    /// # Errors
    /// [`NoResolver`].
    pub fn servers(servers: &[SocketAddr]) -> Result<Self, NoResolver> {
        let servers = servers.iter().map(|address| {
            let mut server = NameServerConfig::udp_and_tcp(address.ip());
            server.connections.iter_mut().for_each(|connection| connection.port = address.port());
            server
        });
        Self::build(ResolverConfig::from_parts(None, Vec::new(), servers.collect()), ResolverOpts::default())
    }

    fn build(config: ResolverConfig, mut ours: ResolverOpts) -> Result<Self, NoResolver> {
        options(&mut ours);
        let shown = |server: &NameServerConfig| {
            let port = server.connections.first().map_or(53, |connection| connection.port);
            SocketAddr::new(server.ip, port).to_string()
        };
        let servers = config.name_servers().iter().map(shown).collect::<Vec<_>>().join(", ");
        let provider = TokioRuntimeProvider::default();
        let resolver = TokioResolver::builder_with_config(config, provider).with_options(ours).build()?;
        Ok(Self { resolver, servers })
    }
}

fn options(options: &mut ResolverOpts) {
    options.timeout = TRY;
    options.attempts = TRIES;
    options.cache_size = REMEMBERED;
    options.negative_max_ttl = Some(NEGATIVE);
    options.try_tcp_on_error = true;
    options.ip_strategy = LookupIpStrategy::Ipv6AndIpv4;
}

/// Without search lists: a domain is what it says.
fn absolute(name: &str) -> String {
    format!("{}.", name.trim_end_matches('.'))
}

fn reason(error: NetError) -> LookupError {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => {
            LookupError::None(format!("no such record ({})", none.response_code))
        }
        error => LookupError::Failed(error.to_string()),
    }
}

#[async_trait]
impl Lookup for Dns {
    async fn srv(&self, name: &str) -> Result<Vec<Srv>, LookupError> {
        let found = self.resolver.lookup(absolute(name), RecordType::SRV).await.map_err(reason)?;
        let record = |data: &RData| match data {
            RData::SRV(srv) => Some(Srv {
                priority: srv.priority,
                weight: srv.weight,
                port: srv.port,
                host: srv.target.to_utf8(),
            }),
            _ => None,
        };
        Ok(found.answers().iter().filter_map(|answer| record(&answer.data)).collect())
    }

    async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, LookupError> {
        let found = self.resolver.lookup_ip(absolute(name)).await.map_err(reason)?;
        Ok(found.iter().collect())
    }

    fn servers(&self) -> String {
        self.servers.clone()
    }
}
