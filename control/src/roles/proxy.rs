//! `vwire proxy`: registry-proxy-dns and nsmgr-proxy in one process, at every port that either has had.
//!
//! All its ports serve both: whoever has learned them the wrong way round, as the first NSM's own manifest had them, is served all the
//! same. Other domains may ask it for what is registered here, so that they need to reach nothing else of the domain but its nodes.

use std::sync::Arc;

use super::Process;
use super::nsmgr_proxy::{Door, NsmgrProxyError, Setup};
use super::registry_proxy_dns::{Bounds, domains};
use crate::config::{self, List, Maybe};
use crate::discovery::{self, NoResolver};
use crate::identity::policy::BadPolicies;
use crate::transport::{Limits, ServeError, Server, Target};

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
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened")]
    pub door: Door,

    /// Where it listens, separated by commas. The first TCP address is where others reach it. By default the ports of nsmgr-proxy
    /// and of registry-proxy-dns, and that of the first NSM's proxy.
    #[arg(
        long,
        env = "NSM_LISTEN_ON",
        value_name = "URLS",
        default_value = "tcp://:5004,tcp://:5005,tcp://:5006"
    )]
    pub listen_on: List<Target>,

    /// The first NSM's variable for where its proxy listens: one more place.
    #[arg(long, env = "PROXY_NSMD_API_ADDRESS", value_name = "ADDRESS", default_value = "", hide = true)]
    pub proxy_nsmd_api_address: Maybe<Target>,
}

/// Why it does not run.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// A policy that nobody knows.
    #[error("NSM_REGISTRY_SERVER_POLICIES, NSM_REGISTRY_CLIENT_POLICIES: {0}")]
    Policies(#[from] BadPolicies),
    /// The resolver.
    #[error(transparent)]
    Resolver(#[from] NoResolver),
    /// A socket.
    #[error("NSM_LISTEN_ON, PROXY_NSMD_API_ADDRESS: {0}")]
    Serve(#[from] ServeError),
    /// The proxy of Requests.
    #[error(transparent)]
    Proxy(#[from] NsmgrProxyError),
}

/// Serves until the process shall end.
///
/// # Errors
/// [`ProxyError`].
pub async fn run(settings: Settings, process: Process) -> Result<(), ProxyError> {
    let rules = process.token_rules(&settings.common)?;
    let mut listens = settings.listen_on.0.clone();
    listens.extend(
        settings.proxy_nsmd_api_address.0.iter().filter(|more| !settings.listen_on.contains(more)).cloned(),
    );
    let server = Server::bind(&listens, settings.limits.clone()).await?;
    let beyond = domains(&settings.discovery, &process, rules.clone())?;
    let transit = &settings.common.transit;
    let setup =
        Setup { door: &settings.door, bounds: &settings.bounds, rules, transit, beyond: Arc::new(beyond) };
    Ok(setup.serve(server, process).await?)
}
