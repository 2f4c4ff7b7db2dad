//! Cutting a large frame into the segments it stands for, as a network card with TSO would (and Linux's `skb_segment`): every
//! segment repeats the headers, with its own IP length, IP identification, TCP sequence number, flags and checksum.

use memif::Lent;

use super::checksum::{Sum, header_checksum};
use super::{BadOffload, Layout, MAX_HEADER};
use crate::burst::{Gso, Offload};

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// Yields the plain frames that one frame with an [`Offload`] stands for. A frame that only owes a checksum yields one.
pub struct Segmenter<'f, 'a> {
    original: [u8; MAX_HEADER],
    header: [u8; MAX_HEADER],
    layout: Layout,
    gso: Gso,
    open: bool,
    payload: Cursor<'f, 'a>,
    left: usize,
    next: usize,
    open_sum: u16,
}

/// A place in a frame's views.
#[derive(Clone)]
struct Cursor<'f, 'a> {
    current: Lent<'a>,
    rest: &'f [Lent<'a>],
}

impl<'a> Cursor<'_, 'a> {
    /// The next bytes, at most `most`, that lie in one view.
    fn take(&mut self, most: usize) -> Option<Lent<'a>> {
        while self.current.is_empty() {
            let (next, rest) = self.rest.split_first()?;
            (self.current, self.rest) = (*next, rest);
        }
        let piece = self.current.take(most);
        self.current = self.current.skip(piece.len());
        (!piece.is_empty()).then_some(piece)
    }
}

/// The payload of one segment, as views of the frame it is cut from.
pub struct Payload<'f, 'a> {
    cursor: Cursor<'f, 'a>,
    left: usize,
}

impl<'a> Iterator for Payload<'_, 'a> {
    type Item = Lent<'a>;

    fn next(&mut self) -> Option<Lent<'a>> {
        let piece = self.cursor.take(self.left)?;
        self.left -= piece.len();
        Some(piece)
    }
}

impl<'f, 'a> Segmenter<'f, 'a> {
    /// Starts on the frame that consists of `first` and `rest` and owes `offload`. The headers are copied here, once.
    ///
    /// # Errors
    /// [`BadOffload`] if the claims in `offload` don't fit the frame.
    pub fn new(first: Lent<'a>, rest: &'f [Lent<'a>], offload: &Offload) -> Result<Self, BadOffload> {
        let len = first.len() + rest.iter().map(Lent::len).sum::<usize>();
        let mut payload = Cursor { current: first, rest };
        let mut original = [0; MAX_HEADER];
        let copied = copy_head(payload.clone(), &mut original);
        let layout = Layout::check(&original[..copied], len, offload)?;
        skip(&mut payload, layout.header);
        let open_sum = u16::from_be_bytes([original[layout.field], original[layout.field + 1]]);
        let mut segmenter = Self {
            header: original,
            original,
            layout,
            gso: offload.gso,
            open: offload.needs_csum,
            payload,
            left: len - layout.header,
            next: 0,
            open_sum,
        };
        segmenter.clear_checksums();
        Ok(segmenter)
    }

    /// How many plain frames there are in all.
    #[inline]
    pub fn segments(&self) -> usize {
        self.layout.segments
    }

    /// Length of each plain frame but the last.
    #[inline]
    pub fn segment_len(&self) -> usize {
        self.layout.header + self.layout.step.min(self.left + self.next * self.layout.step)
    }

    /// Length of the next plain frame, or `None` after the last.
    #[inline]
    pub fn next_len(&self) -> Option<usize> {
        (self.next < self.layout.segments).then(|| self.layout.header + self.layout.step.min(self.left))
    }

    /// Writes the next plain frame to the start of `to` and returns its length, or `None` after the last.
    ///
    /// # Panics
    /// If `to` is shorter than [`Segmenter::next_len`].
    pub fn write_next(&mut self, to: &mut [u8]) -> Option<usize> {
        let len = self.next_len()?;
        let (header, payload) = to[..len].split_at_mut(self.layout.header);
        let mut sum = Sum::default();
        let mut at = 0;
        while at < payload.len() {
            let piece = self.payload.take(payload.len() - at)?;
            at += if self.open {
                sum.add_copy(piece, &mut payload[at..])
            } else {
                piece.copy_to(&mut payload[at..])
            };
        }
        self.patch_header(payload.len(), sum);
        header.copy_from_slice(&self.header[..self.layout.header]);
        Some(len)
    }

    /// The next plain frame as its header and views of its payload, or `None` after the last.
    pub fn next_views(&mut self) -> Option<(&[u8], Payload<'f, 'a>)> {
        let len = self.next_len()? - self.layout.header;
        let payload = Payload { cursor: self.payload.clone(), left: len };
        let mut sum = Sum::default();
        let mut left = len;
        while left > 0 {
            let piece = self.payload.take(left)?;
            left -= piece.len();
            if self.open {
                sum.add_view(piece);
            }
        }
        self.patch_header(len, sum);
        Some((&self.header[..self.layout.header], payload))
    }

    /// Makes `self.header` the header of the next segment, whose payload has this length and sum.
    fn patch_header(&mut self, payload: usize, sum: Sum) {
        let mut sum = sum.padded();
        let Layout { l4, field, header, .. } = self.layout;
        if self.gso != Gso::None {
            self.patch_lengths(payload);
            self.add_pseudo_header(payload, &mut sum);
        }
        if self.open {
            // Every byte before the payload that the checksum covers: an even number, so the payload's words stay words. The
            // field itself holds zero, or, in a frame that is not cut, the pseudo header's sum.
            sum.add(&self.header[l4..header]);
            self.header[field..field + 2].copy_from_slice(&sum.checksum().to_be_bytes());
        }
        self.left -= payload;
        self.next += 1;
    }

    fn clear_checksums(&mut self) {
        let Layout { l3, field, v6, .. } = self.layout;
        if self.gso != Gso::None {
            self.original[field..field + 2].fill(0);
            if !v6 {
                self.original[l3 + 10..l3 + 12].fill(0);
            }
        }
        self.header = self.original;
    }

    fn patch_lengths(&mut self, payload: usize) {
        let Layout { l3, l4, header, v6, .. } = self.layout;
        self.header[..header].copy_from_slice(&self.original[..header]);
        let end = header + payload;
        if v6 {
            put(&mut self.header, l3 + 4, (end - l3 - 40) as u16);
        } else {
            put(&mut self.header, l3 + 2, (end - l3) as u16);
            let id = u16::from_be_bytes([self.original[l3 + 4], self.original[l3 + 5]]);
            put(&mut self.header, l3 + 4, id.wrapping_add(self.next as u16));
            let checksum = header_checksum(&self.header[l3..l4]);
            put(&mut self.header, l3 + 10, checksum);
        }
        match self.gso {
            Gso::Udp => put(&mut self.header, l4 + 4, (end - l4) as u16),
            _ => self.patch_tcp(),
        }
    }

    /// FIN and PSH belong to the last segment only, CWR to the first (RFC 3168 §6.1.2: it is sent once).
    fn patch_tcp(&mut self) {
        let l4 = self.layout.l4;
        let sequence: [u8; 4] = core::array::from_fn(|i| self.original[l4 + 4 + i]);
        let sequence = u32::from_be_bytes(sequence).wrapping_add((self.next * self.layout.step) as u32);
        self.header[l4 + 4..l4 + 8].copy_from_slice(&sequence.to_be_bytes());
        if self.next + 1 < self.layout.segments {
            self.header[l4 + 13] &= !(FIN | PSH);
        }
        if self.next > 0 {
            self.header[l4 + 13] &= !CWR;
        }
    }

    /// The open field holds the pseudo header's sum with the whole frame's length in it; a segment has another length.
    fn add_pseudo_header(&self, payload: usize, sum: &mut Sum) {
        let Layout { l4, header, step, segments, .. } = self.layout;
        let l4_header = header - l4;
        let all = l4_header + self.left + self.next * step;
        debug_assert!(segments > self.next);
        sum.add_word(self.open_sum);
        sum.add_word(!(all as u16));
        sum.add_word((l4_header + payload) as u16);
    }
}

#[inline]
fn put(header: &mut [u8; MAX_HEADER], at: usize, value: u16) {
    header[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

fn copy_head(mut from: Cursor<'_, '_>, to: &mut [u8; MAX_HEADER]) -> usize {
    let mut at = 0;
    while at < MAX_HEADER
        && let Some(piece) = from.take(MAX_HEADER - at)
    {
        at += piece.copy_to(&mut to[at..]);
    }
    at
}

fn skip(cursor: &mut Cursor<'_, '_>, mut bytes: usize) {
    while bytes > 0
        && let Some(piece) = cursor.take(bytes)
    {
        bytes -= piece.len();
    }
}
