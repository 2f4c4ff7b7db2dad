//! Our end of tunnels: which address, and what its interface carries.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::route::RouteAttribute;

use super::kernel::Netlink;
use super::kernel::apply::{MAIN, list_routes, route_of, table_of};

/// An address of this machine and its interface's MTU in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Local {
    /// The address.
    pub ip: IpAddr,
    /// The interface's MTU.
    pub mtu: u32,
}

/// The address that was asked for, or else the first global one of the interface that the default route leads to, IPv4 before IPv6, as
/// the Go forwarder has it. None if there is no default route, or it leads nowhere of use. Blocking.
///
/// # Errors
/// If the address asked for is none of this machine's, or the kernel does not tell.
pub fn find(asked: Option<IpAddr>) -> Result<Option<Local>, String> {
    let mut netlink = Netlink::open().map_err(|error| format!("opening a netlink socket: {error}"))?;
    let addresses = addresses(&mut netlink)?;
    let found =
        match asked {
            Some(ip) => {
                let index =
                    addresses.iter().find(|(_, address, _)| *address == ip).map(|(index, ..)| (*index, ip));
                Some(index.ok_or_else(|| {
                    format!("{ip} is not an address of this machine; `ip address` lists them")
                })?)
            }
            None => {
                let routes = list_routes(&mut netlink).map_err(|status| status.message().to_owned())?;
                let default = routes
                    .iter()
                    .filter(|route| table_of(route) == MAIN && route_of(route).prefix.prefix_len() == 0);
                let mut links =
                    default.flat_map(|route| &route.attributes).filter_map(|attribute| match attribute {
                        RouteAttribute::Oif(index) => Some(*index),
                        _ => None,
                    });
                links.find_map(|link| {
                    let usable = |(index, ip, global): &&(u32, IpAddr, bool)| {
                        *index == link && *global && !ip.is_loopback()
                    };
                    addresses.iter().find(usable).map(|(index, ip, _)| (*index, *ip))
                })
            }
        };
    let Some((index, ip)) = found else { return Ok(None) };
    Ok(Some(Local { ip, mtu: mtu(&mut netlink, index)? }))
}

/// Interface, address, and whether it is a global one.
fn addresses(netlink: &mut Netlink) -> Result<Vec<(u32, IpAddr, bool)>, String> {
    let entries = netlink
        .dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))
        .map_err(|error| format!("listing the addresses: {error}"))?;
    let mut addresses: Vec<_> = entries
        .into_iter()
        .filter_map(|entry| {
            let RouteNetlinkMessage::NewAddress(entry) = entry else { return None };
            let of =
                |wanted: fn(&AddressAttribute) -> Option<IpAddr>| entry.attributes.iter().find_map(wanted);
            let local = of(|attribute| match attribute {
                AddressAttribute::Local(address) => Some(*address),
                _ => None,
            });
            let plain = of(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            });
            let net = IpNet::new(local.or(plain)?, entry.header.prefix_len).ok()?;
            Some((entry.header.index, net.addr(), entry.header.scope == AddressScope::Universe))
        })
        .collect();
    addresses.sort_by_key(|(_, ip, _)| ip.is_ipv6());
    Ok(addresses)
}

fn mtu(netlink: &mut Netlink, index: u32) -> Result<u32, String> {
    let links = netlink
        .dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))
        .map_err(|error| format!("listing the interfaces: {error}"))?;
    let link = links.into_iter().find_map(|link| match link {
        RouteNetlinkMessage::NewLink(link) if link.header.index == index => Some(link),
        _ => None,
    });
    let mtu = link.and_then(|link| {
        link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        })
    });
    mtu.ok_or_else(|| format!("interface {index} has no MTU"))
}
