//! How other domains are looked for.

use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;

use super::{Discovery, Dns, Lookup, NoResolver, Ports};
use crate::config::{List, Maybe};
use crate::domain::Domain;
use crate::transport::Target;

/// The settings of what looks for other domains.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// DNS servers to ask in place of the system's: ip:port, separated by commas.
    #[arg(long, env = "NSM_DNS_SERVER", value_name = "ADDRESSES", default_value = "")]
    pub dns_server: List<SocketAddr>,

    /// Domains that nobody is asked for: DOMAIN=REGISTRY or DOMAIN=REGISTRY+PROXY, separated by commas.
    #[arg(long, env = "VWIRE_DOMAIN_MAP", value_name = "ENTRIES", default_value = "")]
    pub domain_map: List<DomainEntry>,

    /// Ports of the registry of a domain that has no SRV records, in the order in which they are tried.
    #[arg(long, env = "VWIRE_DOMAIN_REGISTRY_PORTS", value_name = "PORTS", default_value = "5002,5005,80")]
    pub domain_registry_ports: List<u16>,

    /// Ports of the nsmgr-proxy of a domain that has no SRV records, in the order in which they are tried.
    #[arg(long, env = "VWIRE_DOMAIN_PROXY_PORTS", value_name = "PORTS", default_value = "5004,5006")]
    pub domain_proxy_ports: List<u16>,

    /// The first NSM's variable for the port of other domains' registries: it is tried first.
    #[arg(long, env = "PROXY_NSMD_K8S_REMOTE_PORT", value_name = "PORT", default_value = "", hide = true)]
    pub proxy_nsmd_k8s_remote_port: Maybe<u16>,
}

impl Options {
    /// What they make.
    ///
    /// # Errors
    /// [`NoResolver`] if the resolver can't be made.
    pub fn discovery(&self) -> Result<Discovery, NoResolver> {
        let dns = if self.dns_server.is_empty() { Dns::system()? } else { Dns::servers(&self.dns_server)? };
        Ok(self.with(Arc::new(dns)))
    }

    /// What they make, asking `lookup`.
    pub fn with(&self, lookup: Arc<dyn Lookup>) -> Discovery {
        let first = self.proxy_nsmd_k8s_remote_port.0;
        let others = self.domain_registry_ports.iter().copied().filter(|port| Some(*port) != first);
        let ports = Ports {
            registry: first.into_iter().chain(others).collect(),
            proxy: self.domain_proxy_ports.0.clone(),
        };
        Discovery::new(self.domain_map.0.clone(), lookup, ports)
    }
}

/// A domain whose places are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainEntry {
    /// Its name.
    pub domain: String,
    /// Its registry.
    pub registry: Target,
    /// Its nsmgr-proxy, if it is more than a registry.
    pub proxy: Option<Target>,
}

impl FromStr for DomainEntry {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = "write b.example=10.0.0.1:5002 or b.example=10.0.0.1:5002+10.0.0.1:5004";
        let (domain, places) = text.split_once('=').ok_or(form)?;
        Domain::parse(domain).map_err(|error| error.to_string())?;
        let place = |text: &str| Target::parse(text).map_err(|error| format!("{error}; {form}"));
        let (registry, proxy) = match places.split_once('+') {
            Some((registry, proxy)) => (registry, Some(place(proxy)?)),
            None => (places, None),
        };
        Ok(Self { domain: domain.to_owned(), registry: place(registry)?, proxy })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_the_map_are_read() {
        let entry: DomainEntry = "b.test=10.0.0.1:5002+tcp://[fd00::1]:5004".parse().unwrap();
        assert_eq!(entry.domain, "b.test");
        assert_eq!(entry.registry.to_string(), "tcp://10.0.0.1:5002");
        assert_eq!(entry.proxy.unwrap().to_string(), "tcp://[fd00::1]:5004");
        assert_eq!("b.test=h:1".parse::<DomainEntry>().unwrap().proxy, None);
        for bad in ["b.test", "=h:1", "b.test=h", "b.test=h:1+", "b test=h:1"] {
            assert!(bad.parse::<DomainEntry>().unwrap_err().contains("write "), "{bad}");
        }
    }
}
