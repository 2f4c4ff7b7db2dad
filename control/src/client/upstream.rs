//! What a session talks to.

use async_trait::async_trait;
use futures::stream::BoxStream;
use std::time::Duration;
use tonic::Status;
use vwire_proto::nsm::connection::{Connection, ConnectionEvent, MonitorScopeSelector};
use vwire_proto::nsm::networkservice::NetworkServiceRequest;

use super::Namespace;

/// The next hop of a client: a network service manager, or any NSM server.
#[async_trait]
pub trait Upstream: Send + Sync + 'static {
    /// Sends a Request, and with it the descriptor of `namespace` if a mechanism names it.
    async fn request(
        &self,
        request: NetworkServiceRequest,
        namespace: Option<&Namespace>,
        time: Duration,
    ) -> Result<Connection, Status>;

    /// Sends a Close; descriptors as for a Request.
    async fn close(
        &self,
        connection: Connection,
        namespace: Option<&Namespace>,
        time: Duration,
    ) -> Result<(), Status>;

    /// Opens a monitor stream. The first event is to come at once, be it an empty one.
    async fn monitor(
        &self,
        selector: MonitorScopeSelector,
    ) -> Result<BoxStream<'static, Result<ConnectionEvent, Status>>, Status>;
}
