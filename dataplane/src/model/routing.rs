//! Routing domains as they are asked for: which ports are in them, and what their prefixes lead to.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use super::value::{Invalid, shown, usable};
use super::{PortName, PortSpec, State, StateError};
pub use crate::route::domain::Mac;

/// An address range: an address without host bits, and how many of its bits count. `0.0.0.0/0` is one, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Network {
    /// The first address.
    pub address: IpAddr,
    /// How many bits count: at most 32 or 128.
    pub len: u8,
}

impl Network {
    /// The network of one address.
    pub const fn host(address: IpAddr) -> Self {
        Self { address, len: if address.is_ipv4() { 32 } else { 128 } }
    }
}

impl FromStr for Network {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let wrong = || Invalid(format!("{} is no prefix like 10.60.0.0/16", shown(text)));
        let (address, len) = text.split_once('/').ok_or_else(wrong)?;
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let len: u8 = len.parse().ok().filter(|_| !len.starts_with('+')).ok_or_else(wrong)?;
        let (bits, host): (u8, bool) = match address {
            IpAddr::V4(v4) => (32, u32::from(v4).checked_shl(len.into()).is_some_and(|rest| rest != 0)),
            IpAddr::V6(v6) => (128, u128::from(v6).checked_shl(len.into()).is_some_and(|rest| rest != 0)),
        };
        match len {
            _ if len > bits => Err(wrong()),
            _ if host => Err(Invalid(format!("{} has bits set behind its prefix length", shown(text)))),
            _ if address.is_multicast() => {
                Err(Invalid(format!("{} is multicast, which is not routed", shown(text))))
            }
            _ => Ok(Self { address, len }),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

impl FromStr for Mac {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let parts: Vec<_> = text
            .split(':')
            .map(|part| {
                let digits = part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
                digits.then(|| u8::from_str_radix(part, 16).ok())
            })
            .collect();
        let bytes: Option<Vec<u8>> = parts.into_iter().map(Option::flatten).collect();
        let mac = bytes.and_then(|bytes| <[u8; 6]>::try_from(bytes).ok()).map(Mac);
        mac.filter(|mac| mac.is_station()).ok_or_else(|| {
            Invalid(format!("{} is no station's hardware address like 02:00:00:00:00:01", shown(text)))
        })
    }
}

/// A port in a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberSpec {
    /// The domain.
    pub domain: PortName,
    /// Longest packet that is sent by the port; `None`: what its kind says.
    pub mtu: Option<RouteMtu>,
    /// What the engine calls itself there; `None`: what follows from the domain's name.
    pub mac: Option<Mac>,
    /// Whether packets may come only from addresses that are routed to the port.
    pub strict: bool,
    /// Hardware addresses that need not be asked for.
    pub neighbours: BTreeMap<IpAddr, Mac>,
}

impl MemberSpec {
    /// Most neighbours that are said rather than learnt.
    pub const MAX_NEIGHBOURS: usize = 64;
}

/// Longest packet of a routed port, with its IP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteMtu(u16);

impl RouteMtu {
    /// Bytes.
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<i64> for RouteMtu {
    type Error = Invalid;
    fn try_from(raw: i64) -> Result<Self, Invalid> {
        match u16::try_from(raw) {
            Ok(mtu) if mtu >= 68 => Ok(Self(mtu)),
            _ => Err(Invalid(format!("mtu can be 68 to 65535 bytes, not {raw}"))),
        }
    }
}

/// What a prefix leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteSpec {
    /// The port, which is in the same domain.
    pub port: PortName,
    /// The next hop behind it; `None`: the destination itself.
    pub via: Option<IpAddr>,
}

/// A domain and its routes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DomainState {
    /// Addresses that it answers at.
    pub gateways: Vec<IpAddr>,
    /// What leads where.
    pub routes: BTreeMap<Network, RouteSpec>,
}

impl DomainState {
    /// Most gateway addresses.
    pub const MAX_GATEWAYS: usize = 16;

    /// A domain without routes that answers at these addresses.
    ///
    /// # Errors
    /// Which won't do.
    pub fn new(gateways: Vec<IpAddr>) -> Result<Self, Invalid> {
        if gateways.len() > Self::MAX_GATEWAYS {
            return Err(Invalid(format!("gateways: at most 16 are possible, not {}", gateways.len())));
        }
        for (i, gateway) in gateways.iter().enumerate() {
            usable(*gateway).map_err(|why| Invalid(format!("gateways[{i}]: {why}")))?;
            if gateways[..i].contains(gateway) {
                return Err(Invalid(format!("gateways[{i}]: {gateway} is there twice")));
            }
        }
        Ok(Self { gateways, routes: BTreeMap::new() })
    }
}

/// All domains.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Routing {
    pub(super) domains: BTreeMap<PortName, DomainState>,
    pub(super) members: BTreeMap<PortName, MemberSpec>,
    /// How many routes lead to each port, by domain. Follows from the domains.
    leading: HashMap<PortName, BTreeMap<PortName, usize>>,
    routes: usize,
}

/// What a change may have made different.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TouchedRouting {
    /// Domains that came or went, or both.
    pub whole: BTreeSet<PortName>,
    /// Domains with other gateways.
    pub gateways: BTreeSet<PortName>,
    /// Ports that are elsewhere, or otherwise, than before.
    pub members: BTreeSet<PortName>,
    /// Prefixes that lead elsewhere.
    pub routes: BTreeSet<(PortName, Network)>,
}

impl TouchedRouting {
    /// True if nothing was.
    pub fn is_empty(&self) -> bool {
        self.whole.is_empty() && self.gateways.is_empty() && self.members.is_empty() && self.routes.is_empty()
    }

    /// How many things were.
    pub fn len(&self) -> usize {
        self.whole.len() + self.gateways.len() + self.members.len() + self.routes.len()
    }

    /// What differs between two.
    pub fn between(before: &Routing, after: &Routing) -> Self {
        let mut touched = Self::default();
        for name in before.domains.keys().chain(after.domains.keys()) {
            match (before.domains.get(name), after.domains.get(name)) {
                (Some(was), Some(is)) => touched.compare(name, was, is),
                _ => drop(touched.whole.insert(name.clone())),
            }
        }
        let ports = before.members.keys().chain(after.members.keys());
        let moved = |port: &&PortName| before.members.get(*port) != after.members.get(*port);
        touched.members = ports.filter(moved).cloned().collect();
        touched
    }

    fn compare(&mut self, name: &PortName, was: &DomainState, is: &DomainState) {
        if was.gateways != is.gateways {
            self.gateways.insert(name.clone());
        }
        let gone = was.routes.keys().filter(|network| !is.routes.contains_key(network));
        let new = is.routes.iter().filter(|(network, route)| was.routes.get(network) != Some(route));
        self.routes
            .extend(gone.chain(new.map(|(network, _)| network)).map(|network| (name.clone(), *network)));
    }
}

/// Refuses something; `subject` is what the configuration file can be searched for.
fn refuse<T>(subject: String, reason: impl Into<String>) -> Result<T, StateError> {
    Err(StateError::Routing { subject, reason: reason.into() })
}

impl Routing {
    /// Most domains.
    pub const MAX_DOMAINS: usize = 1024;
    /// Most routes of all domains together.
    pub const MAX_ROUTES: usize = 1 << 20;

    /// The domains.
    pub fn domains(&self) -> &BTreeMap<PortName, DomainState> {
        &self.domains
    }

    /// The ports that are in domains.
    pub fn members(&self) -> &BTreeMap<PortName, MemberSpec> {
        &self.members
    }

    /// How many routes there are.
    pub const fn routes(&self) -> usize {
        self.routes
    }

    fn count(&mut self, domain: &PortName, route: &RouteSpec, there: bool) {
        if there {
            self.routes += 1;
            let leading = self.leading.entry(route.port.clone()).or_default();
            *leading.entry(domain.clone()).or_default() += 1;
            return;
        }
        self.routes -= 1;
        let Some(leading) = self.leading.get_mut(&route.port) else { return };
        if let Some(count) = leading.get_mut(domain) {
            *count -= 1;
            if *count == 0 {
                leading.remove(domain);
            }
        }
        if leading.is_empty() {
            self.leading.remove(&route.port);
        }
    }

    /// Puts a whole domain there, or takes it away. Returns what was there.
    pub(super) fn put_domain(&mut self, name: &PortName, domain: Option<DomainState>) -> Option<DomainState> {
        let before = self.domains.remove(name);
        for route in before.iter().flat_map(|before| before.routes.values()) {
            self.count(name, route, false);
        }
        for route in domain.iter().flat_map(|domain| domain.routes.values()) {
            self.count(name, route, true);
        }
        if let Some(domain) = domain {
            self.domains.insert(name.clone(), domain);
        }
        before
    }

    /// Puts a route there, or takes it away. Returns what was there; nothing is done if there is no such domain.
    pub(super) fn put_route(
        &mut self,
        domain: &PortName,
        network: Network,
        route: Option<RouteSpec>,
    ) -> Option<RouteSpec> {
        if !self.domains.contains_key(domain) {
            return None;
        }
        if let Some(route) = &route {
            self.count(domain, route, true);
        }
        let routes = &mut self.domains.get_mut(domain)?.routes;
        let before = match route {
            Some(route) => routes.insert(network, route),
            None => routes.remove(&network),
        };
        if let Some(before) = &before {
            self.count(domain, before, false);
        }
        before
    }

    /// Puts a port into a domain, or takes it out. Returns what it was.
    pub(super) fn put_member(&mut self, port: &PortName, member: Option<MemberSpec>) -> Option<MemberSpec> {
        match member {
            Some(member) => self.members.insert(port.clone(), member),
            None => self.members.remove(port),
        }
    }

    /// The ports in a domain.
    pub fn members_of<'a>(&'a self, domain: &'a PortName) -> impl Iterator<Item = &'a PortName> {
        self.members.iter().filter(move |(_, member)| member.domain == *domain).map(|(port, _)| port)
    }
}

impl State {
    /// Whether what was touched fits together with the rest, which did before. `ports` are the touched ports.
    pub(super) fn check_routing(
        &self,
        touched: &TouchedRouting,
        ports: &BTreeSet<PortName>,
    ) -> Result<(), StateError> {
        let routing = &self.routing;
        if routing.domains.len() > Routing::MAX_DOMAINS {
            return Err(StateError::TooManyRoutes(format!(
                "{} domains; the limit is 1024",
                routing.domains.len()
            )));
        }
        if routing.routes > Routing::MAX_ROUTES {
            return Err(StateError::TooManyRoutes(format!(
                "{} routes; the limit is 1048576",
                routing.routes
            )));
        }
        ports.iter().chain(&touched.members).try_for_each(|port| self.check_member(port))?;
        for name in touched.whole.iter().chain(&touched.gateways) {
            let Some(domain) = routing.domains.get(name) else { continue };
            if let Some(own) =
                domain.gateways.iter().find(|own| domain.routes.contains_key(&Network::host(**own)))
            {
                return refuse(
                    format!("domain {name}"),
                    format!("gateway {own} is also the prefix of a route, and can't be both"),
                );
            }
            if touched.whole.contains(name) {
                domain
                    .routes
                    .iter()
                    .try_for_each(|(network, route)| self.check_route(name, network, route))?;
            }
        }
        touched.routes.iter().try_for_each(|(name, network)| {
            let route = routing.domains.get(name).and_then(|domain| domain.routes.get(network));
            route.map_or(Ok(()), |route| self.check_route(name, network, route))
        })
    }

    fn check_member(&self, port: &PortName) -> Result<(), StateError> {
        let member = self.routing.members.get(port);
        let led = self.routing.leading.get(port).into_iter().flatten().map(|(domain, _)| domain);
        if let Some(domain) =
            led.into_iter().find(|domain| member.is_none_or(|member| member.domain != **domain))
        {
            let leads = |(_, route): &(&Network, &RouteSpec)| route.port == *port;
            let routes = self.routing.domains.get(domain).into_iter().flat_map(|domain| &domain.routes);
            let route =
                routes.into_iter().find(leads).map(|(network, _)| network.to_string()).unwrap_or_default();
            return refuse(
                format!("domain {domain}: route {route}"),
                format!("it leads to port {port}, which is not in this domain"),
            );
        }
        let Some(member) = member else { return Ok(()) };
        let subject = format!("domain {}: port {port}", member.domain);
        match self.ports.get(port) {
            None => return refuse(subject, "there is no such port"),
            Some(PortSpec::Relay(_)) => return refuse(subject, "it is a relay, which has no frames"),
            Some(_) => {}
        }
        if !self.routing.domains.contains_key(&member.domain) {
            return refuse(subject, "there is no such domain");
        }
        if let Some(xconnect) = self.xconnects_of(port).next() {
            return refuse(subject, format!("it is in xconnect {xconnect}; a port can be in one of the two"));
        }
        Ok(())
    }

    fn check_route(&self, name: &PortName, network: &Network, route: &RouteSpec) -> Result<(), StateError> {
        let subject = || format!("domain {name}: route {network}");
        let RouteSpec { port, via } = route;
        let inside = self.routing.members.get(port).is_some_and(|member| member.domain == *name);
        if !inside {
            return refuse(subject(), format!("it leads to port {port}, which is not in this domain"));
        }
        let gateways = self.routing.domains.get(name).map(|domain| &domain.gateways[..]).unwrap_or_default();
        if gateways.iter().any(|gateway| Network::host(*gateway) == *network) {
            return refuse(subject(), "it is a gateway address of the domain, and can't be both");
        }
        match via {
            Some(via) if via.is_ipv4() != network.address.is_ipv4() => {
                refuse(subject(), format!("via {via} is not of the prefix's family"))
            }
            Some(via) if gateways.contains(via) => {
                refuse(subject(), format!("via {via} is a gateway address of the domain itself"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
