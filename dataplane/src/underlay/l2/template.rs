//! The headers of a tunnel's datagrams: Ethernet, IPv4 or IPv6, UDP and VXLAN, made once for a tunnel and a next hop. For each frame
//! only lengths, the source port and the IPv4 checksum are put in.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::outer::{ETHERNET, UDP_LEN};
use crate::burst::Offload;
use crate::offload::checksum::Sum;
use crate::tables::{Hop, Tunnel};
use crate::wire::vxlan;

/// Bytes of the headers over IPv4.
pub const LEN_V4: usize = ETHERNET + 20 + UDP_LEN + vxlan::HEADER_LEN;
/// Bytes of the headers over IPv6.
pub const LEN_V6: usize = ETHERNET + 40 + UDP_LEN + vxlan::HEADER_LEN;
/// Where source ports begin: the range that RFC 7348 §5 names for entropy is 49152 to 65535.
const FIRST_SOURCE: u16 = 49_152;
const UDP: u8 = 17;
/// Time to live, or hop limit.
const TTL: u8 = 64;
/// "Don't fragment", RFC 791's flag: a tunnel's datagrams must not be cut (RFC 7348 §4.3), and then the identification means nothing
/// (RFC 6864 §4.1).
const DONT_FRAGMENT: [u8; 2] = [0x40, 0];

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct Template {
    bytes: [u8; LEN_V6],
    v6: bool,
    /// IPv4: of the IP header with a length of 0. IPv6: of the pseudo header with a length of 0.
    sum: Sum,
}

impl Template {
    /// For `tunnel`, whose next hop is `hop`.
    pub fn new(tunnel: &Tunnel, hop: &Hop) -> Self {
        let mut bytes = [0; LEN_V6];
        bytes[..6].copy_from_slice(&hop.to.0);
        bytes[6..12].copy_from_slice(&hop.from.0);
        let (v6, udp, sum) = match (hop.local, tunnel.remote.ip()) {
            (IpAddr::V6(from), IpAddr::V6(to)) => (true, ETHERNET + 40, ipv6(&mut bytes, from, to)),
            (from, to) => (false, ETHERNET + 20, ipv4(&mut bytes, v4(from), v4(to))),
        };
        bytes[udp + 2..udp + 4].copy_from_slice(&tunnel.remote.port().to_be_bytes());
        bytes[udp + 8..udp + 16].copy_from_slice(&vxlan::header(tunnel.vni));
        Self { bytes, v6, sum }
    }

    /// Bytes of the headers.
    #[inline]
    pub const fn len(&self) -> usize {
        if self.v6 { LEN_V6 } else { LEN_V4 }
    }

    /// Never: there are always headers.
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// Writes the headers of an inner frame of `inner` bytes, whose flow is `flow`, to the start of `to`. Returns what the datagram
    /// owes then: over IPv6 its UDP checksum, which covers the frame; over IPv4 it has none (RFC 7348 §5).
    ///
    /// # Panics
    /// If `to` is shorter than [`Template::len`].
    #[inline]
    pub fn write(&self, to: &mut [u8], inner: usize, flow: u32) -> Option<Offload> {
        // Both halves of the hash, so that few flows still spread well over 14 bits.
        let source = FIRST_SOURCE | (flow ^ flow >> 16) as u16 & 0x3fff;
        let udp_len = (UDP_LEN + vxlan::HEADER_LEN + inner) as u16;
        if self.v6 { self.write_v6(to, udp_len, source, flow) } else { self.write_v4(to, udp_len, source) }
    }

    #[inline]
    fn write_v4(&self, to: &mut [u8], udp_len: u16, source: u16) -> Option<Offload> {
        let to = &mut to[..LEN_V4];
        to.copy_from_slice(&self.bytes[..LEN_V4]);
        let total = 20 + udp_len;
        let mut sum = self.sum;
        sum.add_word(total);
        put(to, ETHERNET + 2, total);
        put(to, ETHERNET + 10, !sum.folded());
        put(to, ETHERNET + 20, source);
        put(to, ETHERNET + 24, udp_len);
        None
    }

    #[inline]
    fn write_v6(&self, to: &mut [u8], udp_len: u16, source: u16, flow: u32) -> Option<Offload> {
        let to = &mut to[..LEN_V6];
        to.copy_from_slice(&self.bytes);
        let mut sum = self.sum;
        sum.add_word(udp_len);
        // The flow label spreads flows where routers don't look at ports (RFC 6438).
        let label = 0x6000_0000 | flow & 0x000f_ffff;
        to[ETHERNET..ETHERNET + 4].copy_from_slice(&label.to_be_bytes());
        put(to, ETHERNET + 4, udp_len);
        put(to, ETHERNET + 40, source);
        put(to, ETHERNET + 44, udp_len);
        put(to, ETHERNET + 46, sum.folded());
        Some(Offload {
            needs_csum: true,
            csum_start: (ETHERNET + 40) as u16,
            csum_offset: 6,
            ..Offload::default()
        })
    }
}

fn ipv4(bytes: &mut [u8; LEN_V6], from: Ipv4Addr, to: Ipv4Addr) -> Sum {
    bytes[12..14].copy_from_slice(&[0x08, 0x00]);
    let ip = &mut bytes[ETHERNET..ETHERNET + 20];
    ip[0] = 0x45;
    ip[6..8].copy_from_slice(&DONT_FRAGMENT);
    (ip[8], ip[9]) = (TTL, UDP);
    ip[12..16].copy_from_slice(&from.octets());
    ip[16..20].copy_from_slice(&to.octets());
    let mut sum = Sum::default();
    sum.add(ip);
    sum
}

fn ipv6(bytes: &mut [u8; LEN_V6], from: Ipv6Addr, to: Ipv6Addr) -> Sum {
    bytes[12..14].copy_from_slice(&[0x86, 0xdd]);
    let ip = &mut bytes[ETHERNET..ETHERNET + 40];
    (ip[0], ip[6], ip[7]) = (0x60, UDP, TTL);
    ip[8..24].copy_from_slice(&from.octets());
    ip[24..40].copy_from_slice(&to.octets());
    let mut sum = Sum::default();
    sum.add(&ip[8..40]);
    sum.add_word(u16::from(UDP));
    sum
}

/// A tunnel's ends are of one family: the model sees to it.
fn v4(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(v4) => v4,
        IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    }
}

#[inline]
fn put(to: &mut [u8], at: usize, word: u16) {
    to[at..at + 2].copy_from_slice(&word.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offload::{Link, complete_checksum};
    use crate::port::PortIndex;
    use crate::route::domain::Mac;
    use crate::tables::Vni;
    use etherparse::{NetHeaders, PacketHeaders, TransportHeader};
    use proptest::prelude::*;

    fn template(local: &str, remote: &str) -> Template {
        let tunnel = Tunnel {
            port: PortIndex(1),
            underlay: PortIndex(0),
            remote: remote.parse().unwrap(),
            vni: Vni::new(0x12_3456).unwrap(),
            max_frame: 1464,
            link: Link::Ethernet,
        };
        let local = local.parse().unwrap();
        let hop = Hop { from: Mac([2; 6]), to: Mac([4; 6]), local, max_frame: 1464 };
        Template::new(&tunnel, &hop)
    }

    fn datagram(template: &Template, inner: &[u8], flow: u32) -> Vec<u8> {
        let mut frame = vec![0xee; template.len()];
        let owed = template.write(&mut frame, inner.len(), flow);
        frame.extend_from_slice(inner);
        if let Some(owed) = owed {
            complete_checksum(&mut frame, &owed).unwrap();
        }
        frame
    }

    proptest! {
        /// Another implementation of all these headers reads them, and finds every length and checksum right.
        #[test]
        fn headers_are_what_the_rfcs_want(
            inner in prop::collection::vec(any::<u8>(), 14..2000), flow: u32, v6: bool,
        ) {
            let template = match v6 {
                false => template("192.0.2.1", "192.0.2.2:4789"),
                true => template("2001:db8::1", "[2001:db8::2]:4789"),
            };
            let frame = datagram(&template, &inner, flow);
            let headers = PacketHeaders::from_ethernet_slice(&frame).unwrap();
            let udp = match (headers.transport, headers.net) {
                (Some(TransportHeader::Udp(udp)), Some(NetHeaders::Ipv4(ip, _))) => {
                    prop_assert_eq!(ip.header_checksum, ip.calc_header_checksum());
                    prop_assert!(ip.dont_fragment && !v6);
                    prop_assert_eq!(udp.checksum, 0);
                    udp
                }
                (Some(TransportHeader::Udp(udp)), Some(NetHeaders::Ipv6(ip, _))) => {
                    prop_assert!(v6);
                    let payload = &frame[LEN_V6 - 8..];
                    prop_assert_eq!(udp.checksum, udp.calc_checksum_ipv6(&ip, payload).unwrap());
                    prop_assert_eq!(ip.flow_label.value(), flow & 0xf_ffff);
                    udp
                }
                other => panic!("{other:?}"),
            };
            prop_assert!(udp.source_port >= 49_152 && udp.destination_port == 4789);
            prop_assert_eq!(usize::from(udp.length), 16 + inner.len());
            prop_assert_eq!(&frame[template.len() - 8..template.len()], &[8, 0, 0, 0, 0x12, 0x34, 0x56, 0]);
        }
    }

    #[test]
    fn flows_have_source_ports_of_their_own_and_keep_them() {
        let template = template("192.0.2.1", "192.0.2.2:4789");
        let source = |flow: u32| {
            let frame = datagram(&template, &[0; 60], flow);
            u16::from_be_bytes([frame[34], frame[35]])
        };
        let ports: std::collections::BTreeSet<u16> =
            (0..1000u32).map(|i| source(i.wrapping_mul(0x9e37_79b9))).collect();
        assert!(ports.len() > 900, "{}", ports.len());
        assert_eq!(source(77), source(77));
    }
}
