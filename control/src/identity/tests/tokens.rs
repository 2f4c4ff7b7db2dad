//! Tokens, made and judged.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::certificates::authority;
use crate::identity::jwt::{self, BadToken, Claims};
use crate::identity::*;
use crate::transport::{Peer, PeerAddress};

const HOUR: Duration = Duration::from_secs(3600);

fn svid() -> Svid {
    authority("example.org").issue("/nsc", HOUR).unwrap()
}

fn peer(id: &str, not_after: Option<SystemTime>, local: Option<Arc<Svid>>) -> Peer {
    let address = PeerAddress::Tcp(([127, 0, 0, 1], 1).into());
    Peer { id: Some(SpiffeId::new(id).unwrap()), leaf: None, not_after, local, address, fds: None }
}

fn part(jwt: &str, index: usize) -> Value {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(jwt.split('.').nth(index).unwrap()).unwrap()).unwrap()
}

fn now() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs()
}

/// A token of any header and claims, signed by the SVID's key.
fn signed(header: &Value, claims: &Value, svid: &Svid) -> String {
    let text = |part: &Value| URL_SAFE_NO_PAD.encode(serde_json::to_vec(part).unwrap());
    let message = format!("{}.{}", text(header), text(claims));
    let random = ring::rand::SystemRandom::new();
    let pair = super::super::source::key_pair(&svid.key).unwrap();
    let signature = pair.sign(&random, message.as_bytes()).unwrap();
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn good() -> Value {
    json!({"sub": "spiffe://example.org/nsc", "aud": ["spiffe://example.org/nsmgr"], "exp": now() + 60})
}

fn es256() -> Value {
    json!({"alg": "ES256", "typ": "JWT"})
}

#[test]
fn a_token_of_ours_is_what_go_makes() {
    let svid = svid();
    let leaf = svid.chain[0].clone();
    let source = TokenSource::new(Identity::fixed(svid), Duration::from_secs(600));
    let token = source.for_peer(&peer("spiffe://example.org/nsmgr", None, None)).unwrap();
    assert_eq!(part(&token.jwt, 0), es256());
    let claims = part(&token.jwt, 1);
    assert_eq!(claims.as_object().unwrap().len(), 3, "{claims}");
    assert_eq!(claims["sub"], "spiffe://example.org/nsc");
    assert_eq!(claims["aud"], json!(["spiffe://example.org/nsmgr"]));
    let exp = claims["exp"].as_u64().unwrap();
    assert!((now() + 595..=now() + 600).contains(&exp));
    assert_eq!(token.expires.seconds, i64::try_from(exp).unwrap());
    assert_eq!(jwt::verify(&token.jwt, &leaf).unwrap().exp, exp);
    assert_eq!(format!("{token:?}"), format!("Token(until {})", token.expires), "no JWT in a log");
}

#[test]
fn a_token_ends_with_its_makers_svid_and_is_used_no_longer_than_its_readers() {
    let authority = authority("example.org");
    let svid = authority.issue("/nsc", Duration::from_secs(100)).unwrap();
    let source = TokenSource::new(Identity::fixed(svid), Duration::from_secs(600));
    let theirs = SystemTime::now() + Duration::from_secs(50);
    let token = source.for_peer(&peer("spiffe://example.org/nsmgr", Some(theirs), None)).unwrap();
    let exp = part(&token.jwt, 1)["exp"].as_u64().unwrap();
    assert!((now() + 98..=now() + 100).contains(&exp), "the claim leaves the reader's end out");
    let ends = SystemTime::try_from(token.expires).unwrap();
    assert!(theirs.duration_since(ends).unwrap_or_default() < Duration::from_secs(1));
}

#[test]
fn tokens_are_kept_by_audience_and_signed_with_the_key_the_peer_saw() {
    let authority = authority("example.org");
    let old = Arc::new(authority.issue("/nsc", HOUR).unwrap());
    let new = authority.issue("/nsc", HOUR).unwrap();
    let source = TokenSource::new(Identity::fixed(new), Duration::from_secs(600));
    let to = |id: &str, local| source.for_peer(&peer(id, None, local)).unwrap();
    let (a, b) = ("spiffe://example.org/a", "spiffe://example.org/b");
    assert_eq!(to(a, None).jwt, to(a, None).jwt);
    assert_ne!(to(a, None).jwt, to(b, None).jwt);
    let of_old = to(a, Some(Arc::clone(&old)));
    jwt::verify(&of_old.jwt, &old.chain[0]).unwrap();
    assert_eq!(jwt::verify(&to(a, None).jwt, &old.chain[0]), Err(BadToken::Signature));
}

#[test]
fn without_an_identity_or_with_an_expired_one_no_token_is_made() {
    let to = peer("spiffe://example.org/a", None, None);
    let none = TokenSource::new(Identity::insecure(), HOUR).for_peer(&to).unwrap_err();
    assert_eq!(none.code(), tonic::Code::FailedPrecondition);
    let past = authority("example.org").issue_at("/nsc", SystemTime::now() - 2 * HOUR, HOUR).unwrap();
    let expired = TokenSource::new(Identity::fixed(past), HOUR).for_peer(&to).unwrap_err();
    assert!(expired.message().contains("expired"), "{expired}");
}

#[test]
fn an_independent_reader_reads_what_we_sign() {
    // RFC 7515 by hand: raw r‖s over the first two parts, verified with the point of the certificate.
    let svid = svid();
    let claims = Claims { sub: "a".into(), aud: vec!["b".into()], exp: 7, nbf: None };
    let jwt = jwt::sign(&claims, &svid.key).unwrap();
    let (message, signature) = jwt.rsplit_once('.').unwrap();
    let point = Leaf::read(&svid.chain[0]).unwrap().p256.unwrap();
    let key = ring::signature::UnparsedPublicKey::new(&ring::signature::ECDSA_P256_SHA256_FIXED, point);
    let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
    assert_eq!(signature.len(), 64);
    key.verify(message.as_bytes(), &signature).unwrap();
    assert_eq!(part(&jwt, 1), json!({"sub": "a", "aud": ["b"], "exp": 7}));
}

#[test]
fn other_algorithms_are_refused() {
    let svid = svid();
    for alg in ["none", "None", "HS256", "RS256", "ES384", "PS256", "EdDSA", ""] {
        let jwt = signed(&json!({"alg": alg, "typ": "JWT"}), &good(), &svid);
        assert!(matches!(jwt::verify(&jwt, &svid.chain[0]), Err(BadToken::Header(_))), "{alg}");
    }
    // The public key as an HMAC secret: the oldest trick.
    let point = Leaf::read(&svid.chain[0]).unwrap().p256.unwrap();
    let text = |part: &Value| URL_SAFE_NO_PAD.encode(serde_json::to_vec(part).unwrap());
    let message = format!("{}.{}", text(&json!({"alg": "HS256", "typ": "JWT"})), text(&good()));
    let tag = ring::hmac::sign(&ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &point), message.as_bytes());
    let jwt = format!("{message}.{}", URL_SAFE_NO_PAD.encode(tag));
    assert!(matches!(jwt::verify(&jwt, &svid.chain[0]), Err(BadToken::Header(_))));
    // No signature at all.
    let unsigned = format!("{}.{}.", text(&json!({"alg": "none"})), text(&good()));
    assert!(jwt::verify(&unsigned, &svid.chain[0]).is_err());
}

#[test]
fn claims_of_other_types_are_refused() {
    let svid = svid();
    let with = |key: &str, value: Value| {
        let mut claims = good();
        claims[key] = value;
        jwt::read(&signed(&es256(), &claims, &svid))
    };
    assert!(with("sub", json!("x")).is_ok());
    for (key, value) in [
        ("aud", json!("spiffe://example.org/nsmgr")),
        ("aud", json!([1])),
        ("exp", json!(1.5e9)),
        ("exp", json!("1500000000")),
        ("exp", json!(-1)),
        ("exp", json!(1e40)),
        ("exp", Value::Null),
        ("sub", json!(["x"])),
        ("sub", Value::Null),
    ] {
        assert!(with(key, value.clone()).is_err(), "{key}={value}");
    }
}

#[test]
fn mangled_tokens_are_refused() {
    let svid = svid();
    let jwt = signed(&es256(), &good(), &svid);
    assert!(jwt::verify(&jwt, &svid.chain[0]).is_ok());
    let (message, signature) = jwt.rsplit_once('.').unwrap();
    let raw = URL_SAFE_NO_PAD.decode(signature).unwrap();
    let mangled = [
        String::new(),
        "..".to_owned(),
        ".".to_owned(),
        message.to_owned(),
        format!("{jwt}.x"),
        format!("{jwt}=="),
        format!("{message}."),
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(&raw[..63])),
        format!("{message}.{}", URL_SAFE_NO_PAD.encode([&raw[..], &[0]].concat())),
        format!("{message}.{}", URL_SAFE_NO_PAD.encode([0; 64])),
        jwt.replacen('.', "!", 1),
        format!("{}.{}", jwt.split_once('.').unwrap().0, "a".repeat(jwt::MAX_LENGTH)),
    ];
    for text in mangled {
        assert!(jwt::verify(&text, &svid.chain[0]).is_err(), "{text:?}");
    }
}

#[test]
fn a_token_verifies_with_its_signers_certificate_alone() {
    let (ours, other) = (svid(), svid());
    let jwt = signed(&es256(), &good(), &ours);
    for _ in 0..2 {
        assert!(jwt::verify(&jwt, &ours.chain[0]).is_ok());
        assert_eq!(
            jwt::verify(&jwt, &other.chain[0]),
            Err(BadToken::Signature),
            "remembered for the pair only"
        );
    }
}

#[test]
fn claims_end_and_begin() {
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let claims = |nbf| Claims { sub: String::new(), aud: Vec::new(), exp: 100, nbf };
    assert!(!claims(None).expired(at(99)));
    assert!(claims(None).expired(at(100)));
    assert!(claims(Some(50)).expired(at(49)));
    assert!(!claims(Some(50)).expired(at(50)));
}
