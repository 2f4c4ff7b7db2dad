//! A chain as a gRPC service.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tonic::{Code, Request, Response, Status};
use tracing::Instrument;

use super::{Call, Chain, Origin, validate};
use crate::api::connection::monitor_connection_server::{MonitorConnection, MonitorConnectionServer};
use crate::api::connection::{Connection, Mechanism, MonitorScopeSelector};
use crate::api::mechanism::INODE_URL;
use crate::api::networkservice::NetworkServiceRequest;
use crate::api::networkservice::network_service_server::{NetworkService, NetworkServiceServer};
use crate::api::path::{self, PathExt};
use crate::elements::monitor::{Hub, Watch};
use crate::identity::Identity;
use crate::obs::{Metrics, Operation};
use crate::transport::{self, Inode};

/// How long the closing of a connection may take whose caller did not wait for it.
const CLOSE_TIME: Duration = Duration::from_secs(15);

/// The services `networkservice.NetworkService` and `connection.MonitorConnection` over a chain and its hub.
///
/// A call that was begun is brought to its end, even if the caller goes; a connection that was made for one that is gone by then is
/// closed again.
#[derive(Clone)]
pub struct Service {
    chain: Arc<Chain>,
    hub: Arc<Hub>,
    identity: Identity,
    metrics: Option<Arc<Metrics>>,
}

impl Service {
    /// Serves `chain`, whose connections are in `hub`; `identity` is ours.
    pub fn new(chain: Arc<Chain>, hub: Arc<Hub>, identity: Identity) -> Self {
        Self { chain, hub, identity, metrics: None }
    }

    /// Counts calls and connections here.
    #[must_use]
    pub fn counted_by(self, metrics: Arc<Metrics>) -> Self {
        Self { metrics: Some(metrics), ..self }
    }

    /// Adds both services to a server's routes.
    pub fn add_to(self, routes: tonic::service::Routes) -> tonic::service::Routes {
        let service = Arc::new(self);
        routes
            .add_service(NetworkServiceServer::from_arc(Arc::clone(&service)))
            .add_service(MonitorConnectionServer::from_arc(service))
    }

    fn count(&self, operation: Operation, code: Code, since: Instant) {
        if let Some(metrics) = &self.metrics {
            metrics.answered(operation, code, since.elapsed());
            metrics.connections.set(self.hub.len() as i64);
            metrics.watches.set(self.hub.watchers() as i64);
        }
    }

    /// Puts our name before an error's text: a reader sees by which hops it came.
    fn named(&self, status: &Status) -> Status {
        Status::new(status.code(), format!("{}: {}", self.chain.name(), status.message()))
    }
}

#[tonic::async_trait]
impl NetworkService for Service {
    async fn request(&self, request: Request<NetworkServiceRequest>) -> Result<Response<Connection>, Status> {
        let began = Instant::now();
        let call = call(&request)?;
        let request = request.into_inner();
        validate::request(&request).map_err(|status| self.named(&status))?;
        let span = span(&self.chain, request.connection.as_ref());
        let (answer, answered) = oneshot::channel();
        let run = run_request(Arc::clone(&self.chain), call, request, answer);
        tokio::spawn(run.instrument(span));
        let answer = answered.await.unwrap_or_else(|_| Err(crashed()));
        self.count(Operation::Request, code(&answer), began);
        answer.map(Response::new).map_err(|status| self.named(&status))
    }

    async fn close(&self, request: Request<Connection>) -> Result<Response<()>, Status> {
        let began = Instant::now();
        let mut call = call(&request)?;
        let connection = request.into_inner();
        validate::connection(&connection).map_err(|status| self.named(&status))?;
        let span = span(&self.chain, Some(&connection));
        let chain = Arc::clone(&self.chain);
        let run = async move {
            let named = inodes(connection.mechanism.iter());
            let closed = chain.close(&mut call, connection).await;
            tracing::debug!(code = ?code(&closed), took = ?began.elapsed(), "Close");
            drop_untaken(&call, &named);
            closed
        };
        let closed = tokio::spawn(run.instrument(span)).await.unwrap_or_else(|_| Err(crashed()));
        self.count(Operation::Close, code(&closed), began);
        closed.map(Response::new).map_err(|status| self.named(&status))
    }
}

#[tonic::async_trait]
impl MonitorConnection for Service {
    type MonitorConnectionsStream = Watch;

    async fn monitor_connections(
        &self,
        request: Request<MonitorScopeSelector>,
    ) -> Result<Response<Watch>, Status> {
        let Origin::Peer { peer, .. } = transport::origin(&request)? else {
            return Err(Status::internal("a watcher that came by no connection"));
        };
        let selector = request.into_inner();
        validate::selector(&selector).map_err(|status| self.named(&status))?;
        let own = self.identity.current();
        let own = own.as_ref().map(|svid| &svid.id);
        Ok(Response::new(self.hub.watch(selector, peer.id.as_ref(), own)))
    }
}

fn call<T>(request: &Request<T>) -> Result<Call, Status> {
    Ok(Call::new(transport::origin(request)?, transport::time_left(request)))
}

fn span(chain: &Chain, connection: Option<&Connection>) -> tracing::Span {
    let root = connection.map_or("", |connection| match path::of(connection).root_id() {
        "" => &connection.id,
        root => root,
    });
    tracing::info_span!("run", role = %chain.name(), connection = root)
}

fn code<T>(answer: &Result<T, Status>) -> Code {
    answer.as_ref().map_or_else(Status::code, |_| Code::Ok)
}

fn crashed() -> Status {
    Status::internal("the call crashed; the log has the place. This is an error in vwire")
}

async fn run_request(
    chain: Arc<Chain>,
    mut call: Call,
    request: NetworkServiceRequest,
    answer: oneshot::Sender<Result<Connection, Status>>,
) {
    let mechanisms = request.mechanism_preferences.iter();
    let named =
        inodes(mechanisms.chain(request.connection.iter().flat_map(|connection| &connection.mechanism)));
    let began = Instant::now();
    let done = chain.request(&mut call, request).await;
    tracing::debug!(code = ?code(&done), took = ?began.elapsed(), first = call.first, "Request");
    drop_untaken(&call, &named);
    if let Err(Ok(connection)) = answer.send(done)
        && call.first
    {
        close_unheard(&chain, &call, &connection).await;
    }
}

/// Closes a connection whose caller left before the answer, unless someone has refreshed it since.
async fn close_unheard(chain: &Chain, call: &Call, connection: &Connection) {
    tracing::info!("the caller left before the answer: the connection is closed");
    let path = path::of(connection);
    let own = path.path_segments.iter().skip(path.index as usize).find(|one| one.name == **chain.name());
    let Some(own) = own else { return };
    let mut close = Call::internal("the caller left", CLOSE_TIME);
    close.revision = call.revision;
    if let Err(status) =
        chain.close(&mut close, Connection { id: own.id.clone(), ..Default::default() }).await
    {
        tracing::warn!(%status, "closing a connection whose caller left");
    }
}

/// The files that mechanisms name.
fn inodes<'a>(mechanisms: impl Iterator<Item = &'a Mechanism>) -> Vec<Inode> {
    let mut inodes: Vec<Inode> =
        mechanisms.filter_map(|one| one.parameters.get(INODE_URL)?.parse().ok()).collect();
    inodes.sort_unstable();
    inodes.dedup();
    inodes
}

/// Closes descriptors that came for this call and that nothing took: the connection to the caller stays open for the next one.
fn drop_untaken(call: &Call, named: &[Inode]) {
    let Some(lane) = call.peer().and_then(|peer| peer.fds.as_ref()) else { return };
    for inode in named.iter().filter(|inode| !call.fds_taken.contains(inode)) {
        drop(lane.received.take(*inode));
    }
}
