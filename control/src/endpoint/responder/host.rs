//! A host on a wire, as far as pings need one: answers ARP, neighbour solicitations and echo requests, and recognizes the replies to
//! its own. Frames are changed in place; nothing here waits or touches a socket.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use memif::Mode;
use smoltcp::wire::{Icmpv6Packet, Ipv4Packet};

/// An Ethernet address.
pub type Mac = [u8; 6];

const ETHERNET: usize = 14;
const TYPE_IPV4: [u8; 2] = [0x08, 0x00];
const TYPE_ARP: [u8; 2] = [0x08, 0x06];
const TYPE_IPV6: [u8; 2] = [0x86, 0xdd];
const BROADCAST: Mac = [0xff; 6];
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const FRAGMENT: u8 = 44;
/// Neighbours that are remembered; the oldest goes first.
const MAX_NEIGHBOURS: usize = 32;
/// Echo requests in fragments whose further fragments are expected.
const MAX_FRAGMENTED: usize = 16;

/// What a frame was.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// The frame is now the answer: send it back.
    Answer,
    /// An answer to an echo request of ours.
    EchoReply {
        /// Who answered.
        from: IpAddr,
        /// The request's number.
        sequence: u16,
    },
    /// The Ethernet address of this neighbour is known now.
    Neighbour(IpAddr),
    /// Nothing for us.
    Nothing,
}

/// One end of a vWire.
#[derive(Debug)]
pub struct Host {
    mode: Mode,
    mac: Mac,
    addresses: Vec<IpAddr>,
    ident: u16,
    neighbours: VecDeque<(IpAddr, Mac)>,
    fragmented: VecDeque<(IpAddr, IpAddr, u32)>,
}

impl Host {
    /// A host with these addresses. `mac` is of no use in IP mode.
    pub fn new(mode: Mode, mac: Mac, addresses: Vec<IpAddr>) -> Self {
        Self {
            mode,
            mac,
            addresses,
            ident: rand::random(),
            neighbours: VecDeque::new(),
            fragmented: VecDeque::new(),
        }
    }

    /// What its frames are.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Its addresses from now on.
    pub fn readdress(&mut self, addresses: Vec<IpAddr>) {
        self.addresses = addresses;
    }

    /// Takes a frame, and changes it into its answer if it has one.
    pub fn hear(&mut self, frame: &mut [u8]) -> Heard {
        match self.mode {
            Mode::Ip => self.hear_ip(frame, None),
            Mode::Ethernet => self.hear_ethernet(frame),
        }
    }

    fn hear_ethernet(&mut self, frame: &mut [u8]) -> Heard {
        let Some((header, payload)) = frame.split_at_mut_checked(ETHERNET) else { return Heard::Nothing };
        let to: Mac = array(header, 0);
        let from: Mac = array(header, 6);
        let is_group = to[0] & 1 == 1;
        if (to != self.mac && !is_group) || from[0] & 1 == 1 {
            return Heard::Nothing;
        }
        let heard = match array(header, 12) {
            TYPE_ARP => self.hear_arp(payload),
            TYPE_IPV4 | TYPE_IPV6 => self.hear_ip(payload, Some(from)),
            _ => Heard::Nothing,
        };
        if heard == Heard::Answer {
            header[..6].copy_from_slice(&from);
            header[6..12].copy_from_slice(&self.mac);
        }
        heard
    }

    fn hear_arp(&mut self, arp: &mut [u8]) -> Heard {
        // Ethernet, IPv4, lengths 6 and 4.
        if arp.len() < 28 || arp[..6] != [0, 1, 8, 0, 6, 4] {
            return Heard::Nothing;
        }
        let (from_mac, from_ip): (Mac, [u8; 4]) = (array(arp, 8), array(arp, 14));
        let (asked, operation): ([u8; 4], [u8; 2]) = (array(arp, 24), array(arp, 6));
        let from = IpAddr::from(from_ip);
        if !self.addresses.contains(&asked.into()) {
            return Heard::Nothing;
        }
        self.learn(from, from_mac);
        match operation {
            [0, 1] => {
                arp[6..8].copy_from_slice(&[0, 2]);
                arp[8..14].copy_from_slice(&self.mac);
                arp[14..18].copy_from_slice(&asked);
                arp[18..24].copy_from_slice(&from_mac);
                arp[24..28].copy_from_slice(&from_ip);
                Heard::Answer
            }
            [0, 2] => Heard::Neighbour(from),
            _ => Heard::Nothing,
        }
    }

    fn hear_ip(&mut self, packet: &mut [u8], from: Option<Mac>) -> Heard {
        match packet.first().map(|first| first >> 4) {
            Some(4) => self.hear_ipv4(packet),
            Some(6) => self.hear_ipv6(packet, from),
            _ => Heard::Nothing,
        }
    }

    fn hear_ipv4(&mut self, packet: &mut [u8]) -> Heard {
        let Ok(checked) = Ipv4Packet::new_checked(&*packet) else { return Heard::Nothing };
        let (from, to): (Ipv4Addr, Ipv4Addr) = (checked.src_addr(), checked.dst_addr());
        let header = usize::from(checked.header_len());
        let end = usize::from(checked.total_len());
        let (offset, more, id) = (checked.frag_offset(), checked.more_frags(), u32::from(checked.ident()));
        let wrong = !checked.verify_checksum() || packet[9] != ICMP;
        if wrong
            || !self.addresses.contains(&to.into())
            || from.is_multicast()
            || from.is_broadcast()
            || from.is_unspecified()
        {
            return Heard::Nothing;
        }
        let message = &mut packet[header..end];
        if offset == 0 {
            match message {
                [8, 0, ..] if message.len() >= 8 => {
                    message[0] = 0;
                    adjust(&mut message[2..4], 0x0800, 0x0000);
                    if more {
                        self.remember_fragmented((from.into(), to.into(), id));
                    }
                }
                _ => return self.reply_of(from.into(), 0, message),
            }
        } else if !self.fragmented.contains(&(from.into(), to.into(), id)) {
            return Heard::Nothing;
        }
        packet[8] = 64;
        packet[12..16].copy_from_slice(&to.octets());
        packet[16..20].copy_from_slice(&from.octets());
        Ipv4Packet::new_unchecked(packet).fill_checksum();
        Heard::Answer
    }

    fn hear_ipv6(&mut self, packet: &mut [u8], from_mac: Option<Mac>) -> Heard {
        if packet.len() < 40 {
            return Heard::Nothing;
        }
        let end = 40 + usize::from(u16::from_be_bytes(array(packet, 4)));
        let (from, to) = (Ipv6Addr::from(array::<16>(packet, 8)), Ipv6Addr::from(array::<16>(packet, 24)));
        if end > packet.len() || from.is_multicast() {
            return Heard::Nothing;
        }
        let (next, hops) = (packet[6], packet[7]);
        let ours = self.addresses.contains(&to.into());
        if next == ICMPV6 && hops == 255 && matches!(packet.get(40), Some(135 | 136)) {
            return self.hear_neighbour(&mut packet[..end], from, from_mac);
        }
        if !ours || from.is_unspecified() {
            return Heard::Nothing;
        }
        let answered = match next {
            ICMPV6 => match &mut packet[40..end] {
                [128, 0, rest @ ..] if rest.len() >= 6 => {
                    adjust(&mut rest[..2], 0x8000, 0x8100);
                    packet[40] = 129;
                    true
                }
                message => return self.reply_of(from.into(), 129, message),
            },
            FRAGMENT => self.hear_fragment(&mut packet[40..end], from, to),
            _ => false,
        };
        if !answered {
            return Heard::Nothing;
        }
        packet[7] = 64;
        packet[8..24].copy_from_slice(&to.octets());
        packet[24..40].copy_from_slice(&from.octets());
        Heard::Answer
    }

    /// True if it is a fragment of an echo request; its first is then one of a reply.
    fn hear_fragment(&mut self, fragment: &mut [u8], from: Ipv6Addr, to: Ipv6Addr) -> bool {
        if fragment.len() < 8 + 8 || fragment[0] != ICMPV6 {
            return false;
        }
        let offset = u16::from_be_bytes(array(fragment, 2)) >> 3;
        let key = (from.into(), to.into(), u32::from_be_bytes(array(fragment, 4)));
        if offset > 0 {
            return self.fragmented.contains(&key);
        }
        let message = &mut fragment[8..];
        if message[..2] != [128, 0] {
            return false;
        }
        message[0] = 129;
        adjust(&mut message[2..4], 0x8000, 0x8100);
        self.remember_fragmented(key);
        true
    }

    /// Neighbour solicitation and advertisement.
    fn hear_neighbour(&mut self, packet: &mut [u8], from: Ipv6Addr, from_mac: Option<Mac>) -> Heard {
        let Some(from_mac) = from_mac.filter(|_| packet.len() >= 40 + 24) else { return Heard::Nothing };
        let to = Ipv6Addr::from(array::<16>(packet, 24));
        let message = Icmpv6Packet::new_unchecked(&packet[40..]);
        if !message.verify_checksum(&from, &to) {
            return Heard::Nothing;
        }
        let target = Ipv6Addr::from(array::<16>(packet, 48));
        if packet[40] == 136 {
            // Only of the end that we asked: the option, if it is there, says what the frame's source says.
            self.learn(target.into(), from_mac);
            return Heard::Neighbour(target.into());
        }
        // An answer needs room for one option, and a solicitation with its source's address has it.
        if !self.addresses.contains(&target.into()) || packet.len() < 40 + 32 {
            return Heard::Nothing;
        }
        if from.is_unspecified() {
            return Heard::Nothing;
        }
        self.learn(from.into(), from_mac);
        write_advertisement(packet, target, from, self.mac);
        Heard::Answer
    }

    fn reply_of(&self, from: IpAddr, kind: u8, message: &[u8]) -> Heard {
        if message.len() < 8
            || message[..2] != [kind, 0]
            || u16::from_be_bytes(array(message, 4)) != self.ident
        {
            return Heard::Nothing;
        }
        Heard::EchoReply { from, sequence: u16::from_be_bytes(array(message, 6)) }
    }

    /// Asks for this neighbour's Ethernet address again before it sends to it: another may have the address now.
    pub fn forget(&mut self, ip: IpAddr) {
        self.neighbours.retain(|(known, _)| *known != ip);
    }

    /// Asks for all neighbours again: there is another peer.
    pub fn forget_all(&mut self) {
        self.neighbours.clear();
        self.fragmented.clear();
    }

    fn learn(&mut self, ip: IpAddr, mac: Mac) {
        self.neighbours.retain(|(known, _)| *known != ip);
        if self.neighbours.len() == MAX_NEIGHBOURS {
            self.neighbours.pop_front();
        }
        self.neighbours.push_back((ip, mac));
    }

    fn remember_fragmented(&mut self, key: (IpAddr, IpAddr, u32)) {
        if self.fragmented.len() == MAX_FRAGMENTED {
            self.fragmented.pop_front();
        }
        self.fragmented.push_back(key);
    }

    /// An echo request to `to` with `size` bytes of data; or, if the neighbour is not known yet, the question for it: the request can
    /// be made after [`Heard::Neighbour`]. None if no address of ours is of that family.
    pub fn echo_request(&self, to: IpAddr, sequence: u16, size: usize) -> Option<Vec<u8>> {
        let from = *self.addresses.iter().find(|address| address.is_ipv4() == to.is_ipv4())?;
        if self.mode == Mode::Ip {
            return Some(self.echo(from, to, sequence, size));
        }
        let Some((_, mac)) = self.neighbours.iter().find(|(known, _)| *known == to) else {
            return Some(self.question(from, to));
        };
        Some(self.frame(*mac, to, &self.echo(from, to, sequence, size)))
    }

    /// True if frames can be sent to this address.
    pub fn knows(&self, to: IpAddr) -> bool {
        self.mode == Mode::Ip || self.neighbours.iter().any(|(known, _)| *known == to)
    }

    fn frame(&self, to: Mac, family: IpAddr, payload: &[u8]) -> Vec<u8> {
        let kind = if family.is_ipv4() { TYPE_IPV4 } else { TYPE_IPV6 };
        [&to[..], &self.mac, &kind, payload].concat()
    }

    fn echo(&self, from: IpAddr, to: IpAddr, sequence: u16, size: usize) -> Vec<u8> {
        let kind = if to.is_ipv4() { 8 } else { 128 };
        let mut message = vec![kind, 0, 0, 0];
        message.extend(self.ident.to_be_bytes());
        message.extend(sequence.to_be_bytes());
        message.resize(8 + size, 0xa5);
        match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => ipv4(from, to, &mut message),
            (IpAddr::V6(from), IpAddr::V6(to)) => ipv6(from, to, 64, &mut message),
            // The caller has chosen an address of the same family.
            _ => Vec::new(),
        }
    }

    /// Who has this address?
    fn question(&self, from: IpAddr, to: IpAddr) -> Vec<u8> {
        match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let head =
                    [&BROADCAST[..], &self.mac, &TYPE_ARP, &[0, 1, 8, 0, 6, 4, 0, 1], &self.mac].concat();
                [&head[..], &from.octets(), &[0; 6], &to.octets()].concat()
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let end: [u8; 3] = array(&to.octets(), 13);
                let group = Ipv6Addr::new(
                    0xff02,
                    0,
                    0,
                    0,
                    0,
                    1,
                    0xff00 | u16::from(end[0]),
                    u16::from_be_bytes([end[1], end[2]]),
                );
                let mut message =
                    [&[135, 0, 0, 0, 0, 0, 0, 0][..], &to.octets(), &[1, 1], &self.mac].concat();
                let packet = ipv6(from, group, 255, &mut message);
                self.frame([0x33, 0x33, 0xff, end[0], end[1], end[2]], to.into(), &packet)
            }
            _ => Vec::new(),
        }
    }
}

/// Makes a solicitation into the advertisement that answers it.
fn write_advertisement(packet: &mut [u8], target: Ipv6Addr, to: Ipv6Addr, mac: Mac) {
    packet[4..6].copy_from_slice(&32_u16.to_be_bytes());
    packet[8..24].copy_from_slice(&target.octets());
    packet[24..40].copy_from_slice(&to.octets());
    packet[40..48].copy_from_slice(&[136, 0, 0, 0, 0x60, 0, 0, 0]);
    packet[64..66].copy_from_slice(&[2, 1]);
    packet[66..72].copy_from_slice(&mac);
    Icmpv6Packet::new_unchecked(&mut packet[40..72]).fill_checksum(&target, &to);
}

fn ipv4(from: Ipv4Addr, to: Ipv4Addr, message: &mut [u8]) -> Vec<u8> {
    smoltcp::wire::Icmpv4Packet::new_unchecked(&mut *message).fill_checksum();
    let total = u16::try_from(20 + message.len()).unwrap_or(u16::MAX).to_be_bytes();
    let head = [0x45, 0, total[0], total[1], 0, 0, 0, 0, 64, ICMP, 0, 0];
    let mut packet = [&head[..], &from.octets(), &to.octets(), message].concat();
    Ipv4Packet::new_unchecked(&mut packet[..]).fill_checksum();
    packet
}

fn ipv6(from: Ipv6Addr, to: Ipv6Addr, hops: u8, message: &mut [u8]) -> Vec<u8> {
    Icmpv6Packet::new_unchecked(&mut *message).fill_checksum(&from, &to);
    let length = u16::try_from(message.len()).unwrap_or(u16::MAX).to_be_bytes();
    let head = [0x60, 0, 0, 0, length[0], length[1], ICMPV6, hops];
    [&head[..], &from.octets(), &to.octets(), message].concat()
}

/// Brings an internet checksum up to date after one word has changed (RFC 1624, equation 3).
fn adjust(checksum: &mut [u8], old: u16, new: u16) {
    let sum = u32::from(!u16::from_be_bytes([checksum[0], checksum[1]])) + u32::from(!old) + u32::from(new);
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    checksum.copy_from_slice(&(!(folded as u16)).to_be_bytes());
}

/// `N` bytes from `at` on; the caller has checked that they are there.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use smoltcp::phy::ChecksumCapabilities;
    use smoltcp::wire::{Icmpv4Packet, Icmpv4Repr, Icmpv6Repr};

    const A: Mac = [2, 0, 0, 0, 0, 1];
    const B: Mac = [2, 0, 0, 0, 0, 2];

    fn pair(mode: Mode, one: &str, other: &str) -> (Host, Host) {
        let host = |mac, ip: &str| Host::new(mode, mac, vec![ip.parse().unwrap()]);
        (host(A, one), host(B, other))
    }

    /// Pings between two hosts, resolving first if need be; returns the frames of echo request and reply.
    fn ping(a: &mut Host, b: &mut Host, to: &str, size: usize) -> (Vec<u8>, Vec<u8>) {
        let to: IpAddr = to.parse().unwrap();
        if !a.knows(to) {
            let mut question = a.echo_request(to, 1, size).unwrap();
            assert_eq!(b.hear(&mut question), Heard::Answer);
            assert_eq!(a.hear(&mut question), Heard::Neighbour(to));
        }
        let request = a.echo_request(to, 7, size).unwrap();
        let mut reply = request.clone();
        assert_eq!(b.hear(&mut reply), Heard::Answer);
        assert_eq!(a.hear(&mut reply.clone()), Heard::EchoReply { from: to, sequence: 7 });
        (request, reply)
    }

    #[test]
    fn two_hosts_ping_each_other_in_both_modes_and_families() {
        for mode in [Mode::Ethernet, Mode::Ip] {
            for (one, other) in [("10.0.0.1", "10.0.0.0"), ("fd00::1", "fd00::")] {
                let (mut a, mut b) = pair(mode, one, other);
                ping(&mut a, &mut b, other, 56);
                assert!(mode == Mode::Ip || b.knows(one.parse().unwrap()), "the one asked has learned, too");
                ping(&mut b, &mut a, one, 1400);
            }
        }
    }

    #[test]
    fn replies_are_what_another_stack_expects() {
        let (mut a, mut b) = pair(Mode::Ip, "10.0.0.1", "10.0.0.9");
        let (_, reply) = ping(&mut a, &mut b, "10.0.0.9", 57);
        let packet = Ipv4Packet::new_checked(&reply[..]).unwrap();
        assert!(packet.verify_checksum());
        let echo = Icmpv4Repr::parse(
            &Icmpv4Packet::new_checked(packet.payload()).unwrap(),
            &ChecksumCapabilities::default(),
        );
        assert!(
            matches!(echo, Ok(Icmpv4Repr::EchoReply { seq_no: 7, data, .. }) if data == [0xa5; 57]),
            "{echo:?}"
        );
        let (mut a, mut b) = pair(Mode::Ip, "fd00::1", "fd00::9");
        let (_, reply) = ping(&mut a, &mut b, "fd00::9", 57);
        let (from, to): (Ipv6Addr, Ipv6Addr) = ("fd00::9".parse().unwrap(), "fd00::1".parse().unwrap());
        let packet = Icmpv6Packet::new_checked(&reply[40..]).unwrap();
        let echo = Icmpv6Repr::parse(&from, &to, &packet, &ChecksumCapabilities::default());
        assert!(matches!(echo, Ok(Icmpv6Repr::EchoReply { seq_no: 7, .. })), "{echo:?}");
    }

    #[test]
    fn fragments_of_an_echo_request_are_answered_and_others_are_not() {
        let (mut a, mut b) = pair(Mode::Ip, "10.0.0.1", "10.0.0.9");
        let whole = a.echo_request("10.0.0.9".parse().unwrap(), 3, 2000).unwrap();
        let fragment = |range: std::ops::Range<usize>, more: bool| {
            let mut packet = whole[..20].to_vec();
            packet.extend(&whole[20 + range.start..20 + range.end]);
            let length = packet.len() as u16;
            packet[2..4].copy_from_slice(&length.to_be_bytes());
            packet[4..6].copy_from_slice(&[0x12, 0x34]);
            let field = (range.start / 8) as u16 | if more { 0x2000 } else { 0 };
            packet[6..8].copy_from_slice(&field.to_be_bytes());
            Ipv4Packet::new_unchecked(&mut packet[..]).fill_checksum();
            packet
        };
        let (mut first, mut second) = (fragment(0..1480, true), fragment(1480..2008, false));
        assert_eq!(b.hear(&mut second.clone()), Heard::Nothing, "of nothing that was seen");
        assert_eq!((b.hear(&mut first), b.hear(&mut second)), (Heard::Answer, Heard::Answer));
        let message = [&first[20..], &second[20..]].concat();
        assert!(Icmpv4Packet::new_checked(&message[..]).unwrap().verify_checksum());
        assert_eq!(a.hear(&mut first), Heard::EchoReply { from: "10.0.0.9".parse().unwrap(), sequence: 3 });
    }

    #[test]
    fn what_is_for_others_is_left_alone() {
        let (mut a, mut b) = pair(Mode::Ethernet, "10.0.0.1", "10.0.0.9");
        let (request, reply) = ping(&mut a, &mut b, "10.0.0.9", 8);
        let changed = |b: &mut Host, at: usize, to: u8| {
            let mut frame = request.clone();
            frame[at] ^= to;
            b.hear(&mut frame)
        };
        assert_eq!(changed(&mut b, 5, 0xff), Heard::Nothing, "another's Ethernet address");
        assert_eq!(
            changed(&mut b, 14 + 19, 0xff),
            Heard::Nothing,
            "another's IP address, and a wrong checksum"
        );
        assert_eq!(changed(&mut b, 14 + 9, 0xff), Heard::Nothing, "another protocol");
        assert_eq!(b.hear(&mut reply.clone()), Heard::Nothing, "a reply to someone else");
        a.forget("10.0.0.9".parse().unwrap());
        assert!(!a.knows("10.0.0.9".parse().unwrap()));
        b.readdress(vec!["10.0.0.8".parse().unwrap()]);
        assert_eq!(b.hear(&mut request.clone()), Heard::Nothing, "an address that was ours");
        assert!(a.echo_request("fd00::1".parse().unwrap(), 1, 1).is_none());
        let mut stranger = Host::new(Mode::Ethernet, B, vec!["10.0.0.9".parse().unwrap()]);
        let mut echoed = reply;
        assert_eq!(stranger.hear(&mut echoed), Heard::Nothing);
    }

    proptest! {
        /// No bytes make a host panic, and whatever it answers goes back to where it came from.
        #[test]
        fn any_bytes_are_survived(
            mut bytes in prop::collection::vec(any::<u8>(), 0..120),
            flips in prop::collection::vec((0_usize..110, any::<u8>()), 0..3),
            seed in 0_u8..8,
        ) {
            let ip = seed & 1 == 1;
            let mode = if ip { Mode::Ip } else { Mode::Ethernet };
            let (one, other) = if seed & 2 == 2 { ("10.0.0.1", "10.0.0.9") } else { ("fd00::1", "fd00::9") };
            let (mut a, mut b) = pair(mode, one, other);
            let _ = b.hear(&mut bytes.clone());
            if seed & 4 == 4 && !ip {
                bytes = a.echo_request(other.parse().unwrap(), 1, 16).unwrap();
            } else {
                a.learn(other.parse().unwrap(), B);
                bytes = a.echo_request(other.parse().unwrap(), 1, 16).unwrap();
            }
            for (at, bits) in flips {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= bits;
                }
            }
            let sender: Option<[u8; 6]> = (!ip).then(|| array(&bytes, 6));
            for cut in [bytes.len(), bytes.len() / 2] {
                let mut frame = bytes[..cut].to_vec();
                if b.hear(&mut frame) == Heard::Answer && let Some(sender) = sender {
                    prop_assert_eq!(&frame[..6], &sender);
                    prop_assert_eq!(&frame[6..12], &B);
                }
            }
        }
    }
}
