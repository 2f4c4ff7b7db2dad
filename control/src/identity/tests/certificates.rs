//! Whom we believe, and whom not.

use std::time::{Duration, SystemTime};

use rcgen::{IsCa, KeyPair, KeyUsagePurpose, SanType};
use rustls_pki_types::{PrivatePkcs8KeyDer, UnixTime};

use crate::identity::issuer::Authority;
use crate::identity::*;

const HOUR: Duration = Duration::from_secs(3600);

pub fn authority(domain: &str) -> Authority {
    Authority::new(TrustDomain::new(domain).unwrap()).unwrap()
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn odd(change: impl FnOnce(&mut rcgen::CertificateParams)) -> Result<Leaf, BadSvid> {
    Leaf::read(&authority("example.org").sign_odd(&KeyPair::generate().unwrap(), change))
}

#[test]
fn a_leaf_has_one_uri_name_and_it_is_a_workloads() {
    assert_eq!(odd(|_| {}).unwrap().id.to_string(), "spiffe://example.org/odd");
    assert_eq!(odd(|leaf| leaf.subject_alt_names.clear()), Err(BadSvid::UriNames(0)));
    assert_eq!(
        odd(|leaf| leaf.subject_alt_names.push(uri("https://example.org/x"))),
        Err(BadSvid::UriNames(2))
    );
    for bad in [
        "spiffe://example.org",
        "spiffe://example.org/",
        "spiffe://example.org/a/../b",
        "spiffe://example.org/%61",
        "spiffe://EXAMPLE.org/a",
        "SPIFFE://example.org/a",
        "spiffe://user@example.org/a",
        "spiffe://example.org:1/a",
        "spiffe://example.org/a?b",
        "spiffe://example.org//a",
        "https://example.org/a",
    ] {
        let read = odd(|leaf| leaf.subject_alt_names = vec![uri(bad)]);
        assert!(matches!(&read, Err(BadSvid::Id { uri, .. }) if uri == bad), "{bad}: {read:?}");
    }
}

#[test]
fn names_of_other_kinds_are_allowed() {
    let dns = SanType::DnsName("pod.example.org".try_into().unwrap());
    assert!(odd(|leaf| leaf.subject_alt_names.push(dns)).is_ok());
}

#[test]
fn an_authority_is_no_peer() {
    let ca = odd(|leaf| leaf.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained));
    assert!(matches!(ca, Err(BadSvid::Authority(_))), "{ca:?}");
    for usage in [KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign] {
        let read = odd(|leaf| leaf.key_usages.push(usage));
        assert!(matches!(read, Err(BadSvid::Authority(_))), "{usage:?}: {read:?}");
    }
}

#[test]
fn an_svid_of_ours_needs_a_p256_key_that_is_its_own() {
    let authority = authority("example.org");
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let p256 = KeyPair::generate().unwrap();
    let svid = |leaf, key: &KeyPair, bundles| {
        Svid::new(vec![leaf], PrivatePkcs8KeyDer::from(key.serialize_der()), bundles).map(|_| ())
    };
    let bundles = authority.bundles();
    assert_eq!(svid(authority.sign_odd(&p384, |_| {}), &p384, bundles.clone()), Err(BadSvid::Key));
    let leaf = authority.sign_odd(&p256, |_| {});
    assert_eq!(svid(leaf.clone(), &p256, bundles.clone()), Ok(()));
    let other = KeyPair::generate().unwrap();
    assert_eq!(svid(leaf.clone(), &other, bundles), Err(BadSvid::KeyMismatch));
    let none = svid(leaf, &p256, Bundles::new());
    assert_eq!(none, Err(BadSvid::NoBundle("example.org".to_owned())));
}

#[test]
fn a_chain_is_verified_against_the_bundle_of_the_domain_it_names() {
    let (ours, theirs) = (authority("ours.test"), authority("theirs.test"));
    let svid = theirs.issue("/x", HOUR).unwrap();
    let verify = |bundles: &Bundles, accepted| {
        Trust::new(bundles, accepted)
            .verify(&svid.chain[0], &[], UnixTime::now())
            .map(|leaf| leaf.id.to_string())
    };
    let no_bundle = Err(Distrust::NoBundle("theirs.test".to_owned()));
    assert_eq!(verify(&ours.bundles(), Accepted::WithBundle), no_bundle);

    let mut both = ours.bundles();
    both.extend(theirs.bundles());
    assert_eq!(verify(&both, Accepted::WithBundle).unwrap(), "spiffe://theirs.test/x");
    let only_ours = Accepted::Only([ours.domain().clone()].into());
    assert_eq!(verify(&both, only_ours), Err(Distrust::NotAccepted("theirs.test".to_owned())));

    // An authority of one domain can't speak for another, though we believe both.
    let crossed: Bundles = [(theirs.domain().clone(), vec![ours.certificate().clone()])].into();
    assert!(matches!(verify(&crossed, Accepted::WithBundle), Err(Distrust::Chain { .. })));
}

#[test]
fn another_authority_of_the_same_name_is_not_believed() {
    let (real, fake) = (authority("example.org"), authority("example.org"));
    let svid = fake.issue("/x", HOUR).unwrap();
    let verified =
        Trust::new(&real.bundles(), Accepted::WithBundle).verify(&svid.chain[0], &[], UnixTime::now());
    assert!(matches!(verified, Err(Distrust::Chain { .. })), "{verified:?}");
}

#[test]
fn a_certificate_is_valid_in_its_time() {
    let authority = authority("example.org");
    let trust = Trust::new(&authority.bundles(), Accepted::WithBundle);
    let now = SystemTime::now();
    for (from, reason) in [(now - 3 * HOUR, "CertExpired"), (now + HOUR, "CertNotValidYet")] {
        let svid = authority.issue_at("/x", from, HOUR).unwrap();
        let error = trust.verify(&svid.chain[0], &[], UnixTime::now()).unwrap_err();
        assert!(format!("{error:?}").contains(reason), "{error:?}");
    }
}

#[test]
fn bytes_that_are_no_certificate_are_refused() {
    let mut der = authority("example.org").issue("/x", HOUR).unwrap().chain[0].to_vec();
    der.push(0);
    assert!(matches!(Leaf::read(&der.clone().into()), Err(BadSvid::Unreadable(_))));
    der.truncate(der.len() / 2);
    assert!(matches!(Leaf::read(&der.into()), Err(BadSvid::Unreadable(_))));
    assert!(matches!(Leaf::read(&vec![].into()), Err(BadSvid::Unreadable(_))));
}
