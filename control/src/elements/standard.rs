//! What every chain that serves calls begins with.

use std::sync::Arc;

use super::authorize::PathPolicy;
use super::{Authorize, Begin, Binding, Hub, Monitor, Timeout, TrimPath, UpdatePath, UpdateToken};
use crate::chain::{ChainHandle, Element};
use crate::identity::TokenSource;

/// What the elements need that every server's chain begins with.
pub struct Standard {
    /// The role's name in paths.
    pub name: Arc<str>,
    /// Our tokens.
    pub tokens: TokenSource,
    /// Who may call.
    pub policies: Arc<dyn PathPolicy>,
    /// Who may go on with a connection.
    pub binding: Binding,
    /// Where connections are shown.
    pub hub: Arc<Hub>,
}

impl Standard {
    /// Where we are in the path; one run at a time; who vouches for whom; whether the caller may; the connection's end; telling
    /// others; and where the path ends. What the role does itself comes after these.
    pub fn elements(self, chain: &ChainHandle) -> Vec<Arc<dyn Element>> {
        vec![
            Arc::new(UpdatePath::new(self.name)),
            Arc::new(Begin::new(self.binding)),
            Arc::new(UpdateToken::new(self.tokens)),
            Arc::new(Authorize::new(self.policies)),
            Arc::new(Timeout::new(chain.clone())),
            Arc::new(Monitor::new(self.hub)),
            Arc::new(TrimPath),
        ]
    }
}
