//! A foreign trust domain speaks for itself only.
//!
//! Of a path's tokens only the neighbour's can be verified: it is signed by the key of the certificate that the neighbour showed. What
//! lies behind it is the neighbour's word. Between members of one trust domain that word is good, since one authority vouches for all of
//! them. A foreign peer's word is good for its own trust domain and no other: a path that it hands on, or brings back, must not name
//! members of ours or of a third one, or it could act in their name (a registration belongs to the first identity of its path).
//!
//! A domain that lies between two others, and passes on what is not its own, is let through by [`Transit`]. The Go components have no
//! such rule; between them and us it shows only where somebody speaks for others.

use std::str::FromStr;

use super::rules::Denied;
use crate::identity::{SpiffeId, TrustDomain};
use crate::transport::Peer;

/// The policy's name, as callers read it.
const POLICY: &str = "foreign_domain";

/// `via=for`: members of trust domain `via` may pass on what members of `for` say; `via=*` for whatever they pass on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transit {
    via: TrustDomain,
    of: Option<TrustDomain>,
}

impl Transit {
    fn allows(&self, via: &TrustDomain, of: &TrustDomain) -> bool {
        self.via == *via && self.of.as_ref().is_none_or(|allowed| allowed == of)
    }
}

impl FromStr for Transit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let domain = |name: &str| TrustDomain::new(name).map_err(|error| format!("{name:?}: {error}"));
        let (via, of) = text.split_once('=').ok_or("write VIA=DOMAIN or VIA=*, both trust domains")?;
        Ok(Self { via: domain(via)?, of: (of != "*").then(|| domain(of)).transpose()? })
    }
}

/// The trust domain of a peer that is not of ours.
pub(crate) fn foreign(peer: &Peer) -> Option<&TrustDomain> {
    let (theirs, ours) = (peer.id.as_ref()?.trust_domain(), peer.local.as_ref()?.id.trust_domain());
    (theirs != ours).then_some(theirs)
}

/// Asks it of the subjects of the tokens that `peer` hands us.
pub(super) fn speaks_for_itself<'a>(
    subjects: impl IntoIterator<Item = &'a str>,
    peer: &Peer,
    transit: &[Transit],
) -> Result<(), Denied> {
    let Some(via) = foreign(peer) else { return Ok(()) };
    for subject in subjects {
        let reason = match SpiffeId::new(subject) {
            Ok(id) if id.trust_domain() == via => continue,
            Ok(id) if transit.iter().any(|transit| transit.allows(via, id.trust_domain())) => continue,
            Ok(id) => format!(
                "trust domain {via} speaks for {id}; if it may, VWIRE_TRANSIT has {via}={}",
                id.trust_domain()
            ),
            Err(error) => format!("{via} passes on a token of {subject:?}, which is no SPIFFE ID: {error}"),
        };
        return Err(Denied { policy: POLICY, reason });
    }
    Ok(())
}
