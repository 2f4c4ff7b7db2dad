//! Finding checksums that a stack of this host left open.
//!
//! What a local stack sends by a veth pair comes with the checksum field of TCP and UDP holding the pseudo header's sum only
//! (`CHECKSUM_PARTIAL`): the sender counts on a device to complete it, and there is none between the two ends. A socket buffer
//! remembers that; an XDP frame does not, and AF_XDP has no field for it (Linux 6.18). But it can be seen: the field is the pseudo
//! header's sum, which a complete checksum is only by chance. In that case it is complete and right, so completing it again changes
//! nothing; or it was broken on the way, which on a wire of memory it is not.

use crate::burst::Offload;
use crate::offload::{checksum::Sum, ethernet_len};

/// Bytes of a frame that [`open_checksum`] looks at: Ethernet with two VLAN tags, IPv4 with options or IPv6, and TCP up to its checksum.
pub const HEAD: usize = 22 + 60 + 18;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// What a frame with these first bytes owes, if its checksum is open. IPv6 with extension headers and fragments are not looked into:
/// the sender completes the latter itself.
pub fn open_checksum(head: &[u8]) -> Option<Offload> {
    let l3 = ethernet_len(head)?;
    let (l4, protocol, len, addresses) = match *head.get(l3)? >> 4 {
        4 => ipv4(head, l3)?,
        6 => ipv6(head, l3)?,
        _ => return None,
    };
    let csum_offset = match protocol {
        TCP => 16,
        UDP => 6,
        _ => return None,
    };
    let field = head.get(l4 + csum_offset..l4 + csum_offset + 2)?;
    let mut pseudo = Sum::default();
    pseudo.add(addresses);
    pseudo.add_word(u16::from(protocol));
    pseudo.add_word(len);
    (field == pseudo.folded().to_be_bytes()).then(|| Offload {
        needs_csum: true,
        csum_start: l4 as u16,
        csum_offset: csum_offset as u16,
        ..Offload::default()
    })
}

/// Offset of the L4 header, protocol, bytes from there on, and the two addresses.
type Network<'h> = (usize, u8, u16, &'h [u8]);

fn ipv4(head: &[u8], l3: usize) -> Option<Network<'_>> {
    let header = head.get(l3..l3 + 20)?;
    let ihl = usize::from(header[0] & 15) * 4;
    let total = u16::from_be_bytes([header[2], header[3]]);
    let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
    if fragment || ihl < 20 {
        return None;
    }
    Some((l3 + ihl, header[9], total.checked_sub(ihl as u16)?, &header[12..20]))
}

fn ipv6(head: &[u8], l3: usize) -> Option<Network<'_>> {
    let header = head.get(l3..l3 + 40)?;
    let len = u16::from_be_bytes([header[4], header[5]]);
    Some((l3 + 40, header[6], len, &header[8..40]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offload::complete_checksum;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    fn frame(v6: bool, tcp: bool, payload: &[u8]) -> Vec<u8> {
        let ethernet = PacketBuilder::ethernet2([2; 6], [4; 6]);
        let mut frame = Vec::new();
        let ip = if v6 {
            ethernet.ipv6([1; 16], [7; 16], 64)
        } else {
            ethernet.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        };
        if tcp {
            ip.tcp(7, 80, 1, 512).write(&mut frame, payload).unwrap();
        } else {
            ip.udp(7, 80).write(&mut frame, payload).unwrap();
        }
        frame
    }

    /// Leaves the checksum as Linux does: the one's complement sum over the pseudo header, not complemented.
    fn reopen(frame: &mut [u8], v6: bool, tcp: bool) {
        let (l4, addresses) = if v6 { (54, 22..54) } else { (34, 26..34) };
        let mut sum: u32 = frame[addresses].chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1])).sum();
        sum += (frame.len() - l4) as u32 + if tcp { 6 } else { 17 };
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        let field = l4 + if tcp { 16 } else { 6 };
        frame[field..field + 2].copy_from_slice(&(sum as u16).to_be_bytes());
    }

    #[test]
    fn an_open_checksum_is_found_and_completed() {
        for (v6, tcp) in [(false, false), (false, true), (true, false), (true, true)] {
            let complete = frame(v6, tcp, b"some bytes of payload");
            assert_eq!(open_checksum(&complete), None, "v6 {v6}, tcp {tcp}");
            let mut open = complete.clone();
            reopen(&mut open, v6, tcp);
            let owed = open_checksum(&open[..open.len().min(HEAD)]).expect("it is open");
            complete_checksum(&mut open, &owed).unwrap();
            assert_eq!(open, complete, "v6 {v6}, tcp {tcp}");
        }
    }

    #[test]
    fn fragments_are_left_alone() {
        let mut open = frame(false, false, b"payload");
        reopen(&mut open, false, false);
        open[20] = 0x20;
        assert_eq!(open_checksum(&open), None);
    }

    proptest! {
        /// A frame that is complete stays as it is, found open or not.
        #[test]
        fn completing_what_is_complete_changes_nothing(
            v6: bool, tcp: bool, payload in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let complete = frame(v6, tcp, &payload);
            let mut again = complete.clone();
            if let Some(owed) = open_checksum(&again) {
                complete_checksum(&mut again, &owed).unwrap();
            }
            prop_assert_eq!(again, complete);
        }

        #[test]
        fn any_bytes_will_do(mut bytes in proptest::collection::vec(any::<u8>(), 0..HEAD)) {
            if bytes.len() > 14 {
                let kind: [[u8; 3]; 4] = [[8, 0, 0x45], [8, 0, 0x4f], [0x86, 0xdd, 0x60], [0x81, 0, 0]];
                let chosen = kind[usize::from(bytes[0] % 4)];
                bytes[12..15].copy_from_slice(&chosen);
            }
            if let Some(owed) = open_checksum(&bytes) {
                prop_assert!(usize::from(owed.csum_start + owed.csum_offset) + 2 <= bytes.len());
            }
        }
    }
}
