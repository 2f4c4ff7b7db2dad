//! `commit`: what the elements after it have staged goes to the engine, as one transaction; or nothing does.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use tonic::Status;

use super::connect::Connected;
use super::mechanisms::{Staged, TowardEndpoint};
use crate::api::connection::Connection;
use crate::api::networkservice::NetworkServiceRequest;
use crate::api::path::{self, PathExt};
use crate::api::token::claimed_subject;
use crate::chain::{Call, Element, Next};
use crate::dataplane::Dataplane;
use crate::dataplane::note::Note;
use crate::transport::Target;

/// The element.
pub struct Commit {
    dataplane: Arc<Dataplane>,
}

impl Commit {
    /// To this engine.
    pub fn new(dataplane: Arc<Dataplane>) -> Self {
        Self { dataplane }
    }

    async fn commit(&self, call: &mut Call, staged: Staged, answer: &Connection) -> Result<(), Status> {
        let mut note = Note::new(&self.dataplane.owner, answer);
        note.toward_endpoint = Some(staged.toward_endpoint.clone());
        note.expires = expiry(answer);
        note.caller =
            call.peer().and_then(|peer| peer.id.as_ref()).map(ToString::to_string).unwrap_or_default();
        let first = path::of(answer).path_segments.first();
        note.client = first.and_then(|segment| claimed_subject(&segment.token)).unwrap_or_default();
        note.next_hop = match call.state.get::<Connected>().map(|connected| &connected.target) {
            Some(target @ (Target::Tcp(_) | Target::Unix(_))) => target.to_string(),
            // A socket without a name of ours can't be found again.
            Some(Target::File { .. }) | None => String::new(),
        };
        call.state.insert(TowardEndpoint(staged.toward_endpoint));
        let (dataplane, id, deadline) = (Arc::clone(&self.dataplane), answer.id.clone(), call.deadline);
        // A task of its own: a caller that goes away must not leave the engine with ports that no record knows of.
        let work = async move { dataplane.set(&id, (staged.server, staged.client), note, deadline).await };
        tokio::spawn(work)
            .await
            .unwrap_or_else(|error| Err(Status::internal(format!("programming the engine: {error}"))))
    }
}

/// The life of a connection between roles without TLS, where no token says it; as `timeout` has it.
const WITHOUT_TOKENS: u64 = 600;

/// When the caller's token ends, in seconds since 1970.
fn expiry(connection: &Connection) -> i64 {
    let said = path::of(connection).previous().and_then(|segment| segment.expires.as_ref());
    said.map_or_else(
        || {
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |now| (now.as_secs() + WITHOUT_TOKENS) as i64)
        },
        |expires| expires.seconds,
    )
}

#[async_trait]
impl Element for Commit {
    async fn request(
        &self,
        call: &mut Call,
        request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        let id = request.connection.as_ref().map(|connection| connection.id.clone()).unwrap_or_default();
        let done = next.request(call, request).await;
        let done = match (done, call.state.remove::<Staged>()) {
            (Ok(answer), Some(staged)) => self.commit(call, staged, &answer).await.map(|()| answer),
            (done, _) => done,
        };
        self.dataplane.keep_numbers(&id);
        done
    }

    async fn close(&self, call: &mut Call, connection: Connection, next: Next<'_>) -> Result<(), Status> {
        // First here: nothing must be left even if nobody answers further on.
        let removed = self.dataplane.remove(&connection.id).await;
        next.close(call, connection).await.and(removed)
    }
}
