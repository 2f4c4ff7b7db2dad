//! NSM's policies: what the tokens of a path must satisfy before a call goes on, and before an answer is believed.
//!
//! The Go components' built-in policies are done natively, by their names; `.rego` files of an operator's own run beside them.
//!
//! | policy | asks | asked of |
//! |---|---|---|
//! | `tokens_valid` | each token of the path can be read | both |
//! | `tokens_expired` | none has ended | both |
//! | `tokens_chained` | each token is made for the one who made the next | both |
//! | `prev_token_signed` | the caller's is signed by the key of the certificate that it showed, and names that certificate's ID | callers |
//! | `next_token_signed` | likewise the next hop's | answers |
//! | `client_allowed` | a name is registered by one identity only (decided where the record is) | registry |
//! | `foreign_domain` | a peer of another trust domain speaks for members of its own only; not Go's, always asked (see [`Transit`]) | both |

mod foreign;
mod masks;
mod rules;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use tonic::Status;
use vwire_proto::nsm::connection::Path;

pub use foreign::Transit;
pub(crate) use foreign::foreign;
pub use masks::BadPolicies;
use rules::{Denied, Rules, Tokens};

use super::jwt;
use crate::api::path::PathExt;
use crate::elements::authorize::PathPolicy;
use crate::obs::{Metrics, Ration};
use crate::registry::authorize::TokenRules;
use crate::transport::Peer;

/// What is asked of calls that come in, and of answers that come back.
#[derive(Debug, Clone)]
pub struct Policies {
    server: Rules,
    client: Rules,
    /// Who may speak for other trust domains than its own; none where nothing is asked.
    transit: Option<Arc<[Transit]>>,
    metrics: Option<Arc<Metrics>>,
}

impl Policies {
    /// The Go components' defaults.
    pub fn standard() -> Self {
        Self {
            server: Rules::standard(),
            client: Rules::standard(),
            transit: Some(Arc::default()),
            metrics: None,
        }
    }

    /// Nothing is asked: for processes that run without TLS, where there are no tokens.
    pub fn off() -> Self {
        Self { server: Rules::default(), client: Rules::default(), transit: None, metrics: None }
    }

    /// What these lists select (`NSM_REGISTRY_SERVER_POLICIES`, `NSM_REGISTRY_CLIENT_POLICIES`): names of built-in policies, or
    /// masks as the Go components read them, where `etc/nsm/opa/` leads to the built-in ones.
    ///
    /// # Errors
    /// [`BadPolicies`] for a list that is empty, and an entry that selects nothing: nobody means to switch policies off by a slip.
    pub fn of_masks(server: &[String], client: &[String]) -> Result<Self, BadPolicies> {
        Ok(Self {
            server: masks::select(server)?,
            client: masks::select(client)?,
            transit: Some(Arc::default()),
            metrics: None,
        })
    }

    /// Lets these trust domains speak for others (`VWIRE_TRANSIT`).
    #[must_use]
    pub fn with_transit(self, transit: &[Transit]) -> Self {
        Self { transit: self.transit.map(|_| transit.into()), ..self }
    }

    /// Counts here what is checked, and what of it is refused.
    #[must_use]
    pub fn counted_by(self, metrics: &Arc<Metrics>) -> Self {
        Self { metrics: Some(Arc::clone(metrics)), ..self }
    }

    /// Whether a name that somebody registered is kept for them (`client_allowed`).
    pub fn keeps_owners(&self) -> bool {
        self.server.client_allowed
    }

    /// Whether a call may go on: its path up to our segment, which the index names and which holds our token already.
    ///
    /// # Errors
    /// PERMISSION_DENIED with the policy's name; the log has the reason.
    pub fn check_server(&self, path: &Path, peer: &Peer) -> Result<(), Status> {
        let until = path.path_segments.len().min((path.index as usize).saturating_add(1));
        let tokens: Tokens<'_> =
            path.path_segments[..until].iter().map(|segment| segment.token.as_str()).collect();
        let signed = (path.index as usize).checked_sub(1);
        let checked = self.server.check(&tokens, Some((signed, "prev_token_signed")), peer);
        let before = &tokens[..tokens.len().min(path.index as usize)];
        self.verdict(checked.and_then(|()| self.speaks_for_itself(before, peer)), path.root_id(), peer)
    }

    /// Whether an answer may be believed: its whole path, in our coordinates.
    ///
    /// # Errors
    /// As [`check_server`](Self::check_server).
    pub fn check_client(&self, path: &Path, peer: &Peer) -> Result<(), Status> {
        let tokens: Tokens<'_> = path.path_segments.iter().map(|segment| segment.token.as_str()).collect();
        let signed = (path.index as usize).checked_add(1);
        let checked = self.client.check(&tokens, Some((signed, "next_token_signed")), peer);
        let after = tokens.get(path.index as usize + 1..).unwrap_or_default();
        self.verdict(checked.and_then(|()| self.speaks_for_itself(after, peer)), path.root_id(), peer)
    }

    /// As [`check_server`](Self::check_server) for a registration: the tokens up to ours, the last but one is the caller's.
    ///
    /// # Errors
    /// As there.
    pub fn check_registry_server(&self, tokens: &[Arc<str>], peer: &Peer) -> Result<(), Status> {
        let all: Tokens<'_> = tokens.iter().map(AsRef::as_ref).collect();
        let signed = tokens.len().checked_sub(2);
        let checked = self.server.check(&all, Some((signed, "prev_token_signed")), peer);
        let before = &all[..all.len().saturating_sub(1)];
        self.verdict(checked.and_then(|()| self.speaks_for_itself(before, peer)), "", peer)
    }

    /// As [`check_client`](Self::check_client) for a registration: all tokens, the one after `index` is the server's.
    ///
    /// # Errors
    /// As there.
    pub fn check_registry_client(&self, tokens: &[Arc<str>], index: u32, peer: &Peer) -> Result<(), Status> {
        let all: Tokens<'_> = tokens.iter().map(AsRef::as_ref).collect();
        let signed = (index as usize).checked_add(1);
        let checked = self.client.check(&all, Some((signed, "next_token_signed")), peer);
        let after = all.get(index as usize + 1..).unwrap_or_default();
        self.verdict(checked.and_then(|()| self.speaks_for_itself(after, peer)), "", peer)
    }

    /// Asks it of the tokens that a peer hands us. One that can't be read is no word of anybody, and not spoken for.
    fn speaks_for_itself(&self, tokens: &[&str], peer: &Peer) -> Result<(), Denied> {
        let (Some(transit), Some(_)) = (&self.transit, foreign(peer)) else { return Ok(()) };
        let claims: Vec<_> = tokens.iter().filter_map(|token| jwt::read(token).ok()).collect();
        foreign::speaks_for_itself(claims.iter().map(|claims| claims.sub.as_str()), peer, transit)
    }

    /// The peer learns which policy it was; the log has the rest.
    fn verdict(&self, checked: Result<(), Denied>, connection: &str, peer: &Peer) -> Result<(), Status> {
        static LINES: Ration = Ration::new();
        if let Some(metrics) = &self.metrics {
            metrics.checked(checked.is_ok());
        }
        checked.map_err(|denied| {
            if let Some(withheld) = LINES.take() {
                let peer = peer.id.as_ref().map(ToString::to_string);
                tracing::warn!(connection, peer, policy = denied.policy, reason = %denied.reason, withheld, "denied by a policy");
            }
            Status::permission_denied(format!("no sufficient privileges: policy {}", denied.policy))
        })
    }
}

impl PathPolicy for Policies {
    fn incoming(&self, path: &Path, peer: &Peer) -> Result<(), Status> {
        self.check_server(path, peer)
    }

    fn returned(&self, path: &Path, peer: &Peer) -> Result<(), Status> {
        self.check_client(path, peer)
    }
}

impl TokenRules for Policies {
    fn caller(&self, tokens: &[Arc<str>], caller: &Peer) -> Result<(), Status> {
        self.check_registry_server(tokens, caller)
    }

    fn server(&self, tokens: &[Arc<str>], index: u32, server: &Peer) -> Result<(), Status> {
        self.check_registry_client(tokens, index, server)
    }

    fn keeps_owners(&self) -> bool {
        Self::keeps_owners(self)
    }
}
