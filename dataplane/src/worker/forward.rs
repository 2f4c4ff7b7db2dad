//! From a burst to where its frames go. Each frame ends in exactly one way: sent or refused by the egress port, handed to
//! another worker, or dropped here under a reason.

use crate::DropReason;
use crate::burst::{Burst, Frames};
use crate::port::PortIndex;
use crate::port::pipe::from_tag;
use crate::ring::Consumer;
use crate::stats::Counters;
use crate::tables::{Forward, Tables, WorkerId};

use super::capture::{Direction, Taps};
use super::handoff::OutgoingRings;
use super::outbox::Outbox;
use super::route::Router;

/// What one turn forwards with.
pub(super) struct Forwarder<'w> {
    pub me: WorkerId,
    pub tables: &'w Tables,
    pub counters: &'w Counters,
    pub outbox: &'w mut Outbox,
    pub handoff: &'w mut OutgoingRings,
    pub taps: &'w mut Taps,
    pub router: &'w mut Router,
}

/// Frames of a run that were lost before they reached an egress port: those from index `from` on.
pub(super) struct Lost {
    pub from: usize,
    pub reason: DropReason,
}

impl Forwarder<'_> {
    /// Forwards every frame of a burst.
    #[inline]
    pub fn forward(&mut self, burst: &mut Burst<'_>) {
        if self.taps.any() {
            burst.keep();
        }
        for (ingress, frames) in burst.runs() {
            self.counters.port(ingress).received(frames.len() as u64, frames.bytes());
            let lost = match self.tables.entry(ingress).forward {
                Forward::Xconnect(egress) => self.post(egress, frames),
                Forward::Route(place) => {
                    self.route(ingress, place, frames);
                    continue;
                }
                Forward::Nowhere => Some(Lost { from: 0, reason: DropReason::NoEgress }),
            };
            if let Some(lost) = &lost {
                self.counters.port(ingress).dropped(lost.reason, (frames.len() - lost.from) as u64);
            }
            if self.taps.any() {
                let verdict = |i| lost.as_ref().filter(|lost| i >= lost.from).map(|lost| lost.reason);
                self.taps.record(ingress, Direction::In, &frames, verdict);
            }
        }
    }

    /// Gives `frames` to a worker that has `egress`: this one, if it has a share.
    #[inline]
    pub(super) fn post(&mut self, egress: PortIndex, frames: Frames<'_, '_>) -> Option<Lost> {
        match self.tables.entry(egress).owner {
            Some(owners) if owners.has(self.me) => self.send(egress, frames),
            Some(owners) => {
                let taken = self.handoff.send(owners.home(), egress, &frames);
                (taken < frames.len()).then_some(Lost { from: taken, reason: DropReason::HandoffFull })
            }
            None => Some(Lost { from: 0, reason: DropReason::EgressDown }),
        }
    }

    #[inline]
    fn send(&mut self, egress: PortIndex, frames: Frames<'_, '_>) -> Option<Lost> {
        let Some(refused) = self.outbox.send(egress, frames, self.tables, self.counters) else {
            return Some(Lost { from: 0, reason: DropReason::EgressDown });
        };
        if self.taps.any() {
            let verdict = |i| refused.iter().find(|(at, _)| usize::from(*at) == i).map(|(_, reason)| *reason);
            self.taps.record(egress, Direction::Out, &frames, verdict);
        }
        None
    }

    /// Sends what other workers handed over. Returns how many frames that was.
    pub fn drain_handoff(&mut self, incoming: &mut [Consumer]) -> usize {
        let mut frames = 0;
        for ring in incoming {
            // A run of this burst is named by the egress port: where its frames entered was counted by the worker they entered at.
            let mut burst = Burst::new(PortIndex(0));
            while burst.room() > 0 {
                // SAFETY: the record is used within this turn of the outer loop and `release` is called at its end.
                let Some((tag, view)) = (unsafe { ring.lend() }) else { break };
                let (egress, offload) = from_tag(tag);
                burst.from_port(egress);
                burst.push_with(&[view], offload);
            }
            frames += burst.len();
            for (egress, run) in burst.runs() {
                if let Some(lost) = self.send(egress, run) {
                    self.counters.port(egress).dropped(lost.reason, run.len() as u64);
                }
            }
            ring.release();
        }
        frames
    }

    /// Ends the turn.
    #[inline]
    pub fn flush(&mut self, more: bool) {
        self.outbox.flush(more, self.tables, self.counters);
    }
}
