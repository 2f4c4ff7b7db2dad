//! Peers that are not who they should be, or do not do what they should.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tonic::Code;
use tonic::metadata::MetadataValue;
use vwire_proto::nsm::connection::Connection;
use vwire_proto::nsm::networkservice::NetworkServiceRequest;
use vwire_proto::nsm::networkservice::network_service_client::NetworkServiceClient;

use super::support::*;
use crate::identity::{Accepted, Bundles, Identity, Svid};
use crate::transport::tls::Tls;
use crate::transport::*;

/// Dials as `client`; the refusal's text.
async fn refused(client: &Identity, target: &Target) -> String {
    let error = match pool(client).hop(target).await {
        Err(error) => error,
        // In TLS 1.3 the client has finished when the server refuses it: the first call notices.
        Ok(hop) => request(&hop).await.unwrap_err(),
    };
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    error.message().to_owned()
}

fn believing(mut svid: Svid, bundles: Bundles) -> Identity {
    svid.bundles.extend(bundles);
    Identity::fixed(svid)
}

#[tokio::test]
async fn an_authority_of_the_same_name_is_not_believed_by_either_side() {
    let (real, fake) = (authority("example.org"), authority("example.org"));
    let server = start(&identity(&real, "/nsmgr")).await;
    for target in &server.targets {
        let text = refused(&identity(&fake, "/nsc"), target).await;
        assert!(
            text.contains("spiffe://example.org/nsmgr: not issued by an authority that we know"),
            "{text}"
        );
        // A client that believes the server's authority, but is of its own.
        let mut svid = fake.issue("/nsc", DAY).unwrap();
        svid.bundles = real.bundles();
        refused(&Identity::fixed(svid), target).await;
    }
    request(&pool(&identity(&real, "/nsc")).hop(server.tcp()).await.unwrap()).await.unwrap();
}

#[tokio::test]
async fn another_trust_domain_is_a_peer_if_both_federate_and_the_setting_lets_it() {
    let (ours, theirs) = (authority("ours.test"), authority("theirs.test"));
    let nsmgr = || ours.issue("/nsmgr", DAY).unwrap();
    let nsc = || theirs.issue("/nsc", DAY).unwrap();
    let stranger = believing(nsc(), ours.bundles());
    let friend = believing(nsmgr(), theirs.bundles());

    let alone = start(&Identity::fixed(nsmgr())).await;
    refused(&stranger, alone.tcp()).await;
    let text = refused(&Identity::fixed(nsc()), alone.tcp()).await;
    assert!(text.contains("no bundle of trust domain ours.test"), "{text}");

    let federated = start(&friend).await;
    let answer = request(&pool(&stranger).hop(federated.tcp()).await.unwrap()).await.unwrap();
    assert_eq!(answer.labels["id"], "spiffe://theirs.test/nsc");

    let only_ours = Limits { trust_domains: vec![ours.domain().clone()], ..Limits::default() };
    let strict = start_with(&friend, only_ours).await;
    refused(&stranger, strict.tcp()).await;
    let dialling = Dialling { trust_domains: vec![theirs.domain().clone()], ..Dialling::default() };
    let error = pool_with(&stranger, dialling).hop(federated.tcp()).await.unwrap_err();
    assert!(error.message().contains("trust domain ours.test is not accepted here"), "{error}");
}

#[tokio::test]
async fn an_expired_svid_is_refused() {
    let authority = authority("example.org");
    let server = start(&identity(&authority, "/nsmgr")).await;
    let past = std::time::SystemTime::now() - 2 * DAY;
    let old = Identity::fixed(authority.issue_at("/nsc", past, DAY).unwrap());
    if let Ok(hop) = pool(&old).hop(server.unix()).await {
        hop.closed().await;
    }
}

/// A rustls client that is not as a peer should be.
async fn odd_client(
    server: &Running,
    change: impl FnOnce(&mut rustls::ClientConfig),
) -> std::io::Result<Vec<u8>> {
    let authority = authority("example.org");
    let session = Tls::new(identity(&authority, "/odd"), Accepted::WithBundle).current()?.unwrap();
    let mut config = (*session.client).clone();
    config.dangerous().set_certificate_verifier(Arc::new(BelievesAll));
    change(&mut config);
    let Target::Tcp(address) = server.tcp() else { unreachable!() };
    let stream = TcpStream::connect(address).await?;
    let name = rustls_pki_types::ServerName::try_from("x.test").unwrap();
    let mut tls = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    tls.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
    let mut answer = Vec::new();
    tls.read_to_end(&mut answer).await?;
    Ok(answer)
}

#[derive(Debug)]
struct BelievesAll;

impl rustls::client::danger::ServerCertVerifier for BelievesAll {
    fn verify_server_cert(
        &self,
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &[rustls_pki_types::CertificateDer<'_>],
        _: &rustls_pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Shows no certificate whatever is asked for.
#[derive(Debug)]
struct Nothing;

impl rustls::client::ResolvesClientCert for Nothing {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn who_shows_no_certificate_or_no_h2_gets_nothing() {
    let authority = authority("example.org");
    let server = start(&identity(&authority, "/nsmgr")).await;
    let error = odd_client(&server, |config| config.client_auth_cert_resolver = Arc::new(Nothing)).await;
    assert!(error.unwrap_err().to_string().contains("CertificateRequired"));
    let error = odd_client(&server, |config| config.alpn_protocols = vec![b"http/1.1".to_vec()]).await;
    // Ended with the alert, or before it came.
    let error = error.unwrap_err().to_string();
    assert!(error.contains("NoApplicationProtocol") || error.contains("handshake eof"), "{error}");
    // With a certificate of a stranger.
    assert!(odd_client(&server, |_| {}).await.unwrap_err().to_string().contains("Certificate"));
}

#[tokio::test]
async fn a_client_without_alpn_is_sent_away_though_its_certificate_is_good() {
    let authority = authority("example.org");
    let server = start(&identity(&authority, "/nsmgr")).await;
    let session = Tls::new(identity(&authority, "/nsc"), Accepted::WithBundle).current().unwrap().unwrap();
    let answer = odd_client(&server, |config| {
        *config = (*session.client).clone();
        config.alpn_protocols.clear();
    });
    // Closed with nothing said in HTTP/2.
    assert!(answer.await.map_or(true, |answer| answer.is_empty()));
}

#[tokio::test]
async fn plaintext_is_refused_by_a_server_with_tls_and_tls_by_one_without() {
    let authority = authority("example.org");
    let server = start(&identity(&authority, "/nsmgr")).await;
    for target in &server.targets {
        refused(&Identity::insecure(), target).await;
    }
    let plain = start(&Identity::insecure()).await;
    for target in &plain.targets {
        refused(&identity(&authority, "/nsc"), target).await;
    }
}

#[tokio::test]
async fn who_does_not_finish_the_handshake_is_closed_and_keeps_nobody_out() {
    let authority = authority("example.org");
    let limits = Limits { handshakes: 4, handshake_time: Duration::from_millis(300), ..Limits::default() };
    let server = start_with(&identity(&authority, "/nsmgr"), limits).await;
    let Target::Unix(path) = server.unix() else { unreachable!() };
    let mut slow = Vec::new();
    for _ in 0..6 {
        let mut stream = UnixStream::connect(path).await.unwrap();
        // The first byte of a record, and no more; those beyond the limit are closed already.
        let _ = stream.write_all(&[22]).await;
        slow.push(stream);
    }
    for mut stream in slow {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    }
    // All places are free again.
    request(&pool(&identity(&authority, "/nsc")).hop(server.unix()).await.unwrap()).await.unwrap();
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_until_one_ends() {
    let authority = authority("example.org");
    let limits = Limits { connections: 1, ..Limits::default() };
    let server = start_with(&identity(&authority, "/nsmgr"), limits).await;
    let nsc = identity(&authority, "/nsc");
    let hop = pool(&nsc).hop(server.tcp()).await.unwrap();
    request(&hop).await.unwrap();
    refused(&nsc, server.tcp()).await;
    hop.cut();
    hop.closed().await;
    let again = pool(&nsc);
    loop {
        // The server notices the end in its own time.
        if let Ok(hop) = again.hop(server.tcp()).await
            && request(&hop).await.is_ok()
        {
            break;
        }
        tokio::task::yield_now().await;
    }
}

/// A call with metadata in place of what a hop would send; what the server made of the token.
async fn with_metadata(metadata: &[(&'static str, &str)]) -> (Option<String>, Option<String>) {
    // Without TLS a hop adds no tokens of its own, so that these are all there are.
    let server = start(&Identity::insecure()).await;
    let hop = pool(&Identity::insecure()).hop(server.unix()).await.unwrap();
    let mut call = tonic::Request::new(NetworkServiceRequest {
        connection: Some(Connection::default()),
        ..Default::default()
    });
    for (key, value) in metadata {
        call.metadata_mut().append(*key, MetadataValue::try_from(*value).unwrap());
    }
    let labels = NetworkServiceClient::new(hop).request(call).await.unwrap().into_inner().labels;
    (labels.get("token").cloned(), labels.get("expires").cloned())
}

#[tokio::test]
async fn a_token_counts_if_it_is_the_only_one_and_has_an_end() {
    let svid = authority("example.org").issue("/nsc", DAY).unwrap();
    let claims = crate::identity::jwt::Claims {
        sub: "a".into(),
        aud: vec!["b".into()],
        exp: 4_000_000_000,
        nbf: None,
    };
    let jwt = crate::identity::jwt::sign(&claims, &svid.key).unwrap();
    let (token, expires) = (TOKEN, TOKEN_EXPIRES);
    let good = "2030-01-02T03:04:05.000000006+02:00";
    let seen = with_metadata(&[(token, &jwt), (expires, good)]).await;
    assert_eq!(seen.0.as_ref(), Some(&jwt));
    assert_eq!(seen.1.unwrap(), "2030-01-02T01:04:05.000000006Z");
    // The header can't make a token live longer than it says itself.
    let seen = with_metadata(&[(token, &jwt), (expires, "9999-01-01T00:00:00Z")]).await;
    assert_eq!(seen.1.unwrap(), "2096-10-02T07:06:40Z");
    let cases: &[&[(&'static str, &str)]] = &[
        &[],
        &[(token, &jwt)],
        &[(expires, good)],
        &[(token, &jwt), (token, &jwt), (expires, good)],
        &[(token, &jwt), (expires, good), (expires, good)],
        &[(token, "no.jwt.here"), (expires, good)],
        &[(token, &jwt), (expires, "tomorrow")],
        &[(token, &jwt), (expires, "2030-01-02 03:04:05")],
        &[(token, &jwt), (expires, "2030-13-45T99:99:99Z")],
        &[(token, &jwt), (expires, "")],
    ];
    for case in cases {
        assert_eq!(with_metadata(case).await, (None, None), "{case:?}");
    }
}

#[tokio::test]
async fn metadata_beyond_the_limit_is_refused_and_the_connection_lives() {
    let authority = authority("example.org");
    let limits = Limits { metadata: 8192, ..Limits::default() };
    let server = start_with(&identity(&authority, "/nsmgr"), limits).await;
    let hop = pool(&identity(&authority, "/nsc")).hop(server.unix()).await.unwrap();
    let mut call = tonic::Request::new(NetworkServiceRequest::default());
    call.metadata_mut().insert("path", "x".repeat(20_000).parse().unwrap());
    let error = NetworkServiceClient::new(hop.clone()).request(call).await.unwrap_err();
    assert_ne!(error.code(), Code::Ok);
    request(&hop).await.unwrap();
}

#[tokio::test]
async fn a_message_beyond_four_mebibytes_is_refused() {
    let authority = authority("example.org");
    let server = start(&identity(&authority, "/nsmgr")).await;
    let hop = pool(&identity(&authority, "/nsc")).hop(server.unix()).await.unwrap();
    let error = request_as(&hop, &"x".repeat(4 << 20)).await.unwrap_err();
    assert_eq!(error.code(), Code::OutOfRange, "{error}");
    request(&hop).await.unwrap();
}
