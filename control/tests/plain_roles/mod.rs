//! Roles as processes without identities, on loopback addresses of the test's own. No root is needed but for ports below 1024.
#![allow(dead_code)] // each test binary uses its own part

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vwire_control::identity::{Identity, TokenSource};
use vwire_control::transport::{Dialling, Pool, Target};

pub const PATIENCE: Duration = Duration::from_secs(60);

/// A role in a process of its own, killed when dropped.
pub struct Role(Child);

impl Role {
    pub fn start(role: &str, directory: &Path, settings: &[(&str, String)]) -> Self {
        Self::named(role, role, directory, settings)
    }

    /// One of several of the role: its log and its admin port are NAME.log and NAME.admin.
    pub fn named(name: &str, role: &str, directory: &Path, settings: &[(&str, String)]) -> Self {
        let log = std::fs::File::create(directory.join(format!("{name}.log"))).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "SIGKILL", env!("CARGO_BIN_EXE_vwire"), role]);
        command
            .env("VWIRE_INSECURE", "true")
            .env("VWIRE_ADMIN", format!("unix://{}/{name}.admin", directory.display()));
        command.envs(settings.iter().map(|(name, value)| (name, value)));
        Self(command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap())
    }

    /// The most memory that it ever had, in KiB.
    pub fn peak(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A loopback address of this process's own, one of 255. `test` tells apart the tests of one binary: 0 to 31.
pub fn own_address(test: u8, host: u8) -> Ipv4Addr {
    let pid = std::process::id();
    Ipv4Addr::new(127, 32 + ((pid >> 8) as u8 & 0x3f), pid as u8, test << 3 | host)
}

pub fn pool() -> Arc<Pool> {
    let identity = Identity::insecure();
    let tokens = TokenSource::new(identity.clone(), Duration::from_secs(600));
    let dialling = Dialling { timeout: Duration::from_secs(20), ..Dialling::default() };
    Arc::new(Pool::new(identity, tokens, dialling))
}

pub async fn listening(pool: &Pool, target: &Target) {
    let deadline = Instant::now() + PATIENCE;
    while pool.hop(target).await.is_err() {
        assert!(Instant::now() < deadline, "nobody listens at {target}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
