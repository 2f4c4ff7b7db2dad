//! vL3: endpoints that join their clients, and each other's, to one network of layer 3.
//!
//! - [`peers`]: links between the endpoints of a service.

pub mod peers;
