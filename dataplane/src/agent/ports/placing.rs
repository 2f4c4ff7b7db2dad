//! Which worker a port is given to, and how many ports each has. How it is weighed is [`place`]'s.

use std::net::SocketAddr;

use super::super::open_error::{Cause, OpenError};
use super::super::placement::{place, spread};
use super::{OpenPort, Ports};
use crate::model::{PortName, PortSpec, State};
use crate::tables::WorkerId;

impl Ports {
    /// The worker for a port: its tunnel's underlay decides, then the other end of its cross-connect and that
    /// one's underlay.
    pub(in crate::agent) fn place(&mut self, port: &PortName, state: &State) -> WorkerId {
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
            let theirs = self.workers_of(self.open.get(carrier)?);
            // Any of them will do: best the one that has the tunnel's other end.
            let peer = state.peer(port).and_then(|peer| self.open.get(peer)).map(|open| open.worker);
            let lightest = || theirs.iter().min_by_key(|worker| self.load.get(usize::from(worker.0)));
            theirs.iter().find(|worker| Some(**worker) == peer).or_else(lightest).copied()
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
    pub(in crate::agent) fn place_again(&mut self, port: &PortName, state: &State) -> WorkerId {
        match self.open.get(port) {
            Some(open) if open.underlay.is_some() => open.worker,
            _ => self.place(port, state),
        }
    }

    /// The workers that a port's queues are for, its home first.
    pub(in crate::agent) fn workers_of(&self, open: &OpenPort) -> Vec<WorkerId> {
        spread(open.worker, open.spec.workers(), self.engine.workers()).collect()
    }

    /// The same for a port that is to be opened.
    ///
    /// # Errors
    /// There are fewer workers than it asks for.
    pub(super) fn workers_for(&self, spec: &PortSpec, home: WorkerId) -> Result<Vec<WorkerId>, OpenError> {
        let (asked, there) = (spec.workers(), self.engine.workers());
        if usize::from(asked) > there {
            let what = format!(
                "workers is {asked}, but the engine has {there}: name more [workers] cores, or ask for fewer"
            );
            return Err(OpenError::new(Cause::Request, what));
        }
        Ok(spread(home, asked, there).collect())
    }

    /// Counts a port at its workers, or no longer. A relay keeps none busy.
    pub(in crate::agent) fn count(&mut self, open: &OpenPort, there: bool) {
        if open.spec.is_relay() {
            return;
        }
        for worker in self.workers_of(open) {
            if let Some(ports) = self.load.get_mut(usize::from(worker.0)) {
                *ports = if there { *ports + 1 } else { ports.saturating_sub(1) };
            }
        }
    }

    /// A port is at another worker than before.
    pub(in crate::agent) fn moved(&mut self, from: WorkerId, to: WorkerId) {
        for (worker, change) in [(from, -1), (to, 1)] {
            if let Some(ports) = self.load.get_mut(usize::from(worker.0)) {
                *ports = ports.saturating_add_signed(change);
            }
        }
    }
}
