//! What a frame may still owe when it leaves a kernel interface, and who pays: checksums left open, segments not yet cut.
//!
//! A kernel interface with vnet headers gives TCP frames of up to 64 KiB with [`Offload`]s. An egress that can take such a frame
//! passes it on whole. One that cannot uses, for one copy of the payload:
//!
//! * [`segment::Segmenter`], to write each segment straight into its own buffer, summing while it copies;
//! * [`each_plain`], to get each segment as a header and views of the payload, where the egress has its own way to copy.
//!
//! In the other direction [`coalesce`] joins consecutive segments of a flow into one such frame.
//!
//! All numbers in an [`Offload`] are somebody else's claims. [`Layout::check`] holds them against the frame once; afterwards
//! nothing reads or writes outside it.

use arrayvec::ArrayVec;
use memif::Lent;

use crate::burst::{Frame, Frames, Gso, Offload};

pub mod checksum;
pub mod coalesce;
mod headers;
pub mod segment;

use checksum::Sum;
pub use headers::Link;
use segment::Segmenter;

/// Longest stack of headers (Ethernet to TCP options) that is segmented or completed, in bytes. IPv6 with two VLAN tags and the
/// longest TCP header is 122.
pub const MAX_HEADER: usize = 256;
/// Most segments in one frame. A frame of 64 KiB has 1366 at the smallest segment size that Linux's TCP agrees to (48 bytes); more
/// would let one cheap frame hold up a worker.
pub const MAX_SEGMENTS: usize = 2048;
/// Most views that one plain frame made by [`each_plain`] may have.
pub const MAX_VIEWS: usize = 64;

/// Why an [`Offload`] does not fit its frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadOffload {
    /// The checksum field lies outside the frame's headers.
    #[error("the checksum at {start}+{offset} lies outside the headers of a frame of {len} bytes")]
    Checksum {
        /// `csum_start`.
        start: u16,
        /// `csum_offset`.
        offset: u16,
        /// The frame's length.
        len: usize,
    },
    /// A segment size of zero.
    #[error("segments of no bytes")]
    NoSegmentSize,
    /// More segments than a frame can have, or none at all.
    #[error("a frame of {len} bytes can't be cut into segments of {size} bytes")]
    Segments {
        /// The frame's length.
        len: usize,
        /// Payload bytes per segment.
        size: u16,
    },
    /// To be segmented, but its checksum is said to be complete: then the parts' checksums are nowhere.
    #[error("segmentation without an open checksum")]
    NoChecksum,
    /// The headers are not those of the kind of segmentation asked for.
    #[error("the headers are not those of a {0:?} frame")]
    Headers(Gso),
    /// A kind of segmentation that the engine does not know.
    #[error("segmentation of unknown kind {0}")]
    UnknownKind(u8),
    /// The frame is spread over too many views to be passed on.
    #[error("more than {MAX_VIEWS} views in one frame")]
    Scattered,
}

/// Where the headers of a frame lie, checked against its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// The IP header, for frames to be segmented.
    pub(crate) l3: usize,
    /// The TCP or UDP header; `csum_start`.
    pub(crate) l4: usize,
    /// The checksum field, from the frame's first byte.
    pub(crate) field: usize,
    /// Length of all headers, or, for a frame that is not segmented, up to and with the checksum field.
    pub(crate) header: usize,
    /// Payload bytes per segment; everything if the frame is not segmented.
    pub(crate) step: usize,
    /// How many plain frames it makes.
    pub(crate) segments: usize,
    /// IP version, for frames to be segmented.
    pub(crate) v6: bool,
}

impl Layout {
    /// Holds `offload` against a frame of `len` bytes that begins with `head` (the frame's first [`MAX_HEADER`] bytes, or all).
    ///
    /// # Errors
    /// [`BadOffload`] says which claim is wrong.
    pub fn check(head: &[u8], len: usize, offload: &Offload) -> Result<Self, BadOffload> {
        if !offload.needs_csum {
            return match offload.gso {
                Gso::None => {
                    Ok(Self { l3: 0, l4: 0, field: 0, header: 0, step: len.max(1), segments: 1, v6: false })
                }
                _ => Err(BadOffload::NoChecksum),
            };
        }
        let (start, offset) = (offload.csum_start, offload.csum_offset);
        let l4 = usize::from(start);
        let field = l4 + usize::from(offset);
        if field + 2 > head.len() || offset % 2 == 1 {
            return Err(BadOffload::Checksum { start, offset, len });
        }
        let open = Self { l3: 0, l4, field, header: field + 2, step: len.max(1), segments: 1, v6: false };
        if offload.gso == Gso::None { Ok(open) } else { open.check_segments(head, len, offload) }
    }

    /// Length of all headers of a frame that is to be segmented, in bytes.
    pub fn header(&self) -> usize {
        self.header
    }

    fn check_segments(self, head: &[u8], len: usize, offload: &Offload) -> Result<Self, BadOffload> {
        let wrong = BadOffload::Headers(offload.gso);
        let (l3, v6) = find_ip(head, self.l4).ok_or(wrong)?;
        let l4_len = match offload.gso {
            Gso::Udp => 8,
            _ => usize::from(head.get(self.l4 + 12).ok_or(wrong)? >> 4) * 4,
        };
        let (version_fits, field, shortest) = match offload.gso {
            Gso::Tcp4 => (!v6, 16, 20),
            Gso::Tcp6 => (v6, 16, 20),
            _ => (true, 6, 8),
        };
        let header = self.l4 + l4_len;
        if !version_fits || offload.csum_offset != field || l4_len < shortest || header > head.len() {
            return Err(wrong);
        }
        let step = usize::from(offload.gso_size);
        if step == 0 {
            return Err(BadOffload::NoSegmentSize);
        }
        let segments = (len - header).div_ceil(step);
        if segments == 0 || segments > MAX_SEGMENTS || len > crate::burst::MAX_FRAME {
            return Err(BadOffload::Segments { len, size: offload.gso_size });
        }
        Ok(Self { l3, header, step, segments, v6, ..self })
    }
}

/// Finds the IP header that ends, extension headers included, at `l4`, and tells whether it is IPv6.
///
/// A frame begins with an Ethernet header (14 bytes, and 4 per VLAN tag) or, from an interface without one, with the IP header
/// itself. IP headers are multiples of 4 bytes and Ethernet's are not, so `l4` alone tells which.
fn find_ip(head: &[u8], l4: usize) -> Option<(usize, bool)> {
    let l3 = if l4.is_multiple_of(4) { 0 } else { ethernet_len(head)? };
    let first = *head.get(l3)?;
    let ip_len = l4.checked_sub(l3)?;
    match first >> 4 {
        4 if ip_len >= 20 && ip_len == usize::from(first & 15) * 4 => Some((l3, false)),
        6 if ip_len >= 40 && ip_len % 8 == 0 => Some((l3, true)),
        _ => None,
    }
}

/// Length of an Ethernet header that carries IP, with up to two VLAN tags.
pub(crate) fn ethernet_len(head: &[u8]) -> Option<usize> {
    for len in [14, 18, 22] {
        match head.get(len - 2..len)? {
            [0x08, 0x00] | [0x86, 0xdd] => return Some(len),
            [0x81, 0x00] | [0x88, 0xa8] => {}
            _ => return None,
        }
    }
    None
}

/// Completes the checksum of a frame that lies in private memory.
///
/// # Errors
/// [`BadOffload`] if the field lies outside the frame, or if the frame is to be segmented.
pub fn complete_checksum(frame: &mut [u8], offload: &Offload) -> Result<(), BadOffload> {
    let head = &frame[..frame.len().min(MAX_HEADER)];
    let layout = Layout::check(head, frame.len(), &Offload { gso: Gso::None, ..*offload })?;
    if offload.gso != Gso::None {
        return Err(BadOffload::Headers(offload.gso));
    }
    if offload.needs_csum {
        let mut sum = Sum::default();
        sum.add(&frame[layout.l4..]);
        frame[layout.field..layout.field + 2].copy_from_slice(&sum.checksum().to_be_bytes());
    }
    Ok(())
}

/// Calls `each` with the views of every plain frame that `frame` stands for, in order: once, with its own views, if it owes
/// nothing. `each` returns false when it has no room for more; the rest is then left out.
///
/// Returns how many frames `each` was called for.
///
/// # Errors
/// [`BadOffload`] before the first call.
#[inline]
pub fn each_plain<'a>(
    frames: &Frames<'_, 'a>,
    frame: &Frame<'a>,
    mut each: impl FnMut(&[Lent<'_>]) -> bool,
) -> Result<usize, BadOffload> {
    if frame.is_plain() {
        each(&[frame.first()]);
        return Ok(1);
    }
    each_of_views(frame.first(), frames.rest(frame), frames.offload(frame).as_ref(), each)
}

fn each_of_views(
    first: Lent<'_>,
    rest: &[Lent<'_>],
    offload: Option<&Offload>,
    mut each: impl FnMut(&[Lent<'_>]) -> bool,
) -> Result<usize, BadOffload> {
    if rest.len() + 2 > MAX_VIEWS {
        return Err(BadOffload::Scattered);
    }
    let Some(offload) = offload else {
        let views: ArrayVec<Lent<'_>, MAX_VIEWS> =
            std::iter::once(first).chain(rest.iter().copied()).collect();
        each(&views);
        return Ok(1);
    };
    let mut segmenter = Segmenter::new(first, rest, offload)?;
    let mut calls = 0;
    while let Some((header, payload)) = segmenter.next_views() {
        let views: ArrayVec<Lent<'_>, MAX_VIEWS> =
            std::iter::once(Lent::from(header)).filter(|header| !header.is_empty()).chain(payload).collect();
        calls += 1;
        if !each(&views) {
            break;
        }
    }
    Ok(calls)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owed(start: u16, offset: u16) -> Offload {
        Offload { needs_csum: true, csum_start: start, csum_offset: offset, ..Offload::default() }
    }

    #[test]
    fn a_checksum_field_outside_the_frame_is_refused() {
        let frame = [0u8; 60];
        for (start, offset) in [(60, 0), (59, 0), (44, 16), (65_535, 65_534), (34, 15), (0, 59)] {
            assert!(Layout::check(&frame, 60, &owed(start, offset)).is_err(), "{start}+{offset}");
        }
        assert!(Layout::check(&frame, 60, &owed(58, 0)).is_ok());
    }

    #[test]
    fn segmentation_is_refused_unless_the_headers_bear_it_out() {
        let mut head = vec![0u8; 1000];
        head[12..14].copy_from_slice(&[8, 0]);
        head[14] = 0x45;
        head[46] = 0x50;
        let good = Offload { gso: Gso::Tcp4, gso_size: 100, hdr_len: 54, ..owed(34, 16) };
        let check = |head: &[u8], offload| Layout::check(&head[..MAX_HEADER], 1000, &offload);
        assert_eq!(check(&head, good).map(|layout| (layout.header, layout.segments)), Ok((54, 10)));
        assert_eq!(check(&head, Offload { gso_size: 0, ..good }), Err(BadOffload::NoSegmentSize));
        assert_eq!(check(&head, Offload { needs_csum: false, ..good }), Err(BadOffload::NoChecksum));
        for lie in [
            Offload { gso: Gso::Tcp6, ..good },
            Offload { gso: Gso::Udp, ..good },
            Offload { csum_offset: 6, ..good },
            Offload { csum_start: 38, ..good },
            Offload { csum_start: 20, ..good },
        ] {
            assert!(matches!(check(&head, lie), Err(BadOffload::Headers(_))), "{lie:?}");
        }
        head[46] = 0x40;
        assert!(matches!(check(&head, good), Err(BadOffload::Headers(_))), "a TCP header of 16 bytes");
        head[46] = 0xf0;
        assert_eq!(check(&head, good).map(|layout| layout.header), Ok(94));
    }

    #[test]
    fn a_frame_of_headers_only_has_no_segments() {
        let mut head = [0u8; 54];
        head[12..14].copy_from_slice(&[8, 0]);
        head[14] = 0x45;
        head[46] = 0x50;
        let offload = Offload { gso: Gso::Tcp4, gso_size: 100, ..owed(34, 16) };
        assert_eq!(Layout::check(&head, 54, &offload), Err(BadOffload::Segments { len: 54, size: 100 }));
    }
}
