//! From what an interface is to what it shall be. Blocking; runs on a thread inside the interface's namespace.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use tonic::Status;

use super::{Interface, Netlink, Route, policy};

/// Marks our routes and rules among a workload's own; free in iproute2's rt_protos.
pub(super) const PROTOCOL: RouteProtocol = RouteProtocol::Other(78);

/// What was done and has to be known to undo it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Applied {
    /// The routing tables of the policies, in their order.
    pub tables: Vec<u32>,
}

/// An error with what was being done.
pub(super) fn doing(what: impl std::fmt::Display) -> impl FnOnce(io::Error) -> Status {
    move |error| Status::failed_precondition(format!("in the workload's namespace: {what}: {error}"))
}

/// Makes the interface what `wanted` says; what agrees is not touched. `tables` are those of the policies so far. A `fresh` interface
/// has just been made and has nothing yet.
///
/// # Errors
/// FAILED_PRECONDITION, naming what the kernel refused; NOT_FOUND if there is no such interface.
pub fn configure(ifname: &str, wanted: &Interface, tables: &[u32], fresh: bool) -> Result<Applied, Status> {
    let mut netlink = Netlink::open().map_err(doing("opening a netlink socket"))?;
    let link = find_link(&mut netlink, ifname, &wanted.alias)?;
    set_link(&mut netlink, &link, wanted).map_err(doing(format_args!("setting up {ifname}")))?;
    if wanted.has_v6() {
        allow_v6(ifname).map_err(doing(format_args!("allowing IPv6 on {ifname}")))?;
    }
    let index = link.header.index;
    set_addresses(&mut netlink, ifname, index, wanted, fresh)?;
    set_routes(&mut netlink, ifname, index, wanted, fresh)?;
    for (address, mac) in &wanted.neighbours {
        set_neighbour(&mut netlink, index, *address, *mac)
            .map_err(doing(format_args!("adding the neighbour {address} of {ifname}")))?;
    }
    let tables = policy::ensure(&mut netlink, index, &wanted.policies, tables)?;
    allow_ping();
    Ok(Applied { tables })
}

/// Removes what does not go with the interface: the policy rules of these tables.
///
/// # Errors
/// FAILED_PRECONDITION, naming what the kernel refused.
pub fn unconfigure(tables: &[u32]) -> Result<(), Status> {
    let mut netlink = Netlink::open().map_err(doing("opening a netlink socket"))?;
    policy::remove(&mut netlink, tables)
}

/// The interface of this name. Others with its alias were left behind by a forwarder that died, and are removed.
fn find_link(netlink: &mut Netlink, ifname: &str, alias: &str) -> Result<LinkMessage, Status> {
    let links = netlink
        .dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))
        .map_err(doing("listing the interfaces"))?;
    let mut found = None;
    for link in links {
        let RouteNetlinkMessage::NewLink(link) = link else { continue };
        let named =
            |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::IfName(name) if name == ifname);
        let owned =
            |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::IfAlias(name) if name == alias);
        if link.attributes.iter().any(named) {
            found = Some(link);
        } else if link.attributes.iter().any(owned) {
            remove_link(netlink, link.header.index)
                .map_err(doing(format_args!("removing what {alias} left behind")))?;
        }
    }
    found
        .ok_or_else(|| Status::not_found(format!("interface {ifname} is gone from the workload's namespace")))
}

/// Whether there is an interface of this name.
///
/// # Errors
/// FAILED_PRECONDITION, naming what the kernel refused.
pub fn exists(ifname: &str) -> Result<bool, Status> {
    let mut netlink = Netlink::open().map_err(doing("opening a netlink socket"))?;
    let links = netlink
        .dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))
        .map_err(doing("listing the interfaces"))?;
    let name = LinkAttribute::IfName(ifname.to_owned());
    Ok(links
        .iter()
        .any(|link| matches!(link, RouteNetlinkMessage::NewLink(link) if link.attributes.contains(&name))))
}

/// Removes an interface of this name that has this alias, as a forwarder that died leaves it behind. True if there was one.
///
/// # Errors
/// FAILED_PRECONDITION, naming what the kernel refused.
pub fn remove_leftover(ifname: &str, alias: &str) -> Result<bool, Status> {
    let mut netlink = Netlink::open().map_err(doing("opening a netlink socket"))?;
    let links = netlink
        .dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))
        .map_err(doing("listing the interfaces"))?;
    for link in links {
        let RouteNetlinkMessage::NewLink(link) = link else { continue };
        let named = link.attributes.contains(&LinkAttribute::IfName(ifname.to_owned()));
        if named && link.attributes.contains(&LinkAttribute::IfAlias(alias.to_owned())) {
            remove_link(&mut netlink, link.header.index).map_err(doing(format_args!("removing {ifname}")))?;
            return Ok(true);
        }
    }
    Ok(false)
}

fn remove_link(netlink: &mut Netlink, index: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    netlink.ask(RouteNetlinkMessage::DelLink(message), 0)
}

fn set_link(netlink: &mut Netlink, link: &LinkMessage, wanted: &Interface) -> io::Result<()> {
    let mut change = LinkMessage::default();
    change.header.index = link.header.index;
    let mut attributes = vec![LinkAttribute::IfAlias(wanted.alias.clone())];
    attributes.extend(wanted.mtu.map(LinkAttribute::Mtu));
    attributes.extend(wanted.mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
    attributes.retain(|attribute| !link.attributes.contains(attribute));
    let up = link.header.flags.contains(LinkFlags::Up);
    if attributes.is_empty() && up {
        return Ok(());
    }
    change.attributes = attributes;
    if !up {
        change.header.flags = LinkFlags::Up;
        change.header.change_mask = LinkFlags::Up;
    }
    netlink.ask(RouteNetlinkMessage::SetLink(change), 0)
}

/// Containers often come with IPv6 off for new interfaces.
fn allow_v6(ifname: &str) -> io::Result<()> {
    let path = format!("/proc/sys/net/ipv6/conf/{ifname}/disable_ipv6");
    match std::fs::read_to_string(&path)?.trim() {
        "0" => Ok(()),
        _ => std::fs::write(&path, "0"),
    }
}

/// Lets the workload ping without rights, for its check that the vWire lives. Not worth failing a Request for.
fn allow_ping() {
    const ALL: &str = "0 2147483647";
    let path = "/proc/sys/net/ipv4/ping_group_range";
    let done = std::fs::read_to_string(path).and_then(|range| {
        if range.split_whitespace().eq(ALL.split_whitespace()) { Ok(()) } else { std::fs::write(path, ALL) }
    });
    if let Err(error) = done {
        tracing::debug!("{path}: {error}; unprivileged pings may not work in this workload");
    }
}

fn set_addresses(
    netlink: &mut Netlink,
    ifname: &str,
    index: u32,
    wanted: &Interface,
    fresh: bool,
) -> Result<(), Status> {
    let mut missing = wanted.addresses.clone();
    if !fresh {
        let listing = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        for entry in netlink.dump(listing).map_err(doing("listing the addresses"))? {
            let RouteNetlinkMessage::NewAddress(entry) = entry else { continue };
            let Some(net) = address_of(&entry).filter(|_| entry.header.index == index) else { continue };
            if !missing.remove(&net) && entry.header.scope == AddressScope::Universe {
                netlink
                    .ask(RouteNetlinkMessage::DelAddress(entry), 0)
                    .map_err(doing(format_args!("removing the address {net} of {ifname}")))?;
            }
        }
    }
    for net in missing {
        let added = add_address(netlink, index, &net);
        added.map_err(doing(format_args!("adding the address {net} to {ifname}")))?;
    }
    Ok(())
}

fn address_of(entry: &AddressMessage) -> Option<IpNet> {
    let local = entry.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let plain = entry.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    });
    IpNet::new(local.or(plain)?, entry.header.prefix_len).ok()
}

/// Usable at once: there is nobody on a point-to-point wire to detect a duplicate of.
fn add_address(netlink: &mut Netlink, index: u32, net: &IpNet) -> io::Result<()> {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = net.prefix_len();
    message.header.flags = AddressHeaderFlags::Nodad;
    message.header.family = family(&net.addr());
    message.attributes.push(AddressAttribute::Local(net.addr()));
    message.attributes.push(AddressAttribute::Address(net.addr()));
    netlink.ask(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE)
}

pub(super) fn family(address: &IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn set_routes(
    netlink: &mut Netlink,
    ifname: &str,
    index: u32,
    wanted: &Interface,
    fresh: bool,
) -> Result<(), Status> {
    let mut have = BTreeSet::new();
    if !fresh {
        for entry in list_routes(netlink)? {
            if out_of(&entry) != Some(index) || entry.header.protocol != PROTOCOL || table_of(&entry) != MAIN
            {
                continue;
            }
            let route = route_of(&entry);
            if wanted
                .routes
                .iter()
                .any(|wanted| *wanted == route || halves(wanted).contains(&Some(route.clone())))
            {
                have.insert(route);
            } else {
                let what = format!("removing the route {} of {ifname}", route.prefix);
                netlink.ask(RouteNetlinkMessage::DelRoute(entry), 0).map_err(doing(what))?;
            }
        }
    }
    for route in &wanted.routes {
        let split = halves(route).iter().all(|half| half.as_ref().is_some_and(|half| have.contains(half)));
        if !have.contains(route) && !split {
            add_route(netlink, ifname, index, route)?;
        }
    }
    Ok(())
}

/// A route of the workload to the same destination is not replaced: two routes to the destination's halves go before it, and when
/// they are gone everything is as it was.
fn add_route(netlink: &mut Netlink, ifname: &str, index: u32, route: &Route) -> Result<(), Status> {
    let describe = || format!("adding the route {} to {ifname}", route.prefix);
    let taken = match netlink
        .ask(RouteNetlinkMessage::NewRoute(message(route, index, MAIN)), NLM_F_CREATE | NLM_F_EXCL)
    {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => error,
        other => return other.map_err(doing(describe())),
    };
    let [Some(lower), Some(upper)] = halves(route) else {
        return Err(doing(format!("{}: another interface has it", describe()))(taken));
    };
    for half in [lower, upper] {
        let half = message(&half, index, MAIN);
        let added = netlink.ask(RouteNetlinkMessage::NewRoute(half), NLM_F_CREATE | NLM_F_EXCL);
        added.map_err(doing(format!("{}: another interface has it, and half of it", describe())))?;
    }
    Ok(())
}

fn halves(route: &Route) -> [Option<Route>; 2] {
    let Some(mut halves) = route.prefix.subnets(route.prefix.prefix_len() + 1).ok() else {
        return [None, None];
    };
    let mut half = || halves.next().map(|prefix| Route { prefix, via: route.via });
    [half(), half()]
}

/// The main routing table.
pub(in crate::dataplane) const MAIN: u32 = RouteHeader::RT_TABLE_MAIN as u32;

pub(super) fn message(route: &Route, index: u32, table: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(&route.prefix.addr());
    message.header.destination_prefix_length = route.prefix.prefix_len();
    message.header.protocol = PROTOCOL;
    message.header.kind = RouteType::Unicast;
    message.header.scope = RouteScope::Link;
    message.header.table = u8::try_from(table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    message.attributes.push(RouteAttribute::Table(table));
    message.attributes.push(RouteAttribute::Oif(index));
    message.attributes.push(RouteAttribute::Destination(RouteAddress::from(route.prefix.addr())));
    if let Some(via) = route.via {
        message.header.scope = RouteScope::Universe;
        message.header.flags = RouteFlags::Onlink;
        message.attributes.push(RouteAttribute::Gateway(RouteAddress::from(via)));
    }
    message
}

/// All routes of all tables, both families.
pub(in crate::dataplane) fn list_routes(netlink: &mut Netlink) -> Result<Vec<RouteMessage>, Status> {
    let mut routes = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut listing = RouteMessage::default();
        listing.header.address_family = family;
        let entries =
            netlink.dump(RouteNetlinkMessage::GetRoute(listing)).map_err(doing("listing the routes"))?;
        routes.extend(entries.into_iter().filter_map(|entry| match entry {
            RouteNetlinkMessage::NewRoute(route) => Some(route),
            _ => None,
        }));
    }
    Ok(routes)
}

pub(in crate::dataplane) fn table_of(route: &RouteMessage) -> u32 {
    let attribute = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    attribute.unwrap_or(route.header.table.into())
}

fn out_of(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

pub(in crate::dataplane) fn route_of(entry: &RouteMessage) -> Route {
    let address = |wanted: &RouteAddress| match wanted {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    };
    let everything: IpAddr = match entry.header.address_family {
        AddressFamily::Inet6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
        _ => std::net::Ipv4Addr::UNSPECIFIED.into(),
    };
    let (mut destination, mut via) = (everything, None);
    for attribute in &entry.attributes {
        match attribute {
            RouteAttribute::Destination(to) => destination = address(to).unwrap_or(everything),
            RouteAttribute::Gateway(gateway) => via = address(gateway),
            _ => {}
        }
    }
    let prefix = IpNet::new(destination, entry.header.destination_prefix_length);
    Route { prefix: prefix.unwrap_or_else(|_| IpNet::from(destination)), via }
}

fn set_neighbour(netlink: &mut Netlink, index: u32, address: IpAddr, mac: [u8; 6]) -> io::Result<()> {
    let mut message = NeighbourMessage::default();
    message.header.family = family(&address);
    message.header.ifindex = index;
    message.header.state = NeighbourState::Reachable;
    message.attributes.push(NeighbourAttribute::Destination(match address {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    }));
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
    netlink.ask(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE)
}
