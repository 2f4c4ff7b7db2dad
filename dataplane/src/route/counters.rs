//! What is counted for a routing domain and for each of its routes. Several workers may use one route, so these are added to
//! atomically; a run of packets with one route is added once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vwire_proto::stats::{DROP_SLOTS, DropReason};

/// Routes whose counters are made at once.
const CHUNK: usize = 1024;

/// Why a packet that had a route was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum RouteDrop {
    /// Its time to live was over.
    TtlExceeded,
    /// It is longer than the port's MTU.
    TooBig,
    /// Nobody said in time which hardware address the next hop has.
    NoNeighbour,
    /// The port is not there, or its worker has no room.
    EgressDown,
    /// The same as [`Self::NoNeighbour`], with too many packets waiting for an answer already.
    WaitFull,
}

/// How many kinds of [`RouteDrop`] there are.
const DROPS: usize = RouteDrop::ALL.len();

impl RouteDrop {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::TtlExceeded, Self::TooBig, Self::NoNeighbour, Self::EgressDown, Self::WaitFull];

    /// The same reason as ports count it.
    pub const fn reason(self) -> DropReason {
        match self {
            Self::TtlExceeded => DropReason::TtlExceeded,
            Self::TooBig => DropReason::TooBig,
            Self::NoNeighbour => DropReason::NoNeighbour,
            Self::EgressDown => DropReason::EgressDown,
            Self::WaitFull => DropReason::NeighbourQueueFull,
        }
    }
}

/// One route's counters.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct RouteCounters {
    packets: AtomicU64,
    bytes: AtomicU64,
    drops: [AtomicU64; DROPS],
}

/// A reading of a route's counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RouteReading {
    /// Packets that were given to the port, and their bytes with IP headers.
    pub forwarded: (u64, u64),
    /// Packets that were not, by [`RouteDrop`].
    pub drops: [u64; DROPS],
}

impl RouteCounters {
    /// Counts packets that were given to the port.
    #[inline]
    pub fn forwarded(&self, packets: u64, bytes: u64) {
        self.packets.fetch_add(packets, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts a packet that was not.
    pub fn dropped(&self, why: RouteDrop) {
        self.drops[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn reset(&self) {
        let all = [&self.packets, &self.bytes].into_iter().chain(&self.drops);
        all.for_each(|counter| counter.store(0, Ordering::Relaxed));
    }

    /// What was counted.
    pub fn read(&self) -> RouteReading {
        RouteReading {
            forwarded: (self.packets.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed)),
            drops: std::array::from_fn(|i| self.drops[i].load(Ordering::Relaxed)),
        }
    }
}

/// What the domain did beyond passing packets on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Sent {
    /// Answers to ARP requests and neighbour solicitations.
    Answers,
    /// Answers to echo requests.
    Echoes,
    /// ICMP errors.
    Errors,
    /// ARP requests and neighbour solicitations of its own.
    Questions,
    /// Pieces of packets that were too long for the port that they left by.
    Fragments,
    /// Not sent, but kept for a while: packets whose next hop had to be asked for.
    Waited,
}

impl Sent {
    /// How many kinds there are.
    pub const KINDS: usize = Self::Waited as usize + 1;
}

/// A domain's counters.
#[derive(Debug)]
pub struct DomainCounters {
    packets: AtomicU64,
    bytes: AtomicU64,
    drops: [AtomicU64; DROP_SLOTS],
    sent: [AtomicU64; Sent::KINDS],
}

/// A reading of a domain's counters.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DomainReading {
    /// Packets that were given to a port, and their bytes with IP headers.
    pub forwarded: (u64, u64),
    /// Frames that were not, for each reason that occurred.
    pub drops: Vec<(DropReason, u64)>,
    /// What the domain did beyond that, by [`Sent`].
    pub sent: [u64; Sent::KINDS],
}

impl Default for DomainCounters {
    fn default() -> Self {
        Self {
            packets: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            drops: [const { AtomicU64::new(0) }; DROP_SLOTS],
            sent: [const { AtomicU64::new(0) }; Sent::KINDS],
        }
    }
}

impl DomainCounters {
    /// Counts packets that were given to a port.
    #[inline]
    pub fn forwarded(&self, packets: u64, bytes: u64) {
        self.packets.fetch_add(packets, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts frames that were not.
    #[inline]
    pub fn dropped(&self, reason: DropReason, frames: u64) {
        self.drops[reason as usize].fetch_add(frames, Ordering::Relaxed);
    }

    /// Counts packets of the domain's own.
    pub fn sent(&self, what: Sent, packets: u64) {
        self.sent[what as usize].fetch_add(packets, Ordering::Relaxed);
    }

    /// What was counted.
    pub fn read(&self) -> DomainReading {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let drops = DropReason::ALL.iter().map(|reason| (*reason, read(&self.drops[*reason as usize])));
        DomainReading {
            forwarded: (read(&self.packets), read(&self.bytes)),
            drops: drops.filter(|(_, count)| *count > 0).collect(),
            sent: std::array::from_fn(|i| read(&self.sent[i])),
        }
    }
}

/// The counters of all routes, made a thousand at a time.
#[derive(Debug, Clone, Default)]
pub struct RouteTable(Vec<Arc<[RouteCounters]>>);

impl RouteTable {
    /// The counters of route `number`.
    #[inline]
    pub fn get(&self, number: u32) -> Option<&RouteCounters> {
        self.0.get(number as usize / CHUNK)?.get(number as usize % CHUNK)
    }

    /// Gives `number` to a new route: its counters are there, and zero.
    pub fn open(&mut self, number: u32) {
        while self.0.len() <= number as usize / CHUNK {
            self.0.push((0..CHUNK).map(|_| RouteCounters::default()).collect());
        }
        if let Some(counters) = self.get(number) {
            counters.reset();
        }
    }
}
