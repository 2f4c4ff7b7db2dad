//! Starting an engine that outlives us, and finding it again.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use tokio::net::UnixStream;

/// The engine's program.
const PROGRAM: &str = "vwire-dataplane";
/// How long a new engine has until it answers.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between looks whether it does.
const LOOK: Duration = Duration::from_millis(5);

/// Starts an engine where there is none. One directory is one engine: its socket, its counters, its configuration, its log.
#[derive(Debug, Clone)]
pub struct Launcher {
    directory: PathBuf,
    program: PathBuf,
}

impl Launcher {
    /// For the engine of the forwarder called `name`, which lives in a directory of that name below `run` (usually /run/vwire).
    ///
    /// # Errors
    /// If the program is not found, saying where it was looked for.
    pub fn new(run: &Path, name: &str) -> Result<Self, String> {
        let ours = std::env::current_exe().ok();
        let beside = ours.as_deref().and_then(Path::parent).map(|directory| directory.join(PROGRAM));
        let path = std::env::var_os("PATH").unwrap_or_default();
        let candidates: Vec<PathBuf> = beside
            .into_iter()
            .chain(std::env::split_paths(&path).map(|directory| directory.join(PROGRAM)))
            .collect();
        let found = candidates.into_iter().find(|candidate| candidate.is_file());
        let program = found.ok_or_else(|| {
            format!("{PROGRAM} is neither beside this program nor in PATH; install it there, or set VWIRE_DATAPLANE to the socket of an engine that runs")
        })?;
        Ok(Self::with(run, name, program))
    }

    /// As [`new`](Self::new), with the program's path.
    pub fn with(run: &Path, name: &str, program: PathBuf) -> Self {
        let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_') { c } else { '_' };
        Self { directory: run.join(name.chars().take(40).map(plain).collect::<String>()), program }
    }

    /// Where the engine listens.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("dataplane.sock")
    }

    /// Returns when an engine listens; starts one if needed.
    ///
    /// # Errors
    /// Why none could be started, and where its log is.
    pub async fn ensure(&self) -> Result<(), String> {
        let socket = self.socket();
        if UnixStream::connect(&socket).await.is_ok() {
            return Ok(());
        }
        let wrong = |what: &str, error: &dyn std::fmt::Display| {
            format!("{}: {what}: {error}", self.directory.display())
        };
        std::fs::create_dir_all(&self.directory).map_err(|error| wrong("making the directory", &error))?;
        let lock = File::create(self.directory.join("lock"))
            .map_err(|error| wrong("making the lock file", &error))?;
        let deadline = Instant::now() + PATIENCE;
        // Another process may be starting the same engine.
        while rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            if Instant::now() > deadline {
                return Err(wrong("waiting for the lock", &"another process holds it"));
            }
            tokio::time::sleep(LOOK).await;
        }
        if UnixStream::connect(&socket).await.is_ok() {
            return Ok(());
        }
        let mut child =
            self.spawn().map_err(|error| wrong(&format!("starting {}", self.program.display()), &error))?;
        while UnixStream::connect(&socket).await.is_err() {
            let log = self.directory.join("dataplane.log");
            if let Ok(Some(status)) = child.try_wait() {
                return Err(format!("{} ended with {status}; see {}", self.program.display(), log.display()));
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                return Err(format!("{} does not listen; see {}", self.program.display(), log.display()));
            }
            tokio::time::sleep(LOOK).await;
        }
        tracing::info!(process = child.id(), socket = %socket.display(), "started a packet engine");
        // It stays ours to reap until we end.
        std::thread::spawn(move || child.wait());
        Ok(())
    }

    /// In a process group of its own, so that what ends us does not reach it, and with nothing of ours open.
    fn spawn(&self) -> std::io::Result<std::process::Child> {
        let path = |name: &str| self.directory.join(name);
        let (config, stats) = (path("dataplane.toml"), path("stats"));
        let text = format!(
            "# Written by vwire at each start of the engine.\n[workers]\ncores = [{}]\n[stats]\npath = {stats:?}\n[api]\nsocket = {:?}\n",
            self.core(),
            self.socket()
        );
        std::fs::write(&config, text)?;
        let log = File::options().create(true).append(true).open(path("dataplane.log"))?;
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(config).current_dir("/").process_group(0);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.spawn()
    }

    /// One of the cores that we may use; engines of different names take different ones where they can.
    fn core(&self) -> usize {
        let allowed: Vec<usize> = rustix::thread::sched_getaffinity(None)
            .map(|set| (0..rustix::thread::CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect())
            .unwrap_or_default();
        let name = self.directory.as_os_str().as_encoded_bytes();
        let hash =
            name.iter().fold(0_usize, |hash, byte| hash.wrapping_mul(31).wrapping_add(usize::from(*byte)));
        allowed.get(hash % allowed.len().max(1)).copied().unwrap_or(0)
    }
}
