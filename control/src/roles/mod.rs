//! The roles: each a list of elements, and what keeps them running.

pub mod ca;
mod engine;
pub mod forwarder;
pub mod forwarding;
pub mod guards;
pub mod node;
pub mod nsc;
pub mod nse;
pub mod nsmgr;
pub mod nsmgr_proxy;
pub mod nsmrs;
mod place;
mod process;
pub mod proxy;
mod registration;
pub mod registry;
pub mod registry_proxy_dns;
pub mod runtime;
pub mod vl3;
pub mod vl3_ipam;

pub use process::{Process, ProcessError, begin};
