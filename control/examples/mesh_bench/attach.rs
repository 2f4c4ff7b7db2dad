//! The client's end of a memif.

use std::sync::Arc;
use std::time::Duration;

use memif::{Address, Dialer, DialerConfig, Mode, Name};
use vwire_control::api::connection::Connection;
use vwire_control::api::mechanism::SOCKET_FILE;
use vwire_control::endpoint::responder::{Attachment, Host, Port, Responder};
use vwire_control::endpoint::{made_up_mac, mode_of};

use crate::text;

/// Small rings: there are many.
const LOG2_RING: u8 = 6;
/// How long the handshake may take.
const TIME: Duration = Duration::from_secs(15);

/// Connects to the memif that a Request was answered with, and waits until it is up.
pub async fn attach(responder: &Arc<Responder>, connection: &Connection) -> Result<Attachment, String> {
    let parameters = connection.mechanism.as_ref().map(|mechanism| &mechanism.parameters);
    let socket = parameters.and_then(|parameters| parameters.get(SOCKET_FILE)).ok_or("no memif socket")?;
    let address: Address = socket.parse().map_err(text)?;
    let mode: Mode = mode_of(&connection.payload);
    let config =
        DialerConfig { log2_ring: LOG2_RING, ..DialerConfig::new(0, mode, Name::cut(&connection.id)) };
    let dialer = Dialer::new(address, config).map_err(text)?;
    let host = Host::new(mode, made_up_mac("src", &connection.id), Vec::new());
    let attachment = responder.attach(&connection.id, Port::Client(Box::new(dialer)), host);
    let mut up = attachment.up();
    let is_up = matches!(tokio::time::timeout(TIME, up.wait_for(|up| *up)).await, Ok(Ok(_)));
    if is_up { Ok(attachment) } else { Err(format!("memif {socket} did not come up")) }
}
