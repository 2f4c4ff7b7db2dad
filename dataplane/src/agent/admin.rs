//! The admin port: metrics, health, and captures for `curl … | wireshark -k -i -`.

use axum::Router;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Deserialize;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::capture::{self, CaptureError, CaptureSpec};
use super::metrics;
use super::server::Shared;

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
