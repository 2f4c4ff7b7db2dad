//! Changing a [`State`] in place, and back: what an edit costs does not depend on how many ports there are.

use std::collections::{BTreeSet, HashMap};

use super::{
    Claim, DomainState, MemberSpec, Network, Note, Op, PortName, PortSpec, RouteSpec, State, StateError,
    TouchedRouting, UnderlaySpec, Xconnect,
};

/// Who claims what, and which cross-connects name each port. Follows from ports and cross-connects.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Index {
    holders: HashMap<Claim, BTreeSet<PortName>>,
    joined: HashMap<PortName, BTreeSet<Xconnect>>,
    /// Tunnels, by the port that carries them.
    pub(super) carried: HashMap<PortName, BTreeSet<PortName>>,
}

/// Adds to a set in a map, or takes from it; no set is left empty.
fn put<K: std::hash::Hash + Eq, V: Ord>(map: &mut HashMap<K, BTreeSet<V>>, key: K, value: V, present: bool) {
    let set = map.entry(key);
    match set {
        _ if present => {
            set.or_default().insert(value);
        }
        std::collections::hash_map::Entry::Occupied(mut set) => {
            set.get_mut().remove(&value);
            if set.get().is_empty() {
                set.remove();
            }
        }
        std::collections::hash_map::Entry::Vacant(_) => {}
    }
}

/// How something was before it was changed.
#[derive(Debug)]
enum Before {
    Port(PortName, Option<PortSpec>),
    Note(PortName, Note),
    Xconnect(Xconnect, bool),
    /// A domain that came or went.
    Domain(PortName, Option<DomainState>),
    Gateways(PortName, Vec<std::net::IpAddr>),
    Member(PortName, Option<MemberSpec>),
    Route(PortName, Network, Option<RouteSpec>),
    Underlay(PortName, Option<UnderlaySpec>),
}

/// What was changed, so that it can be changed back.
#[derive(Debug, Default)]
#[must_use = "it is needed to go back"]
pub struct Edit(Vec<Before>);

impl Edit {
    /// The ports that may differ from before, and the cross-connects.
    pub fn touched(&self) -> (BTreeSet<PortName>, BTreeSet<Xconnect>) {
        let (mut ports, mut xconnects) = (BTreeSet::new(), BTreeSet::new());
        for before in &self.0 {
            match before {
                Before::Port(port, _) | Before::Underlay(port, _) => drop(ports.insert(port.clone())),
                Before::Xconnect(xconnect, _) => drop(xconnects.insert(xconnect.clone())),
                _ => {}
            }
        }
        (ports, xconnects)
    }

    /// What of the routing may differ from before.
    /// With `state`, to which the edit led: only what does differ.
    pub fn touched_routing(&self, state: Option<&State>) -> TouchedRouting {
        let mut touched = TouchedRouting::default();
        let routing = state.map(State::routing);
        let domain = |name| routing.and_then(|routing| routing.domains.get(name));
        for before in &self.0 {
            match before {
                Before::Domain(name, _) => drop(touched.whole.insert(name.clone())),
                Before::Gateways(name, was) if domain(name).is_some_and(|is| is.gateways == *was) => {}
                Before::Member(port, was)
                    if routing.is_some_and(|routing| routing.members.get(port) == was.as_ref()) => {}
                Before::Route(name, network, was)
                    if domain(name).is_some_and(|is| is.routes.get(network) == was.as_ref()) => {}
                Before::Gateways(name, _) => drop(touched.gateways.insert(name.clone())),
                Before::Member(port, _) => drop(touched.members.insert(port.clone())),
                Before::Route(name, network, _) => drop(touched.routes.insert((name.clone(), *network))),
                _ => {}
            }
        }
        touched
    }

    /// The ports that are still there and had another note before; `state` is what the edit led to.
    pub fn new_notes(&self, state: &State) -> BTreeSet<PortName> {
        // The first entry of a port is how it was before all of them.
        let (mut first, mut notes) = (BTreeSet::new(), BTreeSet::new());
        for before in &self.0 {
            let Before::Note(port, note) = before else { continue };
            if first.insert(port) && state.ports.contains_key(port) && state.notes.get(port) != *note {
                notes.insert(port.clone());
            }
        }
        notes
    }

    /// True if a port came or went. (What else is different shows in the steps that it takes, or in notes.)
    pub fn comes_or_goes(&self, state: &State) -> bool {
        self.0.iter().any(|before| match before {
            Before::Port(port, spec) => spec.is_some() != state.ports.contains_key(port),
            _ => false,
        })
    }
}

impl State {
    /// Does `ops` in order.
    ///
    /// # Errors
    /// [`StateError`] if an operation removes what is not there, or the result is not consistent; nothing is changed then.
    pub fn edit(&mut self, ops: impl IntoIterator<Item = Op>) -> Result<Edit, StateError> {
        let mut edit = Edit::default();
        let done = ops.into_iter().try_for_each(|op| self.apply(op, &mut edit));
        match done.and_then(|()| self.check(&edit)) {
            Ok(()) => Ok(edit),
            Err(error) => {
                self.undo(edit);
                Err(error)
            }
        }
    }

    /// Goes back to before `edit`, which must be the last one.
    pub fn undo(&mut self, edit: Edit) {
        for before in edit.0.into_iter().rev() {
            match before {
                Before::Port(port, spec) => drop(self.put_port(&port, spec)),
                Before::Note(port, note) => drop(self.notes.set(&port, note)),
                Before::Xconnect(xconnect, present) => drop(self.put_xconnect(xconnect, present)),
                Before::Domain(name, domain) => drop(self.routing.put_domain(&name, domain)),
                Before::Gateways(name, gateways) => drop(self.put_gateways(&name, gateways)),
                Before::Member(port, member) => drop(self.routing.put_member(&port, member)),
                Before::Route(name, network, route) => drop(self.routing.put_route(&name, network, route)),
                Before::Underlay(port, underlay) => drop(self.put_underlay(&port, underlay)),
            }
        }
    }

    fn apply(&mut self, op: Op, edit: &mut Edit) -> Result<(), StateError> {
        let missing = |what: &str, name: &PortName| Err(StateError::NotFound(format!("{what} {name}")));
        match op {
            Op::SetPort(name, spec, note) => {
                let (spec, note) = (self.put_port(&name, Some(spec)), self.notes.set(&name, note));
                edit.0.extend([Before::Port(name.clone(), spec), Before::Note(name, note)]);
            }
            Op::RemovePort(name) if self.is(&name, false) => self.remove(name, edit),
            Op::RemoveRelay(name) if self.is(&name, true) => self.remove(name, edit),
            Op::RemovePort(name) => return missing("port", &name),
            Op::RemoveRelay(name) => return missing("relay", &name),
            Op::SetNote(name, note) if self.ports.contains_key(&name) => {
                let note = self.notes.set(&name, note);
                edit.0.push(Before::Note(name, note));
            }
            Op::SetNote(name, _) => return missing("port", &name),
            Op::AddXconnect(xconnect) => {
                let was = self.put_xconnect(xconnect.clone(), true);
                edit.0.push(Before::Xconnect(xconnect, was));
            }
            Op::RemoveXconnect(xconnect) => {
                if !self.put_xconnect(xconnect.clone(), false) {
                    return Err(StateError::NotFound(format!("xconnect {xconnect}")));
                }
                edit.0.push(Before::Xconnect(xconnect, true));
            }
            Op::SetUnderlay(port, underlay) => {
                let before = self.put_underlay(&port, Some(underlay));
                edit.0.push(Before::Underlay(port, before));
            }
            Op::RemoveUnderlay(port) => match self.put_underlay(&port, None) {
                None => return missing("underlay", &port),
                before => edit.0.push(Before::Underlay(port, before)),
            },
            routing => return self.apply_routing(routing, edit),
        }
        Ok(())
    }

    fn apply_routing(&mut self, op: Op, edit: &mut Edit) -> Result<(), StateError> {
        let missing = |what: String| Err(StateError::NotFound(what));
        match op {
            Op::SetDomain(name, gateways) => match self.put_gateways(&name, gateways.clone()) {
                Some(before) => edit.0.push(Before::Gateways(name, before)),
                None => {
                    let domain = DomainState { gateways, ..DomainState::default() };
                    self.routing.put_domain(&name, Some(domain));
                    edit.0.push(Before::Domain(name, None));
                }
            },
            Op::RemoveDomain(name) => {
                let ports: Vec<_> = self.routing.members_of(&name).cloned().collect();
                let Some(before) = self.routing.put_domain(&name, None) else {
                    return missing(format!("domain {name}"));
                };
                edit.0.push(Before::Domain(name, Some(before)));
                for port in ports {
                    let member = self.routing.put_member(&port, None);
                    edit.0.push(Before::Member(port, member));
                }
            }
            Op::SetMember(port, member) => {
                let before = self.routing.put_member(&port, Some(member));
                edit.0.push(Before::Member(port, before));
            }
            Op::RemoveMember(port) => match self.routing.put_member(&port, None) {
                None => return missing(format!("port {port} in a domain")),
                before => edit.0.push(Before::Member(port, before)),
            },
            Op::SetRoute(name, network, route) => {
                if !self.routing.domains.contains_key(&name) {
                    return missing(format!("domain {name}"));
                }
                let before = self.routing.put_route(&name, network, Some(route));
                edit.0.push(Before::Route(name, network, before));
            }
            Op::RemoveRoute(name, network) => match self.routing.put_route(&name, network, None) {
                None => return missing(format!("route {network} in domain {name}")),
                before => edit.0.push(Before::Route(name, network, before)),
            },
            _ => {}
        }
        Ok(())
    }

    /// Gives a domain other gateways. Returns those that it had; `None` if there is no such domain.
    fn put_gateways(
        &mut self,
        name: &PortName,
        gateways: Vec<std::net::IpAddr>,
    ) -> Option<Vec<std::net::IpAddr>> {
        let domain = self.routing.domains.get_mut(name)?;
        Some(std::mem::replace(&mut domain.gateways, gateways))
    }

    /// True if there is a relay, or a port that is none, of this name.
    fn is(&self, name: &PortName, relay: bool) -> bool {
        self.ports.get(name).is_some_and(|spec| spec.is_relay() == relay)
    }

    fn remove(&mut self, name: PortName, edit: &mut Edit) {
        let (spec, note) = (self.put_port(&name, None), self.notes.set(&name, Note::default()));
        edit.0.extend([Before::Port(name.clone(), spec), Before::Note(name, note)]);
    }

    /// Makes a port an underlay, or none. Returns what it was.
    fn put_underlay(&mut self, port: &PortName, underlay: Option<UnderlaySpec>) -> Option<UnderlaySpec> {
        match underlay {
            Some(underlay) => self.underlays.insert(port.clone(), underlay),
            None => self.underlays.remove(port),
        }
    }

    /// Makes a port what it is to be, or nothing. Returns what it was.
    fn put_port(&mut self, name: &PortName, spec: Option<PortSpec>) -> Option<PortSpec> {
        let carrier = |spec: Option<&PortSpec>| spec.and_then(PortSpec::carrier).cloned();
        for (carrier, present) in [(carrier(self.ports.get(name)), false), (carrier(spec.as_ref()), true)] {
            if let Some(carrier) = carrier {
                put(&mut self.index.carried, carrier, name.clone(), present);
            }
        }
        if let Some(claim) = spec.as_ref().and_then(PortSpec::claim) {
            put(&mut self.index.holders, claim, name.clone(), true);
        }
        let claim = spec.as_ref().and_then(PortSpec::claim);
        let before = match spec {
            Some(spec) => self.ports.insert(name.clone(), spec),
            None => self.ports.remove(name),
        };
        if let Some(left) =
            before.as_ref().and_then(PortSpec::claim).filter(|left| Some(left) != claim.as_ref())
        {
            put(&mut self.index.holders, left, name.clone(), false);
        }
        before
    }

    /// Puts a cross-connect there, or takes it away. Returns whether it was there.
    fn put_xconnect(&mut self, xconnect: Xconnect, present: bool) -> bool {
        for end in xconnect.ends() {
            put(&mut self.index.joined, end.clone(), xconnect.clone(), present);
        }
        match present {
            true => !self.xconnects.insert(xconnect),
            false => self.xconnects.remove(&xconnect),
        }
    }

    /// The cross-connects that name a port: at most one, but for a state that is being edited.
    pub fn xconnects_of(&self, port: &PortName) -> impl Iterator<Item = &Xconnect> {
        self.index.joined.get(port).into_iter().flatten()
    }

    /// The other end of a port's cross-connect.
    pub fn peer(&self, port: &PortName) -> Option<&PortName> {
        self.xconnects_of(port).find_map(|xconnect| xconnect.peer(port))
    }

    /// Whether what was touched fits together with the rest, which did before.
    fn check(&self, edit: &Edit) -> Result<(), StateError> {
        if self.ports.len() > Self::MAX_PORTS {
            return Err(StateError::TooMany(self.ports.len()));
        }
        self.notes.check()?;
        let (mut ports, mut xconnects) = edit.touched();
        for port in &ports {
            self.check_claim(port)?;
            xconnects.extend(self.xconnects_of(port).cloned());
        }
        xconnects.iter().filter(|x| self.xconnects.contains(*x)).try_for_each(|x| self.check_xconnect(x))?;
        // A port that is joined now may be in a domain.
        ports.extend(xconnects.iter().flat_map(|x| x.ends()).cloned());
        let routing = edit.touched_routing(None);
        self.check_routing(&routing, &ports)?;
        ports.extend(routing.members.iter().cloned());
        self.check_underlays(&ports)
    }

    fn check_claim(&self, port: &PortName) -> Result<(), StateError> {
        let Some(claim) = self.ports.get(port).and_then(PortSpec::claim) else { return Ok(()) };
        let holders = self.index.holders.get(&claim).into_iter().flatten();
        match (holders.clone().next(), holders.clone().nth(claim.shares())) {
            (Some(first), Some(second)) => {
                let (first, second) = (first.clone(), second.clone());
                Err(StateError::Contested { first, second, claim })
            }
            _ => Ok(()),
        }
    }

    fn check_xconnect(&self, xconnect: &Xconnect) -> Result<(), StateError> {
        for port in xconnect.ends() {
            match self.ports.get(port) {
                None => {
                    let (xconnect, missing) = (xconnect.clone(), port.clone());
                    return Err(StateError::NoSuchPort { xconnect, missing });
                }
                Some(PortSpec::Relay(_)) => return Err(StateError::Relay(xconnect.clone(), port.clone())),
                Some(_) => {}
            }
            let mut both = self.xconnects_of(port);
            if let (Some(first), Some(second)) = (both.next(), both.next()) {
                let (port, first, second) = (port.clone(), first.clone(), second.clone());
                return Err(StateError::Joined { port, first, second });
            }
        }
        let modes = xconnect.ends().map(|end| self.ports.get(end).and_then(PortSpec::mode));
        match modes {
            [Some(a), Some(b)] if a != b => Err(StateError::Modes(xconnect.clone())),
            _ => Ok(()),
        }
    }
}
