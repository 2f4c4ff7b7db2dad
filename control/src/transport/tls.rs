//! Mutual TLS between SPIFFE workloads: one configuration for each side, made anew when our SVID changes.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError, ServerConfig,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::identity::{Accepted, Identity, Svid, Trust};

/// gRPC's protocol; grpc-go refuses a peer that negotiates no or another one.
pub(super) const ALPN: &[u8] = b"h2";

/// Both sides' configurations for one SVID of ours.
#[derive(Clone)]
pub(super) struct Session {
    pub svid: Arc<Svid>,
    pub server: Arc<ServerConfig>,
    pub client: Arc<ClientConfig>,
}

/// Makes sessions of the newest SVID.
pub(super) struct Tls {
    identity: Identity,
    accepted: Accepted,
    built: Mutex<Option<Session>>,
}

impl Tls {
    pub fn new(identity: Identity, accepted: Accepted) -> Self {
        Self { identity, accepted, built: Mutex::new(None) }
    }

    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Whose members may be peers.
    pub fn accepted(&self) -> &Accepted {
        &self.accepted
    }

    /// The configurations for the SVID of now; none where TLS is off.
    pub fn current(&self) -> io::Result<Option<Session>> {
        let Some(svid) = self.identity.current() else { return Ok(None) };
        let mut built = self.built.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(session) = built.as_ref().filter(|session| Arc::ptr_eq(&session.svid, &svid)) {
            return Ok(Some(session.clone()));
        }
        let session = build(svid, &self.accepted)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("our SVID: {error}")))?;
        *built = Some(session.clone());
        Ok(Some(session))
    }
}

/// The reason of a failed handshake in words: rustls prints the verifier's own errors as Rust.
pub(crate) fn in_words(error: io::Error) -> io::Error {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(reason)))) => {
            io::Error::new(error.kind(), format!("the peer's certificate: {reason}"))
        }
        _ => error,
    }
}

fn build(svid: Arc<Svid>, accepted: &Accepted) -> Result<Session, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(Verifier::new(Trust::new(&svid.bundles, accepted.clone()), &provider));
    let versions = &[&rustls::version::TLS13, &rustls::version::TLS12];
    let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)?
        .with_client_cert_verifier(Arc::clone(&verifier) as Arc<dyn ClientCertVerifier>)
        .with_single_cert(svid.chain.clone(), svid.key.clone_key().into())?;
    server.alpn_protocols = vec![ALPN.to_vec()];
    // A resumed session would skip the look at the peer's certificate, which may have ended meanwhile.
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(svid.chain.clone(), svid.key.clone_key().into())?;
    client.alpn_protocols = vec![ALPN.to_vec()];
    client.resumption = Resumption::disabled();
    client.enable_sni = false;
    Ok(Session { svid, server: Arc::new(server), client: Arc::new(client) })
}

/// Verifies a peer by its SPIFFE ID, on both sides alike.
#[derive(Debug)]
pub(crate) struct Verifier {
    trust: Trust,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    /// Believes whom `trust` does.
    pub fn new(trust: Trust, provider: &CryptoProvider) -> Self {
        Self { trust, algorithms: provider.signature_verification_algorithms }
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        match self.trust.verify(leaf, others, now) {
            Ok(_) => Ok(()),
            Err(distrust) => {
                let reason = CertificateError::Other(OtherError(Arc::new(distrust)));
                Err(rustls::Error::InvalidCertificate(reason))
            }
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(leaf, others, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, leaf, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // No hints: a client has one SVID, and the list would tell strangers whom we are federated with.
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify(leaf, others, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, leaf, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
