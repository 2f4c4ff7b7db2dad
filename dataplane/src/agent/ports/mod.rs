//! The ports that are open: making them, giving them to workers while their links are up, and closing them. How a port of one
//! kind is opened is in that kind's file.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use vwire_proto::stats::PortState;

use super::domains::{Domains, Line, Lines};
use super::memif_sockets::MemifSockets;
use super::open_error::{Cause, OpenError};
use super::placement::place;
use super::underlays::{Carriers, KernelSide};
use super::watched::Watched;
use super::{Link, Made, PortReport, SentFds, sent};
use crate::engine::{Engine, EngineError};
use crate::model::{Mac, MemifSpec, Mode, PortName, PortSpec, State, TouchedRouting, UnderlaySpec, Xconnect};
use crate::port::dpdk::DpdkDevice;
use crate::port::kernel::KernelDevice;
use crate::port::pipe::PipeEnd;
use crate::port::{PortIndex, PortParts};
use crate::stats::Counters;
use crate::tables::{Entry, Forward, Tables, Tunnel, WorkerId};
use crate::underlay::MtuProbe;
use crate::worker::capture::CaptureReader;

#[cfg(feature = "af_xdp")]
mod af_xdp;
mod dpdk;
mod kernel;
mod memif;
#[cfg(not(feature = "af_xdp"))]
mod no_af_xdp;
mod pipe;
mod vxlan;

pub(super) use kernel::kernel_spec;
pub(super) use vxlan::underlay_name;

/// What keeps a port alive beside its halves at the worker.
pub(super) enum Backing {
    /// The control sockets keep it. A socket that was handed over is kept here too.
    Memif { spec: MemifSpec, handed_over: Option<OwnedFd> },
    /// The interface goes with this.
    Kernel(KernelDevice),
    /// The interface is the kernel's again when this goes.
    #[cfg(feature = "af_xdp")]
    AfXdp(Box<af_xdp::Nic>),
    /// Needs its underlay.
    Vxlan(Tunnel, SocketAddr),
    /// Needs the port that carries it.
    Carried(Tunnel, PortName),
    /// Nothing.
    Pipe,
    /// The device goes with this.
    Dpdk(DpdkDevice),
    /// The control sockets keep it; here is what it was made of.
    Relay(SentFds),
}

impl Backing {
    /// What the port was made of, for making it again. Not kept longer than needed: a namespace that is held
    /// open does not end.
    fn reserve(&mut self, spec: &PortSpec) -> SentFds {
        let made_of = match self {
            Backing::Memif { handed_over, .. } => handed_over.take(),
            Backing::Kernel(device) => sent::namespace_of(device.queue()).ok(),
            #[cfg(feature = "af_xdp")]
            Backing::AfXdp(nic) => nic.take_netns(),
            Backing::Vxlan(..) | Backing::Carried(..) | Backing::Pipe | Backing::Dpdk(_) => None,
            Backing::Relay(fds) => return std::mem::take(fds),
        };
        spec.needs().zip(made_of).collect()
    }

    /// The hardware address that the device behind the port has.
    pub(super) fn mac(&self) -> Option<Mac> {
        match self {
            Backing::Dpdk(device) => Some(Mac(device.mac())).filter(|mac| mac.is_station()),
            #[cfg(feature = "af_xdp")]
            Backing::AfXdp(nic) => nic.interface().map(|nic| Mac(nic.mac)).filter(|mac| mac.is_station()),
            _ => None,
        }
    }

    /// The interface whose addresses, routes and neighbours stay the kernel's, if the port is on one.
    pub(super) fn kernel_side(&self) -> Option<KernelSide<'_>> {
        match self {
            #[cfg(feature = "af_xdp")]
            Backing::AfXdp(nic) => nic.kernel_side(),
            _ => None,
        }
    }

    /// The tunnel that it is.
    pub(super) const fn tunnel(&self) -> Option<&Tunnel> {
        match self {
            Backing::Vxlan(tunnel, _) | Backing::Carried(tunnel, _) => Some(tunnel),
            _ => None,
        }
    }
}

/// A kernel interface that no port has any more. The kernel deletes it when this is dropped.
pub struct Gone {
    _device: KernelDevice,
    _parts: Option<PortParts>,
}

impl Gone {
    /// One that never was a port's.
    pub fn unused(device: KernelDevice) -> Self {
        Self { _device: device, _parts: None }
    }
}

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

    /// Whether a cross-connect is in the tables.
    pub fn in_force(&self, xconnect: &Xconnect) -> bool {
        let [a, b] = xconnect.ends();
        self.joined.get(a) == Some(b)
    }

    /// The cross-connect that a port has in the tables.
    pub fn xconnect_of(&self, port: &PortName) -> Option<Xconnect> {
        Xconnect::new(port.clone(), self.joined.get(port)?.clone()).ok()
    }

    /// Joins two ports in the tables to come.
    pub fn join(&mut self, xconnect: &Xconnect) {
        let [a, b] = xconnect.ends();
        for (port, peer) in [(a, b), (b, a)] {
            if self.joined.insert(port.clone(), peer.clone()).as_ref() != Some(peer) {
                self.republish(port);
            }
            self.call_alike(port, peer);
        }
    }

    /// Separates them.
    pub fn part(&mut self, xconnect: &Xconnect) {
        if self.in_force(xconnect) {
            for port in xconnect.ends() {
                self.joined.remove(port);
                self.republish(port);
            }
        }
    }

    /// Makes what was touched of the routing domains as `state` says, in the tables to come.
    pub fn route(&mut self, touched: &TouchedRouting, state: &State) {
        let mut domains = std::mem::take(&mut self.domains);
        for port in domains.sync(touched, state, self) {
            self.republish(&port);
        }
        self.domains = domains;
        self.unpublished = true;
    }

    /// Somebody at a port said which hardware address is theirs.
    pub(super) fn learn(&mut self, port: PortIndex, address: std::net::IpAddr, mac: crate::model::Mac) {
        if let Forward::Route(place) = self.tables.entry(port).forward {
            self.unpublished |= self.domains.learn(place, address, mac);
        }
    }

    /// A port's line in the tables is to be made anew, and its peer's.
    pub(super) fn republish(&mut self, port: &PortName) {
        self.stale.extend(self.joined.get(port).cloned());
        self.stale.insert(port.clone());
        self.unpublished = true;
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

    /// True if ports came or went that the tables in force do not know of.
    pub fn unpublished(&self) -> bool {
        self.unpublished
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
        let worker = self.place(port, state);
        let underlay = state.underlays().get(port).cloned();
        self.engine.set_underlay(index, underlay.is_some());
        let made = match &spec {
            PortSpec::Memif(spec) => self.open_memif(port, spec, fds),
            PortSpec::Kernel(spec) => self.open_kernel(port, spec, index, worker, fds),
            PortSpec::AfXdp(spec) => self.open_af_xdp(port, spec, index, worker, fds),
            PortSpec::Vxlan(tunnel) => match &tunnel.underlay {
                Some(carrier) => self.open_carried(port, tunnel, carrier, index),
                None => self.open_vxlan(tunnel, index, worker),
            },
            PortSpec::Pipe(spec) => self.open_pipe(spec, index, worker),
            PortSpec::Dpdk(spec) => self.open_dpdk(spec, index, worker),
            PortSpec::Relay(spec) => self.open_relay(port, spec, fds),
        };
        let (backing, link) = made.inspect_err(|_| self.give_slot(index))?;
        self.counters.port(index).set_state(if link.up { PortState::Up } else { PortState::Down });
        let worker = self.engine.owner(index).unwrap_or(worker);
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

    /// The worker for a port: its tunnel's underlay decides, then the other end of its cross-connect and that
    /// one's underlay.
    pub(super) fn place(&mut self, port: &PortName, state: &State) -> WorkerId {
        let peer = state.peer(port);
        let carrier = |port: &PortName| match state.ports().get(port) {
            Some(PortSpec::Vxlan(vxlan)) if vxlan.underlay.is_none() => Some(vxlan.endpoint()),
            _ => None,
        };
        let carriers = [carrier(port), peer.and_then(carrier)];
        let at_carrier = |carrier: Option<SocketAddr>| {
            let carrier = carrier?;
            self.underlays
                .get(&carrier)
                .map(|underlay| underlay.worker)
                .or(self.promised.get(&carrier).copied())
        };
        let at_peer = peer.and_then(|peer| self.open.get(peer)).map(|open| open.worker);
        let beside = state.routing().members().get(port).and_then(|member| {
            let mut others = state.routing().members_of(&member.domain).filter(|other| *other != port);
            others.find_map(|other| self.open.get(other))
        });
        let at_peer = at_peer.or(beside.map(|open| open.worker));
        let at_port = |port: &PortName| {
            let carrier = state.ports().get(port).and_then(PortSpec::carrier)?;
            self.open.get(carrier).map(|open| open.worker)
        };
        let (first, last) = (at_port(port), peer.and_then(at_port));
        let ties = [first.or(at_carrier(carriers[0])), at_peer, last.or(at_carrier(carriers[1]))];
        let worker = place(ties, &self.load);
        for carrier in carriers.into_iter().flatten() {
            self.promised.entry(carrier).or_insert(worker);
        }
        worker
    }

    /// The worker for a port whose peer is there again: tunnels have stayed where their carrier was.
    pub(super) fn place_again(&mut self, port: &PortName, state: &State) -> WorkerId {
        match self.open.get(port) {
            Some(open) if open.underlay.is_some() => open.worker,
            _ => self.place(port, state),
        }
    }

    /// Counts a port at its worker, or no longer. A relay keeps none busy.
    pub(super) fn count(&mut self, open: &OpenPort, there: bool) {
        if open.spec.is_relay() {
            return;
        }
        if let Some(ports) = self.load.get_mut(usize::from(open.worker.0)) {
            *ports = if there { *ports + 1 } else { ports.saturating_sub(1) };
        }
    }

    /// A port is at another worker than before.
    pub(super) fn moved(&mut self, from: WorkerId, to: WorkerId) {
        for (worker, change) in [(from, -1), (to, 1)] {
            if let Some(ports) = self.load.get_mut(usize::from(worker.0)) {
                *ports = ports.saturating_add_signed(change);
            }
        }
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
            Backing::Kernel(device) => self.gone.push(Gone { _device: device, _parts: parts }),
        }
        self.carry_no_more(port, open.index);
        self.give_slot(open.index);
        self.touched.insert(port.clone());
        tracing::debug!(%port, "port closed");
        reserve
    }

    /// Takes a port's halves from its worker.
    pub(super) fn detach(&mut self, index: PortIndex) -> Option<PortParts> {
        match self.engine.detach(index) {
            Ok(parts) => Some(parts),
            // A port without a link has nothing at a worker.
            Err(EngineError::NotAttached(_)) => None,
            Err(error) => {
                tracing::error!("detaching {index}: {error}");
                None
            }
        }
    }

    /// Puts tables of the open ports in force, as they are joined.
    ///
    /// # Errors
    /// [`EngineError::Stuck`].
    pub fn publish(&mut self, generation: u64) -> Result<(), EngineError> {
        for port in std::mem::take(&mut self.stale) {
            let line = self.line(&port);
            self.domains.relink(&port, line);
            if let Some(open) = self.open.get(&port) {
                let peer = self.joined.get(&port).and_then(|peer| self.open.get(peer));
                let routed = || self.domains.place(&port).map_or(Forward::Nowhere, Forward::Route);
                let forward = peer.map_or_else(routed, |peer| Forward::Xconnect(peer.index));
                self.tables.set(open.index, Entry { forward, owner: self.engine.owner(open.index) });
            }
        }
        for underlay in self.underlays.values() {
            let owner = self.engine.owner(underlay.index);
            self.tables.set(underlay.index, Entry { forward: Forward::Nowhere, owner });
        }
        self.carriers.put_into(&mut self.tables);
        self.domains.put_into(&mut self.tables);
        self.tables.generation = generation;
        self.unpublished = false;
        self.engine.publish(self.tables.clone())?;
        self.domains.settled();
        self.carriers.wind();
        Ok(())
    }

    /// Counters of ports and underlays, by name.
    pub fn reports(&self) -> Vec<PortReport> {
        let driver = |open: &OpenPort| match &open.backing {
            Backing::Dpdk(device) => device.statistics(),
            _ => Vec::new(),
        };
        let ports = self.open.iter().map(|(name, open)| (name.to_string(), open.index, driver(open)));
        let underlays = self.underlays.iter().map(|(local, u)| (underlay_name(*local), u.index, Vec::new()));
        let report = |(name, index, device): (String, PortIndex, Vec<(String, u64)>)| {
            let port = self.counters.port(index);
            let up = port.state() == PortState::Up;
            PortReport {
                name,
                kind: port.kind(),
                up,
                worker: self.engine.owner(index),
                counters: port.snapshot(),
                device,
            }
        };
        let mut reports: Vec<_> = ports.chain(underlays).map(report).collect();
        reports.sort_by(|a, b| a.name.cmp(&b.name));
        reports
    }

    /// As [`Engine::capture`]. `None` while the port is down.
    ///
    /// # Errors
    /// [`EngineError::Stuck`].
    pub fn capture(
        &mut self,
        port: &PortName,
        snap_len: usize,
        ring_bytes: usize,
    ) -> Result<Option<CaptureReader>, EngineError> {
        let Some(open) = self.open.get(port) else { return Ok(None) };
        match self.engine.capture(open.index, snap_len, ring_bytes) {
            Ok(reader) => Ok(Some(reader)),
            Err(EngineError::NotAttached(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Lines for Ports {
    fn line(&self, port: &PortName) -> Option<Line> {
        let open = self.open.get(port)?;
        let mtu = match (&open.spec, &open.backing) {
            (PortSpec::Kernel(spec), _) => spec.mtu.get(),
            (PortSpec::Dpdk(spec), _) => spec.mtu.get(),
            // Its frames are counted with an Ethernet header, also where the port's have none.
            (_, Backing::Vxlan(tunnel, _) | Backing::Carried(tunnel, _)) => {
                u16::try_from(tunnel.max_frame.saturating_sub(14)).unwrap_or(u16::MAX)
            }
            #[cfg(feature = "af_xdp")]
            (_, Backing::AfXdp(nic)) => {
                nic.interface().map_or(1500, |nic| u16::try_from(nic.mtu).unwrap_or(u16::MAX))
            }
            _ => 1500,
        };
        Some(Line { index: open.index, link: link_of(open.spec.mode().unwrap_or_default()), mtu })
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
