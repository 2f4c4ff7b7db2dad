//! What the packet engine shall hold, and making it so.
//!
//! | to find … | look in |
//! |---|---|
//! | talking to the engine: one transaction for many Requests, links, counters, a new engine | [`client`] |
//! | starting an engine that outlives us | [`launch`] |
//! | what each connection has there, and its record that survives us | [`wanted`], [`note`] |
//! | after a restart | [`reconcile`] |
//! | a workload's network namespace, by descriptor | [`netns`] |
//! | addresses, routes, rules of an interface in it | [`kernel`] |
//! | memif's control sockets in it | [`memif_socket`] |
//! | counters for Prometheus | [`prometheus`] |

pub mod client;
pub mod ends;
pub mod kernel;
pub mod launch;
pub mod memif_socket;
pub mod netns;
pub mod note;
pub mod prometheus;
pub mod reconcile;
pub mod transact;
pub mod tunnel;
pub mod wanted;

pub use client::{Change, Client};
pub use transact::Dataplane;
