//! Who of two endpoints dials the other.

use std::cmp::Ordering;

use prost_types::Timestamp;

use crate::domain;

/// An endpoint's place in the order of all endpoints of a service: by its first registration, and then by its name.
///
/// The later one dials the earlier one, as Go's endpoints do (cmd-nse-vl3-vpp, `main.go`). There equal times make both dial; here the
/// greater name does. Names are compared without their domain, by which the two know each other differently.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Age {
    seconds: i64,
    nanos: i32,
    name: String,
}

impl Age {
    /// Of the endpoint that is registered as `name` since `time`. Without a time it counts as the earliest.
    pub fn new(name: &str, time: Option<&Timestamp>) -> Self {
        let time = time.copied().unwrap_or_default();
        Self { seconds: time.seconds, nanos: time.nanos, name: domain::target(name).to_owned() }
    }

    /// True if this one is to dial `other`. Of two that can't be told apart (one name in two domains, and one time) each is: which of
    /// their links stays is decided afterwards.
    pub fn dials(&self, other: &Self) -> bool {
        self.key().cmp(&other.key()) != Ordering::Less
    }

    fn key(&self) -> (i64, i32, &str) {
        (self.seconds, self.nanos, &self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn age(name: &str, nanos: i32) -> Age {
        Age::new(name, Some(&Timestamp { seconds: 5, nanos }))
    }

    #[test]
    fn exactly_one_of_two_dials() {
        for (one, other, dials) in [
            (age("a", 2), age("b", 1), true),
            (age("a", 1), age("b", 2), false),
            (age("b", 1), age("a", 1), true),
            (age("a", 1), age("b@other.test", 1), false),
        ] {
            assert_eq!((one.dials(&other), other.dials(&one)), (dials, !dials), "{one:?} {other:?}");
        }
        let unknown = Age::new("z", None);
        assert!(age("a", 0).dials(&unknown) && !unknown.dials(&age("a", 0)));
        assert!(age("a@one", 1).dials(&age("a@two", 1)) && age("a@two", 1).dials(&age("a@one", 1)));
    }
}
