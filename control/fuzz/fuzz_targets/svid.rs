//! Certificates: a real SVID with whatever damage is read or refused; what is read has one canonical SPIFFE ID with a path, and what
//! verifies is of a trust domain whose authority we know.
#![no_main]

use std::sync::LazyLock;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use rustls_pki_types::{CertificateDer, UnixTime};
use vwire_control::identity::issuer::Authority;
use vwire_control::identity::{Accepted, Leaf, SpiffeId, Trust, TrustDomain};

struct Known {
    leaf: Vec<u8>,
    trust: Trust,
}

static KNOWN: LazyLock<Known> = LazyLock::new(|| {
    let authority = Authority::new(TrustDomain::new("example.org").unwrap()).unwrap();
    let leaf = authority.issue("/nsc", Duration::from_secs(24 * 3600)).unwrap().chain[0].to_vec();
    Known { leaf, trust: Trust::new(&authority.bundles(), Accepted::WithBundle) }
});

/// The leaf with bytes replaced, inserted or removed, as `edits` says: kind, place, place, byte.
fn damaged(edits: &[u8]) -> Vec<u8> {
    let mut der = KNOWN.leaf.clone();
    for edit in edits.chunks_exact(4) {
        let at = usize::from(u16::from_be_bytes([edit[1], edit[2]])) % der.len().max(1);
        match edit[0] % 4 {
            _ if der.is_empty() => return der,
            0 => der.insert(at, edit[3]),
            1 => drop(der.remove(at)),
            _ => der[at] = edit[3],
        }
    }
    der
}

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    let der = CertificateDer::from(if kind % 4 == 0 { data.to_vec() } else { damaged(data) });
    let Ok(leaf) = Leaf::read(&der) else { return };
    assert!(!leaf.id.path().is_empty());
    assert_eq!(SpiffeId::new(leaf.id.to_string()).unwrap(), leaf.id);
    if let Ok(verified) = KNOWN.trust.verify(&der, &[], UnixTime::now()) {
        assert_eq!(verified.id.to_string(), "spiffe://example.org/nsc", "signed for somebody else");
    }
});
