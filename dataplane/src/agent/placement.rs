//! Which worker gets a port. Both ends of a cross-connect belong on one worker, as frames between workers are
//! copied twice.

use crate::tables::WorkerId;

/// The worker for a port: where the port's `ties` (the other end of its cross-connect, the underlay of its
/// tunnel) are, the first that is placed deciding; else the one with the fewest ports, `load` being the
/// number of ports of each.
pub fn place(ties: impl IntoIterator<Item = Option<WorkerId>>, load: &[usize]) -> WorkerId {
    let tied = ties.into_iter().flatten().next();
    tied.unwrap_or_else(|| {
        let lightest =
            load.iter().enumerate().min_by_key(|(_, ports)| **ports).map_or(0, |(worker, _)| worker);
        WorkerId(lightest as u16)
    })
}

/// The workers of a port whose queues are spread over `count` of `workers`: its home, and those that come after it.
pub fn spread(home: WorkerId, count: u16, workers: usize) -> impl Iterator<Item = WorkerId> {
    let workers = u16::try_from(workers).unwrap_or(u16::MAX).max(1);
    (0..count.clamp(1, workers)).map(move |nth| WorkerId((home.0 + nth) % workers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_goes_where_its_other_end_is() {
        assert_eq!(place([None, Some(WorkerId(1))], &[0, 9]), WorkerId(1));
        assert_eq!(
            place([Some(WorkerId(0)), Some(WorkerId(1))], &[9, 0]),
            WorkerId(0),
            "the first tie decides"
        );
    }

    #[test]
    fn a_port_without_ties_goes_to_the_least_loaded_worker() {
        assert_eq!(place([None], &[2, 1, 1]), WorkerId(1));
        assert_eq!(place([], &[0]), WorkerId(0));
    }

    #[test]
    fn a_port_is_spread_over_its_home_and_those_after_it() {
        let spread = |home, count, workers| -> Vec<u16> {
            spread(WorkerId(home), count, workers).map(|worker| worker.0).collect()
        };
        assert_eq!(spread(0, 1, 4), [0]);
        assert_eq!(spread(3, 3, 4), [3, 0, 1]);
        assert_eq!(spread(1, 9, 2), [1, 0], "each worker once");
    }
}
