//! `discover`: which endpoints may serve a Request.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tonic::Status;

use super::lookup;
use crate::api::connection::Connection;
use crate::api::matching::{self, Candidate};
use crate::api::networkservice::NetworkServiceRequest;
use crate::api::registry::NetworkServiceEndpoint;
use crate::chain::{Call, Element, Next};
use crate::registry::Registry;
use crate::transport::Target;

/// How long a Close waits for its endpoint to be registered again, and between two looks.
const CLOSE_TIME: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(20);

/// In the [`State`](crate::chain::State) of a connection that an earlier process made: where it went on is a place that only that process
/// could reach, a socket that it had been given. By the endpoint's name it is found again.
#[derive(Debug, Clone, Copy)]
pub struct KnownByName;

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

    /// Where the endpoint is, as soon as it is registered: if the manager was restarted like us, its endpoints register again.
    async fn come_back(&self, name: &str, time: Duration) -> Result<Target, Status> {
        let end = Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let found = lookup::endpoint(&*self.registry, name, left).await;
            match found.and_then(|found| lookup::target(&found)) {
                Err(_) if left > LOOK => tokio::time::sleep(LOOK).await,
                done => return done,
            }
        }
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
        let answer = next.request(call, request).await?;
        call.state.remove::<KnownByName>();
        Ok(answer)
    }

    async fn close(&self, call: &mut Call, connection: Connection, next: Next<'_>) -> Result<(), Status> {
        let name = &connection.network_service_endpoint_name;
        if call.state.remove::<KnownByName>().is_some() && call.next_hop.is_none() && !name.is_empty() {
            match self.come_back(name, (call.remaining() / 2).min(CLOSE_TIME)).await {
                Ok(target) => call.next_hop = Some(target),
                Err(status) => {
                    tracing::info!(endpoint = name, %status, "its endpoint will not hear of a Close")
                }
            }
        }
        next.close(call, connection).await
    }
}
