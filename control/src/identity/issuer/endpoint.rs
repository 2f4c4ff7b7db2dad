//! Where a trust domain publishes its bundle: a SPIFFE bundle endpoint (SPIFFE Federation §5), of both profiles as a client
//! (`follow.rs`), and of `https_spiffe` as a server.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::{IssuerError, Keys, bundle};
use crate::identity::SpiffeId;

/// The path of the workload that serves the bundle.
pub const ISSUER: &str = "/vwire/ca";
/// Who follows a bundle asks once in minutes: more at one time are not meant well.
const MAX_CONNECTIONS: usize = 64;
/// How long a caller has for its handshake, and for its request.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long our certificate there lives; it is made anew at half of it.
const LIFE: Duration = Duration::from_secs(3600);

/// Where a bundle is published, and who does it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// `https://host:port/path`.
    pub url: Url,
    /// Who serves it: the profile `https_spiffe`. Without it the host is known by its web certificate: the profile `https_web`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    spiffe_id: Option<String>,
}

impl Endpoint {
    /// An endpoint of the profile that `spiffe_id` says.
    ///
    /// # Errors
    /// What is wrong with the URL.
    pub fn new(url: Url, spiffe_id: Option<&SpiffeId>) -> Result<Self, String> {
        let endpoint = Self { url, spiffe_id: spiffe_id.map(ToString::to_string) };
        endpoint.check().map(|()| endpoint)
    }

    /// Reads what [`text`](Self::text) wrote.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let endpoint: Self = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        endpoint.check().map(|()| endpoint)
    }

    /// As a file has it.
    pub fn text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default() + "\n"
    }

    /// Who serves it; none for `https_web`.
    pub fn id(&self) -> Option<SpiffeId> {
        self.spiffe_id.as_ref().and_then(|id| SpiffeId::new(id).ok())
    }

    fn check(&self) -> Result<(), String> {
        let shown = &self.url;
        if shown.scheme() != "https" || shown.host_str().is_none() {
            return Err(format!("{shown}: a bundle's endpoint is https://host:port/path"));
        }
        if !shown.username().is_empty() || shown.password().is_some() {
            return Err("a bundle's endpoint has no user in its URL".to_owned());
        }
        match &self.spiffe_id {
            Some(id) => SpiffeId::new(id).map(drop).map_err(|error| format!("{id}: {error}")),
            None => Ok(()),
        }
    }
}

/// Publishes the bundle of `keys` to all who ask, until `shutdown`; they are told to ask again every `refresh_hint`.
pub async fn publish(
    listener: TcpListener,
    keys: watch::Receiver<Arc<Keys>>,
    refresh_hint: Duration,
    shutdown: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let current = Current::follow(keys.clone(), shutdown.clone());
    let accepting = async {
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "the bundle's endpoint takes no connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Some(tls) = current.borrow().clone() else { continue };
            let keys = keys.clone();
            tokio::spawn(async move {
                let answered = tokio::time::timeout(PATIENCE, answer(stream, tls, keys, refresh_hint)).await;
                if let Err(error) = answered.unwrap_or_else(|_| Err("took too long".into())) {
                    tracing::debug!(%error, "who asked for the bundle got no answer");
                }
                drop(place);
            });
        }
    };
    shutdown.run_until_cancelled(accepting).await;
}

type Fault = Box<dyn std::error::Error + Send + Sync>;

async fn answer(
    stream: TcpStream,
    tls: Arc<ServerConfig>,
    keys: watch::Receiver<Arc<Keys>>,
    refresh_hint: Duration,
) -> Result<(), Fault> {
    let stream = TlsAcceptor::from(tls).accept(stream).await?;
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = document(&request, &keys.borrow(), refresh_hint);
        std::future::ready(Ok::<_, std::convert::Infallible>(answer))
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await?;
    Ok(())
}

/// The bundle at any path: the specification leaves it to the URL.
fn document(request: &Request<Incoming>, keys: &Keys, refresh_hint: Duration) -> Response<Full<Bytes>> {
    let plain = |status: StatusCode, text: String| {
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        response
    };
    if request.method() != Method::GET {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "ask by GET\n".to_owned());
    }
    match bundle::to_json(&keys.bundle(), keys.sequence, refresh_hint.as_secs().max(1)) {
        Ok(text) => {
            let mut response = plain(StatusCode::OK, text);
            let json = header::HeaderValue::from_static("application/json");
            response.headers_mut().insert(header::CONTENT_TYPE, json);
            response
        }
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

/// Our certificate there, made anew in time and whenever another authority signs.
struct Current;

impl Current {
    fn follow(
        mut keys: watch::Receiver<Arc<Keys>>,
        shutdown: CancellationToken,
    ) -> watch::Receiver<Option<Arc<ServerConfig>>> {
        let (sender, receiver) = watch::channel(None);
        let make = move |keys: &Keys| match config(keys) {
            Ok(config) => Some(Arc::new(config)),
            Err(error) => {
                tracing::error!(%error, "the bundle's endpoint has no certificate");
                None
            }
        };
        sender.send_replace(make(&keys.borrow_and_update()));
        tokio::spawn(shutdown.run_until_cancelled_owned(async move {
            loop {
                let changed = tokio::time::timeout(LIFE / 2, keys.changed()).await;
                if matches!(changed, Ok(Err(_))) {
                    // Nobody rotates; time goes on.
                    tokio::time::sleep(LIFE / 2).await;
                }
                let made = make(&keys.borrow_and_update());
                if made.is_some() {
                    sender.send_replace(made);
                }
            }
        }));
        receiver
    }
}

fn config(keys: &Keys) -> Result<ServerConfig, IssuerError> {
    let svid = keys.signs.issue(ISSUER, LIFE)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .and_then(|config| {
            config.with_no_client_auth().with_single_cert(svid.chain, svid.key.clone_key().into())
        });
    config.map_err(|error| IssuerError::Tls(io::Error::other(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_https_and_says_by_its_id_how_its_server_is_known() {
        let read = |text: &str| Endpoint::parse(text.as_bytes());
        let web = read(r#"{"url": "https://bundles.b.test/b.json"}"#).unwrap();
        assert_eq!(web.id(), None);
        let spiffe =
            read(r#"{"url": "https://[fd00::1]:8443", "spiffe_id": "spiffe://b.test/spire/server"}"#);
        let spiffe = spiffe.unwrap();
        assert_eq!(spiffe.id().unwrap().to_string(), "spiffe://b.test/spire/server");
        for endpoint in [web, spiffe] {
            assert_eq!(read(&endpoint.text()), Ok(endpoint));
        }
        for (text, part) in [
            ("", "EOF"),
            (r#"{"url": "http://b.test"}"#, "https://host:port"),
            (r#"{"url": "https://a:b@b.test"}"#, "no user"),
            (r#"{"url": "https://b.test", "spiffe_id": "b.test"}"#, "b.test: "),
            (r#"{"url": "https://b.test", "profile": "x"}"#, "profile"),
        ] {
            let told = read(text).unwrap_err();
            assert!(told.contains(part), "{text}: {told}");
        }
    }
}
