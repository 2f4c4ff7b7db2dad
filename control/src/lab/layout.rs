//! The names, addresses and paths of a lab's parts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use super::spec::{Domain, Node, Spec, Stack, UNDERLAY};
use crate::transport::Target;

/// Where all labs are.
pub const RUN: &str = "/run/vwire/lab";
/// Where `ip netns` keeps namespaces.
const NETNS: &str = "/run/netns";
/// The manager's TCP port, as in NSM's manifests.
const NSMGR_PORT: u16 = 5001;
/// The registry's.
pub const REGISTRY_PORT: u16 = 5002;
/// Forwarders' tunnels, UDP.
pub const NODE_PORT: u16 = 4789;
/// The host that stands for all of a domain's proxies, in front of its name.
const PROXIES: &str = "proxies";
/// The proxy's.
pub const PROXY_PORT: u16 = 5004;

/// Says what the parts of one lab are called and where they are. All of it follows from names, so that `down` finds what a broken `up`
/// has left.
#[derive(Debug, Clone)]
pub struct Layout {
    lab: String,
    directory: PathBuf,
}

impl Layout {
    /// Of the lab called `lab`, in `run` (usually [`RUN`]).
    pub fn new(run: &Path, lab: &str) -> Self {
        Self { lab: lab.to_owned(), directory: run.join(lab) }
    }

    /// The lab's name.
    pub fn lab(&self) -> &str {
        &self.lab
    }

    /// Where its files are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A part's namespace.
    pub fn namespace(&self, part: &str) -> String {
        format!("vw-{}-{part}", self.lab)
    }

    /// The namespace's file.
    pub fn namespace_file(&self, part: &str) -> PathBuf {
        Path::new(NETNS).join(self.namespace(part))
    }

    /// Of the bridge that joins the nodes.
    pub fn underlay(&self) -> &'static str {
        UNDERLAY
    }

    /// A process's log.
    pub fn log(&self, process: &str) -> PathBuf {
        self.directory.join("log").join(format!("{process}.log"))
    }

    /// A process's admin port.
    pub fn admin(&self, process: &str) -> Target {
        Target::Unix(self.directory.join("admin").join(format!("{process}.sock")))
    }

    /// The Workload API of one process: whoever reaches it is that process.
    pub fn workload_api(&self, process: &str) -> Target {
        Target::Unix(self.directory.join("spiffe").join(format!("{process}.sock")))
    }

    /// A node's manager, for its workloads.
    pub fn manager(&self, node: &Node) -> Target {
        Target::Unix(self.directory.join(format!("{}.nsm.sock", node.name)))
    }

    /// The engine of a node, or of an endpoint that routes.
    pub fn engine(&self, part: &str) -> PathBuf {
        self.directory.join(format!("{part}.engine.sock"))
    }

    /// Its counters.
    pub fn stats(&self, part: &str) -> PathBuf {
        self.directory.join(format!("{part}.stats"))
    }

    /// Its configuration.
    pub fn engine_config(&self, part: &str) -> PathBuf {
        self.directory.join(format!("{part}.engine.toml"))
    }

    /// Where endpoints ask for a part of one of a domain's prefixes, from 0 on.
    pub fn ipam(&self, domain: &Domain, index: usize) -> Target {
        Target::Unix(self.directory.join(format!("{}.ipam{index}.sock", domain.name)))
    }

    /// Where a process may keep files of its own.
    pub fn scratch(&self, process: &str) -> PathBuf {
        self.directory.join("tmp").join(process)
    }

    /// A node's manager, for other nodes.
    pub fn manager_tcp(&self, spec: &Spec, node: &Node) -> Target {
        at(primary(spec, &node.name), NSMGR_PORT)
    }

    /// A domain's proxy, for its own registry; of several, all by one name, which only [`hosts`](Self::hosts) knows.
    pub fn proxy(&self, spec: &Spec, domain: &Domain) -> Target {
        if domain.replicas > 1 {
            return Target::Tcp(format!("{PROXIES}.{}:{PROXY_PORT}", domain.dns_name()));
        }
        at(primary(spec, &domain.name), PROXY_PORT)
    }

    /// The hosts that a domain with several proxies knows.
    pub fn hosts(&self, domain: &Domain) -> PathBuf {
        self.scratch(&format!("hosts-{}", domain.name))
    }

    /// What a domain's proxy is told of its nodes' addresses.
    pub fn address_map(&self, domain: &Domain) -> PathBuf {
        self.scratch(&format!("map-ip-{}.yaml", domain.name))
    }

    /// The network services that a domain's registry has from its operator.
    pub fn services(&self, domain: &Domain) -> PathBuf {
        self.scratch(&format!("services-{}.yaml", domain.name))
    }

    /// Where issuers put their bundles, for each other.
    pub fn bundles(&self) -> PathBuf {
        self.directory.join("bundles")
    }

    /// A domain's registry.
    pub fn registry(&self, spec: &Spec, domain: &Domain) -> Target {
        at(primary(spec, &domain.name), REGISTRY_PORT)
    }
}

/// A TCP target.
pub fn at(address: IpAddr, port: u16) -> Target {
    Target::Tcp(SocketAddr::new(address, port).to_string())
}

/// Where on the underlay a part is: the domain's number and its own within it. The underlay's bridge is in domain 0.
fn place(spec: &Spec, part: &str) -> (u8, u8) {
    for (domain_index, domain) in (1..).zip(&spec.domains) {
        if domain.name == part {
            return (domain_index, 1);
        }
        if let Some((node_index, _)) = (10..).zip(&domain.nodes).find(|(_, node)| node.name == part) {
            return (domain_index, node_index);
        }
    }
    (0, 1)
}

/// Which addresses a part has: those of its domain's stack, and the bridge all that any domain has.
fn stack(spec: &Spec, part: &str) -> Stack {
    let (domain, _) = place(spec, part);
    match usize::from(domain).checked_sub(1).and_then(|index| spec.domains.get(index)) {
        Some(domain) => domain.stack,
        None => spec.domains.iter().map(|domain| domain.stack).reduce(Stack::and).unwrap_or_default(),
    }
}

/// The IPv4 underlay address of a node, of a domain's own namespace, or of the bridge: 10.200.DOMAIN.NODE, in a /16 that is only
/// within the lab.
pub fn v4(spec: &Spec, part: &str) -> Ipv4Addr {
    v4_of(place(spec, part))
}

fn v4_of((domain, last): (u8, u8)) -> Ipv4Addr {
    Ipv4Addr::new(10, 200, domain, last)
}

/// The IPv6 underlay address: fd00:200:DOMAIN::NODE, in a /32. Its numbers are written as the IPv4 address's are.
pub fn v6(spec: &Spec, part: &str) -> Ipv6Addr {
    v6_of(place(spec, part))
}

fn v6_of((domain, last): (u8, u8)) -> Ipv6Addr {
    let digits = |number: u8| u16::from_str_radix(&number.to_string(), 16).unwrap_or_default();
    Ipv6Addr::new(0xfd00, 0x200, digits(domain), 0, 0, 0, 0, digits(last))
}

/// All underlay addresses of a part.
pub fn addresses(spec: &Spec, part: &str) -> Vec<IpAddr> {
    let all = [IpAddr::from(v4(spec, part)), IpAddr::from(v6(spec, part))];
    all.into_iter().filter(|address| stack(spec, part).has(address)).collect()
}

/// The underlay address that is used where only one can be: IPv6 where there is both.
pub fn primary(spec: &Spec, part: &str) -> IpAddr {
    match stack(spec, part) {
        Stack::Ipv4 => v4(spec, part).into(),
        Stack::Ipv6 | Stack::Dual => v6(spec, part).into(),
    }
}

/// The addresses of one of a domain's proxies, from 0 on. The first has the domain's own.
pub fn replica(spec: &Spec, domain: &Domain, index: u8) -> Vec<IpAddr> {
    let (number, first) = place(spec, &domain.name);
    let at = (number, first + index);
    let all = [IpAddr::from(v4_of(at)), IpAddr::from(v6_of(at))];
    all.into_iter().filter(|address| domain.stack.has(address)).collect()
}

/// The text of [`Layout::hosts`].
pub fn hosts(spec: &Spec, domain: &Domain) -> String {
    let all = (0..domain.replicas).flat_map(|index| replica(spec, domain, index));
    let line = |address| format!("{address} {PROXIES}.{}\n", domain.dns_name());
    std::iter::once("127.0.0.1 localhost\n::1 localhost\n".to_owned()).chain(all.map(line)).collect()
}

/// The address by which a node behind a translation knows itself; others know its [`v4`].
pub fn inner(spec: &Spec, node: &str) -> Ipv4Addr {
    let (domain, last) = place(spec, node);
    Ipv4Addr::new(192, 168, domain, last)
}

/// Where a node's tunnels begin, as it knows itself.
pub fn tunnel(spec: &Spec, node: &Node) -> IpAddr {
    if node.nat { inner(spec, &node.name).into() } else { primary(spec, &node.name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_told_apart_and_fit_into_socket_addresses() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/lab/two-nodes.yaml");
        let mut spec = Spec::load(&file).unwrap();
        assert_eq!(v4(&spec, "cluster").to_string(), "10.200.1.1");
        assert_eq!(v4(&spec, "node-1").to_string(), "10.200.1.10");
        assert_eq!(v4(&spec, "node-2").to_string(), "10.200.1.11");
        assert_eq!(v6(&spec, "node-2").to_string(), "fd00:200:1::11");
        let everything = [Stack::Ipv4, Stack::Ipv6, Stack::Dual].map(|stack| {
            spec.domains[0].stack = stack;
            (addresses(&spec, "node-1").len(), primary(&spec, "node-1").is_ipv6())
        });
        assert_eq!(everything, [(1, false), (1, true), (2, true)]);
        let longest = "x".repeat(24);
        let layout = Layout::new(Path::new(RUN), &longest);
        let process = format!("forwarder-{longest}");
        let Target::Unix(path) = layout.workload_api(&process) else { unreachable!() };
        assert!(path.as_os_str().len() <= 107, "{}", path.display());
        assert_eq!(layout.namespace("node-1"), format!("vw-{longest}-node-1"));
    }
}
