//! vL3: a virtual network on layer 3. Each endpoint of the service routes between its clients, and to the other endpoints.
//!
//! | to find … | look in |
//! |---|---|
//! | the routing domain at the packet engine: gateways, ports, routes, MTU, restarts | [`router`] |
//!
//! The role that puts them together is [`crate::roles::vl3`].

pub mod router;
