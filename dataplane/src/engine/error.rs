//! Why the engine could not do what was asked.

use super::PATIENCE;
use crate::port::PortIndex;

/// Why the engine could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No worker was asked for.
    #[error("workers.cores is empty; name at least one core")]
    NoWorkers,
    /// The core does not exist or this process may not use it.
    #[error("workers.cores names core {core}, but this process may use only {allowed:?}")]
    NoSuchCore {
        /// The core asked for.
        core: usize,
        /// Those it may use.
        allowed: Vec<usize>,
    },
    /// The kernel refused a thread or a descriptor.
    #[error("starting worker {worker}: {error}")]
    Start {
        /// Which worker.
        worker: u16,
        /// The kernel's answer.
        error: std::io::Error,
    },
    /// There is no worker of this number.
    #[error("there is no worker {0}")]
    NoSuchWorker(u16),
    /// The port has no halves at a worker.
    #[error("{0} is not attached")]
    NotAttached(PortIndex),
    /// The port has halves at a worker already.
    #[error("{0} is attached already")]
    Attached(PortIndex),
    /// A worker does not answer: it died, or its thread is stopped.
    #[error("worker {0} has died, or did not answer within {PATIENCE:?}")]
    Stuck(u16),
}
