//! Registries behind real mutual TLS, and those who call them.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use vwire_proto::nsm::registry::{NetworkService, NetworkServiceEndpoint};

use crate::identity::issuer::Authority;
use crate::identity::policy::Policies;
use crate::identity::{Identity, TokenSource, TrustDomain};
use crate::registry::authorize::{Authorize, Strict, TokenRules};
use crate::registry::hops::Hops;
use crate::registry::memory::{Settings, Store};
use crate::registry::nsmgr::{self, Nsmgr};
use crate::registry::remote::Remote;
use crate::registry::{EndpointEvent, Found, Registry, RegistryCall, server};
use crate::transport::{Dialling, Limits, Pool, Server, Target};

pub const TIME: Duration = Duration::from_secs(10);
const DAY: Duration = Duration::from_secs(86400);

/// A trust domain.
pub struct Mesh {
    authority: Authority,
    pub token_life: Duration,
}

/// Somebody with an identity.
pub struct Member {
    pub identity: Identity,
    pub tokens: TokenSource,
    pub pool: Arc<Pool>,
}

/// A registry that is served until this is dropped.
pub struct Served {
    pub tcp: Target,
    pub unix: Target,
    shutdown: CancellationToken,
    _folder: TempDir,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Mesh {
    pub fn new() -> Self {
        let domain = TrustDomain::new("example.org").unwrap();
        Self { authority: Authority::new(domain).unwrap(), token_life: Duration::from_secs(600) }
    }

    pub fn member(&self, name: &str) -> Member {
        let identity = Identity::fixed(self.authority.issue(&format!("/{name}"), DAY).unwrap());
        let tokens = TokenSource::new(identity.clone(), self.token_life);
        let dialling = Dialling { timeout: TIME, ..Dialling::default() };
        let pool = Arc::new(Pool::new(identity.clone(), tokens.clone(), dialling));
        Member { identity, tokens, pool }
    }

    /// A registry in memory with default policies.
    pub async fn memory(&self) -> Served {
        self.over(Store::new(Settings::default())).await
    }

    /// The same over a store that is there.
    pub async fn over(&self, store: impl Registry) -> Served {
        let member = self.member("registry");
        let chain = member.chain(store);
        member.serve(chain).await
    }

    /// A manager in front of a registry, or on its own.
    pub async fn nsmgr(&self, name: &str, registry: Option<&Target>) -> Served {
        let member = self.member(name);
        let rules = rules();
        let settings = nsmgr::Settings {
            registry: registry.cloned(),
            public_url: format!("tcp://{name}:5001"),
            edit: Some(Arc::new(|endpoint| {
                assert_ne!(endpoint.name, "panic", "as the test asks");
                for labels in endpoint.network_service_labels.values_mut() {
                    labels.labels.insert("nodeName".into(), "node-1".into());
                }
            })),
            server_rules: rules.clone(),
            client_rules: rules,
            strict: Strict::default(),
            store: Default::default(),
        };
        let manager = Nsmgr::new(settings, Arc::clone(&member.pool), member.tokens.clone());
        member.serve(manager.served).await
    }
}

impl Member {
    /// What a registry role serves, over a store.
    pub fn chain(&self, store: impl Registry) -> Arc<dyn Registry> {
        Arc::new(Hops::new(Authorize::new(store, rules(), Strict::default()), self.tokens.clone()))
    }

    /// Serves on TCP and a unix socket.
    pub async fn serve(&self, registry: Arc<dyn Registry>) -> Served {
        let folder = tempfile::tempdir().unwrap();
        let unix = Target::Unix(folder.path().join("registry.sock"));
        self.serve_at(registry, Target::parse("tcp://127.0.0.1:0").unwrap(), unix, folder).await
    }

    pub async fn serve_at(
        &self,
        registry: Arc<dyn Registry>,
        tcp: Target,
        unix: Target,
        folder: TempDir,
    ) -> Served {
        let server = Server::bind(&[tcp, unix], Limits::default()).await.unwrap();
        let targets = server.targets();
        let shutdown = CancellationToken::new();
        let routes = server::add_to(Routes::default(), &registry, &shutdown);
        tokio::spawn(server.serve(self.identity.clone(), routes, shutdown.clone()));
        let [tcp, unix] = targets.try_into().unwrap();
        Served { tcp, unix, shutdown, _folder: folder }
    }

    /// The registry at a target, with the default policies of a client.
    pub fn client(&self, target: &Target) -> Remote {
        let rules = rules();
        Remote::new(Arc::clone(&self.pool), target.clone()).with_rules(rules)
    }
}

pub fn call() -> RegistryCall {
    RegistryCall::internal("test", TIME)
}

pub fn endpoint(name: &str, service: &str) -> NetworkServiceEndpoint {
    NetworkServiceEndpoint {
        name: name.into(),
        network_service_names: vec![service.into()],
        network_service_labels: [(service.to_owned(), Default::default())].into(),
        url: "tcp://10.0.0.1:5001".into(),
        ..Default::default()
    }
}

pub fn service(name: &str) -> NetworkService {
    NetworkService { name: name.into(), ..Default::default() }
}

pub fn named(name: &str) -> NetworkServiceEndpoint {
    NetworkServiceEndpoint { name: name.into(), ..Default::default() }
}

pub fn of_service(service: &str) -> NetworkServiceEndpoint {
    NetworkServiceEndpoint { network_service_names: vec![service.into()], ..Default::default() }
}

pub fn id(name: &str) -> String {
    format!("spiffe://example.org/{name}")
}

/// The next event of a watch: the endpoint's name, and whether it went.
pub async fn next(watch: &mut Found<EndpointEvent>) -> (String, bool) {
    let event = next_event(watch).await;
    (event.endpoint.name.clone(), event.deleted)
}

pub async fn next_event(watch: &mut Found<EndpointEvent>) -> EndpointEvent {
    tokio::time::timeout(TIME, watch.next()).await.expect("an event in time").expect("no end").unwrap()
}

pub async fn watch(registry: &dyn Registry, query: NetworkServiceEndpoint) -> Found<EndpointEvent> {
    registry.find_endpoints(&mut call(), query, true).await.unwrap()
}

/// Waits for a condition.
pub async fn until<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(TIME, waiting).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

pub fn rules() -> Option<Arc<dyn TokenRules>> {
    Some(Arc::new(Policies::standard()))
}
