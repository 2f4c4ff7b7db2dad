//! A mesh: one registry, and nodes with an nsmgr and forwarders each. Which of them are Go peers is the test's choice.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;
use vwire_control::cli::AdminClient;
use vwire_control::transport::Target;

use super::build;
use super::client::Client;
use super::endpoint::Endpoint;
use super::netns::Netns;
use super::observer::Observer;
use super::process::Process;
use super::registry::RegistryClient;
use super::{Kind, must};

/// Who plays which role.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// The registry.
    pub registry: Kind,
    /// Each node's nsmgr.
    pub nsmgr: Kind,
    /// Each node's forwarders. A Go one joins interfaces of one node only.
    pub forwarder: Kind,
    /// The clients.
    pub nsc: Kind,
    /// The endpoints.
    pub nse: Kind,
    /// Who issues SVIDs.
    pub issuer: Kind,
    /// How long each lives, as Go writes it; it is renewed at half of that.
    pub svid_life: &'static str,
    /// What `vwire` logs. (Go peers log at INFO: less would lose descriptors, and more their tokens.)
    pub log_level: &'static str,
    /// How many nodes.
    pub nodes: usize,
    /// Forwarders on each node at the start.
    pub forwarders: usize,
    /// Whether the nsmgr listens on TCP, too.
    pub tcp: bool,
}

impl Plan {
    /// Everything is of one kind; one node.
    pub const fn of(kind: Kind) -> Self {
        Self {
            registry: kind,
            nsmgr: kind,
            forwarder: kind,
            nsc: kind,
            nse: kind,
            issuer: Kind::Go,
            svid_life: "1h",
            log_level: "INFO",
            nodes: 1,
            forwarders: 1,
            tcp: true,
        }
    }

    /// With so many nodes.
    pub const fn nodes(self, nodes: usize) -> Self {
        Self { nodes, ..self }
    }
}

/// One node.
pub struct Node {
    /// Its number, from 0.
    pub number: usize,
    /// Where its nsmgr, forwarders and engine run.
    pub space: Netns,
    /// Its address on the underlay.
    pub address: String,
    /// The nsmgr; none while it is dead.
    pub nsmgr: Option<Process>,
    /// Its forwarders.
    pub forwarders: Vec<Forwarder>,
    engines: Vec<Process>,
}

/// A forwarder.
pub struct Forwarder {
    /// The process.
    pub process: Process,
    /// Its name, as the registry knows it.
    pub name: String,
}

/// A setting of a process.
pub type Setting = (String, String);

/// A setting from two words.
pub fn set(key: &str, value: impl Into<String>) -> Setting {
    (key.to_owned(), value.into())
}

/// The mesh. Dropped in this order: processes, then namespaces, then files.
pub struct Mesh {
    /// Who plays which role.
    pub plan: Plan,
    /// Sees every event.
    pub observer: Observer,
    /// The registry; none while it is dead.
    pub registry: Option<Process>,
    /// The nodes.
    pub nodes: Vec<Node>,
    services: HashSet<String>,
    registry_at: String,
    identities: Process,
    fabric: Netns,
    directory: TempDir,
    tag: String,
}

const REGISTRY: &str = "tcp://10.77.0.254:5002";

impl Mesh {
    /// Starts the mesh and waits until each forwarder is registered.
    pub fn start(tag: &str, plan: Plan) -> Self {
        Self::start_with(tag, plan, &[])
    }

    /// Likewise; `settings` go to every nsmgr, forwarder and the registry.
    pub fn start_with(tag: &str, plan: Plan, settings: &[Setting]) -> Self {
        let mut mesh = Self::bare(tag, plan);
        mesh.start_registry(settings);
        for node in 0..plan.nodes {
            mesh.start_nsmgr(node, settings);
            for number in 0..plan.forwarders {
                let name = mesh.forwarder_name(node, number);
                mesh.add_forwarder(node, &name, settings);
            }
        }
        mesh
    }

    /// Namespaces, identities and the observer; no role.
    pub fn bare(tag: &str, plan: Plan) -> Self {
        let directory = tempfile::Builder::new().prefix("vw-").rand_bytes(4).tempdir_in("/tmp").unwrap();
        std::fs::create_dir(directory.path().join("id")).unwrap();
        let fabric = Netns::new(&format!("{tag}-f"));
        fabric.ip("link add br0 type bridge");
        fabric.ip("link set br0 up");
        fabric.ip("addr add 10.77.0.254/24 dev br0");
        let nodes = (0..plan.nodes).map(|number| Node::new(tag, number, &fabric)).collect();
        let identities = issuer(plan, directory.path(), &fabric);
        let mut mesh = Self {
            plan,
            observer: Observer::none(),
            registry: None,
            nodes,
            services: HashSet::new(),
            registry_at: REGISTRY.to_owned(),
            identities,
            fabric,
            directory,
            tag: tag.to_owned(),
        };
        let mut process = mesh.go("observer", "observe", &mesh.fabric.name.clone(), &[], Vec::new());
        process.told("ready", 0);
        mesh.observer = Observer::new(process);
        mesh
    }

    /// The mesh's files.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// True the first time that a service is named: its first endpoint owns it, and others may not register it.
    pub(super) fn owns_service(&mut self, service: &str) -> bool {
        self.services.insert(service.to_owned())
    }

    /// The SVIDs' socket for a name: its owner is spiffe://example.org/<name>.
    pub fn identity(&mut self, name: &str) -> String {
        let socket = self.directory().join(format!("id/{name}.sock"));
        if !socket.exists() {
            self.identities.ask(&format!("serve {name}"), &["done", "failed"]);
        }
        format!("unix://{}", socket.display())
    }

    /// New SVIDs for everybody, now.
    pub fn rotate(&mut self) {
        self.identities.ask("rotate", &["done"]);
    }

    /// The namespace where the registry is.
    pub fn fabric(&self) -> &Netns {
        &self.fabric
    }

    /// A namespace for a workload.
    pub fn workload_space(&self, name: &str) -> Netns {
        Netns::new(&format!("{}-{name}", self.tag))
    }

    /// Starts a role: a Go peer, or `vwire`.
    pub fn role(
        &mut self,
        kind: Kind,
        role: &str,
        name: &str,
        space: &Netns,
        private: &[&Path],
        settings: Vec<Setting>,
    ) -> Process {
        self.spawn(&program(kind), role, name, &space.name, private, settings)
    }

    /// Where it is looked whether somebody is registered, in a mesh with more registries than one.
    pub fn look_at(&mut self, registry: &str) {
        self.registry_at = registry.to_owned();
        self.services.clear();
    }

    /// Starts a role in a node's namespace.
    pub fn role_on(
        &mut self,
        kind: Kind,
        role: &str,
        name: &str,
        node: usize,
        settings: Vec<Setting>,
    ) -> Process {
        let space = self.nodes[node].space.name.clone();
        self.spawn(&program(kind), role, name, &space, &[], settings)
    }

    /// Starts a Go peer that is no role of a mesh.
    pub fn go(
        &mut self,
        name: &str,
        role: &str,
        space: &str,
        private: &[&Path],
        settings: Vec<Setting>,
    ) -> Process {
        self.spawn(&build::gopeers(), role, name, space, private, settings)
    }

    fn spawn(
        &mut self,
        program: &Path,
        role: &str,
        name: &str,
        space: &str,
        private: &[&Path],
        settings: Vec<Setting>,
    ) -> Process {
        let own = self.directory().join(name).display().to_string();
        let level = if program == build::gopeers() { "INFO" } else { self.plan.log_level };
        let mut all = vec![
            set("SPIFFE_ENDPOINT_SOCKET", self.identity(name)),
            set("NSM_LOG_LEVEL", level),
            // What vwire puts somewhere, it puts into the test's directory; and the observer may see all, as in Go.
            set("VWIRE_ADMIN", format!("unix://{own}.admin")),
            set("VWIRE_RUN", format!("{own}.run")),
            set("VWIRE_MONITOR_STRICT", "false"),
        ];
        all.extend(settings);
        Process::start(name, space, self.directory(), private, program, &[role], &all)
    }

    /// Starts the registry.
    pub fn start_registry(&mut self, settings: &[Setting]) {
        let mut all = vec![set("NSM_LISTEN_ON", REGISTRY)];
        all.extend_from_slice(settings);
        let space = self.fabric.name.clone();
        let process = self.spawn(&program(self.plan.registry), "registry", "registry", &space, &[], all);
        self.registry = Some(process);
        self.observer.wait_healthy("registry", REGISTRY);
    }

    /// The registry's URL, for processes in the fabric's and the nodes' namespaces.
    pub fn registry_url(&self) -> &'static str {
        REGISTRY
    }

    /// A Go client of the registry, with an identity of this name.
    pub fn registry_client(&mut self, name: &str, settings: Vec<Setting>) -> RegistryClient {
        self.registry_client_as(name, name, settings)
    }

    /// Likewise, with the identity of somebody else.
    pub fn registry_client_as(
        &mut self,
        name: &str,
        identity: &str,
        settings: Vec<Setting>,
    ) -> RegistryClient {
        let own = self.identity(identity);
        let mut all = vec![set("NSM_CONNECT_TO", REGISTRY), set("SPIFFE_ENDPOINT_SOCKET", own)];
        all.extend(settings);
        let space = self.fabric.name.clone();
        let mut process = self.go(name, "regclient", &space, &[], all);
        process.told("ready", 0);
        RegistryClient(process)
    }

    /// What a `vwire` process tells at its admin port; none while it does not answer.
    pub fn admin(&self, name: &str, path: &str) -> Option<Value> {
        let socket = self.directory().join(format!("{name}.admin"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(AdminClient(Target::Unix(socket)).get(path)).ok()
    }

    /// Asks a server for the health of these services and, by reflection, for its methods; told as "probed".
    pub fn probe(&mut self, name: &str, url: &str, services: &str, more: &[Setting]) -> Process {
        let mut settings = vec![set("NSM_CONNECT_TO", url), set("GOPEERS_SERVICES", services)];
        settings.extend_from_slice(more);
        let space = self.fabric.name.clone();
        self.go(name, "probe", &space, &[], settings)
    }

    /// The unix socket of a node's nsmgr.
    pub fn nsmgr_socket(&self, node: usize) -> PathBuf {
        self.directory().join(format!("nsmgr-{}.io.sock", node + 1))
    }

    /// Its URL.
    pub fn nsmgr_url(&self, node: usize) -> String {
        format!("unix://{}", self.nsmgr_socket(node).display())
    }

    /// Starts a node's nsmgr.
    pub fn start_nsmgr(&mut self, node: usize, settings: &[Setting]) {
        let name = format!("nsmgr-{}", node + 1);
        let mut listen = self.nsmgr_url(node);
        if self.plan.tcp {
            listen += &format!(",tcp://{}:5001", self.nodes[node].address);
        }
        let mut all = vec![
            set("NSM_NAME", &name),
            set("NSM_LISTEN_ON", listen),
            set("NSM_REGISTRY_URL", REGISTRY),
            set("NODE_NAME", format!("node-{}", node + 1)),
        ];
        all.extend_from_slice(settings);
        let space = self.nodes[node].space.name.clone();
        let process = self.spawn(&program(self.plan.nsmgr), "nsmgr", &name, &space, &[], all);
        self.nodes[node].nsmgr = Some(process);
        let url = self.nsmgr_url(node);
        self.observer.wait_healthy(&name, &url);
        self.observer.monitor(&name, &url);
    }

    /// The name of a node's forwarder.
    pub fn forwarder_name(&self, node: usize, number: usize) -> String {
        format!("forwarder-{}-{}", node + 1, number + 1)
    }

    /// Starts a forwarder (and its engine, if it needs one) and waits until it is registered.
    pub fn add_forwarder(&mut self, node: usize, name: &str, settings: &[Setting]) {
        let process = self.add_forwarder_of(self.plan.forwarder, node, name, settings);
        self.nodes[node].forwarders.push(Forwarder { process, name: name.to_owned() });
    }

    /// Likewise one of this kind, which is the caller's to keep.
    pub fn add_forwarder_of(&mut self, kind: Kind, node: usize, name: &str, settings: &[Setting]) -> Process {
        let own = self.directory().join(format!("p-{name}"));
        let mut all = vec![
            set("NSM_NAME", name),
            set("NSM_CONNECT_TO", self.nsmgr_url(node)),
            set("NSM_LISTEN_ON", format!("unix://{}/s", own.display())),
            set("NSM_TUNNEL_IP", &self.nodes[node].address),
        ];
        if kind == Kind::Vwire {
            let socket = self.engine(node, name);
            all.push(set("VWIRE_DATAPLANE", format!("unix://{}", socket.display())));
        }
        all.extend_from_slice(settings);
        let space = self.nodes[node].space.name.clone();
        let process = self.spawn(&program(kind), "forwarder", name, &space, &[&own], all);
        self.wait_registered(name);
        process
    }

    /// Kills a forwarder (SIGKILL). Its engine goes on.
    pub fn kill_forwarder(&mut self, name: &str) {
        for node in &mut self.nodes {
            if let Some(at) = node.forwarders.iter().position(|each| each.name == name) {
                return node.forwarders.remove(at).process.kill();
            }
        }
        panic!("no forwarder {name}");
    }

    /// The engine of a forwarder, started when it is first asked for. It outlives the forwarder.
    fn engine(&mut self, node: usize, forwarder: &str) -> PathBuf {
        let name = format!("engine-{forwarder}");
        let socket = self.directory().join(format!("{name}.sock"));
        if self.nodes[node].engines.iter().any(|engine| engine.name == name) {
            return socket;
        }
        let config = self.directory().join(format!("{name}.toml"));
        let text = format!(
            "[workers]\ncores = [0]\n[api]\nsocket = \"{0}\"\n[stats]\npath = \"{0}.stats\"\n",
            socket.display()
        );
        std::fs::write(&config, text).unwrap();
        let arguments = ["--config", config.to_str().unwrap()];
        let none: [Setting; 0] = [];
        let space = &self.nodes[node].space.name;
        let engine =
            Process::start(&name, space, self.directory.path(), &[], &build::dataplane(), &arguments, &none);
        self.nodes[node].engines.push(engine);
        super::until("the engine's socket", || socket.exists().then_some(()));
        socket
    }

    /// Kills a forwarder's engine, if it has one.
    pub fn kill_engine(&mut self, forwarder: &str) {
        let name = format!("engine-{forwarder}");
        for node in &mut self.nodes {
            if let Some(at) = node.engines.iter().position(|engine| engine.name == name) {
                node.engines.remove(at).kill();
            }
        }
    }

    /// Waits until an endpoint or forwarder of this name is found in the registry.
    pub fn wait_registered(&mut self, name: &str) {
        self.observer.wait_endpoint(&self.registry_at, name, true);
    }

    /// Waits until it is not found any more.
    pub fn wait_gone(&mut self, name: &str) {
        self.observer.wait_endpoint(&self.registry_at, name, false);
    }

    /// Starts an endpoint on a node and waits until it serves and is registered.
    pub fn endpoint(&mut self, node: usize, name: &str, settings: &[Setting]) -> Endpoint {
        let endpoint = self.late_endpoint(node, name, settings);
        self.wait_registered(name);
        self.observer.wait_healthy(name, &endpoint.url());
        self.observer.wait_monitored(name);
        endpoint
    }

    /// Starts an endpoint on a node and waits for nothing.
    pub fn late_endpoint(&mut self, node: usize, name: &str, settings: &[Setting]) -> Endpoint {
        self.endpoint_of(self.plan.nse, node, name, settings)
    }

    /// An endpoint of this kind.
    pub fn endpoint_of(&mut self, kind: Kind, node: usize, name: &str, settings: &[Setting]) -> Endpoint {
        let endpoint = Endpoint::start(self, kind, node, name, settings);
        self.observer.monitor(name, &endpoint.url());
        endpoint
    }

    /// A client on a node; it asks as soon as it is told to (Go), or at once (vwire).
    pub fn client(&mut self, node: usize, name: &str, service: &str, settings: &[Setting]) -> Client {
        self.client_of(self.plan.nsc, node, name, service, settings)
    }

    /// A client of this kind.
    pub fn client_of(
        &mut self,
        kind: Kind,
        node: usize,
        name: &str,
        service: &str,
        settings: &[Setting],
    ) -> Client {
        let space = self.workload_space(name);
        Client::start(self, kind, node, name, service, space, settings)
    }

    /// As [`client`](Self::client), in the namespace of one that was there before.
    pub fn client_in(
        &mut self,
        node: usize,
        name: &str,
        service: &str,
        space: Netns,
        settings: &[Setting],
    ) -> Client {
        Client::start(self, self.plan.nsc, node, name, service, space, settings)
    }
}

impl Node {
    fn new(tag: &str, number: usize, fabric: &Netns) -> Self {
        let space = Netns::new(&format!("{tag}-n{}", number + 1));
        let address = format!("10.77.0.{}", number + 1);
        let port = format!("p{}", number + 1);
        must(
            std::process::Command::new("ip")
                .args(["-n", &fabric.name, "link", "add", &port, "type", "veth", "peer", "name", "u0"])
                .args(["netns", &space.name]),
        );
        fabric.ip(&format!("link set {port} master br0 up"));
        space.ip(&format!("addr add {address}/24 dev u0"));
        space.ip("link set u0 up");
        Self { number, space, address, nsmgr: None, forwarders: Vec::new(), engines: Vec::new() }
    }

    /// Kills the nsmgr (SIGKILL).
    pub fn kill_nsmgr(&mut self) {
        self.nsmgr.take().expect("it runs").kill();
    }
}

fn program(kind: Kind) -> PathBuf {
    if kind == Kind::Go { build::gopeers() } else { build::vwire() }
}

/// The names that `vwire ca` is asked for: it is told them at its start.
const NAMES: [&str; 8] =
    ["observer", "registry", "nsmgr-1", "forwarder-1-1", "nse-1", "nsc", "second", "prober"];

fn issuer(plan: Plan, directory: &Path, fabric: &Netns) -> Process {
    let sockets = directory.join("id");
    if plan.issuer == Kind::Go {
        let settings =
            [set("GOPEERS_DIR", sockets.display().to_string()), set("GOPEERS_TTL", plan.svid_life)];
        let mut process = Process::start(
            "workload",
            &fabric.name,
            directory,
            &[],
            &build::gopeers(),
            &["workload"],
            &settings,
        );
        process.told("ready", 0);
        return process;
    }
    let workloads = NAMES.map(|name| format!("/{name}={}/{name}.sock", sockets.display())).join(",");
    let settings = [
        set("VWIRE_CA_TRUST_DOMAIN", "example.org"),
        set("VWIRE_CA_WORKLOADS", workloads),
        set("VWIRE_CA_SVID_LIFETIME", plan.svid_life),
        set("NSM_LOG_LEVEL", plan.log_level),
        set("VWIRE_ADMIN", format!("unix://{}/ca.admin", directory.display())),
    ];
    let process = Process::start("ca", &fabric.name, directory, &[], &build::vwire(), &["ca"], &settings);
    super::until("the issuer's sockets", || {
        NAMES.iter().all(|name| sockets.join(format!("{name}.sock")).exists()).then_some(())
    });
    process
}
