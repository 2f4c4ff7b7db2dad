//! The admin port: metrics, health, and captures for `curl … | wireshark -k -i -`.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::capture::{self, CaptureError, CaptureSpec};
use super::metrics;
use super::server::Shared;

/// Connections at one time. Whoever may reach the port may hold all of them, but takes no descriptors from
/// the engine beyond that.
const MAX_CONNECTIONS: usize = 64;

/// The admin port's listener: one more connection than there are places waits in the backlog.
pub struct AdminListener {
    listener: TcpListener,
    places: Arc<Semaphore>,
}

impl AdminListener {
    /// Listens on `listener` for as many as may connect.
    pub fn new(listener: TcpListener) -> Self {
        Self { listener, places: Arc::new(Semaphore::new(MAX_CONNECTIONS)) }
    }
}

impl axum::serve::Listener for AdminListener {
    type Io = Placed;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Placed, SocketAddr) {
        let place = Arc::clone(&self.places).acquire_owned().await.ok();
        let (stream, peer) = axum::serve::Listener::accept(&mut self.listener).await;
        (Placed { stream, _place: place }, peer)
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that takes up a place for as long as it lasts.
pub struct Placed {
    stream: TcpStream,
    _place: Option<OwnedSemaphorePermit>,
}

impl AsyncRead for Placed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Placed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// `/metrics`, `/live`, `/ready`, `/capture?port=NAME[&snap_len=N][&ring_bytes=N]`.
pub fn router(agent: Shared) -> Router {
    Router::new()
        .route("/metrics", get(serve_metrics))
        .route("/live", get(|| async { "live\n" }))
        .route("/ready", get(serve_ready))
        .route("/capture", get(serve_capture))
        .with_state(agent)
}

async fn serve_metrics(State(agent): State<Shared>) -> Response {
    let text = metrics::render(&agent.lock());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

async fn serve_ready(State(agent): State<Shared>) -> Response {
    match agent.lock().workers() {
        (_, 0) => "ready\n".into_response(),
        (all, dead) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("{dead} of {all} workers died; see the log\n"))
                .into_response()
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CaptureQuery {
    port: String,
    #[serde(default)]
    snap_len: usize,
    #[serde(default)]
    ring_bytes: usize,
}

async fn serve_capture(State(agent): State<Shared>, Query(query): Query<CaptureQuery>) -> Response {
    let port = query.port.parse().map_err(|error| CaptureError::Limit(format!("port: {error}")));
    let spec = port.and_then(|port| CaptureSpec::new(port, query.snap_len, query.ring_bytes));
    match spec.and_then(|spec| capture::start(&agent, spec)) {
        Ok(pieces) => {
            let stream = ReceiverStream::new(pieces).map(Ok::<_, std::convert::Infallible>);
            ([(header::CONTENT_TYPE, "application/x-pcapng")], Body::from_stream(stream)).into_response()
        }
        Err(error) => {
            let status = match error {
                CaptureError::Limit(_) => StatusCode::BAD_REQUEST,
                CaptureError::NoSuchPort(_) => StatusCode::NOT_FOUND,
                CaptureError::TooMany => StatusCode::SERVICE_UNAVAILABLE,
            };
            (status, format!("{error}\n")).into_response()
        }
    }
}
