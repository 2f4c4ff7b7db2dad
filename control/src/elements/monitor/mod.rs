//! `monitor`: telling those who ask what becomes of connections.

use std::sync::Arc;

use async_trait::async_trait;
use tonic::Status;

use crate::api::connection::{Connection, State};
use crate::api::networkservice::NetworkServiceRequest;
use crate::chain::{Call, Element, Next};

mod follow;
mod hub;
mod selector;

pub use follow::Follow;
pub use hub::{Hub, Strictness, Watch};

/// Publishes every change of a connection to the role's [`Hub`]: UPDATE after each Request that succeeded, UPDATE in the state
/// DOWN if a refresh failed, DELETE at Close.
pub struct Monitor {
    hub: Arc<Hub>,
}

impl Monitor {
    /// Publishes to this hub.
    pub fn new(hub: Arc<Hub>) -> Self {
        Self { hub }
    }
}

#[async_trait]
impl Element for Monitor {
    async fn request(
        &self,
        call: &mut Call,
        request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        let id = request.connection.as_ref().map(|connection| connection.id.clone()).unwrap_or_default();
        match next.request(call, request).await {
            Ok(connection) => {
                let mut shown = connection.clone();
                shown.set_state(State::Up);
                self.hub.update(shown, call.peer().and_then(|peer| peer.id.as_ref()));
                Ok(connection)
            }
            Err(status) => {
                self.hub.down(&id);
                Err(status)
            }
        }
    }

    async fn close(&self, call: &mut Call, connection: Connection, next: Next<'_>) -> Result<(), Status> {
        let id = connection.id.clone();
        let done = next.close(call, connection).await;
        self.hub.remove(&id);
        done
    }
}
