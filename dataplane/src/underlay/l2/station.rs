//! What is said to the underlay itself, and what it says: ARP, neighbour discovery, echo, and routers' errors about its datagrams. Bytes
//! in, bytes out. How to speak is the routing domains' (see [`control`](crate::route::control)): an underlay is a domain of one port,
//! whose prefixes are on link, and which routes nothing.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use memif::Lent;

use crate::burst::Burst;
use crate::offload::Link;
use crate::offload::checksum::{Sum, header_checksum};
use crate::port::PortIndex;
use crate::route::control::Arrival;
use crate::route::domain::{Domain, Mac, Member, MemberIndex, Target};
use crate::route::packet::{ETHERNET, Head, Kind, Packet};

const ICMP: u8 = 1;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
/// The least that IPv4 hosts take (RFC 791), and IPv6 links carry (RFC 8200 §5): no error makes a path narrower.
const NARROWEST: [usize; 2] = [576, 1280];
const AT: MemberIndex = MemberIndex(0);

/// What came of a message.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Heard {
    /// To be sent back, if the underlay speaks for its addresses.
    pub reply: Option<Vec<u8>>,
    /// Somebody says who has an address.
    pub claim: Option<(IpAddr, Mac)>,
    /// A router says that the path to this endpoint carries only packets so long.
    pub narrow: Option<(SocketAddr, usize)>,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Station {
    domain: Domain,
    member: Member,
}

impl Station {
    /// With these addresses, whose prefixes are on link, and these routers.
    pub fn new(mac: Mac, mtu: u16, addresses: &[(IpAddr, u8)], gateways: &[IpAddr]) -> Self {
        let mut domain = Domain::default();
        let target = |member| Target { route: 0, member, via: 0 };
        for (address, len) in addresses {
            domain.set_route(network(*address, *len), *len, Some(target(AT)));
        }
        for (address, _) in addresses {
            let host = if address.is_ipv4() { 32 } else { 128 };
            domain.set_route(*address, host, Some(target(MemberIndex::SELF)));
        }
        domain.gateways = Arc::new(addresses.iter().map(|(address, _)| *address).collect());
        domain.vias = Arc::new(gateways.iter().map(|gateway| (AT, *gateway)).collect());
        let member = Member { port: None, link: Link::Ethernet, mac, mtu, strict: false };
        Self { domain, member }
    }

    /// Its hardware address.
    pub const fn mac(&self) -> Mac {
        self.member.mac
    }

    /// The same with another hardware address.
    #[must_use]
    pub fn with_mac(mut self, mac: Mac) -> Self {
        self.member.mac = mac;
        self
    }

    /// Its own addresses.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.domain.gateways
    }

    /// Whether it was given a router that leads to `remote`.
    pub fn has_gateway(&self, remote: IpAddr) -> bool {
        self.domain.vias.iter().any(|(_, via)| via.is_ipv4() == remote.is_ipv4())
    }

    /// Who is to be asked for, to reach `remote`: itself if it is on link, else the first router of its family.
    pub fn next_hop(&self, remote: IpAddr) -> Option<IpAddr> {
        if self.domain.lookup(remote).is_some_and(|target| target.member == AT) {
            return Some(remote);
        }
        self.domain.vias.iter().map(|(_, via)| *via).find(|via| via.is_ipv4() == remote.is_ipv4())
    }

    fn arrival(&self) -> Arrival<'_> {
        Arrival { domain: &self.domain, member: &self.member, at: AT }
    }

    /// Asks who has `address`: everybody, or one station whether it still has it.
    pub fn question(&self, address: IpAddr, to: Option<Mac>) -> Vec<u8> {
        let mut frame = self.arrival().question(address);
        if let Some(to) = to {
            frame[..6].copy_from_slice(&to.0);
        }
        frame
    }

    /// Judges a whole frame.
    pub fn hear(&self, frame: &[u8]) -> Heard {
        let mut burst = Burst::new(PortIndex(0));
        burst.push(Lent::from(frame));
        let mut head = Head::new();
        for (_, frames) in burst.runs() {
            head.read(&frames, &frames.as_slice()[0]);
        }
        let Ok(kind) = head.kind(Link::Ethernet) else { return Heard::default() };
        let outcome = if kind == Kind::Arp {
            self.arrival().arp(&frame[ETHERNET..])
        } else {
            let Ok(packet) = head.packet(kind, Link::Ethernet, frame.len(), None) else {
                return Heard::default();
            };
            let bytes = &frame[ETHERNET..];
            let narrow = self.narrow(&packet, bytes);
            if narrow.is_some() {
                return Heard { narrow, ..Heard::default() };
            }
            self.arrival().ip(&packet, bytes, head.macs().1)
        };
        Heard { reply: outcome.reply.map(|(_, frame)| frame), claim: outcome.learnt, narrow: None }
    }

    /// "Fragmentation needed" (RFC 1191) or "packet too big" (RFC 8201) about a datagram that a tunnel may have sent.
    fn narrow(&self, packet: &Packet, bytes: &[u8]) -> Option<(SocketAddr, usize)> {
        let body = bytes.get(packet.header..packet.len)?;
        let (quoted, mtu) = match (packet.protocol, body.first_chunk::<8>()?) {
            (ICMP, [3, 4, _, _, _, _, mtu @ ..]) if header_checksum(body) == 0 => {
                (&body[8..], usize::from(u16::from_be_bytes(*mtu)))
            }
            (ICMPV6, [2, 0, _, _, mtu @ ..]) if is_whole_v6(packet, body) => {
                (&body[8..], u32::from_be_bytes(*mtu) as usize)
            }
            _ => return None,
        };
        let (from, to) = quoted_ends(quoted)?;
        if !self.domain.gateways.contains(&from) || mtu < 68 {
            return None;
        }
        Some((to, mtu.max(NARROWEST[usize::from(to.is_ipv6())])))
    }
}

fn is_whole_v6(packet: &Packet, body: &[u8]) -> bool {
    let mut sum = Sum::default();
    for address in [packet.source, packet.destination] {
        match address {
            IpAddr::V6(v6) => sum.add(&v6.octets()),
            IpAddr::V4(_) => return false,
        }
    }
    sum.add_word(body.len() as u16);
    sum.add_word(u16::from(ICMPV6));
    sum.add(body);
    sum.folded() == 0xffff
}

/// Who sent the datagram that an error quotes, and where to.
fn quoted_ends(quoted: &[u8]) -> Option<(IpAddr, SocketAddr)> {
    let (from, to, udp, protocol) = match quoted.first()? >> 4 {
        4 => {
            let ip = quoted.first_chunk::<20>()?;
            let address = |at: usize| IpAddr::from([ip[at], ip[at + 1], ip[at + 2], ip[at + 3]]);
            (address(12), address(16), usize::from(ip[0] & 15) * 4, ip[9])
        }
        6 => {
            let ip = quoted.first_chunk::<40>()?;
            let address = |at: usize| IpAddr::from(std::array::from_fn::<u8, 16, _>(|i| ip[at + i]));
            (address(8), address(24), 40, ip[6])
        }
        _ => return None,
    };
    let port = quoted.get(udp + 2..udp + 4)?;
    (protocol == UDP).then(|| (from, SocketAddr::new(to, u16::from_be_bytes([port[0], port[1]]))))
}

/// The address without the bits behind its prefix.
fn network(address: IpAddr, len: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
            IpAddr::V4((u32::from(v4) & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
            IpAddr::V6((u128::from(v6) & mask).into())
        }
    }
}

#[cfg(test)]
#[path = "station_tests.rs"]
mod tests;
