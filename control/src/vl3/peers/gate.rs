//! The door for peers that dial us: an element of the endpoint's chain.
//!
//! It stands before whatever makes ports and routes of a connection. What it lets through has the right to the prefixes that it
//! announces, and is the one link of its pair.

use std::sync::Arc;

use async_trait::async_trait;
use tonic::Status;
use vwire_proto::nsm::connection::Connection;
use vwire_proto::nsm::networkservice::NetworkServiceRequest;

use super::announced::{Announced, MARK};
use super::links::Links;
use super::pairing::Caller;
use crate::api::token::claimed_subject;
use crate::chain::{Call, Element, Next};
use crate::domain;
use crate::vl3::addresses::Admitted;

/// Lets peers in.
pub struct Gate {
    links: Arc<Links>,
    port_name: fn(&str) -> String,
}

impl Gate {
    /// The endpoint calls a connection's port by `port_name` of its id.
    pub(super) fn new(links: Arc<Links>, port_name: fn(&str) -> String) -> Self {
        Self { links, port_name }
    }
}

/// A Request that was let in: its end is told, even if it is broken off.
struct Entered<'a> {
    links: &'a Links,
    id: &'a str,
    well: bool,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.links.admitted(self.id, self.well);
    }
}

/// Who dials, by the path's first segment, and the id that it gave the connection.
fn caller(connection: &Connection) -> Option<(String, Caller)> {
    let first = connection.path.as_ref()?.path_segments.first()?;
    let extra = connection.context.as_ref().map(|context| &context.extra_context);
    let caller = Caller {
        name: domain::target(&first.name).to_owned(),
        identity: claimed_subject(&first.token),
        yields: extra.is_some_and(|extra| extra.contains_key(MARK)),
    };
    Some((first.id.clone(), caller))
}

#[async_trait]
impl Element for Gate {
    async fn request(
        &self,
        call: &mut Call,
        request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        call.state.remove::<Admitted>();
        let Some(connection) = &request.connection else { return next.request(call, request).await };
        let (Some(said), Some((id, caller))) = (Announced::in_request(connection), caller(connection)) else {
            return next.request(call, request).await;
        };
        let mark = connection.context.as_ref().and_then(|context| context.extra_context.get(MARK));
        if mark == Some(&self.links.mark) {
            return Err(Status::failed_precondition(
                "connection.network_service_endpoint_name: an endpoint is no peer of itself",
            ));
        }
        let port = (self.port_name)(&connection.id);
        let entry = self.links.admit(&id, &port, caller, said)?;
        call.state.insert(Admitted(entry.routes));
        let mut entered = Entered { links: &self.links, id: &id, well: false };
        if let Some(peer) = entry.ours {
            self.links.detach(&peer).await;
        }
        if let Some(port) = entry.former {
            self.links.forget_port(&port).await;
        }
        let answer = next.request(call, request).await;
        entered.well = answer.is_ok();
        answer
    }

    async fn close(&self, call: &mut Call, connection: Connection, next: Next<'_>) -> Result<(), Status> {
        let id = caller(&connection).map(|(id, _)| id);
        let port = (self.port_name)(&connection.id);
        let closed = next.close(call, connection).await;
        if let Some(id) = id {
            self.links.ended(&id, &port);
        }
        closed
    }
}
