//! A lab of a test's own, which is gone with the test.
#![allow(dead_code, reason = "each test file uses a part")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use vwire_control::lab::{Lab, Programs, Silent, Spec, pings};

/// Where a test's lab is. A lab that is still there when this is dropped, because the test failed, is taken down.
pub struct Run {
    folder: PathBuf,
    lab: String,
}

impl Run {
    /// For a lab of this topology, to which it gives a name that no other run has.
    pub fn of(spec: &mut Spec, name: &str) -> Self {
        spec.name = format!("{name}-{}", std::process::id());
        let folder = std::env::temp_dir().join(format!("vw-{}", spec.name));
        Self { folder, lab: spec.name.clone() }
    }

    /// Its directory; for files of the test, too.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Brings the lab up with the programs of this build.
    pub async fn up(&self, spec: &Spec) -> Lab {
        let programs = Programs::beside(Path::new(env!("CARGO_BIN_EXE_vwire"))).unwrap();
        Lab::up(spec, &self.folder, &programs, &Silent).await.unwrap_or_else(|error| panic!("{error}"))
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let mut down = Command::new(env!("CARGO_BIN_EXE_vwire"));
        let down = down.args(["lab", "down", &self.lab, "--run"]).arg(&self.folder).output();
        assert!(std::thread::panicking() || down.is_ok_and(|output| output.status.success()));
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Runs a program in the namespace of a part of a lab: whether it was content, and what it said.
pub fn inside(lab: &Lab, part: &str, words: &[&str]) -> (bool, String) {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &lab.layout().namespace(part)]).args(words);
    let output = command.output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Whether one ping of this part is answered.
pub fn pings_once(lab: &Lab, part: &str, address: &str) -> bool {
    inside(lab, part, &["ping", "-n", "-c", "1", "-W", "1", address]).0
}

/// How long anything that is waited for may take.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until it is so; it says what is not.
pub async fn until(what: &str, mut is_so: impl AsyncFnMut() -> Result<(), String>) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(not) = is_so().await {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}: {not}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A running `ping` in the namespace of a lab's client, whose output goes to a file: a pipe that nobody reads would stop it.
pub struct Pings(Child, PathBuf);

impl Pings {
    /// Pings until `count` are answered.
    pub fn count(lab: &Lab, client: &str, address: &str, count: u32) -> Self {
        Self::start(lab, client, address, &pings::arguments(count))
    }

    /// Pings twenty times a second until [`Self::interrupt`].
    pub fn on_and_on(lab: &Lab, client: &str, address: &str) -> Self {
        Self::start(lab, client, address, &["-n", "-i", "0.05"].map(str::to_owned))
    }

    fn start(lab: &Lab, client: &str, address: &str, arguments: &[String]) -> Self {
        let log = lab.layout().directory().join(format!("ping-{client}.log"));
        let out = std::fs::File::create(&log).unwrap();
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &lab.layout().namespace(client), "ping"]).args(arguments).arg(address);
        let child = command.stdin(Stdio::null()).stdout(out).spawn().unwrap();
        Self(child, log)
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.1).unwrap_or_default()
    }

    /// Waits for so many answers.
    pub async fn answered(&self, times: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.said().matches("icmp_seq=").count() < times {
            assert!(Instant::now() < deadline, "no {times} answers: {}", self.said());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// What it has said when it has ended by itself.
    pub async fn end(mut self) -> String {
        let deadline = Instant::now() + PATIENCE;
        while self.0.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "ping does not end");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.said()
    }

    /// Ends it: how many were answered, and the numbers of those that were lost on the way.
    pub async fn interrupt(self) -> (usize, Vec<u32>) {
        let interrupted = Command::new("kill").args(["-INT", &self.0.id().to_string()]).status();
        assert!(interrupted.unwrap().success());
        pings::answered(&self.end().await)
    }
}

impl Drop for Pings {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
