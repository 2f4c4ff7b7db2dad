//! From what is to what is wanted: which steps, in which order. Pure, so that it can be tested without a
//! port.
//!
//! * What agrees is not touched.
//! * New ports are attached before anything is taken away, so a port that can't be made costs nothing.
//! * A port is detached only after tables without it are in force at every worker.
//! * A new port that wants what a leaving one has (the same memif id, the same interface name) comes after
//!   it.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{Claim, PortName, PortSpec, State, UnderlaySpec, Xconnect};

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Make the port and give it to a worker once its link is up.
    Attach(PortName),
    /// Put tables with these of the planned cross-connects in force. Done when no worker uses the earlier ones any more.
    Publish(BTreeSet<Xconnect>),
    /// Take the port from its worker and close it.
    Detach(PortName),
    /// Make so many things of routing domains what they are to be, and put that in force. Not a step of [`plan`]'s either.
    Route(usize),
    /// Keep the port's new note. Not a step of [`plan`]'s: nothing happens in the engine.
    Note(PortName),
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Attach(port) => write!(f, "attach {port}"),
            Self::Detach(port) => write!(f, "detach {port}"),
            Self::Note(port) => write!(f, "note {port}"),
            Self::Route(changes) => write!(f, "routing: {changes} changed"),
            Self::Publish(xconnects) => {
                let names: Vec<_> = xconnects.iter().map(ToString::to_string).collect();
                write!(f, "publish [{}]", names.join(", "))
            }
        }
    }
}

/// All that a port is made of. If any of it differs, the port is made anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Made<'a> {
    /// The port itself.
    pub spec: &'a PortSpec,
    /// What it is as an underlay.
    pub underlay: Option<&'a UnderlaySpec>,
    /// For a tunnel: the port that carries it, and what that is as an underlay.
    pub over: Option<(&'a PortSpec, &'a UnderlaySpec)>,
}

impl<'a> Made<'a> {
    /// What `state` wants a port to be made of.
    pub fn of(state: &'a State, port: &PortName) -> Option<Self> {
        let spec = state.ports().get(port)?;
        let carrier = spec.carrier();
        let over = carrier.and_then(|at| Some((state.ports().get(at)?, state.underlays().get(at)?)));
        Some(Self { spec, underlay: state.underlays().get(port), over })
    }
}

/// What there is, or is to be, as far as the two may differ: ports and cross-connects that agree can be left out of both. (A
/// cross-connect of a port that may differ belongs in, too.)
#[derive(Debug, Clone, Default)]
pub struct View<'a> {
    /// The ports that are open.
    pub ports: BTreeMap<&'a PortName, Made<'a>>,
    /// The cross-connects in force.
    pub xconnects: BTreeSet<Xconnect>,
}

impl<'a> View<'a> {
    /// All of a state.
    pub fn of(state: &'a State) -> Self {
        let made = |port: &'a PortName| Some((port, Made::of(state, port)?));
        Self { ports: state.ports().keys().filter_map(made).collect(), xconnects: state.xconnects().clone() }
    }
}

/// The steps from `actual` to `wanted`.
pub fn plan(actual: &View<'_>, wanted: &View<'_>) -> Vec<Action> {
    let leaving: BTreeSet<&PortName> = actual
        .ports
        .iter()
        .filter(|(name, spec)| wanted.ports.get(*name) != Some(*spec))
        .map(|(n, _)| *n)
        .collect();
    let vacated: BTreeSet<Claim> =
        leaving.iter().filter_map(|name| actual.ports.get(name)?.spec.claim()).collect();
    let coming = wanted.ports.iter().filter(|(name, spec)| actual.ports.get(*name) != Some(*spec));
    // Tunnels behind the ports that carry them, also if those have to wait.
    let (tunnels, others): (Vec<_>, Vec<_>) = coming.partition(|(_, made)| made.spec.carrier().is_some());
    let waits = |name: &PortName, made: &Made<'_>| {
        leaving.contains(name) || made.spec.claim().is_some_and(|claim| vacated.contains(&claim))
    };
    let (mut late, mut early): (Vec<_>, Vec<_>) =
        others.into_iter().partition(|(name, made)| waits(name, made));
    let late_carriers: BTreeSet<&PortName> = late.iter().map(|(name, _)| **name).collect();
    let (late_tunnels, early_tunnels): (Vec<_>, Vec<_>) = tunnels.into_iter().partition(|(name, made)| {
        waits(name, made) || made.spec.carrier().is_some_and(|carrier| late_carriers.contains(carrier))
    });
    late.extend(late_tunnels);
    early.extend(early_tunnels);

    let mut actions: Vec<Action> =
        early.into_iter().map(|(name, _)| Action::Attach((*name).clone())).collect();
    let mut in_force = &actual.xconnects;
    let interim = without(if late.is_empty() { &wanted.xconnects } else { in_force }, &leaving);
    if !leaving.is_empty() {
        if interim != *in_force {
            actions.push(Action::Publish(interim.clone()));
            in_force = &interim;
        }
        let is_tunnel =
            |name: &&PortName| actual.ports.get(*name).is_some_and(|made| made.spec.carrier().is_some());
        let (tunnels, others): (Vec<_>, Vec<_>) = leaving.into_iter().partition(is_tunnel);
        actions.extend(tunnels.into_iter().chain(others).map(|name| Action::Detach(name.clone())));
    }
    actions.extend(late.into_iter().map(|(name, _)| Action::Attach((*name).clone())));
    if &wanted.xconnects != in_force {
        actions.push(Action::Publish(wanted.xconnects.clone()));
    }
    actions
}

fn without(xconnects: &BTreeSet<Xconnect>, leaving: &BTreeSet<&PortName>) -> BTreeSet<Xconnect> {
    let stays = |xconnect: &&Xconnect| xconnect.ends().iter().all(|end| !leaving.contains(end));
    xconnects.iter().filter(stays).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::PipeSpec;

    fn name(text: &str) -> PortName {
        text.parse().unwrap()
    }

    /// A state from words: `a` is a port with a pipe of its own, `a=p` one with pipe p, `a-b` a
    /// cross-connect.
    fn state(words: &str) -> State {
        let (mut ports, mut xconnects) = (Vec::new(), Vec::new());
        for word in words.split_whitespace() {
            match word.split_once('-') {
                Some((a, b)) => xconnects.push(Xconnect::new(name(a), name(b)).unwrap()),
                None => {
                    let (port, pipe) = word.split_once('=').unwrap_or((word, word));
                    ports.push((name(port), PortSpec::Pipe(PipeSpec { pipe: name(pipe) })));
                }
            }
        }
        State::new(ports, xconnects).unwrap()
    }

    fn steps(actual: &str, wanted: &str) -> Vec<String> {
        let (actual, wanted) = (state(actual), state(wanted));
        plan(&View::of(&actual), &View::of(&wanted)).iter().map(ToString::to_string).collect()
    }

    const NONE: [&str; 0] = [];

    #[test]
    fn ports_come_before_their_tables_and_go_after_them() {
        assert_eq!(steps("", "a b a-b"), ["attach a", "attach b", "publish [a - b]"]);
        assert_eq!(steps("a b a-b", ""), ["publish []", "detach a", "detach b"]);
    }

    #[test]
    fn what_agrees_is_not_touched() {
        assert_eq!(steps("a b a-b", "a b a-b"), NONE);
        assert_eq!(steps("a b a-b", "a b c d a-b c-d"), ["attach c", "attach d", "publish [a - b, c - d]"]);
        assert_eq!(steps("a b c d a-b c-d", "a b a-b"), ["publish [a - b]", "detach c", "detach d"]);
        assert_eq!(steps("a b", "a b c"), ["attach c"], "a port without a cross-connect changes no tables");
        assert_eq!(steps("a b c", "a b"), ["detach c"]);
    }

    #[test]
    fn a_cross_connect_moves_in_one_step() {
        assert_eq!(steps("a b c a-b", "a b c a-c"), ["publish [a - c]"]);
        assert_eq!(steps("a b a-b", "a b c a-c"), ["attach c", "publish [a - c]"]);
        assert_eq!(steps("a b a-b", "a c a-c"), ["attach c", "publish [a - c]", "detach b"]);
    }

    #[test]
    fn a_changed_port_is_out_of_the_tables_while_it_is_replaced() {
        let expected = ["publish [c - d]", "detach a", "attach a", "publish [a - b, c - d]"];
        assert_eq!(steps("a=1 b c d a-b c-d", "a=2 b c d a-b c-d"), expected);
    }

    #[test]
    fn who_wants_what_another_has_waits_for_it() {
        assert_eq!(steps("old=p", "new=p"), ["detach old", "attach new"]);
        let expected = ["attach e", "publish []", "detach old", "attach new", "publish [b - new]"];
        assert_eq!(steps("old=p b b-old", "new=p b e b-new"), expected);
    }

    #[test]
    fn two_ports_can_swap_what_they_have() {
        assert_eq!(steps("a=1 b=2", "a=2 b=1"), ["detach a", "detach b", "attach a", "attach b"]);
    }

    proptest::proptest! {
        /// Whatever the two states, the steps lead from one to the other, and no step leaves the tables
        /// naming a port that is gone, or two ports with one claim.
        #[test]
        fn the_steps_lead_there(from in 0u32..256, to in 0u32..256) {
            let (from, to) = (numbered(from), numbered(to));
            let mut open: BTreeMap<PortName, PortSpec> = from.ports().clone();
            let mut in_force = from.xconnects().clone();
            for action in plan(&View::of(&from), &View::of(&to)) {
                match action {
                    Action::Attach(port) => {
                        let spec = to.ports()[&port].clone();
                        let held = open.values().filter(|other| other.claim() == spec.claim()).count();
                        proptest::prop_assert!(held < spec.claim().unwrap().shares());
                        proptest::prop_assert!(open.insert(port, spec).is_none());
                    }
                    Action::Detach(port) => {
                        proptest::prop_assert!(in_force.iter().all(|x| x.peer(&port).is_none()));
                        open.remove(&port);
                    }
                    Action::Publish(xconnects) => {
                        let known = |x: &Xconnect| x.ends().iter().all(|end| open.contains_key(end));
                        proptest::prop_assert!(xconnects.iter().all(known));
                        in_force = xconnects;
                    }
                    Action::Note(_) | Action::Route(_) => proptest::prop_assert!(false, "no step of the plan"),
                }
            }
            proptest::prop_assert_eq!((&open, &in_force), (to.ports(), to.xconnects()));
        }
    }

    /// A small state for each number: ports a to d, present or not, with one of two pipes; a-b and c-d joined
    /// or not.
    fn numbered(bits: u32) -> State {
        let mut words = String::new();
        for (i, port) in ["a", "b", "c"].iter().enumerate() {
            if bits >> i & 1 == 1 {
                words += &format!("{port}={}{} ", bits >> (i + 3) & 1, port);
            }
        }
        if bits & 3 == 3 && bits >> 6 & 1 == 1 {
            words += "a-b ";
        } else if bits & 6 == 6 && bits >> 7 == 1 {
            words += "b-c ";
        }
        state(&words)
    }
}
