//! What goes on beside Requests.

use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::watch;
use vwire_proto::nsm::connection::Connection;

use super::Directory;
use crate::api::path::{self, PathExt};
use crate::elements::Hub;
use crate::vl3::peers::Peer;

/// Who says which name servers peers have.
const PEERS: &str = "peers";

/// Asks the name servers of those who are peers now, for as long as it is polled.
pub async fn follow_peers(directory: Arc<Directory>, mut peers: watch::Receiver<Vec<Peer>>) {
    loop {
        let servers: Vec<IpAddr> =
            peers.borrow_and_update().iter().flat_map(|peer| peer.dns.iter().copied()).collect();
        directory.set_peer_addresses(PEERS, servers);
        if peers.changed().await.is_err() {
            return;
        }
    }
}

/// Asks clients that were told of no name server of ours, or of one that has moved, to refresh; for as long as it is polled.
pub async fn tell_clients(hub: Arc<Hub>, mut own: watch::Receiver<Option<IpAddr>>) {
    loop {
        let address = *own.borrow_and_update();
        if let Some(address) = address {
            let told = address.to_string();
            for connection in hub.connections().into_iter().filter(|connection| !names(connection, &told)) {
                let connection = connection.as_ref();
                tracing::info!(
                    connection = path::of(connection).root_id(),
                    "asked to refresh: names have a server now"
                );
                hub.ask_to_refresh(&connection.id, |_| {});
            }
        }
        if own.changed().await.is_err() {
            return;
        }
    }
}

/// Whether a connection's name servers have this one among them.
fn names(connection: &Connection, server: &str) -> bool {
    let dns = connection.context.as_ref().and_then(|context| context.dns_context.as_ref());
    let configs = dns.map(|dns| dns.configs.as_slice()).unwrap_or_default();
    configs.iter().any(|config| config.dns_server_ips.iter().any(|ip| ip == server))
}
