//! Where our SVID comes from, and that it changes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::sync::watch;

use super::leaf::{BadSvid, Leaf};
use super::{SpiffeId, TrustDomain};

/// Authorities by trust domain.
pub type Bundles = BTreeMap<TrustDomain, Vec<CertificateDer<'static>>>;

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
    pub bundles: Bundles,
}

impl Svid {
    /// Puts an SVID together from what an issuer gave.
    ///
    /// # Errors
    /// [`BadSvid`] if the leaf is no X.509-SVID, its key is not EC P-256 or not the one given, or its trust domain has no bundle.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivatePkcs8KeyDer<'static>,
        bundles: Bundles,
    ) -> Result<Self, BadSvid> {
        let leaf = Leaf::read(chain.first().ok_or(BadSvid::Empty)?)?;
        let public = leaf.p256.ok_or(BadSvid::Key)?;
        let pair = key_pair(&key)?;
        if pair.public_key().as_ref() != public {
            return Err(BadSvid::KeyMismatch);
        }
        if bundles.get(leaf.id.trust_domain()).is_none_or(Vec::is_empty) {
            return Err(BadSvid::NoBundle(leaf.id.trust_domain_name().to_owned()));
        }
        Ok(Self { id: leaf.id, chain, key, not_after: leaf.not_after, bundles })
    }
}

impl std::fmt::Debug for Svid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Svid").field("id", &self.id.to_string()).finish_non_exhaustive()
    }
}

/// The key, ready to sign.
pub(super) fn key_pair(key: &PrivatePkcs8KeyDer<'_>) -> Result<EcdsaKeyPair, BadSvid> {
    let random = ring::rand::SystemRandom::new();
    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.secret_pkcs8_der(), &random)
        .map_err(|_| BadSvid::Key)
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

    /// An identity that `svids` rotates; it must hold one already.
    pub fn rotated_by(svids: watch::Receiver<Option<Arc<Svid>>>) -> Self {
        Self(svids)
    }

    /// No identity: plain connections. Only behind an explicit flag.
    pub fn insecure() -> Self {
        Self(watch::channel(None).1)
    }
}
