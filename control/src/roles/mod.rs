//! The roles: each a list of elements, and what keeps them running.

pub mod ca;
pub mod forwarder;
pub mod nsc;
pub mod nse;
mod process;

pub use process::{Process, ProcessError, begin};
