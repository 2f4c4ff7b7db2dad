//! Where our SVID comes from, and that it changes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::sync::watch;

use super::{SpiffeId, TrustDomain};

/// An X.509-SVID and whom its holder believes.
pub struct Svid {
    /// Who we are.
    pub id: SpiffeId,
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key, EC P-256: tokens are signed with it.
    pub key: PrivatePkcs8KeyDer<'static>,
    /// The leaf's end.
    pub not_after: SystemTime,
    /// The authorities of our trust domain and of those federated with it.
    pub bundles: BTreeMap<TrustDomain, Vec<CertificateDer<'static>>>,
}

/// Our identity over time: `None` where TLS was switched off.
#[derive(Clone)]
pub struct Identity(watch::Receiver<Option<Arc<Svid>>>);

impl Identity {
    /// The SVID of now.
    pub fn current(&self) -> Option<Arc<Svid>> {
        self.0.borrow().clone()
    }

    /// To wait for the next one.
    pub fn changes(&self) -> watch::Receiver<Option<Arc<Svid>>> {
        self.0.clone()
    }

    /// An identity that is never rotated, for tests.
    pub fn fixed(svid: Svid) -> Self {
        Self(watch::channel(Some(Arc::new(svid))).1)
    }

    /// No identity: plain connections. Only behind an explicit flag.
    pub fn insecure() -> Self {
        Self(watch::channel(None).1)
    }
}
