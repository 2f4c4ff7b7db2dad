//! One connection from the outside: what is wanted, how it is, and how to end it.

use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tonic::Status;
use vwire_proto::nsm::connection::{Connection, Mechanism};

use super::Namespace;

/// What a session asks for.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// The service, labels, payload, endpoint and context to ask with. The id names the session; the path is the session's business.
    pub connection: Connection,
    /// How it may be carried, best first. `inodeURL` is filled in from `namespace`.
    pub preferences: Vec<Mechanism>,
    /// Where the interface or the memif's socket belongs; its descriptor goes with each Request.
    pub namespace: Option<Namespace>,
    /// Sessions of one group may get overlapping addresses.
    pub awareness_group: Option<usize>,
}

/// Where a session is in its life; see the module's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Asks the next hop what it knows of a connection of ours, before the first Request.
    Recovering,
    /// Sends Requests until one succeeds.
    Requesting,
    /// There is a vWire.
    Up,
    /// There was one, and something is wrong with it.
    Healing,
    /// Sends Close.
    Closing,
    /// It is over.
    Closed,
}

/// Why a session healed, or is healing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The monitor stream broke, and the next hop, back again, does not know the connection.
    NextHopLost,
    /// The next hop said DOWN, or deleted the connection.
    Down,
    /// The data plane gave no answer.
    DataPlane,
    /// A refresh failed.
    RefreshFailed,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NextHopLost => "the next hop was lost",
            Self::Down => "the next hop said that the connection is down",
            Self::DataPlane => "the data plane gave no answer",
            Self::RefreshFailed => "a refresh failed",
        })
    }
}

/// A heal that succeeded.
#[derive(Debug, Clone, PartialEq)]
pub struct Heal {
    /// When it had.
    pub at: SystemTime,
    /// Why it began.
    pub reason: Reason,
    /// From the reason's notice to the success.
    pub took: Duration,
    /// True if another endpoint could have been chosen.
    pub reselected: bool,
}

/// How a session is.
#[derive(Debug, Clone)]
pub struct SessionStatus {
    /// Where in its life.
    pub phase: Phase,
    /// The connection as the next hop last returned it, without tokens.
    pub connection: Option<Connection>,
    /// The last failure, and when it was. It stays after a success.
    pub last_error: Option<(SystemTime, Status)>,
    /// The last heal.
    pub last_heal: Option<Heal>,
    /// How many heals there were.
    pub heals: u64,
    /// How many Requests succeeded.
    pub requests: u64,
    /// When the next refresh is due; none if no token says when it ends.
    pub refresh_at: Option<SystemTime>,
    /// Why it is healing now.
    pub healing: Option<Reason>,
}

impl SessionStatus {
    pub(super) fn new() -> Self {
        Self {
            phase: Phase::Recovering,
            connection: None,
            last_error: None,
            last_heal: None,
            heals: 0,
            requests: 0,
            refresh_at: None,
            healing: None,
        }
    }
}

/// Changes to what is wanted.
pub(super) type Change = Box<dyn FnOnce(&mut Wanted) + Send>;

/// What a session is told.
pub(super) enum Command {
    Refresh,
    Change(Change),
    Close(Duration, oneshot::Sender<Result<(), Status>>),
}

/// A connection that is kept: refreshed, watched, healed. Dropping it without [`close`](Self::close) closes it as well, unobserved.
pub struct Session {
    pub(super) id: String,
    pub(super) commands: mpsc::UnboundedSender<Command>,
    pub(super) status: watch::Receiver<SessionStatus>,
    pub(super) task: JoinHandle<()>,
}

impl Session {
    /// The connection's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// How it is, and to wait for changes.
    pub fn status(&self) -> watch::Receiver<SessionStatus> {
        self.status.clone()
    }

    /// Waits until there is a vWire, and returns the connection (without tokens). None if the session is closed.
    pub async fn up(&self) -> Option<Connection> {
        let mut status = self.status.clone();
        let status = status.wait_for(|s| matches!(s.phase, Phase::Up | Phase::Closed)).await.ok()?;
        if status.phase == Phase::Up { status.connection.clone() } else { None }
    }

    /// Sends the Request again, soon.
    pub fn refresh(&self) {
        // A session that is over has nothing to refresh.
        let _ = self.commands.send(Command::Refresh);
    }

    /// Changes what is wanted (labels, the endpoint's name, the context), and sends the Request again. The session's id stays.
    pub fn change(&self, change: impl FnOnce(&mut Wanted) + Send + 'static) {
        let _ = self.commands.send(Command::Change(Box::new(change)));
    }

    /// Ends this process's part in the connection and leaves it as it is, for another process with the same name and id to go on
    /// with.
    pub fn leave(self) {
        self.task.abort();
    }

    /// Closes the connection, whatever it is at. Afterwards nothing of the session is left in this process.
    ///
    /// # Errors
    /// What the next hop said, or DEADLINE_EXCEEDED after `time`: its resources then go with the expiry of our token.
    pub async fn close(self, time: Duration) -> Result<(), Status> {
        let (done, closed) = oneshot::channel();
        if self.commands.send(Command::Close(time, done)).is_err() {
            return Ok(());
        }
        let answer = closed.await.unwrap_or(Ok(()));
        // The task has nothing to wait for any more.
        let _ = self.task.await;
        answer
    }
}
