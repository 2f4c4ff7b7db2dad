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
    counts: Box<dyn Fn(&Connection) -> bool + Send + Sync>,
}

impl Idle {
    /// After `time` without a connection `expired` is cancelled. Must be called inside a tokio runtime.
    pub fn new(time: Duration, expired: CancellationToken) -> Self {
        let (connections, seen) = watch::channel(BTreeSet::new());
        tokio::spawn(expired.clone().run_until_cancelled_owned(expire(time, seen, expired.clone())));
        Self { connections, expired, counts: Box::new(|_| true) }
    }

    /// Only connections of which this is true count: those of others do not keep an endpoint that nobody uses.
    pub fn of_those(mut self, counts: impl Fn(&Connection) -> bool + Send + Sync + 'static) -> Self {
        self.counts = Box::new(counts);
        self
    }

    /// Counts a connection of an earlier process, until its Close.
    pub fn used_by(&self, connection: &Connection) {
        if (self.counts)(connection) {
            self.connections.send_if_modified(|connections| connections.insert(connection.id.clone()));
        }
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
        let connection = request.connection.as_ref();
        let id = connection.map(|connection| connection.id.clone()).unwrap_or_default();
        let counts = connection.is_none_or(|connection| (self.counts)(connection));
        let first = counts && self.connections.send_if_modified(|connections| connections.insert(id.clone()));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::testing::call_by;
    use crate::chain::{Chain, Element};
    use std::sync::Arc;

    fn connection(id: &str) -> Connection {
        Connection { id: id.into(), ..Default::default() }
    }

    async fn asks(chain: &Arc<Chain>, id: &str) -> Result<Connection, Status> {
        let request = NetworkServiceRequest { connection: Some(connection(id)), ..Default::default() };
        chain.request(&mut call_by("client"), request).await
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_counts_keeps_it() {
        let time = Duration::from_secs(10);
        let expired = CancellationToken::new();
        let idle = Idle::new(time, expired.clone()).of_those(|one| !one.id.starts_with("peer"));
        idle.used_by(&connection("peer-of-before"));
        let idle: Arc<dyn Element> = Arc::new(idle);
        let chain = Chain::new("idle", |_| vec![idle]);
        let client = asks(&chain, "client").await.unwrap();
        asks(&chain, "peer").await.unwrap();
        tokio::time::sleep(time * 3).await;
        assert!(!expired.is_cancelled(), "its client is there");
        chain.close(&mut call_by("client"), client).await.unwrap();
        tokio::time::sleep(time / 2).await;
        // A peer that refreshes is no client, either.
        asks(&chain, "peer").await.unwrap();
        tokio::time::timeout(time, expired.cancelled()).await.expect("nobody who counts is there");
        assert_eq!(asks(&chain, "client").await.unwrap_err().code(), tonic::Code::Unavailable);
    }
}
