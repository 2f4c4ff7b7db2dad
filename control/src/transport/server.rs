//! The server side: accepts connections, proves who is there, and hands calls to the role's services.

use std::any::Any;
use std::convert::Infallible;
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, TryFutureExt};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tower::Service;

use super::belief::{self, Proof};
use super::listen::Listener;
use super::peer::UNTAKEN;
use super::quotas::Quotas;
use super::stream::{Stream, peer_of, unproven};
use super::tls::{Tls, in_words};
use super::{FdLane, Limits, Peer, PeerAddress, Target, ends};
use crate::identity::{Distrust, Identity};
use crate::obs::Ration;

/// After which silence of a client it is pinged, and how long it may take to answer. Every gRPC client answers.
const PING_AFTER: Duration = Duration::from_secs(10);
const PING_ANSWER: Duration = Duration::from_secs(10);
/// How long to wait after an `accept` that failed for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why a role can't serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Nothing to listen on was named.
    #[error("no address to listen on (NSM_LISTEN_ON)")]
    Nowhere,
    /// A socket can't be opened.
    #[error("listening on {target}: {reason}")]
    Bind {
        /// Which.
        target: String,
        /// The kernel's word.
        reason: io::Error,
    },
    /// Our SVID can't be used for TLS.
    #[error(transparent)]
    Identity(io::Error),
}

/// Sockets that are open and not yet served: peers can dial already, and wait.
pub struct Server {
    listeners: Vec<Listener>,
    limits: Limits,
}

/// Listens and serves until `shutdown`: [`Server::bind`] and [`Server::serve`] in one.
///
/// # Errors
/// [`ServeError`] if a socket can't be opened or our identity can't be used; all that is open is closed.
pub async fn serve(
    listen: &[Target],
    identity: Identity,
    routes: Routes,
    shutdown: CancellationToken,
    limits: Limits,
) -> Result<(), ServeError> {
    Server::bind(listen, limits).await?.serve(identity, routes, shutdown).await
}

impl Server {
    /// Opens the sockets. A stale unix socket is replaced; one that somebody listens on is not.
    ///
    /// # Errors
    /// [`ServeError::Bind`] with the first that can't be opened.
    pub async fn bind(listen: &[Target], limits: Limits) -> Result<Self, ServeError> {
        if listen.is_empty() {
            return Err(ServeError::Nowhere);
        }
        let mut listeners = Vec::new();
        for target in listen {
            let bound = Listener::bind(target, limits.socket_mode).await;
            listeners.push(bound.map_err(|reason| ServeError::Bind { target: target.to_string(), reason })?);
        }
        Ok(Self { listeners, limits })
    }

    /// Where it listens, in the order asked for; with the ports that the kernel chose.
    pub fn targets(&self) -> Vec<Target> {
        self.listeners.iter().filter_map(|listener| listener.target().ok()).collect()
    }

    /// Serves until `shutdown`, then lets calls under way end for a moment and closes everything. Each call's request carries the
    /// extension `Arc<Peer>`.
    ///
    /// # Errors
    /// [`ServeError::Identity`] if our SVID can't be used.
    pub async fn serve(
        self,
        identity: Identity,
        routes: Routes,
        shutdown: CancellationToken,
    ) -> Result<(), ServeError> {
        let tls = Tls::new(identity, self.limits.accepted());
        if tls.current().map_err(ServeError::Identity)?.is_none() {
            tracing::warn!(
                "TLS IS OFF: anybody who reaches these sockets is believed, and nothing is encrypted"
            );
        }
        self.run(tls, routes, shutdown).await;
        Ok(())
    }

    /// As [`serve`](Self::serve) for services that are plain by design, like the Workload API, whose callers have no identity yet.
    pub async fn serve_plain(self, routes: Routes, shutdown: CancellationToken) {
        let tls = Tls::new(Identity::insecure(), self.limits.accepted());
        self.run(tls, routes, shutdown).await;
    }

    async fn run(self, tls: Tls, routes: Routes, shutdown: CancellationToken) {
        let quotas = Quotas::new(&self.limits);
        let shared =
            Arc::new(Shared { tls, routes: routes.prepare(), limits: self.limits, quotas, shutdown });
        let mut accepting = JoinSet::new();
        for listener in self.listeners {
            accepting.spawn(accept(listener, Arc::clone(&shared)));
        }
        while accepting.join_next().await.is_some() {}
    }
}

/// What all connections of a server share.
struct Shared {
    tls: Tls,
    routes: Routes,
    limits: Limits,
    quotas: Arc<Quotas>,
    shutdown: CancellationToken,
}

/// Accepts on one socket until the end.
async fn accept(listener: Listener, shared: Arc<Shared>) {
    let at = listener.target().map(|target| target.to_string()).unwrap_or_default();
    let open = Arc::new(Semaphore::new(shared.limits.connections));
    let unfinished = Arc::new(Semaphore::new(shared.limits.handshakes));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = shared.shutdown.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                static LINES: Ration = Ration::new();
                if let Some(withheld) = LINES.take() {
                    tracing::warn!(%at, %error, withheld, "a connection was not accepted");
                }
                if is_scarcity(&error) {
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                continue;
            }
        };
        let places = (Arc::clone(&open).try_acquire_owned(), Arc::clone(&unfinished).try_acquire_owned());
        let (Ok(place), Ok(handshake)) = places else {
            refuse(&at, &address, &shared.limits);
            continue;
        };
        let shared = Arc::clone(&shared);
        let at = at.clone();
        connections.spawn(async move {
            let _place = place;
            let ended = connection(&shared, stream, address.clone(), handshake).await;
            ends::tell(&at, &address, ended);
        });
    }
    // Nobody new gets in while the last calls end.
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(shared.limits.drain_time, drained).await.is_err() {
        tracing::debug!(%at, "calls that had not ended were cut off");
    }
}

/// True if the next attempt would fail as well; anything else is one peer's trouble, and must not make others wait.
fn is_scarcity(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let scarce = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    scarce.iter().any(|scarce| error.raw_os_error() == Some(scarce.raw_os_error()))
}

fn refuse(at: &str, address: &PeerAddress, limits: &Limits) {
    static LINES: Ration = Ration::new();
    let Some(withheld) = LINES.take() else { return };
    tracing::warn!(
        %at, ?address, withheld,
        "closed a connection: {} are open or {} shake hands already (VWIRE_MAX_CONNECTIONS, VWIRE_MAX_HANDSHAKES)",
        limits.connections, limits.handshakes
    );
}

/// Shakes hands and serves one connection.
async fn connection<P>(
    shared: &Shared,
    stream: Stream,
    address: PeerAddress,
    handshake: P,
) -> io::Result<()> {
    let lane = stream.lane();
    let Some(session) = shared.tls.current()? else {
        drop(handshake);
        let peer = unproven(address, lane);
        return calls(shared, stream, peer, std::future::pending(), std::future::pending()).await;
    };
    let mut rotation = shared.tls.identity().changes();
    let shaking = TlsAcceptor::from(session.server).accept(stream).map_err(in_words);
    let stream = tokio::time::timeout(shared.limits.handshake_time, shaking).await.map_err(|_| {
        io::Error::new(io::ErrorKind::TimedOut, "the TLS handshake was not finished in time")
    })??;
    drop(handshake);
    let proof = Proof::of(stream.get_ref().1, &session.svid);
    let peer = peer_of(stream.get_ref().1, Arc::clone(&session.svid), address, lane)?;
    tracing::debug!(peer = ?peer.id.as_ref().map(ToString::to_string), address = ?peer.address, "a connection was made");
    let rotated = async move {
        // Only a newer SVID ends it, not a channel that was closed.
        let other = |now: &Option<Arc<_>>| now.as_ref().is_some_and(|now| !Arc::ptr_eq(now, &session.svid));
        if rotation.wait_for(other).await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let lost = belief::lost(shared.tls.identity().clone(), shared.tls.accepted().clone(), proof);
    calls(shared, stream, peer, rotated, lost).await
}

/// Serves a connection's calls until it ends. After `rotated` the peer is asked to dial anew, so that its new calls see our new
/// SVID; calls under way end in their own time. With `lost` the peer is not believed any more, and they end with it.
async fn calls<S>(
    shared: &Shared,
    stream: S,
    peer: Peer,
    rotated: impl Future<Output = ()>,
    lost: impl Future<Output = Distrust>,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let place = peer.id.as_ref().map(|id| shared.quotas.connect(id)).transpose()?.map(Arc::new);
    let peer = Arc::new(peer);
    let lane = peer.fds.clone();
    let routes = shared.routes.clone();
    let service = service_fn(move |mut request: http::Request<Incoming>| {
        request.extensions_mut().insert(Arc::clone(&peer));
        let counted = place.as_ref().map(|place| place.call()).transpose();
        // Nothing of a refused call runs.
        let answer = counted.map(|under_way| (under_way, routes.clone().call(request)));
        async move {
            let (under_way, answer) = match answer {
                Ok(answer) => answer,
                Err(refused) => return Ok::<_, Infallible>(refused.into_http()),
            };
            let answer = AssertUnwindSafe(answer).catch_unwind().await.map_or_else(panicked, always);
            Ok(match under_way {
                Some(under_way) => under_way.until_end_of(answer),
                None => answer,
            })
        }
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(shared.limits.streams)
        .max_header_list_size(shared.limits.metadata)
        .keep_alive_interval(PING_AFTER)
        .keep_alive_timeout(PING_ANSWER)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection, lost);
    tokio::select! {
        ended = connection.as_mut() => return ended.map_err(io::Error::other),
        reason = lost.as_mut() => return Err(io::Error::other(reason)),
        () = shared.shutdown.cancelled() => {}
        () = rotated => {}
        () = close_untaken(lane) => {}
    }
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        ended = connection => ended.map_err(io::Error::other),
        reason = lost => Err(io::Error::other(reason)),
    }
}

/// Closes descriptors that no call takes; never ends.
async fn close_untaken(lane: Option<FdLane>) {
    let Some(lane) = lane else { return std::future::pending().await };
    loop {
        tokio::time::sleep(UNTAKEN / 4).await;
        lane.received.close_older(UNTAKEN);
    }
}

/// An answer that can't have failed.
fn always(answer: Result<http::Response<Body>, Infallible>) -> http::Response<Body> {
    answer.unwrap_or_else(|never| match never {})
}

/// A handler's panic ends its call, nothing else.
fn panicked(what: Box<dyn Any + Send>) -> http::Response<Body> {
    let text =
        what.downcast_ref::<&str>().copied().or_else(|| what.downcast_ref::<String>().map(String::as_str));
    tracing::error!(
        panic = text.unwrap_or("of an unknown kind"),
        "a handler panicked; its caller gets INTERNAL"
    );
    Status::internal("internal error; the server's log says more").into_http()
}
