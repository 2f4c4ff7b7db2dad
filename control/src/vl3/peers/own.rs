//! Our own interface in our own namespace: we ask for our own service, as any client does. Its address is our name server's, and from
//! there peers are pinged.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use vwire_proto::nsm::connection::{Connection, Mechanism};

use crate::api::mechanism::{KERNEL, LOCAL, NAME};
use crate::client::nsurl::made_up_interface_name;
use crate::client::{Alive, Client, DataPath, KernelPath, Namespace, Session, Wanted};

/// The id of the connection to ourselves, as Go's endpoint calls it.
pub fn own_id(name: &str) -> String {
    format!("{name}-kernel")
}

/// Whether a connection at our endpoint is our own to ourselves.
pub fn is_own(name: &str, connection: &Connection) -> bool {
    let first = connection.path.as_ref().and_then(|path| path.path_segments.first());
    first.is_some_and(|segment| segment.name == name)
}

/// Asks for it. The first address that it gets is told. `lost` is true if the packet engine has nothing of such a connection: one that the
/// manager remembers is of no use then, and its silence is not waited for.
pub(super) fn open(
    client: &Client,
    (name, registered): (&str, &str),
    service: &str,
    payload: &str,
    (namespace, time): (Namespace, Duration),
    (tell, lost): (watch::Sender<Option<IpAddr>>, bool),
) -> Session {
    let connection = Connection {
        id: own_id(name),
        network_service: service.to_owned(),
        network_service_endpoint_name: registered.to_owned(),
        payload: payload.to_owned(),
        ..Default::default()
    };
    let interface = made_up_interface_name(service);
    let preference = Mechanism {
        cls: LOCAL.to_owned(),
        r#type: KERNEL.to_owned(),
        parameters: [(NAME.to_owned(), interface)].into(),
    };
    let wanted = Wanted {
        connection,
        preferences: vec![preference],
        namespace: Some(namespace.clone()),
        awareness_group: None,
    };
    let path = OwnPath { kernel: KernelPath::new(namespace, time), tell, lost: AtomicBool::new(lost) };
    client.open(wanted, Arc::new(path))
}

/// The interface's packets, and its address.
struct OwnPath {
    kernel: KernelPath,
    tell: watch::Sender<Option<IpAddr>>,
    /// Nothing is behind the interface.
    lost: AtomicBool,
}

#[async_trait]
impl DataPath for OwnPath {
    async fn connected(&self, connection: &Connection) {
        self.lost.store(false, Ordering::Relaxed);
        let ip = connection.context.as_ref().and_then(|context| context.ip_context.as_ref());
        let first = ip.and_then(|ip| crate::endpoint::hosts(&ip.src_ip_addrs).first().copied());
        self.tell.send_if_modified(|address| {
            let changed = *address != first;
            *address = first;
            changed
        });
    }

    async fn closed(&self) {
        self.kernel.closed().await;
        self.tell.send_replace(None);
    }

    async fn alive(&self, connection: &Connection) -> Alive {
        if self.lost.load(Ordering::Relaxed) {
            return Alive::No;
        }
        self.kernel.alive(connection).await
    }
}
