//! Ports that are underlays: who is behind them, where each tunnel's datagrams go, and what the underlay says itself. Workers are told
//! by the tables, and tell what they hear; see [`l2`](crate::underlay::l2).

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use vwire_proto::stats::PortState;

use super::Link;
use super::memif_sockets::Source;
use super::open_error::{Cause, OpenError};
use super::ports::{Backing, Ports, link_of, up};
use super::watched::Watched;
use crate::model::{Mac, PortName, UnderlaySpec, VxlanSpec};
use crate::port::PortIndex;
use crate::port::vxlan::VxlanTx;
use crate::tables::{Tables, Tunnel, WorkerId};
use crate::underlay::l2::neighbours::Neighbours;
use crate::underlay::l2::station::{Heard, Station};

mod carrier;
mod kernel;

use carrier::{Carried, Carrier, say_no_way};
use kernel::Kernel;
pub(super) use kernel::KernelSide;

/// How long a router's word about a path is followed (RFC 1191 §6.3: not less than 5 minutes, 10 are recommended).
const NARROW_FOR: Duration = Duration::from_secs(600);
/// Most paths that routers' words are remembered of.
const NARROW_PATHS: usize = 256;

/// All of them, and the clock that they live by.
pub(super) struct Carriers {
    all: BTreeMap<PortName, Carrier>,
    clock: OwnedFd,
    /// What is not in the tables any more.
    gone: Vec<PortIndex>,
}

impl Carriers {
    /// None yet.
    pub fn new(watched: &mut Watched) -> std::io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let clock = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        watched.add(clock.as_fd(), Source::Clock).map_err(|error| std::io::Error::other(error.reason))?;
        Ok(Self { all: BTreeMap::new(), clock, gone: Vec::new() })
    }

    /// Puts what changed into the tables to be published.
    pub fn put_into(&mut self, tables: &mut Tables) {
        for gone in self.gone.drain(..) {
            tables.set_line(gone, None);
            tables.set_hop(gone, None);
        }
        self.all.values_mut().filter(|carrier| carrier.changed).for_each(|carrier| carrier.put_into(tables));
    }

    /// Winds the clock to the next time at which there is something to do.
    pub fn wind(&self) {
        let due = self.all.values().filter_map(Carrier::due).min();
        let wait = due.map(|due| due.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1)));
        let (tv_sec, tv_nsec) =
            wait.map_or((0, 0), |wait| (wait.as_secs() as i64, wait.subsec_nanos().into()));
        let never = Timespec { tv_sec: 0, tv_nsec: 0 };
        let once = Itimerspec { it_interval: never, it_value: Timespec { tv_sec, tv_nsec } };
        if let Err(error) = timerfd_settime(&self.clock, TimerfdTimerFlags::empty(), &once) {
            tracing::error!("winding the underlays' clock: {error}");
        }
    }

    fn at(&mut self, index: PortIndex) -> Option<(&PortName, &mut Carrier)> {
        self.all.iter_mut().find(|(_, carrier)| carrier.index == index)
    }
}

impl Ports {
    /// A port that is an underlay has been opened.
    pub(super) fn carry(
        &mut self,
        port: &PortName,
        index: PortIndex,
        spec: &UnderlaySpec,
        backing: &Backing,
    ) -> Result<(), OpenError> {
        let kernel =
            backing.kernel_side().map(|side| Kernel::new(side, port, &mut self.watched)).transpose()?;
        let mac = spec.mac.or(backing.mac()).unwrap_or_else(|| Mac::of_name(port.as_str()));
        if let Backing::Kernel(device) = backing
            && let Err(error) = device.without_udp_segments()
        {
            tracing::warn!("interface {}: having the kernel cut UDP frames: {error}", device.ifname());
        }
        let addresses: Vec<_> = spec.addresses.iter().map(|prefix| (prefix.address, prefix.len)).collect();
        let carrier = Carrier {
            index,
            station: Station::new(mac, spec.mtu.get(), &addresses, &spec.gateways),
            mtu: spec.mtu.get().into(),
            tunnels: BTreeMap::new(),
            neighbours: Neighbours::default(),
            narrow: HashMap::new(),
            kernel,
            changed: true,
        };
        self.carriers.all.insert(port.clone(), carrier);
        Ok(())
    }

    /// A port has been closed, which may have been an underlay.
    pub(super) fn carry_no_more(&mut self, port: &PortName, index: PortIndex) {
        if self.carriers.all.remove(port).is_some() {
            self.carriers.gone.push(index);
            self.watched.forget(&Source::Kernel(port.clone()));
        }
    }

    /// The tunnels that are open on a port.
    pub fn carried_by<'p>(&'p self, port: &PortName) -> impl Iterator<Item = &'p PortName> + use<'p> {
        self.carriers.all.get(port).into_iter().flat_map(|carrier| carrier.tunnels.keys())
    }

    pub(super) fn open_carried(
        &mut self,
        port: &PortName,
        spec: &VxlanSpec,
        name: &PortName,
        index: PortIndex,
        home: WorkerId,
    ) -> Result<(Backing, Link), OpenError> {
        let missing = || OpenError::new(Cause::Engine, format!("its underlay, port {name}, is not open"));
        let (mut workers, link) =
            self.open.get(name).map(|open| (self.workers_of(open), open.link.clone())).ok_or_else(missing)?;
        // The tunnel's own first.
        workers.sort_by_key(|worker| *worker != home);
        let carrier = self.carriers.all.get_mut(name).ok_or_else(missing)?;
        let mtu = spec.underlay_mtu.map_or(carrier.mtu, |mtu| mtu.get().into());
        let tunnel = Tunnel {
            port: index,
            underlay: carrier.index,
            remote: SocketAddr::new(spec.remote, spec.port.get()),
            vni: spec.vni,
            max_frame: spec.max_frame(mtu),
            link: link_of(spec.mode),
        };
        let share = |worker| (worker, VxlanTx::new(tunnel.clone()).into_parts());
        self.engine.share(index, workers.into_iter().map(share).collect())?;
        let next_hop = carrier.next_hop(spec.local, spec.remote);
        match next_hop {
            Some(next_hop) => carrier.neighbours.want(next_hop, Instant::now()),
            None => say_no_way(spec.local, spec.remote),
        }
        let Tunnel { remote, max_frame, .. } = tunnel;
        let carried = Carried { index, local: spec.local, remote, max_frame, next_hop };
        carrier.tunnels.insert(port.clone(), carried);
        carrier.changed = true;
        let link = if link.up { up(&remote.to_string()) } else { waits_for(name, &link.reason) };
        Ok((Backing::Carried(tunnel, name.clone()), link))
    }

    pub(super) fn leave_carrier(&mut self, port: &PortName, tunnel: &Tunnel, name: &PortName) {
        self.carriers.gone.push(tunnel.port);
        let Some(carrier) = self.carriers.all.get_mut(name) else { return };
        if let Some(next_hop) = carrier.tunnels.remove(port).and_then(|carried| carried.next_hop) {
            carrier.neighbours.leave(next_hop);
        }
        carrier.changed = true;
    }

    /// A kernel interface that is an underlay's exception port is known by the underlay's hardware address: what comes by the one is for
    /// the other.
    pub(super) fn call_alike(&self, carrier: &PortName, exception: &PortName) {
        let Some(mac) = self.carriers.all.get(carrier).map(|carrier| carrier.station.mac()) else { return };
        if let Some(Backing::Kernel(device)) = self.open.get(exception).map(|open| &open.backing)
            && let Err(error) = device.set_mac(mac.0)
        {
            tracing::warn!(
                "interface {}: it is the exception port of underlay {carrier} and can't be given its hardware address {mac}: \
                 {error}; what is sent to that address will not be taken by the kernel behind it",
                device.ifname()
            );
        }
    }

    /// A worker heard something that is for the underlay itself.
    pub(super) fn hear(&mut self, index: PortIndex, frame: &[u8]) {
        let now = Instant::now();
        let Some((name, carrier)) = self.carriers.at(index) else { return };
        let Heard { reply, claim, narrow } = carrier.station.hear(frame);
        if let Some((address, mac)) = claim {
            carrier.changed |= carrier.neighbours.heard(address, mac, now);
        }
        if let Some((remote, mtu)) = narrow {
            let ours = carrier.tunnels.values().any(|tunnel| tunnel.remote == remote);
            let room = carrier.narrow.len() < NARROW_PATHS || carrier.narrow.contains_key(&remote);
            if ours && room && mtu < carrier.mtu {
                tracing::info!(underlay = %name, %remote, mtu, "a router says that the path is narrower");
                carrier.narrow.insert(remote, (mtu, now + NARROW_FOR));
                carrier.changed = true;
            }
        }
        let changed = carrier.changed;
        // With an exception port the kernel behind it answers.
        let answers = !self.joined.contains_key(name);
        self.unpublished |= changed;
        if let Some(reply) = reply.filter(|_| answers) {
            self.say(index, reply);
        }
        self.carriers.wind();
    }

    fn say(&self, index: PortIndex, frame: Vec<u8>) {
        // A port that is down says nothing.
        let _ = self.engine.say(index, frame);
    }

    /// The clock says that there is something to do.
    pub(super) fn turn_underlays(&mut self) {
        let now = Instant::now();
        // Read, or it stays readable.
        let mut ticks = [0; 8];
        let _ = rustix::io::read(&self.carriers.clock, &mut ticks);
        let mut questions = Vec::new();
        for carrier in self.carriers.all.values_mut() {
            questions.extend(carrier.turn(now).into_iter().map(|frame| (carrier.index, frame)));
            self.unpublished |= carrier.changed;
        }
        questions.into_iter().for_each(|(index, frame)| self.say(index, frame));
        self.carriers.wind();
    }

    /// The kernel says that something has changed.
    pub(super) fn read_kernel(&mut self, port: &PortName) {
        let now = Instant::now();
        let Some(carrier) = self.carriers.all.get_mut(port) else { return };
        let Some(kernel) = &mut carrier.kernel else { return };
        let changes = kernel.tables.take_changes();
        if changes.routes {
            carrier.find_ways(now);
        }
        carrier.find_neighbours(now);
        self.unpublished |= carrier.changed;
        self.carriers.wind();
    }

    /// A port that may be an underlay can carry again.
    pub(super) fn carrier_up(&mut self, port: &PortName) {
        let now = Instant::now();
        let Some(carrier) = self.carriers.all.get_mut(port) else { return };
        carrier.neighbours.forget(now);
        // The interface may be another one now, with another program on it.
        if let Some(side) = self.open.get(port).and_then(|open| open.backing.kernel_side()) {
            self.watched.forget(&Source::Kernel(port.clone()));
            carrier.kernel = Kernel::new(side, port, &mut self.watched)
                .inspect_err(|error| tracing::error!(%port, "{error}"))
                .ok();
            carrier.find_ways(now);
        }
        carrier.changed = true;
        for (name, tunnel) in &carrier.tunnels {
            let Some(open) = self.open.get_mut(name) else { continue };
            open.link = up(&tunnel.remote.to_string());
            self.counters.port(open.index).set_state(PortState::Up);
            self.touched.insert(name.clone());
        }
        self.unpublished = true;
    }

    /// A port that may be an underlay is down: its tunnels are, too, and wait with it.
    pub(super) fn carrier_down(&mut self, port: &PortName) {
        let Some(carrier) = self.carriers.all.get(port) else { return };
        let reason = self.open.get(port).map(|open| open.link.reason.clone()).unwrap_or_default();
        for name in carrier.tunnels.keys() {
            let Some(open) = self.open.get_mut(name) else { continue };
            open.link = waits_for(port, &reason);
            self.counters.port(open.index).set_state(PortState::Down);
            self.touched.insert(name.clone());
        }
    }
}

fn waits_for(carrier: &PortName, reason: &str) -> Link {
    Link { reason: format!("its underlay, port {carrier}, is down: {reason}"), ..Link::default() }
}
