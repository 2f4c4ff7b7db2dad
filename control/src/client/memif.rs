//! The client's end of a vWire that is a memif: this process connects to the socket that the next hop returned, and has a host on it
//! that answers pings and pings itself.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use memif::{Address, Dialer, DialerConfig, Mode, Name};
use vwire_proto::nsm::connection::Connection;

use super::kernel::{pairs, worse};
use super::{Alive, DataPath};
use crate::api::mechanism::SOCKET_FILE;
use crate::endpoint::responder::{Attachment, Host, Port, Responder};
use crate::endpoint::{hosts, made_up_mac, mode_of, parse_mac};

/// Bytes of data in the pings of a liveness check.
const SIZE: usize = 56;

/// A memif that this process attaches to.
pub struct MemifPath {
    responder: Arc<Responder>,
    leg: Mutex<Option<Leg>>,
}

struct Leg {
    socket: String,
    mode: Mode,
    attachment: Arc<Attachment>,
}

impl MemifPath {
    /// Served by these threads.
    pub fn new(responder: Arc<Responder>) -> Self {
        Self { responder, leg: Mutex::default() }
    }

    /// The interface, while there is one.
    pub fn attachment(&self) -> Option<Arc<Attachment>> {
        let leg = self.leg.lock().unwrap_or_else(PoisonError::into_inner);
        leg.as_ref().map(|leg| Arc::clone(&leg.attachment))
    }

    /// Pings an address over the memif; the round trip's time, or `None` after `timeout`.
    pub async fn ping(&self, to: IpAddr, size: usize, timeout: Duration) -> Option<Duration> {
        let attachment = self.attachment()?;
        tokio::time::timeout(timeout, attachment.ping(to, size)).await.ok()?
    }

    fn attach(&self, connection: &Connection, socket: &str, mode: Mode) -> Result<Leg, String> {
        let address: Address = socket.parse().map_err(|error: memif::AddressError| error.to_string())?;
        let config = DialerConfig {
            first_retry: Duration::from_millis(20),
            last_retry: Duration::from_millis(500),
            ..DialerConfig::new(0, mode, Name::cut(&connection.id))
        };
        let dialer = Dialer::new(address, config).map_err(|error| error.to_string())?;
        let ethernet = connection.context.as_ref().and_then(|context| context.ethernet_context.as_ref());
        let mac = ethernet
            .and_then(|ethernet| parse_mac(&ethernet.src_mac))
            .unwrap_or_else(|| made_up_mac("src", &connection.id));
        let host = Host::new(mode, mac, addresses(connection));
        let attachment = self.responder.attach(&connection.id, Port::Client(Box::new(dialer)), host);
        Ok(Leg { socket: socket.to_owned(), mode, attachment: Arc::new(attachment) })
    }
}

fn addresses(connection: &Connection) -> Vec<IpAddr> {
    let ip = connection.context.as_ref().and_then(|context| context.ip_context.as_ref());
    ip.map(|ip| hosts(&ip.src_ip_addrs)).unwrap_or_default()
}

#[async_trait]
impl DataPath for MemifPath {
    async fn connected(&self, connection: &Connection) {
        let mode = mode_of(&connection.payload);
        let parameters = connection.mechanism.as_ref().map(|mechanism| &mechanism.parameters);
        let Some(socket) = parameters.and_then(|parameters| parameters.get(SOCKET_FILE)) else {
            return tracing::warn!(
                "mechanism.parameters[{SOCKET_FILE}]: missing; there is no memif to connect to"
            );
        };
        let mut leg = self.leg.lock().unwrap_or_else(PoisonError::into_inner);
        match &*leg {
            Some(leg) if leg.socket == *socket && leg.mode == mode => {
                leg.attachment.readdress(addresses(connection))
            }
            _ => {
                *leg = None;
                match self.attach(connection, socket, mode) {
                    Ok(attached) => *leg = Some(attached),
                    Err(error) => tracing::warn!("mechanism.parameters[{SOCKET_FILE}]: {error}"),
                }
            }
        }
    }

    async fn closed(&self) {
        self.leg.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    async fn alive(&self, connection: &Connection) -> Alive {
        let Some(attachment) = self.attachment() else { return Alive::Unknown };
        let pairs = pairs(connection);
        if pairs.is_empty() {
            // Without addresses the link is all there is to ask. It has the check's whole time to come up.
            let mut up = attachment.up();
            return if up.wait_for(|up| *up).await.is_ok() { Alive::Yes } else { Alive::No };
        }
        let pings = pairs.iter().map(|(_, to)| attachment.ping(*to, SIZE));
        let answers = join_all(pings).await;
        answers
            .iter()
            .map(|answer| if answer.is_some() { Alive::Yes } else { Alive::No })
            .fold(Alive::Yes, worse)
    }
}
