//! `roundrobin`: one of the endpoints that match.

use async_trait::async_trait;
use tonic::{Code, Status};

use super::lookup;
use crate::api::connection::Connection;
use crate::api::matching::{Candidate, Turns, in_turn};
use crate::api::networkservice::NetworkServiceRequest;
use crate::chain::{Call, Element, Next};
use crate::registry::EndpointEvent;

/// Tries the candidates that `discover` found until one accepts: each service's endpoints in turn, or by the weights of the routes
/// that chose them.
#[derive(Default)]
pub struct RoundRobin {
    turns: Turns,
}

#[async_trait]
impl Element for RoundRobin {
    async fn request(
        &self,
        call: &mut Call,
        mut request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        if call.next_hop.is_some() || call.candidates.is_empty() {
            return next.request(call, request).await;
        }
        let mut candidates = std::mem::take(&mut call.candidates);
        let service = request.connection.get_or_insert_default().network_service.clone();
        in_turn(&mut candidates, self.turns.next(&service));
        let mut failures = Failures::default();
        for candidate in candidates {
            if call.remaining().is_zero() {
                break;
            }
            match attempt(call, &request, next, &candidate).await {
                Ok(connection) => return Ok(connection),
                Err(status) => failures.add(&candidate.endpoint.name, status),
            }
            call.next_hop = None;
        }
        Err(failures.status(&format!("endpoints of `{service}`")))
    }
}

async fn attempt(
    call: &mut Call,
    request: &NetworkServiceRequest,
    next: Next<'_>,
    candidate: &Candidate,
) -> Result<Connection, Status> {
    let event = EndpointEvent {
        endpoint: candidate.endpoint.clone(),
        deleted: false,
        socket: candidate.socket.clone(),
    };
    call.next_hop = Some(lookup::target(&event)?);
    let mut request = request.clone();
    request
        .connection
        .get_or_insert_default()
        .network_service_endpoint_name
        .clone_from(&candidate.endpoint.name);
    next.request(call, request).await
}

/// Why each candidate failed.
#[derive(Default)]
pub(super) struct Failures(Vec<(String, Status)>);

impl Failures {
    pub(super) fn add(&mut self, candidate: &str, status: Status) {
        tracing::info!(candidate, %status, "a candidate refused");
        self.0.push((candidate.to_owned(), status));
    }

    /// One status of all; of several it has the last one's code.
    pub(super) fn status(self, of_what: &str) -> Status {
        // Errors travel in HTTP/2 trailers, which are small.
        const SHOWN: usize = 5;
        let count = self.0.len();
        let code = self.0.last().map_or(Code::DeadlineExceeded, |(_, status)| status.code());
        let each: Vec<String> = self.0.iter().take(SHOWN).map(|(name, status)| named(name, status)).collect();
        match count {
            0 => Status::new(code, format!("no time was left to try {of_what}")),
            1 => Status::new(code, each.concat()),
            _ => {
                let more =
                    if count > SHOWN { format!("; and {} more", count - SHOWN) } else { String::new() };
                Status::new(code, format!("all {count} {of_what} failed: {}{more}", each.join("; ")))
            }
        }
    }
}

/// What a candidate said; it has named itself unless it is of another make or was not reached.
fn named(name: &str, status: &Status) -> String {
    let text = status.message();
    let by_itself = text.strip_prefix(name).is_some_and(|rest| rest.starts_with(": "));
    if by_itself { text.to_owned() } else { format!("{name}: {text}") }
}
