//! From the domains that are wanted to those that workers look at. A change costs what it touches; see [`crate::route::trie`].

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::{Mac, MemberSpec, Network, PortName, RouteSpec, State, TouchedRouting};
use crate::offload::Link;
use crate::port::PortIndex;
use crate::route::domain::{Domain, DomainIndex, Member, MemberIndex, Neighbour, Target};
use crate::tables::{Place, Tables};

/// Neighbours that a port may teach; the one heard of first goes for the next.
const LEARNT: usize = 1024;

/// An open port, as its domain sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line {
    pub index: PortIndex,
    pub link: Link,
    /// Where nothing else is asked for.
    pub mtu: u16,
}

/// Numbers that are given out, the lowest new one if none came back.
#[derive(Debug, Default)]
struct Numbers {
    back: Vec<u32>,
    next: u32,
}

impl Numbers {
    fn take(&mut self) -> u32 {
        self.back.pop().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        })
    }
}

#[derive(Default)]
struct Built {
    index: DomainIndex,
    domain: Arc<Domain>,
    changed: bool,
    members: HashMap<PortName, MemberIndex>,
    member_numbers: Numbers,
    /// Next hops: their place and how many routes have them.
    vias: HashMap<(MemberIndex, IpAddr), (u16, usize)>,
    via_numbers: Numbers,
    route_numbers: Numbers,
    /// Numbers of routes that are gone, until no worker counts there any more.
    leaving: Vec<u32>,
    learnt: HashMap<MemberIndex, VecDeque<IpAddr>>,
}

impl Built {
    fn edit(&mut self) -> &mut Domain {
        self.changed = true;
        Arc::make_mut(&mut self.domain)
    }

    fn set_gateways(&mut self, gateways: &[IpAddr]) {
        let own = Target { route: u32::MAX, member: MemberIndex::SELF, via: 0 };
        let domain = self.edit();
        for gone in Arc::clone(&domain.gateways).iter() {
            domain.set_route(*gone, Network::host(*gone).len, None);
        }
        for gateway in gateways {
            domain.set_route(*gateway, Network::host(*gateway).len, Some(own));
        }
        domain.gateways = Arc::new(gateways.to_vec());
    }

    fn set_line(&mut self, at: MemberIndex, member: Option<Member>) {
        let members = Arc::make_mut(&mut self.edit().members);
        let slot = usize::from(at.0);
        if members.len() <= slot {
            members.resize(slot + 1, None);
        }
        members[slot] = member;
    }

    fn set_member(&mut self, name: &PortName, port: &PortName, spec: &MemberSpec, line: Option<Line>) {
        let at = match self.members.get(port) {
            Some(at) => *at,
            None => {
                let at = MemberIndex(self.member_numbers.take() as u16);
                self.members.insert(port.clone(), at);
                at
            }
        };
        let (port, link) = (line.map(|line| line.index), line.map_or(Link::Ethernet, |line| line.link));
        let mtu = spec.mtu.map(|mtu| mtu.get()).or(line.map(|line| line.mtu)).unwrap_or(1500);
        let mac = spec.mac.unwrap_or_else(|| Mac::of_name(name.as_str()));
        self.set_line(at, Some(Member { port, link, mac, mtu, strict: spec.strict }));
        // What was said replaces what was heard, and nothing else does.
        for address in self.configured(at, spec) {
            self.edit().set_neighbour(address, None);
        }
        for (address, mac) in &spec.neighbours {
            self.edit().set_neighbour(*address, Some(Neighbour { mac: *mac, member: at }));
        }
    }

    /// Neighbours of this port that are in the table, were not learnt, and are not wanted any more.
    fn configured(&self, at: MemberIndex, spec: &MemberSpec) -> Vec<IpAddr> {
        let learnt = self.learnt.get(&at);
        let heard = |address: &IpAddr| learnt.is_some_and(|learnt| learnt.contains(address));
        let gone = |address: &IpAddr| !heard(address) && !spec.neighbours.contains_key(address);
        self.domain
            .neighbours()
            .filter(|(_, n)| n.member == at)
            .map(|(address, _)| address)
            .filter(gone)
            .collect()
    }

    /// Forgets whom a port taught.
    fn forget(&mut self, at: MemberIndex) {
        for address in self.learnt.remove(&at).into_iter().flatten() {
            if self.domain.neighbour(address).is_some_and(|neighbour| neighbour.member == at) {
                self.edit().set_neighbour(address, None);
            }
        }
    }

    fn remove_member(&mut self, port: &PortName) {
        let Some(at) = self.members.remove(port) else { return };
        self.forget(at);
        let said: Vec<_> =
            self.domain.neighbours().filter(|(_, n)| n.member == at).map(|(address, _)| address).collect();
        said.into_iter().for_each(|address| self.edit().set_neighbour(address, None));
        self.set_line(at, None);
        self.member_numbers.back.push(at.0.into());
    }

    fn set_route(&mut self, network: &Network, route: Option<&RouteSpec>) {
        let before = self.target(network);
        let after = route.and_then(|route| {
            let member = *self.members.get(&route.port)?;
            Some((member, route.via.map_or(0, |via| self.take_via(member, via))))
        });
        if let Some(before) = before {
            self.give_via(before);
        }
        let target = after.map(|(member, via)| {
            let number = before.map_or_else(|| self.open_route(), |before| before.route);
            Target { route: number, member, via }
        });
        if target.is_none() {
            self.leaving.extend(before.map(|before| before.route));
        }
        self.edit().set_route(network.address, network.len, target);
    }

    fn open_route(&mut self) -> u32 {
        let number = self.route_numbers.take();
        Arc::make_mut(&mut self.edit().routes).open(number);
        number
    }

    fn target(&self, network: &Network) -> Option<Target> {
        let len = network.len.into();
        match network.address {
            IpAddr::V4(v4) => self.domain.v4.get(v4.into(), len),
            IpAddr::V6(v6) => self.domain.v6.get(v6.into(), len),
        }
        .copied()
    }

    /// The place of a next hop, from 1.
    fn take_via(&mut self, member: MemberIndex, via: IpAddr) -> u16 {
        if let Some((place, count)) = self.vias.get_mut(&(member, via)) {
            *count += 1;
            return *place;
        }
        // More next hops than there are places: the destination itself is asked for, and that is not answered.
        let number = self.via_numbers.take();
        let Ok(place) = u16::try_from(number + 1) else { return 0 };
        self.vias.insert((member, via), (place, 1));
        let vias = Arc::make_mut(&mut self.edit().vias);
        if vias.len() < usize::from(place) {
            vias.resize(usize::from(place), (MemberIndex::SELF, via));
        }
        vias[usize::from(place) - 1] = (member, via);
        place
    }

    fn give_via(&mut self, target: Target) {
        let Some(at) = usize::from(target.via).checked_sub(1) else { return };
        let Some(&key) = self.domain.vias.get(at) else { return };
        let Some((_, count)) = self.vias.get_mut(&key) else { return };
        *count -= 1;
        if *count == 0 {
            self.vias.remove(&key);
            self.via_numbers.back.push(at as u32);
            Arc::make_mut(&mut self.edit().vias)[at].0 = MemberIndex::SELF;
        }
    }

    /// True if that is news.
    fn learn(&mut self, at: MemberIndex, address: IpAddr, mac: Mac) -> bool {
        let known = self.domain.neighbour(address);
        let neighbour = Neighbour { mac, member: at };
        let learnt = self.learnt.entry(at).or_default();
        let heard_before = learnt.contains(&address);
        // What was said by the owner stays.
        let said = known.is_some_and(|known| known.member == at) && !heard_before;
        if said || known == Some(neighbour) || !self.domain.belongs(address, at) {
            return false;
        }
        let mut oldest = None;
        if !heard_before {
            learnt.push_back(address);
            oldest = (learnt.len() > LEARNT).then(|| learnt.pop_front()).flatten();
        }
        let domain = self.edit();
        if let Some(oldest) = oldest {
            domain.set_neighbour(oldest, None);
        }
        domain.set_neighbour(address, Some(neighbour));
        true
    }
}

/// All domains as they are in the tables, or will be with the next.
#[derive(Default)]
pub(super) struct Domains {
    built: BTreeMap<PortName, Built>,
    places: HashMap<PortName, (PortName, Place)>,
    numbers: Numbers,
    gone: Vec<DomainIndex>,
}

/// Where a port's line is found, if the port is open.
pub(super) trait Lines {
    fn line(&self, port: &PortName) -> Option<Line>;
}

impl Domains {
    /// Where a port is routed from.
    pub fn place(&self, port: &PortName) -> Option<Place> {
        self.places.get(port).map(|(_, place)| *place)
    }

    /// A domain as it is, and its ports.
    pub fn get(&self, name: &PortName) -> Option<(&Domain, &HashMap<PortName, MemberIndex>)> {
        self.built.get(name).map(|built| (&*built.domain, &built.members))
    }

    /// Whether a neighbour was learnt.
    pub fn is_learnt(&self, name: &PortName, at: MemberIndex, address: IpAddr) -> bool {
        self.built.get(name).and_then(|built| built.learnt.get(&at)).is_some_and(|l| l.contains(&address))
    }

    /// Makes what was touched as `state` says. Returns the ports whose lines in the tables may be others.
    pub fn sync(&mut self, touched: &TouchedRouting, state: &State, lines: &impl Lines) -> Vec<PortName> {
        let routing = state.routing();
        let wanted = |name: &PortName, network: &Network| routing.domains().get(name)?.routes.get(network);
        for (name, network) in touched.routes.iter().filter(|(name, network)| wanted(name, network).is_none())
        {
            if let Some(built) = self.built.get_mut(name) {
                built.set_route(network, None);
            }
        }
        let mut moved: Vec<PortName> = touched.members.iter().cloned().collect();
        for name in &touched.whole {
            moved.extend(self.remove(name));
        }
        for port in &moved {
            let stays = routing.members().get(port).map(|member| &member.domain);
            if let Some((name, _)) = self.places.get(port)
                && Some(name) != stays
            {
                if let Some(built) = self.built.get_mut(name) {
                    built.remove_member(port);
                }
                self.places.remove(port);
            }
        }
        for name in touched.whole.iter().filter(|name| routing.domains().contains_key(*name)) {
            let index = DomainIndex(self.numbers.take() as u16);
            self.built.insert(name.clone(), Built { index, ..Built::default() });
            moved.extend(routing.members_of(name).cloned());
        }
        moved.iter().for_each(|port| self.refresh(port, state, lines.line(port)));
        for name in touched.whole.iter().chain(&touched.gateways) {
            let (Some(built), Some(domain)) = (self.built.get_mut(name), routing.domains().get(name)) else {
                continue;
            };
            built.set_gateways(&domain.gateways);
            if touched.whole.contains(name) {
                domain.routes.iter().for_each(|(network, route)| built.set_route(network, Some(route)));
            }
        }
        for (name, network) in touched.routes.iter().filter(|(name, _)| !touched.whole.contains(name)) {
            if let (Some(built), Some(route)) = (self.built.get_mut(name), wanted(name, network)) {
                built.set_route(network, Some(route));
            }
        }
        moved
    }

    /// Takes a domain away. Returns the ports that were in it.
    fn remove(&mut self, name: &PortName) -> Vec<PortName> {
        let Some(built) = self.built.remove(name) else { return Vec::new() };
        self.gone.push(built.index);
        let ports: Vec<_> = built.members.into_keys().collect();
        ports.iter().for_each(|port| drop(self.places.remove(port)));
        ports
    }

    /// Makes a port's line in its domain what it should be.
    pub fn refresh(&mut self, port: &PortName, state: &State, line: Option<Line>) {
        let Some(member) = state.routing().members().get(port) else { return };
        let Some(built) = self.built.get_mut(&member.domain) else { return };
        built.set_member(&member.domain, port, member, line);
        if let Some(at) = built.members.get(port) {
            let place = Place { domain: built.index, member: *at };
            self.places.insert(port.clone(), (member.domain.clone(), place));
        }
    }

    /// A port is open with another line, or closed. True if it is in a domain.
    pub fn relink(&mut self, port: &PortName, line: Option<Line>) -> bool {
        let Some((name, place)) = self.places.get(port) else { return false };
        let Some(built) = self.built.get_mut(name) else { return false };
        let Some(member) = built.domain.member(place.member).copied() else { return false };
        let now = Member {
            port: line.map(|line| line.index),
            link: line.map_or(member.link, |line| line.link),
            ..member
        };
        if now != member {
            built.set_line(place.member, Some(now));
        }
        true
    }

    /// Forgets whom a port taught: its link is down, and another may be there when it is up again.
    pub fn forget(&mut self, port: &PortName) {
        if let Some((name, place)) = self.places.get(port)
            && let Some(built) = self.built.get_mut(name)
        {
            built.forget(place.member);
        }
    }

    /// Somebody at a port said which hardware address is theirs. True if the tables have to say so.
    pub fn learn(&mut self, place: Place, address: IpAddr, mac: Mac) -> bool {
        let built = self.built.values_mut().find(|built| built.index == place.domain);
        built.is_some_and(|built| built.learn(place.member, address, mac))
    }

    /// Puts what changed into the tables to be published.
    pub fn put_into(&mut self, tables: &mut Tables) {
        for gone in &self.gone {
            if let Some(slot) = tables.domains.get_mut(usize::from(gone.0)) {
                *slot = None;
            }
        }
        for built in self.built.values_mut().filter(|built| built.changed) {
            built.changed = false;
            let slot = usize::from(built.index.0);
            if tables.domains.len() <= slot {
                tables.domains.resize(slot + 1, None);
            }
            tables.domains[slot] = Some(Arc::clone(&built.domain));
        }
    }

    /// The tables are in force, and no worker uses earlier ones: numbers of what is gone are free.
    pub fn settled(&mut self) {
        self.numbers.back.extend(self.gone.drain(..).map(|index| u32::from(index.0)));
        for built in self.built.values_mut().filter(|built| !built.leaving.is_empty()) {
            let Built { leaving, route_numbers, .. } = built;
            route_numbers.back.append(leaving);
        }
    }
}
