//! The names, addresses and paths of a lab's parts.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use super::spec::{Domain, Node, Spec, UNDERLAY};
use crate::transport::Target;

/// Where all labs are.
pub const RUN: &str = "/run/vwire/lab";
/// Where `ip netns` keeps namespaces.
const NETNS: &str = "/run/netns";
/// The manager's TCP port, as in NSM's manifests.
const NSMGR_PORT: u16 = 5001;
/// The registry's.
pub const REGISTRY_PORT: u16 = 5002;
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

    /// A node's engine.
    pub fn engine(&self, node: &Node) -> PathBuf {
        self.directory.join(format!("{}.engine.sock", node.name))
    }

    /// Its counters.
    pub fn stats(&self, node: &Node) -> PathBuf {
        self.directory.join(format!("{}.stats", node.name))
    }

    /// Its configuration.
    pub fn engine_config(&self, node: &Node) -> PathBuf {
        self.directory.join(format!("{}.engine.toml", node.name))
    }

    /// Where a process may keep files of its own.
    pub fn scratch(&self, process: &str) -> PathBuf {
        self.directory.join("tmp").join(process)
    }

    /// A node's manager, for other nodes.
    pub fn manager_tcp(&self, spec: &Spec, node: &Node) -> Target {
        Target::Tcp(format!("{}:{NSMGR_PORT}", address(spec, &node.name)))
    }

    /// A domain's proxy, for its own registry.
    pub fn proxy(&self, spec: &Spec, domain: &Domain) -> Target {
        Target::Tcp(format!("{}:{PROXY_PORT}", address(spec, &domain.name)))
    }

    /// Where issuers put their bundles, for each other.
    pub fn bundles(&self) -> PathBuf {
        self.directory.join("bundles")
    }

    /// A domain's registry.
    pub fn registry(&self, spec: &Spec, domain: &Domain) -> Target {
        Target::Tcp(format!("{}:{REGISTRY_PORT}", address(spec, &domain.name)))
    }
}

/// The underlay address of a node, or of a domain's own namespace: 10.200.DOMAIN.NODE, in a /16 that is only within the lab.
pub fn address(spec: &Spec, part: &str) -> Ipv4Addr {
    for (domain_index, domain) in (1..).zip(&spec.domains) {
        let at = |last: u8| Ipv4Addr::new(10, 200, domain_index, last);
        if domain.name == part {
            return at(1);
        }
        if let Some((node_index, _)) = (10..).zip(&domain.nodes).find(|(_, node)| node.name == part) {
            return at(node_index);
        }
    }
    Ipv4Addr::new(10, 200, 0, 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_told_apart_and_fit_into_socket_addresses() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/lab/two-nodes.yaml");
        let spec = Spec::load(&file).unwrap();
        assert_eq!(address(&spec, "cluster").to_string(), "10.200.1.1");
        assert_eq!(address(&spec, "node-1").to_string(), "10.200.1.10");
        assert_eq!(address(&spec, "node-2").to_string(), "10.200.1.11");
        let longest = "x".repeat(24);
        let layout = Layout::new(Path::new(RUN), &longest);
        let process = format!("forwarder-{longest}");
        let Target::Unix(path) = layout.workload_api(&process) else { unreachable!() };
        assert!(path.as_os_str().len() <= 107, "{}", path.display());
        assert_eq!(layout.namespace("node-1"), format!("vw-{longest}-node-1"));
    }
}
