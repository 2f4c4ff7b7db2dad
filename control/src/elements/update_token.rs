//! `updatetoken`: who vouches for each hop of a path.

use async_trait::async_trait;
use tonic::Status;

use crate::api::connection::{Connection, Path};
use crate::api::networkservice::NetworkServiceRequest;
use crate::chain::{Call, Element, Next, Origin};
use crate::identity::TokenSource;

/// Puts the caller's token, which it made for us, into its segment, and one of ours, made for the caller, into our segment; the
/// next hop replaces ours by the one that we make for it.
pub struct UpdateToken {
    tokens: TokenSource,
}

impl UpdateToken {
    /// With tokens of this source.
    pub fn new(tokens: TokenSource) -> Self {
        Self { tokens }
    }

    fn update(&self, call: &Call, path: Option<&mut Path>) -> Result<(), Status> {
        let (Origin::Peer { peer, token }, Some(path)) = (&call.origin, path) else { return Ok(()) };
        let index = path.index as usize;
        let callers = index.checked_sub(1).and_then(|index| path.path_segments.get_mut(index));
        if let (Some(segment), Some(token)) = (callers, token) {
            segment.token = token.jwt.to_string();
            segment.expires = Some(token.expires);
        }
        // Without TLS nobody can vouch for anything.
        if peer.id.is_none() {
            return Ok(());
        }
        if let Some(segment) = path.path_segments.get_mut(index) {
            let token = self.tokens.for_peer(peer)?;
            segment.token = token.jwt.to_string();
            segment.expires = Some(token.expires);
        }
        Ok(())
    }
}

#[async_trait]
impl Element for UpdateToken {
    async fn request(
        &self,
        call: &mut Call,
        mut request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        self.update(call, request.connection.as_mut().and_then(|connection| connection.path.as_mut()))?;
        next.request(call, request).await
    }

    async fn close(&self, call: &mut Call, mut connection: Connection, next: Next<'_>) -> Result<(), Status> {
        self.update(call, connection.path.as_mut())?;
        next.close(call, connection).await
    }
}
