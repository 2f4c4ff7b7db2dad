//! An endpoint in the middle of a chain of endpoints: it asks for the service again, with labels of its own.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use tonic::Status;
use vwire_proto::nsm::connection::{Connection, Mechanism};
use vwire_proto::nsm::networkservice::NetworkServiceRequest;

use crate::api::mechanism::{INODE_URL, KERNEL, NAME};
use crate::chain::{Call, Element, Fds, Next};
use crate::client::Namespace;
use crate::client::nsurl::made_up_interface_name;
use crate::transport::Target;

/// Sends the connection on to a manager; the caller's side of it is put back into the answer. `Connect` must follow in the chain.
pub struct PassThrough {
    /// The manager.
    pub next_hop: Target,
    /// Our labels, in place of the client's: by them the manager chooses the next endpoint.
    pub labels: BTreeMap<String, String>,
    /// The service that is asked for in place of the client's; none: the same.
    pub service: Option<String>,
    /// How the way on may be carried. A kernel interface without a name gets one.
    pub preferences: Vec<Mechanism>,
    /// Where our interfaces are.
    pub namespace: Namespace,
}

/// The way on, in the connection's state.
#[derive(Clone)]
struct Onward {
    mechanism: Option<Mechanism>,
    endpoint: String,
}

impl PassThrough {
    fn preferences(&self, service: &str) -> Vec<Mechanism> {
        let mut preferences = self.preferences.clone();
        for Mechanism { r#type, parameters, .. } in &mut preferences {
            parameters.insert(INODE_URL.to_owned(), self.namespace.inode().to_string());
            if r#type == KERNEL {
                parameters.entry(NAME.to_owned()).or_insert_with(|| made_up_interface_name(service));
            }
        }
        preferences
    }

    fn turn(&self, call: &mut Call, connection: &mut Connection) {
        let onward = call.state.get::<Onward>().cloned();
        connection.mechanism = onward.as_ref().and_then(|onward| onward.mechanism.clone());
        connection.network_service_endpoint_name = onward.map(|onward| onward.endpoint).unwrap_or_default();
        connection.labels.clone_from(&self.labels);
        if let Some(service) = &self.service {
            connection.network_service.clone_from(service);
        }
        call.state.get_or_default::<Fds>().insert(self.namespace.inode(), Arc::clone(self.namespace.fd()));
        call.next_hop = Some(self.next_hop.clone());
    }
}

#[async_trait]
impl Element for PassThrough {
    async fn request(
        &self,
        call: &mut Call,
        mut request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        let Some(connection) = request.connection.as_mut() else {
            return Err(Status::invalid_argument("connection: missing from the request"));
        };
        let (mechanism, labels) = (connection.mechanism.clone(), connection.labels.clone());
        let endpoint = connection.network_service_endpoint_name.clone();
        let service = connection.network_service.clone();
        self.turn(call, connection);
        request.mechanism_preferences = self.preferences(&connection.network_service);
        let mut answer = next.request(call, request).await?;
        let onward = Onward {
            mechanism: std::mem::replace(&mut answer.mechanism, mechanism),
            endpoint: std::mem::replace(&mut answer.network_service_endpoint_name, endpoint),
        };
        call.state.insert(onward);
        answer.labels = labels;
        answer.network_service = service;
        Ok(answer)
    }

    async fn close(&self, call: &mut Call, mut connection: Connection, next: Next<'_>) -> Result<(), Status> {
        self.turn(call, &mut connection);
        call.state.remove::<Onward>();
        next.close(call, connection).await
    }
}
