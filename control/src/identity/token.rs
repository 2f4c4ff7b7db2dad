//! Tokens: what a hop says about itself to the next one.

use std::sync::Arc;
use std::time::Duration;

use prost_types::Timestamp;
use tonic::Status;

use super::Identity;
use crate::transport::Peer;

/// A JWT and its end, as they travel in call metadata and in path segments (reference/nsm-protocol.md §2.3).
#[derive(Clone, PartialEq)]
pub struct Token {
    /// The JWT. Never in a log.
    pub jwt: Arc<str>,
    /// When it ends: for one that came in, the earliest of what the header and the claim say.
    pub expires: Timestamp,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Token(until {})", self.expires)
    }
}

/// Makes our tokens, and remembers them for a twentieth of their life.
#[derive(Clone)]
pub struct TokenSource {
    #[expect(dead_code, reason = "not yet used")]
    identity: Identity,
    #[expect(dead_code, reason = "not yet used")]
    max_lifetime: Duration,
}

impl TokenSource {
    /// Signs with `identity`'s key; a token lives at most `max_lifetime` (`NSM_MAX_TOKEN_LIFETIME`).
    pub fn new(identity: Identity, max_lifetime: Duration) -> Self {
        Self { identity, max_lifetime }
    }

    /// A token for this peer.
    ///
    /// # Errors
    /// INTERNAL if the key can't sign.
    pub fn for_peer(&self, _: &Peer) -> Result<Token, Status> {
        Err(Status::unimplemented("tokens"))
    }
}
