//! NSM's messages, and types for what their strings mean.

pub use vwire_proto::nsm::{connection, connectioncontext, networkservice, registry};

pub mod labels;
pub mod matching;
pub mod mechanism;
pub mod path;
pub mod token;
