//! Sessions of peers whom we have stopped believing: a foreign trust domain whose bundle was taken away ends with its sessions, not
//! with its certificates.

use rustls::CommonState;
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::identity::{Accepted, Distrust, Identity, Leaf, Svid, Trust, TrustDomain};

/// What a peer of a foreign trust domain showed at its handshake.
pub(super) struct Proof {
    domain: TrustDomain,
    chain: Vec<CertificateDer<'static>>,
    at: UnixTime,
}

impl Proof {
    /// Of a finished handshake with a foreign peer. None for members of our own domain: its authorities change in their own time,
    /// and every member then gets a new SVID and dials anew.
    pub fn of(state: &CommonState, ours: &Svid) -> Option<Self> {
        let chain: Vec<_> =
            state.peer_certificates()?.iter().map(|certificate| certificate.clone().into_owned()).collect();
        let domain = Leaf::read(chain.first()?).ok()?.id.trust_domain().clone();
        (domain != *ours.id.trust_domain()).then(|| Self { domain, chain, at: UnixTime::now() })
    }

    /// Whether it would be believed today. Its certificate's end plays no part: that is for new handshakes.
    fn still_holds(&self, svid: &Svid, accepted: &Accepted) -> Result<(), Distrust> {
        let bundle = svid.bundles.get_key_value(&self.domain);
        let bundles = bundle.map(|(domain, authorities)| (domain.clone(), authorities.clone()));
        let trust = Trust::new(&bundles.into_iter().collect(), accepted.clone());
        trust.verify(&self.chain[0], &self.chain[1..], self.at).map(drop)
    }
}

/// Waits until the bundles of our identity do not vouch for the peer any more, and says why. For ever without a proof.
pub(super) async fn lost(identity: Identity, accepted: Accepted, proof: Option<Proof>) -> Distrust {
    let Some(proof) = proof else { return std::future::pending().await };
    let mut changes = identity.changes();
    // The first look is at what is there already: it may have changed while hands were shaken.
    loop {
        let svid = changes.borrow_and_update().clone();
        if let Some(Err(reason)) = svid.map(|svid| proof.still_holds(&svid, &accepted)) {
            return reason;
        }
        if changes.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}
