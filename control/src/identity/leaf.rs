//! What an X.509-SVID's leaf certificate says, and the rules it must keep.

use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY};
use x509_parser::prelude::FromDer;

use super::SpiffeId;

/// Why a certificate is no X.509-SVID that we can use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSvid {
    /// There is no certificate at all.
    #[error("no certificate in the chain")]
    Empty,
    /// Not X.509, or an extension that can't be read.
    #[error("the certificate can't be read: {0}")]
    Unreadable(String),
    /// The SPIFFE ID must be the only URI name (X.509-SVID §2).
    #[error("{0} URI names in the certificate; an X.509-SVID has exactly one, its SPIFFE ID")]
    UriNames(usize),
    /// The URI is no SPIFFE ID of a workload.
    #[error("the certificate's URI name {uri:?} is no workload's SPIFFE ID: {reason}")]
    Id {
        /// What is there.
        uri: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An authority's certificate, or one with an authority's key usage.
    #[error("the certificate is an authority's ({0}), not a workload's")]
    Authority(&'static str),
    /// Tokens are ES256 signatures by the SVID's key.
    #[error(
        "the SVID's key is not EC P-256, and NSM's tokens are ES256 signatures by it; let the issuer give EC P-256 keys"
    )]
    Key,
    /// Key and certificate don't belong together.
    #[error("the private key is not the certificate's")]
    KeyMismatch,
    /// No authority of the leaf's trust domain came with it.
    #[error("no authority of trust domain {0} came with the SVID")]
    NoBundle(String),
}

/// What we need of a leaf certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// The workload's name.
    pub id: SpiffeId,
    /// From when it is valid.
    pub not_before: SystemTime,
    /// Until when it is valid.
    pub not_after: SystemTime,
    /// The public key if it is EC P-256: an uncompressed point of 65 bytes.
    pub p256: Option<[u8; 65]>,
}

impl Leaf {
    /// Reads a leaf certificate by the rules of X.509-SVID: one URI name, a SPIFFE ID with a path; no authority.
    ///
    /// # Errors
    /// [`BadSvid`], which names the rule.
    pub fn read(der: &CertificateDer<'_>) -> Result<Self, BadSvid> {
        let unreadable = |error: &dyn std::fmt::Display| BadSvid::Unreadable(error.to_string());
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|error| unreadable(&error))?;
        if !rest.is_empty() {
            return Err(BadSvid::Unreadable(format!("{} bytes after its end", rest.len())));
        }
        check_is_leaf(&certificate)?;
        Ok(Self {
            id: spiffe_id(&certificate)?,
            not_before: time(certificate.validity().not_before.timestamp()),
            not_after: time(certificate.validity().not_after.timestamp()),
            p256: p256_point(&certificate),
        })
    }
}

/// X.509-SVID §4.1 and §4.3, as go-spiffe asks it of a peer.
fn check_is_leaf(certificate: &X509Certificate<'_>) -> Result<(), BadSvid> {
    let unreadable = |error: x509_parser::error::X509Error| BadSvid::Unreadable(error.to_string());
    if certificate.basic_constraints().map_err(unreadable)?.is_some_and(|constraints| constraints.value.ca) {
        return Err(BadSvid::Authority("CA is true"));
    }
    if let Some(usage) = certificate.key_usage().map_err(unreadable)? {
        if usage.value.key_cert_sign() {
            return Err(BadSvid::Authority("key usage keyCertSign"));
        }
        if usage.value.crl_sign() {
            return Err(BadSvid::Authority("key usage cRLSign"));
        }
    }
    Ok(())
}

fn spiffe_id(certificate: &X509Certificate<'_>) -> Result<SpiffeId, BadSvid> {
    let names = certificate
        .subject_alternative_name()
        .map_err(|error| BadSvid::Unreadable(error.to_string()))?
        .map_or(&[][..], |names| names.value.general_names.as_slice());
    // A name that can't be read could be a second URI.
    if names.iter().any(|name| matches!(name, GeneralName::Invalid(..))) {
        return Err(BadSvid::Unreadable("one of its names".to_owned()));
    }
    let uris: Vec<&str> = names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect();
    let [uri] = uris[..] else { return Err(BadSvid::UriNames(uris.len())) };
    let bad = |reason: String| BadSvid::Id { uri: uri.chars().take(256).collect(), reason };
    let id = SpiffeId::new(uri).map_err(|error| bad(error.to_string()))?;
    // One workload has one spelling: names are compared, and shown to policies, as text.
    if id.to_string() != uri {
        return Err(bad(format!("it should be written {id}")));
    }
    if id.path().is_empty() {
        return Err(bad("it names a trust domain, no workload in it".to_owned()));
    }
    Ok(id)
}

fn p256_point(certificate: &X509Certificate<'_>) -> Option<[u8; 65]> {
    let key = certificate.public_key();
    let curve = key.algorithm.parameters.as_ref()?.as_oid().ok()?;
    if key.algorithm.algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY || curve != OID_EC_P256 {
        return None;
    }
    key.subject_public_key.data.as_ref().try_into().ok()
}

/// Seconds since 1970; what lies before is 1970.
fn time(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}
