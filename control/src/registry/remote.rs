//! A registry in another process.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, stream};
use tonic::{Code, Request, Response, Status};
use vwire_proto::nsm::registry as pb;
use vwire_proto::nsm::registry::network_service_endpoint_registry_client::NetworkServiceEndpointRegistryClient;
use vwire_proto::nsm::registry::network_service_registry_client::NetworkServiceRegistryClient;
use vwire_proto::nsm::registry::{NetworkService, NetworkServiceEndpoint};

use super::authorize::TokenRules;
use super::path::{self, RegistryPath};
use super::sockets::{self, INODE};
use super::{EndpointEvent, Found, Registry, RegistryCall, ServiceEvent, server};
use crate::transport::{FdLane, Hop, Pool, SharedFd, Target};

/// How long each try of a call may take, and how long to wait before the next (sdk, `pkg/registry/common/retry`).
const TRY: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(200);
/// How long a descriptor may take to come after the event that names its file. It is sent before it.
const DESCRIPTOR: Duration = Duration::from_secs(2);

/// A registry that is called over a connection kept open.
pub struct Remote {
    pool: Arc<Pool>,
    target: Target,
    rules: Option<Arc<dyn TokenRules>>,
    retries: bool,
}

impl Remote {
    /// The registry at `target`.
    pub fn new(pool: Arc<Pool>, target: Target) -> Self {
        Self { pool, target, rules: None, retries: false }
    }

    /// Checks the tokens that come back.
    pub fn with_rules(self, rules: Option<Arc<dyn TokenRules>>) -> Self {
        Self { rules, ..self }
    }

    /// Tries registrations again until the call's deadline, unless they are refused.
    pub fn with_retries(self) -> Self {
        Self { retries: true, ..self }
    }

    async fn hop(&self, deadline: Instant) -> Result<Hop, Status> {
        tokio::time::timeout_at(deadline.into(), self.pool.hop(&self.target)).await.unwrap_or_else(|_| {
            Err(Status::deadline_exceeded(format!(
                "registry {}: not reached within the call's time",
                self.target
            )))
        })
    }

    /// One registration or the end of one: `send` makes the call on a hop.
    async fn exchange<T, F>(
        &self,
        call: &mut RegistryCall,
        send: impl Fn(Hop, RequestParts) -> F,
    ) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        loop {
            let tried = self.try_once(call, &send).await;
            let Err(status) = tried else { return tried };
            if !self.retries || !is_passing(status.code()) || call.remaining() <= PAUSE {
                return Err(status);
            }
            tracing::debug!(registry = %self.target, %status, "trying again");
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn try_once<T, F>(
        &self,
        call: &mut RegistryCall,
        send: impl Fn(Hop, RequestParts) -> F,
    ) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let hop = self.hop(call.deadline).await?;
        let parts =
            RequestParts { path: call.path.clone().unwrap_or_default(), time: call.remaining().min(TRY) };
        let index = parts.path.index;
        let response = send(hop.clone(), parts).await?;
        let header = response.metadata().get(path::KEY);
        if let Some(path) = header.map(|value| RegistryPath::parse(value.as_bytes())).transpose()? {
            if let Some(rules) = &self.rules
                && hop.peer().leaf.is_some()
            {
                rules.server(&path.tokens, index, hop.peer())?;
            }
            call.path = Some(path);
        }
        Ok(response.into_inner())
    }
}

/// What goes with a registration.
struct RequestParts {
    path: RegistryPath,
    time: Duration,
}

impl RequestParts {
    fn of<T>(self, message: T) -> Result<Request<T>, Status> {
        let mut request = Request::new(message);
        request.set_timeout(self.time);
        server::put_path(request.metadata_mut(), &self.path)?;
        Ok(request)
    }
}

/// True for failures that may pass.
fn is_passing(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Unknown
            | Code::Internal
            | Code::Aborted
            | Code::Cancelled
    )
}

/// A find's request: only one without watch ends with the call.
fn query<T>(message: T, watch: bool, call: &RegistryCall) -> Request<T> {
    let mut request = Request::new(message);
    if !watch {
        request.set_timeout(call.remaining());
    }
    request
}

/// An endpoint as it goes over a connection, and its URL here if that is another.
fn with_socket(hop: &Hop, socket: Option<&SharedFd>, endpoint: &mut NetworkServiceEndpoint) -> Option<Named> {
    let there = sockets::send(hop.peer().fds.as_ref()?, &endpoint.url, socket)?;
    let here = std::mem::replace(&mut endpoint.url, there.clone());
    Some(Named { here, there })
}

/// One socket's URL here, and over the connection.
struct Named {
    here: String,
    there: String,
}

#[async_trait]
impl Registry for Remote {
    async fn register_service(
        &self,
        call: &mut RegistryCall,
        service: NetworkService,
    ) -> Result<NetworkService, Status> {
        let send = |hop, parts: RequestParts| {
            let request = parts.of(service.clone());
            async move { NetworkServiceRegistryClient::new(hop).register(request?).await }
        };
        self.exchange(call, send).await
    }

    async fn unregister_service(
        &self,
        call: &mut RegistryCall,
        service: NetworkService,
    ) -> Result<(), Status> {
        let send = |hop, parts: RequestParts| {
            let request = parts.of(service.clone());
            async move { NetworkServiceRegistryClient::new(hop).unregister(request?).await }
        };
        self.exchange(call, send).await
    }

    async fn find_services(
        &self,
        call: &mut RegistryCall,
        service: NetworkService,
        watch: bool,
    ) -> Result<Found<ServiceEvent>, Status> {
        let mut client = NetworkServiceRegistryClient::new(self.hop(call.deadline).await?);
        let message = pb::NetworkServiceQuery { network_service: Some(service), watch };
        let request = query(message, watch, call);
        // A Go registry's answer begins with the first thing that is found; whoever watches must not wait for that here.
        let found = async move { client.find(request).await.map(Response::into_inner) };
        let events = stream::once(found).try_flatten().map_ok(|response| ServiceEvent {
            service: Arc::new(response.network_service.unwrap_or_default()),
            deleted: response.deleted,
        });
        Ok(events.boxed())
    }

    async fn register_endpoint(
        &self,
        call: &mut RegistryCall,
        endpoint: NetworkServiceEndpoint,
    ) -> Result<NetworkServiceEndpoint, Status> {
        let socket = call.socket.clone();
        let send = |hop: Hop, parts: RequestParts| {
            let (mut endpoint, socket) = (endpoint.clone(), socket.clone());
            async move {
                let named = with_socket(&hop, socket.as_ref(), &mut endpoint);
                let mut response =
                    NetworkServiceEndpointRegistryClient::new(hop).register(parts.of(endpoint)?).await?;
                if let Some(named) = named
                    && response.get_ref().url == named.there
                {
                    response.get_mut().url = named.here;
                }
                Ok(response)
            }
        };
        self.exchange(call, send).await
    }

    async fn unregister_endpoint(
        &self,
        call: &mut RegistryCall,
        endpoint: NetworkServiceEndpoint,
    ) -> Result<(), Status> {
        let socket = call.socket.clone();
        let send = |hop: Hop, parts: RequestParts| {
            let (mut endpoint, socket) = (endpoint.clone(), socket.clone());
            async move {
                with_socket(&hop, socket.as_ref(), &mut endpoint);
                NetworkServiceEndpointRegistryClient::new(hop).unregister(parts.of(endpoint)?).await
            }
        };
        self.exchange(call, send).await
    }

    async fn find_endpoints(
        &self,
        call: &mut RegistryCall,
        endpoint: NetworkServiceEndpoint,
        watch: bool,
    ) -> Result<Found<EndpointEvent>, Status> {
        let hop = self.hop(call.deadline).await?;
        let lane = hop.peer().fds.clone();
        let mut client = NetworkServiceEndpointRegistryClient::new(hop);
        let message = pb::NetworkServiceEndpointQuery { network_service_endpoint: Some(endpoint), watch };
        let request = query(message, watch, call);
        let found = async move { client.find(request).await.map(Response::into_inner) };
        let events = stream::once(found).try_flatten().and_then(move |response| {
            let lane = lane.clone();
            async move { Ok(event(response, lane.as_ref()).await) }
        });
        Ok(events.boxed())
    }
}

/// What was found, with the socket that came along.
async fn event(response: pb::NetworkServiceEndpointResponse, lane: Option<&FdLane>) -> EndpointEvent {
    let endpoint = response.network_service_endpoint.unwrap_or_default();
    let mut event = EndpointEvent { endpoint: Arc::new(endpoint), deleted: response.deleted, socket: None };
    let url = &event.endpoint.url;
    if let Some(lane) = lane
        && url.starts_with(INODE)
        && let Ok(inode) = url.parse()
    {
        // Of one that went nobody needs the socket; it is only taken out of the way.
        let time = if event.deleted { Duration::ZERO } else { DESCRIPTOR };
        match tokio::time::timeout(time, lane.received.wait(inode)).await {
            Ok(fd) => event.socket = Some(Arc::new(fd)),
            Err(_) if event.deleted => {}
            Err(_) => {
                tracing::warn!(endpoint = %event.endpoint.name, %url, "no descriptor came for the endpoint's socket")
            }
        }
    }
    event
}
