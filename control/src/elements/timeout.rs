//! `timeout`: a connection that is not refreshed ends.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use tokio::sync::Notify;
use tonic::Status;
use tracing::Instrument;

use crate::api::connection::Connection;
use crate::api::networkservice::NetworkServiceRequest;
use crate::api::path::{self, PathExt};
use crate::chain::{Call, ChainHandle, Element, Next, Origin};

/// How long a Close that an end started may take.
const CLOSE_TIME: Duration = Duration::from_secs(15);
/// The life of a connection between roles without TLS, where no token says it.
const WITHOUT_TOKENS: Duration = Duration::from_secs(600);

/// Closes connections at the end of their caller's token, less the time that the last Request had: whoever wants to go on has
/// asked by then. The end is the earliest of what the segment before ours, the token itself and the caller's certificate say, so
/// that nobody makes a connection without end.
pub struct Timeout {
    timers: Arc<Timers>,
}

impl Timeout {
    /// For the chain behind `handle`. Must be called inside a tokio runtime: one task waits for all ends.
    pub fn new(handle: ChainHandle) -> Self {
        let timers = Arc::<Timers>::default();
        tokio::spawn(close_at_end(Arc::downgrade(&timers), handle));
        Self { timers }
    }
}

impl Drop for Timeout {
    fn drop(&mut self) {
        self.timers.changed.notify_one();
    }
}

#[async_trait]
impl Element for Timeout {
    async fn request(
        &self,
        call: &mut Call,
        request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        let time = call.remaining();
        let asked = request.connection.as_ref();
        let id: Arc<str> = asked.map_or("", |connection| &connection.id).into();
        let root: Arc<str> = asked.map_or("", |connection| path::of(connection).root_id()).into();
        let connection = next.request(call, request).await?;
        let Origin::Peer { .. } = &call.origin else { return Ok(connection) };
        match end_of(call, &connection) {
            Some(end) => {
                let left = end.duration_since(SystemTime::now()).unwrap_or_default().saturating_sub(time);
                // Time enough is a century; more does not fit into an Instant everywhere.
                let left = left.min(Duration::from_secs(100 * 365 * 86_400));
                self.timers.set(id, Timer { end: Instant::now() + left, revision: call.revision, root });
                Ok(connection)
            }
            None => Err(no_end(call, next, connection).await),
        }
    }

    async fn close(&self, call: &mut Call, connection: Connection, next: Next<'_>) -> Result<(), Status> {
        self.timers.remove(&connection.id);
        next.close(call, connection).await
    }
}

/// When the connection ends if it is not refreshed. None if its caller said nothing.
fn end_of(call: &Call, connection: &Connection) -> Option<SystemTime> {
    let Origin::Peer { peer, token } = &call.origin else { return None };
    let of_segment = path::of(connection).previous().and_then(|segment| segment.expires);
    let of_token = token.as_ref().map(|token| token.expires);
    let said =
        [of_segment, of_token].into_iter().flatten().filter_map(|time| SystemTime::try_from(time).ok()).min();
    match (said, peer.not_after) {
        (Some(said), Some(certificate)) => Some(said.min(certificate)),
        (Some(said), None) => Some(said),
        (None, _) if peer.id.is_none() => Some(SystemTime::now() + WITHOUT_TOKENS),
        (None, _) => None,
    }
}

async fn no_end(call: &mut Call, next: Next<'_>, connection: Connection) -> Status {
    if call.first {
        let _ = next.close(call, connection).await;
    }
    Status::invalid_argument(
        "nsm-client-token: the call has no token that says when it ends, and a connection without end is not made",
    )
}

/// When each connection ends.
#[derive(Default)]
struct Timers {
    ends: Mutex<Ends>,
    changed: Notify,
}

#[derive(Default)]
struct Ends {
    by_time: BTreeSet<(Instant, Arc<str>)>,
    by_id: HashMap<Arc<str>, Timer>,
}

/// One connection's end.
#[derive(Clone)]
struct Timer {
    end: Instant,
    /// Of the run that set it: a later one has set its own.
    revision: Option<u64>,
    /// The path's first id, by which logs name the connection.
    root: Arc<str>,
}

impl Timers {
    fn lock(&self) -> MutexGuard<'_, Ends> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, id: Arc<str>, timer: Timer) {
        let mut ends = self.lock();
        let end = timer.end;
        if let Some(old) = ends.by_id.insert(Arc::clone(&id), timer) {
            ends.by_time.remove(&(old.end, Arc::clone(&id)));
        }
        ends.by_time.insert((end, Arc::clone(&id)));
        if ends.by_time.first().is_some_and(|(_, first)| *first == id) {
            self.changed.notify_one();
        }
    }

    fn remove(&self, id: &str) {
        let mut ends = self.lock();
        if let Some((id, timer)) = ends.by_id.remove_entry(id) {
            ends.by_time.remove(&(timer.end, id));
        }
    }

    /// Takes one that has ended; or says when the next one does.
    fn ended(&self, now: Instant) -> Result<(Arc<str>, Timer), Option<Instant>> {
        let mut ends = self.lock();
        match ends.by_time.first() {
            Some((end, _)) if *end > now => Err(Some(*end)),
            None => Err(None),
            Some(_) => {
                let (_, id) = ends.by_time.pop_first().ok_or(None)?;
                let timer = ends.by_id.remove(&id).ok_or(None)?;
                Ok((id, timer))
            }
        }
    }
}

async fn close_at_end(timers: std::sync::Weak<Timers>, chain: ChainHandle) {
    loop {
        let Some(timers) = timers.upgrade() else { return };
        let wait = match timers.ended(Instant::now()) {
            Ok((id, timer)) => {
                let Some(chain) = chain.upgrade() else { return };
                let span = tracing::info_span!("end", role = %chain.name(), connection = &*timer.root);
                tokio::spawn(close(chain, id, timer.revision).instrument(span));
                continue;
            }
            Err(wait) => wait,
        };
        // The element's own reference must be the last one, or nobody would notice its end.
        let changed = Arc::clone(&timers);
        drop(timers);
        let changed = async move { changed.changed.notified().await };
        match wait {
            Some(end) => _ = tokio::time::timeout_at(end.into(), changed).await,
            None => changed.await,
        }
    }
}

async fn close(chain: Arc<crate::chain::Chain>, id: Arc<str>, revision: Option<u64>) {
    let mut call = Call::internal("not refreshed in time", CLOSE_TIME);
    call.revision = revision;
    let connection = Connection { id: id.to_string(), ..Default::default() };
    tracing::info!(segment = %id, "a connection was not refreshed in time and is closed");
    if let Err(status) = chain.close(&mut call, connection).await {
        tracing::warn!(segment = %id, %status, "closing at the end of a connection's life");
    }
}
