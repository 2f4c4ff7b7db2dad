//! An endpoint in the registry: what it registers, until when a start waits for that, and its farewell.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::Process;
use crate::api::registry::{NetworkService, NetworkServiceEndpoint, NetworkServiceLabels};
use crate::registry::Registry;
use crate::registry::keeper::Keeper;

/// How long unregistering may take.
const FAREWELL: Duration = Duration::from_secs(3);

/// What an endpoint registers.
pub(super) struct Registration {
    /// Its name; the registry may add to it.
    pub name: String,
    /// The services that it is an endpoint of.
    pub services: Vec<String>,
    /// Its labels, for each of them.
    pub labels: BTreeMap<String, String>,
    /// What the services carry.
    pub payload: String,
    /// Where it listens.
    pub url: String,
    /// Registers the services, too.
    pub with_services: bool,
    /// How long our tokens live.
    pub token_life: Duration,
}

impl Registration {
    /// Registers it, and keeps it registered.
    pub fn keep(self, registry: Arc<dyn Registry>) -> Keeper {
        let labels = NetworkServiceLabels { labels: self.labels };
        let service = |name: &String| NetworkService {
            name: name.clone(),
            payload: self.payload.clone(),
            ..Default::default()
        };
        let services =
            if self.with_services { self.services.iter().map(service).collect() } else { Vec::new() };
        let endpoint = NetworkServiceEndpoint {
            name: self.name,
            network_service_labels: self.services.iter().map(|name| (name.clone(), labels.clone())).collect(),
            network_service_names: self.services,
            url: self.url,
            ..Default::default()
        };
        Keeper::start_for(self.token_life, registry, services, endpoint)
    }
}

/// Says when we are registered; never ends.
pub(super) async fn announce(registered: &Keeper, process: &Process) {
    process.admin.wait("its registration");
    let endpoint = registered.registered().await;
    process.admin.ready("its registration");
    tracing::info!(name = endpoint.name, services = ?endpoint.network_service_names, "registered");
    std::future::pending().await
}

/// Nobody finds us any more.
pub(super) async fn farewell(registered: Keeper) {
    match tokio::time::timeout(FAREWELL, registered.unregister()).await {
        Ok(Ok(())) => {}
        Ok(Err(status)) => {
            tracing::warn!(error = %status.message(), "not unregistered; the registration expires")
        }
        Err(_) => tracing::warn!("not unregistered within {FAREWELL:?}; the registration expires"),
    }
}
