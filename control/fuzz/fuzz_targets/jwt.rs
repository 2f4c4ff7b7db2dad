//! Tokens: whatever comes is read or refused; what verifies was signed by the certificate's key, letter by letter; and claims that
//! are signed but odd are read as what they are or refused.
#![no_main]

use std::sync::LazyLock;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use libfuzzer_sys::fuzz_target;
use vwire_control::identity::issuer::Authority;
use vwire_control::identity::jwt::{self, Claims};
use vwire_control::identity::{Svid, TrustDomain};

static SVID: LazyLock<Svid> = LazyLock::new(|| {
    let authority = Authority::new(TrustDomain::new("example.org").unwrap()).unwrap();
    authority.issue("/nsc", Duration::from_secs(24 * 3600)).unwrap()
});

static TOKEN: LazyLock<String> = LazyLock::new(|| {
    let aud = vec!["spiffe://example.org/nsmgr".to_owned()];
    let claims = Claims { sub: "spiffe://example.org/nsc".to_owned(), aud, exp: 4_000_000_000, nbf: None };
    jwt::sign(&claims, &SVID.key).unwrap()
});

/// The token with some of its bytes replaced, as `edits` says: place, place, byte.
fn edited(edits: &[u8]) -> Vec<u8> {
    let mut text = TOKEN.clone().into_bytes();
    for edit in edits.chunks_exact(3) {
        let at = usize::from(u16::from_be_bytes([edit[0], edit[1]])) % text.len();
        text[at] = edit[2];
    }
    text
}

/// Header and claims of the fuzzer's choice around a signature that is not theirs.
fn assembled(data: &[u8]) -> String {
    let middle = data.len() / 3;
    let (header, claims) = data.split_at(middle);
    let signature = TOKEN.rsplit('.').next().unwrap();
    format!("{}.{}.{signature}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims))
}

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    let text = match kind % 3 {
        0 => String::from_utf8_lossy(data).into_owned(),
        1 => String::from_utf8_lossy(&edited(data)).into_owned(),
        _ => assembled(data),
    };
    let read = jwt::read(&text);
    match jwt::verify(&text, &SVID.chain[0]) {
        Ok(claims) => {
            assert_eq!(text, *TOKEN, "another token verified");
            assert_eq!(read.unwrap(), claims);
        }
        // Errors go to the log: they must not hold the token.
        Err(error) => assert!(text.len() < 64 || !error.to_string().contains(&text)),
    }
});
