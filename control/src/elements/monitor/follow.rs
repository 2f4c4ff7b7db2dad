//! What the next hops say of connections that pass through us.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tonic::{Code, Status};

use super::Hub;
use crate::api::connection::monitor_connection_client::MonitorConnectionClient;
use crate::api::connection::{
    Connection, ConnectionEvent, ConnectionEventType, MonitorScopeSelector, PathSegment,
    State as ConnectionState,
};
use crate::api::path;
use crate::transport::{Pool, Target};

/// The pauses between attempts to watch a hop again: doubled from the first to the last.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// How long a stream stays open that no connection needs.
const IDLE: Duration = Duration::from_secs(30);

/// Watches next hops, by one stream each for all connections that go there, and hands on what they say: a connection that was
/// deleted or is down there, or whose hop can't be heard any more, is down here.
pub struct Follow {
    name: Arc<str>,
    hub: Arc<Hub>,
    pool: Arc<Pool>,
    streams: Mutex<HashMap<Target, Arc<Followed>>>,
}

/// The connections that go to one hop, by our segment's id.
#[derive(Default)]
struct Followed(Mutex<HashSet<String>>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Followed {
    fn has(&self, id: &str) -> bool {
        lock(&self.0).contains(id)
    }

    fn all(&self) -> Vec<String> {
        lock(&self.0).iter().cloned().collect()
    }
}

impl Follow {
    /// For the role of this name, whose connections are in `hub`.
    pub fn new(name: impl Into<Arc<str>>, hub: Arc<Hub>, pool: Arc<Pool>) -> Arc<Self> {
        Arc::new(Self { name: name.into(), hub, pool, streams: Mutex::default() })
    }

    /// From now on hands on what the hop at `target` says of the connection in whose path our segment has this id.
    pub fn add(self: &Arc<Self>, target: &Target, id: &str) {
        let mut streams = lock(&self.streams);
        if let Some(followed) = streams.get(target) {
            let mut ids = lock(&followed.0);
            if !ids.contains(id) {
                ids.insert(id.to_owned());
            }
            return;
        }
        let followed = Arc::new(Followed(Mutex::new([id.to_owned()].into())));
        streams.insert(target.clone(), Arc::clone(&followed));
        let follow = Arc::downgrade(self);
        let target = target.clone();
        tokio::spawn(async move { run(follow, target, followed).await });
    }

    /// No more.
    pub fn remove(&self, target: &Target, id: &str) {
        if let Some(followed) = lock(&self.streams).get(target) {
            lock(&followed.0).remove(id);
        }
    }

    /// How many hops are watched.
    pub fn len(&self) -> usize {
        lock(&self.streams).len()
    }

    /// True if none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ends a stream that nothing needs; false if something does.
    fn end_if_idle(&self, target: &Target, followed: &Arc<Followed>) -> bool {
        let mut streams = lock(&self.streams);
        let idle = lock(&followed.0).is_empty();
        if idle {
            streams.remove(target);
        }
        idle
    }

    fn all_down(&self, followed: &Followed) {
        followed.all().iter().for_each(|id| self.hub.down(id));
    }

    fn take(&self, followed: &Followed, event: ConnectionEvent) {
        let kind = event.r#type();
        for connection in event.connections.into_values() {
            let Some(at) = own_segment(&self.name, followed, &connection) else { continue };
            let id = path::of(&connection).path_segments[at].id.clone();
            self.hub.change_from_below(&id, |ours| merge(ours, connection, at, kind));
        }
    }
}

/// Where our segment is in the path of a connection that we follow.
fn own_segment(name: &str, followed: &Followed, connection: &Connection) -> Option<usize> {
    let segments = &path::of(connection).path_segments;
    segments.iter().position(|segment| segment.name == name && followed.has(&segment.id))
}

/// Takes over what the next hop may say: the path after us, the context, the state.
fn merge(ours: &mut Connection, theirs: Connection, at: usize, kind: ConnectionEventType) {
    let state = match kind {
        ConnectionEventType::Delete => ConnectionState::Down,
        _ => theirs.state(),
    };
    if kind == ConnectionEventType::InitialStateTransfer && state == ours.state() {
        return;
    }
    ours.set_state(state);
    ours.context = theirs.context;
    let (Some(own), Some(path)) = (&mut ours.path, theirs.path) else { return };
    let keep = own.index as usize + 1;
    let after: Vec<PathSegment> = path.path_segments.into_iter().skip(at + 1).collect();
    let same = |(a, b): (&PathSegment, &PathSegment)| a.id == b.id && a.name == b.name;
    let known = own.path_segments.get(keep..).unwrap_or_default();
    // Expiry and metrics alone are no news: each Request brings them.
    if known.len() != after.len() || !known.iter().zip(&after).all(same) {
        own.path_segments.truncate(keep);
        own.path_segments.extend(after);
    }
}

async fn run(follow: std::sync::Weak<Follow>, target: Target, followed: Arc<Followed>) {
    let mut pause = PAUSES.0;
    loop {
        let Some(strong) = follow.upgrade() else { return };
        let (pool, name) = (Arc::clone(&strong.pool), Arc::clone(&strong.name));
        drop(strong);
        let (heard, why) = listen(&follow, &pool, &name, &target, &followed).await;
        let Some(strong) = follow.upgrade() else { return };
        let Some(status) = why else { return };
        if status.code() != Code::Cancelled {
            tracing::info!(role = %name, %target, %status, "watching the next hop ended; its connections are down");
            strong.all_down(&followed);
        }
        if strong.end_if_idle(&target, &followed) {
            return;
        }
        drop(strong);
        pause = if heard { PAUSES.0 } else { (pause * 2).min(PAUSES.1) };
        // Not all at the same moment.
        tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
    }
}

/// Hears events until the stream ends; says whether there were any, and why it ended; no reason if nothing needs it any more.
async fn listen(
    follow: &std::sync::Weak<Follow>,
    pool: &Pool,
    name: &str,
    target: &Target,
    followed: &Arc<Followed>,
) -> (bool, Option<Status>) {
    let own = PathSegment { name: name.to_owned(), ..Default::default() };
    let selector = MonitorScopeSelector { path_segments: vec![own], ..Default::default() };
    let open = async {
        let hop = pool.hop(target).await?;
        MonitorConnectionClient::new(hop).monitor_connections(selector).await
    };
    let mut events = match open.await {
        Ok(response) => response.into_inner(),
        Err(status) => return (false, Some(status)),
    };
    let mut heard = false;
    loop {
        let next = tokio::time::timeout(IDLE, events.message()).await;
        let Some(strong) = follow.upgrade() else { return (heard, None) };
        match next {
            Err(_) if strong.end_if_idle(target, followed) => return (heard, None),
            Err(_) => {}
            Ok(Ok(Some(event))) => {
                heard = true;
                strong.take(followed, event);
            }
            Ok(Ok(None)) => return (heard, Some(Status::unavailable("the stream ended"))),
            Ok(Err(status)) => return (heard, Some(status)),
        }
    }
}
