//! An interface in a workload's namespace: its addresses, routes, neighbours, policy rules, MTU, hardware address and alias.
//!
//! The interface itself is the engine's; removing its port removes it, and with it all but the rules. [`interface`] says what is
//! wanted, from the connection's context alone; [`apply`] compares it with what is there and changes what differs.

pub mod apply;
pub mod interface;
mod netlink;
mod policy;

pub use apply::{configure, unconfigure};
pub use interface::{Interface, Policy, Route, Side};
pub use netlink::Netlink;
