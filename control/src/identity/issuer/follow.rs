//! Following the bundles that other trust domains publish: a domain's new authority is believed here before it signs there, and
//! nobody makes a new link for it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::bundle::{self, Published};
use super::{Endpoint, Folder};
use crate::identity::{Accepted, Leaf, SpiffeId, Trust, TrustDomain};
use crate::transport::{Verifier, in_words};

/// How often the folder is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How long an endpoint has for its answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a bundle is fetched that does not say it, and the shortest and longest that it may say.
const USUAL: Duration = Duration::from_secs(300);
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// The first pause after a failure; doubled each time, up to the usual one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Where Debian, and others, keep the authorities of the web.
pub const WEB_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Follows the bundles of the domains whose endpoints are in a folder.
#[derive(Clone)]
pub struct Following {
    /// Where endpoints and bundles are.
    pub folder: Folder,
    /// A file with the authorities of the web, PEM, for endpoints of the profile `https_web`.
    pub web_roots: PathBuf,
}

impl Following {
    /// Follows them as endpoints come and go, until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut tasks: BTreeMap<TrustDomain, (Endpoint, Task)> = BTreeMap::new();
        let following = async {
            loop {
                let endpoints = self.folder.endpoints();
                tasks.retain(|domain, (endpoint, _)| endpoints.get(domain) == Some(endpoint));
                for (domain, endpoint) in endpoints {
                    let one = || self.clone().follow(domain.clone(), endpoint.clone());
                    let task = || (endpoint.clone(), Task(tokio::spawn(one())));
                    tasks.entry(domain.clone()).or_insert_with(task);
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        shutdown.run_until_cancelled(following).await;
    }

    async fn follow(self, domain: TrustDomain, endpoint: Endpoint) {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.look(&domain, &endpoint).await {
                Ok(published) => {
                    pause = FIRST_PAUSE;
                    let hint = published.refresh_hint.map_or(USUAL, Duration::from_secs);
                    tokio::time::sleep(hint.clamp(SHORTEST, LONGEST)).await;
                }
                Err(reason) => {
                    tracing::warn!(%domain, url = %endpoint.url, %reason, again_in = ?pause,
                        "a bundle can't be followed; what was there stays in force");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(USUAL);
                }
            }
        }
    }

    /// Fetches once, and puts what has changed into the folder.
    async fn look(&self, domain: &TrustDomain, endpoint: &Endpoint) -> Result<Published, String> {
        let fetched = tokio::time::timeout(PATIENCE, self.fetch(endpoint)).await;
        let published = fetched.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}")))?;
        let named = bundle::domain(&published.authorities).filter(|named| named != domain);
        if let Some(other) = named {
            return Err(format!("its authorities are of trust domain {other}"));
        }
        let have = self.folder.bundle(domain).ok().flatten();
        if have.as_ref() != Some(&published.authorities) {
            let put = self.folder.put_followed(domain, endpoint, &published.authorities);
            if put.map_err(|error| error.to_string())? {
                let (authorities, sequence) = (published.authorities.len(), published.sequence);
                tracing::info!(%domain, authorities, sequence, "a bundle that we follow has changed");
            }
        }
        Ok(published)
    }

    async fn fetch(&self, endpoint: &Endpoint) -> Result<Published, String> {
        let config = self.config(endpoint)?;
        let url = &endpoint.url;
        let host = url.host_str().unwrap_or_default();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let port = url.port_or_known_default().unwrap_or(443);
        let stream = TcpStream::connect((bare, port)).await.map_err(|error| error.to_string())?;
        let name = ServerName::try_from(bare.to_owned()).map_err(|error| error.to_string())?;
        let connector = TlsConnector::from(Arc::new(config));
        let stream = connector.connect(name, stream).await;
        let stream = stream.map_err(|error| in_words(error).to_string())?;
        if let Some(expected) = endpoint.id() {
            let leaf =
                stream.get_ref().1.peer_certificates().and_then(<[_]>::first).map(|leaf| Leaf::read(leaf));
            match leaf {
                Some(Ok(leaf)) if leaf.id == expected => {}
                Some(Ok(leaf)) => return Err(format!("{} answers there; expected {expected}", leaf.id)),
                _ => return Err("its server shows no SVID".to_owned()),
            }
        }
        let bytes = get(TokioIo::new(stream), url).await?;
        bundle::published(&bytes)
    }

    /// How the endpoint's server is known.
    fn config(&self, endpoint: &Endpoint) -> Result<ClientConfig, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(|error| error.to_string())?;
        let Some(id) = endpoint.id() else {
            return Ok(builder.with_root_certificates(self.roots()?).with_no_client_auth());
        };
        let verifier = Arc::new(self.verifier(&id, &provider)?);
        Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
    }

    fn verifier(&self, id: &SpiffeId, provider: &CryptoProvider) -> Result<Verifier, String> {
        let domain = id.trust_domain().clone();
        let authorities = self.folder.bundle(&domain).map_err(|error| error.to_string())?;
        let authorities = authorities.ok_or_else(|| {
            format!("{id}: no bundle of {domain} to know it by; import one with `vwire link import`")
        })?;
        let trust = Trust::new(&BTreeMap::from([(domain, authorities)]), Accepted::WithBundle);
        Ok(Verifier::new(trust, provider))
    }

    fn roots(&self) -> Result<RootCertStore, String> {
        let file = self.web_roots.display();
        let roots = CertificateDer::pem_file_iter(&self.web_roots)
            .map_err(|error| format!("VWIRE_CA_WEB_ROOTS {file}: {error}"))?;
        let mut store = RootCertStore::empty();
        // As browsers do: one that can't be read is none.
        store.add_parsable_certificates(roots.flatten());
        if store.is_empty() {
            return Err(format!("VWIRE_CA_WEB_ROOTS {file}: no authority in it"));
        }
        Ok(store)
    }
}

async fn get<S>(stream: TokioIo<S>, url: &Url) -> Result<Bytes, String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let told = |error: hyper::Error| error.to_string();
    let path = url.query().map_or_else(|| url.path().to_owned(), |query| format!("{}?{query}", url.path()));
    let request = Request::builder()
        .uri(path)
        .header("host", url.authority())
        .header("accept", "application/json")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.map_err(told)?;
    let _connection = Task(tokio::spawn(async move { drop(connection.await) }));
    let answer = sender.send_request(request).await.map_err(told)?;
    if !answer.status().is_success() {
        return Err(format!("the endpoint answers {}", answer.status()));
    }
    let body = Limited::new(answer.into_body(), bundle::MAX_LENGTH).collect().await;
    Ok(body.map_err(|error| error.to_string())?.to_bytes())
}

/// A task that ends with whoever holds it.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}
