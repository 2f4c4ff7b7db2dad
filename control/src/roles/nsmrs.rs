//! `vwire nsmrs`: the registry of several domains, the seed of floating interdomain. Domains register what they have there, and whoever asks
//! for `service@<its domain>` finds the endpoints of all of them.
//!
//! It serves today's registry API and the one before v1 over the same store. It needs neither nodes nor Kubernetes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Map, Value};

use super::Process;
use crate::config::{self, List};
use crate::identity::policy::BadPolicies;
use crate::obs::Reporter;
use crate::registry::Registry;
use crate::registry::authorize::{Authorize, Strict};
use crate::registry::counted::Counted;
use crate::registry::foreign::{Admit, Foreign};
use crate::registry::hops::Hops;
use crate::registry::interdomain::Interdomain;
use crate::registry::memory::{self, StateError, Store};
use crate::registry::server;
use crate::registry::v02::Old;
use crate::transport::{Limits, ServeError, Server, Services, Target};

/// The settings, by the variables of the first NSMRS where it had them.
#[derive(Debug, Clone, clap::Args)]
pub struct Settings {
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened")]
    pub common: config::Common,
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened")]
    pub limits: Limits,

    /// Where it listens, separated by commas.
    #[arg(long, env = "NSMRS_API_ADDRESS", value_name = "ADDRESSES", default_value = "tcp://:5010")]
    pub api_address: List<Target>,

    /// How long an endpoint stays without being renewed: a duration, or seconds.
    #[arg(long, env = "NSE_EXPIRATION_TIMEOUT", value_name = "DURATION", default_value = "5m", value_parser = config::seconds)]
    pub expiration_timeout: Duration,

    /// A file that keeps what is registered, and whose it is, while this is away. In memory only if it is empty.
    #[arg(long, env = "VWIRE_REGISTRY_STATE", value_name = "FILE")]
    pub state: Option<PathBuf>,

    /// What members of other trust domains may register: `any`, `apart` (what no member of ours has), `none`, or trust domains.
    #[arg(long, env = "VWIRE_REGISTRY_FOREIGN", value_name = "WHOM", default_value = "any")]
    pub foreign: Admit,

    /// Most endpoints, and most services, of one identity: a domain's registry registers all of its domain.
    #[arg(long, env = "VWIRE_REGISTRY_PER_IDENTITY", value_name = "COUNT", default_value_t = memory::Limits::default().per_identity)]
    pub per_identity: usize,

    /// Most endpoints, and most services, in all.
    #[arg(long, env = "VWIRE_REGISTRY_TOTAL", value_name = "COUNT", default_value_t = memory::Limits::default().total)]
    pub total: usize,
}

/// Why it can't run.
#[derive(Debug, thiserror::Error)]
pub enum NsmrsError {
    /// The policies.
    #[error("NSM_REGISTRY_SERVER_POLICIES, NSM_REGISTRY_CLIENT_POLICIES: {0}")]
    Policies(#[from] BadPolicies),
    /// The expiration.
    #[error("NSE_EXPIRATION_TIMEOUT: {0:?} is below 1s: no endpoint could renew in time")]
    Expiration(Duration),
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
/// [`NsmrsError`] if a setting, the state file or a socket is no good.
pub async fn run(settings: Settings, process: Process) -> Result<(), NsmrsError> {
    if settings.expiration_timeout < Duration::from_secs(1) {
        return Err(NsmrsError::Expiration(settings.expiration_timeout));
    }
    let rules = process.token_rules(&settings.common)?;
    let limits =
        memory::Limits { per_identity: settings.per_identity, total: settings.total, ..Default::default() };
    let store = memory::Settings { expire: settings.expiration_timeout, limits };
    let store = Arc::new(Store::kept(store, settings.state.as_deref())?);
    let server = Server::bind(&settings.api_address, settings.limits.clone()).await?;
    let foreign = Foreign::new(Arc::clone(&store), settings.foreign.clone());
    let domains: Arc<dyn Registry> = Arc::new(Interdomain::new(foreign, None));
    let authorized = Authorize::new(Arc::clone(&domains), rules, Strict::default());
    let registry = Arc::new(Hops::new(authorized, process.tokens.clone()));
    let registry = Counted::in_front_of(registry, process.admin.metrics());
    let old = Old::new(domains, process.shutdown.clone());
    let routes = Services::new()
        .with(|routes| server::add_to_with_old(routes, &registry, &old, &process.shutdown))
        .named("registry.NetworkServiceRegistry")
        .named("registry.NetworkServiceEndpointRegistry")
        .named("registry.NetworkServiceDiscovery")
        .described_by(vwire_proto::nsm02::FILE_DESCRIPTOR_SET)
        .routes()
        .await;
    process.admin.report(Arc::new(Figures(Arc::clone(&store))));
    tracing::info!(api_address = ?server.targets(), "the registry of several domains is up");
    let served = process.serve(server, routes).await;
    store.flush().await;
    Ok(served?)
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
