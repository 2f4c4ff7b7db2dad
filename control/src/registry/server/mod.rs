//! A registry as both gRPC services.

use std::convert::Infallible;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use futures::future::BoxFuture;
use futures::{FutureExt, Stream, StreamExt};
use prost::Message;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::metadata::{AsciiMetadataValue, MetadataMap};
use tonic::server::{Grpc, NamedService, ServerStreamingService};
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use vwire_proto::nsm::registry as pb;
use vwire_proto::nsm::registry::network_service_endpoint_registry_server::{
    NetworkServiceEndpointRegistry, NetworkServiceEndpointRegistryServer,
};
use vwire_proto::nsm::registry::network_service_registry_server::{
    NetworkServiceRegistry, NetworkServiceRegistryServer,
};

use super::path::{self, RegistryPath};
use super::v02::{Beside, Old};
use super::{EndpointEvent, Found, Registry, RegistryCall, ServiceEvent};
use crate::transport;

mod codec;

use codec::FindCodec;

/// Adds both services of `registry` to what a role serves. Watches end when `shutdown` is cancelled.
pub fn add_to(routes: Routes, registry: &Arc<dyn Registry>, shutdown: &CancellationToken) -> Routes {
    let server = Server { registry: Arc::clone(registry), shutdown: shutdown.clone() };
    let services = NetworkServiceRegistryServer::new(server.clone());
    let endpoints = NetworkServiceEndpointRegistryServer::new(server.clone());
    routes
        .add_service(Finding { server: server.clone(), kind: OfServices, rest: services })
        .add_service(Finding { server, kind: OfEndpoints, rest: endpoints })
}

/// As [`add_to`], with the registry calls before v1 beside today's.
pub fn add_to_with_old(
    routes: Routes,
    registry: &Arc<dyn Registry>,
    old: &Old,
    shutdown: &CancellationToken,
) -> Routes {
    let server = Server { registry: Arc::clone(registry), shutdown: shutdown.clone() };
    let services = NetworkServiceRegistryServer::new(server.clone());
    let endpoints = NetworkServiceEndpointRegistryServer::new(server.clone());
    let services = Finding { server: server.clone(), kind: OfServices, rest: services };
    old.add_discovery(routes).add_service(Beside::new(services, old.clone())).add_service(Finding {
        server,
        kind: OfEndpoints,
        rest: endpoints,
    })
}

#[derive(Clone)]
struct Server {
    registry: Arc<dyn Registry>,
    shutdown: CancellationToken,
}

/// The call that a request makes, and what it carries.
fn open<T>(request: Request<T>) -> Result<(RegistryCall, T), Status> {
    let origin = transport::origin(&request)?;
    let time = transport::time_left(&request);
    let path = request.metadata().get_all(path::KEY).iter().next_back();
    let path = path.map(|value| RegistryPath::parse(value.as_bytes())).transpose()?;
    Ok((RegistryCall { path, ..RegistryCall::new(origin, time) }, request.into_inner()))
}

/// The answer, with the path in its headers if the request had one.
fn answer<T>(call: RegistryCall, result: T) -> Result<Response<T>, Status> {
    let mut response = Response::new(result);
    if let Some(path) = call.path {
        put_path(response.metadata_mut(), &path)?;
    }
    Ok(response)
}

/// Puts a path into metadata.
pub(super) fn put_path(metadata: &mut MetadataMap, path: &RegistryPath) -> Result<(), Status> {
    let value = AsciiMetadataValue::try_from(path.to_json()).map_err(|_| {
        Status::invalid_argument(format!("metadata `{}`: a token is not plain text", path::KEY))
    })?;
    metadata.insert(path::KEY, value);
    Ok(())
}

/// Runs a call to its end or its deadline. A panic is the caller's INTERNAL and nobody else's trouble.
async fn guard<T>(
    deadline: std::time::Instant,
    run: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    match tokio::time::timeout_at(deadline.into(), AssertUnwindSafe(run).catch_unwind()).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(Status::internal("the registry failed on this call; its log says where")),
        Err(_) => Err(Status::deadline_exceeded("the registry had no answer within the call's time")),
    }
}

#[async_trait]
impl NetworkServiceRegistry for Server {
    async fn register(
        &self,
        request: Request<pb::NetworkService>,
    ) -> Result<Response<pb::NetworkService>, Status> {
        let (mut call, service) = open(request)?;
        let registered = guard(call.deadline, self.registry.register_service(&mut call, service)).await?;
        answer(call, registered)
    }

    type FindStream =
        std::pin::Pin<Box<dyn Stream<Item = Result<pb::NetworkServiceResponse, Status>> + Send>>;

    async fn find(
        &self,
        request: Request<pb::NetworkServiceQuery>,
    ) -> Result<Response<Self::FindStream>, Status> {
        let found = OfServices::find(self.clone(), request).await?;
        let response = |event: ServiceEvent| pb::NetworkServiceResponse {
            network_service: Some(Arc::unwrap_or_clone(event.service)),
            deleted: event.deleted,
        };
        Ok(found.map(|stream| stream.map(move |event| event.map(response)).boxed()))
    }

    async fn unregister(&self, request: Request<pb::NetworkService>) -> Result<Response<()>, Status> {
        let (mut call, service) = open(request)?;
        guard(call.deadline, self.registry.unregister_service(&mut call, service)).await?;
        answer(call, ())
    }
}

#[async_trait]
impl NetworkServiceEndpointRegistry for Server {
    async fn register(
        &self,
        request: Request<pb::NetworkServiceEndpoint>,
    ) -> Result<Response<pb::NetworkServiceEndpoint>, Status> {
        let (mut call, endpoint) = open(request)?;
        let registered = guard(call.deadline, self.registry.register_endpoint(&mut call, endpoint)).await?;
        answer(call, registered)
    }

    type FindStream =
        std::pin::Pin<Box<dyn Stream<Item = Result<pb::NetworkServiceEndpointResponse, Status>> + Send>>;

    async fn find(
        &self,
        request: Request<pb::NetworkServiceEndpointQuery>,
    ) -> Result<Response<Self::FindStream>, Status> {
        let found = OfEndpoints::find(self.clone(), request).await?;
        let response = |event: EndpointEvent| pb::NetworkServiceEndpointResponse {
            network_service_endpoint: Some(Arc::unwrap_or_clone(event.endpoint)),
            deleted: event.deleted,
        };
        Ok(found.map(|stream| stream.map(move |event| event.map(response)).boxed()))
    }

    async fn unregister(&self, request: Request<pb::NetworkServiceEndpoint>) -> Result<Response<()>, Status> {
        let (mut call, endpoint) = open(request)?;
        guard(call.deadline, self.registry.unregister_endpoint(&mut call, endpoint)).await?;
        answer(call, ())
    }
}

/// Finding things of one kind.
trait Kind: Copy + Send + Sync + 'static {
    /// The method's path.
    const FIND: &'static str;
    type Query: Message + Default + 'static;
    type Event: codec::Event;

    fn find(
        server: Server,
        request: Request<Self::Query>,
    ) -> impl Future<Output = Result<Response<Found<Self::Event>>, Status>> + Send;
}

#[derive(Clone, Copy)]
struct OfServices;

#[derive(Clone, Copy)]
struct OfEndpoints;

impl Kind for OfServices {
    const FIND: &'static str = "/registry.NetworkServiceRegistry/Find";
    type Query = pb::NetworkServiceQuery;
    type Event = ServiceEvent;

    async fn find(
        server: Server,
        request: Request<Self::Query>,
    ) -> Result<Response<Found<ServiceEvent>>, Status> {
        let (mut call, pb::NetworkServiceQuery { network_service, watch }) = open(request)?;
        let query = network_service.unwrap_or_default();
        let found = guard(call.deadline, server.registry.find_services(&mut call, query, watch)).await?;
        Ok(server.stream(found, watch))
    }
}

impl Kind for OfEndpoints {
    const FIND: &'static str = "/registry.NetworkServiceEndpointRegistry/Find";
    type Query = pb::NetworkServiceEndpointQuery;
    type Event = EndpointEvent;

    async fn find(
        server: Server,
        request: Request<Self::Query>,
    ) -> Result<Response<Found<EndpointEvent>>, Status> {
        let (mut call, pb::NetworkServiceEndpointQuery { network_service_endpoint, watch }) = open(request)?;
        let query = network_service_endpoint.unwrap_or_default();
        let found = guard(call.deadline, server.registry.find_endpoints(&mut call, query, watch)).await?;
        Ok(server.stream(found, watch))
    }
}

impl Server {
    /// A watch ends with the process, with an error: an end without one would mean that nothing changes any more.
    fn stream<E: Send + 'static>(&self, found: Found<E>, watch: bool) -> Response<Found<E>> {
        if !watch {
            return Response::new(found);
        }
        let shutdown = self.shutdown.clone();
        let end = async move {
            shutdown.cancelled().await;
            Err(Status::unavailable("this registry is shutting down"))
        };
        let until = self.shutdown.clone();
        let events = found.take_until(until.cancelled_owned()).chain(futures::stream::once(end));
        Response::new(ended_by_error(events).boxed())
    }
}

/// Ends after the first error.
fn ended_by_error<E: Send>(
    events: impl Stream<Item = Result<E, Status>> + Send,
) -> impl Stream<Item = Result<E, Status>> + Send {
    events.scan(false, |ended, event| {
        let last = std::mem::replace(ended, event.is_err());
        std::future::ready((!last).then_some(event))
    })
}

/// One of the services, with a Find that writes records as they are kept; the rest is the generated code's.
#[derive(Clone)]
struct Finding<K, S> {
    server: Server,
    #[expect(dead_code, reason = "says of which kind")]
    kind: K,
    rest: S,
}

impl<K, S: NamedService> NamedService for Finding<K, S> {
    const NAME: &'static str = S::NAME;
}

impl<K, S> tower::Service<http::Request<Body>> for Finding<K, S>
where
    K: Kind,
    S: tower::Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.rest.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if request.uri().path() != K::FIND {
            return self.rest.call(request).boxed();
        }
        let method = Find::<K>(self.server.clone(), std::marker::PhantomData);
        async move {
            let mut grpc = Grpc::new(FindCodec::<K::Query, K::Event>::default());
            Ok(grpc.server_streaming(method, request).await)
        }
        .boxed()
    }
}

struct Find<K>(Server, std::marker::PhantomData<K>);

impl<K: Kind> ServerStreamingService<K::Query> for Find<K> {
    type Response = K::Event;
    type ResponseStream = Found<K::Event>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<K::Query>) -> Self::Future {
        K::find(self.0.clone(), request).boxed()
    }
}
