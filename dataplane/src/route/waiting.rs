//! Packets whose next hop has not said yet which hardware address it has: kept whole, as they came, until that is known or they have
//! waited long enough. A worker's own.
//!
//! Bounded for each next hop, each port that packets come by, and in all, so that nobody can use up the room of others. Buffers are used
//! again; only the first packets of a worker's life make some.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::burst::Offload;
use crate::port::PortIndex;

/// How long a packet waits: three questions, a second each (RFC 4861's MAX_MULTICAST_SOLICIT and RETRANS_TIMER).
pub const PATIENCE: Duration = Duration::from_secs(3);
/// How often it is looked after what waits while nothing is published: questions are asked again then.
const AGAIN: Duration = Duration::from_millis(100);
/// Most packets for one next hop. Next hops that share a place share the room.
pub const PER_HOP: u8 = 16;
/// Most packets that came by one port.
pub const PER_PORT: u16 = 64;
/// Most packets.
pub const MOST: usize = 512;
/// Most bytes that came by one port.
const PORT_BYTES: usize = 256 << 10;
/// Most bytes.
const MOST_BYTES: usize = 2 << 20;
/// Longest buffer that is kept for the next packet.
const USUAL: usize = 2048;
/// Places of next hops.
const HOPS: usize = 256;

/// One packet that waits.
pub struct Held {
    /// The port that it came by.
    pub ingress: PortIndex,
    /// When it came.
    pub since: Instant,
    /// The frame as it came.
    pub bytes: Vec<u8>,
    /// What it owes.
    pub offload: Option<Offload>,
    hop: usize,
}

/// Who has to answer before a packet can go on.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// The port behind which.
    pub port: PortIndex,
    /// The next hop.
    pub address: IpAddr,
}

impl Asked {
    fn place(&self) -> usize {
        let bits = match self.address {
            IpAddr::V4(v4) => u32::from(v4).into(),
            IpAddr::V6(v6) => u128::from(v6),
        };
        let mixed = (bits ^ bits >> 64) as u64 ^ u64::from(self.port.0) << 32;
        (mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as usize % HOPS
    }
}

#[derive(Clone, Copy, Default)]
struct Share {
    packets: u16,
    bytes: usize,
}

/// See the module.
pub struct Waiting {
    held: Vec<Held>,
    /// Empty, with the room of a list that was worked through.
    list: Vec<Held>,
    buffers: Vec<Vec<u8>>,
    hops: [u8; HOPS],
    ports: Vec<Share>,
    bytes: usize,
    looked: Option<(u64, Instant)>,
}

impl Default for Waiting {
    fn default() -> Self {
        Self {
            held: Vec::new(),
            list: Vec::new(),
            buffers: Vec::new(),
            hops: [0; HOPS],
            ports: Vec::new(),
            bytes: 0,
            looked: None,
        }
    }
}

impl Waiting {
    /// True if nothing waits.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// How many packets wait.
    pub const fn len(&self) -> usize {
        self.held.len()
    }

    /// Keeps a packet of `len` bytes, which `fill` puts into a buffer. False, and nothing is done, if there is no room for it.
    pub fn put(
        &mut self,
        (ingress, asked): (PortIndex, Asked),
        since: Instant,
        (len, offload): (usize, Option<Offload>),
        fill: impl FnOnce(&mut Vec<u8>),
    ) -> bool {
        if self.ports.len() <= ingress.slot() {
            self.ports.resize(ingress.slot() + 1, Share::default());
        }
        let (hop, share) = (asked.place(), &mut self.ports[ingress.slot()]);
        let full = share.packets >= PER_PORT || share.bytes + len > PORT_BYTES || self.hops[hop] >= PER_HOP;
        if full || self.held.len() >= MOST || self.bytes + len > MOST_BYTES {
            return false;
        }
        let mut bytes = self.buffers.pop().unwrap_or_default();
        bytes.clear();
        fill(&mut bytes);
        share.packets += 1;
        share.bytes += bytes.len();
        self.bytes += bytes.len();
        self.hops[hop] += 1;
        self.held.push(Held { ingress, since, bytes, offload, hop });
        true
    }

    /// Whether there is reason to look after what waits: other tables than at the last time, or it is long ago. It is taken as done.
    pub fn is_due(&mut self, publication: u64, now: Instant) -> bool {
        let lately =
            |(last, when): (u64, Instant)| last == publication && now.saturating_duration_since(when) < AGAIN;
        if self.is_empty() || self.looked.is_some_and(lately) {
            return false;
        }
        self.looked = Some((publication, now));
        true
    }

    /// Takes all that waits, in the order in which it came. Each is to be given back.
    pub fn take(&mut self) -> Vec<Held> {
        self.hops.fill(0);
        self.ports.fill(Share::default());
        self.bytes = 0;
        std::mem::replace(&mut self.held, std::mem::take(&mut self.list))
    }

    /// The buffers of packets that need it no more.
    pub fn give_back(&mut self, mut list: Vec<Held>) {
        for mut held in list.drain(..) {
            held.bytes.shrink_to(USUAL);
            self.buffers.push(held.bytes);
        }
        self.buffers.truncate(MOST);
        self.list = list;
    }

    /// Forgets what came by a port that is gone. Returns how many packets that were.
    pub fn forget(&mut self, port: PortIndex) -> u64 {
        let before = self.held.len();
        for held in self.held.extract_if(.., |held| held.ingress == port) {
            self.bytes -= held.bytes.len();
            self.hops[held.hop] -= 1;
            self.buffers.push(held.bytes);
        }
        if let Some(share) = self.ports.get_mut(port.slot()) {
            *share = Share::default();
        }
        (before - self.held.len()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(last: u8) -> Asked {
        Asked { port: PortIndex(9), address: IpAddr::from([10, 0, 0, last]) }
    }

    fn put(waiting: &mut Waiting, port: u16, host: u8, bytes: &[u8]) -> bool {
        let fill = |buffer: &mut Vec<u8>| buffer.extend_from_slice(bytes);
        waiting.put((PortIndex(port), asked(host)), Instant::now(), (bytes.len(), None), fill)
    }

    #[test]
    fn each_hop_and_each_port_has_its_bound_and_all_together_one() {
        let mut waiting = Waiting::default();
        assert_eq!((0..100).filter(|_| put(&mut waiting, 1, 1, b"x")).count(), usize::from(PER_HOP));
        let of_port = (0..=255).flat_map(|host| [host; 4]).filter(|host| put(&mut waiting, 1, *host, b"x"));
        assert_eq!(of_port.count(), usize::from(PER_PORT - u16::from(PER_HOP)));
        assert!(put(&mut waiting, 2, 77, b"x"), "another port has its own room");
        for port in 2..200 {
            let _all = (0..=255).filter(|host| put(&mut waiting, port, *host, b"x")).count();
        }
        assert_eq!(waiting.len(), MOST);
        assert!(!put(&mut waiting, 300, 1, b"x"));
    }

    #[test]
    fn long_packets_have_less_room() {
        let (mut waiting, long) = (Waiting::default(), vec![7; 60_000]);
        assert_eq!((0..=255).filter(|host| put(&mut waiting, 1, *host, &long)).count(), 4);
        for port in 2..100 {
            let _all = (0..8).filter(|host| put(&mut waiting, port, host * 16, &long)).count();
        }
        assert!(waiting.len() * long.len() <= MOST_BYTES && waiting.len() > 30);
    }

    #[test]
    fn what_waits_comes_back_in_order_and_leaves_room() {
        let mut waiting = Waiting::default();
        for round in 0..3u8 {
            for i in 0..10 {
                assert!(put(&mut waiting, 1, i, &[round, i]));
            }
            assert!(put(&mut waiting, 2, 99, &[round, 99]));
            assert_eq!(waiting.forget(PortIndex(2)), 1);
            let list = waiting.take();
            assert!(waiting.is_empty());
            let seen: Vec<_> = list.iter().map(|held| (held.ingress, held.bytes.clone())).collect();
            assert_eq!(seen, (0..10).map(|i| (PortIndex(1), vec![round, i])).collect::<Vec<_>>());
            waiting.give_back(list);
        }
    }

    #[test]
    fn it_is_looked_after_when_tables_are_new_or_after_a_while() {
        let (mut waiting, start) = (Waiting::default(), Instant::now());
        assert!(!waiting.is_due(1, start), "nothing waits");
        assert!(put(&mut waiting, 1, 1, b"x"));
        assert!(waiting.is_due(1, start));
        assert!(!waiting.is_due(1, start + AGAIN / 2));
        assert!(waiting.is_due(2, start + AGAIN / 2));
        assert!(waiting.is_due(2, start + AGAIN * 2));
    }
}
