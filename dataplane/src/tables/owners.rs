//! Which workers have a port.

use std::fmt;

use super::WorkerId;

/// The workers that have a port's halves. Most ports have one; a port whose queues are spread has several, each with receiving
/// queues and a sending half of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owners {
    home: WorkerId,
    /// A bit for each of the first [`Owners::MOST`] workers.
    all: u64,
}

impl Owners {
    /// Only workers with a lower number can share a port.
    pub const MOST: u16 = 64;

    /// One worker has all of it.
    pub const fn one(home: WorkerId) -> Self {
        Self { home, all: bit(home) }
    }

    /// `home`, to which others hand frames for the port, and these.
    pub fn shared(home: WorkerId, others: impl IntoIterator<Item = WorkerId>) -> Self {
        Self { home, all: others.into_iter().fold(bit(home), |all, other| all | bit(other)) }
    }

    /// The worker that those without a share hand frames to.
    #[inline]
    pub const fn home(self) -> WorkerId {
        self.home
    }

    /// Whether `worker` has a share.
    #[inline]
    pub fn has(self, worker: WorkerId) -> bool {
        worker == self.home || self.all & bit(worker) != 0
    }

    /// Whether more than one has.
    pub const fn is_shared(self) -> bool {
        self.all & !bit(self.home) != 0
    }

    /// All of them, the home first.
    pub fn iter(self) -> impl Iterator<Item = WorkerId> {
        let others =
            (0..Self::MOST).map(WorkerId).filter(move |other| *other != self.home && self.has(*other));
        std::iter::once(self.home).chain(others)
    }
}

const fn bit(worker: WorkerId) -> u64 {
    if worker.0 < Owners::MOST { 1 << worker.0 } else { 0 }
}

impl From<WorkerId> for Owners {
    fn from(worker: WorkerId) -> Self {
        Self::one(worker)
    }
}

impl fmt::Display for Owners {
    /// Their numbers: `0` or `0, 1, 3`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, worker) in self.iter().enumerate() {
            let comma = if nth == 0 { "" } else { ", " };
            write!(f, "{comma}{}", worker.0)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_its_homes_and_theirs_who_share_it() {
        let owners = Owners::shared(WorkerId(2), [WorkerId(2), WorkerId(0), WorkerId(63)]);
        let has: Vec<u16> = (0..200).filter(|worker| owners.has(WorkerId(*worker))).collect();
        assert_eq!((has, owners.is_shared(), owners.to_string()), (vec![0, 2, 63], true, "2, 0, 63".into()));
    }

    #[test]
    fn a_worker_beyond_the_set_can_be_the_only_one() {
        let owners = Owners::one(WorkerId(100));
        assert!(owners.has(WorkerId(100)) && !owners.has(WorkerId(36)) && !owners.is_shared());
        assert_eq!(owners.iter().collect::<Vec<_>>(), [WorkerId(100)]);
    }
}
