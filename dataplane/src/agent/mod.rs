//! The agent: makes the engine what it is asked to be, and tells what it is.
//!
//! | file | its part |
//! |---|---|
//! | here | one transaction: plan, apply, undo |
//! | `scope` | what a change concerns |
//! | [`mod@plan`] | which steps, in which order; pure |
//! | [`placement`] | which worker; pure |
//! | [`ports`] | opening and closing ports of each kind |
//! | `domains` | routing domains as workers see them |
//! | [`routes`] | what is told about them |
//! | [`interfaces`] | kernel interfaces, which the kernel takes long over |
//! | `underlays` | underlays on Ethernet ports: neighbours, path MTUs, what they answer |
//! | [`turns`] | which changes wait for which |
//! | `links` | what becomes of them while they are open |
//! | `report` | what is told of links and counters |
//! | `memif_sockets` | the control sockets of memif ports |
//! | `sent` | descriptors from outside, and what they must be |
//! | `change_error`, `open_error` | why a change is refused, and why a port can't be opened |
//! | [`server`] | the gRPC service |
//! | [`admin`], [`metrics`] | the HTTP port |
//! | [`pcapng`], [`capture`] | captures |
//! | [`unix`] | the API's socket |
//! | [`run`] | the process: start, serve, stop |

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::broadcast;

use crate::engine::EngineError;
use crate::model::{Claim, Inode, Op, PortName, PortSpec, State, Xconnect};
use crate::port::kernel::KernelDevice;
use crate::worker::capture::CaptureReader;

pub mod admin;
pub mod capture;
mod change_error;
mod domains;
pub mod interfaces;
mod links;
mod memif_sockets;
pub mod metrics;
mod open_error;
pub mod pcapng;
pub mod placement;
pub mod plan;
pub mod ports;
mod report;
pub mod routes;
pub mod run;
mod scope;
mod sent;
pub mod server;
pub mod turns;
mod underlays;
pub mod unix;
mod watched;

pub use change_error::ChangeError;
use interfaces::Ahead;
pub use open_error::{Cause, OpenError};
use plan::{Action, Made as MadeOf, View, plan};
use ports::{Gone, Ports};
pub use report::{Link, LinkNotice, PortReport};
use scope::Scope;

/// Changes that may wait for a slow watcher.
const WATCH_BACKLOG: usize = 1024;

/// The descriptors that came with a request.
pub type SentFds = HashMap<Inode, OwnedFd>;

/// Kernel interfaces that were made for a change before it is made, by port.
pub type Made = HashMap<PortName, KernelDevice>;

/// See the module.
pub struct Agent {
    ports: Ports,
    state: State,
    generation: u64,
    instance: u64,
    /// What the ports closed by the change that is under way were made of.
    reserve: SentFds,
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
        let (reserve, lost) = (SentFds::new(), BTreeMap::new());
        // Its keys are random, and so is what it makes of nothing.
        let instance = RandomState::new().hash_one(generation).max(1);
        Self { ports, state: State::default(), generation, instance, reserve, lost, notices }
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

    /// What must be at hand to do `ops`, which are not done.
    ///
    /// # Errors
    /// [`ChangeError::Stale`] or [`ChangeError::State`].
    pub fn ahead_of(&mut self, base: Option<u64>, ops: Vec<Op>) -> Result<Ahead, ChangeError> {
        self.check_base(base)?;
        let edit = self.state.edit(ops)?;
        let ahead = self.ahead(&Scope::of_edit(&edit, &self.state, &self.ports));
        self.state.undo(edit);
        Ok(ahead)
    }

    /// What must be at hand to go to `wanted`.
    ///
    /// # Errors
    /// [`ChangeError::Stale`].
    pub fn ahead_for(&mut self, base: Option<u64>, wanted: &State) -> Result<Ahead, ChangeError> {
        self.check_base(base)?;
        let before = std::mem::replace(&mut self.state, wanted.clone());
        let ahead = self.ahead(&Scope::of(&before, &self.state, &self.ports));
        self.state = before;
        Ok(ahead)
    }

    fn ahead(&self, scope: &Scope) -> Ahead {
        let wanted = |port: &PortName| self.state.ports().get(port);
        let new = |port: &PortName| {
            wanted(port).filter(|_| self.ports.made_of(port) != MadeOf::of(&self.state, port))
        };
        let either =
            scope.ports.iter().flat_map(|port| wanted(port).into_iter().chain(self.ports.spec(port)));
        let interface = |spec: &PortSpec| spec.claim().filter(|claim| matches!(claim, Claim::Kernel(..)));
        // The first steps are the ports that come; those behind other steps have to wait for what leaves.
        let first = self.plan(scope).into_iter().map_while(|action| match action {
            Action::Attach(port) => Some(port),
            _ => None,
        });
        let made = |port: PortName| match wanted(&port)? {
            PortSpec::Kernel(spec) if spec.device.is_none() => Some((port, spec.clone())),
            _ => None,
        };
        Ahead {
            needs: scope.ports.iter().filter_map(new).flat_map(PortSpec::needs).collect(),
            claims: either.filter_map(interface).collect(),
            interfaces: first.filter_map(made).collect(),
        }
    }

    /// Does `ops`, or nothing. Returns what was done. Interfaces are those `made` ahead as far as there are such. Afterwards the kernel
    /// is to be rid of [`Agent::take_gone`].
    ///
    /// # Errors
    /// As [`Agent::change`].
    pub fn apply(
        &mut self,
        base: Option<u64>,
        ops: Vec<Op>,
        fds: &SentFds,
        made: Made,
    ) -> Result<Vec<Action>, ChangeError> {
        self.ports.supply(made);
        self.check_base(base)?;
        let edit = self.state.edit(ops)?;
        let scope = Scope::of_edit(&edit, &self.state, &self.ports);
        let done = self.go(&scope, fds);
        if done.is_err() {
            self.state.undo(edit);
            self.go_back(&scope);
        }
        self.notify();
        done
    }

    /// Goes to `wanted`, or stays. Returns what was done. As for the rest, see [`Agent::apply`].
    ///
    /// # Errors
    /// [`ChangeError`]; everything done so far is undone then. A port that had to make room and can't be made
    /// again (its peer's connection was handed over, say) is down with that reason, until it is set again.
    pub fn change(&mut self, wanted: State, fds: &SentFds, made: Made) -> Result<Vec<Action>, ChangeError> {
        self.ports.supply(made);
        let before = std::mem::replace(&mut self.state, wanted);
        let scope = Scope::of(&before, &self.state, &self.ports);
        let done = self.go(&scope, fds);
        if done.is_err() {
            self.state = before;
            self.go_back(&scope);
        }
        self.notify();
        done
    }

    /// The kernel interfaces that no port has any more. The kernel deletes them when they are dropped, which takes it long.
    #[must_use]
    pub fn take_gone(&mut self) -> Vec<Gone> {
        self.ports.take_gone()
    }

    /// From what is in the engine to `self.state`, as far as the two may differ.
    fn go(&mut self, scope: &Scope, fds: &SentFds) -> Result<Vec<Action>, ChangeError> {
        let mut actions = self.plan(scope);
        actions.extend(scope.notes.iter().cloned().map(Action::Note));
        if actions.is_empty() && !scope.comes_or_goes {
            return Ok(actions);
        }
        check_fds(&actions, &self.state, fds).map_err(|error| {
            tracing::info!("change refused: {error}");
            error
        })?;
        self.generation += 1;
        self.reserve.clear();
        let taken = actions.iter().try_for_each(|action| self.take(action, scope, fds));
        match taken.and_then(|()| self.settle()) {
            Ok(()) => {
                self.reserve.clear();
                self.lost.retain(|port, _| !scope.ports.contains(port));
                tracing::info!(generation = self.generation, "state changed");
                Ok(actions)
            }
            Err(error) => {
                tracing::info!("change refused: {error}");
                self.generation -= 1;
                Err(error)
            }
        }
    }

    fn plan(&self, scope: &Scope) -> Vec<Action> {
        let actual = View {
            ports: scope.ports.iter().filter_map(|port| Some((port, self.ports.made_of(port)?))).collect(),
            xconnects: scope.xconnects.iter().filter(|x| self.ports.in_force(x)).cloned().collect(),
        };
        let wanted = |xconnect: &&Xconnect| self.state.xconnects().contains(*xconnect);
        let wanted = View {
            ports: (scope.ports.iter())
                .filter_map(|port| Some((port, MadeOf::of(&self.state, port)?)))
                .collect(),
            xconnects: scope.xconnects.iter().filter(wanted).cloned().collect(),
        };
        let mut actions = plan(&actual, &wanted);
        if !scope.routing.is_empty() {
            // Behind the ports that come, before those that leave: no route leads to a port that is gone.
            let at = actions.iter().position(|action| !matches!(action, Action::Attach(_)));
            actions.insert(at.unwrap_or(actions.len()), Action::Route(scope.routing.len()));
        }
        actions
    }

    /// Takes one step. What a closed port would need to be made again goes into `self.reserve`.
    fn take(&mut self, action: &Action, scope: &Scope, fds: &SentFds) -> Result<(), ChangeError> {
        match action {
            Action::Attach(port) => {
                let opened = self.ports.open(port, &self.state, fds);
                opened.map_err(|error| ChangeError::Open { port: port.clone(), error })
            }
            Action::Publish(xconnects) => {
                scope.xconnects.difference(xconnects).for_each(|xconnect| self.ports.part(xconnect));
                xconnects.iter().for_each(|xconnect| self.ports.join(xconnect));
                Ok(self.ports.publish(self.generation)?)
            }
            Action::Detach(port) => {
                let reserve = self.ports.close(port);
                self.reserve.extend(reserve);
                Ok(())
            }
            Action::Route(_) => {
                self.ports.route(&scope.routing, &self.state);
                Ok(self.ports.publish(self.generation)?)
            }
            // It is in the state.
            Action::Note(_) => Ok(()),
        }
    }

    /// Back to `self.state`, as far as possible.
    fn go_back(&mut self, scope: &Scope) {
        let fds = std::mem::take(&mut self.reserve);
        for action in self.plan(scope) {
            let Err(error) = self.take(&action, scope, &fds) else { continue };
            tracing::error!("undoing a change: {error}");
            if let Action::Attach(port) = action {
                self.lost.insert(port, format!("could not be restored after a change failed: {error}"));
            }
        }
        self.reserve.clear();
        if let Err(error) = self.settle() {
            tracing::error!("undoing a change: {error}");
        }
    }

    /// Publishes again if ports came or went since the last time.
    fn settle(&mut self) -> Result<(), ChangeError> {
        if self.ports.unpublished() {
            self.ports.publish(self.generation)?;
        }
        Ok(())
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
        if let Err(error) = self.change(State::default(), &SentFds::new(), interfaces::nothing()) {
            tracing::error!("closing ports: {error}");
        }
        interfaces::delete_here(self.take_gone());
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
