//! The engine, as the rest of the forwarder sees it: one transaction for all Requests that wait for a fast one, links that are known without
//! asking, counters that are a second old at most, and news of an engine that has taken another's place.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tonic::Status;
use vwire_dataplane::fdpass::identify;
use vwire_proto::dataplane::v1 as pb;

use super::launch::Launcher;
use super::memif_socket;
use super::wanted::{End, Redial};
use crate::transport::SharedFd;

mod batch;
mod connection;
mod links;
pub mod stats;

use connection::Connector;
use links::Links;
pub use links::{Event, Events};
use stats::Stats;

/// How long a role's start waits for the engine, which may be starting, too.
const START: Duration = Duration::from_secs(30);
/// Changes that may wait; far more than Requests can be under way.
const QUEUE: usize = 4096;

/// What one connection changes: all of it is done, or nothing.
#[derive(Clone, Default)]
pub struct Change {
    /// In order.
    pub ops: Vec<pb::Op>,
    /// The descriptors that the operations name as `inode://…`.
    pub fds: Vec<SharedFd>,
    /// The memif ports among them that have to be connected to their servers first.
    pub dials: Vec<Dial>,
    /// True if it makes or removes a kernel interface, which takes the kernel tens of milliseconds: others need not wait for that.
    pub slow: bool,
}

/// A memif port and its server. A server waits only a few seconds for the handshake, ours two, and one connection is good for one
/// attempt. So nobody dials before the change is as good as made, nor twice with one socket: [`Client::apply`] does it.
#[derive(Clone)]
pub struct Dial {
    /// The port.
    pub port: String,
    /// Its server.
    pub to: Redial,
    /// How long the server may take to listen.
    pub until: Instant,
}

impl Change {
    /// Adds a memif port that is connected to its server when the change is made.
    pub fn push_dialled(&mut self, port: pb::Port, to: Redial, until: Instant) {
        self.dials.push(Dial { port: port.name.clone(), to, until });
        self.push(pb::op::Op::SetPort(port));
    }

    /// Connects the ports that have to be.
    async fn dial(&mut self) -> Result<(), Status> {
        for Dial { port, to, until } in &self.dials {
            let socket = memif_socket::connect(&to.namespace, &to.socket, *until).await?;
            let inode = identify(&socket)?.to_string();
            for op in &mut self.ops {
                if let Some(pb::op::Op::SetPort(pb::Port { name, kind: Some(kind), .. })) = &mut op.op
                    && let pb::port::Kind::Memif(memif) = kind
                    && name == port
                {
                    memif.socket.clone_from(&inode);
                }
            }
            self.fds.push(socket);
        }
        Ok(())
    }

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
    /// It is not made together with others.
    alone: bool,
    done: oneshot::Sender<Result<(), Refused>>,
}

/// Why a change was not made.
enum Refused {
    /// It can't be.
    By(Status),
    /// It was tried together with others, of which one can't be, and that has used up its connections. It may be tried again with new
    /// ones, alone.
    BesideOthers,
}

impl Refused {
    fn into_status(self) -> Status {
        match self {
            Self::By(status) => status,
            Self::BesideOthers => {
                Status::aborted("another change was refused together with this one; try again")
            }
        }
    }
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
    /// Waits for the first state of the engine; for the start of a role.
    ///
    /// # Errors
    /// UNAVAILABLE if no engine answers within 30 s.
    pub async fn first_state(&self, events: &mut Events) -> Result<pb::GetSnapshotResponse, Status> {
        let first = async {
            loop {
                match events.recv().await {
                    Some(Event::Engine(snapshot)) => return Some(*snapshot),
                    Some(_) => {}
                    None => return None,
                }
            }
        };
        let found = tokio::time::timeout(START, first).await.ok().flatten();
        found.ok_or_else(|| {
            let (socket, time) = (self.socket().display(), START.as_secs());
            Status::unavailable(format!("{socket} did not answer within {time} s; the log says why"))
        })
    }

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
        let again = (!change.dials.is_empty()).then(|| change.clone());
        match (self.attempt(change, false).await, again) {
            (Ok(()), _) => Ok(()),
            (Err(Refused::BesideOthers), Some(again)) => {
                self.attempt(again, true).await.map_err(Refused::into_status)
            }
            (Err(refused), _) => Err(refused.into_status()),
        }
    }

    async fn attempt(&self, mut change: Change, alone: bool) -> Result<(), Refused> {
        change.dial().await.map_err(Refused::By)?;
        let (done, wait) = oneshot::channel();
        let gone = || Refused::By(Status::unavailable("the forwarder is stopping"));
        self.queue.send(Queued { change, alone, done }).await.map_err(|_| gone())?;
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
