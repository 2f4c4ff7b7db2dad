//! Packets leave: each port's together, in the order in which they came.

use arrayvec::ArrayVec;
use memif::Lent;

use super::super::forward::Forwarder;
use super::{Stop, Trip, VIEWS, Way};
use crate::DropReason;
use crate::burst::{Burst, Frame, Frames};
use crate::route::packet::Head;

impl Forwarder<'_> {
    /// Sends what has a way out, each port's together.
    pub(super) fn post_ways(
        &mut self,
        trip: &Trip<'_>,
        heads: &[Head],
        ways: &[Result<Way, Stop>],
        frames: &Frames<'_, '_>,
    ) {
        let mut left =
            ways.iter().enumerate().fold(0u64, |left, (i, way)| left | u64::from(way.is_ok()) << i);
        while left != 0 {
            let Some(Ok(Way { port, .. })) = ways.get(left.trailing_zeros() as usize) else { return };
            let mut burst = Burst::new(*port);
            let mut seen = left;
            while seen != 0 {
                let i = seen.trailing_zeros() as usize;
                seen &= seen - 1;
                let Some(Ok(way)) = ways.get(i).filter(|way| way.is_ok_and(|way| way.port == *port)) else {
                    continue;
                };
                if let Some(cut) = way.cut {
                    // What came before it leaves before it.
                    if burst.is_empty() {
                        left &= !(1 << i);
                        self.post_pieces(trip, &heads[i], (way, cut), frames, &frames.as_slice()[i]);
                    }
                    break;
                }
                if !lend(&mut burst, &heads[i], way, frames, &frames.as_slice()[i]) {
                    // No room for its views beside the others': it goes with the next burst.
                    break;
                }
                left &= !(1 << i);
            }
            for (egress, run) in burst.runs() {
                if let Some(lost) = self.post(egress, run) {
                    let count = (run.len() - lost.from) as u64;
                    self.count_lost(trip, lost.reason, count);
                }
            }
        }
    }

    pub(super) fn count_lost(&self, trip: &Trip<'_>, reason: DropReason, count: u64) {
        self.counters.port(trip.ingress).dropped(reason, count);
        trip.domain.counters.dropped(reason, count);
    }
}

/// Puts a frame into a burst: its head, and the rest where it lies. False if the burst has no room for its views.
#[inline]
fn lend<'a>(
    burst: &mut Burst<'a>,
    head: &'a Head,
    way: &Way,
    frames: &Frames<'_, 'a>,
    frame: &Frame<'a>,
) -> bool {
    let first = Lent::from(head.bytes());
    if way.rest == 0 && way.offload.is_none() {
        burst.push(first);
        return true;
    }
    let mut views: ArrayVec<Lent<'_>, VIEWS> = ArrayVec::new();
    views.push(first);
    add_part(frames.views(frame), head.taken(), way.rest as usize, &mut views);
    burst.push_with(&views, way.offload)
}

/// Adds the views of `left` bytes that lie `skip` bytes behind the beginning of `from`.
#[inline]
pub(super) fn add_part<'a>(
    from: impl Iterator<Item = Lent<'a>>,
    mut skip: usize,
    mut left: usize,
    to: &mut ArrayVec<Lent<'a>, VIEWS>,
) {
    for view in from {
        let part = view.skip(skip).take(left);
        skip = skip.saturating_sub(view.len());
        left -= part.len();
        if !part.is_empty() && to.try_push(part).is_err() {
            break;
        }
    }
}
