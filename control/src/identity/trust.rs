//! Whether a peer's chain leads to an authority of its trust domain.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter};

use super::TrustDomain;
use super::leaf::{BadSvid, Leaf};
use super::source::Bundles;

/// Trust domains whose members may be our peers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Accepted {
    /// Each that we hold a bundle of: our own, and those federated with it.
    #[default]
    WithBundle,
    /// These, as far as we hold a bundle of them.
    Only(BTreeSet<TrustDomain>),
}

/// Why a peer is not who it says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Distrust {
    /// Its certificate is no X.509-SVID.
    #[error(transparent)]
    Svid(#[from] BadSvid),
    /// Its trust domain is not among the accepted.
    #[error("trust domain {0} is not accepted here")]
    NotAccepted(String),
    /// We know no authority of its trust domain.
    #[error("no bundle of trust domain {0}; federate with it")]
    NoBundle(String),
    /// Its chain leads to no authority, or is not valid now.
    #[error("{id}: not issued by an authority that we know of its trust domain, or not valid now ({reason})")]
    Chain {
        /// Who it says it is.
        id: String,
        /// What is wrong.
        reason: webpki::Error,
    },
}

/// The authorities we believe, ready for use.
pub struct Trust {
    anchors: BTreeMap<TrustDomain, Vec<TrustAnchor<'static>>>,
    accepted: Accepted,
}

impl Trust {
    /// Reads bundles. An authority that can't be read is left out, with a line in the log: one bad bundle shall not cut off the rest.
    pub fn new(bundles: &Bundles, accepted: Accepted) -> Self {
        let anchors = bundles.iter().map(|(domain, authorities)| {
            let read = |der: &CertificateDer<'_>| match webpki::anchor_from_trusted_cert(der) {
                Ok(anchor) => Some(anchor.to_owned()),
                Err(error) => {
                    tracing::warn!(%domain, %error, "left out an authority of a bundle that can't be read");
                    None
                }
            };
            (domain.clone(), authorities.iter().filter_map(read).collect())
        });
        Self { anchors: anchors.collect(), accepted }
    }

    /// Verifies a peer's chain against the bundle of the trust domain that its own SPIFFE ID names. Host names play no part.
    ///
    /// # Errors
    /// [`Distrust`] with the reason.
    pub fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Leaf, Distrust> {
        let read = Leaf::read(leaf)?;
        let domain = read.id.trust_domain();
        if let Accepted::Only(domains) = &self.accepted
            && !domains.contains(domain)
        {
            return Err(Distrust::NotAccepted(domain.to_string()));
        }
        let anchors = self.anchors.get(domain).ok_or_else(|| Distrust::NoBundle(domain.to_string()))?;
        let bad = |reason| Distrust::Chain { id: read.id.to_string(), reason };
        EndEntityCert::try_from(leaf)
            .map_err(bad)?
            .verify_for_usage(
                webpki::ALL_VERIFICATION_ALGS,
                anchors,
                intermediates,
                now,
                AnyUsage,
                None,
                None,
            )
            .map_err(bad)?;
        Ok(read)
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.anchors.keys()).finish()
    }
}

/// SVIDs serve both ends of a connection; go-spiffe, too, asks for no particular extended key usage.
struct AnyUsage;

impl ExtendedKeyUsageValidator for AnyUsage {
    fn validate(&self, _: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        Ok(())
    }
}
