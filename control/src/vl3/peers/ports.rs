//! Where links end: ports of the routing domain.

use std::net::IpAddr;

use async_trait::async_trait;
use ipnet::IpNet;
use tonic::Status;

/// The leg from our packet engine to a peer that we dialled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leg {
    /// The memif's socket in our namespace, with `@`.
    pub socket: String,
    /// The longest packet that is sent by it, with its IP header; 0: the usual one.
    pub mtu: u32,
    /// What is behind it.
    pub routes: Vec<IpNet>,
    /// The peer's own addresses: next hops, where frames are Ethernet's.
    pub via: Vec<IpAddr>,
}

/// The routing domain, as far as links need it.
#[async_trait]
pub trait Ports: Send + Sync + 'static {
    /// Makes a port what `leg` says; nothing is touched that is so already.
    ///
    /// # Errors
    /// ALREADY_EXISTS if a route leads to another port; what the engine refuses. The port is as it was before.
    async fn attach(&self, port: &str, leg: &Leg) -> Result<(), Status>;

    /// Removes a port with its routes. Not an error if there is none.
    ///
    /// # Errors
    /// What the engine refuses.
    async fn detach(&self, port: &str) -> Result<(), Status>;

    /// Every prefix that leads to a port, and which.
    fn routes(&self) -> Vec<(IpNet, String)>;
}
