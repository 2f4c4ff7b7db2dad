//! The agent: makes the engine what it is asked to be, and tells what it is.
//!
//! | file | its part |
//! |---|---|
//! | here | one transaction: plan, apply, undo |
//! | [`mod@plan`] | which steps, in which order; pure |
//! | [`placement`] | which worker; pure |
//! | [`ports`] | opening and closing ports of each kind |
//! | `links` | what becomes of them while they are open |
//! | `memif_sockets` | the control sockets of memif ports |
//! | `sent` | descriptors from outside, and what they must be |
//! | [`server`] | the gRPC service |
//! | [`admin`], [`metrics`] | the HTTP port |
//! | [`pcapng`], [`capture`] | captures |
//! | [`unix`] | the API's socket |
//! | [`run`] | the process: start, serve, stop |

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::broadcast;

use crate::engine::EngineError;
use crate::model::{Inode, Op, PortName, State, StateError, Xconnect};
use crate::stats::Snapshot;
use crate::tables::WorkerId;
use crate::worker::capture::CaptureReader;

pub mod admin;
pub mod capture;
mod links;
mod memif_sockets;
pub mod metrics;
mod open_error;
pub mod pcapng;
pub mod placement;
pub mod plan;
pub mod ports;
pub mod run;
mod sent;
pub mod server;
pub mod unix;

pub use open_error::{Cause, OpenError};
use plan::{Action, Actual, plan};
use ports::Ports;

/// Changes that may wait for a slow watcher.
const WATCH_BACKLOG: usize = 1024;

/// The descriptors that came with a request.
pub type SentFds = HashMap<Inode, OwnedFd>;

/// Whether a port can move frames, and with whom.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Link {
    /// True while frames can flow.
    pub up: bool,
    /// Why not.
    pub reason: String,
    /// Who is at the other end.
    pub peer: String,
}

/// A change of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkNotice {
    /// It is new or different.
    Changed(PortName, Link),
    /// The port is gone.
    Removed(PortName),
}

/// A port's counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortReport {
    /// The port, or the underlay as `udp:address:port`.
    pub name: String,
    /// The kind's name.
    pub kind: String,
    /// True while frames can flow.
    pub up: bool,
    /// The worker that owns the port, while it is up.
    pub worker: Option<WorkerId>,
    /// What was counted.
    pub counters: Snapshot,
}

/// Why a change was refused. The state is what it was.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The caller worked from another generation than the current one.
    #[error(
        "the request is based on generation {base}, but the current one is {current}; read the state again"
    )]
    Stale {
        /// The caller's.
        base: u64,
        /// The engine's.
        current: u64,
    },
    /// The state asked for is not consistent.
    #[error(transparent)]
    State(#[from] StateError),
    /// A port could not be made.
    #[error("port {port}: {error}")]
    Open {
        /// Which.
        port: PortName,
        /// Why.
        error: OpenError,
    },
    /// A worker does not answer.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// See the module.
pub struct Agent {
    ports: Ports,
    state: State,
    generation: u64,
    instance: u64,
    in_force: BTreeSet<Xconnect>,
    /// Ports of the state that could not be restored after a change failed, and why.
    lost: BTreeMap<PortName, String>,
    notices: broadcast::Sender<LinkNotice>,
}

impl Agent {
    /// An agent without ports.
    pub fn new(ports: Ports) -> Self {
        // Milliseconds since 1970: beyond any generation of an earlier run, unless that changed its state a
        // thousand times a second.
        let generation =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_millis() as u64);
        let (notices, _) = broadcast::channel(WATCH_BACKLOG);
        let (in_force, lost) = (BTreeSet::new(), BTreeMap::new());
        // Its keys are random, and so is what it makes of nothing.
        let instance = RandomState::new().hash_one(generation).max(1);
        Self { ports, state: State::default(), generation, instance, in_force, lost, notices }
    }

    /// The state as last accepted.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Its generation.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Which run of the engine this is: random, and not 0.
    pub fn instance(&self) -> u64 {
        self.instance
    }

    /// How many workers there are, and how many of them have died.
    pub fn workers(&self) -> (usize, usize) {
        self.ports.workers()
    }

    /// Readable when [`Agent::process`] should be called.
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.ports.as_fd()
    }

    /// The state after `ops`, without going there.
    ///
    /// # Errors
    /// [`ChangeError::Stale`] or [`ChangeError::State`].
    pub fn after(&self, base: Option<u64>, ops: Vec<Op>) -> Result<State, ChangeError> {
        self.check_base(base)?;
        Ok(self.state.after(ops)?)
    }

    /// Refuses a base that is not the current generation.
    ///
    /// # Errors
    /// [`ChangeError::Stale`].
    pub fn check_base(&self, base: Option<u64>) -> Result<(), ChangeError> {
        match base {
            Some(base) if base != self.generation => {
                Err(ChangeError::Stale { base, current: self.generation })
            }
            _ => Ok(()),
        }
    }

    /// The descriptors that must be at hand to go to `wanted`.
    pub fn needs(&self, wanted: &State) -> BTreeSet<Inode> {
        let open = |name: &PortName| self.ports.spec(name);
        let coming = wanted.ports().iter().filter(|(name, spec)| open(name) != Some(spec));
        coming.flat_map(|(_, spec)| spec.needs()).collect()
    }

    /// Goes to `wanted`, or stays. Returns what was done.
    ///
    /// # Errors
    /// [`ChangeError`]; everything done so far is undone then. A port that had to make room and can't be made
    /// again (its peer's connection was handed over, say) is down with that reason, until it is set again.
    pub fn change(&mut self, wanted: State, fds: &SentFds) -> Result<Vec<Action>, ChangeError> {
        let mut actions = plan(&self.actual(), &wanted);
        actions.extend(self.new_notes(&wanted).map(Action::Note));
        // A port that was lost is in the state, but takes no step to remove.
        if actions.is_empty() && wanted == self.state {
            return Ok(actions);
        }
        check_fds(&actions, &wanted, fds)?;
        let before = std::mem::replace(&mut self.state, wanted);
        self.generation += 1;
        let mut reserve = SentFds::new();
        let taken = actions.iter().try_for_each(|action| self.take(action, fds, &mut reserve));
        let result = taken.and_then(|()| self.settle());
        match &result {
            Ok(()) => {
                self.lost.clear();
                tracing::info!(generation = self.generation, "state changed");
            }
            Err(error) => {
                tracing::info!("change refused: {error}");
                self.generation -= 1;
                self.state = before;
                self.undo(reserve);
            }
        }
        self.notify();
        result.map(|()| actions)
    }

    /// The ports that stay and get another note.
    fn new_notes(&self, wanted: &State) -> impl Iterator<Item = PortName> {
        let stays = |port: &&PortName| wanted.ports().contains_key(port);
        let differs = |port: &&PortName| self.state.notes().get(port) != wanted.notes().get(port);
        let ports: Vec<_> = self.state.ports().keys().filter(stays).filter(differs).cloned().collect();
        ports.into_iter()
    }

    fn actual(&self) -> Actual<'_> {
        Actual { ports: self.ports.specs().collect(), xconnects: self.in_force.clone() }
    }

    /// Takes one step. What a closed port would need to be made again goes into `reserve`.
    fn take(&mut self, action: &Action, fds: &SentFds, reserve: &mut SentFds) -> Result<(), ChangeError> {
        match action {
            Action::Attach(port) => {
                let opened = self.ports.open(port, &self.state, fds);
                opened.map_err(|error| ChangeError::Open { port: port.clone(), error })
            }
            Action::Publish(xconnects) => {
                self.in_force.clone_from(xconnects);
                Ok(self.ports.publish(self.generation, &self.in_force)?)
            }
            Action::Detach(port) => {
                reserve.extend(self.ports.close(port));
                Ok(())
            }
            // It is in the state.
            Action::Note(_) => Ok(()),
        }
    }

    /// Publishes again if ports came or went since the last time.
    fn settle(&mut self) -> Result<(), ChangeError> {
        if self.ports.unpublished() {
            self.ports.publish(self.generation, &self.in_force)?;
        }
        Ok(())
    }

    /// Back to `self.state`, as far as possible.
    fn undo(&mut self, fds: SentFds) {
        let back = plan(&self.actual(), &self.state);
        for action in back {
            let Err(error) = self.take(&action, &fds, &mut SentFds::new()) else { continue };
            tracing::error!("undoing a change: {error}");
            if let Action::Attach(port) = action {
                self.lost.insert(port, format!("could not be restored after a change failed: {error}"));
            }
        }
        if let Err(error) = self.settle() {
            tracing::error!("undoing a change: {error}");
        }
    }

    /// Looks after links: peers that come and go, ports that fail. Call it when [`Agent::event_fd`] is
    /// readable. False if there was nothing to do.
    pub fn process(&mut self) -> bool {
        let busy = self.ports.process(&self.state);
        if let Err(error) = self.settle() {
            tracing::error!("publishing links: {error}");
        }
        self.notify();
        busy
    }

    fn notify(&mut self) {
        for port in self.ports.take_touched() {
            let notice = match self.link(&port) {
                Some(link) => LinkNotice::Changed(port, link),
                None => LinkNotice::Removed(port),
            };
            // Nobody listening is no error.
            let _ = self.notices.send(notice);
        }
    }

    fn link(&self, port: &PortName) -> Option<Link> {
        let lost = || self.lost.get(port).map(|why| Link { reason: why.clone(), ..Link::default() });
        self.ports.link(port).cloned().or_else(lost)
    }

    /// All links.
    pub fn links(&self) -> Vec<(PortName, Link)> {
        let names = self.state.ports().keys();
        names.map(|port| (port.clone(), self.link(port).unwrap_or_default())).collect()
    }

    /// All links as they are, and the changes from here on.
    pub fn watch(&self) -> (Vec<(PortName, Link)>, broadcast::Receiver<LinkNotice>) {
        (self.links(), self.notices.subscribe())
    }

    /// The counters of all ports and underlays, by name.
    pub fn reports(&self) -> Vec<PortReport> {
        self.ports.reports()
    }

    /// True if the state has such a port.
    pub fn has(&self, port: &PortName) -> bool {
        self.state.ports().contains_key(port)
    }

    /// Starts copying a port's frames. `None` while the port is down.
    ///
    /// # Errors
    /// [`EngineError::Stuck`].
    pub fn capture(
        &mut self,
        port: &PortName,
        snap_len: usize,
        ring_bytes: usize,
    ) -> Result<Option<CaptureReader>, EngineError> {
        self.ports.capture(port, snap_len, ring_bytes)
    }

    /// Closes all ports; what they made (sockets, interfaces) is gone afterwards.
    pub fn shut_down(&mut self) {
        if let Err(error) = self.change(State::default(), &SentFds::new()) {
            tracing::error!("closing ports: {error}");
        }
    }

    /// The ports, for tests that play a peer.
    pub fn ports_mut(&mut self) -> &mut Ports {
        &mut self.ports
    }
}

/// Refuses a change whose descriptors have not all come, before anything is touched.
fn check_fds(actions: &[Action], wanted: &State, fds: &SentFds) -> Result<(), ChangeError> {
    for action in actions {
        let Action::Attach(port) = action else { continue };
        let mut needed = wanted.ports().get(port).into_iter().flat_map(|spec| spec.needs());
        if let Some(inode) = needed.find(|inode| !fds.contains_key(inode)) {
            return Err(ChangeError::Open { port: port.clone(), error: sent::missing(inode) });
        }
    }
    Ok(())
}

impl AsFd for Agent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event_fd()
    }
}
