//! Addresses for both ends of each connection, as Go's point-to-point IPAM gives them (sdk, pkg/networkservice/ipam).
//!
//! Of each prefix group the lowest free address goes to the endpoint (dst), the next to the client (src), both as /32 or /128; each
//! end gets a route to the other. Addresses belong to the connection id, are kept over refreshes, replaced when the request's
//! excluded prefixes have come to cover them, and freed by Close.

mod element;
mod groups;
mod pool;
mod table;

pub use element::Ipam;
pub use groups::{BadGroups, Groups};
pub use pool::{Excluded, Pool};
pub use table::{Exhausted, Pair, Policy, Table};
