//! A network service manager as the next hop, over the process's connections.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use tonic::{Request, Status};
use vwire_proto::nsm::connection::monitor_connection_client::MonitorConnectionClient;
use vwire_proto::nsm::connection::{Connection, ConnectionEvent, Mechanism, MonitorScopeSelector};
use vwire_proto::nsm::networkservice::NetworkServiceRequest;
use vwire_proto::nsm::networkservice::network_service_client::NetworkServiceClient;

use super::{Namespace, Upstream};
use crate::api::{mechanism, path};
use crate::elements::authorize::PathPolicy;
use crate::transport::{Hop, Pool, Target};

/// How long opening a monitor stream may take, its first event included.
const OPENING: Duration = Duration::from_secs(5);

/// Whoever listens at a target.
pub struct Manager {
    pool: Arc<Pool>,
    target: Target,
    policies: Arc<dyn PathPolicy>,
}

impl Manager {
    /// The manager at `target`, whose answers must pass `policies`.
    pub fn new(pool: Arc<Pool>, target: Target, policies: Arc<dyn PathPolicy>) -> Self {
        Self { pool, target, policies }
    }

    /// Whether the tokens of an answer are good. A peer that was given a new SVID since we dialled signs with its new key: it is
    /// dialled again to see that one.
    async fn authorize(&self, connection: &Connection, hop: &Hop) -> Result<(), Status> {
        let path = path::of(connection);
        let Err(refused) = self.policies.returned(path, hop.peer()) else { return Ok(()) };
        match self.pool.renew(hop).await {
            Ok(newer) if newer.peer().leaf != hop.peer().leaf => self.policies.returned(path, newer.peer()),
            _ => Err(refused),
        }
    }

    fn named(&self, status: Status) -> Status {
        Status::new(status.code(), format!("{}: {}", self.target, status.message()))
    }
}

#[async_trait]
impl Upstream for Manager {
    async fn request(
        &self,
        request: NetworkServiceRequest,
        namespace: Option<&Namespace>,
        time: Duration,
    ) -> Result<Connection, Status> {
        let hop = self.pool.hop(&self.target).await?;
        let mechanisms = request.connection.iter().flat_map(|connection| &connection.mechanism);
        send(&hop, namespace, mechanisms.chain(&request.mechanism_preferences))?;
        let mut message = Request::new(request);
        message.set_timeout(time);
        let mut client = NetworkServiceClient::new(hop.clone());
        let connection = client.request(message).await.map_err(|status| self.named(status))?.into_inner();
        match self.authorize(&connection, &hop).await {
            Ok(()) => Ok(connection),
            Err(refused) => {
                if let Err(status) = self.close(connection, namespace, time).await {
                    tracing::debug!(error = %status.message(), "closing what was refused");
                }
                Err(refused)
            }
        }
    }

    async fn close(
        &self,
        connection: Connection,
        namespace: Option<&Namespace>,
        time: Duration,
    ) -> Result<(), Status> {
        let hop = self.pool.hop(&self.target).await?;
        send(&hop, namespace, &connection.mechanism)?;
        let mut message = Request::new(connection);
        message.set_timeout(time);
        let closed = NetworkServiceClient::new(hop).close(message).await;
        closed.map(|_| ()).map_err(|status| self.named(status))
    }

    async fn monitor(
        &self,
        selector: MonitorScopeSelector,
    ) -> Result<BoxStream<'static, Result<ConnectionEvent, Status>>, Status> {
        let open = async {
            let hop = self.pool.hop(&self.target).await?;
            let mut client = MonitorConnectionClient::new(hop);
            let mut events = client.monitor_connections(selector).await?.into_inner();
            let first = events.message().await?.ok_or_else(|| Status::unavailable("no event came"))?;
            Ok(futures::stream::once(async { Ok(first) }).chain(events).boxed())
        };
        let late = || Status::unavailable(format!("no monitor event within {OPENING:?}"));
        let opened: Result<_, Status> =
            tokio::time::timeout(OPENING, open).await.unwrap_or_else(|_| Err(late()));
        opened.map_err(|status| self.named(status))
    }
}

/// Sends the namespace's descriptor if one of the mechanisms names it; it goes out before the next message.
fn send<'a>(
    hop: &Hop,
    namespace: Option<&Namespace>,
    mechanisms: impl IntoIterator<Item = &'a Mechanism>,
) -> Result<(), Status> {
    let (Some(lane), Some(namespace)) = (&hop.peer().fds, namespace) else { return Ok(()) };
    let url = namespace.inode().to_string();
    if mechanisms.into_iter().any(|mechanism| mechanism.parameters.get(mechanism::INODE_URL) == Some(&url)) {
        let sent = lane.sender.send(namespace.fd());
        sent.map_err(|error| Status::internal(format!("{url}: sending the descriptor: {error}")))?;
    }
    Ok(())
}
