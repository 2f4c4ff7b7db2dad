//! Who has which hardware address: asked for, kept fresh, and doubted. Sans IO: it says what to ask and is told what was heard.
//!
//! Only addresses that somebody wants are kept, so nobody fills it up by talking. ARP has no proof of anything; what can be judged is:
//! * an answer counts for an address that was asked for, or that is known already;
//! * a claim that a known address has moved is not believed while the old station answers: that one is asked first, and only when it is
//!   silent everybody is.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::route::domain::Mac;

/// After so long without a sign of life a station is asked whether it is still there. Linux takes 15 to 45 s.
pub const REFRESH: Duration = Duration::from_secs(20);
/// How long a known station has for an answer …
pub const PROBE: Duration = Duration::from_millis(300);
/// … and how often it is asked.
pub const PROBES: u8 = 3;
/// How long everybody has for an answer (RFC 4861's RETRANS_TIMER) …
pub const RETRY: Duration = Duration::from_secs(1);
/// … how often everybody is asked so …
pub const RETRIES: u8 = 3;
/// … and how often after that, for as long as somebody wants the address.
pub const SLOW: Duration = Duration::from_secs(5);

/// Something to be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// Who has this address?
    pub address: IpAddr,
    /// Only this station is asked; everybody if `None`.
    pub to: Option<Mac>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Everybody was asked so often, without an answer.
    Asked(u8),
    /// It is there.
    Known(Mac),
    /// It was there, and has been asked so often whether it still is.
    Probed(Mac, u8),
}

#[derive(Debug, Clone, Copy)]
struct Neighbour {
    state: State,
    /// When something is to be done about it.
    next: Instant,
    wanted: usize,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Neighbours(BTreeMap<IpAddr, Neighbour>);

impl Neighbours {
    /// One more wants to know who has `address`.
    pub fn want(&mut self, address: IpAddr, now: Instant) {
        let new = Neighbour { state: State::Asked(0), next: now, wanted: 0 };
        self.0.entry(address).or_insert(new).wanted += 1;
    }

    /// One less.
    pub fn leave(&mut self, address: IpAddr) {
        if let Some(neighbour) = self.0.get_mut(&address) {
            neighbour.wanted -= 1;
            if neighbour.wanted == 0 {
                self.0.remove(&address);
            }
        }
    }

    /// Who has `address`.
    pub fn get(&self, address: IpAddr) -> Option<Mac> {
        match self.0.get(&address)?.state {
            State::Known(mac) | State::Probed(mac, _) => Some(mac),
            State::Asked(_) => None,
        }
    }

    /// Everybody who is wanted, and who they are.
    pub fn iter(&self) -> impl Iterator<Item = (IpAddr, Option<Mac>)> {
        self.0.keys().map(|address| (*address, self.get(*address)))
    }

    /// Forgets who everybody was: the link was down, and others may be there now.
    pub fn forget(&mut self, now: Instant) {
        for neighbour in self.0.values_mut() {
            (neighbour.state, neighbour.next) = (State::Asked(0), now);
        }
    }

    /// Somebody says that `address` is at `mac`. True if that is news that counts.
    pub fn heard(&mut self, address: IpAddr, mac: Mac, now: Instant) -> bool {
        let Some(neighbour) = self.0.get_mut(&address) else { return false };
        match neighbour.state {
            _ if !mac.is_station() => false,
            State::Asked(_) => {
                (neighbour.state, neighbour.next) = (State::Known(mac), now + REFRESH);
                true
            }
            State::Known(known) | State::Probed(known, _) if known == mac => {
                (neighbour.state, neighbour.next) = (State::Known(mac), now + REFRESH);
                false
            }
            State::Known(known) => {
                (neighbour.state, neighbour.next) = (State::Probed(known, 0), now);
                false
            }
            State::Probed(..) => false,
        }
    }

    /// Somebody who knows says who has `address`. True if that is news.
    pub fn told(&mut self, address: IpAddr, mac: Option<Mac>, now: Instant) -> bool {
        let known = self.get(address);
        let Some(neighbour) = self.0.get_mut(&address) else { return false };
        match mac {
            Some(mac) => (neighbour.state, neighbour.next) = (State::Known(mac), now + REFRESH),
            None if known.is_some() => (neighbour.state, neighbour.next) = (State::Asked(0), now),
            None => {}
        }
        known != mac
    }

    /// When [`Neighbours::turn`] is to be called next.
    pub fn due(&self) -> Option<Instant> {
        self.0.values().map(|neighbour| neighbour.next).min()
    }

    /// What is to be asked now. True as well if somebody is not known any more.
    pub fn turn(&mut self, now: Instant) -> (Vec<Question>, bool) {
        let (mut questions, mut lost) = (Vec::new(), false);
        for (address, neighbour) in self.0.iter_mut().filter(|(_, neighbour)| neighbour.next <= now) {
            let (state, wait, to) = match neighbour.state {
                State::Known(mac) => (State::Probed(mac, 1), PROBE, Some(mac)),
                State::Probed(mac, asked) if asked < PROBES => {
                    (State::Probed(mac, asked + 1), PROBE, Some(mac))
                }
                State::Probed(..) => {
                    lost = true;
                    (State::Asked(1), RETRY, None)
                }
                State::Asked(asked) if asked < RETRIES => (State::Asked(asked + 1), RETRY, None),
                State::Asked(asked) => (State::Asked(asked), SLOW, None),
            };
            (neighbour.state, neighbour.next) = (state, now + wait);
            questions.push(Question { address: *address, to });
        }
        (questions, lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const NEW: Mac = Mac([2, 0, 0, 0, 0, 2]);

    fn host(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn wanted(now: Instant) -> Neighbours {
        let mut neighbours = Neighbours::default();
        neighbours.want(host(1), now);
        neighbours
    }

    /// Lets time pass until something is due, and says what is asked then.
    fn next(neighbours: &mut Neighbours, now: &mut Instant) -> (Vec<Option<Mac>>, bool) {
        let due = neighbours.due().unwrap().max(*now);
        *now = due;
        let (questions, lost) = neighbours.turn(due);
        (questions.iter().map(|question| question.to).collect(), lost)
    }

    #[test]
    fn everybody_is_asked_until_somebody_answers() {
        let start = Instant::now();
        let (mut now, mut neighbours) = (start, wanted(start));
        for _ in 0..RETRIES {
            assert_eq!(next(&mut neighbours, &mut now), (vec![None], false));
        }
        assert!(now < start + RETRY * 3);
        next(&mut neighbours, &mut now);
        let before = now;
        next(&mut neighbours, &mut now);
        assert_eq!(now - before, SLOW, "nobody answers, and is asked less often");
        assert_eq!(neighbours.get(host(1)), None);
        assert!(neighbours.heard(host(1), OLD, now));
        assert_eq!(neighbours.get(host(1)), Some(OLD));
    }

    #[test]
    fn a_station_is_asked_before_it_is_forgotten() {
        let mut now = Instant::now();
        let mut neighbours = wanted(now);
        next(&mut neighbours, &mut now);
        neighbours.heard(host(1), OLD, now);
        let heard = now;
        assert_eq!(next(&mut neighbours, &mut now), (vec![Some(OLD)], false));
        assert_eq!(now - heard, REFRESH);
        assert!(!neighbours.heard(host(1), OLD, now), "no news");
        for _ in 0..PROBES {
            assert_eq!(next(&mut neighbours, &mut now), (vec![Some(OLD)], false));
            assert_eq!(neighbours.get(host(1)), Some(OLD));
        }
        assert_eq!(next(&mut neighbours, &mut now), (vec![None], true));
        assert_eq!(neighbours.get(host(1)), None);
    }

    #[test]
    fn a_claim_is_not_believed_while_the_old_station_answers() {
        let mut now = Instant::now();
        let mut neighbours = wanted(now);
        next(&mut neighbours, &mut now);
        neighbours.heard(host(1), OLD, now);
        assert!(!neighbours.heard(host(1), NEW, now));
        let claimed = now;
        assert_eq!(next(&mut neighbours, &mut now), (vec![Some(OLD)], false));
        assert_eq!(now, claimed, "the old one is asked at once");
        assert!(!neighbours.heard(host(1), NEW, now), "saying it again does not help");
        neighbours.heard(host(1), OLD, now);
        assert_eq!(neighbours.get(host(1)), Some(OLD));

        neighbours.heard(host(1), NEW, now);
        for _ in 0..PROBES {
            next(&mut neighbours, &mut now);
        }
        assert_eq!(next(&mut neighbours, &mut now), (vec![None], true));
        assert!(neighbours.heard(host(1), NEW, now), "the old one is silent");
        assert_eq!(neighbours.get(host(1)), Some(NEW));
    }

    #[test]
    fn who_knows_is_believed_at_once() {
        let now = Instant::now();
        let mut neighbours = wanted(now);
        assert!(!neighbours.told(host(1), None, now) && !neighbours.told(host(2), Some(OLD), now));
        assert!(neighbours.told(host(1), Some(OLD), now) && !neighbours.told(host(1), Some(OLD), now));
        assert!(neighbours.told(host(1), Some(NEW), now));
        assert_eq!((neighbours.get(host(1)), neighbours.due()), (Some(NEW), Some(now + REFRESH)));
        assert!(neighbours.told(host(1), None, now) && !neighbours.told(host(1), None, now));
        assert_eq!((neighbours.get(host(1)), neighbours.due()), (None, Some(now)));
    }

    #[test]
    fn what_nobody_wants_is_not_kept_and_groups_are_no_stations() {
        let now = Instant::now();
        let mut neighbours = wanted(now);
        assert!(!neighbours.heard(host(2), OLD, now));
        assert!(
            !neighbours.heard(host(1), Mac::BROADCAST, now) && !neighbours.heard(host(1), Mac([0; 6]), now)
        );
        assert!(!neighbours.heard(host(1), Mac([0x33, 0x33, 0, 0, 0, 1]), now));
        assert_eq!(neighbours.iter().collect::<Vec<_>>(), [(host(1), None)]);
        neighbours.want(host(1), now);
        neighbours.leave(host(1));
        assert_eq!(neighbours.iter().count(), 1);
        neighbours.leave(host(1));
        assert_eq!((neighbours.iter().count(), neighbours.due()), (0, None));
    }
}
