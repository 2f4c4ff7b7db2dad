//! Links that we dial: what is asked of a peer, what is asked of its answer, and whether its packets are answered.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use tokio::sync::{Mutex, watch};
use tonic::Status;
use vwire_proto::nsm::connection::{Connection, ConnectionEvent, Mechanism, MonitorScopeSelector};
use vwire_proto::nsm::connectioncontext::ConnectionContext;
use vwire_proto::nsm::networkservice::NetworkServiceRequest;

use super::announced::{self, MARK, SEED_LABEL};
use super::links::{Links, Own};
use crate::api::mechanism::{LOCAL, MEMIF, SOCKET_FILE};
use crate::client::{Alive, DataPath, Namespace, Pinger, Upstream, Wanted};
use crate::vl3::mtu::NetworkMtu;

/// Echo requests in one check; one answer is enough.
const COUNT: u32 = 4;

/// What all our Requests to peers have in common.
#[derive(Debug, Clone)]
pub(super) struct Asking {
    /// Our name.
    pub name: String,
    /// `NSM_REQUEST_LABELS`.
    pub labels: std::collections::BTreeMap<String, String>,
    /// ETHERNET or IP.
    pub payload: String,
    /// Where our sockets are.
    pub namespace: Namespace,
    /// By which we know ourselves.
    pub mark: String,
}

impl Asking {
    /// The Request to the endpoint `peer` of `service`.
    pub fn wanted(&self, id: String, service: &str, peer: &str, own: &Own, dns: Option<IpAddr>) -> Wanted {
        let mut labels = self.labels.clone();
        labels.entry(SEED_LABEL.to_owned()).or_insert_with(|| self.name.clone());
        let connection = Connection {
            id,
            network_service: service.to_owned(),
            network_service_endpoint_name: peer.to_owned(),
            labels,
            payload: self.payload.clone(),
            context: Some(self.context(own, dns)),
            ..Default::default()
        };
        let preference =
            Mechanism { cls: LOCAL.to_owned(), r#type: MEMIF.to_owned(), parameters: Default::default() };
        Wanted {
            connection,
            preferences: vec![preference],
            namespace: Some(self.namespace.clone()),
            // All links have our own address at this end.
            awareness_group: Some(0),
        }
    }

    /// What we say of ourselves.
    pub fn context(&self, own: &Own, dns: Option<IpAddr>) -> ConnectionContext {
        let (ip, dns) = announced::context(&own.addresses, dns);
        ConnectionContext {
            ip_context: Some(ip),
            dns_context: Some(dns),
            extra_context: [(MARK.to_owned(), self.mark.clone())].into(),
            ..Default::default()
        }
    }
}

/// The manager, of whose answers only those count in which the peer announces nothing that is not its own.
pub(super) struct Judged {
    pub inner: Arc<dyn Upstream>,
    pub links: Arc<Links>,
    pub mtu: Arc<NetworkMtu>,
}

#[async_trait]
impl Upstream for Judged {
    async fn request(
        &self,
        mut request: NetworkServiceRequest,
        namespace: Option<&Namespace>,
        time: Duration,
    ) -> Result<Connection, Status> {
        let context = request.connection.get_or_insert_default().context.get_or_insert_default();
        context.mtu = self.mtu.limit(context.mtu);
        let connection = self.inner.request(request, namespace, time).await?;
        let peer = self.links.peer_of(&connection.id);
        let Err(refused) = self.links.judge_answer(&peer, &connection) else { return Ok(connection) };
        self.links.detach(&peer).await;
        if let Err(status) = self.inner.close(connection, namespace, time).await {
            tracing::debug!(peer, error = %status.message(), "closing a link that was refused");
        }
        Err(refused)
    }

    async fn close(
        &self,
        connection: Connection,
        namespace: Option<&Namespace>,
        time: Duration,
    ) -> Result<(), Status> {
        self.inner.close(connection, namespace, time).await
    }

    async fn monitor(
        &self,
        selector: MonitorScopeSelector,
    ) -> Result<BoxStream<'static, Result<ConnectionEvent, Status>>, Status> {
        self.inner.monitor(selector).await
    }
}

/// The packets of one link of ours.
pub(super) struct PeerPath {
    pub peer: String,
    pub links: Arc<Links>,
    pub namespace: Namespace,
    /// Our interface's address in our own namespace, from which packets go the way that clients' go.
    pub from: watch::Receiver<Option<IpAddr>>,
    /// The network's MTU.
    pub mtu: Arc<NetworkMtu>,
    /// How long a check may take.
    pub time: Duration,
    /// By source and destination.
    pub pingers: Mutex<HashMap<(IpAddr, IpAddr), Pinger>>,
}

impl PeerPath {
    async fn answers(&self, from: IpAddr, to: IpAddr) -> Alive {
        let kept = self.pingers.lock().await.remove(&(from, to));
        let opened = match kept {
            Some(pinger) => Ok(pinger),
            None => Pinger::open_in(&self.namespace, from).await,
        };
        // No right to ping, or the interface is being made anew: nobody knows.
        let Ok(mut pinger) = opened else { return Alive::Unknown };
        match pinger.ping(to, COUNT, self.time.mul_f64(0.9)).await {
            Ok(answered) => {
                self.pingers.lock().await.insert((from, to), pinger);
                if answered { Alive::Yes } else { Alive::No }
            }
            Err(_) => Alive::No,
        }
    }
}

#[async_trait]
impl DataPath for PeerPath {
    async fn connected(&self, connection: &Connection) {
        let parameters = connection.mechanism.as_ref().map(|mechanism| &mechanism.parameters);
        let Some(socket) = parameters.and_then(|parameters| parameters.get(SOCKET_FILE)) else {
            return tracing::warn!(
                peer = self.peer,
                "mechanism.parameters[{SOCKET_FILE}]: missing; there is no memif to connect to"
            );
        };
        let mtu = connection.context.as_ref().map_or(0, |context| context.mtu);
        self.links.answered(&self.peer, connection, socket.clone(), mtu);
        self.links.attach(&self.peer).await;
        self.mtu.put(&self.links.port_of(&self.peer), mtu);
    }

    async fn closed(&self) {
        self.links.detach(&self.peer).await;
        self.mtu.remove(&self.links.port_of(&self.peer));
        self.pingers.lock().await.clear();
    }

    /// Pings the peer from our own interface: by the way of clients' packets, there and back. If our own address does not answer there,
    /// nothing is known of the peer.
    async fn alive(&self, _: &Connection) -> Alive {
        let Some(from) = *self.from.borrow() else { return Alive::Unknown };
        let same = |address: &IpAddr| address.is_ipv4() == from.is_ipv4();
        let Some(peer) = self.links.addresses_of(&self.peer).into_iter().find(same) else {
            return Alive::Unknown;
        };
        let own = self.links.own().addresses.into_iter().map(|(address, _)| address).find(same);
        let Some(own) = own else { return Alive::Unknown };
        let (theirs, ours) = tokio::join!(self.answers(from, peer), self.answers(from, own));
        match (theirs, ours) {
            (Alive::No, Alive::Yes) => {
                self.links.suspect(&self.peer);
                Alive::No
            }
            (Alive::Yes, _) => Alive::Yes,
            _ => Alive::Unknown,
        }
    }
}
