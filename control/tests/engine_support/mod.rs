//! An engine of a test's own, programs that play workloads, and a chain from `begin` to a made-up next hop.
#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tonic::Status;
use vwire_control::api::connection::{Connection, Mechanism, Path as ApiPath, PathSegment};
use vwire_control::api::connectioncontext::{ConnectionContext, IpContext};
use vwire_control::api::networkservice::NetworkServiceRequest;
use vwire_control::chain::{Call, Chain, Element, Fds, Next};
use vwire_control::dataplane::Dataplane;
use vwire_control::dataplane::client::{Client, Event, Events};
use vwire_control::dataplane::launch::Launcher;
use vwire_control::dataplane::reconcile::Keeper;
use vwire_control::elements::mechanisms::{Kernel, Kind, Memif, TowardEndpoint, Tunnel, Vxlan};
use vwire_control::elements::{Begin, Binding, Commit, ForgetFds, Mechanisms, Stats};
use vwire_control::transport::{Inode, SharedFd, Target};

use crate::netns_support::Netns;

pub const PATIENCE: Duration = Duration::from_secs(10);

/// A program of this workspace that `cargo test --workspace` builds.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().and_then(Path::parent).unwrap().join(name);
    assert!(
        program.is_file(),
        "{} is missing; cargo build -p vwire-dataplane --bins, cargo build -p memif --examples",
        program.display()
    );
    program
}

/// A child that ends with this.
pub struct Process(pub Child);

impl Process {
    /// Runs a program inside a namespace.
    pub fn inside(netns: &Netns, program: &Path, args: &[&str]) -> Self {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &netns.0]).arg(program).args(args);
        Self(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    /// Waits for the program's end; what it printed if it did well.
    pub fn success(mut self) -> Result<String, String> {
        use std::io::Read;
        let (mut out, mut err) = (String::new(), String::new());
        self.0.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        self.0.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        if self.0.wait().unwrap().success() { Ok(out) } else { Err(format!("{out}{err}")) }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An engine's directory; the engine that runs there ends with this.
pub struct Home {
    pub dir: tempfile::TempDir,
    pub launcher: Launcher,
}

impl Home {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let launcher = Launcher::with(dir.path(), "fwd", program("vwire-dataplane"));
        Self { dir, launcher }
    }

    /// The engine's process, by its counters.
    pub fn engine(&self) -> i32 {
        let counters = vwire_dataplane::stats::Counters::open(&self.dir.path().join("fwd/stats")).unwrap();
        counters.header().pid.load(std::sync::atomic::Ordering::Relaxed).try_into().unwrap()
    }

    pub fn kill_engine(&self) {
        let pid = rustix::process::Pid::from_raw(self.engine()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Ok(counters) = vwire_dataplane::stats::Counters::open(&self.dir.path().join("fwd/stats")) {
            let pid = counters.header().pid.load(std::sync::atomic::Ordering::Relaxed);
            if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

/// A next hop that is not there: it chooses a mechanism as an endpoint does.
#[derive(Default)]
pub struct Endpoint {
    /// Where a parameter has `{id}`, the connection's comes.
    pub mechanism: Mutex<Mechanism>,
    pub fd: Mutex<Option<(Inode, SharedFd)>>,
    pub context: Mutex<ConnectionContext>,
    pub refuse: Mutex<Option<Status>>,
    /// What it was asked, last.
    pub asked: Mutex<Option<NetworkServiceRequest>>,
    pub closed: Mutex<Vec<Connection>>,
    /// Where the next hop is.
    pub remote: bool,
    /// A forwarder that is the next hop.
    pub other: Mutex<Option<Arc<Chain>>>,
}

/// Says where the next hop is, as discover does.
struct Discover(bool);

#[async_trait]
impl Element for Discover {
    async fn request(
        &self,
        call: &mut Call,
        request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        let target = if self.0 { "tcp://10.0.0.1:1" } else { "unix:///nowhere" };
        call.next_hop = Some(Target::parse(target).unwrap());
        next.request(call, request).await
    }
}

/// The descriptors that callers sent, as recv_fd takes them.
type Callers = Arc<Mutex<HashMap<String, (Inode, SharedFd)>>>;

struct Receive(Callers);

#[async_trait]
impl Element for Receive {
    async fn request(
        &self,
        call: &mut Call,
        request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        let id = request.connection.as_ref().unwrap().id.clone();
        if let Some((inode, fd)) = self.0.lock().unwrap().remove(&id) {
            call.state.get_or_default::<Fds>().insert(inode, fd);
        }
        next.request(call, request).await
    }
}

struct Hop(Arc<Endpoint>);

#[async_trait]
impl Element for Hop {
    async fn request(
        &self,
        call: &mut Call,
        request: NetworkServiceRequest,
        _: Next<'_>,
    ) -> Result<Connection, Status> {
        let endpoint = &self.0;
        *endpoint.asked.lock().unwrap() = Some(request.clone());
        if let Some(status) = endpoint.refuse.lock().unwrap().clone() {
            return Err(status);
        }
        let other = endpoint.other.lock().unwrap().clone();
        if let Some(other) = other {
            return other.request(&mut Call::internal("test", PATIENCE), request).await;
        }
        let mut connection = request.connection.unwrap();
        let chosen = endpoint.mechanism.lock().unwrap().clone();
        let agreed = connection.mechanism.take();
        let offered = request.mechanism_preferences.iter().find(|offer| offer.r#type == chosen.r#type);
        let mut mechanism =
            agreed.filter(|agreed| agreed.r#type == chosen.r#type).or(offered.cloned()).unwrap_or_default();
        if mechanism.r#type.is_empty() {
            return Err(Status::invalid_argument("cannot support any of the requested mechanisms"));
        }
        mechanism.parameters.extend(chosen.parameters);
        mechanism.parameters.values_mut().for_each(|value| *value = value.replace("{id}", &connection.id));
        connection.mechanism = Some(mechanism);
        let mut context = endpoint.context.lock().unwrap().clone();
        context.mtu = connection.context.map_or(0, |context| context.mtu);
        connection.context = Some(context);
        if let Some((inode, fd)) = endpoint.fd.lock().unwrap().clone() {
            call.state.get_or_default::<Fds>().insert(inode, fd);
        }
        Ok(connection)
    }

    async fn close(&self, _: &mut Call, connection: Connection, _: Next<'_>) -> Result<(), Status> {
        self.0.closed.lock().unwrap().push(connection.clone());
        let other = self.0.other.lock().unwrap().clone();
        match other {
            Some(other) => other.close(&mut Call::internal("test", PATIENCE), connection).await,
            None => Ok(()),
        }
    }
}

/// A forwarder's chain from `begin` on, at an engine.
pub struct Rig {
    pub dataplane: Arc<Dataplane>,
    pub chain: Arc<Chain>,
    pub endpoint: Arc<Endpoint>,
    pub downs: Arc<Mutex<Vec<String>>>,
    callers: Callers,
    keeper: tokio::task::JoinHandle<()>,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

async fn first(events: &mut Events) -> vwire_proto::dataplane::v1::GetSnapshotResponse {
    match tokio::time::timeout(PATIENCE, events.recv()).await.unwrap().unwrap() {
        Event::Engine(snapshot) => *snapshot,
        other => panic!("{other:?}"),
    }
}

impl Rig {
    pub async fn new(home: &Home) -> Self {
        Self::with(home, None, Endpoint::default(), &[]).await
    }

    pub async fn with(home: &Home, tunnel: Option<Tunnel>, endpoint: Endpoint, priority: &[String]) -> Self {
        let launcher = home.launcher.clone();
        Self::at(&launcher.socket(), Some(launcher), tunnel, endpoint, priority).await
    }

    /// Where memifs are handed through.
    pub async fn direct(home: &Home) -> Self {
        let launcher = home.launcher.clone();
        Self::made(&launcher.socket(), Some(launcher), None, Endpoint::default(), &[], true).await
    }

    pub async fn at(
        socket: &Path,
        launcher: Option<Launcher>,
        tunnel: Option<Tunnel>,
        endpoint: Endpoint,
        priority: &[String],
    ) -> Self {
        Self::made(socket, launcher, tunnel, endpoint, priority, false).await
    }

    async fn made(
        socket: &Path,
        launcher: Option<Launcher>,
        tunnel: Option<Tunnel>,
        endpoint: Endpoint,
        priority: &[String],
        direct: bool,
    ) -> Self {
        let (client, mut events) = Client::new(socket, launcher);
        let snapshot = first(&mut events).await;
        let dataplane = Arc::new(Dataplane::new(client, "fwd").direct_memif(direct));
        let begin = Arc::new(Begin::new(Binding::Off));
        for note in dataplane.adopt(&snapshot) {
            let mut state = vwire_control::chain::State::default();
            state.insert(TowardEndpoint(note.toward_endpoint.unwrap_or_default()));
            begin.adopt(note.connection.unwrap(), None, None, state);
        }
        let endpoint = Arc::new(endpoint);
        let mut kinds: Vec<Box<dyn Kind>> = vec![Box::new(Memif), Box::new(Kernel)];
        kinds.extend(tunnel.map(|tunnel| Box::new(Vxlan(tunnel)) as Box<dyn Kind>));
        let callers = Callers::default();
        let chain = Chain::new("fwd", |_| {
            vec![
                begin as Arc<dyn Element>,
                Arc::new(ForgetFds),
                Arc::new(Receive(Arc::clone(&callers))),
                Arc::new(Discover(endpoint.remote)),
                Arc::new(Stats::new(Arc::clone(&dataplane))),
                Arc::new(Commit::new(Arc::clone(&dataplane))),
                Arc::new(Mechanisms::new(Arc::clone(&dataplane), kinds, priority)),
                Arc::new(Hop(Arc::clone(&endpoint))),
            ]
        });
        let downs = Arc::<Mutex<Vec<String>>>::default();
        let told = Arc::clone(&downs);
        let down = Box::new(move |id: &str, why: &str| told.lock().unwrap().push(format!("{id}: {why}")));
        let keeper = Keeper::new(Arc::clone(&dataplane), Arc::downgrade(&chain), down, &snapshot);
        Self { dataplane, chain, endpoint, downs, callers, keeper: tokio::spawn(keeper.run(events)) }
    }

    /// A Request whose caller sends the descriptor of this namespace along.
    pub async fn request(
        &self,
        request: NetworkServiceRequest,
        netns: Option<&Netns>,
    ) -> Result<Connection, Status> {
        if let Some(netns) = netns {
            let id = request.connection.as_ref().unwrap().id.clone();
            self.callers.lock().unwrap().insert(id, netns.sent());
        }
        self.chain.request(&mut Call::internal("test", PATIENCE), request).await
    }

    pub async fn close(&self, connection: &Connection) -> Result<(), Status> {
        self.chain.close(&mut Call::internal("test", PATIENCE), connection.clone()).await
    }

    /// Waits until something is so.
    pub async fn eventually(&self, what: &str, so: impl AsyncFn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !so(self).await {
            assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// What the engine holds, without notes: nothing after all is closed.
    pub async fn ports(&self) -> Vec<String> {
        let state = self.dataplane.client.snapshot().await.unwrap().state.unwrap();
        let joins = state.xconnects.into_iter().map(|join| format!("{} - {}", join.a, join.b));
        let relays = state.relays.into_iter().map(|relay| relay.name);
        state.ports.into_iter().map(|port| port.name).chain(joins).chain(relays).collect()
    }
}

/// A machine: a namespace with an address on a wire to another, and an engine in it.
pub struct Node {
    pub netns: Netns,
    pub dir: tempfile::TempDir,
    pub ip: std::net::IpAddr,
    engine: Option<Process>,
}

impl Node {
    /// Two of them, with a wire in between.
    pub fn two(v6: bool) -> [Self; 2] {
        let nodes = [Netns::new("node1"), Netns::new("node2")];
        nodes[0].ip(&format!("link add up0 type veth peer name up0 netns {}", nodes[1].0));
        let mut made = nodes.into_iter().enumerate().map(|(at, netns)| {
            let (address, prefix) =
                if v6 { (format!("fd09::{}", at + 1), 64) } else { (format!("10.9.0.{}", at + 1), 24) };
            netns.ip(&format!("address add {address}/{prefix} dev up0 {}", if v6 { "nodad" } else { "" }));
            netns.ip("link set up0 up");
            let node =
                Self { netns, dir: tempfile::tempdir().unwrap(), ip: address.parse().unwrap(), engine: None };
            node.start()
        });
        [made.next().unwrap(), made.next().unwrap()]
    }

    fn start(mut self) -> Self {
        let dir = self.dir.path().display().to_string();
        let config = format!("[stats]\npath = \"{dir}/stats\"\n[api]\nsocket = \"{dir}/api.sock\"\n");
        let file = self.dir.path().join("engine.toml");
        std::fs::write(&file, config).unwrap();
        let args = ["--config", file.to_str().unwrap()];
        self.engine = Some(Process::inside(&self.netns, &program("vwire-dataplane"), &args));
        self
    }

    pub async fn rig(&self, endpoint: Endpoint) -> Rig {
        let tunnel = Tunnel { ip: self.ip, port: 0, interface_mtu: 1500 };
        Rig::at(&self.dir.path().join("api.sock"), None, Some(tunnel), endpoint, &[]).await
    }
}

/// A Request of the client `id` for its own namespace's interface, or memif.
pub fn asking(id: &str, payload: &str, preferences: Vec<Mechanism>) -> NetworkServiceRequest {
    let expires = std::time::SystemTime::now() + Duration::from_secs(600);
    let segment = |name: &str, id: String| PathSegment {
        name: name.into(),
        id,
        expires: Some(expires.into()),
        ..Default::default()
    };
    let path = ApiPath {
        index: 1,
        path_segments: vec![segment("nsc", format!("root-{id}")), segment("fwd", id.into())],
    };
    let connection = Connection {
        id: id.into(),
        network_service: "icmp-responder".into(),
        payload: payload.into(),
        path: Some(path),
        ..Default::default()
    };
    NetworkServiceRequest { connection: Some(connection), mechanism_preferences: preferences }
}

pub fn kernel(netns: &Netns, name: &str) -> Mechanism {
    let parameters = [("inodeURL", netns.sent().0.to_string()), ("name", name.to_owned())];
    mechanism("LOCAL", "KERNEL", &parameters)
}

pub fn memif(netns: &Netns) -> Mechanism {
    mechanism("LOCAL", "MEMIF", &[("inodeURL", netns.sent().0.to_string())])
}

pub fn mechanism(class: &str, kind: &str, parameters: &[(&str, String)]) -> Mechanism {
    let parameters = parameters.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    Mechanism { cls: class.into(), r#type: kind.into(), parameters }
}

/// Addresses of both ends: the client has .1, the endpoint .2.
pub fn addresses(v6: bool) -> ConnectionContext {
    let mut ip = IpContext {
        src_ip_addrs: vec!["10.60.1.1/32".into()],
        dst_ip_addrs: vec!["10.60.1.2/32".into()],
        ..Default::default()
    };
    if v6 {
        ip.src_ip_addrs.push("fd60::1/128".into());
        ip.dst_ip_addrs.push("fd60::2/128".into());
    }
    ConnectionContext { ip_context: Some(ip), ..Default::default() }
}

/// Pings with the namespace's own tools.
pub fn ping(netns: &Netns, to: &str, more: &[&str]) -> Result<String, String> {
    let mut args = vec!["-n", "-c", "3", "-i", "0.05", "-W", "2"];
    args.extend(more);
    args.push(to);
    Process::inside(netns, Path::new("ping"), &args).success()
}
