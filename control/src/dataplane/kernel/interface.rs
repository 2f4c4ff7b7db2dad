//! What an interface shall be, from a connection's context. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use tonic::Status;

use crate::api::connection::Connection;
use crate::api::connectioncontext::{IpContext, PolicyRoute};
use crate::api::path::{self, PathExt};

/// Longest interface name (`IFNAMSIZ` less its terminator).
const NAME_MAX: usize = 15;
/// Most addresses, routes, neighbours or rules of one connection; more is a mistake or an attack.
const MAX_ENTRIES: usize = 1024;

/// Which end of the vWire an interface is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    /// Toward the client, whom we serve: it has the source addresses.
    Server,
    /// Toward the endpoint, whose client we are: it has the destination addresses.
    Client,
}

impl Side {
    /// As it is in aliases and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Client => "client",
        }
    }
}

/// A route of the interface.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Route {
    /// Where to, without host bits.
    pub prefix: IpNet,
    /// By which neighbour; it need not be in a network of the interface. None: the destination is a neighbour itself.
    pub via: Option<IpAddr>,
}

/// A policy rule, and the table that it leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Packets from here; all if none.
    pub from: Option<IpNet>,
    /// Of this IP protocol.
    pub protocol: Option<u8>,
    /// With a destination port from, to.
    pub dst_port: Option<(u16, u16)>,
    /// With a source port from, to.
    pub src_port: Option<(u16, u16)>,
    /// What the table holds.
    pub routes: Vec<Route>,
}

/// What the interface shall be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Interface {
    /// With prefix length.
    pub addresses: BTreeSet<IpNet>,
    /// In the main table.
    pub routes: BTreeSet<Route>,
    /// Addresses whose hardware address is known.
    pub neighbours: Vec<(IpAddr, [u8; 6])>,
    /// Bytes; none leaves it as it was made.
    pub mtu: Option<u32>,
    /// The interface's own hardware address; none leaves the kernel's choice.
    pub mac: Option<[u8; 6]>,
    /// By which its owner is known.
    pub alias: String,
    /// Rules, client's end only.
    pub policies: Vec<Policy>,
}

/// Checks an interface's name, as the kernel and /proc/sys/net see it.
///
/// # Errors
/// INVALID_ARGUMENT, naming the rule.
pub fn check_name(name: &str) -> Result<(), Status> {
    let bad = |why: &str| {
        let shown: String = name.chars().take(40).collect();
        Err(Status::invalid_argument(format!(
            "mechanism parameter `name`: {shown:?} is no interface name: {why}"
        )))
    };
    if name.is_empty() || name.len() > NAME_MAX {
        return bad(&format!("it has {} bytes, Linux takes 1 to {NAME_MAX}", name.len()));
    }
    if matches!(name, "." | ".." | "all" | "default" | "lo") {
        return bad("the word means something else");
    }
    if name.chars().any(|c| matches!(c, '/' | ':' | '%') || c.is_whitespace() || c.is_control()) {
        return bad("it must not contain '/', ':', '%', white space or control characters");
    }
    Ok(())
}

impl Interface {
    /// What the connection's context says about one of its ends.
    ///
    /// # Errors
    /// INVALID_ARGUMENT, naming the field.
    pub fn of(connection: &Connection, side: Side) -> Result<Self, Status> {
        let context = connection.context.clone().unwrap_or_default();
        let ip = context.ip_context.unwrap_or_default();
        let alias = format!("{}-{}", side.name(), path::of(connection).root_id());
        let ethernet = context.ethernet_context.unwrap_or_default();
        let (own, peer, wanted, mac) = match side {
            Side::Server => (&ip.src_ip_addrs, &ip.dst_ip_addrs, &ip.src_routes, &ethernet.src_mac),
            Side::Client => (&ip.dst_ip_addrs, &ip.src_ip_addrs, &ip.dst_routes, &ethernet.dst_mac),
        };
        limit("ip addresses", own.len().max(peer.len()))?;
        limit("routes", wanted.len())?;
        limit("ip_neighbors", ip.ip_neighbors.len())?;
        let (own, peer) = (nets("ip address", own)?, nets("ip address", peer)?);
        Ok(Self {
            routes: routes(&own, &peer, wanted)?,
            addresses: own.into_iter().collect(),
            neighbours: neighbours(&ip)?,
            mtu: mtu(context.mtu, &ip)?,
            mac: if mac.is_empty() { None } else { Some(hardware("ethernet_context", mac)?) },
            alias: alias.chars().filter(|c| !c.is_control()).take(250).collect(),
            policies: if side == Side::Server { policies(&ip.policies)? } else { Vec::new() },
        })
    }

    /// True if any address is IPv6.
    pub fn has_v6(&self) -> bool {
        self.addresses.iter().any(|net| net.addr().is_ipv6())
    }
}

fn limit(what: &str, count: usize) -> Result<(), Status> {
    match count {
        0..=MAX_ENTRIES => Ok(()),
        _ => Err(Status::invalid_argument(format!(
            "{what}: {count} are more than the {MAX_ENTRIES} that a connection may have"
        ))),
    }
}

/// An address with or without prefix length; without one it is the host alone.
fn net(what: &str, text: &str) -> Result<IpNet, Status> {
    let parsed = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    parsed.ok_or_else(|| {
        let shown: String = text.chars().take(60).collect();
        Status::invalid_argument(format!(
            "{what}: {shown:?} is not an address with prefix length, such as 10.60.1.2/30"
        ))
    })
}

fn nets(what: &str, texts: &[String]) -> Result<Vec<IpNet>, Status> {
    texts.iter().map(|text| net(what, text)).collect()
}

/// Routes of one end: each of the peer's addresses that is in no network of ours is a neighbour; then what the context lists, by
/// default over the peer's first address of the family unless the destination is in a network of the peer's.
fn routes(
    own: &[IpNet],
    peer: &[IpNet],
    wanted: &[crate::api::connectioncontext::Route],
) -> Result<BTreeSet<Route>, Status> {
    let mut routes = BTreeSet::new();
    for peer in peer {
        if !own.iter().any(|own| own.contains(&peer.addr())) {
            routes.insert(Route { prefix: IpNet::from(peer.addr()), via: None });
        }
    }
    for route in wanted {
        let prefix = net("route prefix", &route.prefix)?.trunc();
        let via = match route.next_hop.as_str() {
            "" => default_next_hop(&prefix, peer),
            hop => Some(net("route next hop", hop)?.addr()),
        };
        if via.is_some_and(|via| via.is_ipv4() != prefix.addr().is_ipv4()) {
            return Err(Status::invalid_argument(format!(
                "route {prefix}: its next hop is of the other family"
            )));
        }
        // The peer's own address over itself would be a second route to the same destination.
        if !routes.contains(&Route { prefix, via: None }) {
            routes.insert(Route { prefix, via });
        }
    }
    Ok(routes)
}

fn default_next_hop(prefix: &IpNet, peer: &[IpNet]) -> Option<IpAddr> {
    if peer.iter().any(|peer| peer.trunc().contains(prefix)) {
        return None;
    }
    peer.iter().map(IpNet::addr).find(|address| address.is_ipv4() == prefix.addr().is_ipv4())
}

fn neighbours(ip: &IpContext) -> Result<Vec<(IpAddr, [u8; 6])>, Status> {
    let one = |neighbour: &crate::api::connectioncontext::IpNeighbor| {
        let address = net("ip_neighbors.ip", &neighbour.ip)?.addr();
        Ok((address, hardware("ip_neighbors.hardware_address", &neighbour.hardware_address)?))
    };
    ip.ip_neighbors.iter().map(one).collect()
}

fn hardware(what: &str, text: &str) -> Result<[u8; 6], Status> {
    let bytes: Option<Vec<u8>> =
        text.split([':', '-']).map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    let bytes = bytes.and_then(|bytes| <[u8; 6]>::try_from(bytes).ok());
    bytes.filter(|mac| mac[0] & 1 == 0 && *mac != [0; 6]).ok_or_else(|| {
        let shown: String = text.chars().take(40).collect();
        Status::invalid_argument(format!(
            "{what}: {shown:?} is not a unicast hardware address such as 02:00:00:00:00:01"
        ))
    })
}

fn mtu(mtu: u32, ip: &IpContext) -> Result<Option<u32>, Status> {
    let v6 = ip.src_ip_addrs.iter().chain(&ip.dst_ip_addrs).any(|address| address.contains(':'));
    let least = if v6 { 1280 } else { 68 };
    match mtu {
        0 => Ok(None),
        mtu if mtu < least => Err(Status::invalid_argument(format!(
            "context.MTU: {mtu} bytes are less than the {least} that IP needs"
        ))),
        mtu => Ok(Some(mtu.min(65_521))),
    }
}

fn policies(policies: &[PolicyRoute]) -> Result<Vec<Policy>, Status> {
    limit("policies", policies.len())?;
    policies.iter().map(policy).collect()
}

fn policy(policy: &PolicyRoute) -> Result<Policy, Status> {
    let from = if policy.from.is_empty() { None } else { Some(net("policies.from", &policy.from)?.trunc()) };
    let protocol = match policy.proto.as_str() {
        "" => None,
        number => Some(number.parse().map_err(|_| {
            Status::invalid_argument(format!(
                "policies.proto: {number:?} is not an IP protocol's number from 0 to 255"
            ))
        })?),
    };
    limit("policies.routes", policy.routes.len())?;
    let mut routes = Vec::new();
    for route in &policy.routes {
        let via = if route.next_hop.is_empty() {
            None
        } else {
            Some(net("policies.routes", &route.next_hop)?.addr())
        };
        routes.push(Route { prefix: net("policies.routes", &route.prefix)?.trunc(), via });
    }
    if routes.is_empty() {
        let everything = if from.is_some_and(|from| from.addr().is_ipv6()) { "::/0" } else { "0.0.0.0/0" };
        routes.push(Route { prefix: net("default", everything)?, via: None });
    }
    Ok(Policy {
        from,
        protocol,
        dst_port: ports("policies.dst_port", &policy.dst_port)?,
        src_port: ports("policies.src_port", &policy.src_port)?,
        routes,
    })
}

/// `N` or `N-M`.
fn ports(what: &str, text: &str) -> Result<Option<(u16, u16)>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.parse(), last.parse()) {
        (Ok(first), Ok(last)) if first <= last => Ok(Some((first, last))),
        _ => Err(Status::invalid_argument(format!(
            "{what}: {text:?} is neither a port nor a range such as 80-90"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::connectioncontext::{ConnectionContext, IpNeighbor, Route as ApiRoute};

    fn route(prefix: &str, next_hop: &str) -> ApiRoute {
        ApiRoute { prefix: prefix.into(), next_hop: next_hop.into() }
    }

    fn connection(ip: IpContext) -> Connection {
        Connection {
            context: Some(ConnectionContext { ip_context: Some(ip), ..Default::default() }),
            ..Default::default()
        }
    }

    fn shown(interface: &Interface) -> Vec<String> {
        let via = |via: Option<IpAddr>| via.map(|via| format!(" via {via}")).unwrap_or_default();
        interface.routes.iter().map(|route| format!("{}{}", route.prefix, via(route.via))).collect()
    }

    #[test]
    fn both_ends_see_the_other_as_neighbour_and_reach_the_rest_over_it() {
        let ip = IpContext {
            src_ip_addrs: vec!["169.254.0.1/32".into(), "fd00::1/128".into()],
            dst_ip_addrs: vec!["169.254.0.0/32".into(), "fd00::/128".into()],
            src_routes: vec![
                route("169.254.0.0/32", ""),
                route("172.16.1.7/24", ""),
                route("10.0.0.0/8", "10.9.9.9"),
                route("fd01::/64", ""),
            ],
            dst_routes: vec![route("169.254.0.1/32", "")],
            ..Default::default()
        };
        let connection = connection(ip);
        let client = Interface::of(&connection, Side::Server).unwrap();
        assert_eq!(
            shown(&client),
            [
                "10.0.0.0/8 via 10.9.9.9",
                "169.254.0.0/32",
                "172.16.1.0/24 via 169.254.0.0",
                "fd00::/128",
                "fd01::/64 via fd00::"
            ]
        );
        let endpoint = Interface::of(&connection, Side::Client).unwrap();
        assert_eq!(shown(&endpoint), ["169.254.0.1/32", "fd00::1/128"]);
        assert!(endpoint.has_v6() && endpoint.alias == "client-");
    }

    #[test]
    fn a_peer_in_our_own_network_needs_no_route() {
        let ip = IpContext {
            src_ip_addrs: vec!["10.60.1.1/30".into()],
            dst_ip_addrs: vec!["10.60.1.2/30".into()],
            src_routes: vec![route("10.60.1.2/32", "")],
            ..Default::default()
        };
        let client = Interface::of(&connection(ip), Side::Server).unwrap();
        assert_eq!(shown(&client), ["10.60.1.2/32"], "the context asked for it");
    }

    #[test]
    fn what_is_wrong_is_named() {
        type Spoil = fn(&mut IpContext);
        let cases: [(&str, Spoil); 7] = [
            ("ip address: \"10.0.0\"", |ip| ip.src_ip_addrs = vec!["10.0.0".into()]),
            ("route prefix", |ip| ip.src_routes = vec![route("x", "")]),
            ("other family", |ip| ip.src_routes = vec![route("fd00::/64", "10.0.0.1")]),
            ("ip_neighbors.hardware_address", |ip| {
                ip.ip_neighbors =
                    vec![IpNeighbor { ip: "10.0.0.1".into(), hardware_address: "01:00:00:00:00:00".into() }];
            }),
            ("policies.proto", |ip| {
                ip.policies = vec![PolicyRoute { proto: "tcp".into(), ..Default::default() }]
            }),
            ("policies.dst_port", |ip| {
                ip.policies = vec![PolicyRoute { dst_port: "9-1".into(), ..Default::default() }]
            }),
            ("1025 are more than the 1024", |ip| ip.src_routes = vec![route("10.0.0.0/8", ""); 1025]),
        ];
        for (what, spoil) in cases {
            let mut ip = IpContext::default();
            spoil(&mut ip);
            let error = Interface::of(&connection(ip), Side::Server).unwrap_err();
            assert_eq!(error.code(), tonic::Code::InvalidArgument);
            assert!(error.message().contains(what), "{what}: {}", error.message());
        }
        for name in ["", "0123456789abcdef", ".", "..", "all", "a/b", "a b", "lo", "x%d"] {
            assert!(check_name(name).is_err(), "{name}");
        }
        check_name("nsm-1").unwrap();
    }

    #[test]
    fn policies_are_the_clients_and_have_a_default_route() {
        let policy = |from: &str| PolicyRoute {
            from: from.into(),
            proto: "6".into(),
            dst_port: "80".into(),
            ..Default::default()
        };
        let ip = IpContext {
            policies: vec![policy("172.16.2.201/24"), policy("fd00::/64")],
            ..Default::default()
        };
        let interface = Interface::of(&connection(ip.clone()), Side::Server).unwrap();
        assert_eq!(interface.policies[0].from, Some("172.16.2.0/24".parse().unwrap()));
        assert_eq!(interface.policies[0].routes[0].prefix.to_string(), "0.0.0.0/0");
        assert_eq!(interface.policies[1].routes[0].prefix.to_string(), "::/0");
        assert_eq!(interface.policies[1].dst_port, Some((80, 80)));
        assert!(Interface::of(&connection(ip), Side::Client).unwrap().policies.is_empty());
    }
}
