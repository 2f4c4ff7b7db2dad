//! When a registration ends: the earliest of what the registrant wants, what its token and ours allow, and the registry's own limit.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use prost_types::Timestamp;
use tonic::Status;

/// How long an endpoint stays without being renewed, if nobody says otherwise.
pub const DEFAULT: Duration = Duration::from_secs(60);

/// The end of a registration that is made now.
///
/// # Errors
/// INVALID_ARGUMENT if `wanted` is no time, or has passed.
pub fn end(
    wanted: Option<&Timestamp>,
    tokens: Option<&Timestamp>,
    at_most: Duration,
) -> Result<Timestamp, Status> {
    let now = SystemTime::now();
    let mut end = Timestamp::from(now + at_most);
    for limit in tokens.into_iter().chain(wanted) {
        check(limit)?;
        end = earlier(end, *limit);
    }
    if left(&end, now).is_zero() {
        let told = format!("expiration_time: {end} has passed; it is {} here", Timestamp::from(now));
        return Err(Status::invalid_argument(told));
    }
    Ok(end)
}

fn check(time: &Timestamp) -> Result<(), Status> {
    // The years 1 to 9999, as protobuf has it.
    let seconds = -62_135_596_800..253_402_300_800;
    if seconds.contains(&time.seconds) && (0..1_000_000_000).contains(&time.nanos) {
        return Ok(());
    }
    let told = format!("expiration_time: {} s and {} ns is no time", time.seconds, time.nanos);
    Err(Status::invalid_argument(told))
}

/// The earlier of two.
pub fn earlier(a: Timestamp, b: Timestamp) -> Timestamp {
    if (b.seconds, b.nanos) < (a.seconds, a.nanos) { b } else { a }
}

/// How long it is until `end`; nothing if it has passed.
pub fn left(end: &Timestamp, now: SystemTime) -> Duration {
    let since_epoch = match u64::try_from(end.seconds) {
        Ok(seconds) => Duration::new(seconds, u32::try_from(end.nanos).unwrap_or_default()),
        Err(_) => return Duration::ZERO,
    };
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    since_epoch.saturating_sub(now)
}

/// `end` by the clock that does not jump.
pub fn instant(end: &Timestamp) -> Instant {
    // A year is enough for any timer, and never too much for the clock.
    Instant::now() + left(end, SystemTime::now()).min(Duration::from_secs(365 * 86400))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        let now = Timestamp::from(SystemTime::now());
        Timestamp { seconds: now.seconds + seconds, nanos: now.nanos }
    }

    #[test]
    fn the_earliest_counts() {
        let minute = DEFAULT;
        assert_eq!(end(Some(&at(5)), Some(&at(9)), minute).unwrap().seconds, at(5).seconds);
        assert_eq!(end(Some(&at(9)), Some(&at(5)), minute).unwrap().seconds, at(5).seconds);
        let own = end(Some(&at(900)), Some(&at(900)), minute).unwrap().seconds;
        assert!((at(59).seconds..=at(60).seconds).contains(&own));
        assert!(end(None, None, minute).is_ok());
    }

    #[test]
    fn what_is_no_time_or_has_passed_is_refused() {
        for wanted in [
            at(-1),
            Timestamp { seconds: i64::MAX, nanos: 0 },
            Timestamp { seconds: i64::MIN, nanos: 0 },
            Timestamp { seconds: at(5).seconds, nanos: -1 },
            Timestamp { seconds: at(5).seconds, nanos: 1_000_000_000 },
        ] {
            let error = end(Some(&wanted), None, DEFAULT).unwrap_err();
            assert_eq!(error.code(), tonic::Code::InvalidArgument);
            assert!(error.message().starts_with("expiration_time: "), "{}", error.message());
        }
    }

    #[test]
    fn what_is_left_is_never_negative() {
        assert_eq!(left(&Timestamp { seconds: -5, nanos: 0 }, SystemTime::now()), Duration::ZERO);
        assert_eq!(left(&Timestamp { seconds: 5, nanos: 0 }, SystemTime::now()), Duration::ZERO);
        assert_eq!(left(&Timestamp { seconds: 5, nanos: 7 }, UNIX_EPOCH), Duration::new(5, 7));
    }
}
