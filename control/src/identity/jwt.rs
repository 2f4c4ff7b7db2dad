//! NSM's tokens as JWTs: `{"alg":"ES256","typ":"JWT"}` over `sub` (who says it), `aud` (to whom) and `exp`.
//!
//! `jsonwebtoken` does the encoding, `ring` the signatures.

use std::num::NonZeroUsize;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::SystemTime;

use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::signature::{Error as SignatureError, Signer, Verifier};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, EncodingKey, Header, Validation};
use lru::LruCache;
use ring::signature::{ECDSA_P256_SHA256_FIXED, EcdsaKeyPair, UnparsedPublicKey};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};

use super::leaf::Leaf;
use super::source::key_pair;

/// Longest token that is read, bytes. With the longest SPIFFE IDs (2 KiB each) a token has 6 KiB.
pub const MAX_LENGTH: usize = 16 * 1024;
/// Verified tokens that are remembered, and tokens whose claims are.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(4096).unwrap();
/// Longest token whose claims are remembered, bytes: what strangers send must not fill our memory.
const MAX_REMEMBERED: usize = 1024;

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// The SPIFFE ID of who says it.
    pub sub: String,
    /// To whom: a list, even for one. Missing if there was no peer certificate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aud: Vec<String>,
    /// Its end, seconds since 1970.
    pub exp: u64,
    /// Not to be used before, seconds since 1970. NSM's tokens have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbf: Option<u64>,
}

impl Claims {
    /// True from the second of its end on, as Go's policy has it; or before its `nbf`.
    pub fn expired(&self, now: SystemTime) -> bool {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        now >= self.exp || self.nbf.is_some_and(|from| now < from)
    }
}

/// Why a token is of no use. Never holds the token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadToken {
    /// Not three parts of base64url with JSON in the first two, too long, or a claim is missing or of another type.
    #[error("it is no JWT with a sub, an aud that is a list, and an exp in whole seconds: {0}")]
    Malformed(String),
    /// Another algorithm, or a header field that changes the meaning.
    #[error("its header is not ES256's: {0}")]
    Header(String),
    /// Signed by another key, or changed.
    #[error("its signature is not by the key of the certificate")]
    Signature,
    /// The certificate has no key for ES256.
    #[error("the certificate's key is not EC P-256")]
    Key,
}

/// Reads a token without asking who signed it. What was read is remembered: a path's tokens come again with each call, and several
/// times within one.
///
/// # Errors
/// [`BadToken::Malformed`] or [`BadToken::Header`].
pub fn read(jwt: &str) -> Result<Claims, BadToken> {
    if let Some(claims) = lock(&READ).get(jwt) {
        return Ok(claims.clone());
    }
    let claims = parse(jwt)?;
    if jwt.len() <= MAX_REMEMBERED {
        lock(&READ).put(jwt.into(), claims.clone());
    }
    Ok(claims)
}

/// A token in memory that those who keep the same one share, as far as it was [`read`] lately.
pub fn shared(jwt: &str) -> Arc<str> {
    let known = lock(&READ).get_key_value(jwt).map(|(known, _)| Arc::clone(known));
    known.unwrap_or_else(|| jwt.into())
}

fn parse(jwt: &str) -> Result<Claims, BadToken> {
    install();
    if jwt.len() > MAX_LENGTH {
        return Err(BadToken::Malformed(format!("{} bytes long; {MAX_LENGTH} are accepted", jwt.len())));
    }
    if jwt.bytes().filter(|&byte| byte == b'.').count() != 2 {
        return Err(BadToken::Malformed("not three parts".to_owned()));
    }
    let header = jsonwebtoken::decode_header(jwt).map_err(|error| BadToken::Header(error.to_string()))?;
    if header.alg != Algorithm::ES256 {
        return Err(BadToken::Header(format!("alg is {:?}", header.alg)));
    }
    jsonwebtoken::dangerous::insecure_decode_claims(jwt)
        .map_err(|error| BadToken::Malformed(error.to_string()))
}

/// Signs claims.
///
/// # Errors
/// [`BadToken::Key`] if the key is not EC P-256.
pub fn sign(claims: &Claims, key: &PrivatePkcs8KeyDer<'_>) -> Result<String, BadToken> {
    install();
    let key = EncodingKey::from_ec_der(key.secret_pkcs8_der());
    jsonwebtoken::encode(&Header::new(Algorithm::ES256), claims, &key).map_err(|_| BadToken::Key)
}

/// Reads a token that must be signed by the key of this leaf certificate. Its time is the caller's to check.
/// Pairs of token and certificate that verified are remembered.
///
/// # Errors
/// [`BadToken`] with the reason.
pub fn verify(jwt: &str, leaf: &CertificateDer<'_>) -> Result<Claims, BadToken> {
    let claims = read(jwt)?;
    let pair = fingerprint(jwt, leaf);
    if lock(&VERIFIED).get(&pair).is_some() {
        return Ok(claims);
    }
    let key = Leaf::read(leaf).ok().and_then(|leaf| leaf.p256).ok_or(BadToken::Key)?;
    let mut rules = Validation::new(Algorithm::ES256);
    // Only the signature is asked here: time and audience are the policies' matter.
    (rules.validate_exp, rules.validate_aud) = (false, false);
    jsonwebtoken::decode::<Claims>(jwt, &DecodingKey::from_ec_der(&key), &rules)
        .map_err(|_| BadToken::Signature)?;
    lock(&VERIFIED).put(pair, ());
    Ok(claims)
}

static READ: LazyLock<Mutex<LruCache<Arc<str>, Claims>>> =
    LazyLock::new(|| Mutex::new(LruCache::new(REMEMBERED)));

type Fingerprint = [u8; 32];
static VERIFIED: LazyLock<Mutex<LruCache<Fingerprint, ()>>> =
    LazyLock::new(|| Mutex::new(LruCache::new(REMEMBERED)));

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn fingerprint(jwt: &str, leaf: &CertificateDer<'_>) -> Fingerprint {
    let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
    // The length keeps the two parts apart.
    hash.update(&jwt.len().to_be_bytes());
    hash.update(jwt.as_bytes());
    hash.update(leaf);
    hash.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// Gives `jsonwebtoken` its cryptography: ES256 by ring, and nothing else.
fn install() {
    static PROVIDER: CryptoProvider = CryptoProvider {
        signer_factory: |algorithm, key| match algorithm {
            Algorithm::ES256 => {
                let pair = key_pair(&PrivatePkcs8KeyDer::from(key.as_bytes()))
                    .map_err(|_| ErrorKind::InvalidEcdsaKey)?;
                Ok(Box::new(RingSigner(pair)))
            }
            _ => Err(ErrorKind::InvalidAlgorithm.into()),
        },
        verifier_factory: |algorithm, key| match (algorithm, key.family()) {
            (Algorithm::ES256, AlgorithmFamily::Ec) => {
                Ok(Box::new(RingVerifier(key.try_get_as_bytes()?.to_vec())))
            }
            _ => Err(ErrorKind::InvalidAlgorithm.into()),
        },
        key_utils: KeyUtils::new_unimplemented(),
    };
    static ONCE: std::sync::Once = std::sync::Once::new();
    // It fails only if one is installed already; then that one does it.
    ONCE.call_once(|| {
        let _ = PROVIDER.install_default();
    });
}

struct RingSigner(EcdsaKeyPair);

impl Signer<Vec<u8>> for RingSigner {
    fn try_sign(&self, message: &[u8]) -> Result<Vec<u8>, SignatureError> {
        let random = ring::rand::SystemRandom::new();
        let signature = self.0.sign(&random, message).map_err(|_| SignatureError::new())?;
        Ok(signature.as_ref().to_vec())
    }
}

impl JwtSigner for RingSigner {
    fn algorithm(&self) -> Algorithm {
        Algorithm::ES256
    }
}

struct RingVerifier(Vec<u8>);

impl Verifier<Vec<u8>> for RingVerifier {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), SignatureError> {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &self.0)
            .verify(message, signature)
            .map_err(|_| SignatureError::new())
    }
}

impl JwtVerifier for RingVerifier {
    fn algorithm(&self) -> Algorithm {
        Algorithm::ES256
    }
}
