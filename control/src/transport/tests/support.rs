//! A server that says what it saw of its caller, and clients for it.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use vwire_proto::nsm::connection::monitor_connection_client::MonitorConnectionClient;
use vwire_proto::nsm::connection::monitor_connection_server::{MonitorConnection, MonitorConnectionServer};
use vwire_proto::nsm::connection::{Connection, ConnectionEvent, MonitorScopeSelector};
use vwire_proto::nsm::networkservice::NetworkServiceRequest;
use vwire_proto::nsm::networkservice::network_service_client::NetworkServiceClient;
use vwire_proto::nsm::networkservice::network_service_server::{NetworkService, NetworkServiceServer};

use crate::chain::Origin;
use crate::identity::issuer::Authority;
use crate::identity::{Identity, TokenSource, TrustDomain};
use crate::transport::*;

pub const DAY: Duration = Duration::from_secs(24 * 3600);
pub const TOKEN_LIFE: Duration = Duration::from_secs(600);

pub fn authority(domain: &str) -> Authority {
    Authority::new(TrustDomain::new(domain).unwrap()).unwrap()
}

pub fn identity(authority: &Authority, path: &str) -> Identity {
    Identity::fixed(authority.issue(path, DAY).unwrap())
}

pub fn pool(identity: &Identity) -> Pool {
    pool_with(identity, Dialling { timeout: Duration::from_secs(5), ..Dialling::default() })
}

pub fn pool_with(identity: &Identity, dialling: Dialling) -> Pool {
    Pool::new(identity.clone(), TokenSource::new(identity.clone(), TOKEN_LIFE), dialling)
}

/// What callers of [`Echo`] can make it do, by the request's connection id.
pub const PANIC: &str = "panic";
pub const NEVER: &str = "never";
pub const DESCRIPTOR: &str = "descriptor";

/// Answers a Request with what it saw: labels `id`, `token`, `expires`, `left`, `fds`, `uid`; and `sent`, the file whose descriptor it
/// sends along. Its monitor never ends.
pub struct Echo;

#[tonic::async_trait]
impl NetworkService for Echo {
    async fn request(&self, request: Request<NetworkServiceRequest>) -> Result<Response<Connection>, Status> {
        let left = time_left(&request);
        let Origin::Peer { peer, token } = origin(&request)? else { unreachable!("it came by a connection") };
        let mut answer = request.into_inner().connection.unwrap_or_default();
        match answer.id.as_str() {
            PANIC => panic!("as the test asks"),
            NEVER => std::future::pending().await,
            _ => {}
        }
        let labels = &mut answer.labels;
        labels.insert("id".into(), peer.id.as_ref().map(ToString::to_string).unwrap_or_default());
        labels.insert("left".into(), left.as_millis().to_string());
        if let Some(token) = token {
            labels.insert("token".into(), token.jwt.to_string());
            labels.insert("expires".into(), token.expires.to_string());
        }
        if let (DESCRIPTOR, Some(lane)) = (answer.id.as_str(), &peer.fds) {
            let mut file = tempfile::tempfile()?;
            std::io::Write::write_all(&mut file, b"of the server")?;
            labels.insert("sent".into(), lane.sender.send(file)?.to_string());
        }
        if let Some(lane) = &peer.fds {
            labels.insert("fds".into(), lane.received.len().to_string());
        }
        if let PeerAddress::Unix { uid, .. } = peer.address {
            labels.insert("uid".into(), uid.to_string());
        }
        Ok(Response::new(answer))
    }

    async fn close(&self, _: Request<Connection>) -> Result<Response<()>, Status> {
        Ok(Response::new(()))
    }
}

#[tonic::async_trait]
impl MonitorConnection for Echo {
    type MonitorConnectionsStream =
        std::pin::Pin<Box<dyn Stream<Item = Result<ConnectionEvent, Status>> + Send>>;

    async fn monitor_connections(
        &self,
        _: Request<MonitorScopeSelector>,
    ) -> Result<Response<Self::MonitorConnectionsStream>, Status> {
        use futures::StreamExt;
        let first = futures::stream::iter([Ok(ConnectionEvent::default())]);
        Ok(Response::new(Box::pin(first.chain(futures::stream::pending()))))
    }
}

/// A server that runs until it is dropped.
pub struct Running {
    pub targets: Vec<Target>,
    pub shutdown: CancellationToken,
    pub task: JoinHandle<Result<(), ServeError>>,
    _folder: Arc<tempfile::TempDir>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Running {
    pub fn unix(&self) -> &Target {
        &self.targets[0]
    }

    pub fn tcp(&self) -> &Target {
        &self.targets[1]
    }
}

/// Serves [`Echo`] on a unix and a TCP socket.
pub async fn start(identity: &Identity) -> Running {
    start_with(identity, Limits::default()).await
}

pub async fn start_with(identity: &Identity, limits: Limits) -> Running {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let unix = Target::Unix(folder.path().join("deep/er/nsm.io.sock"));
    let tcp = Target::parse("tcp://127.0.0.1:0").unwrap();
    let server = Server::bind(&[unix, tcp], limits).await.unwrap();
    let targets = server.targets();
    let shutdown = CancellationToken::new();
    let routes = Routes::new(NetworkServiceServer::new(Echo)).add_service(MonitorConnectionServer::new(Echo));
    let task = tokio::spawn(server.serve(identity.clone(), routes, shutdown.clone()));
    Running { targets, shutdown, task, _folder: folder }
}

pub async fn request(hop: &Hop) -> Result<Connection, Status> {
    request_as(hop, "nsc-0").await
}

pub async fn request_as(hop: &Hop, id: &str) -> Result<Connection, Status> {
    let connection = Some(Connection { id: id.to_owned(), ..Connection::default() });
    let request = NetworkServiceRequest { connection, ..NetworkServiceRequest::default() };
    Ok(NetworkServiceClient::new(hop.clone()).request(request).await?.into_inner())
}

pub async fn monitor(hop: &Hop) -> tonic::Streaming<ConnectionEvent> {
    let mut client = MonitorConnectionClient::new(hop.clone());
    let mut events = client.monitor_connections(MonitorScopeSelector::default()).await.unwrap().into_inner();
    assert!(events.message().await.unwrap().is_some(), "the first event comes at once");
    events
}
