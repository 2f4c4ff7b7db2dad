//! A virtual layer-3 network between endpoints (vL3): each endpoint of the service routes between its clients, and to the other
//! endpoints.
//!
//! | to find … | look in |
//! |---|---|
//! | what the parts share; what is told to clients, and when | [`Network`] |
//! | the routing domain at the packet engine: gateways, ports, routes, MTU, restarts | [`router`] |
//! | who has which address | [`addresses`] |
//! | a client's memif, and what of it survives us | [`server`], [`record`] |
//! | the MTU of all | [`mtu`] |
//! | figures for Prometheus | [`metrics`] |
//! | links between the endpoints of a service | [`peers`] |
//! | names for clients, in DNS | [`dns`] |
//! | other domains that shall be peers | [`remotes`] |
//!
//! The role is [`crate::roles::vl3`].

pub mod addresses;
pub mod dns;
pub mod metrics;
pub mod mtu;
mod network;
pub mod peers;
pub mod record;
pub mod remotes;
pub mod router;
pub mod server;

pub use network::Network;
