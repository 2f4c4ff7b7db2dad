//! Sockets, TLS, descriptors beside gRPC, and connections that stay open.
//!
//! Server side: [`serve`] accepts on unix and TCP sockets, and each call's request carries the extension `Arc<Peer>`; [`origin`] and
//! [`time_left`] read the rest. Client side: [`Pool::hop`] gives a [`Hop`], of which gRPC clients are made.

mod belief;
mod call;
mod dial;
mod ends;
mod gate;
mod hop;
mod limits;
mod listen;
mod peer;
mod pool;
mod quotas;
mod server;
mod services;
mod stream;
mod target;
mod tls;
mod watched;

pub use call::{DEFAULT_TIME, MAX_TIME, TOKEN, TOKEN_EXPIRES, origin, peer, time_left};
pub use gate::Gate;
pub use hop::Hop;
pub use limits::Limits;
pub use peer::{FdLane, Peer, PeerAddress};
pub use pool::{Dialling, Pool};
pub use server::{ServeError, Server, serve};
pub use services::{Health, Services};
pub use target::{BadTarget, Target};
pub(crate) use tls::{Verifier, in_words};

/// A descriptor that several may hold.
pub type SharedFd = std::sync::Arc<std::os::fd::OwnedFd>;
/// The identity of an open file: NSM's `inode://<st_dev>/<st_ino>`.
pub use vwire_dataplane::model::Inode;

#[cfg(test)]
mod tests;
