//! `discover`: which endpoints may serve a Request.

use std::sync::Arc;

use async_trait::async_trait;
use tonic::Status;

use super::lookup;
use crate::api::connection::Connection;
use crate::api::matching::{self, Candidate};
use crate::api::networkservice::NetworkServiceRequest;
use crate::api::registry::NetworkServiceEndpoint;
use crate::chain::{Call, Element, Next};
use crate::registry::Registry;

/// Finds the endpoint that a Request names, or those of its service that match the client's labels, and the service's payload. Does
/// not wait for endpoints that are not there yet: clients ask again.
pub struct Discover {
    registry: Arc<dyn Registry>,
}

impl Discover {
    /// In this registry.
    pub fn new(registry: Arc<dyn Registry>) -> Self {
        Self { registry }
    }

    async fn by_name(&self, call: &mut Call, connection: &mut Connection) -> Result<(), Status> {
        let name = &connection.network_service_endpoint_name;
        let found = lookup::endpoint(&*self.registry, name, call.remaining()).await?;
        call.next_hop = Some(lookup::target(&found)?);
        // Forwarders need the payload; a client that names its endpoint may not know it.
        if connection.payload.is_empty()
            && let Ok(service) =
                lookup::service(&*self.registry, &connection.network_service, "", call.remaining()).await
        {
            connection.payload.clone_from(&service.payload);
        }
        Ok(())
    }

    async fn by_service(&self, call: &mut Call, connection: &mut Connection) -> Result<(), Status> {
        let name = &connection.network_service;
        if name.is_empty() {
            return Err(Status::invalid_argument(
                "connection.network_service: empty, and no endpoint is named",
            ));
        }
        let service = lookup::service(&*self.registry, name, &connection.payload, call.remaining()).await?;
        let query =
            NetworkServiceEndpoint { network_service_names: vec![name.clone()], ..Default::default() };
        let what = format!("endpoints of `{name}`");
        let found = lookup::endpoints(&*self.registry, query, &what, call.remaining()).await?;
        let endpoints: Vec<_> = found.iter().map(|event| Arc::clone(&event.endpoint)).collect();
        let chosen = matching::select(&connection.labels, &service, &endpoints);
        if chosen.is_empty() {
            let why = matching::explain(&connection.labels, &service, &endpoints);
            return Err(Status::not_found(why.to_string()));
        }
        let candidates = chosen.into_iter().map(|choice| Candidate {
            endpoint: Arc::clone(&endpoints[choice.index]),
            weight: choice.weight,
            socket: found[choice.index].socket.clone(),
        });
        call.candidates = candidates.collect();
        connection.payload.clone_from(&service.payload);
        Ok(())
    }
}

#[async_trait]
impl Element for Discover {
    async fn request(
        &self,
        call: &mut Call,
        mut request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        if call.next_hop.is_none() {
            let connection = request.connection.get_or_insert_default();
            if connection.network_service_endpoint_name.is_empty() {
                self.by_service(call, connection).await?;
            } else {
                self.by_name(call, connection).await?;
            }
        }
        next.request(call, request).await
    }
}
