//! What of a connection's context follows from its addresses.
//!
//! `src` is the client's side, `dst` the endpoint's: `src_routes` are for the client, `dst_routes` say what is behind it.

use std::net::IpAddr;

use ipnet::IpNet;
use tonic::Status;
use vwire_proto::nsm::connectioncontext as api;
use vwire_proto::nsm::connectioncontext::IpContext;

use super::Held;
use crate::vl3::router::Route;

/// Most addresses of either end.
const MAX_ADDRESSES: usize = 64;
/// Most routes of either end.
const MAX_ROUTES: usize = 256;

/// `address/length`, or a bare address.
fn net(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

/// `10.0.0.1/32`.
fn host(address: IpAddr) -> String {
    IpNet::from(address).to_string()
}

/// Half of the bits, as the reference has it: all prefixes of one prefix server are in it. The address keeps its other bits.
fn global(prefix: &IpNet) -> String {
    format!("{}/{}", prefix.network(), prefix.max_prefix_len() / 2)
}

/// Whether everything can be read.
pub(super) fn check(context: &IpContext) -> Result<(), Status> {
    let wrong = |field: &str, what: String| {
        Err(Status::invalid_argument(format!("context.ip_context.{field}: {what}")))
    };
    for (field, list) in [("src_ip_addrs", &context.src_ip_addrs), ("dst_ip_addrs", &context.dst_ip_addrs)] {
        if list.len() > MAX_ADDRESSES {
            return wrong(field, format!("{} addresses; at most {MAX_ADDRESSES} are taken", list.len()));
        }
        if let Some(bad) = list.iter().find(|text| net(text).is_none()) {
            return wrong(field, format!("{:?} is not address/length", shown(bad)));
        }
    }
    for (field, list) in [("src_routes", &context.src_routes), ("dst_routes", &context.dst_routes)] {
        if list.len() > MAX_ROUTES {
            return wrong(field, format!("{} routes; at most {MAX_ROUTES} are taken", list.len()));
        }
        if let Some(bad) = list.iter().find(|route| net(&route.prefix).is_none()) {
            return wrong(field, format!("{:?} is not address/length", shown(&bad.prefix)));
        }
    }
    Ok(())
}

fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}

/// Whether the endpoint that it is for is another one: a client that was with that one before.
pub(super) fn leads_elsewhere(context: &IpContext, ours: impl Fn(IpAddr) -> bool) -> bool {
    let mut ends = context.dst_ip_addrs.iter().filter_map(|text| net(text)).map(|net| net.addr());
    !context.dst_ip_addrs.is_empty() && !ends.any(ours)
}

/// The client's addresses of one family.
pub(super) fn sources(context: &IpContext, is_v4: bool) -> Vec<IpAddr> {
    let all = context.src_ip_addrs.iter().filter_map(|text| net(text)).map(|net| net.addr());
    all.filter(|address| address.is_ipv4() == is_v4).collect()
}

/// Whether this is another endpoint: it has an address of its own, and says what is behind it by way of that.
pub(super) fn is_peer(context: &IpContext, is_v4: bool) -> bool {
    let hops = || context.dst_routes.iter().filter_map(|route| route.next_hop.parse().ok());
    sources(context, is_v4).iter().any(|source| hops().any(|hop: IpAddr| hop == *source))
}

/// Takes out what a connection had before.
pub(super) fn remove(context: &mut IpContext, held: &Held) {
    let own = host(held.prefix.network());
    let routes = [own.clone(), held.prefix.to_string(), global(&held.prefix)];
    context.dst_ip_addrs.retain(|address| *address != own);
    context.src_routes.retain(|route| !routes.contains(&route.prefix));
    if let Some(address) = held.address.map(host) {
        context.src_ip_addrs.retain(|known| *known != address);
        context.dst_routes.retain(|route| route.prefix != address);
    }
}

/// Puts in what a connection has. A client has nothing else of that family: whatever it says, nobody would take its packets.
pub(super) fn finish(context: &mut IpContext, held: &[Held]) {
    for is_v4 in [true, false] {
        let of_family = || held.iter().filter(|held| held.prefix.addr().is_ipv4() == is_v4);
        if of_family().next().is_none() || of_family().any(|held| held.address.is_none()) {
            continue;
        }
        let own: Vec<String> = of_family().filter_map(|held| held.address.map(host)).collect();
        let stays =
            |text: &String| own.contains(text) || net(text).is_some_and(|net| net.addr().is_ipv4() != is_v4);
        context.src_ip_addrs.retain(&stays);
        context.dst_routes.retain(|route| stays(&route.prefix));
        own.into_iter().for_each(|address| add(&mut context.src_ip_addrs, address));
    }
    for held in held {
        let own = held.prefix.network();
        add_route(&mut context.src_routes, host(own), own.to_string());
        add_route(&mut context.src_routes, held.prefix.to_string(), own.to_string());
        for address in context.src_ip_addrs.clone() {
            add_route(&mut context.dst_routes, address, String::new());
        }
        add(&mut context.dst_ip_addrs, host(own));
    }
}

/// The way to the whole network.
pub(super) fn add_global<'a>(context: &mut IpContext, held: impl Iterator<Item = &'a Held>) {
    for held in held {
        add_route(&mut context.src_routes, global(&held.prefix), held.prefix.network().to_string());
    }
}

/// What leads to the connection, and which of that another endpoint says it has.
pub(super) fn behind(context: &IpContext, held: &[Held]) -> (Vec<Route>, Vec<IpNet>) {
    let own = held.iter().filter_map(|held| held.address);
    let mut routes: Vec<Route> = own.map(|address| IpNet::from(address).into()).collect();
    let mut announced = Vec::new();
    let is_peer = |prefix: &IpNet| {
        let of_family = |held: &&Held| held.prefix.addr().is_ipv4() == prefix.addr().is_ipv4();
        held.iter().filter(of_family).any(|held| held.address.is_none())
    };
    for route in &context.dst_routes {
        let Some(prefix) = net(&route.prefix).filter(is_peer) else { continue };
        let via = route.next_hop.parse().ok().filter(|via| IpNet::from(*via) != prefix);
        announced.push(prefix.trunc());
        routes.push(Route { prefix: prefix.trunc(), via });
    }
    (routes, announced)
}

fn add(list: &mut Vec<String>, value: String) {
    if !list.contains(&value) {
        list.push(value);
    }
}

fn add_route(routes: &mut Vec<api::Route>, prefix: String, next_hop: String) {
    if !routes.iter().any(|route| route.prefix == prefix) {
        routes.push(api::Route { prefix, next_hop });
    }
}
