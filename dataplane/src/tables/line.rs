//! What workers look at where tunnels go by an Ethernet port: whose datagrams its underlay takes, and where each tunnel's go. The
//! agent finds out (ARP, neighbour discovery, the kernel's tables) and publishes; see [`underlay::l2`](crate::underlay::l2).

use std::net::{IpAddr, SocketAddr};

use crate::route::domain::Mac;

/// What an underlay on an Ethernet port takes for its own.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Line {
    /// Its hardware address.
    pub mac: Mac,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The addresses and UDP ports that its tunnels' peers send to.
    pub endpoints: Vec<SocketAddr>,
}

/// Where a tunnel's datagrams go, as far as that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    /// The underlay's own hardware address.
    pub from: Mac,
    /// The next hop's.
    pub to: Mac,
    /// The tunnel's own address.
    pub local: IpAddr,
    /// As [`Tunnel::max_frame`](super::Tunnel::max_frame), or less where a router said so.
    pub max_frame: usize,
}
