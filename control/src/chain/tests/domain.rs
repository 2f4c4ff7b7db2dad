//! A domain in one process: its registry, its manager and both proxies as processes start them, at an address of its own with the
//! usual ports; other domains are found by a static map.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use clap::{Args, Parser};
use tokio_util::sync::CancellationToken;

use super::mesh::*;
use crate::obs::Admin;
use crate::roles::{Process, nsmgr, nsmgr_proxy, registry, registry_proxy_dns};
use crate::transport::Target;

/// So that no two domains of one test process, and hardly two of two, have one address.
static NEXT: AtomicU8 = AtomicU8::new(1);

#[derive(Parser)]
struct Cli<S: Args> {
    #[command(flatten)]
    settings: S,
}

fn settings<S: Args>(args: &[String]) -> S {
    let program = ["role".to_owned()];
    Cli::<S>::parse_from(program.iter().chain(args)).settings
}

/// What a domain may have set otherwise.
#[derive(Default)]
pub(super) struct Plan {
    /// `VWIRE_DOMAIN_MAP`.
    pub map: Vec<String>,
    /// Further flags of nsmgr-proxy.
    pub proxy: Vec<String>,
    /// The name of nsmgr-proxy, if it is not made of the domain's.
    pub proxy_name: Option<String>,
}

/// An address that a domain may have.
pub(super) fn address() -> Ipv4Addr {
    let pid = std::process::id();
    let own = NEXT.fetch_add(1, Ordering::Relaxed);
    Ipv4Addr::new(127, 64 + (pid >> 8 & 0x3f) as u8, (pid & 0xff) as u8, own)
}

/// An entry of the static map.
pub(super) fn entry(name: &str, address: Ipv4Addr) -> String {
    format!("{name}={address}:5002+{address}:5004")
}

pub(super) struct Domain {
    pub mesh: Mesh,
    pub name: String,
    pub address: Ipv4Addr,
    pub manager: Target,
    plan: Plan,
    proxy: Option<Running>,
    _others: Vec<Running>,
    folder: tempfile::TempDir,
}

/// A role that ends when it is dropped.
pub(super) struct Running(pub Process);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.shutdown.cancel();
    }
}

impl Domain {
    pub(super) async fn start(mesh: Mesh, name: &str, address: Ipv4Addr, plan: Plan) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let manager = Target::Unix(folder.path().join("nsm.io.sock"));
        let name = name.to_owned();
        let mut domain =
            Self { mesh, name, address, manager, plan, proxy: None, _others: Vec::new(), folder };
        domain.begin().await;
        let manager = domain.manager.clone();
        domain.mesh = domain.mesh.behind(&manager);
        domain
    }

    async fn begin(&mut self) {
        let at = |port: u16| format!("tcp://{}:{port}", self.address);
        let listen = format!("--listen-on={}", at(5002));
        let beyond = format!("--proxy-registry-url={}", at(5004));
        let process = self.process("registry");
        tokio::spawn(registry::run(settings(&[listen, beyond]), process.clone()));
        let registry = Running(process);

        let process = self.process("dns");
        let listen = format!("--listen-on={}", at(5005));
        let map = format!("--domain-map={}", self.plan.map.join(","));
        tokio::spawn(registry_proxy_dns::run(settings(&[listen, map]), process.clone()));
        let dns = Running(process);

        let process = self.process("nsmgr");
        let name = format!("--name={}", self.part("nsmgr"));
        let listen = format!("--listen-on={},{}", self.manager, at(5001));
        let registry_url = format!("--registry-url={}", at(5002));
        tokio::spawn(nsmgr::run(settings(&[name, listen, registry_url]), process.clone()));
        let nsmgr = Running(process);

        self._others.extend([registry, dns, nsmgr]);
        self.start_proxy().await;
        for port in [5001, 5002, 5005] {
            self.wait(port).await;
        }
    }

    /// Starts nsmgr-proxy, again if it ran.
    pub(super) async fn start_proxy(&mut self) {
        self.stop_proxy().await;
        let process = self.process("nsmgr-proxy");
        let at = |port: u16| format!("tcp://{}:{port}", self.address);
        let own = [
            format!("--name={}", self.plan.proxy_name.clone().unwrap_or_else(|| self.part("nsmgr-proxy"))),
            format!("--listen-on={}", at(5004)),
            format!("--registry-url={}", at(5002)),
            format!("--registry-proxy-url={}", at(5005)),
            format!("--map-ip-file-path={}", self.folder.path().join("map-ip.yaml").display()),
            format!("--cluster-info-file={}", self.folder.path().join("cluster.yaml").display()),
        ];
        let args: Vec<String> = own.into_iter().chain(self.plan.proxy.clone()).collect();
        tokio::spawn(nsmgr_proxy::run(settings(&args), process.clone()));
        self.proxy = Some(Running(process));
        self.wait(5004).await;
    }

    pub(super) async fn stop_proxy(&mut self) {
        if self.proxy.take().is_none() {
            return;
        }
        for _ in 0..2000 {
            if tokio::net::TcpStream::connect((self.address, 5004)).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("the proxy did not end");
    }

    pub(super) fn proxy(&self) -> &Process {
        &self.proxy.as_ref().expect("a proxy that runs").0
    }

    pub(super) fn put(&self, file: &str, text: &str) {
        std::fs::write(self.folder.path().join(file), text).unwrap();
    }

    /// A name that no other domain has.
    pub(super) fn part(&self, role: &str) -> String {
        format!("{role}-{}", self.name)
    }

    pub(super) fn client(&self) -> Client {
        self.mesh.client(&self.part("nsc"))
    }

    fn pool(&self) -> std::sync::Arc<crate::transport::Pool> {
        self.mesh.pool(&self.mesh.identity("look"), TOKEN_LIFE)
    }

    async fn wait(&self, port: u16) {
        let pool = self.pool();
        let target = Target::Tcp(format!("{}:{port}", self.address));
        for _ in 0..2000 {
            if pool.hop(&target).await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("nobody listens at {target}");
    }

    fn process(&self, role: &str) -> Process {
        let identity = self.mesh.identity(&self.part(role));
        Process {
            tokens: crate::identity::TokenSource::new(identity.clone(), TOKEN_LIFE),
            pool: self.mesh.pool(&identity, TOKEN_LIFE),
            admin: Admin::new(role, &self.part(role)),
            shutdown: CancellationToken::new(),
            identity,
        }
    }
}
