//! Cutting an IPv4 packet that is too long for the port that it leaves by (RFC 791 §3.2, RFC 1812 §4.2.2.7). IPv6 is never cut by a
//! router.

use super::packet::ETHERNET;
use crate::offload::checksum::header_checksum;

/// Longest IPv4 header.
const LONGEST: usize = 60;
/// "Don't fragment".
const DF: u8 = 0x40;
/// "More fragments follow".
const MF: u16 = 0x2000;
/// In an option's type: it belongs to every fragment.
const COPIED: u8 = 0x80;

/// The headers of one piece.
#[derive(Clone, Copy)]
pub struct PieceHead {
    bytes: [u8; ETHERNET + LONGEST],
    len: u8,
}

impl PieceHead {
    /// Room for one.
    pub const fn new() -> Self {
        Self { bytes: [0; ETHERNET + LONGEST], len: 0 }
    }

    /// The headers.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len.into()]
    }
}

impl Default for PieceHead {
    fn default() -> Self {
        Self::new()
    }
}

/// Whether a router may cut the packet of `len` bytes that begins so: IPv4, not told not to, and no fragment that would end behind the
/// longest packet's end.
pub fn may_be_cut(ip: &[u8], len: usize) -> bool {
    let Some(&[high, low]) = ip.get(6..8) else { return false };
    let offset = usize::from(u16::from_be_bytes([high, low]) & 0x1fff) * 8;
    ip[0] >> 4 == 4 && high & DF == 0 && offset + len <= usize::from(u16::MAX)
}

/// Cuts one packet, piece by piece.
pub struct Cut {
    /// What the first piece begins with, and what the others do: without the options that are not theirs.
    first: PieceHead,
    later: PieceHead,
    l2: usize,
    /// Where the packet's own payload lies in what it is a fragment of, in bytes, and whether more follows.
    offset: usize,
    more: bool,
    /// Bytes of payload in all, and those that are in pieces already.
    payload: usize,
    done: usize,
    mtu: usize,
}

impl Cut {
    /// Begins with a packet of `len` bytes behind `l2` bytes of Ethernet header; `head` is how its frame begins and has at least all of
    /// both headers. Each piece has at most `mtu` bytes. `None` if it can't be cut.
    pub fn new(head: &[u8], l2: usize, len: usize, mtu: usize) -> Option<Self> {
        let ip = head.get(l2..)?;
        let header = usize::from(ip.first()? & 15) * 4;
        let all = head.get(..l2 + header)?;
        if !may_be_cut(ip, len) || l2 > ETHERNET || len < header || mtu < header + 8 {
            return None;
        }
        let word = u16::from_be_bytes([ip[6], ip[7]]);
        let mut first = PieceHead::new();
        first.bytes[..all.len()].copy_from_slice(all);
        first.len = all.len() as u8;
        let mut cut = Self {
            later: first,
            first,
            l2,
            offset: usize::from(word & 0x1fff) * 8,
            more: word & MF != 0,
            payload: len - header,
            done: 0,
            mtu,
        };
        cut.later.len = (l2 + keep_copied(&mut cut.later.bytes[l2..l2 + header])) as u8;
        Some(cut)
    }

    /// Puts the next piece's headers into `to`. Returns which bytes of the payload are behind them; `None` after the last.
    pub fn next(&mut self, to: &mut PieceHead) -> Option<std::ops::Range<usize>> {
        if self.done == self.payload && self.done > 0 {
            return None;
        }
        *to = if self.done == 0 { self.first } else { self.later };
        let ip = &mut to.bytes[self.l2..to.len.into()];
        let (header, left) = (ip.len(), self.payload - self.done);
        let room = self.mtu - header;
        let part = if left <= room { left } else { room & !7 };
        let more = self.more || part < left;
        let word = ((self.offset + self.done) / 8) as u16 | if more { MF } else { 0 };
        ip[2..4].copy_from_slice(&((header + part) as u16).to_be_bytes());
        ip[6..8].copy_from_slice(&word.to_be_bytes());
        ip[10..12].fill(0);
        let sum = header_checksum(ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        let range = self.done..self.done + part;
        self.done += part;
        // A packet without payload is one piece, too.
        if self.payload == 0 {
            self.done = 1;
            self.payload = 1;
        }
        Some(range)
    }
}

/// Leaves those options in a header that belong to every fragment, closes them up, and says in it how long it is then. Returns that.
fn keep_copied(ip: &mut [u8]) -> usize {
    let (mut from, mut to) = (20, 20);
    while from < ip.len() {
        let kind = ip[from];
        let len = match kind {
            0 => break,
            1 => 1,
            _ => usize::from(ip.get(from + 1).copied().unwrap_or(0)),
        };
        // One that contradicts itself ends the list: what follows can't be told apart.
        if len == 0 || from + len > ip.len() || (kind != 1 && len < 2) {
            break;
        }
        if kind & COPIED != 0 {
            ip.copy_within(from..from + len, to);
            to += len;
        }
        from += len;
    }
    let end = to.next_multiple_of(4);
    ip[to..end].fill(0);
    ip[0] = 0x40 | (end / 4) as u8;
    end
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{Ipv4Header, PacketBuilder, SlicedPacket};

    /// A packet with 14 bytes before it, and options of both kinds if asked for.
    fn packet(payload: usize, options: bool, change: impl FnOnce(&mut Ipv4Header)) -> Vec<u8> {
        let mut header =
            Ipv4Header::new(0, 9, etherparse::IpNumber::UDP, [10, 0, 0, 1], [10, 0, 0, 2]).unwrap();
        header.identification = 0x1234;
        header.dont_fragment = false;
        if options {
            // Record route (not copied), no operation, a security option (copied), the end.
            header.options = [7, 7, 4, 0, 0, 0, 0, 1, 130, 3, 9, 0][..].try_into().unwrap();
        }
        header.set_payload_len(payload).unwrap();
        change(&mut header);
        header.header_checksum = header.calc_header_checksum();
        let mut frame = vec![2; 12];
        frame.extend_from_slice(&[8, 0]);
        header.write(&mut frame).unwrap();
        frame.extend((0..payload).map(|i| ((i * 7) >> 2) as u8));
        frame
    }

    fn pieces(frame: &[u8], mtu: usize) -> Vec<Vec<u8>> {
        let len = frame.len() - 14;
        let header = usize::from(frame[14] & 15) * 4;
        let mut cut = Cut::new(&frame[..14 + header], 14, len, mtu).expect("it may be cut");
        let (mut head, mut all) = (PieceHead::new(), Vec::new());
        while let Some(range) = cut.next(&mut head) {
            let mut piece = head.bytes().to_vec();
            piece.extend_from_slice(&frame[14 + header..][range]);
            assert!(piece.len() <= mtu + 14, "{} bytes", piece.len());
            all.push(piece);
        }
        all
    }

    /// Puts pieces together again, as a host does.
    fn joined(pieces: &[Vec<u8>], mtu: usize) -> (usize, Vec<u8>, bool) {
        let (mut payload, mut start, mut more) = (Vec::new(), None, true);
        for (i, piece) in pieces.iter().enumerate() {
            let (header, rest) = Ipv4Header::from_slice(&piece[14..]).unwrap();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            assert_eq!(
                (header.identification, header.time_to_live, header.source),
                (0x1234, 9, [10, 0, 0, 1])
            );
            assert_eq!(usize::from(header.total_len), piece.len() - 14);
            let at = header.fragment_offset.byte_offset() as usize;
            assert_eq!(at - *start.get_or_insert(at), payload.len());
            assert!(
                i + 1 == pieces.len() || (rest.len() % 8 == 0 && piece.len() - 14 + 8 > mtu),
                "as long as can be"
            );
            payload.extend_from_slice(rest);
            more = header.more_fragments;
            assert!(more || i + 1 == pieces.len());
        }
        (start.unwrap(), payload, more)
    }

    #[test]
    fn pieces_of_any_size_make_the_packet_again() {
        for payload in [0, 1, 48, 49, 100, 1472, 1480, 8000, 65_000] {
            let frame = packet(payload, false, |_| {});
            for mtu in [68, 69, 576, 1399, 1400, 1500, 9000] {
                let pieces = pieces(&frame, mtu);
                assert_eq!(joined(&pieces, mtu), (0, frame[34..].to_vec(), false), "{payload} by {mtu}");
                assert_eq!(pieces.len() == 1, payload + 20 <= mtu);
            }
        }
    }

    #[test]
    fn a_fragment_is_cut_further_and_says_where_it_belongs() {
        for more in [true, false] {
            let frame = packet(1480, false, |header| {
                header.more_fragments = more;
                header.fragment_offset = 185.try_into().unwrap();
            });
            assert_eq!(joined(&pieces(&frame, 600), 600), (1480, frame[34..].to_vec(), more));
        }
    }

    #[test]
    fn later_pieces_keep_only_the_options_that_are_theirs() {
        let frame = packet(1000, true, |_| {});
        let pieces = pieces(&frame, 500);
        let (first, _) = Ipv4Header::from_slice(&pieces[0][14..]).unwrap();
        assert_eq!(&first.options[..], &frame[34..46]);
        for piece in &pieces[1..] {
            let (header, _) = Ipv4Header::from_slice(&piece[14..]).unwrap();
            assert_eq!(&header.options[..], [130, 3, 9, 0]);
        }
        let whole: Vec<u8> = pieces
            .iter()
            .flat_map(|piece| Ipv4Header::from_slice(&piece[14..]).unwrap().1.to_vec())
            .collect();
        assert_eq!(whole, frame[46..]);
    }

    #[test]
    fn options_that_contradict_themselves_are_cut_off() {
        for options in [[130, 0, 1, 1], [130, 9, 1, 1], [130, 1, 1, 1], [1, 1, 1, 130]] {
            let mut ip = [0x46, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            ip[20..].copy_from_slice(&options);
            assert_eq!(keep_copied(&mut ip), 20, "{options:?}");
            assert_eq!(ip[0], 0x45);
        }
    }

    #[test]
    fn what_may_not_be_cut_is_not() {
        let dont = packet(3000, false, |header| header.dont_fragment = true);
        assert!(Cut::new(&dont[..34], 14, 3020, 1500).is_none() && !may_be_cut(&dont[14..], 3020));
        let mut six = Vec::new();
        PacketBuilder::ipv6([1; 16], [2; 16], 9).udp(1, 2).write(&mut six, &[0; 2000]).unwrap();
        assert!(SlicedPacket::from_ip(&six).is_ok() && !may_be_cut(&six, six.len()));
        assert!(Cut::new(&six[..40], 0, six.len(), 1280).is_none());
        let past = packet(2000, false, |header| header.fragment_offset = 8191.try_into().unwrap());
        assert!(Cut::new(&past[..34], 14, 2020, 1500).is_none(), "its end is behind the longest packet's");
        let short = packet(100, false, |_| {});
        assert!(Cut::new(&short[..30], 14, 120, 100).is_none() && Cut::new(&[], 0, 0, 100).is_none());
    }
}
