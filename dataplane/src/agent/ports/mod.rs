//! The ports that are open: making them, and closing them.
//!
//! | file | its part |
//! |---|---|
//! | `memif`, `kernel`, `af_xdp`, `dpdk`, `vxlan`, `pipe` | how a port of one kind is opened, and what is its kind's own |
//! | `backing` | what keeps a port of each kind alive |
//! | `placing` | which worker it is given to |
//! | `tables` | cross-connects, routes and what else the workers read of it |
//! | `reports` | what is told of it |

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use vwire_proto::stats::PortState;

use super::domains::Domains;
use super::memif_sockets::MemifSockets;
use super::open_error::{Cause, OpenError};
use super::underlays::Carriers;
use super::watched::Watched;
use super::{Link, Made, SentFds};
use crate::engine::{Engine, EngineError};
use crate::model::{Mode, PortName, PortSpec, State, UnderlaySpec};
use crate::port::pipe::PipeEnd;
use crate::port::{PortIndex, PortParts};
use crate::stats::Counters;
use crate::tables::{Entry, Owners, Tables, WorkerId};
use crate::underlay::MtuProbe;

#[cfg(feature = "af_xdp")]
mod af_xdp;
mod backing;
mod dpdk;
mod kernel;
mod memif;
#[cfg(not(feature = "af_xdp"))]
mod no_af_xdp;
mod pipe;
mod placing;
mod reports;
mod tables;
mod vxlan;

pub(super) use backing::Backing;
pub use backing::Gone;
pub(super) use kernel::kernel_spec;
pub(super) use vxlan::underlay_name;

pub(super) struct OpenPort {
    pub(super) spec: PortSpec,
    /// What it is as an underlay.
    pub(super) underlay: Option<UnderlaySpec>,
    pub(super) index: PortIndex,
    pub(super) worker: WorkerId,
    pub(super) link: Link,
    pub(super) backing: Backing,
    /// When a fault was last logged as a warning.
    pub(super) warned: Option<Instant>,
}

/// A UDP socket that carries tunnels.
pub(super) struct Underlay {
    pub(super) index: PortIndex,
    worker: WorkerId,
    probe: MtuProbe,
    tunnels: usize,
    /// Why it no longer works, if it does not.
    pub(super) fault: Option<String>,
}

/// All ports, the engine they live in, and the descriptors that tell about them.
pub struct Ports {
    pub(super) engine: Engine,
    pub(super) counters: Counters,
    /// Slots of the tables, the longest unused first: frames that are still on their way to a closed port
    /// must not reach the next.
    free: VecDeque<PortIndex>,
    pub(super) open: BTreeMap<PortName, OpenPort>,
    pub(super) underlays: HashMap<SocketAddr, Underlay>,
    /// The ports that are underlays.
    pub(super) carriers: Carriers,
    /// Where the underlay of a tunnel that is still to come will be.
    promised: HashMap<SocketAddr, WorkerId>,
    pub(super) sockets: MemifSockets,
    /// Ends of pipes that no port has.
    loose_ends: HashMap<PortName, PipeEnd>,
    /// Interfaces made ahead for the ports to come.
    made: Made,
    /// Interfaces whose ports are closed.
    gone: Vec<Gone>,
    pub(super) watched: Watched,
    pub(super) touched: BTreeSet<PortName>,
    /// The tables to be published next; those in force but for `stale`.
    tables: Tables,
    /// The routing domains; those of `tables` but for what changed since.
    pub(super) domains: Domains,
    /// The cross-connects of `tables`, from either end.
    pub(super) joined: HashMap<PortName, PortName>,
    /// Ports whose lines in `tables` are not what they should be.
    stale: BTreeSet<PortName>,
    /// How many ports each worker has.
    load: Vec<usize>,
    pub(super) unpublished: bool,
    pub(super) dead_workers: usize,
}

impl Ports {
    /// No ports yet.
    ///
    /// # Errors
    /// The kernel's, if it has no descriptor left to watch others with.
    pub fn new(engine: Engine) -> std::io::Result<Self> {
        let counters = engine.counters().clone();
        let mut watched = Watched::new(engine.event_fd())?;
        let carriers = Carriers::new(&mut watched)?;
        Ok(Self {
            free: (0..counters.capacity()).map(PortIndex).collect(),
            load: vec![0; engine.workers()],
            engine,
            counters,
            open: BTreeMap::new(),
            underlays: HashMap::new(),
            carriers,
            promised: HashMap::new(),
            sockets: MemifSockets::default(),
            loose_ends: HashMap::new(),
            made: Made::new(),
            gone: Vec::new(),
            watched,
            touched: BTreeSet::new(),
            tables: Tables::default(),
            domains: Domains::default(),
            joined: HashMap::new(),
            stale: BTreeSet::new(),
            unpublished: false,
            dead_workers: 0,
        })
    }

    /// What a port is, if it is open.
    pub fn spec(&self, port: &PortName) -> Option<&PortSpec> {
        self.open.get(port).map(|open| &open.spec)
    }

    /// What a port is made of, if it is open.
    pub fn made_of(&self, port: &PortName) -> Option<super::plan::Made<'_>> {
        let open = self.open.get(port)?;
        let over = match &open.backing {
            Backing::Carried(_, carrier) => {
                self.open.get(carrier).and_then(|open| Some((&open.spec, open.underlay.as_ref()?)))
            }
            _ => None,
        };
        Some(super::plan::Made { spec: &open.spec, underlay: open.underlay.as_ref(), over })
    }

    /// A port's link, if the port is open.
    pub fn link(&self, port: &PortName) -> Option<&Link> {
        self.open.get(port).map(|open| &open.link)
    }

    /// How many workers there are, and how many have died.
    pub fn workers(&self) -> (usize, usize) {
        (self.engine.workers(), self.dead_workers)
    }

    /// The other end of a pipe of which a port has one end. For tests, which play the peer.
    pub fn take_pipe_end(&mut self, pipe: &PortName) -> Option<PipeEnd> {
        self.loose_ends.remove(pipe)
    }

    /// The ports whose links changed since the last call.
    pub fn take_touched(&mut self) -> BTreeSet<PortName> {
        std::mem::take(&mut self.touched)
    }

    /// Interfaces for ports that are opened next.
    pub fn supply(&mut self, made: Made) {
        self.made.extend(made);
    }

    /// The interfaces that no port has any more, and those that none took.
    pub fn take_gone(&mut self) -> Vec<Gone> {
        self.gone.extend(self.made.drain().map(|(_, device)| Gone::unused(device)));
        std::mem::take(&mut self.gone)
    }

    /// Makes the port that `state` describes.
    ///
    /// # Errors
    /// [`OpenError`]; nothing is left of it then.
    pub fn open(&mut self, port: &PortName, state: &State, fds: &SentFds) -> Result<(), OpenError> {
        let Some(spec) = state.ports().get(port).cloned() else {
            return Err(OpenError::new(Cause::Engine, "is not in the state that it is to be made for"));
        };
        let index = self.take_slot(port.as_str(), spec.kind())?;
        let home = self.place(port, state);
        let workers = self.workers_for(&spec, home).inspect_err(|_| self.give_slot(index))?;
        let underlay = state.underlays().get(port).cloned();
        self.engine.set_underlay(index, underlay.is_some());
        let made = match &spec {
            PortSpec::Memif(spec) => self.open_memif(port, spec, fds),
            PortSpec::Kernel(spec) => self.open_kernel(port, spec, index, home, fds),
            PortSpec::AfXdp(spec) => self.open_af_xdp(port, spec, index, &workers, fds),
            PortSpec::Vxlan(tunnel) => match &tunnel.underlay {
                Some(carrier) => self.open_carried(port, tunnel, carrier, index, home),
                None => self.open_vxlan(tunnel, index, home),
            },
            PortSpec::Pipe(spec) => self.open_pipe(spec, index, home),
            PortSpec::Dpdk(spec) => self.open_dpdk(spec, index, &workers),
            PortSpec::Relay(spec) => self.open_relay(port, spec, fds),
        };
        let (backing, link) = made.inspect_err(|_| self.give_slot(index))?;
        self.counters.port(index).set_state(if link.up { PortState::Up } else { PortState::Down });
        let worker = self.engine.owner(index).map_or(home, Owners::home);
        if let Some(tunnel) = backing.tunnel() {
            self.tables.tunnels.insert(tunnel);
        }
        if let Some(underlay) = &underlay
            && let Err(error) = self.carry(port, index, underlay, &backing)
        {
            self.detach(index);
            self.give_slot(index);
            return Err(error);
        }
        let open = OpenPort { spec, underlay, index, worker, link, backing, warned: None };
        self.count(&open, true);
        self.open.insert(port.clone(), open);
        self.touched.insert(port.clone());
        self.republish(port);
        tracing::debug!(%port, index = index.0, worker = worker.0, "port opened");
        Ok(())
    }

    fn take_slot(&mut self, name: &str, kind: &str) -> Result<PortIndex, OpenError> {
        let none = || {
            let limit = self.counters.capacity();
            OpenError::new(Cause::Exhausted, format!("all {limit} slots for ports and underlays are taken"))
        };
        let index = self.free.pop_front().ok_or_else(none)?;
        self.counters.port(index).open(name, kind);
        Ok(index)
    }

    fn give_slot(&mut self, index: PortIndex) {
        self.engine.set_underlay(index, false);
        self.counters.port(index).close();
        self.free.push_back(index);
    }

    /// Closes a port. The tables in force must not name it any more. Returns the descriptors that would be
    /// needed to make it again, if it was made of some that can be used twice.
    pub fn close(&mut self, port: &PortName) -> SentFds {
        let Some(mut open) = self.open.remove(port) else { return SentFds::new() };
        let reserve = open.backing.reserve(&open.spec);
        self.count(&open, false);
        self.republish(port);
        self.tables.set(open.index, Entry::default());
        if let Some(tunnel) = open.backing.tunnel() {
            self.tables.tunnels.remove(tunnel);
        }
        let parts = self.detach(open.index);
        match open.backing {
            Backing::Memif { spec, .. } => {
                if let Some(source) = self.sockets.close(port, &spec) {
                    self.watched.forget(&source);
                }
            }
            #[cfg(feature = "af_xdp")]
            Backing::AfXdp(_) => self.close_af_xdp(port),
            Backing::Vxlan(_, local) => self.leave_underlay(local),
            Backing::Carried(tunnel, carrier) => self.leave_carrier(port, &tunnel, &carrier),
            Backing::Pipe => self.drop_loose_end(&open.spec),
            // The halves first: whoever drops the last of a device closes it, and it is to be closed when this returns.
            Backing::Dpdk(_device) => drop(parts),
            Backing::Relay(_) => {
                let source = self.sockets.close_relay(port);
                self.watched.forget(&source);
            }
            Backing::Kernel(device) => self.gone.push(Gone::closed(device, parts)),
        }
        self.carry_no_more(port, open.index);
        self.give_slot(open.index);
        self.touched.insert(port.clone());
        tracing::debug!(%port, "port closed");
        reserve
    }

    /// Takes a port's halves from its workers.
    pub(super) fn detach(&mut self, index: PortIndex) -> Vec<PortParts> {
        match self.engine.detach(index) {
            Ok(parts) => parts,
            // A port without a link has nothing at a worker.
            Err(EngineError::NotAttached(_)) => Vec::new(),
            Err(error) => {
                tracing::error!("detaching {index}: {error}");
                Vec::new()
            }
        }
    }
}

impl AsFd for Ports {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watched.as_fd()
    }
}

pub(super) fn up(peer: &str) -> Link {
    Link { up: true, reason: String::new(), peer: peer.to_owned() }
}

/// The mode, as the packet path calls it.
pub(super) const fn link_of(mode: Mode) -> crate::offload::Link {
    match mode {
        Mode::Ethernet => crate::offload::Link::Ethernet,
        Mode::Ip => crate::offload::Link::Ip,
    }
}
