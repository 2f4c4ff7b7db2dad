//! An endpoint that ends when nobody has used it for a while.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use vwire_proto::nsm::connection::Connection;
use vwire_proto::nsm::networkservice::NetworkServiceRequest;

use crate::chain::{Call, Element, Next};

/// Cancels a token when there was no connection for some time. Requests after that are refused.
pub struct Idle {
    connections: watch::Sender<BTreeSet<String>>,
    expired: CancellationToken,
}

impl Idle {
    /// After `time` without a connection `expired` is cancelled. Must be called inside a tokio runtime.
    pub fn new(time: Duration, expired: CancellationToken) -> Self {
        let (connections, seen) = watch::channel(BTreeSet::new());
        tokio::spawn(expired.clone().run_until_cancelled_owned(expire(time, seen, expired.clone())));
        Self { connections, expired }
    }

    /// Counts a connection of an earlier process, until its Close.
    pub fn used_by(&self, id: &str) {
        self.connections.send_if_modified(|connections| connections.insert(id.to_owned()));
    }
}

async fn expire(
    time: Duration,
    mut connections: watch::Receiver<BTreeSet<String>>,
    expired: CancellationToken,
) {
    loop {
        if connections.wait_for(BTreeSet::is_empty).await.is_err() {
            return;
        }
        let used = connections.wait_for(|connections| !connections.is_empty());
        match tokio::time::timeout(time, used).await {
            Err(_) => {
                tracing::info!(?time, "no connection for so long; ending");
                return expired.cancel();
            }
            Ok(Err(_)) => return,
            Ok(Ok(_)) => {}
        }
    }
}

#[async_trait]
impl Element for Idle {
    async fn request(
        &self,
        call: &mut Call,
        request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        let id = request.connection.as_ref().map(|connection| connection.id.clone()).unwrap_or_default();
        let first = self.connections.send_if_modified(|connections| connections.insert(id.clone()));
        if self.expired.is_cancelled() {
            return Err(Status::unavailable("endpoint expired: it had no connection for its idle timeout"));
        }
        let answer = next.request(call, request).await;
        if answer.is_err() && first {
            self.connections.send_if_modified(|connections| connections.remove(&id));
        }
        answer
    }

    async fn close(&self, call: &mut Call, connection: Connection, next: Next<'_>) -> Result<(), Status> {
        self.connections.send_if_modified(|connections| connections.remove(&connection.id));
        next.close(call, connection).await
    }
}
