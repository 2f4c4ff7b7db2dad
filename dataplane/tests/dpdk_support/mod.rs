//! An engine with DPDK ports as a process of its own: there is one EAL in a process, and some drivers live in the process's
//! network namespace.
#![allow(dead_code, reason = "each test file uses a part")]

pub mod files;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tonic::transport::Channel;
use vwire_dataplane::fdpass::{self, FdSender};
use vwire_proto::dataplane::v1 as pb;
use vwire_proto::dataplane::v1::dataplane_client::DataplaneClient;

pub const PATIENCE: Duration = Duration::from_secs(20);

/// Every engine without huge pages, unless a test is about them.
pub const PLAIN: &str = "[dpdk]\nhuge_pages = false\nmemory = 128\nbuffers = 8192\n";

/// An engine's folder and, while it runs, its process. Killed when dropped.
pub struct Process {
    pub dir: tempfile::TempDir,
    netns: Option<String>,
    child: Option<Child>,
    runtime: tokio::runtime::Runtime,
    client: Option<(DataplaneClient<Channel>, FdSender)>,
}

impl Process {
    /// Not started yet. It is to run in this network namespace.
    pub fn new(netns: Option<&str>) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        Self { dir, netns: netns.map(str::to_owned), child: None, runtime, client: None }
    }

    /// A started one with this configuration.
    pub fn started(netns: Option<&str>, config: &str) -> Self {
        let mut process = Self::new(netns);
        process.start(config);
        process
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, config: &str) -> Command {
        let place = self.dir.path().display().to_string();
        let text = format!("{config}\n[stats]\npath = \"$DIR/stats\"\n[api]\nsocket = \"$DIR/api.sock\"\n");
        let file = self.path("vwire.toml");
        std::fs::write(&file, text.replace("$DIR", &place)).unwrap();
        let program = env!("CARGO_BIN_EXE_vwire-dataplane");
        let mut command = match &self.netns {
            Some(netns) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", netns, program]);
                command
            }
            None => Command::new(program),
        };
        command.arg("--config").arg(file).stdout(Stdio::null());
        command
    }

    /// Starts it and waits until it serves.
    pub fn start(&mut self, config: &str) {
        let log = std::fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        self.child = Some(self.command(config).stderr(log).spawn().unwrap());
        let socket = self.path("api.sock");
        let deadline = Instant::now() + PATIENCE;
        self.client = loop {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "it ended: {ended:?}; {}", self.log());
            assert!(Instant::now() < deadline, "it does not serve");
            match self.runtime.block_on(fdpass::connect(&socket)) {
                Ok((channel, fds)) => break Some((DataplaneClient::new(channel), fds)),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        // The socket is there first of all, but answers when the ports are open.
        let (client, _) = self.client.as_mut().unwrap();
        self.runtime.block_on(client.get_snapshot(pb::GetSnapshotRequest {})).unwrap();
    }

    /// Starts it with a configuration that won't do, and returns what it says.
    pub fn refuses(&self, config: &str) -> String {
        let output = self.command(config).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        said
    }

    /// What it has said since it was first started.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Kills it as if by `kill -9`.
    pub fn kill(&mut self) {
        self.client = None;
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    pub fn apply(&mut self, ops: Vec<pb::Op>) -> Result<u64, tonic::Status> {
        let (client, _) = self.client.as_mut().unwrap();
        let request = pb::ApplyRequest { base_generation: None, ops };
        let answer = self.runtime.block_on(client.apply(request));
        answer.map(|answer| answer.into_inner().generation)
    }

    pub fn stats(&mut self, port: &str) -> pb::PortStats {
        let (client, _) = self.client.as_mut().unwrap();
        let request = pb::GetStatsRequest { ports: vec![port.into()] };
        self.runtime.block_on(client.get_stats(request)).unwrap().into_inner().ports.remove(0)
    }

    pub fn link(&mut self, port: &str) -> pb::Link {
        let (client, _) = self.client.as_mut().unwrap();
        let snapshot = self.runtime.block_on(client.get_snapshot(pb::GetSnapshotRequest {})).unwrap();
        let links = snapshot.into_inner().links;
        links.into_iter().find(|link| link.port == port).expect("there is such a port")
    }

    /// Waits until the link is as wanted.
    pub fn wait_link(&mut self, port: &str, up: bool) -> pb::Link {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let link = self.link(port);
            if link.up == up {
                return link;
            }
            assert!(Instant::now() < deadline, "{port} is still {link:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until the counters are as wanted.
    pub fn wait_stats(&mut self, port: &str, wanted: impl Fn(&pb::PortStats) -> bool) -> pb::PortStats {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let stats = self.stats(port);
            if wanted(&stats) {
                return stats;
            }
            assert!(Instant::now() < deadline, "{port} is still {stats:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let ended = self.child.as_mut().map(Child::try_wait);
            eprintln!("the engine (ended: {ended:?}) said:\n{}", self.log());
        }
        self.kill();
    }
}

/// Two ports and their cross-connect, as a configuration writes them.
pub fn pair(a: &str, a_is: &str, b: &str, b_is: &str) -> String {
    format!(
        "[[port]]\nname = \"{a}\"\n{a_is}\n[[port]]\nname = \"{b}\"\n{b_is}\n[[xconnect]]\nports = [\"{a}\", \"{b}\"]\n"
    )
}

/// A DPDK port, as a configuration writes it.
pub fn dpdk(device: &str) -> String {
    format!("kind = \"dpdk\"\ndevice = \"{device}\"")
}

pub fn dpdk_port(name: &str, device: &str) -> pb::Port {
    let kind = pb::port::Kind::Dpdk(pb::DpdkPort { device: device.into(), ..Default::default() });
    pb::Port { name: name.into(), kind: Some(kind), ..Default::default() }
}
