//! What a routing domain says for itself: answers to ARP, neighbour discovery and echo requests at its gateway addresses, and
//! questions of its own. Bytes in, bytes out; who may send how much is [`super::limit`]'s matter.
//!
//! Everything here reads foreign bytes. They are in private memory, and smoltcp's views check their lengths.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, Icmpv6Packet, Icmpv6Repr, NdiscNeighborFlags as Flags,
    NdiscRepr, RawHardwareAddress,
};

use super::counters::Sent;
use super::domain::{Domain, Mac, Member, MemberIndex};
use super::packet::{ETHERNET, Packet};
use crate::DropReason;
use crate::offload::Link;
use crate::offload::checksum::{Sum, header_checksum};

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const ECHO_REQUEST: u8 = 8;
const ECHO_REQUEST_V6: u8 = 128;
/// Hop limit of neighbour discovery: what has it has passed no router (RFC 4861 §3.1).
const NEVER_ROUTED: u8 = 255;
/// Time to live of what the domain sends.
const TTL: u8 = 64;

/// What came of a message for the domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Why it goes no further.
    pub reason: DropReason,
    /// What is sent back by the port that it came by, a whole frame.
    pub reply: Option<(Sent, Vec<u8>)>,
    /// Who said which address is theirs, and may say so.
    pub learnt: Option<(IpAddr, Mac)>,
}

impl Outcome {
    const fn of(reason: DropReason) -> Self {
        Self { reason, reply: None, learnt: None }
    }
}

/// Where a message came from.
#[derive(Clone, Copy)]
pub struct Arrival<'d> {
    /// The domain that it is for.
    pub domain: &'d Domain,
    /// The port that it came by.
    pub member: &'d Member,
    /// That port's place.
    pub at: MemberIndex,
}

impl Arrival<'_> {
    /// `address` is at `mac`, if that can be and the address belongs to the port.
    fn learn(&self, address: IpAddr, mac: Mac) -> Option<(IpAddr, Mac)> {
        (mac.is_station() && self.domain.belongs(address, self.at)).then_some((address, mac))
    }

    /// A message that says who it is from: bad if that belongs to another.
    fn heard(&self, from: Option<(IpAddr, Mac)>) -> Outcome {
        let Some((address, mac)) = from else { return Outcome::of(DropReason::ForDomain) };
        match self.learn(address, mac) {
            None => Outcome::of(DropReason::BadControl),
            learnt => Outcome { learnt, ..Outcome::of(DropReason::ForDomain) },
        }
    }

    /// An Ethernet frame from this port.
    fn frame(&self, to: Mac, kind: [u8; 2], payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::with_capacity(ETHERNET + payload.len());
        frame.extend_from_slice(&to.0);
        frame.extend_from_slice(&self.member.mac.0);
        frame.extend_from_slice(&kind);
        frame.extend_from_slice(payload);
        frame
    }

    /// An IP packet as this port sends it: `to` is asked for if it is Ethernet.
    pub(super) fn packet(&self, to: Mac, packet: &[u8]) -> Vec<u8> {
        let kind =
            if packet.first().is_some_and(|first| first >> 4 == 6) { [0x86, 0xdd] } else { [0x08, 0x00] };
        match self.member.link {
            Link::Ethernet => self.frame(to, kind, packet),
            Link::Ip => packet.to_vec(),
        }
    }

    /// An ARP packet, without its Ethernet header.
    pub fn arp(&self, bytes: &[u8]) -> Outcome {
        let parsed = ArpPacket::new_checked(bytes).and_then(|packet| ArpRepr::parse(&packet));
        let Ok(ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr: EthernetAddress(source),
            source_protocol_addr: sender,
            target_protocol_addr: target,
            ..
        }) = parsed
        else {
            return Outcome::of(DropReason::BadControl);
        };
        let (source, asked) = (Mac(source), operation == ArpOperation::Request);
        // A request from no address asks whether one is taken (RFC 5227).
        let from = (!sender.is_unspecified()).then_some((IpAddr::V4(sender), source));
        let mut outcome = self.heard(from);
        let ours = self.domain.gateways.contains(&IpAddr::V4(target));
        if outcome.reason == DropReason::ForDomain && asked && ours && source.is_station() {
            outcome.reply =
                Some((Sent::Answers, self.arp_frame(ArpOperation::Reply, target, source, sender)));
        }
        outcome
    }

    fn arp_frame(&self, operation: ArpOperation, sender: Ipv4Addr, to: Mac, target: Ipv4Addr) -> Vec<u8> {
        let asks = operation == ArpOperation::Request;
        let repr = ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr: EthernetAddress(self.member.mac.0),
            source_protocol_addr: sender,
            target_hardware_addr: EthernetAddress(if asks { [0; 6] } else { to.0 }),
            target_protocol_addr: target,
        };
        let mut bytes = vec![0; repr.buffer_len()];
        repr.emit(&mut ArpPacket::new_unchecked(&mut bytes));
        self.frame(to, [0x08, 0x06], &bytes)
    }

    /// Asks who has `address`.
    pub fn question(&self, address: IpAddr) -> Vec<u8> {
        match address {
            IpAddr::V4(v4) => {
                let own = self.domain.gateway_v4().unwrap_or(Ipv4Addr::UNSPECIFIED);
                self.arp_frame(ArpOperation::Request, own, Mac::BROADCAST, v4)
            }
            IpAddr::V6(v6) => {
                let own = self.domain.gateway_v6().unwrap_or_else(|| self.member.mac.link_local());
                let group = solicited_node(v6);
                let lladdr = Some(RawHardwareAddress::from(EthernetAddress(self.member.mac.0)));
                let ask = NdiscRepr::NeighborSolicit { target_addr: v6, lladdr };
                self.packet(group_mac(group), &nd(own, group, ask))
            }
        }
    }

    /// An IP packet to the domain itself, or to a group that it may be in. `from` is the station that sent it.
    pub fn ip(&self, packet: &Packet, bytes: &[u8], from: Mac) -> Outcome {
        let body = bytes.get(packet.header..packet.len).unwrap_or_default();
        match (packet.source, packet.destination, packet.protocol) {
            (IpAddr::V4(_), IpAddr::V4(to), ICMP) if self.domain.gateways.contains(&to.into()) => {
                self.echo_v4(packet, bytes, from)
            }
            (IpAddr::V6(source), IpAddr::V6(to), ICMPV6) => self.icmp_v6(source, to, packet.ttl, body, from),
            (_, to, _) if self.domain.is_own(to, self.member.mac) => Outcome::of(DropReason::ForDomain),
            _ => Outcome::of(DropReason::NotRouted),
        }
    }

    fn echo_v4(&self, packet: &Packet, bytes: &[u8], from: Mac) -> Outcome {
        let fragment = bytes.get(6..8).is_some_and(|word| word[0] & 0x3f | word[1] != 0);
        let whole = bytes.get(..packet.len).filter(|whole| whole.len() >= packet.header + 8 && !fragment);
        let Some(whole) = whole else { return Outcome::of(DropReason::BadControl) };
        if header_checksum(&whole[packet.header..]) != 0 {
            return Outcome::of(DropReason::BadControl);
        }
        if whole[packet.header] != ECHO_REQUEST {
            return Outcome::of(DropReason::ForDomain);
        }
        // Options are not repeated: a source route would have to be reversed (RFC 1122 §3.2.2.6).
        let (IpAddr::V4(source), IpAddr::V4(own)) = (packet.source, packet.destination) else {
            return Outcome::of(DropReason::BadControl);
        };
        let mut icmp = whole[packet.header..].to_vec();
        icmp[0] = 0;
        let reply = icmp_v4(own, source, icmp);
        Outcome {
            reply: Some((Sent::Echoes, self.packet(from, &reply))),
            ..Outcome::of(DropReason::ForDomain)
        }
    }

    fn icmp_v6(&self, source: Ipv6Addr, to: Ipv6Addr, ttl: u8, body: &[u8], from: Mac) -> Outcome {
        let bad = || Outcome::of(DropReason::BadControl);
        let Ok(message) = Icmpv6Packet::new_checked(body) else { return bad() };
        let kind = body[0];
        if !(133..=137).contains(&kind) {
            return self.echo_v6(source, to, body, from);
        }
        let parsed = Icmpv6Repr::parse(&source, &to, &message, &ChecksumCapabilities::default());
        let (Ok(Icmpv6Repr::Ndisc(repr)), NEVER_ROUTED) = (parsed, ttl) else { return bad() };
        match repr {
            NdiscRepr::NeighborSolicit { target_addr, lladdr } => {
                self.solicited(source, target_addr, lladdr.and_then(station), from)
            }
            NdiscRepr::NeighborAdvert { target_addr, lladdr, .. } => {
                self.heard(lladdr.and_then(station).map(|mac| (IpAddr::V6(target_addr), mac)))
            }
            // Routers speak to hosts; the domain is told its routes by its owner alone.
            _ => Outcome::of(DropReason::NotRouted),
        }
    }

    fn solicited(&self, source: Ipv6Addr, target: Ipv6Addr, lladdr: Option<Mac>, from: Mac) -> Outcome {
        // Addresses of the link alone are nobody's in the table, and nothing is routed to them.
        let local = source.is_unspecified() || source.is_unicast_link_local();
        let mut outcome = match local {
            true => Outcome::of(DropReason::ForDomain),
            false => self.heard(lladdr.map(|mac| (IpAddr::V6(source), mac))),
        };
        if outcome.reason == DropReason::ForDomain && self.domain.is_own(target.into(), self.member.mac) {
            // Who asks from no address asks whether this one is taken, and all are told (RFC 4861 §7.2.4).
            let unknown = source.is_unspecified();
            let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
            let (to, mac) = if unknown { (all_nodes, group_mac(all_nodes)) } else { (source, from) };
            let flags = if unknown { Flags::ROUTER | Flags::OVERRIDE } else { Flags::all() };
            let lladdr = Some(RawHardwareAddress::from(EthernetAddress(self.member.mac.0)));
            let answer = NdiscRepr::NeighborAdvert { flags, target_addr: target, lladdr };
            outcome.reply = Some((Sent::Answers, self.packet(mac, &nd(target, to, answer))));
        }
        outcome
    }

    fn echo_v6(&self, source: Ipv6Addr, to: Ipv6Addr, body: &[u8], from: Mac) -> Outcome {
        if !self.domain.is_own(to.into(), self.member.mac) {
            return Outcome::of(DropReason::NotRouted);
        }
        if body.len() < 8 || pseudo_v6(source, to, body).folded() != 0xffff {
            return Outcome::of(DropReason::BadControl);
        }
        if body[0] != ECHO_REQUEST_V6 {
            return Outcome::of(DropReason::ForDomain);
        }
        let mut icmp = body.to_vec();
        icmp[0] = 129;
        let reply = icmp_v6(to, source, icmp, TTL);
        Outcome {
            reply: Some((Sent::Echoes, self.packet(from, &reply))),
            ..Outcome::of(DropReason::ForDomain)
        }
    }
}

fn station(raw: RawHardwareAddress) -> Option<Mac> {
    <[u8; 6]>::try_from(raw.as_bytes()).ok().map(Mac)
}

/// The group that is asked for an address (RFC 4291 §2.7.1).
fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let low = u128::from(address) & 0xff_ffff;
    Ipv6Addr::from(0xff02_0000_0000_0000_0000_0001_ff00_0000 | low)
}

/// The hardware address of a group (RFC 2464 §7).
fn group_mac(group: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = group.octets();
    Mac([0x33, 0x33, a, b, c, d])
}

fn nd(source: Ipv6Addr, to: Ipv6Addr, message: NdiscRepr<'_>) -> Vec<u8> {
    let repr = Icmpv6Repr::Ndisc(message);
    let mut icmp = vec![0; repr.buffer_len()];
    let mut packet = Icmpv6Packet::new_unchecked(&mut icmp[..]);
    repr.emit(&source, &to, &mut packet, &ChecksumCapabilities::default());
    icmp_v6(source, to, icmp, NEVER_ROUTED)
}

fn pseudo_v6(source: Ipv6Addr, to: Ipv6Addr, body: &[u8]) -> Sum {
    let mut sum = Sum::default();
    sum.add(&source.octets());
    sum.add(&to.octets());
    sum.add_word(body.len() as u16);
    sum.add_word(ICMPV6.into());
    sum.add(body);
    sum
}

/// An ICMP message behind an IPv4 header. Its checksum is made here.
pub(crate) fn icmp_v4(source: Ipv4Addr, to: Ipv4Addr, mut icmp: Vec<u8>) -> Vec<u8> {
    icmp[2..4].fill(0);
    let sum = header_checksum(&icmp);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, TTL, ICMP, 0, 0];
    packet.extend_from_slice(&source.octets());
    packet.extend_from_slice(&to.octets());
    let len = (packet.len() + icmp.len()) as u16;
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    let sum = header_checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend_from_slice(&icmp);
    packet
}

/// An ICMPv6 message behind an IPv6 header. Its checksum is made here.
pub(crate) fn icmp_v6(source: Ipv6Addr, to: Ipv6Addr, mut icmp: Vec<u8>, hop_limit: u8) -> Vec<u8> {
    icmp[2..4].fill(0);
    let sum = pseudo_v6(source, to, &icmp).checksum();
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut packet = vec![0x60, 0, 0, 0, 0, 0, ICMPV6, hop_limit];
    packet[4..6].copy_from_slice(&(icmp.len() as u16).to_be_bytes());
    packet.extend_from_slice(&source.octets());
    packet.extend_from_slice(&to.octets());
    packet.extend_from_slice(&icmp);
    packet
}
