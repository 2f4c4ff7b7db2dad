//! Tokens: what a hop says about itself to the next one.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use lru::LruCache;
use prost_types::Timestamp;
use tonic::Status;

use super::jwt::{self, Claims};
use super::{Identity, SpiffeId, Svid};
use crate::transport::Peer;

/// A token is made anew when this part of its life is over.
const KEPT_PART: u32 = 20;
/// Peers whose tokens are remembered.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// A JWT and its end, as they travel in call metadata and in path segments.
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
    identity: Identity,
    max_lifetime: Duration,
    made: Arc<Mutex<LruCache<Key, Made>>>,
}

/// Who signs (by address: [`Made`] keeps the SVID alive, so that no other gets it) and for whom.
type Key = (usize, Option<SpiffeId>);

struct Made {
    _signer: Arc<Svid>,
    jwt: Arc<str>,
    /// The end that the token itself names.
    ends: SystemTime,
    /// When it is too old to be given out.
    fresh_until: SystemTime,
}

impl TokenSource {
    /// Signs with `identity`'s key; a token lives at most `max_lifetime` (`NSM_MAX_TOKEN_LIFETIME`).
    pub fn new(identity: Identity, max_lifetime: Duration) -> Self {
        Self { identity, max_lifetime, made: Arc::new(Mutex::new(LruCache::new(REMEMBERED))) }
    }

    /// The longest that a token lives.
    pub fn max_lifetime(&self) -> Duration {
        self.max_lifetime
    }

    /// A token for this peer, signed with the key that this peer saw when the connection was made: it verifies the token with
    /// that certificate, however often we were given a new one since. It ends with the earliest of the setting, our SVID and the
    /// peer's; the claim leaves the peer's out, as Go's does.
    ///
    /// # Errors
    /// FAILED_PRECONDITION without an identity (TLS is off) and if our SVID has expired, INTERNAL if the key can't sign.
    pub fn for_peer(&self, peer: &Peer) -> Result<Token, Status> {
        let signer = peer.local.clone().or_else(|| self.identity.current());
        let signer =
            signer.ok_or_else(|| Status::failed_precondition("no identity, so no tokens: TLS is off"))?;
        let now = SystemTime::now();
        let key = (Arc::as_ptr(&signer) as usize, peer.id.clone());
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let known = made.get(&key).filter(|made| now < made.fresh_until);
        let (jwt, ends) = match known {
            Some(known) => (Arc::clone(&known.jwt), known.ends),
            None => {
                let new = self.make(signer, peer.id.as_ref(), now)?;
                let parts = (Arc::clone(&new.jwt), new.ends);
                made.put(key, new);
                parts
            }
        };
        let ends = peer.not_after.map_or(ends, |theirs| ends.min(theirs));
        Ok(Token { jwt, expires: Timestamp::from(ends) })
    }

    fn make(&self, signer: Arc<Svid>, audience: Option<&SpiffeId>, now: SystemTime) -> Result<Made, Status> {
        let left = signer.not_after.duration_since(now).map_err(|_| {
            Status::failed_precondition(
                "our SVID has expired and its issuer gave no new one: no token can be made",
            )
        })?;
        let life = self.max_lifetime.min(left);
        let since_1970 = (now + life).duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let claims = Claims {
            sub: signer.id.to_string(),
            aud: audience.map(SpiffeId::to_string).into_iter().collect(),
            exp: since_1970.as_secs(),
            nbf: None,
        };
        let jwt = jwt::sign(&claims, &signer.key)
            .map_err(|error| Status::internal(format!("signing a token: {error}")))?;
        Ok(Made {
            _signer: signer,
            jwt: jwt.into(),
            ends: SystemTime::UNIX_EPOCH + Duration::from_secs(claims.exp),
            fresh_until: now + life / KEPT_PART,
        })
    }
}
