//! Sockets, TLS, descriptors beside gRPC, and connections that stay open.

mod peer;
mod pool;
mod target;

pub use peer::{FdLane, Peer, PeerAddress};
pub use pool::{Hop, Pool};
pub use target::{BadTarget, Target};

/// A descriptor that several may hold.
pub type SharedFd = std::sync::Arc<std::os::fd::OwnedFd>;
/// The identity of an open file: NSM's `inode://<st_dev>/<st_ino>`.
pub use vwire_dataplane::model::Inode;
