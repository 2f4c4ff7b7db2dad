//! The admin port: HTTP on a unix socket or TCP, for `vwire status`, curl and Prometheus.

use std::fmt::Debug;
use std::io;
use std::path::PathBuf;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use vwire_dataplane::agent::admin::AdminListener;
use vwire_dataplane::agent::unix::{ApiSocket, SocketError};

use super::{Admin, LogLevel, Logs};
use crate::transport::Target;

/// Where admin sockets are that nobody placed elsewhere.
const DIRECTORY: &str = "/run/vwire";
/// Longest body that is read: a filter.
const MAX_BODY: usize = 4096;

/// Why there is no admin port.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The unix socket can't be had.
    #[error(transparent)]
    Unix(#[from] SocketError),
    /// The TCP socket can't be had.
    #[error("{address}: {error}")]
    Tcp {
        /// Where it was to listen.
        address: String,
        /// The kernel's answer.
        error: io::Error,
    },
    /// Neither of both.
    #[error("{0}: an admin port is unix:///path or host:port")]
    Kind(Target),
}

/// The admin port's socket, listening.
pub struct AdminSocket(Kind);

enum Kind {
    Unix(ApiSocket),
    Tcp(TcpListener),
}

/// Where a role's admin socket is, if nobody says otherwise.
pub fn default_socket(role: &str, name: &str) -> Target {
    let safe = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '_' };
    let name: String = name.chars().map(safe).take(64).collect();
    Target::Unix(PathBuf::from(DIRECTORY).join(format!("{role}-{name}.sock")))
}

impl AdminSocket {
    /// Listens.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn bind(target: &Target) -> Result<Self, AdminError> {
        match target {
            Target::Unix(path) => Ok(Self(Kind::Unix(ApiSocket::bind(path)?))),
            Target::Tcp(address) => {
                // As in Go, a port alone is a port of every address.
                let all =
                    if address.starts_with(':') { format!("0.0.0.0{address}") } else { address.clone() };
                let bound = TcpListener::bind(&all).await;
                let listener = bound.map_err(|error| AdminError::Tcp { address: address.clone(), error })?;
                Ok(Self(Kind::Tcp(listener)))
            }
            Target::File { .. } => Err(AdminError::Kind(target.clone())),
        }
    }
}

/// Serves until `shutdown`.
pub async fn serve(socket: AdminSocket, admin: Admin, shutdown: CancellationToken) {
    let router = router(admin);
    match socket.0 {
        Kind::Unix(socket) => run(Unix(socket.incoming()), router, shutdown).await,
        Kind::Tcp(listener) => run(AdminListener::new(listener), router, shutdown).await,
    }
}

async fn run<L>(listener: L, router: Router, shutdown: CancellationToken)
where
    L: axum::serve::Listener,
    L::Addr: Debug,
{
    // Neither the listener nor its connections report errors by this way.
    let _ = axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await;
}

struct Unix(tokio_stream::wrappers::ReceiverStream<io::Result<vwire_dataplane::fdpass::FdStream>>);

impl axum::serve::Listener for Unix {
    type Io = vwire_dataplane::fdpass::FdStream;
    type Addr = ();

    async fn accept(&mut self) -> (Self::Io, ()) {
        loop {
            match self.0.next().await {
                Some(Ok(stream)) => return (stream, ()),
                Some(Err(_)) => {}
                // The socket's task has ended with the runtime.
                None => std::future::pending().await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}

fn router(admin: Admin) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/live", get(|| async { "live\n" }))
        .route("/ready", get(ready))
        .route("/status", get(|State(admin): State<Admin>| async move { json(&admin.status().await) }))
        .route("/connections", get(connections))
        .route("/config", get(|State(admin): State<Admin>| async move { json(&admin.effective()) }))
        .route("/log", get(levels).put(set_level))
        .route("/do/{verb}", put(act))
        .layer(axum::extract::DefaultBodyLimit::max(MAX_BODY))
        .with_state(admin)
}

fn json(value: &impl Serialize) -> Response {
    match serde_json::to_string(value) {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text + "\n").into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let connections = admin.metrics_text();
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], connections)
        .into_response()
}

async fn ready(State(admin): State<Admin>) -> Response {
    let waits = admin.not_ready();
    if waits.is_empty() {
        return "ready\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, waits.join("\n") + "\n").into_response()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    /// An id at this hop, or at the client; all if it is left out.
    id: Option<String>,
}

async fn connections(State(admin): State<Admin>, Query(which): Query<Which>) -> Response {
    let mut all = admin.connections().await;
    if let Some(id) = which.id {
        all.retain(|view| view.id == id || view.root == id);
    }
    json(&all)
}

async fn act(State(admin): State<Admin>, Path(verb): Path<String>) -> Response {
    match admin.act(&verb).await {
        Some(Ok(told)) => (told + "\n").into_response(),
        Some(Err(told)) => (StatusCode::CONFLICT, told + "\n").into_response(),
        None => (StatusCode::NOT_FOUND, format!("{verb:?}: no role here does that\n")).into_response(),
    }
}

async fn levels() -> Response {
    let Some(logs) = Logs::current() else { return no_logs() };
    let (level, connections) = logs.levels();
    json(&json!({ "level": level.as_str(), "connections": connections }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Whose {
    /// Only for the connection with this root id.
    connection: Option<String>,
}

/// The body is a level or a filter; an empty one goes back to the start's.
async fn set_level(Query(whose): Query<Whose>, body: Bytes) -> Response {
    let Some(logs) = Logs::current() else { return no_logs() };
    let text = String::from_utf8_lossy(&body);
    let text = text.trim();
    let level = if text.is_empty() { Ok(None) } else { text.parse::<LogLevel>().map(Some) };
    let changed = level.and_then(|level| match (whose.connection, level) {
        (Some(connection), level) => logs.set_connection(&connection, level),
        (None, Some(level)) => logs.set(level),
        (None, None) => {
            logs.reset();
            Ok(())
        }
    });
    match changed {
        Ok(()) => levels().await,
        Err(error) => (StatusCode::BAD_REQUEST, format!("{text:?}: {error}\n")).into_response(),
    }
}

fn no_logs() -> Response {
    (StatusCode::NOT_FOUND, "this process logs by other means\n").into_response()
}
