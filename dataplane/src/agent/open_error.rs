//! Why a port could not be made.

use std::fmt;

/// Whose matter it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// A descriptor that the request names has not come with it.
    FdMissing,
    /// The request asks for something that can't be: a descriptor of the wrong kind, say.
    Request,
    /// The system as it is does not allow it: a name is taken, an address is not there.
    System,
    /// Something has run out: descriptors, memory, ports.
    Exhausted,
    /// The engine does not do its part.
    Engine,
}

/// Why a port could not be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenError {
    /// Whose matter it is.
    pub cause: Cause,
    /// What happened, and what to change.
    pub reason: String,
}

impl OpenError {
    /// An error of this cause.
    pub fn new(cause: Cause, reason: impl fmt::Display) -> Self {
        Self { cause, reason: reason.to_string() }
    }

    /// What the system said no to; [`Cause::Exhausted`] if it said that it has no more.
    pub fn system(error: impl fmt::Display) -> Self {
        let reason = error.to_string();
        // Each kind of port wraps the kernel's answer in its own words, but all keep its number: EMFILE,
        // ENFILE, ENOMEM, ENOSPC, ENOBUFS.
        let spent = [24, 23, 12, 28, 105].iter().any(|errno| reason.contains(&format!("(os error {errno})")));
        Self { cause: if spent { Cause::Exhausted } else { Cause::System }, reason }
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for OpenError {}

impl From<crate::engine::EngineError> for OpenError {
    fn from(error: crate::engine::EngineError) -> Self {
        Self::new(Cause::Engine, error)
    }
}
