//! Which mechanism an endpoint takes, and what it makes of it.

use std::sync::Arc;

use async_trait::async_trait;
use tonic::Status;
use vwire_proto::nsm::connection::{Connection, Mechanism};
use vwire_proto::nsm::networkservice::NetworkServiceRequest;

use crate::api::mechanism::{INODE_URL, NAME};
use crate::chain::{Call, Element, Fds, Next};
use crate::client::Namespace;
use crate::client::nsurl::{check_interface_name, made_up_interface_name};

/// One kind of mechanism at an endpoint.
#[async_trait]
pub trait EndpointMechanism: Send + Sync + 'static {
    /// `KERNEL`, `MEMIF`, …
    fn kind(&self) -> &'static str;

    /// Fills in the endpoint's side of `mechanism`, of this kind, for `connection`. Also called for each refresh.
    async fn request(
        &self,
        call: &mut Call,
        connection: &Connection,
        mechanism: &mut Mechanism,
    ) -> Result<(), Status>;

    /// Takes back what a request made.
    async fn close(&self, _: &mut Call, _: &Connection) {}
}

/// Takes the connection's mechanism, or else the first preference that can be had.
pub struct Mechanisms {
    supported: Vec<Arc<dyn EndpointMechanism>>,
}

/// What a connection has, in its state.
struct Chosen(&'static str);

impl Mechanisms {
    /// These, in no order: the client's preferences have one.
    pub fn new(supported: Vec<Arc<dyn EndpointMechanism>>) -> Self {
        Self { supported }
    }

    fn of(&self, kind: &str) -> Option<&Arc<dyn EndpointMechanism>> {
        self.supported.iter().find(|supported| supported.kind() == kind)
    }

    fn names(&self) -> String {
        self.supported.iter().map(|supported| supported.kind()).collect::<Vec<_>>().join(", ")
    }

    /// Sets the connection's mechanism, and says of which kind it is.
    async fn choose(
        &self,
        call: &mut Call,
        connection: &mut Connection,
        preferences: &[Mechanism],
    ) -> Result<&'static str, Status> {
        if let Some(mut mechanism) = connection.mechanism.take() {
            let Some(supported) = self.of(&mechanism.r#type) else {
                return Err(Status::invalid_argument(format!(
                    "connection.mechanism: unsupported mechanism {:?}; this endpoint has {}",
                    mechanism.r#type,
                    self.names()
                )));
            };
            supported.request(call, connection, &mut mechanism).await?;
            connection.mechanism = Some(mechanism);
            return Ok(supported.kind());
        }
        let mut refused = Vec::new();
        for preference in preferences {
            let Some(supported) = self.of(&preference.r#type) else {
                refused.push(format!("{}: not supported", preference.r#type));
                continue;
            };
            let mut mechanism = preference.clone();
            match supported.request(call, connection, &mut mechanism).await {
                Ok(()) => {
                    connection.mechanism = Some(mechanism);
                    return Ok(supported.kind());
                }
                Err(status) => refused.push(format!("{}: {}", preference.r#type, status.message())),
            }
        }
        Err(Status::failed_precondition(format!(
            "mechanism_preferences: cannot support any of the requested mechanisms ({}); this endpoint has {}",
            if refused.is_empty() { "there are none".to_owned() } else { refused.join("; ") },
            self.names()
        )))
    }
}

#[async_trait]
impl Element for Mechanisms {
    async fn request(
        &self,
        call: &mut Call,
        mut request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        let Some(mut connection) = request.connection.take() else {
            return Err(Status::invalid_argument("connection: missing from the request"));
        };
        let before = call.state.get::<Chosen>().map(|chosen| chosen.0);
        let kind = self.choose(call, &mut connection, &request.mechanism_preferences).await?;
        if let Some(left) = before.filter(|before| *before != kind).and_then(|before| self.of(before)) {
            left.close(call, &connection).await;
        }
        call.state.insert(Chosen(kind));
        let metric = format!("{kind}/{}", interface_name(connection.mechanism.as_ref()));
        if let Some(path) = connection.path.as_mut()
            && let Some(own) = path.path_segments.get_mut(path.index as usize)
        {
            own.metrics.insert("server_interface".to_owned(), metric);
        }
        request.connection = Some(connection);
        next.request(call, request).await
    }

    async fn close(&self, call: &mut Call, connection: Connection, next: Next<'_>) -> Result<(), Status> {
        if let Some(Chosen(kind)) = call.state.remove::<Chosen>()
            && let Some(supported) = self.of(kind)
        {
            supported.close(call, &connection).await;
        }
        next.close(call, connection).await
    }
}

fn interface_name(mechanism: Option<&Mechanism>) -> &str {
    mechanism.and_then(|mechanism| mechanism.parameters.get(NAME)).map_or("", String::as_str)
}

/// Says where the endpoint's side is, and has its descriptor ready for the answer.
pub(crate) fn place(call: &mut Call, namespace: &Namespace, mechanism: &mut Mechanism) {
    mechanism.parameters.insert(INODE_URL.to_owned(), namespace.inode().to_string());
    call.state.get_or_default::<Fds>().insert(namespace.inode(), Arc::clone(namespace.fd()));
}

/// A kernel interface in the endpoint's namespace, which the forwarder makes there, with its addresses and routes.
pub struct Kernel {
    namespace: Namespace,
}

impl Kernel {
    /// Interfaces in this namespace.
    pub fn new(namespace: Namespace) -> Self {
        Self { namespace }
    }
}

#[async_trait]
impl EndpointMechanism for Kernel {
    fn kind(&self) -> &'static str {
        crate::api::mechanism::KERNEL
    }

    async fn request(
        &self,
        call: &mut Call,
        connection: &Connection,
        mechanism: &mut Mechanism,
    ) -> Result<(), Status> {
        let name = mechanism.parameters.entry(NAME.to_owned()).or_default();
        if name.is_empty() {
            *name = made_up_interface_name(&connection.network_service);
        }
        check_interface_name(name)
            .map_err(|reason| Status::invalid_argument(format!("mechanism.parameters[name]: {reason}")))?;
        place(call, &self.namespace, mechanism);
        Ok(())
    }
}

/// No interface at all: the connection exists in the control plane only.
pub struct Noop;

#[async_trait]
impl EndpointMechanism for Noop {
    fn kind(&self) -> &'static str {
        "NOOP"
    }

    async fn request(&self, _: &mut Call, _: &Connection, _: &mut Mechanism) -> Result<(), Status> {
        Ok(())
    }
}
