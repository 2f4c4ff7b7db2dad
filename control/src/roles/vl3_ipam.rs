//! `vwire vl3-ipam`: hands out the prefixes of a virtual network (vL3), one to each of its endpoints.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ipnet::IpNet;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use serde_json::{Map, Value};

use super::Process;
use crate::config::{self, List};
use crate::ipam::{self, BadSettings, Store, service};
use crate::obs::Reporter;
use crate::transport::{Limits, ServeError, Server, Services, Target};

/// How often the figures of the admin port are brought up to date.
const FIGURES: Duration = Duration::from_secs(1);

/// The settings, by the variables of the Go command where it has them.
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

    /// The network's prefix, IPv4 or IPv6. A network of both has two of these services.
    #[arg(long, env = "NSM_PREFIX", value_name = "PREFIX", default_value = "169.254.0.0/16")]
    pub prefix: IpNet,

    /// The length of the prefix that each endpoint gets.
    #[arg(long, env = "NSM_CLIENT_PREFIX_LEN", value_name = "BITS", default_value_t = 24)]
    pub client_prefix_len: u8,

    /// A file that keeps which prefix is whose while this is away. In memory only if it is empty.
    #[arg(long, env = "VWIRE_IPAM_STATE", value_name = "FILE")]
    pub state: Option<PathBuf>,

    /// How long a prefix is kept for its endpoint when that is away, or when this was. Nobody else gets it meanwhile.
    #[arg(long, env = "VWIRE_IPAM_GRACE", value_name = "DURATION", default_value = "10m", value_parser = config::duration)]
    pub grace: Duration,

    /// Prefixes from which no endpoint may assign addresses, separated by commas: other networks that lie in ours.
    #[arg(long, env = "VWIRE_IPAM_EXCLUDED", value_name = "PREFIXES", default_value = "")]
    pub excluded: List<IpNet>,

    /// Most prefixes of one identity, those included that are kept for it.
    #[arg(long, env = "VWIRE_IPAM_PER_IDENTITY", value_name = "COUNT", default_value_t = 64)]
    pub per_identity: usize,
}

/// Why it can't run.
#[derive(Debug, thiserror::Error)]
pub enum Vl3IpamError {
    /// A setting.
    #[error(transparent)]
    Settings(#[from] BadSettings),
    /// A socket.
    #[error(transparent)]
    Serve(#[from] ServeError),
}

/// Serves until the process shall end.
///
/// # Errors
/// [`Vl3IpamError`] if a setting, the state file or a socket is no good.
pub async fn run(settings: Settings, process: Process) -> Result<(), Vl3IpamError> {
    let store = Arc::new(Store::open(&ipam::Settings {
        prefix: settings.prefix,
        client_prefix_len: settings.client_prefix_len,
        excluded: settings.excluded.iter().map(IpNet::trunc).collect(),
        grace: settings.grace,
        per_identity: settings.per_identity,
        state: settings.state.clone(),
    })?);
    let server = Server::bind(&settings.listen_on, settings.limits.clone()).await?;
    let routes = Services::new()
        .with(|routes| service::add_to(routes, &store, &process.shutdown))
        .named(service::NAME)
        .routes()
        .await;
    process.admin.report(Arc::new(Figures(Arc::clone(&store))));
    let counting = count(Arc::clone(&store), gauges(&process));
    tokio::spawn(process.shutdown.clone().run_until_cancelled_owned(counting));
    let known = store.figures().await.kept;
    tracing::info!(
        listen_on = ?server.targets(), prefix = %settings.prefix, client_prefix_len = settings.client_prefix_len, known,
        "the prefix service is up"
    );
    Ok(process.serve(server, routes).await?)
}

/// What `vwire status` shows.
struct Figures(Arc<Store>);

#[async_trait]
impl Reporter for Figures {
    async fn report(&self) -> Map<String, Value> {
        let ipam::Figures { held, kept, free } = self.0.figures().await;
        let free = u64::try_from(free).unwrap_or(u64::MAX);
        [("prefixes", held.into()), ("prefixes_kept", kept.into()), ("prefixes_free", Value::from(free))]
            .into_iter()
            .map(|(name, figure): (&str, Value)| (name.to_owned(), figure))
            .collect()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    state: &'static str,
}

type Gauges = Family<Kind, Gauge>;

fn gauges(process: &Process) -> Gauges {
    let gauges = Gauges::default();
    process.admin.register(|registry| {
        let help = "Prefixes that endpoints hold, that are kept for those that are away, and that are free";
        registry.register("ipam_prefixes", help, gauges.clone());
    });
    gauges
}

/// Keeps the metrics current.
async fn count(store: Arc<Store>, gauges: Gauges) {
    loop {
        let ipam::Figures { held, kept, free } = store.figures().await;
        for (state, count) in [("held", held as u128), ("kept", kept as u128), ("free", free)] {
            gauges.get_or_create(&Kind { state }).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        tokio::time::sleep(FIGURES).await;
    }
}

#[cfg(test)]
mod tests;
