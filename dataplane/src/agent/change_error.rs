//! Why a change is refused.

use super::open_error::OpenError;
use crate::engine::EngineError;
use crate::model::{PortName, StateError};

/// Why a change was refused. The state is what it was.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The caller worked from another generation than the current one.
    #[error(
        "the request is based on generation {base}, but the current one is {current}; read the state again"
    )]
    Stale {
        /// The caller's.
        base: u64,
        /// The engine's.
        current: u64,
    },
    /// The state asked for is not consistent.
    #[error(transparent)]
    State(#[from] StateError),
    /// A port could not be made.
    #[error("port {port}: {error}")]
    Open {
        /// Which.
        port: PortName,
        /// Why.
        error: OpenError,
    },
    /// A worker does not answer.
    #[error(transparent)]
    Engine(#[from] EngineError),
}
