//! The roles: each a list of elements, and what keeps them running.

mod process;

pub use process::{Process, ProcessError};
