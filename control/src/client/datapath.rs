//! The client's end of a vWire, as far as this process has to do with it.

use async_trait::async_trait;
use vwire_proto::nsm::connection::Connection;

/// What a liveness check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alive {
    /// Packets are answered.
    Yes,
    /// They are not.
    No,
    /// Nothing can be said: there is nobody to ask, or no way to.
    Unknown,
}

/// The packets' side of one connection. Calls of one connection never overlap, but for `alive`, which may be cancelled.
#[async_trait]
pub trait DataPath: Send + Sync + 'static {
    /// The connection was made, refreshed or has changed.
    async fn connected(&self, _: &Connection) {}

    /// The connection is being closed.
    async fn closed(&self) {}

    /// Asks the far end once. The caller ends the wait after the liveness timeout; that counts as [`Alive::No`].
    async fn alive(&self, _: &Connection) -> Alive {
        Alive::Unknown
    }
}

/// A connection whose packets are someone else's business.
pub struct Elsewhere;

impl DataPath for Elsewhere {}
