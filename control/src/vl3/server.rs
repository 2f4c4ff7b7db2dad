//! The end of a client's connection: a memif of the routing domain, with the client's addresses behind it.

use std::sync::Arc;

use async_trait::async_trait;
use tonic::Status;
use vwire_proto::nsm::connection::{Connection, Mechanism};
use vwire_proto::nsm::networkservice::NetworkServiceRequest;

use super::Network;
use super::addresses::{AssignAddresses, Behind};
use super::mtu::KeepMtu;
use super::record::Record;
use super::router::{Attachment, End, Place, Route};
use crate::api::mechanism::{MEMIF, PAYLOAD_ETHERNET, SOCKET_FILE};
use crate::chain::{Call, Element, Next};
use crate::client::Namespace;
use crate::dataplane::ends::Payload;
use crate::dataplane::wanted::short;
use crate::endpoint::mechanisms::place;
use crate::endpoint::{EndpointMechanism, Mechanisms};

/// The port of a connection.
pub fn port_name(id: &str) -> String {
    format!("vl3.{}", short(id))
}

/// The socket of a connection: the same after a restart, for its client knows it.
pub fn socket_name(id: &str) -> String {
    format!("@/tmp/memif/{}/memif.socket", short(id))
}

/// What the frames of a payload are.
pub fn payload_of(payload: &str) -> Payload {
    if payload == PAYLOAD_ETHERNET { Payload::Ethernet } else { Payload::Ip }
}

/// The end of the chain of a client's Request, in the order in which the elements act.
pub fn elements(network: &Arc<Network>, namespace: &Namespace) -> Vec<Arc<dyn Element>> {
    vec![
        Arc::new(Attach::new(Arc::clone(network))),
        Arc::new(KeepMtu::new(Arc::clone(&network.mtu))),
        Arc::new(AssignAddresses::new(Arc::clone(&network.addresses))),
        Arc::new(Mechanisms::new(vec![Arc::new(Memif::new(namespace.clone()))])),
    ]
}

/// MEMIF at this endpoint: says where the socket will be.
pub struct Memif {
    namespace: Namespace,
}

impl Memif {
    /// Sockets in this namespace.
    pub fn new(namespace: Namespace) -> Self {
        Self { namespace }
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
        mechanism.parameters.insert(SOCKET_FILE.to_owned(), socket_name(&connection.id));
        place(call, &self.namespace, mechanism);
        Ok(())
    }
}

/// Puts what the elements behind it have decided into the routing domain, as one transaction; at Close it is the first to act: an address
/// is free only when nothing leads to it any more.
pub struct Attach(Arc<Network>);

impl Attach {
    /// To this network.
    pub fn new(network: Arc<Network>) -> Self {
        Self(network)
    }
}

/// The port of a connection that is about to be answered.
pub(super) fn attachment(
    network: &Network,
    connection: &Connection,
    routes: &[Route],
    record: &Record,
) -> Attachment {
    let payload = payload_of(&connection.payload);
    let namespace = network.namespace.clone();
    // Where there are no hardware addresses, there is no next hop to ask for one.
    let routes = routes.iter().map(|route| match payload {
        Payload::Ethernet => *route,
        Payload::Ip => Route { via: None, ..*route },
    });
    Attachment {
        end: End::Listen(Place { namespace, socket: socket_name(&connection.id) }),
        payload,
        mtu: connection.context.as_ref().map_or(0, |context| context.mtu),
        routes: routes.collect(),
        note: record.encoded(),
    }
}

#[async_trait]
impl Element for Attach {
    async fn request(
        &self,
        call: &mut Call,
        request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        let answer = next.request(call, request).await?;
        let network = Arc::clone(&self.0);
        let caller = call.peer().and_then(|peer| peer.id.as_ref()).map(ToString::to_string);
        let held = network.addresses.held(&answer.id).unwrap_or_default();
        let routes = call.state.get::<Behind>().map(|behind| behind.0.clone()).unwrap_or_default();
        let record = Record::new(&answer, caller, &held);
        let wanted = attachment(&network, &answer, &routes, &record);
        let port = port_name(&answer.id);
        network.orphans.remove(&answer.id);
        // A task of its own: a caller that goes away must not leave half of it.
        let work = tokio::spawn(async move {
            network.answer_at_gateways().await?;
            network.router.attach(&port, wanted).await?;
            network.answer_at_gateways().await
        });
        work.await.unwrap_or_else(|error| Err(Status::internal(format!("attaching a client: {error}"))))?;
        Ok(answer)
    }

    async fn close(&self, call: &mut Call, connection: Connection, next: Next<'_>) -> Result<(), Status> {
        self.0.orphans.remove(&connection.id);
        let detached = self.0.router.detach(&port_name(&connection.id)).await;
        let closed = next.close(call, connection).await;
        let answering = self.0.answer_at_gateways().await;
        closed.and(detached).and(answering)
    }
}
