//! What a topology file may say.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ipnet::IpNet;
use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use url::Url;

use super::dns::{Dns, Records};
use crate::client::nsurl::ServiceUrl;

mod validate;

/// Longest file that is read.
const MAX_BYTES: u64 = 1 << 20;
/// The name of the namespace that has the underlay's bridge.
pub const UNDERLAY: &str = "net";

/// Why a file describes no lab.
#[derive(Debug, thiserror::Error)]
#[error("{}{field}: {reason}", file.as_ref().map(|file| format!("{}: ", file.display())).unwrap_or_default())]
pub struct BadSpec {
    /// The file, if it came from one.
    pub file: Option<PathBuf>,
    /// What of it.
    pub field: String,
    /// What is wrong.
    pub reason: String,
}

/// A lab.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// Of the lab; part of every name that it makes.
    pub name: String,
    /// Each with an issuer and a registry of its own.
    pub domains: Vec<Domain>,
    /// How they find each other.
    #[serde(default)]
    pub dns: Dns,
    /// True: domains let through only what they need of each other.
    #[serde(default)]
    pub firewall: bool,
    /// What `lab check` looks at, in this order.
    #[serde(default, with = "serde_yaml_ng::with::singleton_map_recursive")]
    pub checks: Vec<Check>,
    /// What all roles log: NSM_LOG_LEVEL.
    #[serde(default = "info")]
    pub log_level: String,
}

fn info() -> String {
    "INFO".to_owned()
}

/// What trusts one issuer and asks one registry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Domain {
    /// Of the domain.
    pub name: String,
    /// Of its SPIFFE IDs; NAME.lab if it is left out.
    pub trust_domain: Option<String>,
    /// Without TLS and without an issuer.
    #[serde(default)]
    pub insecure: bool,
    /// False: its node's manager has the registry. Then there can be one node only.
    #[serde(default = "yes")]
    pub registry: bool,
    /// True: a `vwire proxy` joins it to the others.
    #[serde(default)]
    pub proxy: bool,
    /// How many proxies it has, of one name and one identity, each at an address of its own.
    #[serde(default = "one")]
    pub replicas: u8,
    /// What is behind the @ of its names; NAME.test if it is left out.
    pub dns_name: Option<String>,
    /// How its name is found, where there is a name server.
    #[serde(default)]
    pub records: Records,
    /// The largest packet of its parts' links, as clouds have different ones.
    #[serde(default = "usual_mtu")]
    pub mtu: u16,
    /// Which addresses its parts have on the underlay.
    #[serde(default)]
    pub stack: Stack,
    /// Further variables for its registry and its proxies.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Its nodes. None: a registry and no more, in which endpoints of other domains register.
    pub nodes: Vec<Node>,
    /// The prefixes of a virtual network, of each of which a `vwire vl3-ipam` gives a part to each endpoint that asks it.
    #[serde(default, deserialize_with = "prefixes")]
    pub ipam: Vec<IpNet>,
    /// Further variables for its issuer.
    #[serde(default)]
    pub issuer_env: BTreeMap<String, String>,
}

/// Versions of IP.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stack {
    /// IPv4 alone.
    #[default]
    Ipv4,
    /// IPv6 alone.
    Ipv6,
    /// Both; tunnels and calls within the domain take IPv6.
    Dual,
}

impl Stack {
    /// What either has.
    pub fn and(self, other: Self) -> Self {
        if self == other { self } else { Self::Dual }
    }

    /// True if it has addresses of this version.
    pub fn has(self, address: &IpAddr) -> bool {
        match self {
            Self::Ipv4 => address.is_ipv4(),
            Self::Ipv6 => address.is_ipv6(),
            Self::Dual => true,
        }
    }
}

impl Domain {
    /// What is behind the @ of its names.
    pub fn dns_name(&self) -> String {
        self.dns_name.clone().unwrap_or_else(|| format!("{}.test", self.name))
    }

    /// The trust domain of its SPIFFE IDs.
    pub fn trust(&self) -> String {
        self.trust_domain.clone().unwrap_or_else(|| format!("{}.lab", self.name))
    }
}

fn usual_mtu() -> u16 {
    1500
}

fn one() -> u8 {
    1
}

fn yes() -> bool {
    true
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Of the node.
    pub name: String,
    /// True: manager and forwarder are processes of their own, as in Kubernetes. False: one `vwire node`.
    #[serde(default)]
    pub split: bool,
    /// True: it knows only an inner address; the one that others know is translated, one to one.
    #[serde(default)]
    pub nat: bool,
    /// Endpoints on it.
    #[serde(default)]
    pub endpoints: Vec<Endpoint>,
    /// Endpoints of virtual networks (vL3) on it, each with a packet engine of its own.
    #[serde(default)]
    pub vl3: Vec<Vl3>,
    /// Clients on it.
    #[serde(default)]
    pub clients: Vec<Client>,
    /// Further variables for its roles.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
}

/// How a workload's leg is carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Leg {
    /// A kernel interface.
    Kernel,
    /// Shared memory.
    Memif,
}

/// An icmp responder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// Of the endpoint: `NSM_NAME`.
    pub name: String,
    /// The network service that it serves.
    pub service: String,
    /// How its leg is carried.
    pub mechanism: Leg,
    /// Whence clients get addresses: one of each, where there are several.
    #[serde(deserialize_with = "prefixes")]
    pub cidr: Vec<IpNet>,
    /// What it can be found by.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// ETHERNET or IP.
    #[serde(default = "ethernet")]
    pub payload: String,
    /// Where it passes its connections on to, `service` or `service@domain`. It has no addresses then; its two interfaces are joined by
    /// a bridge.
    pub passes_to: Option<String>,
    /// Further variables.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
}

/// An endpoint of a virtual network: it routes between its clients and the other endpoints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vl3 {
    /// Of the endpoint: `NSM_NAME`.
    pub name: String,
    /// The network services that it serves; the first is the one that all endpoints of the network have.
    pub services: Vec<String>,
    /// The domain whose prefixes it has a part of; its own if it is left out.
    pub ipam: Option<String>,
    /// What it can be found by.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Other domains whose endpoints of the service are its peers: `NSM_REMOTE_NS_IP_LIST`.
    #[serde(default)]
    pub remotes: Vec<String>,
    /// Further variables.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
}

/// A prefix, or a list of them.
fn prefixes<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<IpNet>, D::Error> {
    struct Prefixes;
    impl<'de> Visitor<'de> for Prefixes {
        type Value = Vec<IpNet>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a prefix such as 10.0.0.0/24, or a list of prefixes")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<IpNet>, E> {
            text.parse().map(|one| vec![one]).map_err(|error| E::custom(format!("{text:?}: {error}")))
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<IpNet>, A::Error> {
            let mut all = Vec::new();
            while let Some(one) = list.next_element()? {
                all.push(one);
            }
            Ok(all)
        }
    }
    from.deserialize_any(Prefixes)
}

fn ethernet() -> String {
    "ETHERNET".to_owned()
}

/// A client.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Client {
    /// Of the client: `NSM_NAME`.
    pub name: String,
    /// What it asks for, as in `NSM_NETWORK_SERVICES`: `kernel://SERVICE/INTERFACE?LABEL=VALUE`, `memif://SERVICE`.
    pub services: Vec<String>,
    /// Further variables.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
}

/// Something that must be so.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Check {
    /// No ping is lost.
    Ping {
        /// The client.
        from: String,
        /// Only the connection to this service.
        service: Option<String>,
        /// How many of each size, to each of its endpoints.
        #[serde(default = "ten")]
        count: u32,
        /// Bytes of payload.
        #[serde(default = "sizes")]
        sizes: Vec<u16>,
    },
    /// The client's connections have so many hops.
    Path {
        /// The client.
        from: String,
        /// Only the connection to this service.
        service: Option<String>,
        /// Segments of the path.
        hops: usize,
    },
    /// The client's connections have so many addresses of each version of IP, at both ends.
    Addresses {
        /// The client.
        from: String,
        /// Only the connection to this service.
        service: Option<String>,
        /// IPv4 addresses of each end.
        #[serde(default)]
        ipv4: usize,
        /// IPv6 addresses of each end.
        #[serde(default)]
        ipv6: usize,
    },
    /// The tunnel of the client's connections is between these addresses.
    Tunnel {
        /// The client.
        from: String,
        /// Only the connection to this service.
        service: Option<String>,
        /// As the client's domain knows them: its own node's, then the other's.
        between: [IpAddr; 2],
    },
    /// The forwarder beside the client counted its packets.
    Counters {
        /// The client.
        from: String,
        /// Only the connection to this service.
        service: Option<String>,
        /// At least so many came from the client.
        rx_packets_at_least: u64,
    },
    /// TCP carries something to the endpoint (with iperf3, where it is installed).
    Transfer {
        /// The client, with a kernel interface.
        from: String,
        /// The service, whose endpoint has a kernel interface, too.
        service: String,
        /// At least so many megabytes.
        megabytes: u32,
    },
    /// An endpoint of a virtual network is linked with so many others.
    Peers {
        /// The endpoint.
        of: String,
        /// How many.
        count: usize,
    },
    /// Each of these clients reaches each other's addresses, and loses no ping.
    Reach {
        /// The clients; those with memif are only asked. All of the lab if it is left out.
        #[serde(default)]
        between: Vec<String>,
        /// How many pings of each size.
        #[serde(default = "ten")]
        count: u32,
        /// Bytes of payload.
        #[serde(default = "sizes")]
        sizes: Vec<u16>,
    },
    /// No log of the lab holds a token or a key.
    NoSecretsInLogs {},
}

fn ten() -> u32 {
    10
}

fn sizes() -> Vec<u16> {
    vec![56]
}

impl Client {
    /// The kind of leg of one of its services.
    pub fn leg(service: &str) -> Option<Leg> {
        match Url::parse(service).ok()?.scheme() {
            "kernel" => Some(Leg::Kernel),
            "memif" => Some(Leg::Memif),
            _ => None,
        }
    }

    /// The network service that one of its services asks for: `SERVICE` or `SERVICE@DOMAIN`.
    pub fn service(url: &str) -> Option<String> {
        Some(url.parse::<ServiceUrl>().ok()?.service)
    }
}

impl FromStr for Spec {
    type Err = BadSpec;

    fn from_str(text: &str) -> Result<Self, BadSpec> {
        let bad = |reason: String| BadSpec { file: None, field: "lab".to_owned(), reason };
        let spec: Self = serde_yaml_ng::from_str(text).map_err(|error| bad(error.to_string()))?;
        spec.validate().map_err(|(field, reason)| BadSpec { file: None, field, reason })?;
        Ok(spec)
    }
}

impl Spec {
    /// Reads a file.
    ///
    /// # Errors
    /// [`BadSpec`], with the file and what of it is wrong.
    pub fn load(path: &Path) -> Result<Self, BadSpec> {
        let bad = |reason: String| BadSpec { file: Some(path.to_owned()), field: "lab".to_owned(), reason };
        let meta = std::fs::metadata(path).map_err(|error| bad(error.to_string()))?;
        if !meta.is_file() || meta.len() > MAX_BYTES {
            return Err(bad(format!("not a file of at most {MAX_BYTES} bytes")));
        }
        let text = std::fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
        text.parse().map_err(|error| BadSpec { file: Some(path.to_owned()), ..error })
    }

    /// All nodes, with their domains.
    pub fn nodes(&self) -> impl Iterator<Item = (&Domain, &Node)> {
        self.domains.iter().flat_map(|domain| domain.nodes.iter().map(move |node| (domain, node)))
    }

    /// All endpoints, with their nodes.
    pub fn endpoints(&self) -> impl Iterator<Item = (&Node, &Endpoint)> {
        self.nodes().flat_map(|(_, node)| node.endpoints.iter().map(move |endpoint| (node, endpoint)))
    }

    /// All endpoints of virtual networks, with their domains and nodes.
    pub fn vl3(&self) -> impl Iterator<Item = (&Domain, &Node, &Vl3)> {
        self.nodes().flat_map(|(domain, node)| node.vl3.iter().map(move |vl3| (domain, node, vl3)))
    }

    /// All clients, with their nodes.
    pub fn clients(&self) -> impl Iterator<Item = (&Node, &Client)> {
        self.nodes().flat_map(|(_, node)| node.clients.iter().map(move |client| (node, client)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "
name: l
domains:
  - name: d
    nodes:
      - name: n
        endpoints: [{name: e, service: s, mechanism: kernel, cidr: 10.0.0.0/24}]
        clients: [{name: c, services: ['kernel://s/nsm-1']}]
checks:
  - ping: {from: c}
  - path: {from: c, hops: 4}
  - no_secrets_in_logs: {}
";

    #[test]
    fn defaults_are_filled_in() {
        let spec: Spec = GOOD.parse().unwrap();
        assert_eq!(
            spec.checks[0],
            Check::Ping { from: "c".into(), service: None, count: 10, sizes: vec![56] }
        );
        assert!(spec.domains[0].registry && !spec.domains[0].insecure);
        assert_eq!(spec.endpoints().next().unwrap().1.payload, "ETHERNET");
        let again: Spec = serde_yaml_ng::to_string(&spec).unwrap().parse().unwrap();
        assert_eq!(again, spec);
    }

    #[test]
    fn mistakes_are_named() {
        let long = "x".repeat(25);
        let cases = [
            ("name: l", "name: L", "name: \"L\": a name has"),
            ("name: l", &format!("name: {long}"), "24"),
            ("name: l", "name: ../l", "a name has"),
            ("name: d", "name: n", "\"n\" is taken"),
            ("name: d", "name: net", "\"net\" is taken"),
            ("name: d", "nane: d", "unknown field `nane`"),
            ("mechanism: kernel", "mechanism: vxlan", "unknown variant `vxlan`"),
            ("kernel://s/nsm-1", "http://s", "clients.c.services: \"http://s\""),
            ("ping: {from: c}", "ping: {from: x}", "\"x\" is no client"),
            ("ping: {from: c}", "pong: {from: c}", "unknown variant `pong`"),
            ("cidr: 10.0.0.0/24", "cidr: 10.0.0.0/33", "cidr"),
            ("cidr: 10.0.0.0/24", "cidr: 10.0.0.0/24, payload: ARP", "endpoints.e.payload: ETHERNET or IP"),
            ("cidr: 10.0.0.0/24", "cidr: [10.0.0.0/24, fd00::/129]", "cidr"),
            ("cidr: 10.0.0.0/24", "cidr: []", "endpoints.e.cidr: no prefix"),
            (
                "clients:",
                "vl3: [{name: v, services: [s]}]\n        clients:",
                "vl3.v.ipam: domain \"d\" has no prefixes",
            ),
            (
                "nodes:\n",
                "ipam: 10.0.0.0/16\n    nodes:\n      - {name: m, vl3: [{name: v, services: []}]}\n",
                "vl3.v.services: none",
            ),
            ("ping: {from: c}", "peers: {of: c, count: 1}", "\"c\" is no vl3"),
            ("ping: {from: c}", "reach: {between: [c, x]}", "\"x\" is no client"),
            ("nodes:\n", "replicas: 9\n    nodes:\n", "domains.d.replicas: a domain has 1 to 8"),
            ("nodes:\n", "stack: ipv5\n    nodes:\n", "unknown variant `ipv5`"),
            ("nodes:\n", "registry: false\n    nodes:\n      - name: m\n", "one node only"),
        ];
        for (from, to, reason) in cases {
            let text = GOOD.replace(from, to);
            assert_ne!(text, GOOD, "{from}");
            let error = text.parse::<Spec>().unwrap_err().to_string();
            assert!(error.contains(reason), "{to}: {error}");
        }
    }

    #[test]
    fn every_shipped_topology_loads() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/lab");
        let mut names = Vec::new();
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let spec = Spec::load(&path).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(path.file_stem().unwrap().to_str(), Some(spec.name.as_str()), "{}", path.display());
            assert!(!spec.checks.is_empty());
            names.push(spec.name);
        }
        names.sort();
        assert_eq!(
            names,
            [
                "dual-stack",
                "five-domains",
                "floating",
                "nat",
                "one-node",
                "replicas",
                "two-domains",
                "two-nodes",
                "vl3",
                "vl3-domains",
                "vl3-single",
                "vl3-three-domains"
            ]
        );
    }
}
