//! What tests of elements share.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use tonic::Status;

use super::{Call, Element, Next, Origin};
use crate::api::connection::{Connection, Path, PathSegment};
use crate::api::networkservice::NetworkServiceRequest;
use crate::api::token::tests::unsigned;
use crate::identity::{SpiffeId, Token};
use crate::transport::{Peer, PeerAddress};

pub(crate) fn spiffe(name: &str) -> SpiffeId {
    SpiffeId::new(format!("spiffe://example.org/{name}")).unwrap()
}

pub(crate) fn peer(name: &str) -> Arc<Peer> {
    Arc::new(Peer {
        id: Some(spiffe(name)),
        leaf: None,
        not_after: None,
        local: None,
        address: PeerAddress::Tcp(SocketAddr::from(([127, 0, 0, 1], 1))),
        fds: None,
    })
}

pub(crate) fn token(name: &str, life: Duration) -> Token {
    Token { jwt: unsigned(&spiffe(name).to_string()).into(), expires: (SystemTime::now() + life).into() }
}

/// A call by `name` that has 5 s, with a token of 10 minutes.
pub(crate) fn call_by(name: &str) -> Call {
    let token = Some(token(name, Duration::from_secs(600)));
    Call::new(Origin::Peer { peer: peer(name), token }, Duration::from_secs(5))
}

/// A connection in the coordinates of the last of these segments, `name/id` each, with a token that says `name`.
pub(crate) fn connection(segments: &[&str]) -> Connection {
    let path_segments: Vec<PathSegment> = segments
        .iter()
        .map(|segment| {
            let (name, id) = segment.split_once('/').unwrap();
            let token = unsigned(&spiffe(name).to_string());
            PathSegment { name: name.into(), id: id.into(), token, ..Default::default() }
        })
        .collect();
    let id = path_segments.last().unwrap().id.clone();
    let index = path_segments.len() as u32 - 1;
    let path = Some(Path { index, path_segments });
    Connection { id, network_service: "s".into(), path, ..Default::default() }
}

pub(crate) fn request(connection: Connection) -> NetworkServiceRequest {
    NetworkServiceRequest { connection: Some(connection), mechanism_preferences: Vec::new() }
}

/// How many runs came to this place of a chain, and what they were; may be told to fail.
#[derive(Default)]
pub(crate) struct Probe {
    pub requests: Mutex<Vec<Connection>>,
    pub closes: Mutex<Vec<Connection>>,
    /// So many Requests fail from now on.
    pub failing: AtomicUsize,
    /// A Request waits for this, if set.
    pub gate: Mutex<Option<Arc<tokio::sync::Notify>>>,
}

/// What the probe leaves in a connection's state.
pub(crate) struct Seen(pub usize);

impl Probe {
    pub(crate) fn fail_next(&self, times: usize) {
        self.failing.store(times, Ordering::SeqCst);
    }

    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.requests.lock().unwrap().len(), self.closes.lock().unwrap().len())
    }
}

#[async_trait]
impl Element for Arc<Probe> {
    async fn request(
        &self,
        call: &mut Call,
        request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        self.requests.lock().unwrap().push(request.connection.clone().unwrap());
        call.state.insert(Seen(call.state.get::<Seen>().map_or(1, |seen| seen.0 + 1)));
        let gate = self.gate.lock().unwrap().clone();
        if let Some(gate) = gate {
            gate.notified().await;
        }
        let left = self.failing.load(Ordering::SeqCst);
        if left > 0 {
            self.failing.store(left - 1, Ordering::SeqCst);
            return Err(Status::unavailable("probe: told to fail"));
        }
        next.request(call, request).await
    }

    async fn close(&self, call: &mut Call, connection: Connection, next: Next<'_>) -> Result<(), Status> {
        self.closes.lock().unwrap().push(connection.clone());
        next.close(call, connection).await
    }
}
