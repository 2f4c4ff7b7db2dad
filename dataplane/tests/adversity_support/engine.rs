//! `vwire-dataplane` as a process, and what can be seen of it from outside.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tonic::transport::Channel;
use vwire_dataplane::DropReason;
use vwire_dataplane::fdpass;
use vwire_dataplane::port::PortIndex;
use vwire_dataplane::stats::{Counters, Snapshot};
use vwire_proto::dataplane::v1 as pb;
use vwire_proto::dataplane::v1::dataplane_client::DataplaneClient;
use vwire_proto::stats::PortState;

use super::{PATIENCE, wait_until};

/// A memif port that listens at `$DIR/NAME.sock`.
pub fn memif_server(name: &str) -> String {
    format!(
        "[[port]]\nname = \"{name}\"\nkind = \"memif\"\nrole = \"server\"\nsocket = \"$DIR/{name}.sock\"\n"
    )
}

/// A memif port that connects to `$DIR/NAME.sock`.
pub fn memif_client(name: &str) -> String {
    memif_server(name).replace("server", "client")
}

/// A cross-connect.
pub fn join(a: &str, b: &str) -> String {
    format!("[[xconnect]]\nports = [\"{a}\", \"{b}\"]\n")
}

/// Two memif ports that listen, cross-connected.
pub fn wire(a: &str, b: &str) -> String {
    memif_server(a) + &memif_server(b) + &join(a, b)
}

/// A running engine with its own directory. Killed when dropped.
pub struct Engine {
    pub dir: tempfile::TempDir,
    netns: Option<String>,
    child: Child,
    counters: Counters,
    runtime: tokio::runtime::Runtime,
    api: DataplaneClient<Channel>,
}

/// What a process holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holdings {
    pub descriptors: usize,
    pub mappings: usize,
    pub threads: usize,
}

impl Engine {
    /// An engine with one worker and these ports.
    pub fn start(ports: &str) -> Self {
        Self::start_with(&format!("[workers]\ncores = [0]\n{ports}"), None)
    }

    /// An engine with this configuration (the API, the log and the statistics are added), in a network namespace.
    pub fn start_with(config: &str, netns: Option<&str>) -> Self {
        let dir = tempfile::Builder::new().prefix("vwire-adv-").tempdir().unwrap();
        let text = format!(
            "[api]\nsocket = \"$DIR/api.sock\"\n[stats]\npath = \"$DIR/stats\"\n[log]\nfilter = \"info\"\n{config}"
        );
        std::fs::write(dir.path().join("node.toml"), text.replace("$DIR", &dir.path().display().to_string()))
            .unwrap();
        let netns = netns.map(str::to_owned);
        let child = spawn(dir.path(), netns.as_deref());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (child, counters, api) = greet(child, dir.path(), &runtime);
        Self { dir, netns, child, counters, runtime, api }
    }

    /// Starts it again with the same configuration; the one before must have ended.
    pub fn restart(&mut self) {
        assert!(self.child.try_wait().unwrap().is_some(), "the engine before still runs");
        let child = spawn(self.dir.path(), self.netns.as_deref());
        (self.child, self.counters, self.api) = greet(child, self.dir.path(), &self.runtime);
    }

    /// What a second engine on the same configuration says at its end, and how it ends.
    pub fn second(&self) -> (ExitStatus, String) {
        let output = command(self.dir.path(), self.netns.as_deref()).output().unwrap();
        (output.status, String::from_utf8(output.stderr).unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The control socket of a port made by [`memif_server`].
    pub fn socket(&self, port: &str) -> PathBuf {
        self.path(&format!("{port}.sock"))
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    fn slot(&self, port: &str) -> PortIndex {
        find(&self.counters, port)
    }

    /// What was counted at a port.
    pub fn stats(&self, port: &str) -> Snapshot {
        self.counters.port(self.slot(port)).snapshot()
    }

    pub fn dropped(&self, port: &str, reason: DropReason) -> u64 {
        self.stats(port).dropped(reason)
    }

    pub fn is_up(&self, port: &str) -> bool {
        self.counters.port(self.slot(port)).state() == PortState::Up
    }

    /// Waits until the API says so. It answers between two rounds of the agent, so frames can flow then; the segment's state is set
    /// a little before the tables are.
    pub fn wait_up(&mut self, port: &str, up: bool) {
        wait_until(&format!("{port} being {}", if up { "up" } else { "down" }), || self.link(port).up == up);
    }

    /// A port's link as the API tells it.
    pub fn link(&mut self, port: &str) -> pb::Link {
        let answer = self.runtime.block_on(self.api.get_snapshot(pb::GetSnapshotRequest {}));
        let links = answer.unwrap().into_inner().links;
        links.into_iter().find(|link| link.port == port).expect("there is such a port")
    }

    /// Waits until the port is down for a reason that contains `part`.
    pub fn wait_reason(&mut self, port: &str, part: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let link = self.link(port);
            if !link.up && link.reason.contains(part) {
                return link.reason;
            }
            assert!(Instant::now() < deadline, "not down because of {part:?}, but {link:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Applies a transaction.
    pub fn apply(&mut self, ops: Vec<pb::Op>) {
        self.try_apply(ops).unwrap();
    }

    /// As [`apply`](Self::apply), which may be refused.
    pub fn try_apply(&mut self, ops: Vec<pb::Op>) -> Result<(), tonic::Status> {
        let request = pb::ApplyRequest { base_generation: None, ops };
        self.runtime.block_on(self.api.apply(request)).map(drop)
    }

    /// Another connection to the API, and the runtime that it lives on.
    pub fn api(&mut self) -> (&tokio::runtime::Runtime, DataplaneClient<Channel>) {
        let connected = self.runtime.block_on(fdpass::connect(&self.dir.path().join("api.sock")));
        (&self.runtime, DataplaneClient::new(connected.unwrap().0))
    }

    /// What the process holds now.
    pub fn holdings(&self) -> Holdings {
        let place = PathBuf::from(format!("/proc/{}", self.pid()));
        let entries = |name: &str| std::fs::read_dir(place.join(name)).unwrap().count();
        Holdings {
            descriptors: entries("fd"),
            mappings: std::fs::read_to_string(place.join("maps")).unwrap().lines().count(),
            threads: entries("task"),
        }
    }

    /// Fails with the log if the process has ended.
    pub fn assert_alive(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            panic!("the engine ended ({status}):\n{}", self.log());
        }
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: kill with the id of a child that has not been waited for is a bare system call.
        assert_eq!(unsafe { libc::kill(self.pid() as i32, signal) }, 0);
    }

    /// How the process ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the engine's log:\n{}", self.log());
        }
    }
}

/// The slot that a port has, or had when its engine ended.
pub fn find(counters: &Counters, port: &str) -> PortIndex {
    let mut slots = (0..counters.capacity()).map(PortIndex);
    let has = |slot: &PortIndex| {
        counters.port(*slot).state() != PortState::Free && counters.port(*slot).name() == port
    };
    slots.find(has).unwrap_or_else(|| panic!("no slot belongs to port {port}"))
}

fn command(dir: &Path, netns: Option<&str>) -> Command {
    let engine = env!("CARGO_BIN_EXE_vwire-dataplane");
    let mut command = match netns {
        // Replaces itself by the engine, so that its process id is the engine's.
        Some(netns) => {
            let mut ip = Command::new("ip");
            ip.args(["netns", "exec", netns, engine]);
            ip
        }
        None => Command::new(engine),
    };
    command.arg("--config").arg(dir.join("node.toml")).stdin(Stdio::null());
    command
}

fn spawn(dir: &Path, netns: Option<&str>) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(dir.join("log")).unwrap();
    command(dir, netns).stdout(Stdio::null()).stderr(log).spawn().unwrap()
}

/// Waits until the engine serves.
fn greet(
    mut child: Child,
    dir: &Path,
    runtime: &tokio::runtime::Runtime,
) -> (Child, Counters, DataplaneClient<Channel>) {
    let deadline = Instant::now() + PATIENCE;
    while UnixStream::connect(dir.join("api.sock")).is_err() {
        let ended = child.try_wait().unwrap().is_some();
        if ended || Instant::now() >= deadline {
            // Nobody else would end it: it is no Engine yet.
            let _ = child.kill();
            let _ = child.wait();
            let log = std::fs::read_to_string(dir.join("log")).unwrap_or_default();
            panic!("the engine {}:\n{log}", if ended { "did not start" } else { "does not serve" });
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let api = runtime.block_on(async {
        let mut api = DataplaneClient::new(fdpass::connect(&dir.join("api.sock")).await.unwrap().0);
        // The socket is there before the ports are; an answer comes after them.
        api.get_snapshot(pb::GetSnapshotRequest {}).await.unwrap();
        api
    });
    (child, Counters::open(&dir.join("stats")).unwrap(), api)
}
