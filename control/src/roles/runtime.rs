//! How many threads a role has.
//!
//! A Request passes the roles of a node one after the other, so most of the time one of them works and the others wait. A second
//! thread of a role that has one thing to do is woken to find nothing: measured with one client on two cores, that took a quarter of
//! a role's processor time, and a tenth of the Request's. With many clients the roles keep each other's cores busy.

use std::num::NonZeroUsize;
use std::thread::available_parallelism;

use tokio::runtime::{Builder, Runtime};

/// Most threads of a role of a node: one makes thousands of Requests per second.
const MOST: usize = 4;

/// What else runs where a process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// The other roles of its node, which have to do when it has.
    Node,
    /// Nothing of the kind.
    Alone,
}

/// A runtime for a process. `TOKIO_WORKER_THREADS` says another number of threads.
///
/// # Errors
/// The kernel's, if it has no thread or descriptor left.
pub fn of(sharing: Sharing) -> std::io::Result<Runtime> {
    let mut builder = Builder::new_multi_thread();
    if sharing == Sharing::Node && std::env::var_os("TOKIO_WORKER_THREADS").is_none() {
        builder.worker_threads(threads(available_parallelism().map_or(1, NonZeroUsize::get)));
    }
    builder.enable_all().build()
}

/// Half of the cores, at least one.
fn threads(cores: usize) -> usize {
    (cores / 2).clamp(1, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_of_a_node_has_half_of_the_cores_and_others_have_all() {
        assert_eq!([1, 2, 3, 4, 7, 8, 64].map(threads), [1, 1, 1, 2, 3, 4, 4]);
        let cores = available_parallelism().unwrap().get();
        let workers = |sharing| of(sharing).unwrap().metrics().num_workers();
        assert_eq!(workers(Sharing::Node), threads(cores));
        assert_eq!(workers(Sharing::Alone), cores);
    }
}
