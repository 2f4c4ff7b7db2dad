//! This hop in the path: the caller's token at its place, ours for it after that, and both identities in `path_ids`.

use std::sync::Arc;

use async_trait::async_trait;
use prost_types::Timestamp;
use tonic::Status;
use vwire_proto::nsm::registry::{NetworkService, NetworkServiceEndpoint};

use super::path::{RegistryPath, put_id};
use super::{Layer, Registry, RegistryCall, expiry};
use crate::chain::Origin;
use crate::identity::{TokenSource, jwt};

/// Does what Go's `updatepath` does (sdk, `pkg/registry/common/updatepath`). Calls that came without TLS, and those of the role
/// itself, have no tokens and pass as they are.
pub struct Hops<R> {
    inner: R,
    tokens: TokenSource,
}

/// What has to be undone on the way back.
enum Before {
    /// Nothing.
    Untouched,
    /// The caller's index; none if it sent no path, and so gets none.
    Index(Option<u32>),
}

impl<R: Registry> Hops<R> {
    /// Puts this hop before `inner`.
    pub fn new(inner: R, tokens: TokenSource) -> Self {
        Self { inner, tokens }
    }

    fn enter(&self, call: &mut RegistryCall, ids: &mut Vec<String>) -> Result<Before, Status> {
        let Origin::Peer { peer, token } = &call.origin else { return Ok(Before::Untouched) };
        if peer.leaf.is_none() {
            return Ok(Before::Untouched);
        }
        let ours = self.tokens.for_peer(peer)?;
        let callers: Arc<str> = token.as_ref().map_or_else(|| "".into(), |token| Arc::clone(&token.jwt));
        let (caller_id, our_id) = (subject(&callers), subject(&ours.jwt));
        call.not_after = ends(token.as_ref().map(|token| token.expires), ours.expires);
        let sent = call.path.is_some();
        let path = call.path.get_or_insert_with(RegistryPath::default);
        let index = path.advance(callers, ours.jwt)?;
        put_id(ids, index as usize, &caller_id);
        put_id(ids, index as usize + 1, &our_id);
        Ok(Before::Index(sent.then_some(index)))
    }
}

/// The earlier of two ends.
fn ends(callers: Option<Timestamp>, ours: Timestamp) -> Option<Timestamp> {
    Some(callers.map_or(ours, |callers| expiry::earlier(callers, ours)))
}

/// Whom a token names; nobody if it is none. Who signed it is asked elsewhere.
pub(super) fn subject(token: &str) -> String {
    jwt::read(token).map(|claims| claims.sub).unwrap_or_default()
}

/// Back in the caller's coordinates.
fn leave(call: &mut RegistryCall, before: Before) {
    match before {
        Before::Untouched => {}
        Before::Index(None) => call.path = None,
        Before::Index(Some(index)) => call.path.iter_mut().for_each(|path| path.index = index),
    }
}

#[async_trait]
impl<R: Registry> Layer for Hops<R> {
    type Inner = R;

    fn inner(&self) -> &R {
        &self.inner
    }

    async fn register_service(
        &self,
        call: &mut RegistryCall,
        mut service: NetworkService,
    ) -> Result<NetworkService, Status> {
        let before = self.enter(call, &mut service.path_ids)?;
        let registered = self.inner.register_service(call, service).await?;
        leave(call, before);
        Ok(registered)
    }

    async fn unregister_service(
        &self,
        call: &mut RegistryCall,
        mut service: NetworkService,
    ) -> Result<(), Status> {
        let before = self.enter(call, &mut service.path_ids)?;
        self.inner.unregister_service(call, service).await?;
        leave(call, before);
        Ok(())
    }

    async fn register_endpoint(
        &self,
        call: &mut RegistryCall,
        mut endpoint: NetworkServiceEndpoint,
    ) -> Result<NetworkServiceEndpoint, Status> {
        let before = self.enter(call, &mut endpoint.path_ids)?;
        let registered = self.inner.register_endpoint(call, endpoint).await?;
        leave(call, before);
        Ok(registered)
    }

    async fn unregister_endpoint(
        &self,
        call: &mut RegistryCall,
        mut endpoint: NetworkServiceEndpoint,
    ) -> Result<(), Status> {
        let before = self.enter(call, &mut endpoint.path_ids)?;
        self.inner.unregister_endpoint(call, endpoint).await?;
        leave(call, before);
        Ok(())
    }
}
