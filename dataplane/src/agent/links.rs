//! What becomes of a port's link while the port is open: peers that come and go, workers that report faults.

use std::time::{Duration, Instant};

use vwire_proto::stats::PortState;

use super::Link;
use super::memif_sockets::{MemifEvent, Source};
use super::ports::{Backing, OpenPort, Ports, link_of, underlay_name, up};
use crate::model::{PortName, State};
use crate::port::{PortIndex, memif};
use crate::tables::WorkerId;
use crate::worker::command::Event;

/// Faults of one port are not logged as warnings more often than this. Each is in the link's reason, and in the log as information.
const WARN_INTERVAL: Duration = Duration::from_secs(1);

impl Ports {
    /// Does what the watched descriptors call for. False if that was nothing.
    pub fn process(&mut self, state: &State) -> bool {
        let ready = self.watched.ready();
        for source in &ready {
            match source {
                None => self.take_engine_events(),
                Some(Source::Nic(port)) => self.nic_changed(port),
                Some(Source::Clock) => self.turn_underlays(),
                Some(Source::Kernel(port)) => self.read_kernel(port),
                Some(source) => {
                    for event in self.sockets.process(source) {
                        self.take_memif_event(event, state);
                    }
                }
            }
        }
        !ready.is_empty()
    }

    fn take_memif_event(&mut self, event: MemifEvent, state: &State) {
        match event {
            MemifEvent::Up(port, link) => self.connect(&port, *link, state),
            MemifEvent::Down(port, reason) => self.down(&port, reason),
            MemifEvent::Joined(relay, ends) => self.joined(&relay, &ends),
            MemifEvent::Refused(Some(port), reason) => {
                self.explain(&port, reason);
            }
            MemifEvent::Refused(None, reason) => tracing::debug!("memif peer refused: {reason}"),
            MemifEvent::Closed(ports, reason) => {
                let told = ports.iter().filter(|port| self.explain(port, reason.clone())).count();
                // It fails again and again while it lasts; once says it.
                if told > 0 {
                    tracing::warn!(ports = told, "nobody can connect: {reason}");
                }
            }
        }
    }

    fn connect(&mut self, port: &PortName, link: ::memif::Link, state: &State) {
        // A fault of the connection before this one may still be on its way, and must not be taken for this
        // one's.
        self.take_engine_events();
        let worker = self.place_again(port, state);
        let Some(open) = self.open.get_mut(port) else { return };
        let frames = link_of(open.spec.mode().unwrap_or_default());
        let peer = format!("{} {} (process {})", link.peer_program, link.peer_interface, link.peer.pid);
        let attached =
            self.engine.attach(open.index, worker, memif::parts(open.index, frames, link.rx, link.tx));
        if let Err(error) = attached {
            return self.fault(port, &error.to_string());
        }
        tracing::info!(%port, worker = worker.0, %peer, "memif connected");
        open.link = up(&peer);
        self.counters.port(open.index).set_state(PortState::Up);
        let before = std::mem::replace(&mut open.worker, worker);
        self.moved(before, worker);
        self.touched.insert(port.clone());
        self.republish(port);
        self.carrier_up(port);
    }

    /// A relay's ends are both there. No worker and no table has to do with it.
    fn joined(&mut self, relay: &PortName, ends: &str) {
        let Some(open) = self.open.get_mut(relay) else { return };
        tracing::info!(%relay, %ends, "memif ends joined");
        open.link = up(ends);
        self.counters.port(open.index).set_state(PortState::Up);
        self.touched.insert(relay.clone());
    }

    /// The link is gone; the port stays, and waits for the next.
    pub(super) fn down(&mut self, port: &PortName, reason: String) {
        let Some(open) = self.open.get_mut(port) else { return };
        tracing::info!(%port, %reason, "link down");
        let index = open.index;
        open.link = Link { reason, ..Link::default() };
        self.counters.port(index).set_state(PortState::Down);
        let relay = matches!(open.backing, Backing::Relay(_));
        self.touched.insert(port.clone());
        if !relay {
            self.domains.forget(port);
            self.detach(index);
            self.republish(port);
            self.carrier_down(port);
        }
    }

    /// Says why a port that is down stays down. False if it is up, or that was known.
    pub(super) fn explain(&mut self, port: &PortName, reason: String) -> bool {
        let Some(open) = self.open.get_mut(port) else { return false };
        let new = !open.link.up && open.link.reason != reason;
        if new {
            tracing::debug!(%port, %reason, "link still down");
            open.link.reason = reason;
            self.touched.insert(port.clone());
        }
        new
    }

    /// Logs a fault, unless the port had one lately: a hostile peer makes thousands in a second.
    fn warn(&mut self, port: &PortName, fault: &str) {
        let Some(open) = self.open.get_mut(port) else { return };
        if open.warned.is_none_or(|last| last.elapsed() >= WARN_INTERVAL) {
            open.warned = Some(Instant::now());
            tracing::warn!(%port, "{fault}");
        }
    }

    /// A port can't go on: ends its connection, if it has one, and says why.
    fn fault(&mut self, port: &PortName, reason: &str) {
        self.warn(port, reason);
        if let Some(Backing::Memif { spec, .. }) = self.open.get(port).map(|open| &open.backing) {
            let spec = spec.clone();
            self.sockets.disconnect(port, &spec, reason);
        }
        self.down(port, reason.to_owned());
        self.nic_fault(port);
    }

    fn take_engine_events(&mut self) {
        self.engine.clear_events();
        while let Ok(event) = self.engine.events().try_recv() {
            match event {
                Event::Faulted { port: index, attachment, fault, parts } => {
                    drop(parts);
                    if self.engine.forget(index, attachment) {
                        self.take_fault(index, &fault.to_string());
                    } else {
                        self.take_old_fault(index, &fault.to_string());
                    }
                }
                Event::Learnt { port, address, mac } => self.learn(port, address, mac),
                Event::Link { port } => self.take_link(port),
                Event::Heard { port, frame } => self.hear(port, &frame),
                Event::Died { worker, message } => self.take_death(worker, &message),
            }
        }
    }

    fn port_at(&self, index: PortIndex) -> Option<PortName> {
        self.open.iter().find(|(_, open)| open.index == index).map(|(port, _)| port.clone())
    }

    /// The link that had the fault ended before we heard of it, and there may be another: that one is not to
    /// blame.
    fn take_old_fault(&mut self, index: PortIndex, fault: &str) {
        if let Some(port) = self.port_at(index) {
            self.warn(&port, fault);
            self.explain(&port, fault.to_owned());
        }
    }

    fn take_fault(&mut self, index: PortIndex, fault: &str) {
        if let Some(port) = self.port_at(index) {
            return self.fault(&port, fault);
        }
        let Some((local, underlay)) = self.underlays.iter_mut().find(|(_, u)| u.index == index) else {
            return;
        };
        let (local, reason) = (*local, format!("underlay {}: {fault}", underlay_name(*local)));
        underlay.fault = Some(reason.clone());
        self.counters.port(index).set_state(PortState::Down);
        let carried =
            |open: &OpenPort| matches!(&open.backing, Backing::Vxlan(_, carrier) if *carrier == local);
        let tunnels: Vec<PortName> =
            self.open.iter().filter(|(_, open)| carried(open)).map(|(port, _)| port.clone()).collect();
        tunnels.iter().for_each(|port| self.down(port, reason.clone()));
    }

    fn take_death(&mut self, worker: WorkerId, message: &str) {
        tracing::error!(worker = worker.0, "worker died: {message}");
        self.dead_workers += 1;
        // A tunnel on a shared underlay is at workers that its own place does not name.
        let has = |open: &OpenPort| self.engine.owner(open.index).is_some_and(|owners| owners.has(worker));
        let on_it =
            |open: &OpenPort| !open.spec.is_relay() && (self.workers_of(open).contains(&worker) || has(open));
        let theirs: Vec<PortName> =
            self.open.iter().filter(|(_, open)| on_it(open)).map(|(port, _)| port.clone()).collect();
        for port in theirs {
            let Some(open) = self.open.get_mut(&port) else { continue };
            open.link = Link { reason: format!("worker {} died: {message}", worker.0), ..Link::default() };
            self.counters.port(open.index).set_state(PortState::Down);
            self.touched.insert(port);
        }
    }
}
