//! Addresses as a step of the chain.

use std::sync::Arc;

use async_trait::async_trait;
use ipnet::IpNet;
use tonic::Status;
use vwire_proto::nsm::connection::Connection;
use vwire_proto::nsm::networkservice::NetworkServiceRequest;

use super::Addresses;
use crate::chain::{Call, Element, Next};
use crate::vl3::router::Route;

/// Assigns addresses on the way in. A first Request that fails further on leaves nothing assigned.
pub struct AssignAddresses {
    addresses: Arc<Addresses>,
}

/// What may lead to another endpoint that asks, by the judgement of [`Gate`](crate::vl3::peers::Gate); in the state of its connection
/// for the elements behind. Without it nothing is taken from anybody who says that he is an endpoint.
pub struct Admitted(pub Vec<IpNet>);

/// What leads to a connection, in its state for the elements before this one.
pub struct Behind(pub Vec<Route>);

impl AssignAddresses {
    /// Of these.
    pub fn new(addresses: Arc<Addresses>) -> Self {
        Self { addresses }
    }
}

/// Whether all of it was admitted.
fn check(admitted: Option<&Admitted>, announced: &[IpNet]) -> Result<(), Status> {
    let may = |prefix: &&IpNet| admitted.is_some_and(|admitted| admitted.0.contains(*prefix));
    match announced.iter().find(|prefix| !may(prefix)) {
        None => Ok(()),
        Some(prefix) => Err(Status::failed_precondition(format!(
            "connection.context.ip_context.dst_routes: {prefix}: only to another endpoint of the network lead routes that it brings, and only \
             those of its own prefix"
        ))),
    }
}

#[async_trait]
impl Element for AssignAddresses {
    async fn request(
        &self,
        call: &mut Call,
        mut request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        let connection = request
            .connection
            .as_mut()
            .ok_or_else(|| Status::invalid_argument("connection: missing from the request"))?;
        let id = connection.id.clone();
        let context = connection.context.get_or_insert_default().ip_context.get_or_insert_default();
        let assigned = self.addresses.assign(&id, context)?;
        let answer = match check(call.state.get(), &assigned.announced) {
            Ok(()) => {
                call.state.insert(Behind(assigned.routes));
                next.request(call, request).await
            }
            Err(status) => Err(status),
        };
        match answer {
            Ok(mut answer) => {
                let context = answer.context.get_or_insert_default().ip_context.get_or_insert_default();
                self.addresses.add_global(&id, context);
                Ok(answer)
            }
            Err(status) => {
                if assigned.is_new {
                    self.addresses.free(&id);
                }
                Err(status)
            }
        }
    }

    async fn close(&self, call: &mut Call, connection: Connection, next: Next<'_>) -> Result<(), Status> {
        self.addresses.free(&connection.id);
        next.close(call, connection).await
    }
}
