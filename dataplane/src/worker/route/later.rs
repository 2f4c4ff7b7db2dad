//! Packets whose next hop has to be asked for first. They are kept as they came and routed once more when the tables are others: so
//! whatever has changed meanwhile is judged as it is then, and there is one way through the domain, not two.

use std::time::Instant;

use memif::Lent;

use super::super::forward::Forwarder;
use super::{Read, Stop, Trip};
use crate::DropReason;
use crate::burst::Burst;
use crate::route::counters::{RouteDrop, Sent};
use crate::route::error::Problem;
use crate::route::packet::{Head, Packet};
use crate::route::waiting::{Asked, PATIENCE};
use crate::tables::Forward;

impl Read<'_, '_, '_> {
    /// The whole frame. What is in the head is not read again.
    fn whole(&self, head: &Head, to: &mut Vec<u8>) {
        to.extend_from_slice(head.bytes());
        let mut skip = head.taken();
        for view in self.frames.views(self.frame) {
            let more = view.skip(skip);
            let at = to.len();
            to.resize(at + more.len(), 0);
            more.copy_to(&mut to[at..]);
            skip = skip.saturating_sub(view.len());
        }
    }
}

impl Forwarder<'_> {
    /// Keeps a packet until it is known which hardware address its next hop has, if there is room, and it did not wait long already.
    #[cold]
    pub(super) fn keep(
        &mut self,
        trip: &Trip<'_>,
        (route, asked): (u32, Asked),
        head: &Head,
        packet: &Packet,
        read: Read<'_, '_, '_>,
    ) -> Stop {
        let now = Instant::now();
        let since = self.router.again.unwrap_or(now);
        if now.saturating_duration_since(since) >= PATIENCE {
            self.tell(trip, Problem::Silent, head, packet, read);
            return trip.count_drop(route, RouteDrop::NoNeighbour).into();
        }
        let owed = (read.frame.len(), read.frames.offload(read.frame));
        let fill = |buffer: &mut Vec<u8>| read.whole(head, buffer);
        if !self.router.waiting.put((trip.ingress, asked), since, owed, fill) {
            return trip.count_drop(route, RouteDrop::WaitFull).into();
        }
        if self.router.again.is_none() {
            trip.domain.counters.sent(Sent::Waited, 1);
        }
        Stop::Waits
    }

    /// Routes what waits once more, if there is reason to.
    #[inline]
    pub fn route_waiting(&mut self) {
        if !self.router.waiting.is_empty()
            && self.router.waiting.is_due(self.tables.publication, Instant::now())
        {
            self.route_again();
        }
    }

    #[cold]
    fn route_again(&mut self) {
        let list = self.router.waiting.take();
        for held in &list {
            let Forward::Route(place) = self.tables.entry(held.ingress).forward else {
                self.counters.port(held.ingress).dropped(DropReason::NoNeighbour, 1);
                continue;
            };
            let mut burst = Burst::new(held.ingress);
            burst.push_with(&[Lent::from(&held.bytes[..])], held.offload);
            self.router.again = Some(held.since);
            for (ingress, frames) in burst.runs() {
                self.route(ingress, place, frames);
            }
            self.router.again = None;
        }
        self.router.waiting.give_back(list);
    }
}
