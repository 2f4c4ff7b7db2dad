//! Frames of a port that is in a routing domain: each packet's header is read once and judged, the longest prefix says by which port
//! it goes on, and those with the same way out go there together. The copy of the header, rewritten, and the rest of the packet
//! where it lies are the frame that the egress port copies: still one copy of each packet.
//!
//! | file | its part |
//! |---|---|
//! | here | which way each packet of a burst goes |
//! | `trip` | what is known and counted along a burst's way |
//! | `departure` | what has a way out leaves by it |
//! | [`own`] | what the domain says by itself, and what is said to it |
//! | [`later`] | packets whose next hop has to be asked for first |
//! | [`pieces`] | packets that are too long for the port that they leave by |
//! | [`recent`] | what was looked up lately |

use std::net::IpAddr;
use std::time::Instant;

use arrayvec::ArrayVec;

use super::capture::Direction;
use super::command::Events;
use super::forward::Forwarder;
use crate::DropReason;
use crate::burst::{BURST, Frame, Frames, Offload};
use crate::offload::Link;
use crate::port::PortIndex;
use crate::route::control::Arrival;
use crate::route::counters::RouteDrop;
use crate::route::domain::{Mac, Member, MemberIndex, Neighbour, Target};
use crate::route::error::Problem;
use crate::route::fragment::may_be_cut;
use crate::route::limit::Limits;
use crate::route::packet::{Head, Kind, Packet, is_routable, l2_len, shifted};
use crate::route::waiting::{Asked, Waiting};
use crate::tables::Place;

mod departure;
mod later;
mod own;
mod pieces;
mod recent;
mod trip;

use pieces::Scissors;
use recent::Recent;
use trip::Trip;

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
    /// Packets that can't go on yet.
    pub waiting: Waiting,
    /// When the packet came that is routed once more, having waited.
    again: Option<Instant>,
    scissors: Scissors,
    exits: Recent<Option<Exit>>,
    /// Sources that may come by a port.
    sources: Recent<()>,
}

impl Router {
    pub fn new(events: Events) -> Self {
        Self {
            heads: vec![Head::new(); BURST].into_boxed_slice(),
            limits: Limits::default(),
            events,
            own: Vec::new(),
            waiting: Waiting::default(),
            again: None,
            scissors: Scissors::default(),
            exits: Recent::new(None),
            sources: Recent::new(()),
        }
    }

    /// Takes a message of the agent's to be sent by `port`.
    pub fn say(&mut self, port: PortIndex, frame: Vec<u8>) {
        self.own.push((port, frame));
    }
}

/// A packet's way out.
#[derive(Clone, Copy)]
struct Way {
    port: PortIndex,
    /// Bytes of the packet that lie behind its head.
    rest: u32,
    /// The longest piece that it may leave in, if it does not leave whole, and what the pieces begin with.
    cut: Option<(u16, Link)>,
    offload: Option<Offload>,
}

/// Why a packet has no way out.
#[derive(Clone, Copy)]
enum Stop {
    Dropped(DropReason),
    /// It waits, and is counted when that is over.
    Waits,
}

impl From<DropReason> for Stop {
    fn from(reason: DropReason) -> Self {
        Self::Dropped(reason)
    }
}

impl Stop {
    fn reason(self) -> Option<DropReason> {
        match self {
            Self::Dropped(reason) => Some(reason),
            Self::Waits => None,
        }
    }
}

/// Where a frame is addressed to.
#[derive(Clone, Copy)]
enum Hop {
    /// Nowhere: the port's frames have no address.
    None,
    /// To this station.
    At(Mac),
    /// To whoever has this address, which is being asked for.
    Unknown(IpAddr),
}

/// How a destination is reached: found for one packet, and very likely wanted for the next.
#[derive(Clone, Copy)]
struct Exit {
    target: Target,
    port: PortIndex,
    member: Member,
    hop: Hop,
}

/// One frame of a burst, as far as it is read.
#[derive(Clone, Copy)]
struct Read<'f, 'b, 'a> {
    frames: &'f Frames<'b, 'a>,
    frame: &'f Frame<'a>,
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
        let mut trip = Trip {
            domain,
            publication: self.tables.publication,
            place,
            ingress,
            arrival,
            source: None,
            exit: None,
            run: (u32::MAX, 0, 0),
            all: (0, 0),
        };
        let mut heads = std::mem::take(&mut self.router.heads);
        let ways: ArrayVec<Result<Way, Stop>, BURST> = frames
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
        let dropped = |way: &Result<Way, Stop>| way.err().and_then(Stop::reason);
        for reason in ways.iter().filter_map(dropped) {
            self.counters.port(ingress).dropped(reason, 1);
            domain.counters.dropped(reason, 1);
        }
        self.post_ways(&trip, &heads, &ways, &frames);
        self.router.heads = heads;
        if self.taps.any() && self.router.again.is_none() {
            self.taps.record(ingress, Direction::In, &frames, |i| ways.get(i).and_then(dropped));
        }
        if !self.router.own.is_empty() {
            self.post_own();
        }
    }

    /// Judges one frame and rewrites its head.
    #[inline]
    fn way(&mut self, trip: &mut Trip<'_>, head: &mut Head, read: Read<'_, '_, '_>) -> Result<Way, Stop> {
        let link = trip.arrival.member.link;
        head.read(read.frames, read.frame);
        let kind = head.kind(link)?;
        if kind == Kind::Arp {
            return Err(self.control(trip, |arrival| arrival.arp(&head.bytes()[l2_len(link)..])).into());
        }
        let offload = read.frames.offload(read.frame);
        let packet = head.packet(kind, link, read.frame.len(), offload.as_ref())?;
        if link == Link::Ethernet {
            let to = head.macs().0;
            if to != trip.arrival.member.mac {
                return Err(match to.0[0] & 1 {
                    1 => self.for_domain(trip, head, &packet, read).into(),
                    _ => DropReason::WrongMac.into(),
                });
            }
        }
        if !trip.may_come(packet.source, &mut self.router.sources) {
            // Neighbour discovery also speaks from addresses that no router knows.
            let local = matches!(packet.source, IpAddr::V6(v6) if v6.is_unicast_link_local());
            return Err(match local {
                true => self.for_domain(trip, head, &packet, read).into(),
                false => DropReason::SpoofedSource.into(),
            });
        }
        let exit = match trip.exit {
            Some((last, exit)) if last == packet.destination => exit,
            _ => {
                let exit = self.exit_again(trip, head, &packet, read)?;
                trip.exit = Some((packet.destination, exit));
                exit
            }
        };
        if packet.ttl <= 1 {
            self.tell(trip, Problem::TimeExceeded, head, &packet, read);
            return Err(trip.count_drop(exit.target.route, RouteDrop::TtlExceeded).into());
        }
        let too_long = packet.longest > usize::from(exit.member.mtu);
        if too_long && !may_be_cut(&head.bytes()[l2_len(link)..], packet.len) {
            self.tell(trip, Problem::TooBig(exit.member.mtu), head, &packet, read);
            return Err(trip.count_drop(exit.target.route, RouteDrop::TooBig).into());
        }
        let to = match exit.hop {
            Hop::None => None,
            Hop::At(mac) => Some((mac, exit.member.mac)),
            Hop::Unknown(address) => {
                let asked = Asked { port: exit.port, address };
                return Err(self.keep(trip, (exit.target.route, asked), head, &packet, read));
            }
        };
        trip.count(exit.target.route, packet.len);
        head.decrement(kind, link);
        let rest = head.readdress(kind, link, &packet, to);
        let offload = offload.map(|owed| shifted(owed, link, exit.member.link));
        let cut = too_long.then_some((exit.member.mtu, exit.member.link));
        Ok(Way { port: exit.port, rest: rest as u32, cut, offload })
    }

    /// As [`Self::exit`], if it was not asked of late.
    #[inline]
    fn exit_again(
        &mut self,
        trip: &Trip<'_>,
        head: &Head,
        packet: &Packet,
        read: Read<'_, '_, '_>,
    ) -> Result<Exit, DropReason> {
        let key = trip.key(packet.destination).of_all_ports();
        if let Some(Some(exit)) = self.router.exits.get(&key) {
            return Ok(exit);
        }
        let exit = self.exit(trip, head, packet, read)?;
        if !matches!(exit.hop, Hop::Unknown(_)) {
            self.router.exits.put(key, Some(exit));
        }
        Ok(exit)
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
            return Ok(Exit { target, port, member, hop: Hop::None });
        }
        let via = usize::from(target.via).checked_sub(1).and_then(|at| trip.domain.vias.get(at));
        let next = via.map_or(packet.destination, |(_, via)| *via);
        let hop = match trip.domain.neighbour(next) {
            Some(Neighbour { mac, member: at }) if at == target.member => Hop::At(mac),
            _ => {
                let asker = Arrival { domain: trip.domain, member: &member, at: target.member };
                self.ask(&asker, port, next);
                Hop::Unknown(next)
            }
        };
        Ok(Exit { target, port, member, hop })
    }
}
