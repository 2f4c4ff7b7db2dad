//! What workers look at: a routing domain's table, the ports in it, and who is known behind them. Never changed, swapped whole with
//! the other tables; what a change does not touch is shared with the version before.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::counters::{DomainCounters, RouteTable};
use super::trie::{Key, Trie};
use crate::offload::Link;
use crate::port::PortIndex;

/// A hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// All stations.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Whether one station can have it: not a group's, not zero.
    pub fn is_station(self) -> bool {
        self.0[0] & 1 == 0 && self != Self::default()
    }

    /// A locally administered address that follows from a name, so that it is the same after a restart.
    pub fn of_name(name: &str) -> Self {
        // FNV-1a: short, and the same for ever, which the standard library's hashes don't promise.
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let [a, b, c, d, e, ..] = hash.to_be_bytes();
        Self([0x02, a, b, c, d, e])
    }

    /// The link-local IPv6 address that follows from it (RFC 4291, appendix A).
    pub fn link_local(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A domain's place in the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct DomainIndex(pub u16);

/// A port's place in its domain: the same while the port's link comes and goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct MemberIndex(pub u16);

impl MemberIndex {
    /// Not a port: the domain itself, which answers at its gateway addresses.
    pub const SELF: Self = Self(u16::MAX);
}

/// What a prefix leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Target {
    /// The route, by its place among the counters.
    pub route: u32,
    /// The port.
    pub member: MemberIndex,
    /// The next hop, from 1, by its place in [`Domain::vias`]; 0 if the packet's destination is at the port itself.
    pub via: u16,
}

/// A port in a domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Where it is in the tables; `None` while the engine has no such port.
    pub port: Option<PortIndex>,
    /// What its frames begin with.
    pub link: Link,
    /// What the engine calls itself there.
    pub mac: Mac,
    /// Longest packet, with its IP header, that is sent by this port.
    pub mtu: u16,
    /// Whether what comes by this port must come from addresses that are routed to it.
    pub strict: bool,
}

/// Who has an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// Its hardware address.
    pub mac: Mac,
    /// The port it is behind.
    pub member: MemberIndex,
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Domain {
    /// Where IPv4 packets go.
    pub v4: Trie<u32, Target>,
    /// Where IPv6 packets go.
    pub v6: Trie<u128, Target>,
    /// The ports, by [`MemberIndex`].
    pub members: Arc<Vec<Option<Member>>>,
    /// Next hops that are not the destination, and the ports they are behind.
    pub vias: Arc<Vec<(MemberIndex, IpAddr)>>,
    /// The addresses that the domain itself answers at. Each is in the table, too, as a host's route to [`MemberIndex::SELF`].
    pub gateways: Arc<Vec<IpAddr>>,
    /// Hardware addresses of IPv4 neighbours.
    pub near4: Trie<u32, (u32, Neighbour)>,
    /// The same of IPv6.
    pub near6: Trie<u128, (u128, Neighbour)>,
    /// What was counted.
    pub counters: Arc<DomainCounters>,
    /// What was counted for each route, by [`Target::route`].
    pub routes: Arc<RouteTable>,
}

impl Domain {
    /// The port at this place.
    #[inline]
    pub fn member(&self, at: MemberIndex) -> Option<&Member> {
        self.members.get(usize::from(at.0))?.as_ref()
    }

    /// What the longest prefix of `address` leads to.
    #[inline]
    pub fn lookup(&self, address: IpAddr) -> Option<Target> {
        match address {
            IpAddr::V4(v4) => self.v4.lookup(v4.into()),
            IpAddr::V6(v6) => self.v6.lookup(v6.into()),
        }
        .copied()
    }

    /// Who has `address`, as far as that is known.
    #[inline]
    pub fn neighbour(&self, address: IpAddr) -> Option<Neighbour> {
        match address {
            IpAddr::V4(v4) => self.near4.lookup(v4.into()).map(|(_, neighbour)| *neighbour),
            IpAddr::V6(v6) => self.near6.lookup(v6.into()).map(|(_, neighbour)| *neighbour),
        }
    }

    /// Says who has `address`, or that nobody does.
    pub fn set_neighbour(&mut self, address: IpAddr, neighbour: Option<Neighbour>) {
        match address {
            IpAddr::V4(v4) => put(&mut self.near4, v4.into(), neighbour),
            IpAddr::V6(v6) => put(&mut self.near6, v6.into(), neighbour),
        }
    }

    /// Everybody who is known, with their addresses. Looks through all of them.
    pub fn neighbours(&self) -> impl Iterator<Item = (IpAddr, Neighbour)> + use<> {
        let mut all: Vec<(IpAddr, Neighbour)> = Vec::new();
        self.near4.each(|(v4, neighbour)| all.push((Ipv4Addr::from(*v4).into(), *neighbour)));
        self.near6.each(|(v6, neighbour)| all.push((Ipv6Addr::from(*v6).into(), *neighbour)));
        all.into_iter()
    }

    /// Says what a prefix leads to, or that it leads nowhere.
    pub fn set_route(&mut self, address: IpAddr, len: u8, target: Option<Target>) {
        let len = u32::from(len);
        let _before = match (address, target) {
            (IpAddr::V4(v4), Some(target)) => self.v4.insert(v4.into(), len, target),
            (IpAddr::V4(v4), None) => self.v4.remove(v4.into(), len),
            (IpAddr::V6(v6), Some(target)) => self.v6.insert(v6.into(), len, target),
            (IpAddr::V6(v6), None) => self.v6.remove(v6.into(), len),
        };
    }

    /// Whether the domain itself has `address` at a port with this hardware address.
    pub fn is_own(&self, address: IpAddr, mac: Mac) -> bool {
        self.gateways.contains(&address) || address == IpAddr::V6(mac.link_local())
    }

    /// The first gateway address of IPv4.
    pub fn gateway_v4(&self) -> Option<Ipv4Addr> {
        self.gateways.iter().find_map(|gateway| match gateway {
            IpAddr::V4(v4) => Some(*v4),
            IpAddr::V6(_) => None,
        })
    }

    /// The first gateway address of IPv6.
    pub fn gateway_v6(&self) -> Option<Ipv6Addr> {
        self.gateways.iter().find_map(|gateway| match gateway {
            IpAddr::V6(v6) => Some(*v6),
            IpAddr::V4(_) => None,
        })
    }

    /// Whether `address` belongs to this port: the longest prefix leads there, or it is a next hop there. Nobody else may speak for
    /// it.
    pub fn belongs(&self, address: IpAddr, member: MemberIndex) -> bool {
        !self.gateways.contains(&address)
            && (self.lookup(address).is_some_and(|target| target.member == member)
                || self.vias.contains(&(member, address)))
    }
}

/// Gives a host's address a value, or takes it away.
fn put<K: Key>(hosts: &mut Trie<K, (K, Neighbour)>, host: K, neighbour: Option<Neighbour>) {
    let _before = match neighbour {
        Some(neighbour) => hosts.insert(host, K::BITS, (host, neighbour)),
        None => hosts.remove(host, K::BITS),
    };
}
