//! What a routing domain says by itself, and what is said to it. All of it is rare, limited for each port, and may allocate.

use std::net::IpAddr;
use std::time::Instant;

use memif::Lent;

use super::super::command::Event;
use super::super::forward::Forwarder;
use super::{Read, Trip};
use crate::DropReason;
use crate::burst::Burst;
use crate::offload::Link;
use crate::port::PortIndex;
use crate::route::control::{Arrival, Outcome};
use crate::route::counters::Sent;
use crate::route::domain::{Mac, Neighbour};
use crate::route::error::{Problem, QUOTE, error};
use crate::route::packet::{Head, Packet, l2_len};

const UDP: u8 = 17;

impl Read<'_, '_, '_> {
    /// The first bytes of the packet in private memory, at most `limit`. What is in the head is not read again.
    fn gather(&self, head: &Head, link: Link, limit: usize) -> Vec<u8> {
        let mut bytes = head.bytes()[l2_len(link)..].to_vec();
        let mut skip = head.taken();
        for view in self.frames.views(self.frame) {
            let more = view.skip(skip).take(limit.saturating_sub(bytes.len()));
            bytes.extend_from_slice(&more.to_vec());
            skip = skip.saturating_sub(view.len());
        }
        bytes.truncate(limit);
        bytes
    }
}

impl Forwarder<'_> {
    /// Asks for a neighbour, if that was not done just now.
    #[cold]
    pub(super) fn ask(&mut self, asker: &Arrival<'_>, port: PortIndex, address: IpAddr) {
        let now = Instant::now();
        if self.router.limits.ask(port, address, now) && self.router.limits.take(port, now) {
            asker.domain.counters.sent(Sent::Questions, 1);
            self.router.own.push((port, asker.question(address)));
        }
    }

    /// Tells a packet's sender what is wrong with it.
    #[cold]
    pub(super) fn tell(
        &mut self,
        trip: &Trip<'_>,
        problem: Problem,
        head: &Head,
        packet: &Packet,
        read: Read<'_, '_, '_>,
    ) {
        let link = trip.arrival.member.link;
        let macs = if link == Link::Ethernet { head.macs() } else { Default::default() };
        let quoted = read.gather(head, link, QUOTE);
        if let Some(frame) = error(&trip.arrival, problem, packet, &quoted, macs)
            && self.router.limits.take(trip.ingress, Instant::now())
        {
            trip.domain.counters.sent(Sent::Errors, 1);
            self.router.own.push((trip.ingress, frame));
        }
    }

    /// A packet that is for the domain itself, or for a group that it may be in.
    #[cold]
    pub(super) fn for_domain(
        &mut self,
        trip: &Trip<'_>,
        head: &Head,
        packet: &Packet,
        read: Read<'_, '_, '_>,
    ) -> DropReason {
        let link = trip.arrival.member.link;
        let from = if link == Link::Ethernet { head.macs().1 } else { Mac::default() };
        let own = trip.domain.is_own(packet.destination, trip.arrival.member.mac);
        if own && packet.protocol == UDP {
            self.tell(trip, Problem::NoListener, head, packet, read);
            return DropReason::ForDomain;
        }
        // An answer is no longer than the packet, which came by the same port.
        let bytes = read.gather(head, link, packet.len);
        self.control(trip, |arrival| arrival.ip(packet, &bytes, from))
    }

    /// Does what a message to the domain calls for, as far as the port has not asked too much.
    #[cold]
    pub(super) fn control(
        &mut self,
        trip: &Trip<'_>,
        judge: impl FnOnce(&Arrival<'_>) -> Outcome,
    ) -> DropReason {
        if !self.router.limits.take(trip.ingress, Instant::now()) {
            return DropReason::ControlLimit;
        }
        let Outcome { reason, reply, learnt } = judge(&trip.arrival);
        if let Some((what, frame)) = reply {
            trip.domain.counters.sent(what, 1);
            self.router.own.push((trip.ingress, frame));
        }
        if let Some((address, mac)) = learnt
            && trip.domain.neighbour(address) != Some(Neighbour { mac, member: trip.arrival.at })
        {
            self.router.events.send(Event::Learnt { port: trip.ingress, address, mac });
        }
        reason
    }

    /// Sends what the agent gave the worker to send.
    #[inline]
    pub fn post_said(&mut self) {
        if !self.router.own.is_empty() {
            self.post_own();
        }
    }

    /// Sends the messages of the domains' own.
    #[cold]
    pub(super) fn post_own(&mut self) {
        for (port, frame) in std::mem::take(&mut self.router.own) {
            let mut burst = Burst::new(port);
            burst.push(Lent::from(&frame[..]));
            for (egress, run) in burst.runs() {
                if let Some(lost) = self.post(egress, run) {
                    self.counters.port(egress).dropped(lost.reason, 1);
                }
            }
        }
    }
}
