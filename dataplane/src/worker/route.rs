//! Frames of a port that is in a routing domain: each packet's header is read once and judged, the longest prefix says by which port
//! it goes on, and those with the same way out go there together. The copy of the header, rewritten, and the rest of the packet
//! where it lies are the frame that the egress port copies: still one copy of each packet.

use std::net::IpAddr;
use std::time::Instant;

use arrayvec::ArrayVec;
use memif::Lent;

use super::capture::Direction;
use super::command::{Event, Events};
use super::forward::Forwarder;
use crate::DropReason;
use crate::burst::{BURST, Burst, Frame, Frames, Offload};
use crate::offload::Link;
use crate::port::PortIndex;
use crate::route::control::{Arrival, Outcome};
use crate::route::counters::{RouteDrop, Sent};
use crate::route::domain::{Domain, Mac, Member, MemberIndex, Neighbour, Target};
use crate::route::error::{Problem, QUOTE, error};
use crate::route::limit::Limits;
use crate::route::packet::{Head, Kind, Packet, is_routable, l2_len, shifted};
use crate::tables::Place;

/// Most views of one frame: those of the longest chain, and the head.
const VIEWS: usize = memif::queue::MAX_SEGMENTS + 2;
/// Frames ahead whose first bytes are asked for while one is judged.
const PREFETCH: usize = 4;

/// What a worker routes with.
pub(super) struct Router {
    heads: Box<[Head]>,
    limits: Limits,
    events: Events,
    /// Messages of the domains' own, with the ports that they leave by.
    own: Vec<(PortIndex, Vec<u8>)>,
}

impl Router {
    pub fn new(events: Events) -> Self {
        let heads = vec![Head::new(); BURST].into_boxed_slice();
        Self { heads, limits: Limits::default(), events, own: Vec::new() }
    }
}

/// A packet's way out.
#[derive(Clone, Copy)]
struct Way {
    port: PortIndex,
    /// Bytes of the packet that lie behind its head.
    rest: u32,
    offload: Option<Offload>,
}

/// How a destination is reached: found for one packet, and very likely wanted for the next.
#[derive(Clone, Copy)]
struct Exit {
    target: Target,
    port: PortIndex,
    member: Member,
    /// The next hop's, if the port needs it.
    mac: Option<Mac>,
}

/// One burst's journey through a domain.
struct Trip<'d> {
    domain: &'d Domain,
    ingress: PortIndex,
    arrival: Arrival<'d>,
    source: Option<(IpAddr, bool)>,
    exit: Option<(IpAddr, Exit)>,
    /// The route of the packets so far, their number and their bytes.
    run: (u32, u64, u64),
    all: (u64, u64),
}

impl Trip<'_> {
    /// Whether packets from `source` may come by this port.
    #[inline]
    fn may_come(&mut self, source: IpAddr) -> bool {
        match self.source {
            Some((last, may)) if last == source => may,
            _ => {
                let (strict, at) = (self.arrival.member.strict, self.arrival.at);
                let from_there = || self.domain.lookup(source).is_some_and(|target| target.member == at);
                let may = is_routable(source) && (!strict || from_there());
                self.source = Some((source, may));
                may
            }
        }
    }

    #[inline]
    fn count(&mut self, route: u32, bytes: usize) {
        if route != self.run.0 {
            self.count_run();
            self.run = (route, 0, 0);
        }
        self.run.1 += 1;
        self.run.2 += bytes as u64;
    }

    fn count_run(&mut self) {
        let (route, packets, bytes) = self.run;
        if packets > 0
            && let Some(counters) = self.domain.routes.get(route)
        {
            counters.forwarded(packets, bytes);
        }
        self.all = (self.all.0 + packets, self.all.1 + bytes);
    }

    fn count_drop(&self, route: u32, why: RouteDrop) -> DropReason {
        if let Some(counters) = self.domain.routes.get(route) {
            counters.dropped(why);
        }
        why.reason()
    }
}

/// One frame of a burst, as far as it is read.
#[derive(Clone, Copy)]
struct Read<'f, 'b, 'a> {
    frames: &'f Frames<'b, 'a>,
    frame: &'f Frame<'a>,
}

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
    /// Routes frames that entered by a port of a domain. Each is sent, refused by its egress port, handed to another worker, or
    /// dropped here.
    #[inline(never)]
    pub(super) fn route(&mut self, ingress: PortIndex, place: Place, frames: Frames<'_, '_>) {
        let found = self.tables.domain(place.domain);
        let Some((domain, member)) = found.and_then(|domain| Some((domain, domain.member(place.member)?)))
        else {
            self.counters.port(ingress).dropped(DropReason::NoEgress, frames.len() as u64);
            return;
        };
        let arrival = Arrival { domain, member, at: place.member };
        let mut trip =
            Trip { domain, ingress, arrival, source: None, exit: None, run: (u32::MAX, 0, 0), all: (0, 0) };
        let mut heads = std::mem::take(&mut self.router.heads);
        let ways: ArrayVec<Result<Way, DropReason>, BURST> = frames
            .as_slice()
            .iter()
            .zip(&mut heads)
            .enumerate()
            .map(|(i, (frame, head))| {
                if let Some(later) = frames.as_slice().get(i + PREFETCH) {
                    later.first().prefetch();
                }
                self.way(&mut trip, head, Read { frames: &frames, frame })
            })
            .collect();
        trip.count_run();
        domain.counters.forwarded(trip.all.0, trip.all.1);
        for reason in ways.iter().filter_map(|way| way.err()) {
            self.counters.port(ingress).dropped(reason, 1);
            domain.counters.dropped(reason, 1);
        }
        self.post_ways(&trip, &heads, &ways, &frames);
        self.router.heads = heads;
        if self.taps.any() {
            self.taps.record(ingress, Direction::In, &frames, |i| ways.get(i).and_then(|way| way.err()));
        }
        if !self.router.own.is_empty() {
            self.post_own();
        }
    }

    /// Sends what has a way out, each port's together.
    fn post_ways(
        &mut self,
        trip: &Trip<'_>,
        heads: &[Head],
        ways: &[Result<Way, DropReason>],
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
                if !lend(&mut burst, &heads[i], way, frames, &frames.as_slice()[i]) {
                    // No room for its views beside the others': it goes with the next burst.
                    break;
                }
                left &= !(1 << i);
            }
            for (egress, run) in burst.runs() {
                if let Some(lost) = self.post(egress, run) {
                    let count = (run.len() - lost.from) as u64;
                    self.counters.port(trip.ingress).dropped(lost.reason, count);
                    trip.domain.counters.dropped(lost.reason, count);
                }
            }
        }
    }

    /// Judges one frame and rewrites its head.
    #[inline]
    fn way(
        &mut self,
        trip: &mut Trip<'_>,
        head: &mut Head,
        read: Read<'_, '_, '_>,
    ) -> Result<Way, DropReason> {
        let link = trip.arrival.member.link;
        head.read(read.frames, read.frame);
        let kind = head.kind(link)?;
        if kind == Kind::Arp {
            return Err(self.control(trip, |arrival| arrival.arp(&head.bytes()[l2_len(link)..])));
        }
        let offload = read.frames.offload(read.frame);
        let packet = head.packet(kind, link, read.frame.len(), offload.as_ref())?;
        if link == Link::Ethernet {
            let to = head.macs().0;
            if to != trip.arrival.member.mac {
                return Err(match to.0[0] & 1 {
                    1 => self.for_domain(trip, head, &packet, read),
                    _ => DropReason::WrongMac,
                });
            }
        }
        if !trip.may_come(packet.source) {
            // Neighbour discovery also speaks from addresses that no router knows.
            let local = matches!(packet.source, IpAddr::V6(v6) if v6.is_unicast_link_local());
            return Err(match local {
                true => self.for_domain(trip, head, &packet, read),
                false => DropReason::SpoofedSource,
            });
        }
        let exit = match trip.exit {
            Some((last, exit)) if last == packet.destination => exit,
            _ => {
                let exit = self.exit(trip, head, &packet, read)?;
                trip.exit = Some((packet.destination, exit));
                exit
            }
        };
        if packet.ttl <= 1 {
            self.tell(trip, Problem::TimeExceeded, head, &packet, read);
            return Err(trip.count_drop(exit.target.route, RouteDrop::TtlExceeded));
        }
        if packet.longest > usize::from(exit.member.mtu) {
            self.tell(trip, Problem::TooBig(exit.member.mtu), head, &packet, read);
            return Err(trip.count_drop(exit.target.route, RouteDrop::TooBig));
        }
        trip.count(exit.target.route, packet.len);
        head.decrement(kind, link);
        let rest = head.readdress(kind, link, &packet, exit.mac.map(|mac| (mac, exit.member.mac)));
        let offload = offload.map(|owed| shifted(owed, link, exit.member.link));
        Ok(Way { port: exit.port, rest: rest as u32, offload })
    }

    /// How the packet's destination is reached, or why it is not.
    fn exit(
        &mut self,
        trip: &Trip<'_>,
        head: &Head,
        packet: &Packet,
        read: Read<'_, '_, '_>,
    ) -> Result<Exit, DropReason> {
        let Some(target) = trip.domain.lookup(packet.destination) else {
            if !is_routable(packet.destination) {
                return Err(self.for_domain(trip, head, packet, read));
            }
            self.tell(trip, Problem::Unreachable, head, packet, read);
            return Err(DropReason::NoRoute);
        };
        if target.member == MemberIndex::SELF || !is_routable(packet.destination) {
            return Err(self.for_domain(trip, head, packet, read));
        }
        let found = trip.domain.member(target.member).and_then(|member| Some((*member, member.port?)));
        let Some((member, port)) = found else {
            return Err(trip.count_drop(target.route, RouteDrop::EgressDown));
        };
        if member.link == Link::Ip {
            return Ok(Exit { target, port, member, mac: None });
        }
        let via = usize::from(target.via).checked_sub(1).and_then(|at| trip.domain.vias.get(at));
        let next = via.map_or(packet.destination, |(_, via)| *via);
        match trip.domain.neighbour(next) {
            Some(Neighbour { mac, member: at }) if at == target.member => {
                Ok(Exit { target, port, member, mac: Some(mac) })
            }
            _ => {
                let asker = Arrival { domain: trip.domain, member: &member, at: target.member };
                self.ask(&asker, port, next);
                Err(trip.count_drop(target.route, RouteDrop::NoNeighbour))
            }
        }
    }

    /// Asks for a neighbour, if that was not done just now.
    #[cold]
    fn ask(&mut self, asker: &Arrival<'_>, port: PortIndex, address: IpAddr) {
        let now = Instant::now();
        if self.router.limits.ask(port, address, now) && self.router.limits.take(port, now) {
            asker.domain.counters.sent(Sent::Questions);
            self.router.own.push((port, asker.question(address)));
        }
    }

    /// Tells a packet's sender what is wrong with it.
    #[cold]
    fn tell(
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
            trip.domain.counters.sent(Sent::Errors);
            self.router.own.push((trip.ingress, frame));
        }
    }

    /// A packet that is for the domain itself, or for a group that it may be in.
    #[cold]
    fn for_domain(
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
    fn control(&mut self, trip: &Trip<'_>, judge: impl FnOnce(&Arrival<'_>) -> Outcome) -> DropReason {
        if !self.router.limits.take(trip.ingress, Instant::now()) {
            return DropReason::ControlLimit;
        }
        let Outcome { reason, reply, learnt } = judge(&trip.arrival);
        if let Some((what, frame)) = reply {
            trip.domain.counters.sent(what);
            self.router.own.push((trip.ingress, frame));
        }
        if let Some((address, mac)) = learnt
            && trip.domain.neighbour(address) != Some(Neighbour { mac, member: trip.arrival.at })
        {
            self.router.events.send(Event::Learnt { port: trip.ingress, address, mac });
        }
        reason
    }

    /// Sends the messages of the domains' own.
    #[cold]
    fn post_own(&mut self) {
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

const UDP: u8 = 17;

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
    let (mut skip, mut left) = (head.taken(), way.rest as usize);
    for view in frames.views(frame) {
        let part = view.skip(skip).take(left);
        skip = skip.saturating_sub(view.len());
        left -= part.len();
        if !part.is_empty() && views.try_push(part).is_err() {
            break;
        }
    }
    burst.push_with(&views, way.offload)
}
