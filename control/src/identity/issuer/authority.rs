//! The authority's key and certificate, and the SVIDs it makes.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use crate::identity::leaf::BadSvid;
use crate::identity::source::Bundles;
use crate::identity::{SpiffeId, Svid, TrustDomain};

/// How far back a certificate's validity begins, for peers whose clock is behind.
const BACKDATED: Duration = Duration::from_secs(60);
/// How long the authority's own certificate is valid.
const AUTHORITY_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// What the issuer can't do, and why.
#[derive(Debug, thiserror::Error)]
pub enum IssuerError {
    /// A certificate or key can't be made or read.
    #[error("making a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// What was made is no SVID.
    #[error(transparent)]
    Svid(#[from] BadSvid),
    /// A workload's name is no SPIFFE ID.
    #[error("workload {0:?} is no path of a SPIFFE ID: {1}")]
    Path(String, String),
}

/// An authority of one trust domain. Its key is EC P-256.
pub struct Authority {
    domain: TrustDomain,
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl Authority {
    /// A new authority, in memory.
    ///
    /// # Errors
    /// [`IssuerError::Certificate`] if the machine has no random numbers.
    pub fn new(domain: TrustDomain) -> Result<Self, IssuerError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = name(&domain);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let id = rcgen::string::Ia5String::try_from(domain.id_string())?;
        params.subject_alt_names = vec![SanType::URI(id)];
        set_validity(&mut params, SystemTime::now(), AUTHORITY_LIFE);
        let certificate = params.self_signed(&key)?.der().clone();
        Ok(Self { domain, issuer: Issuer::new(params, key), certificate })
    }

    /// The trust domain.
    pub fn domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// The authority's certificate: the trust domain's bundle.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The bundle of this trust domain alone.
    pub fn bundles(&self) -> Bundles {
        BTreeMap::from([(self.domain.clone(), vec![self.certificate.clone()])])
    }

    /// An SVID for the workload at `path` ("/ns/default/pod/nsc"), valid for `life` from now on, with this domain's bundle.
    ///
    /// # Errors
    /// [`IssuerError`] if the path can't be part of a SPIFFE ID.
    pub fn issue(&self, path: &str, life: Duration) -> Result<Svid, IssuerError> {
        self.issue_at(path, SystemTime::now(), life)
    }

    /// As [`issue`](Self::issue), valid from a moment of the caller's choice.
    pub fn issue_at(&self, path: &str, from: SystemTime, life: Duration) -> Result<Svid, IssuerError> {
        let id = SpiffeId::new(format!("{}{path}", self.domain.id_string()))
            .map_err(|error| IssuerError::Path(path.to_owned(), error.to_string()))?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = name(&self.domain);
        params.subject_alt_names = vec![SanType::URI(rcgen::string::Ia5String::try_from(id.to_string())?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(SerialNumber::from_slice(&rand::random::<[u8; 16]>()));
        set_validity(&mut params, from, life);
        let chain = vec![params.signed_by(&key, &self.issuer)?.der().clone()];
        Ok(Svid::new(chain, PrivatePkcs8KeyDer::from(key.serialize_der()), self.bundles())?)
    }
}

fn set_validity(params: &mut CertificateParams, from: SystemTime, life: Duration) {
    params.not_before = (from - BACKDATED).into();
    params.not_after = (from + life).into();
}

fn name(domain: &TrustDomain) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "vwire");
    name.push(DnType::CommonName, domain.as_str());
    name
}
