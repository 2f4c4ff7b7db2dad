//! The engine, as the rest of the forwarder sees it: one transaction for all Requests that wait for a fast one, links that are known without
//! asking, counters that are a second old at most, and news of an engine that has taken another's place.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tonic::Status;
use vwire_proto::dataplane::v1 as pb;

use super::launch::Launcher;
use super::wanted::End;
use crate::transport::SharedFd;

mod batch;
mod connection;
mod links;
pub mod stats;

use connection::Connector;
use links::Links;
pub use links::{Event, Events};
use stats::Stats;

/// Changes that may wait; far more than Requests can be under way.
const QUEUE: usize = 4096;

/// What one connection changes: all of it is done, or nothing.
#[derive(Default)]
pub struct Change {
    /// In order.
    pub ops: Vec<pb::Op>,
    /// The descriptors that the operations name as `inode://…`.
    pub fds: Vec<SharedFd>,
    /// True if it makes or removes a kernel interface, which takes the kernel tens of milliseconds: others need not wait for that.
    pub slow: bool,
}

impl Change {
    /// Adds an operation.
    pub fn push(&mut self, op: pb::op::Op) {
        self.slow |=
            matches!(&op, pb::op::Op::SetPort(pb::Port { kind: Some(pb::port::Kind::Kernel(_)), .. }));
        self.ops.push(pb::Op { op: Some(op) });
    }

    /// Adds the removal of a connection's end.
    pub fn remove(&mut self, end: &End) {
        self.slow |= matches!(end.port.kind, Some(pb::port::Kind::Kernel(_)));
        self.push(end.remove());
    }
}

/// A change on its way, and who waits for it.
struct Queued {
    change: Change,
    done: oneshot::Sender<Result<(), Status>>,
}

/// The engine. Cheap to copy.
#[derive(Clone)]
pub struct Client {
    queue: mpsc::Sender<Queued>,
    connector: Arc<Connector>,
    links: Arc<Links>,
    stats: Arc<Stats>,
    _stop: Arc<tokio_util::sync::DropGuard>,
}

impl Client {
    /// Begins to talk to the engine at `socket`, for as long as any copy of this exists. With a `launcher` an engine that is not there
    /// is started. The events begin with the engine's state.
    pub fn new(socket: &Path, launcher: Option<Launcher>) -> (Self, Events) {
        let stop = tokio_util::sync::CancellationToken::new();
        let connector = Arc::new(Connector::new(socket.to_owned(), launcher));
        let (links, events) = Links::new();
        let links = Arc::new(links);
        let (queue, queued) = mpsc::channel(QUEUE);
        let watching = Arc::clone(&links).watch(Arc::clone(&connector));
        tokio::spawn(stop.clone().run_until_cancelled_owned(watching));
        tokio::spawn(batch::serve(queued, Arc::clone(&connector)));
        let stats = Arc::new(Stats::new(Arc::clone(&connector)));
        (Self { queue, connector, links, stats, _stop: Arc::new(stop.drop_guard()) }, events)
    }

    /// Where the engine listens.
    pub fn socket(&self) -> &PathBuf {
        self.connector.socket()
    }

    /// Makes a change, together with all others that wait at this moment; one that is slow, by itself and beside others.
    ///
    /// # Errors
    /// The engine's, which name the port; UNAVAILABLE if there is no engine. Nothing of this change is in force then.
    pub async fn apply(&self, change: Change) -> Result<(), Status> {
        if change.ops.is_empty() {
            return Ok(());
        }
        let (done, wait) = oneshot::channel();
        let gone = || Status::unavailable("the forwarder is stopping");
        self.queue.send(Queued { change, done }).await.map_err(|_| gone())?;
        wait.await.map_err(|_| gone())?
    }

    /// The engine's state, asked for now.
    ///
    /// # Errors
    /// The engine's; UNAVAILABLE if there is none.
    pub async fn snapshot(&self) -> Result<pb::GetSnapshotResponse, Status> {
        let mut connection = self.connector.open().await?;
        Ok(connection.client.get_snapshot(pb::GetSnapshotRequest {}).await?.into_inner())
    }

    /// A port's link as it was last heard of; none if there is no such port.
    pub fn link(&self, port: &str) -> Option<pb::Link> {
        self.links.get(port)
    }

    /// Waits until a port's link is up.
    ///
    /// # Errors
    /// DEADLINE_EXCEEDED, with the reason why it is down.
    pub async fn wait_up(&self, port: &str, deadline: Instant) -> Result<(), Status> {
        self.links.wait_up(port, deadline).await
    }

    /// Counters that are at most `age` old, asked for once for all who ask at the same time.
    ///
    /// # Errors
    /// The engine's; UNAVAILABLE if there is none.
    pub async fn stats(&self, age: Duration) -> Result<Arc<stats::Snapshot>, Status> {
        self.stats.get(age).await
    }

    /// The counters that were fetched last, for whoever can't wait.
    pub fn known_stats(&self) -> Option<Arc<stats::Snapshot>> {
        self.stats.known()
    }
}
