//! The registry calls of NSM before v1 (v0.2), over the same store: what is registered by the old calls is found by the new ones, and
//! the other way round.
//!
//! Both APIs call their service `registry.NetworkServiceRegistry`, with other methods: `Beside` tells them apart by these.
//! The old calls carry neither tokens nor a path: a registration is its caller's, whom mutual TLS names.
//!
//! | old | here |
//! |---|---|
//! | RegisterNSE | registers the service, unless it is there as it is, and the endpoint. Refused (ALREADY_EXISTS) if the name is another's, or endpoints offer a service of this name that is defined otherwise |
//! | BulkRegisterNSE | each registration that is sent renews its endpoint, or adds it, and is answered with its new end |
//! | RemoveNSE | removes the endpoint; NOT_FOUND if there is none |
//! | FindNetworkService | the service and all who offer it, with their managers; NOT_FOUND if nobody does |
//!
//! Facts are of networkservicemesh/networkservicemesh: controlplane/api/registry, applications/nsmrs.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use futures::future::BoxFuture;
use futures::{FutureExt, Stream, StreamExt, stream};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status, Streaming};
use vwire_proto::nsm::registry as v1;
use vwire_proto::nsm02 as old;
use vwire_proto::nsm02::network_service_discovery_server::{
    NetworkServiceDiscovery, NetworkServiceDiscoveryServer,
};
use vwire_proto::nsm02::network_service_registry_server::{
    NetworkServiceRegistry, NetworkServiceRegistryServer,
};

use super::{Owner, Registry, RegistryCall, find};
use crate::chain::Origin;
use crate::transport;

mod map;

/// Where the old calls come in.
#[derive(Clone)]
pub struct Old {
    registry: Arc<dyn Registry>,
    shutdown: CancellationToken,
}

impl Old {
    /// The old calls over `registry`, which asks for no tokens: they have none. Streams end with `shutdown`.
    pub fn new(registry: Arc<dyn Registry>, shutdown: CancellationToken) -> Self {
        Self { registry, shutdown }
    }

    /// Adds discovery; the registrations go `Beside` those of v1.
    pub(super) fn add_discovery(&self, routes: Routes) -> Routes {
        routes.add_service(NetworkServiceDiscoveryServer::new(self.clone()))
    }

    async fn register(
        &self,
        origin: &Origin,
        registration: old::NseRegistration,
    ) -> Result<old::NseRegistration, Status> {
        let (service, endpoint) = map::registration(registration)?;
        let who = Caller::of(origin);
        self.put_service(&who, service.clone()).await?;
        let endpoint = v1::NetworkServiceEndpoint { path_ids: who.path_ids(), ..endpoint };
        let name = endpoint.name.clone();
        let registered = self.registry.register_endpoint(&mut who.call(), endpoint).await;
        let registered = registered
            .map_err(|status| taken(status, &format!("network_service_endpoint.name: `{name}`")))?;
        Ok(map::answer(&service, &registered))
    }

    /// Registers a service unless it is there as it is.
    async fn put_service(&self, who: &Caller, service: v1::NetworkService) -> Result<(), Status> {
        let registry = &*self.registry;
        let there = find::service(registry, &mut looking(), &service.name).await;
        let there = match there {
            Ok(there) => there,
            Err(status) if status.code() == Code::NotFound => {
                let service = v1::NetworkService { path_ids: who.path_ids(), ..service };
                return registry.register_service(&mut who.call(), service).await.map(drop);
            }
            Err(status) => return Err(status),
        };
        if map::same(&there, &service) {
            return Ok(());
        }
        let query = v1::NetworkServiceEndpoint {
            network_service_names: vec![service.name.clone()],
            ..Default::default()
        };
        let offered = !find::endpoints(registry, &mut looking(), query).await?.is_empty();
        if offered && there.path_ids.first() != who.path_ids().first() {
            return Err(Status::already_exists(format!(
                "network_service: `{}` is offered already, with another payload or other matches",
                service.name
            )));
        }
        if !offered {
            // Nobody's any more: old services had no life of their own.
            registry
                .unregister_service(
                    &mut looking(),
                    v1::NetworkService { name: service.name.clone(), ..Default::default() },
                )
                .await?;
        }
        let service = v1::NetworkService { path_ids: who.path_ids(), ..service };
        registry.register_service(&mut who.call(), service).await.map(drop)
    }
}

/// Who calls.
struct Caller {
    origin: Origin,
    owner: Option<Owner>,
}

impl Caller {
    fn of(origin: &Origin) -> Self {
        let id = match origin {
            Origin::Peer { peer, .. } => peer.id.as_ref().map(ToString::to_string),
            Origin::Internal(_) => None,
        };
        let owner = id.map(|id| {
            let id: Arc<str> = id.into();
            Owner { identity: Arc::clone(&id), asserter: id }
        });
        Self { origin: origin.clone(), owner }
    }

    fn path_ids(&self) -> Vec<String> {
        self.owner.iter().map(|owner| owner.identity.to_string()).collect()
    }

    fn call(&self) -> RegistryCall {
        RegistryCall {
            owner: self.owner.clone(),
            ..RegistryCall::new(self.origin.clone(), transport::DEFAULT_TIME)
        }
    }
}

fn looking() -> RegistryCall {
    RegistryCall::internal("v0.2", transport::DEFAULT_TIME)
}

/// The old registry's word for a name that is another's.
fn taken(status: Status, what: &str) -> Status {
    match status.code() {
        Code::PermissionDenied if status.message().contains("belongs to") => {
            Status::already_exists(format!("{what} is registered by another identity"))
        }
        _ => status,
    }
}

#[async_trait]
impl NetworkServiceRegistry for Old {
    async fn register_nse(
        &self,
        request: Request<old::NseRegistration>,
    ) -> Result<Response<old::NseRegistration>, Status> {
        let origin = transport::origin(&request)?;
        self.register(&origin, request.into_inner()).await.map(Response::new)
    }

    type BulkRegisterNSEStream = Pin<Box<dyn Stream<Item = Result<old::NseRegistration, Status>> + Send>>;

    async fn bulk_register_nse(
        &self,
        request: Request<Streaming<old::NseRegistration>>,
    ) -> Result<Response<Self::BulkRegisterNSEStream>, Status> {
        let origin = transport::origin(&request)?;
        let server = self.clone();
        // One that is refused ends the stream, with the reason.
        let answers = stream::try_unfold(
            (server, origin, request.into_inner()),
            |(server, origin, mut sent)| async move {
                match sent.message().await? {
                    Some(registration) => {
                        let answer = server.register(&origin, registration).await?;
                        Ok(Some((answer, (server, origin, sent))))
                    }
                    None => Ok(None),
                }
            },
        );
        Ok(Response::new(answers.take_until(self.shutdown.clone().cancelled_owned()).boxed()))
    }

    async fn remove_nse(&self, request: Request<old::RemoveNseRequest>) -> Result<Response<()>, Status> {
        let origin = transport::origin(&request)?;
        let name = request.into_inner().network_service_endpoint_name;
        find::endpoint(&*self.registry, &mut looking(), &name).await?;
        let endpoint = v1::NetworkServiceEndpoint { name, ..Default::default() };
        self.registry.unregister_endpoint(&mut Caller::of(&origin).call(), endpoint).await?;
        Ok(Response::new(()))
    }
}

#[async_trait]
impl NetworkServiceDiscovery for Old {
    async fn find_network_service(
        &self,
        request: Request<old::FindNetworkServiceRequest>,
    ) -> Result<Response<old::FindNetworkServiceResponse>, Status> {
        let name = request.into_inner().network_service_name;
        let query =
            v1::NetworkServiceEndpoint { network_service_names: vec![name.clone()], ..Default::default() };
        let endpoints = find::endpoints(&*self.registry, &mut looking(), query).await?;
        if endpoints.is_empty() {
            return Err(Status::not_found(format!("network_service_name: nobody offers `{name}`")));
        }
        let service = find::service(&*self.registry, &mut looking(), &name).await?;
        let endpoints = endpoints.iter().map(|event| &*event.endpoint);
        Ok(Response::new(map::found(&service, endpoints)))
    }
}

/// The new registry's service with the old one's methods.
#[derive(Clone)]
pub(super) struct Beside<S> {
    new: S,
    old: NetworkServiceRegistryServer<Old>,
}

impl<S> Beside<S> {
    pub fn new(new: S, old: Old) -> Self {
        Self { new, old: NetworkServiceRegistryServer::new(old) }
    }
}

impl<S: NamedService> NamedService for Beside<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> tower::Service<http::Request<Body>> for Beside<S>
where
    S: tower::Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.new.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match request.uri().path().rsplit('/').next() {
            Some("RegisterNSE" | "BulkRegisterNSE" | "RemoveNSE") => {
                tower::Service::<http::Request<Body>>::call(&mut self.old, request).boxed()
            }
            _ => self.new.call(request).boxed(),
        }
    }
}
