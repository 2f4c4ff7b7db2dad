//! When to do things again: refreshes before tokens end, retries after failures.

use std::time::{Duration, SystemTime};

use rand::RngExt;
use vwire_proto::nsm::connection::Path;

/// Never refresh more often than this, whatever the tokens say.
const SHORTEST_REFRESH: Duration = Duration::from_millis(100);
/// No Request has less time than this, whatever the tokens say.
const SHORTEST_CALL: Duration = Duration::from_millis(500);
/// Never refresh less often than this: a token of years would hide that a hop has forgotten us.
const LONGEST_REFRESH: Duration = Duration::from_secs(24 * 3600);

/// How long from `now` until a connection is to be refreshed: of the shortest remaining life among the path's tokens, a fifth at
/// the path's start and up to two fifths toward its end, so that hops along a path don't refresh at once; a third if the path has
/// one segment. (As sdk, pkg/networkservice/common/refresh.) None if no segment says when it ends.
///
/// A server ends a connection before the token's end, by the time that the last Request had, `time` here (sdk,
/// pkg/networkservice/common/timeout): where tokens are short, half of the way to that is sooner.
pub fn refresh_delay(path: &Path, now: SystemTime, time: Duration) -> Option<Duration> {
    let remaining = remaining_life(path, now)?;
    let segments = path.path_segments.len();
    let part = if segments > 1 { 0.2 + 0.2 * f64::from(path.index) / segments as f64 } else { 1.0 / 3.0 };
    let until_closed = remaining.saturating_sub(time);
    Some(remaining.mul_f64(part).min(until_closed / 2).clamp(SHORTEST_REFRESH, LONGEST_REFRESH))
}

/// How long a Request may take where tokens live for `life`: servers close that long before a token's end, so that it must leave
/// time for refreshes. At least half a second, or nothing would ever be answered in time.
pub fn call_time(timeout: Duration, life: Option<Duration>) -> Duration {
    life.map_or(timeout, |life| timeout.min((life / 2).max(SHORTEST_CALL)))
}

/// The shortest remaining life among the path's tokens; zero if one has ended.
pub fn remaining_life(path: &Path, now: SystemTime) -> Option<Duration> {
    let ends = path.path_segments.iter().filter_map(|segment| segment.expires.as_ref());
    let lives = ends.map(|end| {
        // A date that no clock here can show is far away, or long gone.
        let far = if end.seconds > 0 { LONGEST_REFRESH * 365 } else { Duration::ZERO };
        SystemTime::try_from(*end).map_or(far, |end| end.duration_since(now).unwrap_or_default())
    });
    lives.min()
}

/// Growing pauses with jitter.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    last: Duration,
    next: Duration,
}

impl Backoff {
    /// The first pause is at most `first`; each further one up to twice as long, at most `last`.
    pub fn new(first: Duration, last: Duration) -> Self {
        Self { first, last, next: first }
    }

    /// The next pause: between half of what it may be and all of it.
    pub fn pause(&mut self) -> Duration {
        let whole = self.next;
        self.next = (whole * 2).min(self.last);
        whole.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// Begins anew, after a success.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vwire_proto::nsm::connection::PathSegment;

    fn path(index: u32, now: SystemTime, lives: &[Option<i64>]) -> Path {
        let now: prost_types::Timestamp = now.into();
        let segment = |life: &Option<i64>| PathSegment {
            expires: life
                .map(|s| prost_types::Timestamp { seconds: now.seconds.saturating_add(s), nanos: now.nanos }),
            ..Default::default()
        };
        Path { index, path_segments: lives.iter().map(segment).collect() }
    }

    #[test]
    fn a_client_refreshes_at_a_fifth_of_the_shortest_life() {
        let now = SystemTime::now();
        for (index, lives, expected) in [
            (0, vec![Some(600), Some(600), Some(600), Some(600)], Some(120_000)),
            (0, vec![Some(600), None, Some(60), Some(600)], Some(12_000)),
            (2, vec![Some(600), Some(600), Some(600), Some(600)], Some(180_000)),
            (0, vec![Some(600)], Some(200_000)),
            (0, vec![None, None], None),
            (0, vec![], None),
            (0, vec![Some(600), Some(-5)], Some(100)),
            (0, vec![Some(i64::MIN), Some(5)], Some(100)),
            (0, vec![Some(i64::MAX), Some(i64::MAX)], Some(86_400_000)),
        ] {
            let time = Duration::from_secs(2);
            let delay = refresh_delay(&path(index, now, &lives), now, time).map(|d| d.as_millis());
            assert_eq!(delay, expected, "{index} {lives:?}");
        }
    }

    #[test]
    fn short_tokens_shorten_requests_and_their_refresh_comes_before_a_server_closes() {
        let (now, timeout) = (SystemTime::now(), Duration::from_secs(15));
        for life in [2, 3, 6, 10, 19, 20, 30, 60, 600] {
            let time = call_time(timeout, Some(Duration::from_secs(life)));
            let lives = [Some(life as i64); 4];
            let delay = refresh_delay(&path(0, now, &lives), now, time).unwrap();
            let closed = Duration::from_secs(life) - time;
            assert!(delay * 2 <= closed, "{life} s: refreshed after {delay:?}, closed after {closed:?}");
        }
        assert_eq!(call_time(timeout, Some(Duration::from_secs(600))), timeout);
        assert_eq!(call_time(timeout, None), timeout);
        // Another hop's token is shorter than the time that the first Request had: at once, then.
        let late = refresh_delay(&path(0, now, &[Some(600), Some(5)]), now, timeout);
        assert_eq!(late, Some(SHORTEST_REFRESH));
    }

    #[test]
    fn pauses_grow_with_jitter_up_to_the_last() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(450));
        for most in [100, 200, 400, 450, 450] {
            let pause = backoff.pause().as_millis();
            assert!((most / 2..=most).contains(&pause), "{pause} of {most}");
        }
        backoff.reset();
        assert!(backoff.pause() <= Duration::from_millis(100));
    }
}
