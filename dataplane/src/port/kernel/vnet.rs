//! The header that a tap with IFF_VNET_HDR puts in front of each frame (`struct virtio_net_hdr`, virtio 1.2 §5.1.6, in the
//! machine's byte order): what the frame owes.
//!
//! ```text
//! flags: u8 · gso_type: u8 · hdr_len: u16 · gso_size: u16 · csum_start: u16 · csum_offset: u16
//! ```

use crate::burst::{Gso, Offload};
use crate::offload::{BadOffload, Layout, MAX_HEADER};

/// Its length in bytes.
pub const HEADER: usize = 10;

const NEEDS_CSUM: u8 = 1;
/// Set beside the kind when the segments' ECN needs care; ours get it anyway.
const GSO_ECN: u8 = 0x80;

/// Reads the header in front of `frame`. `None` if the frame owes nothing.
///
/// # Errors
/// [`BadOffload`] if what it says can't be done to this frame.
#[inline]
pub fn parse(header: &[u8; HEADER], frame: &[u8]) -> Result<Option<Offload>, BadOffload> {
    if header[0] & NEEDS_CSUM == 0 && header[1] == 0 {
        return Ok(None);
    }
    let word = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
    let mut offload = Offload {
        needs_csum: header[0] & NEEDS_CSUM != 0,
        gso: kind(header[1])?,
        hdr_len: 0,
        gso_size: word(4),
        csum_start: word(6),
        csum_offset: word(8),
    };
    let layout = Layout::check(&frame[..frame.len().min(MAX_HEADER)], frame.len(), &offload)?;
    if offload.gso == Gso::None {
        offload.gso_size = 0;
    } else {
        // Linux says how much of the frame lies in its first buffer; what is needed is where the headers end.
        offload.hdr_len = layout.header() as u16;
    }
    Ok(Some(offload))
}

fn kind(gso_type: u8) -> Result<Gso, BadOffload> {
    match gso_type & !GSO_ECN {
        0 => Ok(Gso::None),
        1 => Ok(Gso::Tcp4),
        4 => Ok(Gso::Tcp6),
        5 => Ok(Gso::Udp),
        other => Err(BadOffload::UnknownKind(other)),
    }
}

/// The header for a frame that owes `offload`.
#[inline]
pub fn emit(offload: Option<&Offload>) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    if let Some(offload) = offload {
        header[0] = if offload.needs_csum { NEEDS_CSUM } else { 0 };
        header[1] = offload.gso as u8;
        for (at, word) in
            [(2, offload.hdr_len), (4, offload.gso_size), (6, offload.csum_start), (8, offload.csum_offset)]
        {
            header[at..at + 2].copy_from_slice(&word.to_ne_bytes());
        }
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp4_frame() -> Vec<u8> {
        let mut frame = vec![0; 3000];
        frame[12] = 8;
        frame[14] = 0x45;
        frame[46] = 0x50;
        frame
    }

    #[test]
    fn what_is_emitted_is_parsed_again() {
        let owed = Offload {
            needs_csum: true,
            gso: Gso::Tcp4,
            hdr_len: 54,
            gso_size: 1000,
            csum_start: 34,
            csum_offset: 16,
        };
        assert_eq!(parse(&emit(Some(&owed)), &tcp4_frame()), Ok(Some(owed)));
        assert_eq!(parse(&emit(None), &tcp4_frame()), Ok(None));
    }

    #[test]
    fn the_kernels_own_idea_of_the_headers_length_is_not_believed() {
        let mut header = emit(Some(&Offload {
            needs_csum: true,
            gso: Gso::Tcp4,
            hdr_len: 2000,
            gso_size: 1000,
            csum_start: 34,
            csum_offset: 16,
        }));
        header[1] |= GSO_ECN;
        assert_eq!(parse(&header, &tcp4_frame()).map(|owed| owed.map(|owed| owed.hdr_len)), Ok(Some(54)));
    }

    #[test]
    fn unknown_kinds_are_refused() {
        for kind in [2, 3, 6, 0x7f] {
            let mut header = [0; HEADER];
            header[1] = kind;
            assert_eq!(parse(&header, &tcp4_frame()), Err(BadOffload::UnknownKind(kind)));
        }
    }
}
