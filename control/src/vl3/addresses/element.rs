//! Addresses as a step of the chain.

use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use ipnet::IpNet;
use tonic::Status;
use vwire_proto::nsm::connection::Connection;
use vwire_proto::nsm::networkservice::NetworkServiceRequest;

use super::{Addresses, check_announced};
use crate::chain::{Call, Element, Next};
use crate::vl3::router::{Route, Router};
use crate::vl3::server::port_name;

/// Assigns addresses on the way in. A first Request that fails further on leaves nothing assigned.
pub struct AssignAddresses {
    addresses: Arc<Addresses>,
    router: Arc<Router>,
}

/// What leads to a connection, in its state for the elements before this one.
pub struct Behind(pub Vec<Route>);

impl AssignAddresses {
    /// Of these; `router` knows what leads to others.
    pub fn new(addresses: Arc<Addresses>, router: Arc<Router>) -> Self {
        Self { addresses, router }
    }

    fn check(&self, id: &str, sources: &[String], announced: &[IpNet]) -> Result<(), Status> {
        let address = |text: &String| text.split('/').next()?.parse().ok();
        let sources: Vec<IpAddr> = sources.iter().filter_map(address).collect();
        check_announced(&self.addresses.grants(), &self.router.routes(), &port_name(id), &sources, announced)
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
        let answer = match self.check(&id, &context.src_ip_addrs, &assigned.announced) {
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
