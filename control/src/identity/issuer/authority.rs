//! The authority's key and certificate, and the SVIDs it makes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, UnixTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use crate::identity::leaf::BadSvid;
use crate::identity::source::Bundles;
use crate::identity::{Accepted, Distrust, SpiffeId, Svid, Trust, TrustDomain};

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
    /// A file can't be read or written, or does not hold what it should.
    #[error("{}: {reason}", file.display())]
    File {
        /// Which.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// TLS with a certificate of ours.
    #[error("TLS of the bundle's endpoint: {0}")]
    Tls(std::io::Error),
    /// The authority's files are of another trust domain.
    #[error("the authority there is not of trust domain {0}; use another folder")]
    OtherDomain(String),
    /// The authority's key and certificate don't belong together.
    #[error("the authority's key and certificate don't belong together: {0}")]
    Parts(#[from] Distrust),
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

    /// An authority made earlier.
    ///
    /// # Errors
    /// [`IssuerError`] if key and certificate can't be read, or are not of this trust domain.
    pub(super) fn from_der(
        domain: TrustDomain,
        key: &[u8],
        certificate: CertificateDer<'static>,
    ) -> Result<Self, IssuerError> {
        let key = KeyPair::try_from(key)?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        let authority = Self { domain, issuer, certificate };
        // An SVID that verifies shows that the parts belong together.
        let trial = authority.issue("/trial", Duration::from_secs(60))?;
        Trust::new(&authority.bundles(), Accepted::WithBundle).verify(
            &trial.chain[0],
            &[],
            UnixTime::now(),
        )?;
        authority.check_domain()?;
        Ok(authority)
    }

    /// The certificate's own name is its trust domain.
    fn check_domain(&self) -> Result<(), IssuerError> {
        let (_, read) = X509Certificate::from_der(&self.certificate)
            .map_err(|error| BadSvid::Unreadable(error.to_string()))?;
        let names = read.subject_alternative_name().ok().flatten();
        let id = self.domain.id_string();
        let ours = GeneralName::URI(&id);
        if names.is_some_and(|names| names.value.general_names.contains(&ours)) {
            return Ok(());
        }
        Err(IssuerError::OtherDomain(self.domain.to_string()))
    }

    /// A certificate that an issuer should not make: a leaf, changed.
    #[cfg(test)]
    pub(crate) fn sign_odd(
        &self,
        key: &KeyPair,
        change: impl FnOnce(&mut CertificateParams),
    ) -> CertificateDer<'static> {
        let id = SpiffeId::new(format!("{}/odd", self.domain.id_string())).unwrap();
        let mut params = leaf(&id, SystemTime::now(), Duration::from_secs(3600)).unwrap();
        change(&mut params);
        params.signed_by(key, &self.issuer).unwrap().der().clone()
    }

    /// The key, PKCS#8.
    pub(super) fn key_der(&self) -> &[u8] {
        self.issuer.key().serialized_der()
    }

    /// The trust domain.
    pub fn domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// The authority's certificate: the trust domain's bundle.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// How long ago it was made.
    pub(super) fn age(&self) -> Duration {
        let made = X509Certificate::from_der(&self.certificate)
            .map(|(_, read)| read.validity().not_before.timestamp().max(0).unsigned_abs());
        let made = SystemTime::UNIX_EPOCH + Duration::from_secs(made.unwrap_or(0)) + BACKDATED;
        made.elapsed().unwrap_or_default()
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
        let params = leaf(&id, from, life)?;
        let chain = vec![params.signed_by(&key, &self.issuer)?.der().clone()];
        Ok(Svid::new(chain, PrivatePkcs8KeyDer::from(key.serialize_der()), self.bundles())?)
    }
}

/// What an SVID's leaf certificate says.
fn leaf(id: &SpiffeId, from: SystemTime, life: Duration) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = name(id.trust_domain());
    params.subject_alt_names = vec![SanType::URI(rcgen::string::Ia5String::try_from(id.to_string())?)];
    // Said, and not left out: some SPIFFE libraries ask for it.
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(SerialNumber::from_slice(&rand::random::<[u8; 16]>()));
    set_validity(&mut params, from, life);
    Ok(params)
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
