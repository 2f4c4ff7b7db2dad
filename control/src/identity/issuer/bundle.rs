//! A trust domain's bundle as a file: PEM, or a SPIFFE bundle (a JWK set, SPIFFE Trust Domain and Bundle §4), as SPIRE's
//! `bundle show -format spiffe` writes it.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Deserialize;
use serde_json::json;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry::{OID_EC_P256, OID_NIST_EC_P384};
use x509_parser::prelude::FromDer;

use crate::identity::TrustDomain;

/// Longest bundle that is read, bytes.
pub const MAX_LENGTH: usize = 1 << 20;
/// A trust domain's authorities.
pub type Authorities = Vec<CertificateDer<'static>>;

/// A bundle that is published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The authorities.
    pub authorities: Authorities,
    /// How often those who follow it shall look again, seconds. SPIFFE leaves it open where it is left out.
    pub refresh_hint: Option<u64>,
    /// Grows with each change.
    pub sequence: Option<u64>,
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<Key>,
    #[serde(default)]
    spiffe_refresh_hint: Option<u64>,
    #[serde(default)]
    spiffe_sequence: Option<u64>,
}

#[derive(Deserialize)]
struct Key {
    #[serde(rename = "use", default)]
    usage: String,
    #[serde(default)]
    x5c: Vec<String>,
}

/// Reads a bundle in either form. Keys of other kinds, such as those for JWT-SVIDs, are passed over.
///
/// # Errors
/// What is wrong with it, in words.
pub fn parse(bytes: &[u8]) -> Result<Authorities, String> {
    if bytes.len() > MAX_LENGTH {
        return Err(format!("{} bytes long; {MAX_LENGTH} are read", bytes.len()));
    }
    let is_json = bytes.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{');
    if is_json {
        return Ok(published(bytes)?.authorities);
    }
    checked(from_pem(bytes)?)
}

/// Reads a SPIFFE bundle (JSON) with what it says of itself.
///
/// # Errors
/// As [`parse`].
pub fn published(bytes: &[u8]) -> Result<Published, String> {
    let document: Document =
        serde_json::from_slice(bytes).map_err(|error| format!("no SPIFFE bundle: {error}"))?;
    Ok(Published {
        authorities: checked(from_keys(&document.keys)?)?,
        refresh_hint: document.spiffe_refresh_hint,
        sequence: document.spiffe_sequence,
    })
}

fn checked(authorities: Authorities) -> Result<Authorities, String> {
    for der in &authorities {
        webpki::anchor_from_trusted_cert(der)
            .map_err(|error| format!("a certificate that can't be an authority: {error}"))?;
    }
    Ok(authorities)
}

fn from_pem(bytes: &[u8]) -> Result<Authorities, String> {
    let all: Result<Authorities, _> = CertificateDer::pem_slice_iter(bytes).collect();
    let all = all.map_err(|error| error.to_string())?;
    if all.is_empty() {
        return Err(
            "no certificate in it; a bundle is one or more in PEM, or a SPIFFE bundle (JSON)".to_owned()
        );
    }
    Ok(all)
}

fn from_keys(keys: &[Key]) -> Result<Authorities, String> {
    let ours = keys.iter().filter(|key| key.usage == "x509-svid");
    let all = ours.map(authority).collect::<Result<Authorities, String>>()?;
    if all.is_empty() {
        return Err("no key for \"use\": \"x509-svid\" in the SPIFFE bundle".to_owned());
    }
    Ok(all)
}

fn authority(key: &Key) -> Result<CertificateDer<'static>, String> {
    let [certificate] = &key.x5c[..] else {
        return Err(format!("x5c: {} certificates of a key; an authority is one", key.x5c.len()));
    };
    let der = STANDARD.decode(certificate).map_err(|error| format!("x5c: {error}"))?;
    Ok(der.into())
}

/// Writes a SPIFFE bundle: those who follow it look again every `refresh_hint` seconds, and see by `sequence` that it changed.
///
/// # Errors
/// For keys that are not EC P-256 or P-384: the built-in issuer has none.
pub fn to_json(
    authorities: &[CertificateDer<'_>],
    sequence: u64,
    refresh_hint: u64,
) -> Result<String, String> {
    let keys = authorities.iter().map(|der| jwk(der)).collect::<Result<Vec<_>, String>>()?;
    let document = json!({ "keys": keys, "spiffe_sequence": sequence, "spiffe_refresh_hint": refresh_hint });
    Ok(format!("{document:#}\n"))
}

fn jwk(der: &CertificateDer<'_>) -> Result<serde_json::Value, String> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|error| error.to_string())?;
    let key = certificate.public_key();
    let curve = key.algorithm.parameters.as_ref().and_then(|curve| curve.as_oid().ok());
    let (name, size) = match curve {
        Some(curve) if curve == OID_EC_P256 => ("P-256", 32),
        Some(curve) if curve == OID_NIST_EC_P384 => ("P-384", 48),
        _ => {
            return Err("an authority's key is not EC P-256 or P-384; export the bundle where it comes from"
                .to_owned());
        }
    };
    // An uncompressed point: 4, x, y.
    let point = key.subject_public_key.data.as_ref();
    if point.len() != 1 + 2 * size {
        return Err("an authority's key is a compressed point".to_owned());
    }
    let coordinate = |from: usize| URL_SAFE_NO_PAD.encode(&point[from..from + size]);
    Ok(json!({
        "use": "x509-svid", "kty": "EC", "crv": name, "x": coordinate(1), "y": coordinate(1 + size),
        "x5c": [STANDARD.encode(der)],
    }))
}

/// Writes PEM.
pub fn to_pem(authorities: &[CertificateDer<'_>]) -> String {
    authorities.iter().map(|der| pem(der)).collect()
}

fn pem(certificate: &CertificateDer<'_>) -> String {
    let text = STANDARD.encode(certificate);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).expect("ASCII")).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// By what people tell authorities apart: SHA-256 of the certificates, hexadecimal.
pub fn fingerprints(authorities: &[CertificateDer<'_>]) -> Vec<String> {
    let hash = |der: &CertificateDer<'_>| ring::digest::digest(&ring::digest::SHA256, der);
    let hex = |hash: ring::digest::Digest| hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    authorities.iter().map(|der| hex(hash(der))).collect()
}

/// The trust domain that an authority's certificate names as its own (X.509-SVID §3), if it names one.
pub fn domain(authorities: &[CertificateDer<'_>]) -> Option<TrustDomain> {
    authorities.iter().find_map(|der| {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let names = certificate.subject_alternative_name().ok()??;
        let uri = names.value.general_names.iter().find_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
        TrustDomain::new(uri?.strip_prefix("spiffe://")?.trim_end_matches('/')).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::issuer::Authority;

    fn certificate(name: &str) -> CertificateDer<'static> {
        Authority::new(TrustDomain::new(name).unwrap()).unwrap().certificate().clone()
    }

    #[test]
    fn what_is_written_in_either_form_is_read_again() {
        let both = vec![certificate("a.test"), certificate("a.test")];
        assert_eq!(parse(to_pem(&both).as_bytes()).unwrap(), both);
        let json = to_json(&both, 7, 300).unwrap();
        let read = published(json.as_bytes()).unwrap();
        assert_eq!((read.sequence, read.refresh_hint), (Some(7), Some(300)));
        assert_eq!(parse(json.as_bytes()).unwrap(), both);
        assert_eq!(domain(&both).unwrap().to_string(), "a.test");
        // Keys for JWT-SVIDs stand in SPIRE's bundles, too.
        let mut mixed: serde_json::Value = serde_json::from_str(&json).unwrap();
        mixed["keys"].as_array_mut().unwrap().push(json!({"use": "jwt-svid", "kty": "EC", "kid": "1"}));
        assert_eq!(parse(mixed.to_string().as_bytes()).unwrap(), both);
    }

    #[test]
    fn what_is_no_bundle_is_refused_with_the_reason() {
        let leaf = Authority::new(TrustDomain::new("a.test").unwrap()).unwrap();
        let leaf = to_json(&[leaf.certificate().clone()], 1, 1).unwrap();
        let two = leaf.replace("\"x5c\": [", "\"x5c\": [\"AA==\", ");
        for (bytes, part) in [
            ("", "no certificate in it"),
            ("hello", "no certificate in it"),
            ("{", "no SPIFFE bundle"),
            ("{\"keys\": 7}", "no SPIFFE bundle"),
            ("{\"keys\": []}", "x509-svid"),
            ("{\"keys\": [{\"use\": \"x509-svid\"}]}", "x5c: 0 certificates"),
            (&two, "x5c: 2 certificates"),
            ("{\"keys\": [{\"use\": \"x509-svid\", \"x5c\": [\"AAAA\"]}]}", "can't be an authority"),
            ("{\"keys\": [{\"use\": \"x509-svid\", \"x5c\": [\"*\"]}]}", "x5c: "),
        ] {
            let error = parse(bytes.as_bytes()).unwrap_err();
            assert!(error.contains(part), "{bytes}: {error}");
        }
        let error = parse(&vec![b' '; MAX_LENGTH + 1]).unwrap_err();
        assert!(error.contains("are read"), "{error}");
    }
}
