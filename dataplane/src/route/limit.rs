//! How much a routing domain says by itself: so much a second for each port, so that nobody can make the engine work for him, or
//! use up what others are due.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::port::PortIndex;

/// Messages that may be sent at once.
const BURST: u32 = 64;
/// Time after which one more may be sent: a thousand a second, as Linux (`icmp_msgs_per_sec`).
const REFILL: Duration = Duration::from_millis(1);
/// A next hop that does not answer is asked this often (RFC 4861's RETRANS_TIMER is a second; the first packets wait for it).
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// Next hops that are remembered as asked.
const ASKED: usize = 256;

#[derive(Clone, Copy)]
struct Bucket {
    left: u32,
    since: Instant,
}

/// What each port has left, and who was asked lately. A worker's own.
#[derive(Default)]
pub struct Limits {
    buckets: Vec<Option<Bucket>>,
    asked: Vec<Option<(PortIndex, IpAddr, Instant)>>,
}

impl Limits {
    /// Whether one more message may be sent because of something that came by `port`.
    pub fn take(&mut self, port: PortIndex, now: Instant) -> bool {
        if self.buckets.len() <= port.slot() {
            self.buckets.resize(port.slot() + 1, None);
        }
        let bucket = self.buckets[port.slot()].get_or_insert(Bucket { left: BURST, since: now });
        let earned = now.saturating_duration_since(bucket.since).as_micros() / REFILL.as_micros();
        if earned > 0 {
            let earned = u32::try_from(earned).unwrap_or(u32::MAX);
            bucket.since = if earned >= BURST { now } else { bucket.since + REFILL * earned };
            bucket.left = bucket.left.saturating_add(earned).min(BURST);
        }
        let may = bucket.left > 0;
        bucket.left = bucket.left.saturating_sub(1);
        may
    }

    /// Whether it is time to ask who has `address` behind `port`. It is taken as asked.
    pub fn ask(&mut self, port: PortIndex, address: IpAddr, now: Instant) -> bool {
        self.asked.resize(ASKED, None);
        let bits = match address {
            IpAddr::V4(v4) => u32::from(v4).into(),
            IpAddr::V6(v6) => u128::from(v6),
        };
        let mixed = (bits ^ bits >> 64) as u64 ^ u64::from(port.0) << 32;
        let slot = &mut self.asked[(mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as usize % ASKED];
        let lately = |(who, what, when): &(PortIndex, IpAddr, Instant)| {
            (*who, *what) == (port, address) && now.saturating_duration_since(*when) < ASK_AGAIN
        };
        if slot.as_ref().is_some_and(lately) {
            return false;
        }
        *slot = Some((port, address, now));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_has_a_burst_and_then_a_thousand_a_second() {
        let (mut limits, start) = (Limits::default(), Instant::now());
        let (one, two) = (PortIndex(0), PortIndex(5));
        let taken = |limits: &mut Limits, port, now| (0..2000).filter(|_| limits.take(port, now)).count();
        assert_eq!(taken(&mut limits, one, start), BURST as usize);
        assert_eq!(taken(&mut limits, two, start), BURST as usize, "each has its own");
        assert_eq!(taken(&mut limits, one, start + REFILL * 10), 10);
        assert_eq!(taken(&mut limits, one, start + REFILL * 1_000_000), BURST as usize);
        let second = (0..1000).filter(|i| limits.take(two, start + REFILL * (1 + i))).count();
        assert_eq!(second, 1000);
    }

    #[test]
    fn a_silent_neighbour_is_asked_again_after_a_while_only() {
        let (mut limits, start) = (Limits::default(), Instant::now());
        let address = "10.0.0.9".parse().unwrap();
        assert!(limits.ask(PortIndex(1), address, start));
        assert!(!limits.ask(PortIndex(1), address, start + ASK_AGAIN / 2));
        assert!(limits.ask(PortIndex(2), address, start), "another port is another question");
        assert!(limits.ask(PortIndex(1), address, start + ASK_AGAIN * 2));
    }
}
