//! A virtual layer-3 network between endpoints (vL3): each endpoint of the service routes between its clients, and to the other
//! endpoints.
//!
//! | to find … | look in |
//! |---|---|
//! | the routing domain at the packet engine: gateways, ports, routes, MTU, restarts | [`router`] |
//! | links between the endpoints of a service | [`peers`] |
//! | names for clients, in DNS | [`dns`] |
//! | other domains that shall be peers | [`remotes`] |

pub mod dns;
pub mod peers;
pub mod remotes;
pub mod router;
