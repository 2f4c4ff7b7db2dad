//! What a token of a path says, unverified. Who may be believed is for `identity` to say; this reads names.

use crate::identity::jwt;

/// The `sub` claim of a JWT: the SPIFFE ID its maker claims to have. None if it is no token of NSM's. Not verified.
pub fn claimed_subject(token: &str) -> Option<String> {
    jwt::read(token).ok().map(|claims| claims.sub)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A JWT that says `sub` and is signed by nobody.
    pub(crate) fn unsigned(sub: &str) -> String {
        let part = |value: serde_json::Value| base64url(value.to_string().as_bytes());
        let header = part(serde_json::json!({ "alg": "ES256", "typ": "JWT" }));
        let claims = part(serde_json::json!({ "sub": sub, "aud": ["x"], "exp": 4_102_444_800_u64 }));
        format!("{header}.{claims}.{}", base64url(&[1; 64]))
    }

    fn base64url(bytes: &[u8]) -> String {
        const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let mut text = String::new();
        for three in bytes.chunks(3) {
            let number =
                three.iter().fold(0u32, |all, byte| all << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
            let digits = (0..=three.len()).map(|i| DIGITS[(number >> (18 - 6 * i) & 63) as usize]);
            text.extend(digits.map(char::from));
        }
        text
    }

    #[test]
    fn the_subject_is_read_and_nonsense_has_none() {
        assert_eq!(
            claimed_subject(&unsigned("spiffe://example.org/nsc")).as_deref(),
            Some("spiffe://example.org/nsc")
        );
        for text in ["", "a.b.c", "..", "e30.e30.e30"] {
            assert_eq!(claimed_subject(text), None, "{text:?}");
        }
    }
}
