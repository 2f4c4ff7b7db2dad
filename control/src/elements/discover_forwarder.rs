//! `discoverforwarder`: which forwarder of this node carries a connection.

use std::sync::Arc;

use async_trait::async_trait;
use tonic::Status;

use super::lookup;
use super::round_robin::Failures;
use crate::api::connection::{Connection, State as ConnectionState};
use crate::api::matching;
use crate::api::networkservice::NetworkServiceRequest;
use crate::api::path::{self, PathExt};
use crate::api::registry::NetworkServiceEndpoint;
use crate::chain::{Call, Element, Next};
use crate::registry::{EndpointEvent, Registry};

/// The forwarder of a connection, in its state.
struct Forwarder(String);

/// Tries the forwarders that were registered by way of this nsmgr and that suit the service's match for the client, until one
/// accepts. A connection stays with its forwarder until a reselection is asked for; a nsmgr that has forgotten it tries the one in
/// the path first.
pub struct DiscoverForwarder {
    registry: Arc<dyn Registry>,
    service: String,
    url: String,
}

impl DiscoverForwarder {
    /// Finds forwarders as endpoints of `service` in `registry`, and of those the ones that are reached by way of `url`, ours.
    pub fn new(registry: Arc<dyn Registry>, service: impl Into<String>, url: impl Into<String>) -> Self {
        Self { registry, service: service.into(), url: url.into() }
    }

    async fn candidates(
        &self,
        call: &Call,
        connection: &Connection,
        only: &str,
    ) -> Result<Vec<EndpointEvent>, Status> {
        let name = &connection.network_service;
        let service = lookup::service(&*self.registry, name, &connection.payload, call.remaining()).await?;
        let query = NetworkServiceEndpoint {
            name: only.to_owned(),
            network_service_names: vec![self.service.clone()],
            url: self.url.clone(),
            ..Default::default()
        };
        let mut found = lookup::endpoints(&*self.registry, query, "forwarders", call.remaining()).await?;
        found.retain(|event| only.is_empty() || event.endpoint.name == only);
        let endpoints: Vec<_> = found.iter().map(|event| &*event.endpoint).collect();
        match matching::select_forwarders(&connection.labels, &service, &self.service, &endpoints) {
            Ok(chosen) if !chosen.is_empty() => {
                Ok(chosen.into_iter().map(|index| found[index].clone()).collect())
            }
            Ok(_) => Err(self.none(only, &[])),
            Err(refused) => Err(self.none(only, &refused)),
        }
    }

    fn none(&self, only: &str, refused: &[matching::Refusal]) -> Status {
        let reasons: Vec<String> =
            refused.iter().map(|refusal| format!("{}: {}", refusal.endpoint, refusal.reason)).collect();
        let text = match (only, reasons.is_empty()) {
            ("", true) => {
                format!("no forwarder: no endpoint of `{}` is registered on this node", self.service)
            }
            ("", false) => format!("no forwarder suits; {} refused: {}", reasons.len(), reasons.join("; ")),
            (_, true) => format!("forwarder {only}, which has this connection, is not registered any more"),
            (_, false) => format!(
                "forwarder {only}, which has this connection, does not suit any more: {}",
                reasons.join("; ")
            ),
        };
        Status::unavailable(text)
    }
}

#[async_trait]
impl Element for DiscoverForwarder {
    async fn request(
        &self,
        call: &mut Call,
        mut request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        let connection = request.connection.get_or_insert_default();
        let reselects = connection.state() == ConnectionState::ReselectRequested;
        if reselects {
            call.state.remove::<Forwarder>();
        }
        let only = call.state.get::<Forwarder>().map(|forwarder| forwarder.0.clone()).unwrap_or_default();
        let mut candidates = self.candidates(call, connection, &only).await?;
        let in_path = path::of(connection).following().map(|segment| segment.name.as_str());
        if only.is_empty()
            && !reselects
            && let Some(at) = candidates.iter().position(|one| Some(one.endpoint.name.as_str()) == in_path)
        {
            candidates.swap(0, at);
        }
        let mut failures = Failures::default();
        for candidate in candidates {
            if call.remaining().is_zero() {
                break;
            }
            let name = candidate.endpoint.name.clone();
            let answer = match lookup::target(&candidate) {
                Ok(target) => {
                    call.next_hop = Some(target);
                    next.request(call, request.clone()).await
                }
                Err(status) => Err(status),
            };
            match answer {
                Ok(connection) => {
                    call.state.insert(Forwarder(name));
                    return Ok(connection);
                }
                Err(status) => failures.add(&name, status),
            }
        }
        Err(failures.status("forwarders"))
    }
}
