//! NSM's messages, and types for what their strings mean.

pub use vwire_proto::nsm::{connection, connectioncontext, networkservice, registry};

pub mod mechanism;
pub mod path;
