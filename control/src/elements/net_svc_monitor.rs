//! `netsvcmonitor`: connections whose endpoint does not suit a network service any more.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures::StreamExt;
use tonic::Status;

use super::lookup;
use crate::api::connection::Connection;
use crate::api::labels::Labels;
use crate::api::matching;
use crate::api::networkservice::NetworkServiceRequest;
use crate::api::registry::{Match, NetworkService};
use crate::chain::{Call, ChainHandle, Element, Next};
use crate::registry::{Registry, RegistryCall};

/// How long a watch stays that no connection needs.
const IDLE: Duration = Duration::from_secs(30);
/// The pauses between attempts to watch again: doubled from the first to the last.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How long a look-up or a Close may take.
const TIME: Duration = Duration::from_secs(15);

/// Watches the network services that connections use, each by one watch; when a service's matches have changed so that an endpoint
/// does not suit any more, its connections are closed, of which their clients hear, and ask anew.
pub struct NetSvcMonitor {
    shared: Arc<Shared>,
}

struct Shared {
    registry: Arc<dyn Registry>,
    chain: ChainHandle,
    /// Connections by service, then by id.
    services: Mutex<HashMap<String, HashMap<String, Used>>>,
}

#[derive(Clone)]
struct Used {
    labels: Labels,
    endpoint: String,
    revision: Option<u64>,
}

impl NetSvcMonitor {
    /// Watches in `registry`, closes by way of `chain`.
    pub fn new(registry: Arc<dyn Registry>, chain: ChainHandle) -> Self {
        Self { shared: Arc::new(Shared { registry, chain, services: Mutex::default() }) }
    }

    fn add(&self, id: String, connection: &Connection, revision: Option<u64>) {
        let used = Used {
            labels: connection.labels.clone(),
            endpoint: connection.network_service_endpoint_name.clone(),
            revision,
        };
        let mut services = self.shared.lock();
        if let Some(known) = services.get_mut(&connection.network_service) {
            known.insert(id, used);
            return;
        }
        let service = connection.network_service.clone();
        services.insert(service.clone(), [(id, used)].into());
        tokio::spawn(watch(Arc::downgrade(&self.shared), service));
    }
}

#[async_trait]
impl Element for NetSvcMonitor {
    async fn request(
        &self,
        call: &mut Call,
        request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        let id = request.connection.as_ref().map(|connection| connection.id.clone()).unwrap_or_default();
        let connection = next.request(call, request).await?;
        self.add(id, &connection, call.revision);
        Ok(connection)
    }

    async fn close(&self, call: &mut Call, connection: Connection, next: Next<'_>) -> Result<(), Status> {
        if let Some(known) = self.shared.lock().get_mut(&connection.network_service) {
            known.remove(&connection.id);
        }
        next.close(call, connection).await
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, HashMap<String, Used>>> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets a service that no connection uses; false if one does.
    fn end_if_idle(&self, service: &str) -> bool {
        let mut services = self.lock();
        let idle = services.get(service).is_none_or(HashMap::is_empty);
        if idle {
            services.remove(service);
        }
        idle
    }

    /// Closes the connections of a service whose endpoints do not suit.
    async fn check(&self, service: &NetworkService) {
        let used = self.lock().get(&service.name).cloned().unwrap_or_default();
        let mut by_endpoint: HashMap<String, Vec<(String, Used)>> = HashMap::new();
        for (id, one) in used {
            by_endpoint.entry(one.endpoint.clone()).or_default().push((id, one));
        }
        for (endpoint, connections) in by_endpoint {
            // An endpoint that is gone is for others to notice.
            let Ok(found) = lookup::endpoint(&*self.registry, &endpoint, TIME).await else { continue };
            if matching::has_expired(&found.endpoint, SystemTime::now()) {
                continue;
            }
            let endpoints = [found.endpoint];
            for (id, one) in connections {
                if matching::select(&one.labels, service, &endpoints).is_empty() {
                    self.close(id, &endpoint, &service.name, one.revision);
                }
            }
        }
    }

    fn close(&self, id: String, endpoint: &str, service: &str, revision: Option<u64>) {
        let Some(chain) = self.chain.upgrade() else { return };
        tracing::info!(segment = %id, endpoint, service, "the service has changed, the endpoint does not match: closing");
        tokio::spawn(async move {
            let mut call = Call::internal("its network service has changed", TIME);
            call.revision = revision;
            if let Err(status) = chain.close(&mut call, Connection { id, ..Default::default() }).await {
                tracing::warn!(%status, "closing a connection whose network service has changed");
            }
        });
    }
}

async fn watch(shared: Weak<Shared>, service: String) {
    let mut pause = PAUSES.0;
    let mut seen: Option<Vec<Match>> = None;
    loop {
        match hear(&shared, &service, &mut seen).await {
            Heard::Enough => return,
            Heard::Something => pause = PAUSES.0,
            Heard::Nothing => pause = (pause * 2).min(PAUSES.1),
        }
        tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
    }
}

enum Heard {
    /// Nobody needs to hear more.
    Enough,
    Something,
    Nothing,
}

/// Hears of a service until the watch breaks.
async fn hear(shared: &Weak<Shared>, service: &str, seen: &mut Option<Vec<Match>>) -> Heard {
    let Some(strong) = shared.upgrade() else { return Heard::Enough };
    if strong.end_if_idle(service) {
        return Heard::Enough;
    }
    let query = NetworkService { name: service.to_owned(), ..Default::default() };
    let mut call = RegistryCall::internal("watching a service", TIME);
    let registry = Arc::clone(&strong.registry);
    drop(strong);
    let Ok(mut events) = registry.find_services(&mut call, query, true).await else { return Heard::Nothing };
    let mut heard = Heard::Nothing;
    loop {
        let next = tokio::time::timeout(IDLE, events.next()).await;
        let Some(strong) = shared.upgrade() else { return Heard::Enough };
        match next {
            Err(_) if strong.end_if_idle(service) => return Heard::Enough,
            Err(_) => {}
            Ok(Some(Ok(event))) => {
                heard = Heard::Something;
                let changed = seen.as_ref() != Some(&event.service.matches);
                if event.service.name == service && !event.deleted && changed {
                    *seen = Some(event.service.matches.clone());
                    strong.check(&event.service).await;
                }
            }
            Ok(Some(Err(_)) | None) => return heard,
        }
    }
}
