//! Clients: what asks for connections and keeps them.

mod netns;
pub mod nsurl;

pub use netns::Namespace;
