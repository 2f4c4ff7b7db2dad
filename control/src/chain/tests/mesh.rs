//! The hops of a mesh, each with its own SVID, socket and pool.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::{Request, Status};

use crate::api::connection::monitor_connection_client::MonitorConnectionClient;
use crate::api::connection::{
    Connection, ConnectionEvent, Mechanism, MonitorScopeSelector, Path, PathSegment, State as ConnectionState,
};
use crate::api::networkservice::NetworkServiceRequest;
use crate::api::networkservice::network_service_client::NetworkServiceClient;
use crate::api::registry::{NetworkService, NetworkServiceEndpoint, NetworkServiceLabels};
use crate::chain::service::Service;
use crate::chain::testing::Probe;
use crate::chain::{Call, Chain, ChainHandle, Element, Next};
use crate::elements::monitor::Strictness;
use crate::elements::{
    Binding, Connect, Discover, DiscoverForwarder, Follow, Hub, NetSvcMonitor, RecvFd, RoundRobin, SendFd,
    Standard,
};
use crate::identity::issuer::Authority;
use crate::identity::policy::Policies;
use crate::identity::{Bundles, Identity, TokenSource, TrustDomain};
use crate::registry::memory::{Settings, Store};
use crate::registry::remote::Remote;
use crate::registry::{Registry, RegistryCall};
use crate::transport::{Dialling, Limits, Pool, Server, Target};

pub(super) const TOKEN_LIFE: Duration = Duration::from_secs(600);
/// The manager's public URL: forwarders are registered by way of it.
pub(super) const MANAGER: &str = "nsmgr-1";

pub(super) struct Mesh {
    pub authority: Arc<Authority>,
    pub registry: Arc<dyn Registry>,
    /// Other trust domains that are believed.
    others: Bundles,
    folder: tempfile::TempDir,
}

/// A role that serves until it is dropped.
pub(super) struct Hop {
    pub chain: Arc<Chain>,
    pub hub: Arc<Hub>,
    pub probe: Arc<Probe>,
    pub target: Target,
    pub follow: Option<Arc<Follow>>,
    shutdown: CancellationToken,
}

impl Drop for Hop {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Mesh {
    pub(super) fn new() -> Self {
        let authority = Authority::new(TrustDomain::new("example.org").unwrap()).unwrap();
        Self::of(Arc::new(authority), Bundles::new())
    }

    /// Of this issuer, whose members believe `others`, too.
    pub(super) fn of(authority: Arc<Authority>, others: Bundles) -> Self {
        Self {
            authority,
            registry: Arc::new(Store::new(Settings::default())),
            others,
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// Another mesh with the same issuer.
    pub(super) fn beside(&self) -> Self {
        Self::of(Arc::clone(&self.authority), self.others.clone())
    }

    /// Hops that find and register by way of a manager's socket.
    pub(super) fn behind(mut self, manager: &Target) -> Self {
        let pool = self.pool(&self.identity("forwarder"), TOKEN_LIFE);
        self.registry = Arc::new(Remote::new(pool, manager.clone()));
        self
    }

    pub(super) fn identity(&self, name: &str) -> Identity {
        let mut svid = self.authority.issue(&format!("/{name}"), Duration::from_secs(86_400)).unwrap();
        svid.bundles.extend(self.others.clone());
        Identity::fixed(svid)
    }

    pub(super) fn pool(&self, identity: &Identity, life: Duration) -> Arc<Pool> {
        let dialling = Dialling { timeout: Duration::from_secs(5), ..Dialling::default() };
        Arc::new(Pool::new(identity.clone(), TokenSource::new(identity.clone(), life), dialling))
    }

    /// Starts a role whose own elements are what `rest` makes of its pool, its hub and its chain.
    async fn start(
        &self,
        name: &str,
        id: &str,
        rest: impl FnOnce(&Arc<Pool>, &Arc<Hub>, &ChainHandle) -> (Option<Arc<Follow>>, Vec<Arc<dyn Element>>),
    ) -> Hop {
        let identity = self.identity(id);
        let pool = self.pool(&identity, TOKEN_LIFE);
        let hub = Hub::new(Strictness::Strict);
        let probe = Arc::<Probe>::default();
        let mut follow = None;
        let chain = Chain::new(name, |handle| {
            let standard = Standard {
                name: name.into(),
                tokens: TokenSource::new(identity.clone(), TOKEN_LIFE),
                policies: Arc::new(Policies::standard()),
                binding: Binding::default(),
                hub: Arc::clone(&hub),
            };
            let mut elements = standard.elements(&handle);
            elements.push(Arc::new(Arc::clone(&probe)));
            let (followed, own) = rest(&pool, &hub, &handle);
            follow = followed;
            elements.extend(own);
            elements
        });
        let target = Target::Unix(self.folder.path().join(format!("{name}.sock")));
        let server = Server::bind(std::slice::from_ref(&target), Limits::default()).await.unwrap();
        let shutdown = CancellationToken::new();
        let service = Service::new(Arc::clone(&chain), Arc::clone(&hub), identity.clone());
        let routes = service.add_to(Routes::default());
        tokio::spawn(server.serve(identity, routes, shutdown.clone()));
        Hop { chain, hub, probe, target, follow, shutdown }
    }

    pub(super) async fn manager(&self) -> Hop {
        let registry = Arc::clone(&self.registry);
        self.start(MANAGER, "nsmgr", |pool, hub, chain| {
            let follow = Follow::new(MANAGER, Arc::clone(hub), Arc::clone(pool));
            let elements: Vec<Arc<dyn Element>> = vec![
                Arc::new(DiscoverForwarder::new(Arc::clone(&registry), "forwarder", "")),
                Arc::new(NetSvcMonitor::new(registry, chain.clone())),
                Arc::new(SendFd),
                Arc::new(RecvFd),
                Arc::new(Connect::new(Arc::clone(pool)).following(Arc::clone(&follow))),
            ];
            (Some(follow), elements)
        })
        .await
    }

    /// A forwarder that takes the client's first preference and offers the endpoint the same.
    pub(super) async fn forwarder(&self, name: &str) -> Hop {
        let registry = Arc::clone(&self.registry);
        let hop = self
            .start(name, "forwarder", |pool, hub, _| {
                let follow = Follow::new(name, Arc::clone(hub), Arc::clone(pool));
                let elements: Vec<Arc<dyn Element>> = vec![
                    Arc::new(SendFd),
                    Arc::new(RecvFd),
                    Arc::new(Discover::new(registry)),
                    Arc::new(RoundRobin::default()),
                    Arc::new(Relay),
                    Arc::new(Connect::new(Arc::clone(pool)).following(Arc::clone(&follow))),
                ];
                (Some(follow), elements)
            })
            .await;
        self.register_endpoint(name, "forwarder", &[("p2p", "true")], &hop.target).await;
        hop
    }

    /// An endpoint of `service` that accepts everything, and runs `own` before.
    pub(super) async fn endpoint_with(
        &self,
        name: &str,
        service: &str,
        labels: &[(&str, &str)],
        own: Vec<Arc<dyn Element>>,
    ) -> Hop {
        let hop = self
            .start(name, "nse", |_, _, _| {
                let mut elements: Vec<Arc<dyn Element>> = vec![Arc::new(SendFd), Arc::new(RecvFd)];
                elements.extend(own);
                elements.push(Arc::new(Accept));
                (None, elements)
            })
            .await;
        self.register_endpoint(name, service, labels, &hop.target).await;
        hop
    }

    pub(super) async fn endpoint(&self, name: &str, service: &str, labels: &[(&str, &str)]) -> Hop {
        self.endpoint_with(name, service, labels, Vec::new()).await
    }

    pub(super) async fn register_service(&self, service: NetworkService) {
        let mut call = RegistryCall::internal("test", Duration::from_secs(5));
        self.registry.register_service(&mut call, service).await.unwrap();
    }

    pub(super) async fn register_endpoint(
        &self,
        name: &str,
        service: &str,
        labels: &[(&str, &str)],
        target: &Target,
    ) {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let endpoint = NetworkServiceEndpoint {
            name: name.to_owned(),
            network_service_names: vec![service.to_owned()],
            network_service_labels: BTreeMap::from([(service.to_owned(), NetworkServiceLabels { labels })]),
            url: target.to_string(),
            ..Default::default()
        };
        let mut call = RegistryCall::internal("test", Duration::from_secs(5));
        self.registry.register_endpoint(&mut call, endpoint).await.unwrap();
    }

    pub(super) async fn unregister_endpoint(&self, name: &str) {
        let mut call = RegistryCall::internal("test", Duration::from_secs(5));
        let endpoint = NetworkServiceEndpoint { name: name.to_owned(), ..Default::default() };
        self.registry.unregister_endpoint(&mut call, endpoint).await.unwrap();
    }

    pub(super) fn client(&self, name: &str) -> Client {
        self.client_with(name, TOKEN_LIFE)
    }

    pub(super) fn client_with(&self, name: &str, life: Duration) -> Client {
        Client { pool: self.pool(&self.identity(name), life), name: name.to_owned() }
    }
}

/// `icmp-responder` with one manager, forwarder and endpoint.
pub(super) async fn one_of_each() -> (Mesh, Hop, Hop, Hop) {
    let mesh = Mesh::new();
    mesh.register_service(service("icmp-responder")).await;
    let manager = mesh.manager().await;
    let forwarder = mesh.forwarder("forwarder-1").await;
    let endpoint = mesh.endpoint("responder-1", "icmp-responder", &[]).await;
    (mesh, manager, forwarder, endpoint)
}

pub(super) fn service(name: &str) -> NetworkService {
    NetworkService { name: name.to_owned(), payload: "ETHERNET".to_owned(), ..Default::default() }
}

/// What a client program does: plain calls.
pub(super) struct Client {
    pub pool: Arc<Pool>,
    pub name: String,
}

impl Client {
    /// A first Request as a Go client sends it.
    pub(super) fn first(&self, i: usize, service: &str) -> Connection {
        let id = format!("{}-{i}", self.name);
        let segment = PathSegment { name: self.name.clone(), id: id.clone(), ..Default::default() };
        let path = Some(Path { index: 0, path_segments: vec![segment] });
        Connection { id, network_service: service.to_owned(), path, ..Default::default() }
    }

    pub(super) fn preference() -> Mechanism {
        let parameters = [("name".to_owned(), "nsm-1".to_owned())].into();
        Mechanism { cls: "LOCAL".into(), r#type: "KERNEL".into(), parameters }
    }

    pub(super) async fn request(&self, to: &Hop, connection: Connection) -> Result<Connection, Status> {
        self.request_at(&to.target, connection, vec![Self::preference()], Duration::from_secs(10)).await
    }

    pub(super) async fn request_with(
        &self,
        to: &Hop,
        connection: Connection,
        preferences: Vec<Mechanism>,
        time: Duration,
    ) -> Result<Connection, Status> {
        self.request_at(&to.target, connection, preferences, time).await
    }

    pub(super) async fn request_at(
        &self,
        to: &Target,
        connection: Connection,
        mechanism_preferences: Vec<Mechanism>,
        time: Duration,
    ) -> Result<Connection, Status> {
        let hop = self.pool.hop(to).await?;
        let mut request =
            Request::new(NetworkServiceRequest { connection: Some(connection), mechanism_preferences });
        request.set_timeout(time);
        Ok(NetworkServiceClient::new(hop).request(request).await?.into_inner())
    }

    pub(super) async fn close(&self, to: &Hop, connection: Connection) -> Result<(), Status> {
        self.close_at(&to.target, connection).await
    }

    pub(super) async fn close_at(&self, to: &Target, connection: Connection) -> Result<(), Status> {
        let hop = self.pool.hop(to).await?;
        NetworkServiceClient::new(hop).close(connection).await.map(drop)
    }

    pub(super) async fn monitor(&self, to: &Hop, selector: MonitorScopeSelector) -> Events {
        self.monitor_at(&to.target, selector).await
    }

    pub(super) async fn monitor_at(&self, to: &Target, selector: MonitorScopeSelector) -> Events {
        let hop = self.pool.hop(to).await.unwrap();
        let events = MonitorConnectionClient::new(hop).monitor_connections(selector).await.unwrap();
        Events(events.into_inner())
    }
}

pub(super) struct Events(pub tonic::Streaming<ConnectionEvent>);

impl Events {
    pub(super) async fn next(&mut self) -> ConnectionEvent {
        let next = tokio::time::timeout(Duration::from_secs(20), self.0.message()).await;
        next.expect("an event in time").expect("a whole stream").expect("an event")
    }

    /// The next event in which some connection is in this state.
    pub(super) async fn until(&mut self, state: ConnectionState) -> ConnectionEvent {
        loop {
            let event = self.next().await;
            if event.connections.values().any(|one| one.state() == state) {
                return event;
            }
        }
    }
}

/// Takes the first preference, if none was taken before, as an endpoint does.
struct Accept;

#[async_trait]
impl Element for Accept {
    async fn request(
        &self,
        call: &mut Call,
        mut request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        let first = request.mechanism_preferences.first().cloned();
        let connection = request.connection.get_or_insert_default();
        connection.mechanism = connection.mechanism.take().or(first);
        let context = connection.context.get_or_insert_default().ip_context.get_or_insert_default();
        context.src_ip_addrs = vec!["172.16.0.1/32".into()];
        next.request(call, request).await
    }
}

/// Gives each side a mechanism of its own, as a forwarder does: the client its first preference, the endpoint none in particular.
struct Relay;

#[async_trait]
impl Element for Relay {
    async fn request(
        &self,
        call: &mut Call,
        mut request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        let chosen = request.mechanism_preferences.first().cloned();
        let connection = request.connection.get_or_insert_default();
        let clients = connection.mechanism.take().or(chosen);
        request.mechanism_preferences =
            vec![Mechanism { cls: "LOCAL".into(), r#type: "KERNEL".into(), ..Default::default() }];
        let mut connection = next.request(call, request).await?;
        connection.mechanism = clients;
        Ok(connection)
    }
}

/// Refuses Requests as long as there is something to refuse.
#[derive(Default)]
pub(super) struct Refuse(pub AtomicUsize);

#[async_trait]
impl Element for Refuse {
    async fn request(
        &self,
        call: &mut Call,
        request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        if self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
            return Err(Status::unavailable("refused on purpose"));
        }
        next.request(call, request).await
    }
}

/// Waits for a condition that is about to come true.
pub(super) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}
