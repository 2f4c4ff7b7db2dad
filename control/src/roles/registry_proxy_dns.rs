//! `vwire registry-proxy-dns`: names of other domains, found and registered at their registries, which DNS says.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Map, Value};

use super::Process;
use crate::config::{self, List};
use crate::discovery::{self, NoResolver, Reach};
use crate::identity::policy::BadPolicies;
use crate::obs::Reporter;
use crate::registry::Registry;
use crate::registry::admission::Admission;
use crate::registry::authorize::{Authorize, Strict, TokenRules};
use crate::registry::counted::Counted;
use crate::registry::domains::Domains;
use crate::registry::hops::Hops;
use crate::registry::server;
use crate::transport::{Gate, Limits, ServeError, Server, Services, Target};

/// The settings.
#[derive(Debug, Clone, clap::Args)]
pub struct Settings {
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened")]
    pub common: config::Common,
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened")]
    pub limits: Limits,
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened")]
    pub discovery: discovery::Options,
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened")]
    pub bounds: Bounds,

    /// Where it listens, separated by commas.
    #[arg(long, env = "NSM_LISTEN_ON", value_name = "URLS", default_value = "unix:///listen.on.socket")]
    pub listen_on: List<Target>,
}

/// What a proxy lets be under way; the rest is refused.
#[derive(Debug, Clone, clap::Args)]
pub struct Bounds {
    /// Most registry calls at one time, without watches.
    #[arg(long, env = "VWIRE_PROXY_MAX_CALLS", value_name = "COUNT", default_value_t = 256)]
    pub proxy_max_calls: usize,

    /// Most watches at one time.
    #[arg(long, env = "VWIRE_PROXY_MAX_WATCHES", value_name = "COUNT", default_value_t = 4096)]
    pub proxy_max_watches: usize,
}

impl Bounds {
    /// The gates of a registry.
    pub(super) fn before<R: Registry>(&self, inner: R) -> (Admission<R>, [Gate; 2]) {
        let calls =
            Gate::new(self.proxy_max_calls, "registry calls of other domains", "VWIRE_PROXY_MAX_CALLS");
        let watches =
            Gate::new(self.proxy_max_watches, "watches of other domains", "VWIRE_PROXY_MAX_WATCHES");
        (Admission::new(inner, calls.clone(), watches.clone()), [calls, watches])
    }
}

/// Why it does not run.
#[derive(Debug, thiserror::Error)]
pub enum ProxyDnsError {
    /// A policy that nobody knows.
    #[error("NSM_REGISTRY_SERVER_POLICIES, NSM_REGISTRY_CLIENT_POLICIES: {0}")]
    Policies(#[from] BadPolicies),
    /// The resolver.
    #[error(transparent)]
    Resolver(#[from] NoResolver),
    /// A socket.
    #[error(transparent)]
    Serve(#[from] ServeError),
}

/// Serves until the process shall end.
///
/// # Errors
/// [`ProxyDnsError`].
pub async fn run(settings: Settings, process: Process) -> Result<(), ProxyDnsError> {
    let rules = process.token_rules(&settings.common)?;
    let server = Server::bind(&settings.listen_on, settings.limits.clone()).await?;
    let (bounded, gates) = settings.bounds.before(domains(&settings.discovery, &process, rules.clone())?);
    let registry =
        Arc::new(Hops::new(Authorize::new(bounded, rules, Strict::default()), process.tokens.clone()));
    let registry = Counted::in_front_of(registry, process.admin.metrics());
    let served = Services::new()
        .with(|routes| server::add_to(routes, &registry, &process.shutdown))
        .named("registry.NetworkServiceRegistry")
        .named("registry.NetworkServiceEndpointRegistry")
        .routes()
        .await;
    process.admin.report(Arc::new(Figures { gates }));
    tracing::info!(listen_on = ?server.targets(), "the proxy of other domains' registries is up");
    Ok(process.serve(server, served).await?)
}

/// The registries of other domains.
///
/// # Errors
/// [`NoResolver`].
pub(super) fn domains(
    settings: &discovery::Options,
    process: &Process,
    rules: Option<Arc<dyn TokenRules>>,
) -> Result<Domains, NoResolver> {
    let reach = Arc::new(Reach::new(settings.discovery()?, Arc::clone(&process.pool)));
    Ok(Domains::new(reach, Arc::clone(&process.pool), rules))
}

struct Figures {
    gates: [Gate; 2],
}

#[async_trait]
impl Reporter for Figures {
    async fn report(&self) -> Map<String, Value> {
        let [calls, watches] = &self.gates;
        [("calls", calls.inside()), ("watches", watches.inside())]
            .into_iter()
            .map(|(name, count)| (name.to_owned(), count.into()))
            .collect()
    }
}
