//! Lines that a peer can cause: some in a minute, the rest is counted.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How many lines of one kind in [`TIME`]: enough to see what is going on.
const MOST: u32 = 20;
/// After which more may be said.
const TIME: Duration = Duration::from_secs(60);

/// Keeps a peer from filling the log. One for each kind of line.
#[derive(Debug, Default)]
pub struct Ration(Mutex<Said>);

#[derive(Debug, Default)]
struct Said {
    since: Option<Instant>,
    lines: u32,
    withheld: u64,
}

impl Ration {
    /// Nothing said yet.
    pub const fn new() -> Self {
        Self(Mutex::new(Said { since: None, lines: 0, withheld: 0 }))
    }

    /// Whether one more line may be said now: then with how many were withheld since the last one.
    pub fn take(&self) -> Option<u64> {
        self.take_at(Instant::now())
    }

    fn take_at(&self, now: Instant) -> Option<u64> {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if said.since.is_none_or(|since| now.saturating_duration_since(since) >= TIME) {
            (said.since, said.lines) = (Some(now), 0);
        }
        if said.lines == MOST {
            said.withheld += 1;
            return None;
        }
        said.lines += 1;
        Some(std::mem::take(&mut said.withheld))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_some_lines_and_a_count() {
        let (ration, start) = (Ration::new(), Instant::now());
        let said = (0..1000).filter(|_| ration.take_at(start).is_some()).count();
        assert_eq!(said, MOST as usize);
        assert_eq!(ration.take_at(start + TIME / 2), None);
        assert_eq!(ration.take_at(start + TIME), Some(981), "the next line says how many there were");
        assert_eq!(ration.take_at(start + TIME), Some(0));
    }
}
