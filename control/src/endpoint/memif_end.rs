//! MEMIF at an endpoint: a control socket for each connection, and a host behind it that answers pings.

use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use memif::{Address, InterfaceConfig, Listener, ListenerConfig, Mode, Name};
use tonic::Status;
use vwire_proto::nsm::connection::{Connection, Mechanism};

use super::mechanisms::{EndpointMechanism, place};
use super::responder::{Attachment, Host, Mac, Port, Responder};
use crate::api::mechanism::{MEMIF, PAYLOAD_ETHERNET, SOCKET_FILE};
use crate::api::path::{self, PathExt};
use crate::chain::Call;
use crate::client::Namespace;

/// Longest name of an abstract socket, without its `@`.
const MAX_NAME: usize = 107;

/// Control sockets in a namespace, with hosts behind them.
pub struct Memif {
    namespace: Namespace,
    responder: Arc<Responder>,
}

/// A connection's memif, in its state. Dropped, it is closed.
struct Leg {
    attachment: Attachment,
    socket: String,
    mode: Mode,
}

impl Memif {
    /// Sockets in `namespace`, answered for by `responder`.
    pub fn new(namespace: Namespace, responder: Arc<Responder>) -> Self {
        Self { namespace, responder }
    }

    async fn open(&self, connection: &Connection, mode: Mode) -> Result<Leg, Status> {
        let (namespace, id) = (self.namespace.clone(), connection.id.clone());
        let opened = tokio::task::spawn_blocking(move || {
            namespace
                .run(|| listen(&id, mode))
                .map_err(|error| Status::internal(format!("MEMIF: {error}")))?
        });
        let (socket, listener) = opened.await.map_err(|error| Status::internal(error.to_string()))??;
        let host = Host::new(mode, mac(connection), addresses(connection));
        let attachment = self.responder.attach(&connection.id, Port::Server(Box::new(listener)), host);
        Ok(Leg { attachment, socket, mode })
    }
}

#[async_trait]
impl EndpointMechanism for Memif {
    fn kind(&self) -> &'static str {
        MEMIF
    }

    async fn request(
        &self,
        call: &mut Call,
        connection: &Connection,
        mechanism: &mut Mechanism,
    ) -> Result<(), Status> {
        let mode = mode_of(&connection.payload);
        let socket = match call.state.get::<Leg>() {
            Some(leg) if leg.mode == mode => {
                leg.attachment.readdress(addresses(connection));
                leg.socket.clone()
            }
            _ => {
                call.state.remove::<Leg>();
                let leg = self.open(connection, mode).await?;
                let socket = leg.socket.clone();
                call.state.insert(leg);
                socket
            }
        };
        mechanism.parameters.insert(SOCKET_FILE.to_owned(), format!("@{socket}"));
        place(call, &self.namespace, mechanism);
        Ok(())
    }

    async fn close(&self, call: &mut Call, _: &Connection) {
        call.state.remove::<Leg>();
    }
}

/// What frames of this payload are.
pub fn mode_of(payload: &str) -> Mode {
    if payload == PAYLOAD_ETHERNET { Mode::Ethernet } else { Mode::Ip }
}

/// Listens under the name that the Go components use, or one with a number more if an earlier life of ours still has that.
fn listen(id: &str, mode: Mode) -> Result<(String, Listener), Status> {
    let plain = id.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    let id = if plain && id.len() < 64 { id.to_owned() } else { uuid::Uuid::new_v4().to_string() };
    let mut failure = String::new();
    for name in [
        format!("/tmp/memif/{id}/memif.socket"),
        format!("/tmp/memif/{id}/{:08x}.socket", rand::random::<u32>()),
    ] {
        debug_assert!(name.len() <= MAX_NAME);
        let address = Address::abstract_name(&name).map_err(|error| Status::internal(error.to_string()))?;
        match Listener::bind(&address, ListenerConfig::default()) {
            Ok(mut listener) => {
                listener.add_interface(0, InterfaceConfig::new(mode, Name::cut(&id)));
                return Ok((name, listener));
            }
            Err(error) => failure = error.to_string(),
        }
    }
    Err(Status::internal(format!("MEMIF: {failure}")))
}

/// The endpoint's addresses.
fn addresses(connection: &Connection) -> Vec<IpAddr> {
    let ip = connection.context.as_ref().and_then(|context| context.ip_context.as_ref());
    ip.map(|ip| hosts(&ip.dst_ip_addrs)).unwrap_or_default()
}

/// The addresses of `address/length`s; what can't be read is left out.
pub fn hosts(addresses: &[String]) -> Vec<IpAddr> {
    let address = |text: &String| text.split('/').next().and_then(|address| address.parse().ok());
    addresses.iter().filter_map(address).collect()
}

/// The endpoint's Ethernet address: the one that the context gives it, else one made up.
fn mac(connection: &Connection) -> Mac {
    let ethernet = connection.context.as_ref().and_then(|context| context.ethernet_context.as_ref());
    ethernet
        .and_then(|ethernet| parse_mac(&ethernet.dst_mac))
        .unwrap_or_else(|| made_up_mac("dst", &place_on_path(connection)))
}

/// Which end of which vWire this is, in words that outlive an endpoint: its connection's own id is new with each of its lives.
fn place_on_path(connection: &Connection) -> String {
    let path = path::of(connection);
    format!("{} {}", path.root_id(), path.index)
}

/// A locally administered address for one side of a connection: the same after a restart, so that neighbours that remember it are
/// right.
pub fn made_up_mac(side: &str, connection: &str) -> Mac {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    (side, connection).hash(&mut hasher);
    let [_, _, _, rest @ ..] = hasher.finish().to_be_bytes();
    let mut mac = [0x02; 6];
    mac[1..].copy_from_slice(&rest);
    mac
}

/// `02:fe:00:00:00:01`.
pub fn parse_mac(text: &str) -> Option<Mac> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        *byte =
            parts.next().filter(|part| part.len() == 2).and_then(|part| u8::from_str_radix(part, 16).ok())?;
    }
    (parts.next().is_none() && mac[0] & 1 == 0).then_some(mac)
}
