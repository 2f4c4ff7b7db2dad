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
use crate::api::registry::NetworkService;
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
    services: Mutex<HashMap<String, Service>>,
}

/// A service that connections use.
#[derive(Default)]
struct Service {
    /// By id.
    connections: HashMap<String, Used>,
    /// As the watch has seen it last.
    seen: Option<Arc<NetworkService>>,
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
        let name = &connection.network_service;
        let mut services = self.shared.lock();
        let Some(service) = services.get_mut(name) else {
            let service = Service { connections: [(id, used)].into(), seen: None };
            services.insert(name.clone(), service);
            tokio::spawn(watch(Arc::downgrade(&self.shared), name.clone()));
            return;
        };
        let before = service.connections.insert(id.clone(), used.clone());
        let known = before.is_some_and(|before| before.chose_alike(&used));
        // Its endpoint may have been chosen by what the service was before the watch saw the last change.
        if let Some(seen) = service.seen.clone().filter(|seen| !known && !seen.matches.is_empty()) {
            drop(services);
            let shared = Arc::clone(&self.shared);
            tokio::spawn(async move { shared.check(&seen, [(id, used)].into()).await });
        }
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
        if let Some(service) = self.shared.lock().get_mut(&connection.network_service) {
            service.connections.remove(&connection.id);
        }
        next.close(call, connection).await
    }
}

impl Used {
    /// True if what was chosen, and for whom, is the same.
    fn chose_alike(&self, other: &Self) -> bool {
        (&self.labels, &self.endpoint) == (&other.labels, &other.endpoint)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Service>> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets a service that no connection uses; false if one does.
    fn end_if_idle(&self, service: &str) -> bool {
        let mut services = self.lock();
        let idle = services.get(service).is_none_or(|service| service.connections.is_empty());
        if idle {
            services.remove(service);
        }
        idle
    }

    /// Notes what the watch has seen. Returns the connections that it may concern; none if nothing has changed.
    fn see(&self, service: &Arc<NetworkService>) -> HashMap<String, Used> {
        let mut services = self.lock();
        let Some(known) = services.get_mut(&service.name) else { return HashMap::new() };
        let before = known.seen.replace(Arc::clone(service));
        let changed = before.is_none_or(|before| before.matches != service.matches);
        if changed { known.connections.clone() } else { HashMap::new() }
    }

    /// Closes those of a service's connections whose endpoints do not suit.
    async fn check(&self, service: &NetworkService, used: HashMap<String, Used>) {
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
    loop {
        match hear(&shared, &service).await {
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
async fn hear(shared: &Weak<Shared>, service: &str) -> Heard {
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
                if event.service.name == service && !event.deleted {
                    let concerned = strong.see(&event.service);
                    strong.check(&event.service, concerned).await;
                }
            }
            Ok(Some(Err(_)) | None) => return heard,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::registry::{Destination, Match, NetworkServiceEndpoint, NetworkServiceLabels};
    use crate::chain::Chain;
    use crate::chain::testing::{Probe, call_by, connection, request};
    use crate::registry::memory::{Settings, Store};

    async fn registry() -> Arc<Store> {
        let store = Arc::new(Store::new(Settings::default()));
        let mut call = RegistryCall::internal("test", TIME);
        let app = |app: &str| [("app".to_owned(), app.to_owned())].into();
        let routes = vec![Destination { destination_selector: app("new"), weight: 0 }];
        let matches = vec![Match { routes, ..Default::default() }];
        let service = NetworkService { name: "s".into(), matches, ..Default::default() };
        store.register_service(&mut call, service).await.unwrap();
        for name in ["old", "new"] {
            let endpoint = NetworkServiceEndpoint {
                name: name.into(),
                url: "tcp://127.0.0.1:1".into(),
                network_service_names: vec!["s".into()],
                network_service_labels: [("s".into(), NetworkServiceLabels { labels: app(name) })].into(),
                ..Default::default()
            };
            store.register_endpoint(&mut call, endpoint).await.unwrap();
        }
        store
    }

    async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
        let held = async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), held).await.expect(what);
    }

    #[tokio::test]
    async fn what_was_chosen_by_an_older_service_is_closed_though_its_change_was_seen_before() {
        let (probe, mut shared) = (Arc::<Probe>::default(), None);
        let store = registry().await;
        let chain = Chain::new("nsmgr", |handle| {
            let monitor = NetSvcMonitor::new(store, handle);
            shared = Some(Arc::clone(&monitor.shared));
            vec![Arc::new(Arc::clone(&probe)), Arc::new(monitor)]
        });
        let shared = shared.unwrap();
        let ask = |id: &str, endpoint: &str| {
            let network_service_endpoint_name = endpoint.to_owned();
            let mine = connection(&["nsc/n", &format!("nsmgr/{id}")]);
            let chain = Arc::clone(&chain);
            async move {
                let mine = Connection { network_service_endpoint_name, ..mine };
                chain.request(&mut call_by("nsc"), request(mine)).await.unwrap();
            }
        };
        ask("a", "new").await;
        eventually("the watch has seen the service", || {
            shared.lock().get("s").is_some_and(|service| service.seen.is_some())
        })
        .await;
        ask("b", "new").await;
        ask("c", "old").await;
        eventually("the late one is closed", || probe.counts().1 == 1).await;
        assert_eq!(probe.closes.lock().unwrap()[0].id, "c", "and no other");
        let left = shared.lock().get("s").map_or(0, |service| service.connections.len());
        assert!(left >= 2, "{left}");
    }
}
