//! Which processes a lab has, and what each is told: by NSM's variables, as in Kubernetes.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::layout::{PROXY_PORT, REGISTRY_PORT, addresses, at, replica, tunnel};
use super::process::Start;
use super::spec::{Client, Domain, Endpoint, Leg, Node, Spec, Vl3};
use super::{LabError, Layout, Programs, dns};

/// The variable that says where a process gets its identity.
const WORKLOAD_API: &str = "SPIFFE_ENDPOINT_SOCKET";

/// What a lab's process is told.
type Env = Vec<(String, String)>;

/// The name of a client's process.
pub fn client(name: &str) -> String {
    format!("nsc-{name}")
}

/// The name of the process that has a node's forwarder.
pub fn forwarder(node: &Node) -> String {
    format!("{}-{}", if node.split { "forwarder" } else { "node" }, node.name)
}

/// The name of the process of an endpoint that routes.
pub fn vl3(name: &str) -> String {
    format!("vl3-{name}")
}

/// True of an engine's process, which has a gRPC socket instead of an admin port.
pub fn is_engine(name: &str) -> bool {
    name.ends_with(".engine")
}

fn env<const N: usize>(pairs: [(&str, String); N]) -> Env {
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Ports at all of these addresses; IPv6 first, since others are told the first.
fn listens(mut addresses: Vec<IpAddr>, ports: &[u16]) -> String {
    addresses.sort_by_key(IpAddr::is_ipv4);
    let urls = addresses.iter().flat_map(|address| ports.iter().map(|port| at(*address, *port).to_string()));
    urls.collect::<Vec<_>>().join(",")
}

/// All processes, in waves: each needs what is before it.
pub fn waves(layout: &Layout, spec: &Spec, programs: &Programs) -> Vec<(&'static str, Vec<Start>)> {
    let make = Make { layout, spec, programs };
    let mut waves = vec![
        (
            "registries",
            spec.domains
                .iter()
                .filter(|domain| domain.registry)
                .map(|domain| make.registry(domain))
                .collect(),
        ),
        (
            "proxies",
            spec.domains
                .iter()
                .filter(|domain| domain.proxy)
                .flat_map(|domain| make.proxies(domain))
                .collect(),
        ),
        ("nodes", spec.nodes().flat_map(|(domain, node)| make.node(domain, node)).collect()),
        ("prefixes", spec.domains.iter().flat_map(|domain| make.ipams(domain)).collect()),
        ("endpoints", make.endpoints()),
        ("routers", spec.vl3().map(|(domain, node, vl3)| make.vl3(domain, node, vl3)).collect()),
        ("clients", make.clients()),
    ];
    let all: Vec<Start> = waves.iter().flat_map(|(_, starts): &(_, Vec<Start>)| starts.clone()).collect();
    let secure = spec.domains.iter().filter(|domain| !domain.insecure);
    waves.insert(0, ("issuers", secure.map(|domain| make.issuer(domain, &all)).collect()));
    waves.insert(0, ("name server", dns::server(layout, spec).into_iter().collect()));
    waves.insert(0, ("engines", engines(spec).map(|part| make.engine(part)).collect()));
    waves.retain(|(_, starts)| !starts.is_empty());
    let number = |(wave, (what, mut starts)): (u8, (&'static str, Vec<Start>))| {
        starts.iter_mut().for_each(|start| start.wave = wave);
        (what, starts)
    };
    (0..).zip(waves).map(number).collect()
}

/// What has an engine: nodes, and endpoints that route.
fn engines(spec: &Spec) -> impl Iterator<Item = &str> {
    let nodes = spec.nodes().map(|(_, node)| node.name.as_str());
    nodes.chain(spec.vl3().map(|(_, _, vl3)| vl3.name.as_str()))
}

/// Writes what each engine reads at its start: nothing but where it is to be found.
pub fn write_engine_configs(layout: &Layout, spec: &Spec) -> Result<(), LabError> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    for (index, part) in engines(spec).enumerate() {
        let text = format!(
            "[workers]\ncores = [{}]\nmode = \"adaptive\"\n[api]\nsocket = {:?}\n[stats]\npath = {:?}\n",
            index % cores,
            layout.engine(part),
            layout.stats(part),
        );
        let file = layout.engine_config(part);
        std::fs::write(&file, text).map_err(|error| LabError::failed(file.display().to_string(), error))?;
    }
    Ok(())
}

/// The services of endpoints that route, which registry has them, and what they carry. Several endpoints have one service, and none of
/// them may register it for the others: the operator does.
fn vl3_services<'a>(spec: &'a Spec, domain: &'a Domain) -> BTreeMap<&'a str, &'a str> {
    let here = move |own: &Domain, service: &str| match crate::domain::domain(service) {
        Some(other) => other == domain.dns_name(),
        None => own.name == domain.name,
    };
    let all =
        spec.vl3().flat_map(|(own, _, vl3)| vl3.services.iter().map(move |service| (own, vl3, service)));
    let here = all.filter(|(own, _, service)| here(own, service));
    let payload = |vl3: &'a Vl3| vl3.env.get("NSM_PAYLOAD").map_or("IP", String::as_str);
    here.map(|(_, vl3, service)| (crate::domain::target(service), payload(vl3))).collect()
}

/// Writes the services that registries have from the operator.
pub fn write_services(layout: &Layout, spec: &Spec) -> Result<(), LabError> {
    for domain in &spec.domains {
        let document = |(name, payload): (&str, &str)| {
            format!(
                "apiVersion: networkservicemesh.io/v1\nkind: NetworkService\nmetadata: {{name: {name:?}}}\nspec: {{payload: {payload}}}\n"
            )
        };
        let documents: Vec<String> = vl3_services(spec, domain).into_iter().map(document).collect();
        if documents.is_empty() {
            continue;
        }
        let file = layout.services(domain);
        let written = std::fs::write(&file, documents.join("---\n"));
        written.map_err(|error| LabError::failed(file.display().to_string(), error))?;
    }
    Ok(())
}

struct Make<'a> {
    layout: &'a Layout,
    spec: &'a Spec,
    programs: &'a Programs,
}

impl Make<'_> {
    fn engine(&self, part: &str) -> Start {
        let config = self.layout.engine_config(part).display().to_string();
        Start {
            name: format!("{part}.engine"),
            wave: 0,
            part: part.to_owned(),
            domain: None,
            identity: String::new(),
            hosts: None,
            program: self.programs.dataplane.clone(),
            args: vec!["--config".to_owned(), config],
            env: Vec::new(),
        }
    }

    /// A role, with what every role is told.
    fn role(&self, role: &str, name: &str, part: &str, domain: Option<&Domain>, more: Env) -> Start {
        let process = format!("{role}-{name}");
        // In a path two hops of one name can't be told apart: a node's manager and forwarder have its name with their role's before it.
        let in_paths =
            if part == name && ["nsmgr", "forwarder", "proxy"].contains(&role) { &process } else { name };
        let mut all = env([
            ("NSM_NAME", in_paths.to_owned()),
            ("NSM_LOG_LEVEL", self.spec.log_level.clone()),
            ("VWIRE_ADMIN", self.layout.admin(&process).to_string()),
            ("TMPDIR", self.layout.directory().join("tmp").display().to_string()),
        ]);
        match domain {
            Some(domain) if domain.insecure => all.extend(env([("VWIRE_INSECURE", "true".to_owned())])),
            Some(_) => all.extend(env([(WORKLOAD_API, self.layout.workload_api(&process).to_string())])),
            None => {}
        }
        all.extend(more);
        Start {
            identity: process.clone(),
            hosts: None,
            name: process,
            wave: 0,
            part: part.to_owned(),
            domain: domain.map(|domain| domain.name.clone()),
            program: self.programs.vwire.clone(),
            args: vec![role.to_owned()],
            env: all,
        }
    }

    /// The issuer gives each process of its domain a socket of its own, and by that a name.
    fn issuer(&self, domain: &Domain, starts: &[Start]) -> Start {
        let trust_domain = domain.trust();
        let api = |start: &Start| {
            let api = start.env.iter().find(|(name, _)| name == WORKLOAD_API).map(|(_, url)| url.clone())?;
            start.domain.as_ref().filter(|name| **name == domain.name)?;
            Some(format!("/lab/{}/{}={api}", self.spec.name, start.identity))
        };
        let workloads: Vec<String> = starts.iter().filter_map(api).collect();
        let state = self.layout.scratch(&format!("ca-{}", domain.name));
        let mut more = env([
            ("VWIRE_CA_TRUST_DOMAIN", trust_domain.clone()),
            ("VWIRE_CA_WORKLOADS", workloads.join(",")),
            ("VWIRE_CA_STATE", state.display().to_string()),
        ]);
        if self.spec.domains.len() > 1 {
            // Each leaves its bundle where all others look.
            let bundles = self.layout.bundles();
            let own = bundles.join(format!("{trust_domain}.pem"));
            more.extend(env([
                ("VWIRE_CA_BUNDLE", own.display().to_string()),
                ("VWIRE_CA_FEDERATION", bundles.display().to_string()),
            ]));
        }
        more.extend(domain.issuer_env.clone());
        self.role("ca", &domain.name, &domain.name, None, more)
    }

    fn registry(&self, domain: &Domain) -> Start {
        let own = addresses(self.spec, &domain.name);
        let mut more = env([("NSM_LISTEN_ON", listens(own, &[REGISTRY_PORT]))]);
        if domain.proxy {
            more.extend(env([("NSM_PROXY_REGISTRY_URL", self.layout.proxy(self.spec, domain).to_string())]));
        }
        if !vl3_services(self.spec, domain).is_empty() {
            let file = self.layout.services(domain).display().to_string();
            more.extend(env([("VWIRE_REGISTRY_SERVICES", file)]));
        }
        more.extend(domain.env.clone());
        let mut start = self.role("registry", &domain.name, &domain.name, Some(domain), more);
        start.hosts = (domain.replicas > 1).then(|| self.layout.hosts(domain));
        start
    }

    fn proxies(&self, domain: &Domain) -> Vec<Start> {
        (0..domain.replicas).map(|index| self.proxy(domain, index)).collect()
    }

    /// The door of a domain: both proxies in one process, at their usual ports. Of several each has its address, and the first's name
    /// and identity.
    fn proxy(&self, domain: &Domain, index: u8) -> Start {
        let (found_by, value) = dns::settings(self.spec, domain);
        let own = replica(self.spec, domain, index);
        let first = format!("proxy-{}", domain.name);
        let mut more = env([
            ("NSM_NAME", first.clone()),
            ("NSM_LISTEN_ON", listens(own, &[PROXY_PORT, 5005, 5006])),
            ("NSM_REGISTRY_URL", self.layout.registry(self.spec, domain).to_string()),
            ("NSM_MAP_IP_FILE_PATH", self.layout.address_map(domain).display().to_string()),
            ("VWIRE_DOMAINS", domain.dns_name()),
        ]);
        more.push((found_by, value));
        more.extend(domain.env.clone());
        let name = if index == 0 {
            domain.name.clone()
        } else {
            format!("{}.{}", domain.name, u16::from(index) + 1)
        };
        let start = self.role("proxy", &name, &domain.name, Some(domain), more);
        Start { identity: first, ..start }
    }

    fn node(&self, domain: &Domain, node: &Node) -> Vec<Start> {
        let manager = self.layout.manager(node);
        let listen = format!("{manager},{}", self.layout.manager_tcp(self.spec, node));
        let registry =
            if domain.registry { self.layout.registry(self.spec, domain).to_string() } else { String::new() };
        let nsmgr = env([
            ("NSM_LISTEN_ON", listen),
            ("NSM_REGISTRY_URL", registry),
            // The machine's own prefixes are not the lab's.
            (
                "VWIRE_EXCLUDED_PREFIXES_FILE",
                self.layout.scratch("excluded_prefixes.yaml").display().to_string(),
            ),
        ]);
        let forwarder = env([
            ("NSM_TUNNEL_IP", tunnel(self.spec, node).to_string()),
            ("VWIRE_RUN", self.layout.directory().display().to_string()),
            ("VWIRE_DATAPLANE", format!("unix://{}", self.layout.engine(&node.name).display())),
        ]);
        let role = |role: &str, more: Env| {
            let own = node.env.clone().into_iter().collect();
            self.role(role, &node.name, &node.name, Some(domain), [more, own].concat())
        };
        if !node.split {
            return vec![role("node", [nsmgr, forwarder].concat())];
        }
        let socket = self.layout.directory().join(format!("{}.fwd.sock", node.name));
        let own = env([
            ("NSM_CONNECT_TO", manager.to_string()),
            ("NSM_LISTEN_ON", format!("unix://{}", socket.display())),
        ]);
        vec![role("nsmgr", nsmgr), role("forwarder", [own, forwarder].concat())]
    }

    fn endpoints(&self) -> Vec<Start> {
        let of = |(domain, node): (&Domain, &Node)| -> Vec<Start> {
            node.endpoints.iter().map(|endpoint| self.endpoint(domain, node, endpoint)).collect()
        };
        self.spec.nodes().flat_map(of).collect()
    }

    fn endpoint(&self, domain: &Domain, node: &Node, endpoint: &Endpoint) -> Start {
        let labels: Vec<String> =
            endpoint.labels.iter().map(|(key, value)| format!("{key}:{value}")).collect();
        let cidrs: Vec<String> = endpoint.cidr.iter().map(ToString::to_string).collect();
        let mechanism = match endpoint.mechanism {
            Leg::Kernel => "KERNEL",
            Leg::Memif => "MEMIF",
        };
        let more = env([
            ("NSM_CONNECT_TO", self.layout.manager(node).to_string()),
            ("NSM_SERVICE_NAMES", endpoint.service.clone()),
            ("NSM_PAYLOAD", endpoint.payload.clone()),
            ("NSM_LABELS", labels.join(",")),
            ("NSM_CIDR_PREFIX", cidrs.join(",")),
            ("VWIRE_MECHANISMS", mechanism.to_owned()),
            ("NSM_UNREGISTER_ITSELF", "true".to_owned()),
        ]);
        let onward = match &endpoint.passes_to {
            Some(service) => env([
                ("VWIRE_PASS_THROUGH", "true".to_owned()),
                ("VWIRE_PASS_THROUGH_SERVICE", service.clone()),
            ]),
            None => Vec::new(),
        };
        let more = [more, onward].concat();
        let own = endpoint.env.clone().into_iter().collect();
        self.role("nse", &endpoint.name, &endpoint.name, Some(domain), [more, own].concat())
    }

    /// The services that give out a domain's prefixes, one for each.
    fn ipams(&self, domain: &Domain) -> Vec<Start> {
        let one = |(index, prefix): (usize, &ipnet::IpNet)| {
            let name = if index == 0 { domain.name.clone() } else { format!("{}.{index}", domain.name) };
            let length = prefix.prefix_len() + (prefix.max_prefix_len() - prefix.prefix_len()) / 2;
            let more = env([
                ("NSM_LISTEN_ON", self.layout.ipam(domain, index).to_string()),
                ("NSM_PREFIX", prefix.to_string()),
                ("NSM_CLIENT_PREFIX_LEN", length.to_string()),
                ("VWIRE_IPAM_STATE", self.layout.scratch(&format!("ipam-{name}")).display().to_string()),
            ]);
            self.role("vl3-ipam", &name, &domain.name, Some(domain), more)
        };
        domain.ipam.iter().enumerate().map(one).collect()
    }

    fn vl3(&self, domain: &Domain, node: &Node, vl3: &Vl3) -> Start {
        let labels: Vec<String> = vl3.labels.iter().map(|(key, value)| format!("{key}:{value}")).collect();
        let from = vl3.ipam.as_ref().and_then(|name| self.spec.domains.iter().find(|one| one.name == *name));
        let from = from.unwrap_or(domain);
        let ipams: Vec<String> =
            (0..from.ipam.len()).map(|index| self.layout.ipam(from, index).to_string()).collect();
        let more = env([
            ("NSM_CONNECT_TO", self.layout.manager(node).to_string()),
            ("NSM_SERVICE_NAMES", vl3.services.join(",")),
            ("NSM_REGISTER_SERVICE", "false".to_owned()),
            ("NSM_LABELS", labels.join(",")),
            ("NSM_PREFIX_SERVER_URL", ipams.join(",")),
            ("NSM_REMOTE_NS_IP_LIST", vl3.remotes.join(",")),
            ("VWIRE_DATAPLANE", format!("unix://{}", self.layout.engine(&vl3.name).display())),
            // On a machine that is busy with other things, packets may wait for a second.
            ("NSM_LIVENESS_CHECK_TIMEOUT", "3s".to_owned()),
            ("NSM_UNREGISTER_ITSELF", "true".to_owned()),
        ]);
        let own = vl3.env.clone().into_iter().collect();
        self.role("vl3", &vl3.name, &vl3.name, Some(domain), [more, own].concat())
    }

    fn clients(&self) -> Vec<Start> {
        let of = |(domain, node): (&Domain, &Node)| -> Vec<Start> {
            node.clients.iter().map(|client| self.client(domain, node, client)).collect()
        };
        self.spec.nodes().flat_map(of).collect()
    }

    fn client(&self, domain: &Domain, node: &Node, client: &Client) -> Start {
        let mut more = env([
            ("NSM_CONNECT_TO", self.layout.manager(node).to_string()),
            ("NSM_NETWORK_SERVICES", client.services.join(",")),
            ("NSM_LOCAL_DNS_SERVER_ENABLED", "false".to_owned()),
            // On a machine that is busy with other things, packets may wait for a second.
            ("NSM_LIVENESS_CHECK_TIMEOUT", "3s".to_owned()),
        ]);
        if client.services.iter().any(|service| Client::leg(service) == Some(Leg::Memif)) {
            // By memif there is no `ping`: the client does it, and counts.
            more.extend(env([("VWIRE_PING_INTERVAL", "50ms".to_owned())]));
        }
        let own = client.env.clone().into_iter().collect();
        self.role("nsc", &client.name, &client.name, Some(domain), [more, own].concat())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_shipped_topology_becomes_processes_in_the_order_of_their_needs() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/lab/two-nodes.yaml");
        let spec = Spec::load(&file).unwrap();
        let layout = Layout::new(Path::new("/run/vwire/lab"), &spec.name);
        let programs = Programs { vwire: "/bin/vwire".into(), dataplane: "/bin/vwire-dataplane".into() };
        let waves = waves(&layout, &spec, &programs);
        let names: Vec<Vec<&str>> = waves
            .iter()
            .map(|(_, starts)| starts.iter().map(|start| start.name.as_str()).collect())
            .collect();
        let expected: [&[&str]; 6] = [
            &["node-1.engine", "node-2.engine"],
            &["ca-cluster"],
            &["registry-cluster"],
            &["node-node-1", "nsmgr-node-2", "forwarder-node-2"],
            &["nse-near-kernel", "nse-near-memif", "nse-far-kernel", "nse-far-memif"],
            &["nsc-nsc-kernel", "nsc-nsc-memif"],
        ];
        assert_eq!(names, expected);
        let told = |wave: usize, index: usize, name: &str| {
            let env: &Env = &waves[wave].1[index].env;
            env.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
        };
        assert_eq!(told(3, 0, "NSM_REGISTRY_URL").as_deref(), Some("tcp://10.200.1.1:5002"));
        assert_eq!(told(3, 2, "NSM_CONNECT_TO"), Some(layout.manager(&spec.domains[0].nodes[1]).to_string()));
        assert_eq!(told(3, 2, "NSM_TUNNEL_IP").as_deref(), Some("10.200.1.11"));
        assert_eq!(told(4, 3, "VWIRE_MECHANISMS").as_deref(), Some("MEMIF"));
        let api = layout.workload_api("registry-cluster").to_string();
        assert_eq!(told(2, 0, "SPIFFE_ENDPOINT_SOCKET"), Some(api.clone()));
        let workloads = told(1, 0, "VWIRE_CA_WORKLOADS").unwrap();
        assert!(workloads.starts_with(&format!("/lab/two-nodes/registry-cluster={api},")), "{workloads}");
        assert_eq!(workloads.split(',').count(), 10);
    }
}
