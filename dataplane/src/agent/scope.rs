//! What a change concerns: it is looked at, planned and undone, and nothing else is.

use std::collections::BTreeSet;

use super::plan::Made;
use super::ports::Ports;
use crate::model::{Edit, PortName, State, TouchedRouting, Xconnect};

/// What a change may touch; all else agrees with the state before and after.
pub(super) struct Scope {
    pub ports: BTreeSet<PortName>,
    pub xconnects: BTreeSet<Xconnect>,
    /// Ports that get another note and nothing else.
    pub notes: BTreeSet<PortName>,
    /// A port of the state comes or goes, also if that takes no step: one that was lost.
    pub comes_or_goes: bool,
    pub routing: TouchedRouting,
}

impl Scope {
    /// All that differs between two states, or between the second and what is open.
    pub(super) fn of(before: &State, after: &State, open: &Ports) -> Self {
        let both = || before.ports().keys().chain(after.ports().keys());
        let differs = |port: &&PortName| Made::of(after, port) != open.made_of(port);
        let ports: BTreeSet<_> = both().filter(differs).cloned().collect();
        let xconnects = before.xconnects().iter().chain(after.xconnects());
        let concerned = |x: &&Xconnect| {
            after.xconnects().contains(*x) != open.in_force(x)
                || x.ends().iter().any(|end| ports.contains(*end))
        };
        let stays = |port: &&PortName| before.ports().contains_key(*port);
        let noted = |port: &&PortName| before.notes().get(port) != after.notes().get(port);
        Self {
            xconnects: xconnects.filter(concerned).cloned().collect(),
            notes: after.ports().keys().filter(stays).filter(noted).cloned().collect(),
            comes_or_goes: !before.ports().keys().eq(after.ports().keys()),
            routing: TouchedRouting::between(before.routing(), after.routing()),
            ports,
        }
    }

    /// What an edit that made `state` concerns.
    pub(super) fn of_edit(edit: &Edit, state: &State, open: &Ports) -> Self {
        let (mut ports, mut xconnects) = edit.touched();
        // Where a carrier is made anew, so are its tunnels.
        let carried: Vec<_> = ports.iter().flat_map(|port| state.carried_by(port)).cloned().collect();
        let were: Vec<_> = ports.iter().flat_map(|port| open.carried_by(port)).cloned().collect();
        ports.extend(carried.into_iter().chain(were));
        for port in &ports {
            xconnects.extend(state.xconnects_of(port).cloned());
            xconnects.extend(open.xconnect_of(port));
        }
        let notes = edit.new_notes(state);
        let comes_or_goes = edit.comes_or_goes(state);
        let routing = edit.touched_routing(Some(state));
        Self { ports, xconnects, notes, comes_or_goes, routing }
    }
}
