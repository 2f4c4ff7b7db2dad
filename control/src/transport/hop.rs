//! One connection to a peer, as gRPC clients use it.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use futures::future::BoxFuture;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Uri};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::call::{TOKEN, TOKEN_EXPIRES, parse_timeout};
use super::peer::UNTAKEN;
use super::watched::Watched;
use super::{Peer, Target};
use crate::identity::{Distrust, Leaf, TokenSource};

/// Most bytes of an answer's metadata.
const MAX_METADATA: u32 = 256 * 1024;

/// To whom a connection is, and how it names us.
pub(super) struct Link {
    pub peer: Arc<Peer>,
    pub target: Target,
    pub tokens: TokenSource,
    /// After which silence on calls under way the peer is asked for a sign of life, and how long it may take.
    pub silence: Duration,
    pub sign_of_life: Duration,
}

/// One TLS session with a peer. A gRPC client is made of it: `NetworkServiceClient::new(hop)`. It adds our token for the peer to
/// each call, and ends a call when its timeout (`Request::set_timeout`) is over. A clone is the same session.
#[derive(Clone)]
pub struct Hop(Arc<Session>);

struct Session {
    link: Link,
    send: SendRequest<Body>,
    /// Cancelled when the connection has ended, with its last stream.
    ended: CancellationToken,
    /// Ends the connection at once.
    cut: CancellationToken,
    calls: AtomicUsize,
    /// Descriptors that go beside its calls, those of calls yet to come included.
    carried: AtomicUsize,
    /// Milliseconds of [`CLOCK`] when a call last began or ended, and when the peer was last heard.
    used: AtomicU64,
    heard: AtomicU64,
    born: Instant,
    /// When half of the peer's certificate's life is over.
    middle: Option<SystemTime>,
}

static CLOCK: LazyLock<Instant> = LazyLock::new(Instant::now);

fn now() -> u64 {
    u64::try_from(CLOCK.elapsed().as_millis()).unwrap_or(u64::MAX)
}

impl Hop {
    /// Starts HTTP/2 on a connection.
    pub(super) async fn start<S>(stream: S, link: Link) -> io::Result<Self>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (ended, cut) = (CancellationToken::new(), CancellationToken::new());
        let stream = Watched::new(stream, &cut, &ended);
        let (send, calls) = Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_header_list_size(MAX_METADATA)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        let target = link.target.to_string();
        tokio::spawn(async move {
            match calls.await {
                Ok(()) => tracing::debug!(%target, "the connection takes no more calls"),
                // A server that ends says so in its own way; its calls fail with the reason.
                Err(error) => tracing::debug!(%target, error = %chain(&error), "the connection broke"),
            }
        });
        let leaf = link.peer.leaf.as_ref().and_then(|leaf| Leaf::read(leaf).ok());
        let middle = leaf.map(|leaf| {
            leaf.not_before + leaf.not_after.duration_since(leaf.not_before).unwrap_or_default() / 2
        });
        let session = Arc::new(Session {
            link,
            send,
            ended,
            cut,
            calls: AtomicUsize::new(0),
            carried: AtomicUsize::new(0),
            used: AtomicU64::new(now()),
            heard: AtomicU64::new(now()),
            born: Instant::now(),
            middle,
        });
        tokio::spawn(watch(Arc::downgrade(&session)));
        Ok(Self(session))
    }

    /// Who is there.
    pub fn peer(&self) -> &Arc<Peer> {
        &self.0.link.peer
    }

    /// Where it was dialled.
    pub fn target(&self) -> &Target {
        &self.0.link.target
    }

    /// Waits until the connection has ended.
    pub async fn closed(&self) {
        self.0.ended.cancelled().await;
    }

    /// Told when the connection has ended, also to who does not keep it open.
    #[cfg(test)]
    pub(super) fn ended(&self) -> CancellationToken {
        self.0.ended.clone()
    }

    /// True if it takes new calls: it has not ended, and the peer has not asked to dial anew.
    pub fn is_open(&self) -> bool {
        !self.0.ended.is_cancelled() && !self.0.cut.is_cancelled() && !self.0.send.is_closed()
    }

    /// True for a clone.
    pub fn same_as(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// When half of the peer's certificate's life is over.
    pub(super) fn middle(&self) -> Option<SystemTime> {
        self.0.middle
    }

    /// So many descriptors go beside a call to come.
    pub(super) fn carries(&self, descriptors: usize) {
        self.0.carried.fetch_add(descriptors, Ordering::Relaxed);
    }

    /// How many have gone, and are about to.
    pub(super) fn carried(&self) -> usize {
        self.0.carried.load(Ordering::Relaxed)
    }

    /// Since when it is open.
    pub(super) fn age(&self) -> Duration {
        self.0.born.elapsed()
    }

    /// How long no call has been under way; none if one is, or if somebody else holds the connection.
    pub(super) fn idle(&self) -> Option<Duration> {
        let busy = self.0.calls.load(Ordering::Relaxed) > 0 || Arc::strong_count(&self.0) > 1;
        (!busy).then(|| Duration::from_millis(now().saturating_sub(self.0.used.load(Ordering::Relaxed))))
    }

    /// Ends the connection and all its calls.
    pub fn cut(&self) {
        self.0.cut.cancel();
    }

    /// Ends the connection and all its calls when the peer is not believed any more.
    pub(super) fn cut_when(&self, lost: impl Future<Output = Distrust> + Send + 'static) {
        let (ended, cut) = (self.0.ended.clone(), self.0.cut.clone());
        let target = self.target().to_string();
        tokio::spawn(async move {
            tokio::select! {
                () = ended.cancelled() => {}
                reason = lost => {
                    tracing::warn!(%target, %reason, "the peer is not believed any more: the connection is cut");
                    cut.cancel();
                }
            }
        });
    }

    fn broke(&self, error: &dyn std::error::Error) -> Status {
        Status::unavailable(format!("{}: the connection broke: {}", self.target(), chain(error)))
    }

    /// gRPC asks for scheme and authority, which clients made of a hop leave out; and our token.
    fn complete(&self, request: &mut http::Request<Body>) -> Result<(), Status> {
        let secure = self.peer().leaf.is_some();
        let authority = match self.target() {
            Target::Tcp(address) => address.parse::<Authority>().ok(),
            _ => None,
        };
        let path = request.uri().path_and_query().cloned();
        let uri = Uri::builder()
            .scheme(if secure { Scheme::HTTPS } else { Scheme::HTTP })
            .authority(authority.unwrap_or_else(|| Authority::from_static("localhost")))
            .path_and_query(path.unwrap_or(PathAndQuery::from_static("/")));
        *request.uri_mut() =
            uri.build().map_err(|error| Status::internal(format!("the call's name: {error}")))?;
        let headers = request.headers_mut();
        headers.insert(http::header::USER_AGENT, HeaderValue::from_static("vwire"));
        if secure {
            let token = self.0.link.tokens.for_peer(self.peer())?;
            let value = |text: &str| {
                HeaderValue::from_str(text).map_err(|_| Status::internal("a token that is no header"))
            };
            let mut jwt = value(&token.jwt)?;
            // Not kept in HPACK's table, and not printed.
            jwt.set_sensitive(true);
            headers.insert(TOKEN, jwt);
            headers.insert(TOKEN_EXPIRES, value(&token.expires.to_string())?);
        }
        Ok(())
    }

    async fn exchange(self, mut request: http::Request<Body>) -> Result<http::Response<Body>, Status> {
        let timeout = request.headers().get("grpc-timeout").and_then(|value| value.to_str().ok());
        let timeout = timeout.and_then(parse_timeout);
        let mut deadline = timeout.map(|time| Box::pin(tokio::time::sleep(time)));
        self.complete(&mut request)?;
        let under_way = UnderWay::new(&self);
        let mut send = self.0.send.clone();
        let answer = async {
            send.ready().await?;
            send.send_request(request).await
        };
        let answer = match &mut deadline {
            Some(deadline) => tokio::select! {
                answer = answer => answer,
                () = deadline => return Err(late(self.target())),
            },
            None => answer.await,
        };
        let answer = answer.map_err(|error| self.broke(&error))?;
        under_way.heard();
        Ok(answer.map(|body| Body::new(Answer { body, deadline, under_way })))
    }
}

impl std::fmt::Debug for Hop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Hop({})", self.target())
    }
}

impl tower::Service<http::Request<Body>> for Hop {
    type Response = http::Response<Body>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Self::Response, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.clone().exchange(request))
    }
}

fn late(target: &Target) -> Status {
    Status::deadline_exceeded(format!("{target}: no answer within the call's time"))
}

/// An error with its causes: hyper's own texts leave them out.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Counts a call for as long as its answer is not read to the end, and keeps its connection open.
struct UnderWay(Arc<Session>);

impl UnderWay {
    fn new(hop: &Hop) -> Self {
        let session = Arc::clone(&hop.0);
        session.calls.fetch_add(1, Ordering::Relaxed);
        session.used.store(now(), Ordering::Relaxed);
        Self(session)
    }

    fn heard(&self) {
        self.0.heard.store(now(), Ordering::Relaxed);
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::Relaxed);
        self.0.used.store(now(), Ordering::Relaxed);
    }
}

/// An answer's body: ends with DEADLINE_EXCEEDED when the call's time is over, with UNAVAILABLE when the connection breaks.
struct Answer {
    body: Incoming,
    deadline: Option<Pin<Box<Sleep>>>,
    under_way: UnderWay,
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                this.under_way.heard();
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                Poll::Ready(Some(Err(stream_broke(&this.under_way.0.link.target, error))))
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => match this.deadline.as_mut().map(|deadline| deadline.as_mut().poll(cx)) {
                Some(Poll::Ready(())) => Poll::Ready(Some(Err(late(&this.under_way.0.link.target)))),
                _ => Poll::Pending,
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}

/// A reset keeps the code that gRPC gives it; all else is a broken connection.
fn stream_broke(target: &Target, error: hyper::Error) -> Status {
    let text = format!("{target}: the stream broke: {}", chain(&error));
    match Status::from_error(Box::new(error)).code() {
        Code::Unknown | Code::Internal => Status::unavailable(text),
        code => Status::new(code, text),
    }
}

/// Notices a peer that is silent for good although calls are under way: a process that was stopped, a machine that is gone.
/// It is asked by gRPC's health service, since grpc-go's servers take HTTP/2 pings this frequent for an attack. Any answer is a
/// sign of life, a refusal too.
async fn watch(session: Weak<Session>) {
    let Some((ended, silence)) =
        session.upgrade().map(|session| (session.ended.clone(), session.link.silence))
    else {
        return;
    };
    loop {
        tokio::select! {
            () = ended.cancelled() => return,
            () = tokio::time::sleep(silence) => {}
        }
        let Some(session) = session.upgrade() else { return };
        if let Some(lane) = &session.link.peer.fds {
            lane.received.close_older(UNTAKEN);
        }
        let heard = Duration::from_millis(now().saturating_sub(session.heard.load(Ordering::Relaxed)));
        if session.calls.load(Ordering::Relaxed) > 0 && heard >= silence {
            sign_of_life(&Hop(session)).await;
        }
    }
}

/// Gives the connection up if the peer does not answer.
async fn sign_of_life(hop: &Hop) {
    let time = hop.0.link.sign_of_life;
    let asked = tokio::time::timeout(time, ask(HealthClient::new(hop.clone()))).await;
    if asked.is_err() && !hop.0.ended.is_cancelled() {
        tracing::warn!(target = %hop.target(), "no sign of life within {time:?}: the connection is given up");
        hop.cut();
    }
}

async fn ask(mut health: HealthClient<Hop>) {
    // Whatever the answer is, somebody gave it.
    let _ = health.check(HealthCheckRequest::default()).await;
}
