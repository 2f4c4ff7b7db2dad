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
}
