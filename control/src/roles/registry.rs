//! `vwire registry`: a domain's registry, in memory, and in a file where one is named.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Map, Value};

use super::Process;
use super::forwarding::Forwarding;
use crate::config::{self, List, Maybe};
use crate::identity::policy::BadPolicies;
use crate::obs::Reporter;
use crate::registry::Registry;
use crate::registry::authorize::{Authorize, Strict, TokenRules};
use crate::registry::counted::Counted;
use crate::registry::foreign::{Admit, Foreign};
use crate::registry::hops::Hops;
use crate::registry::interdomain::Interdomain;
use crate::registry::manifest::Manifest;
use crate::registry::memory::{self, StateError, Store};
use crate::registry::remote::Remote;
use crate::registry::server;
use crate::transport::{Limits, ServeError, Server, Services, Target};

/// How often the figures of the admin port are brought up to date.
const FIGURES: Duration = Duration::from_secs(1);

/// The registry's settings.
#[derive(Debug, Clone, clap::Args)]
pub struct Settings {
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened")]
    pub common: config::Common,
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened")]
    pub limits: Limits,

    /// Where it listens, separated by commas.
    #[arg(long, env = "NSM_LISTEN_ON", value_name = "URLS", default_value = "unix:///listen.on.socket")]
    pub listen_on: List<Target>,

    /// Where names of other domains (`name@domain`) are asked for and registered; they are refused if it is empty.
    #[arg(long, env = "NSM_PROXY_REGISTRY_URL", value_name = "URL", default_value = "")]
    pub proxy_registry_url: Maybe<Target>,

    /// How long an endpoint stays without being renewed.
    #[arg(long, env = "NSM_EXPIRE_PERIOD", value_name = "DURATION", default_value = "1m", value_parser = config::duration)]
    pub expire_period: Duration,

    /// A file that keeps what is registered, and whose it is, while the registry is away. In memory only if it is empty.
    #[arg(long, env = "VWIRE_REGISTRY_STATE", value_name = "FILE")]
    pub state: Option<PathBuf>,

    /// A file with network services that there shall be: NSM's Kubernetes resources, as YAML. Nobody else changes them; the file is
    /// followed.
    #[arg(long, env = "VWIRE_REGISTRY_SERVICES", value_name = "FILE")]
    pub services: Option<PathBuf>,

    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened")]
    pub strict: Strict,

    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened")]
    pub store: memory::Limits,

    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened")]
    pub forwarding: Forwarding,

    /// What members of other trust domains may register: `apart` (what no member of ours has), `any`, `none`, or trust domains that may
    /// register anything.
    #[arg(long, env = "VWIRE_REGISTRY_FOREIGN", value_name = "WHOM", default_value = "apart")]
    pub foreign: Admit,
}

/// Why the registry can't run.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// A setting.
    #[error("{0}")]
    Setting(String),
    /// The policies.
    #[error("NSM_REGISTRY_SERVER_POLICIES, NSM_REGISTRY_CLIENT_POLICIES: {0}")]
    Policies(#[from] BadPolicies),
    /// The state file.
    #[error("VWIRE_REGISTRY_STATE: {0}")]
    State(#[from] StateError),
    /// A socket.
    #[error(transparent)]
    Serve(#[from] ServeError),
}

/// Serves until the process shall end.
///
/// # Errors
/// [`RegistryError`] if a setting, the state file or a socket is no good.
pub async fn run(settings: Settings, process: Process) -> Result<(), RegistryError> {
    if settings.expire_period < Duration::from_secs(1) {
        let told = format!(
            "NSM_EXPIRE_PERIOD: {:?} is below 1s: no endpoint could renew in time",
            settings.expire_period
        );
        return Err(RegistryError::Setting(told));
    }
    settings.forwarding.check().map_err(RegistryError::Setting)?;
    let rules = process.token_rules(&settings.common)?;
    let store = memory::Settings { expire: settings.expire_period, limits: settings.store.clone() };
    let store = Arc::new(Store::kept(store, settings.state.as_deref())?);
    if let Some(file) = &settings.services {
        // Without TLS nobody has an identity, and nobody checks.
        let owner = process.identity.current().map_or_else(String::new, |own| own.id.to_string());
        let manifest = Manifest::load(file, Arc::clone(&store), &owner).await;
        let manifest =
            manifest.map_err(|told| RegistryError::Setting(format!("VWIRE_REGISTRY_SERVICES: {told}")))?;
        tokio::spawn(process.shutdown.clone().run_until_cancelled_owned(manifest.follow()));
    }
    let server = Server::bind(&settings.listen_on, settings.limits.clone()).await?;
    let registry = chain(&settings, &process, rules.clone(), Arc::clone(&store));
    let registry = Counted::in_front_of(registry, process.admin.metrics());
    let routes = Services::new()
        .with(|routes| server::add_to(routes, &registry, &process.shutdown))
        .named("registry.NetworkServiceRegistry")
        .named("registry.NetworkServiceEndpointRegistry")
        // The Go registry claims it, and probes ask for it.
        .claimed("networkservice.NetworkService")
        .routes()
        .await;
    settings.forwarding.start(&process, rules, Arc::clone(&store) as _, None);
    process.admin.report(Arc::new(Figures(Arc::clone(&store))));
    let figures = tokio::spawn(
        process.shutdown.clone().run_until_cancelled_owned(count(Arc::clone(&store), process.clone())),
    );
    let (services, endpoints) = store.counts();
    tracing::info!(listen_on = ?server.targets(), services, endpoints, "the registry is up");
    let served = process.serve(server, routes).await;
    figures.abort();
    store.flush().await;
    Ok(served?)
}

/// The registry from the outside in: this hop in the path, who may, which domain, what of other domains, the store.
fn chain(
    settings: &Settings,
    process: &Process,
    rules: Option<Arc<dyn TokenRules>>,
    store: Arc<Store>,
) -> Arc<dyn Registry> {
    let proxy = settings.proxy_registry_url.0.clone().map(|target| {
        let remote = Remote::new(Arc::clone(&process.pool), target).with_rules(rules.clone());
        Arc::new(remote) as Arc<dyn Registry>
    });
    let domains = Interdomain::new(Foreign::new(store, settings.foreign.clone()), proxy);
    let authorized = Authorize::new(domains, rules, settings.strict.clone());
    Arc::new(Hops::new(authorized, process.tokens.clone()))
}

/// What `vwire status` shows.
struct Figures(Arc<Store>);

#[async_trait]
impl Reporter for Figures {
    async fn report(&self) -> Map<String, Value> {
        let (services, endpoints) = self.0.counts();
        let figures = [("services", services), ("endpoints", endpoints), ("watches", self.0.watches())];
        figures.into_iter().map(|(name, count)| (name.to_owned(), count.into())).collect()
    }
}

/// Keeps the metrics current.
async fn count(store: Arc<Store>, process: Process) {
    let metrics = process.admin.metrics();
    loop {
        let (services, endpoints) = store.counts();
        metrics.records("service", services);
        metrics.records("endpoint", endpoints);
        metrics.watches.set(i64::try_from(store.watches()).unwrap_or(i64::MAX));
        tokio::time::sleep(FIGURES).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::issuer::Authority;
    use crate::identity::policy::Policies;
    use crate::identity::{Identity, TokenSource, TrustDomain};
    use crate::obs::Admin;
    use crate::registry::{RegistryCall, find};
    use crate::transport::{Dialling, Pool};
    use clap::Parser;
    use tokio_util::sync::CancellationToken;
    use tonic::Code;
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_check_response::ServingStatus;
    use tonic_health::pb::health_client::HealthClient;
    use vwire_proto::nsm::registry::{NetworkService, NetworkServiceEndpoint};

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        settings: Settings,
    }

    fn settings(args: &[&str]) -> Settings {
        Cli::parse_from(std::iter::once("registry").chain(args.iter().copied())).settings
    }

    fn process(authority: &Authority, name: &str) -> Process {
        let day = Duration::from_secs(86400);
        let identity = Identity::fixed(authority.issue(&format!("/{name}"), day).unwrap());
        let tokens = TokenSource::new(identity.clone(), Duration::from_secs(600));
        let dialling = Dialling { timeout: Duration::from_secs(10), ..Dialling::default() };
        let pool = Arc::new(Pool::new(identity.clone(), tokens.clone(), dialling));
        let admin = Admin::new("registry", name);
        Process { identity, tokens, pool, admin, shutdown: CancellationToken::new() }
    }

    fn call() -> RegistryCall {
        RegistryCall::internal("test", Duration::from_secs(10))
    }

    #[test]
    fn it_listens_where_the_go_registry_does() {
        let settings = settings(&[]);
        assert_eq!(settings.listen_on.0, [Target::Unix("/listen.on.socket".into())]);
        assert_eq!(settings.expire_period, Duration::from_secs(60));
        assert!(settings.proxy_registry_url.0.is_none());
    }

    #[tokio::test]
    async fn the_role_serves_both_registries_and_their_health_and_ends() {
        let authority = Authority::new(TrustDomain::new("example.org").unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("registry.sock");
        let listen_on = format!("unix://{}", socket.display());
        let state = folder.path().join("state.redb");
        let args = ["--listen-on", &listen_on, "--state", state.to_str().unwrap()];
        let registry = process(&authority, "registry");
        let running = tokio::spawn(run(settings(&args), registry.clone()));
        let nse = process(&authority, "nse");
        let target = Target::Unix(socket);
        let hop = loop {
            match nse.pool.hop(&target).await {
                Ok(hop) => break hop,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        for service in [
            "",
            "registry.NetworkServiceRegistry",
            "registry.NetworkServiceEndpointRegistry",
            "networkservice.NetworkService",
        ] {
            let request = HealthCheckRequest { service: service.into() };
            let answer = HealthClient::new(hop.clone()).check(request).await.unwrap();
            assert_eq!(answer.get_ref().status(), ServingStatus::Serving, "{service}");
        }
        let remote =
            Remote::new(Arc::clone(&nse.pool), target).with_rules(Some(Arc::new(Policies::standard())));
        let service = NetworkService { name: "icmp".into(), ..Default::default() };
        remote.register_service(&mut call(), service).await.unwrap();
        assert_eq!(find::service(&remote, &mut call(), "icmp").await.unwrap().payload, "IP");
        let far = NetworkServiceEndpoint { name: "nse@far".into(), ..Default::default() };
        let told = find::endpoints(&remote, &mut call(), far).await.unwrap_err();
        assert_eq!(told.code(), Code::FailedPrecondition);
        assert!(told.message().contains("NSM_PROXY_REGISTRY_URL"), "{told}");
        registry.shutdown.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(5), running).await.expect("within 5 s");
        ended.unwrap().unwrap();
        assert!(state.exists());
    }

    #[tokio::test]
    async fn wrong_settings_end_the_start() {
        let authority = Authority::new(TrustDomain::new("example.org").unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (socket, here) =
            (format!("unix://{}/r.sock", folder.path().display()), folder.path().to_str().unwrap());
        for (args, told) in [
            (&["--expire-period", "10ms", "--listen-on", &socket][..], "NSM_EXPIRE_PERIOD"),
            (&["--state", here, "--listen-on", &socket], "VWIRE_REGISTRY_STATE"),
            (
                &["--services", "/none.yaml", "--listen-on", &socket],
                "VWIRE_REGISTRY_SERVICES: /none.yaml: No such file",
            ),
            (
                &["--registry-server-policies", "nothing-like-this", "--listen-on", &socket],
                "NSM_REGISTRY_SERVER_POLICIES",
            ),
            (&["--listen-on", ""], "NSM_LISTEN_ON"),
        ] {
            let error = run(settings(args), process(&authority, "registry")).await.unwrap_err().to_string();
            assert!(error.contains(told), "{told}: {error}");
        }
    }
}
