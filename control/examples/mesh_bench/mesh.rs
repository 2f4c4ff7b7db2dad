//! The processes of one side's mesh, in network namespaces of their own. All of it is gone with what is here.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vwire_dataplane::netns;

use crate::figures::Figures;
use crate::plane::Plane;
use crate::text;

const START: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(20);
/// Who gets an identity.
const NAMES: &str = "registry,nsmgr,forwarder,nse,load";
/// What of our environment the processes see.
const INHERITED: [&str; 3] = ["PATH", "HOME", "RUST_BACKTRACE"];

/// Whose roles run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Side {
    Go,
    Vwire,
}

/// Where the programs are.
#[derive(Debug, Clone)]
pub struct Programs {
    /// The Go peers (control/tests/go).
    pub peers: PathBuf,
    /// `vwire`, with `vwire-dataplane` beside it.
    pub vwire: PathBuf,
    /// This program.
    pub own: PathBuf,
}

/// Megabytes of a process.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// Resident.
    pub resident: f64,
    /// Of these its own: the rest is its program, which all roles share.
    pub own: f64,
    /// What it adds to the machine's use: pages that several processes map count for each in part.
    pub share: f64,
}

/// Processes by name, and where they are.
pub struct Mesh {
    pub side: Side,
    programs: Programs,
    processes: BTreeMap<&'static str, Child>,
    node: Namespace,
    workloads: Namespace,
    clients: Namespace,
    dir: TempDir,
}

impl Mesh {
    fn new(side: Side, programs: &Programs) -> Result<Self, String> {
        let (node, workloads, clients) = (Namespace::new("n")?, Namespace::new("e")?, Namespace::new("c")?);
        let dir = TempDir::with_prefix("vwb").map_err(text)?;
        let programs = programs.clone();
        let mut mesh = Self { side, programs, processes: BTreeMap::new(), node, workloads, clients, dir };
        let names = [("GOPEERS_NAMES", NAMES.to_owned()), ("GOPEERS_DIR", mesh.place(""))];
        let peers = mesh.programs.peers.clone();
        mesh.start("workload", &peers, &["workload"], &names, false)?;
        mesh.wait_for_socket(&mesh.place("load.sock"))?;
        Ok(mesh)
    }

    /// A registry alone.
    pub fn registry(side: Side, programs: &Programs, more: &[(&str, String)]) -> Result<Self, String> {
        let mut mesh = Self::new(side, programs)?;
        let listen = format!("tcp://127.0.0.1:5002,unix://{}", mesh.place("registry.io"));
        let mut settings = vec![("NSM_LISTEN_ON", listen)];
        settings.extend(more.iter().cloned());
        mesh.role("registry", &settings, false)?;
        Ok(mesh)
    }

    /// A mesh of one node.
    pub fn up(side: Side, programs: &Programs, plane: Plane) -> Result<Self, String> {
        let mut mesh = Self::registry(side, programs, &[])?;
        let unix = |mesh: &Self, name: &str| format!("unix://{}", mesh.place(&format!("{name}.io")));
        let listen = format!("{},tcp://127.0.0.1:5001", unix(&mesh, "nsmgr"));
        let registry = "tcp://127.0.0.1:5002".to_owned();
        mesh.role("nsmgr", &[("NSM_LISTEN_ON", listen), ("NSM_REGISTRY_URL", registry)], false)?;
        let manager = ("NSM_CONNECT_TO", unix(&mesh, "nsmgr"));
        let mut settings = vec![manager.clone(), ("NSM_LISTEN_ON", unix(&mesh, "forwarder"))];
        match (side, plane) {
            (Side::Go, Plane::None) => settings.push(("NSM_DATAPLANE", "none".into())),
            (Side::Go, _) => settings.push(("NSM_DATAPLANE", "kernel".into())),
            (Side::Vwire, Plane::None) => {}
            (Side::Vwire, plane) => {
                settings.extend(mesh.engine()?);
                settings.extend(plane.settings());
            }
        }
        if side == Side::Vwire && plane == Plane::None {
            let own = mesh.programs.own.clone();
            mesh.start("forwarder", &own, &["forwarder"], &settings, false)?;
            mesh.wait_for_socket(&mesh.place("forwarder.io"))?;
        } else {
            mesh.role("forwarder", &settings, false)?;
        }
        let endpoint = [
            manager,
            ("NSM_LISTEN_ON", unix(&mesh, "nse")),
            ("NSM_SERVICE_NAMES", "icmp-responder".into()),
            ("NSM_CIDR_PREFIX", "172.16.0.0/14".into()),
        ];
        mesh.role("nse", &endpoint, true)?;
        Ok(mesh)
    }

    fn engine(&mut self) -> Result<Vec<(&'static str, String)>, String> {
        let (socket, stats) = (self.place("engine"), self.place("engine.stats"));
        let config = self.place("engine.toml");
        let settings =
            format!("[workers]\ncores = [0]\n[api]\nsocket = {socket:?}\n[stats]\npath = {stats:?}\n");
        std::fs::write(&config, settings).map_err(text)?;
        let program = self.programs.vwire.with_file_name("vwire-dataplane");
        self.start("engine", &program, &["--config", &config], &[], false)?;
        self.wait_for_socket(&socket)?;
        let engine = format!("unix://{socket}");
        Ok(vec![("VWIRE_DATAPLANE", engine), ("NSM_TUNNEL_IP", "127.0.0.1".into())])
    }

    /// Starts a role, and waits until it listens.
    fn role(
        &mut self,
        name: &'static str,
        settings: &[(&str, String)],
        is_workload: bool,
    ) -> Result<(), String> {
        let program = match self.side {
            Side::Go => self.programs.peers.clone(),
            Side::Vwire => self.programs.vwire.clone(),
        };
        self.start(name, &program, &[name], settings, is_workload)?;
        self.wait_for_socket(&self.place(&format!("{name}.io")))
    }

    fn start(
        &mut self,
        name: &'static str,
        program: &Path,
        args: &[&str],
        settings: &[(&str, String)],
        is_workload: bool,
    ) -> Result<(), String> {
        let log = File::create(self.place(&format!("{name}.log"))).map_err(text)?;
        let mut command = self.command(name, program, settings);
        command.args(args).stdin(Stdio::null());
        command.stdout(log.try_clone().map_err(text)?).stderr(log);
        // The forwarder gives interfaces to nobody in a namespace of its own.
        let namespace = if is_workload { &self.workloads } else { &self.node };
        self.processes.insert(name, namespace.spawn(&mut command)?);
        Ok(())
    }

    fn command(&self, name: &str, program: &Path, settings: &[(&str, String)]) -> Command {
        let mut command = Command::new(program);
        command.env_clear();
        command.envs(INHERITED.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        command.env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", self.place(&format!("{name}.sock"))));
        command.env("NSM_NAME", name).env("NSM_QUIET", "true").env("NSM_MAX_TOKEN_LIFETIME", "10m");
        if self.side == Side::Vwire {
            command.env("VWIRE_ADMIN", format!("unix://{}", self.place(&format!("{name}.admin"))));
            command.env("VWIRE_RUN", self.place("run"));
        }
        command.envs(settings.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Starts this program's `job` against the target that listens at `at`: in the clients' namespace, or the node's for TCP.
    pub fn load(&self, job: &str, at: &str, args: &[String]) -> Result<Load, String> {
        let own = self.programs.own.clone();
        let namespace = if at.starts_with("tcp:") { &self.node } else { &self.clients };
        let mut command = self.command("load", &own, &[("NSM_CONNECT_TO", at.to_owned())]);
        command.arg(job).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = namespace.spawn(&mut command)?;
        let input = child.stdin.take().ok_or("no input")?;
        let output = BufReader::new(child.stdout.take().ok_or("no output")?);
        Ok(Load { child, input: Some(input), output })
    }

    /// A file of the mesh.
    pub fn place(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn wait_for_socket(&self, path: &str) -> Result<(), String> {
        let end = Instant::now() + START;
        // To connect would take the place of a workload at its issuer; that it is there is enough: roles ask again.
        while !Path::new(path).exists() {
            if Instant::now() > end {
                return Err(format!("waited in vain for {path}"));
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// What a process holds.
    pub fn memory(&self, name: &str) -> Option<Memory> {
        let of = |file: &str| {
            std::fs::read_to_string(format!("/proc/{}/{file}", self.processes.get(name)?.id())).ok()
        };
        let (status, all) = (of("status")?, of("smaps_rollup")?);
        let field = |text: &str, name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.split_whitespace().next()?.parse::<f64>().ok()? / 1024.0)
        };
        Some(Memory {
            resident: field(&status, "VmRSS:")?,
            own: field(&status, "RssAnon:")?,
            share: field(&all, "Pss:")?,
        })
    }

    /// The processor time that each process has taken so far.
    pub fn times(&self) -> BTreeMap<&'static str, Duration> {
        let time = |child: &Child| processor_time(child.id()).unwrap_or_default();
        self.processes.iter().map(|(name, child)| (*name, time(child))).collect()
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        for child in self.processes.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::env::var_os("MESH_BENCH_LOGS").is_some() {
            let kept = std::mem::replace(&mut self.dir, TempDir::new().expect("a folder")).keep();
            eprintln!("logs: {}", kept.display());
        }
    }
}

/// User and system time of all threads.
fn processor_time(pid: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    // utime and stime, the 14th and 15th; in hundredths of a second.
    let user: u64 = fields.nth(11)?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(Duration::from_millis((user + system) * 10))
}

/// A load under way.
pub struct Load {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Load {
    /// Its next line: "before PHASE" without figures, or how a phase was.
    pub fn next(&mut self) -> Result<Option<Figures>, String> {
        let mut line = String::new();
        if self.output.read_line(&mut line).map_err(text)? == 0 {
            return Ok(None);
        }
        serde_json::from_str(&line).map(Some).map_err(|error| format!("{line}: {error}"))
    }

    /// Lets it go on.
    pub fn proceed(&mut self) {
        if let Some(input) = &mut self.input {
            let _ = input.write_all(b"\n").and_then(|()| input.flush());
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.input = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A network namespace that is gone with this.
struct Namespace(String);

impl Namespace {
    fn new(name: &str) -> Result<Self, String> {
        let name = format!("vw-bench-{}-{name}", std::process::id());
        ip(&["netns", "add", &name])?;
        let namespace = Self(name);
        ip(&["-n", &namespace.0, "link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    fn spawn(&self, command: &mut Command) -> Result<Child, String> {
        let file = netns::open(&Path::new("/run/netns").join(&self.0)).map_err(text)?;
        netns::in_netns(Some(file.as_fd()), || command.spawn()).map_err(text)?.map_err(text)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = ip(&["netns", "del", &self.0]);
    }
}

fn ip(words: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(words).output().map_err(|error| format!("ip: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("ip {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}
