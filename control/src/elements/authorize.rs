//! `authorize`: whether the caller may, and whether the next hop is who it says.

use std::sync::Arc;

use async_trait::async_trait;
use tonic::Status;

use crate::api::connection::{Connection, Path};
use crate::api::networkservice::NetworkServiceRequest;
use crate::api::path;
use crate::chain::{Call, Element, Next};
use crate::transport::Peer;

/// Rules about the tokens of a path.
pub trait PathPolicy: Send + Sync + 'static {
    /// Whether a path that came from `peer` is good: all segments up to ours, which the index names.
    ///
    /// # Errors
    /// PERMISSION_DENIED with the rule and the segment.
    fn incoming(&self, path: &Path, peer: &Peer) -> Result<(), Status>;

    /// Whether a path that came back from `peer`, the next hop, is good.
    ///
    /// # Errors
    /// PERMISSION_DENIED with the rule and the segment.
    fn returned(&self, path: &Path, peer: &Peer) -> Result<(), Status>;
}

/// In the state of a Close that the policies refused: nothing was closed.
pub(super) struct Refused;

/// Refuses calls whose path the policies do not like. Runs that the role itself starts pass.
pub struct Authorize {
    policies: Arc<dyn PathPolicy>,
}

impl Authorize {
    /// By these policies.
    pub fn new(policies: Arc<dyn PathPolicy>) -> Self {
        Self { policies }
    }

    fn check(&self, call: &Call, connection: &Connection) -> Result<(), Status> {
        match call.peer() {
            Some(peer) => self.policies.incoming(path::of(connection), peer),
            None => Ok(()),
        }
    }
}

#[async_trait]
impl Element for Authorize {
    async fn request(
        &self,
        call: &mut Call,
        request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        if let Some(connection) = &request.connection {
            self.check(call, connection)?;
        }
        next.request(call, request).await
    }

    async fn close(&self, call: &mut Call, connection: Connection, next: Next<'_>) -> Result<(), Status> {
        if let Err(status) = self.check(call, &connection) {
            call.state.insert(Refused);
            return Err(status);
        }
        next.close(call, connection).await
    }
}
