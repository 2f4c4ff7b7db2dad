//! memif 2.0.
pub mod bytes;
pub use bytes::{Lent, Slot};
