//! Where links end: ports of the routing domain.

use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use ipnet::IpNet;
use tonic::Status;

use crate::dataplane::ends::Payload;
use crate::dataplane::netns::Namespace;
use crate::vl3::router::{Attachment, End, Place, Route, Router};

/// In the note of a port that we dialled, by which it is known after a restart.
pub const NOTE: &[u8] = b"peer";

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

/// Ports of a [`Router`], with sockets in one namespace.
pub struct RouterPorts {
    /// The routing domain.
    pub router: Arc<Router>,
    /// Where the sockets are that are dialled: our own namespace.
    pub namespace: Namespace,
    /// What frames are.
    pub payload: Payload,
}

#[async_trait]
impl Ports for RouterPorts {
    async fn attach(&self, port: &str, leg: &Leg) -> Result<(), Status> {
        let route = |prefix: &IpNet| Route { prefix: *prefix, via: self.next_hop(leg, prefix) };
        let mut routes: Vec<Route> = leg.routes.iter().map(route).collect();
        // Behind an Ethernet link the next hops themselves are neighbours. In IP mode they are in the prefixes.
        if self.payload == Payload::Ethernet {
            routes.extend(leg.via.iter().map(|address| Route::from(IpNet::from(*address))));
        }
        let place = Place { namespace: self.namespace.clone(), socket: leg.socket.clone() };
        let wanted = Attachment {
            end: End::Dial(place),
            payload: self.payload,
            mtu: leg.mtu,
            routes,
            note: NOTE.to_vec(),
        };
        self.router.attach(port, wanted).await
    }

    async fn detach(&self, port: &str) -> Result<(), Status> {
        self.router.detach(port).await
    }

    fn routes(&self) -> Vec<(IpNet, String)> {
        self.router.routes()
    }
}

impl RouterPorts {
    fn next_hop(&self, leg: &Leg, prefix: &IpNet) -> Option<IpAddr> {
        if self.payload == Payload::Ip {
            return None;
        }
        leg.via.iter().find(|address| address.is_ipv4() == prefix.addr().is_ipv4()).copied()
    }
}
