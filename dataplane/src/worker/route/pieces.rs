//! IPv4 packets that are too long for the port that they leave by and may be cut. Their pieces are headers of their own and views of the
//! packet, so each byte is still copied once; a packet that owes a checksum or is to be cut into segments first is finished in private
//! memory, which is used again for the next.

use arrayvec::ArrayVec;
use memif::Lent;

use super::super::forward::Forwarder;
use super::departure::add_part;
use super::{Trip, VIEWS, Way};
use crate::DropReason;
use crate::burst::{BURST, Burst, Frame, Frames, Gso, Offload};
use crate::offload::segment::Segmenter;
use crate::offload::{Link, complete_checksum};
use crate::port::PortIndex;
use crate::route::counters::Sent;
use crate::route::fragment::{Cut, PieceHead};
use crate::route::packet::{Head, l2_len};

/// What packets are cut with.
pub(super) struct Scissors {
    heads: Box<[PieceHead]>,
    whole: Vec<u8>,
    segment: Vec<u8>,
}

impl Default for Scissors {
    fn default() -> Self {
        let heads = vec![PieceHead::new(); BURST].into_boxed_slice();
        Self { heads, whole: Vec::new(), segment: Vec::new() }
    }
}

/// A packet that is to be cut: its views, the first of which begins with all of its headers.
struct Long<'v, 'a> {
    port: PortIndex,
    mtu: usize,
    l2: usize,
    head: &'v [u8],
    rest: &'v [Lent<'a>],
}

impl Forwarder<'_> {
    /// Sends a packet in pieces.
    #[cold]
    pub(super) fn post_pieces(
        &mut self,
        trip: &Trip<'_>,
        head: &Head,
        (way, (mtu, link)): (&Way, (u16, Link)),
        frames: &Frames<'_, '_>,
        frame: &Frame<'_>,
    ) {
        let mut rest = ArrayVec::new();
        add_part(frames.views(frame), head.taken(), way.rest as usize, &mut rest);
        let (port, mtu, l2) = (way.port, usize::from(mtu), l2_len(link));
        let mut scissors = std::mem::take(&mut self.router.scissors);
        let sent = match way.offload {
            None => self.post_long(
                &mut scissors.heads,
                trip,
                &Long { port, mtu, l2, head: head.bytes(), rest: &rest },
            ),
            // What is to be finished lies behind the IP header, or the header itself would be written over.
            Some(owed) if owed.needs_csum && usize::from(owed.csum_start) < header_end(head.bytes(), l2) => {
                Err(DropReason::BadOffload)
            }
            Some(owed) => {
                let Scissors { heads, whole, segment } = &mut scissors;
                whole.clear();
                whole.extend_from_slice(head.bytes());
                rest.iter().for_each(|view| append(whole, *view));
                finished(whole, segment, &owed, |packet| {
                    self.post_long(heads, trip, &Long { port, mtu, l2, head: packet, rest: &[] })
                })
            }
        };
        self.router.scissors = scissors;
        match sent {
            Ok(()) => {}
            // The same as a port says that has to finish such a frame.
            Err(DropReason::BadOffload) => self.counters.port(port).dropped(DropReason::BadOffload, 1),
            Err(reason) => self.count_lost(trip, reason, 1),
        }
    }

    /// Cuts one packet that owes nothing.
    fn post_long(
        &mut self,
        heads: &mut [PieceHead],
        trip: &Trip<'_>,
        long: &Long<'_, '_>,
    ) -> Result<(), DropReason> {
        let Long { l2, head, .. } = *long;
        let payload = head.get(header_end(head, l2)..).ok_or(DropReason::BadIpHeader)?;
        let len = head.len() - l2 + long.rest.iter().map(Lent::len).sum::<usize>();
        let mut cut = Cut::new(head, l2, len, long.mtu).ok_or(DropReason::BadIpHeader)?;
        loop {
            let mut ranges: ArrayVec<_, BURST> = ArrayVec::new();
            for to in heads.iter_mut() {
                ranges.extend(cut.next(to));
            }
            if ranges.is_empty() {
                return Ok(());
            }
            trip.domain.counters.sent(Sent::Fragments, ranges.len() as u64);
            let mut pieces = heads.iter().zip(&ranges).peekable();
            while pieces.peek().is_some() {
                let mut burst = Burst::new(long.port);
                while let Some((head, range)) = pieces.peek() {
                    let mut views: ArrayVec<Lent<'_>, VIEWS> = ArrayVec::new();
                    views.push(Lent::from(head.bytes()));
                    let whole = std::iter::once(Lent::from(payload)).chain(long.rest.iter().copied());
                    add_part(whole, range.start, range.len(), &mut views);
                    if !burst.push_with(&views, None) {
                        break;
                    }
                    pieces.next();
                }
                self.post_all(&mut burst)?;
            }
        }
    }

    fn post_all(&mut self, burst: &mut Burst<'_>) -> Result<(), DropReason> {
        for (egress, run) in burst.runs() {
            if let Some(lost) = self.post(egress, run) {
                return Err(lost.reason);
            }
        }
        Ok(())
    }
}

/// Where the IPv4 header ends that begins at `l2`.
fn header_end(head: &[u8], l2: usize) -> usize {
    l2 + usize::from(head.get(l2).copied().unwrap_or(0) & 15) * 4
}

fn append(to: &mut Vec<u8>, view: Lent<'_>) {
    let at = to.len();
    to.resize(at + view.len(), 0);
    view.copy_to(&mut to[at..]);
}

/// Calls `each` with every packet that a frame stands for, finished.
fn finished(
    whole: &mut [u8],
    segment: &mut Vec<u8>,
    owed: &Offload,
    mut each: impl FnMut(&[u8]) -> Result<(), DropReason>,
) -> Result<(), DropReason> {
    if owed.gso == Gso::None {
        complete_checksum(whole, owed).map_err(|_| DropReason::BadOffload)?;
        return each(whole);
    }
    let mut segments = Segmenter::new(Lent::from(&*whole), &[], owed).map_err(|_| DropReason::BadOffload)?;
    while let Some(len) = segments.next_len() {
        segment.resize(len, 0);
        segments.write_next(segment);
        each(segment)?;
    }
    Ok(())
}
