//! Frames to send, gathered into runs of equal datagrams.
//!
//! A system call that sends one datagram costs about as much as one that sends 128 of them, if they lie in one buffer, have one
//! length (the last may be shorter), one destination and one source port. So frames are copied, each once and behind its
//! header, into a *group* for its (tunnel, source port, length), and a full group is one call.
//!
//! # Order
//! A flow always has the same source port, so all its frames meet in one *lane* (tunnel, source port). A lane has a few open
//! groups of different lengths, each with a filter of the flows in it. A frame whose flow waits in a group of another length
//! either becomes that group's shorter last datagram, or has that group sent first: no flow overtakes itself, while frames of
//! different flows fill groups of their own lengths.
//!
//! # Memory
//! Buffers come from a pool made at the start, and are taken by open groups only: a tunnel without traffic has none.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::port::PortIndex;
use crate::stats::Counters;

/// Most bytes in a group: what fits behind IPv4 and UDP headers in one (virtual) packet.
pub const GROUP_BYTES: usize = 65_507;
const BUFFER: usize = 65_536;
/// Open groups of a lane.
const WAYS: usize = 4;
/// Lanes that can be open at once. Two that share a slot send each other's groups early, nothing worse.
const LANES: usize = 1024;
/// Turns that a group which is not full may wait for more.
const HOLD_TURNS: u8 = 7;
/// The same as a time, for workers with many ports, whose turns are long: groups then wait for one turn more and no longer.
const HOLD_TIME: Duration = Duration::from_micros(50);

/// Where datagrams go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Destination {
    /// The tunnel's port: where they are counted.
    pub port: PortIndex,
    /// Which of the underlay's source ports they leave by.
    pub socket: u16,
    /// The peer's address and UDP port.
    pub remote: SocketAddr,
}

/// A group that is ready to be sent.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'b> {
    /// Where to.
    pub to: Destination,
    /// Bytes of each datagram but the last, which may be shorter.
    pub datagram_len: usize,
    /// The datagrams, one behind the other.
    pub bytes: &'b [u8],
}

impl Batch<'_> {
    /// How many datagrams there are.
    pub const fn datagrams(&self) -> usize {
        self.bytes.len().div_ceil(self.datagram_len)
    }
}

/// What sends groups: sockets, or a test.
pub trait Carrier {
    /// Most datagrams that one call takes.
    fn most_datagrams(&self) -> usize;

    /// Sends a group, and counts each of its frames as sent or dropped at the destination's port.
    fn carry(&mut self, batch: &Batch<'_>, counters: &Counters);
}

#[derive(Clone, Copy)]
struct Group {
    to: Destination,
    lane: u16,
    way: u8,
    held: u8,
    held_since: Option<Instant>,
    datagrams: u16,
    len: u32,
}

impl Group {
    const fn new(to: Destination, lane: u16, way: u8) -> Self {
        Self { to, lane, way, held: 0, held_since: None, datagrams: 0, len: 0 }
    }

    /// True if the group may wait for another turn after this one, which ends `now`.
    fn may_wait(&mut self, now: Instant) -> bool {
        self.held += 1;
        let since = *self.held_since.get_or_insert(now);
        self.held <= HOLD_TURNS && now.duration_since(since) <= HOLD_TIME
    }
}

/// The flows that have frames in a group: a Bloom filter of 1024 bits, two for each flow. It may name a flow too many (one
/// time in 70 with 64 flows), which sends a group early; never one too few.
#[derive(Clone, Copy, Default)]
struct Flows([u64; 16]);

impl Flows {
    #[inline]
    const fn has(&self, flow: u32) -> bool {
        let ((a, a_bit), (b, b_bit)) = Self::bits(flow);
        self.0[a] & a_bit != 0 && self.0[b] & b_bit != 0
    }

    #[inline]
    const fn add(&mut self, flow: u32) {
        let ((a, a_bit), (b, b_bit)) = Self::bits(flow);
        self.0[a] |= a_bit;
        self.0[b] |= b_bit;
    }

    /// Word and bit of the hash's lowest ten bits, and of the next ten.
    #[inline]
    const fn bits(flow: u32) -> ((usize, u64), (usize, u64)) {
        let (low, high) = (flow, flow >> 10);
        (((low >> 6 & 15) as usize, 1 << (low & 63)), ((high >> 6 & 15) as usize, 1 << (high & 63)))
    }
}

/// The open groups of one (tunnel, source port).
#[derive(Clone, Copy, Default)]
struct Lane {
    key: Option<(PortIndex, u16)>,
    /// Datagram length of each way's group; 0 for a way without one.
    lens: [u32; WAYS],
    groups: [u16; WAYS],
    flows: [Flows; WAYS],
}

impl Lane {
    /// The way of this length, and the ways of other lengths (as bits) in which the flow has, or may have, frames waiting.
    #[inline]
    fn find(&self, flow: u32, len: usize) -> (Option<usize>, u8) {
        let (mut exact, mut elsewhere) = (None, 0);
        for way in 0..WAYS {
            match self.lens[way] as usize {
                0 => {}
                open if open == len => exact = Some(way),
                _ => elsewhere |= u8::from(self.flows[way].has(flow)) << way,
            }
        }
        (exact, elsewhere)
    }

    /// The open way with the shortest datagrams that are longer than `len`, among the `allowed` ones.
    fn next_longer(&self, len: usize, allowed: u8) -> Option<usize> {
        let longer = |way: &usize| allowed >> way & 1 == 1 && self.lens[*way] as usize > len;
        (0..WAYS).filter(longer).min_by_key(|way| self.lens[*way])
    }
}

/// A way in a lane, and whether its group is to be sent right after the next datagram (which is shorter than the others).
struct Choice {
    way: usize,
    last: bool,
}

/// All groups of an underlay's sending half.
pub struct Groups<C> {
    carrier: C,
    buffers: Vec<u8>,
    groups: Vec<Group>,
    free: Vec<u16>,
    open: Vec<u64>,
    lanes: Vec<Lane>,
    next_evicted: usize,
}

impl<C: Carrier> Groups<C> {
    /// A pool of `buffers` groups (at least 1, at most 4096), 64 KiB of address space each; memory is used only as far as
    /// groups fill it.
    pub fn new(carrier: C, buffers: usize) -> Self {
        let buffers = buffers.clamp(1, 4096);
        let nowhere =
            Destination { port: PortIndex(0), socket: 0, remote: SocketAddr::from(([0, 0, 0, 0], 0)) };
        Self {
            carrier,
            buffers: vec![0; buffers * BUFFER],
            groups: vec![Group::new(nowhere, 0, 0); buffers],
            free: (0..buffers as u16).rev().collect(),
            open: vec![0; buffers.div_ceil(64)],
            lanes: vec![Lane::default(); LANES],
            next_evicted: 0,
        }
    }

    /// Puts a datagram of `len` bytes (1 to [`GROUP_BYTES`]) into a group; `write` fills its place. Sends groups that are full or
    /// in the way.
    #[inline]
    pub fn append(
        &mut self,
        to: &Destination,
        flow: u32,
        len: usize,
        counters: &Counters,
        write: impl FnOnce(&mut [u8]),
    ) {
        debug_assert!((1..=GROUP_BYTES).contains(&len));
        let lane = self.lane(to, counters);
        let choice = match self.lanes[lane].find(flow, len) {
            (Some(way), 0) => Choice { way, last: false },
            (exact, elsewhere) => self.choose(lane, to, flow, len, exact, elsewhere, counters),
        };
        let number = self.lanes[lane].groups[choice.way];
        self.lanes[lane].flows[choice.way].add(flow);
        let group = &mut self.groups[usize::from(number)];
        let at = usize::from(number) * BUFFER + group.len as usize;
        write(&mut self.buffers[at..at + len]);
        group.len += len as u32;
        group.datagrams += 1;
        let full = usize::from(group.datagrams) >= self.carrier.most_datagrams()
            || group.len as usize + self.lanes[lane].lens[choice.way] as usize > GROUP_BYTES;
        if full || choice.last {
            self.close(lane, choice.way, counters);
        }
    }

    /// Sends every group, but for those that may wait for the next turn, if that will bring more: then `hold` is the time now.
    /// True if some wait.
    pub fn flush(&mut self, hold: Option<Instant>, counters: &Counters) -> bool {
        let mut held = false;
        for word in 0..self.open.len() {
            let mut open = self.open[word];
            while open != 0 {
                let group = &mut self.groups[word * 64 + open.trailing_zeros() as usize];
                open &= open - 1;
                if hold.is_some_and(|now| group.may_wait(now)) {
                    held = true;
                } else {
                    let (lane, way) = (usize::from(group.lane), usize::from(group.way));
                    self.close(lane, way, counters);
                }
            }
        }
        held
    }

    /// The carrier.
    pub const fn carrier(&self) -> &C {
        &self.carrier
    }

    /// The lane of a destination. A lane of another destination in its slot is sent first.
    #[inline]
    fn lane(&mut self, to: &Destination, counters: &Counters) -> usize {
        let key = u32::from(to.port.0) << 16 | u32::from(to.socket);
        let lane = (key.wrapping_mul(0x9e37_79b1) >> 22) as usize & (LANES - 1);
        if self.lanes[lane].key != Some((to.port, to.socket)) {
            for way in 0..WAYS {
                self.close(lane, way, counters);
            }
            self.lanes[lane].key = Some((to.port, to.socket));
        }
        lane
    }

    /// Finds a way for a datagram that has none of its length, or whose flow (perhaps) waits `elsewhere`.
    #[cold]
    #[inline(never)]
    #[allow(clippy::too_many_arguments)]
    fn choose(
        &mut self,
        lane: usize,
        to: &Destination,
        flow: u32,
        len: usize,
        exact: Option<usize>,
        elsewhere: u8,
        counters: &Counters,
    ) -> Choice {
        let lane_now = &self.lanes[lane];
        // With frames in the group of its own length a flow must go on there, so nothing may be appended elsewhere.
        let stays = exact.is_some_and(|way| lane_now.flows[way].has(flow));
        let shorter_last = if stays { None } else { lane_now.next_longer(len, elsewhere) };
        for way in (0..WAYS).filter(|way| elsewhere >> way & 1 == 1 && Some(*way) != shorter_last) {
            self.close(lane, way, counters);
        }
        match (shorter_last, exact) {
            (Some(way), _) => Choice { way, last: true },
            (None, Some(way)) => Choice { way, last: false },
            (None, None) => self.choose_new(lane, to, len, counters),
        }
    }

    fn choose_new(&mut self, lane: usize, to: &Destination, len: usize, counters: &Counters) -> Choice {
        if let Some(way) = self.lanes[lane].lens.iter().position(|len| *len == 0) {
            self.open(lane, way, to, len, counters);
            return Choice { way, last: false };
        }
        // More lengths than ways: end the group that fits best with this frame, or make room where most would be sent.
        if let Some(way) = self.lanes[lane].next_longer(len, u8::MAX) {
            return Choice { way, last: true };
        }
        let groups = self.lanes[lane].groups;
        let waiting = |way: &usize| self.groups[usize::from(groups[*way])].datagrams;
        let way = (0..WAYS).max_by_key(waiting).unwrap_or(0);
        self.close(lane, way, counters);
        self.open(lane, way, to, len, counters);
        Choice { way, last: false }
    }

    fn open(&mut self, lane: usize, way: usize, to: &Destination, len: usize, counters: &Counters) {
        if self.free.is_empty() {
            self.evict(counters);
        }
        let Some(number) = self.free.pop() else { unreachable!("evicting frees a group") };
        let at = usize::from(number);
        self.groups[at] = Group::new(*to, lane as u16, way as u8);
        self.open[at / 64] |= 1 << (at % 64);
        let lane = &mut self.lanes[lane];
        lane.lens[way] = len as u32;
        lane.groups[way] = number;
        lane.flows[way] = Flows::default();
    }

    /// Sends a group because its buffer is needed. All are open then; taking them in turn meets the older ones first.
    fn evict(&mut self, counters: &Counters) {
        let group = self.groups[self.next_evicted];
        self.next_evicted = (self.next_evicted + 1) % self.groups.len();
        self.close(usize::from(group.lane), usize::from(group.way), counters);
    }

    /// Sends the way's group, if it has one, and frees its buffer.
    fn close(&mut self, lane: usize, way: usize, counters: &Counters) {
        let lane = &mut self.lanes[lane];
        let datagram_len = std::mem::take(&mut lane.lens[way]) as usize;
        if datagram_len == 0 {
            return;
        }
        let number = lane.groups[way];
        let at = usize::from(number);
        let group = &self.groups[at];
        let bytes = &self.buffers[at * BUFFER..][..group.len as usize];
        self.carrier.carry(&Batch { to: group.to, datagram_len, bytes }, counters);
        self.open[at / 64] &= !(1 << (at % 64));
        self.free.push(number);
    }
}

#[cfg(test)]
mod tests;
