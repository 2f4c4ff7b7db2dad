//! Connections to peers, kept open.

use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use tonic::Status;
use tonic::body::Body;

use super::{Peer, Target};

/// Connections by target: each is dialled once, shared by all calls, and dialled anew when it has broken or our SVID has changed.
pub struct Pool(());

impl Pool {
    /// A connection to whoever listens at `target`.
    ///
    /// # Errors
    /// UNAVAILABLE, naming the target and the reason.
    pub async fn hop(&self, target: &Target) -> Result<Hop, Status> {
        Err(Status::unimplemented(format!("dialling {target}")))
    }
}

/// One TLS session with a peer. A gRPC client is made of it: `NetworkServiceClient::new(hop)`. It adds our token for the peer to
/// each call, and ends a call when its timeout (`Request::set_timeout`) is over.
#[derive(Clone)]
pub struct Hop {
    peer: Arc<Peer>,
}

impl Hop {
    /// Who is there.
    pub fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    /// Waits until the connection has ended.
    pub async fn closed(&self) {
        std::future::pending().await
    }
}

impl tower::Service<http::Request<Body>> for Hop {
    type Response = http::Response<Body>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Self::Response, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Request<Body>) -> Self::Future {
        Box::pin(async { Err(Status::unimplemented("calling")) })
    }
}
