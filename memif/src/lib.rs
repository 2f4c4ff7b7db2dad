//! memif 2.0.
pub mod address;
pub mod bytes;
pub mod handshake;
pub mod message;
pub mod queue;
pub mod region;
pub mod ring;
pub mod sigbus;
mod socket;
pub use bytes::{Lent, Slot};
