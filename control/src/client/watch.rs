//! One monitor stream, shared by all sessions of a client.
//!
//! The selector is the client's name, so one stream has the events of all its connections; each session subscribes to its id. When
//! the stream breaks it is opened again, every 50 ms to 1 s; that it is open again wakes sessions that wait to heal.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures::StreamExt;
use tokio::sync::Notify;
use tonic::{Code, Status};
use vwire_proto::nsm::connection::{
    Connection, ConnectionEvent, ConnectionEventType, MonitorScopeSelector, PathSegment, State,
};

use super::timing::Backoff;
use super::upstream::Upstream;

/// Events kept for a session that does not look; older ones are dropped, for the latest tells what is.
const MAX_WAITING: usize = 16;
/// Connections that a stream told of at its start and nobody has subscribed to.
const MAX_UNCLAIMED: usize = 4096;
/// Pauses between attempts to open the stream.
const REOPEN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// What a session hears.
#[derive(Debug, Clone)]
pub enum News {
    /// The next hop says this of the connection. DELETE counts as DOWN.
    State(State),
    /// The stream has broken.
    Lost,
    /// The next hop can be reached and gives no stream.
    Refused,
    /// The stream is open, and the next hop knows the connection as this; `None`: it does not know it.
    Open(Option<Box<Connection>>),
}

/// The stream and who listens.
pub struct Watcher {
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

struct Shared {
    name: Arc<str>,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    open: bool,
    listeners: HashMap<String, Weak<Slot>>,
    unclaimed: HashMap<String, Connection>,
}

#[derive(Default)]
struct Slot {
    waiting: Mutex<VecDeque<News>>,
    arrived: Notify,
}

/// One session's news.
pub struct Subscription {
    id: String,
    slot: Arc<Slot>,
    shared: Arc<Shared>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Held for single statements on plain data, which leave it whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watcher {
    /// Begins to watch, as the client `name`.
    pub fn start(name: Arc<str>, upstream: Arc<dyn Upstream>) -> Self {
        let shared = Arc::new(Shared { name, table: Mutex::default() });
        let task = tokio::spawn(Arc::clone(&shared).follow(upstream));
        Self { shared, task }
    }

    /// News of the connection with this id. If the stream is open, what it told of the connection comes first.
    pub fn subscribe(&self, id: &str) -> Subscription {
        let slot = Arc::new(Slot::default());
        let mut table = lock(&self.shared.table);
        if table.open {
            let known = table.unclaimed.remove(id);
            slot.push(News::Open(known.map(Box::new)));
        }
        table.listeners.insert(id.to_owned(), Arc::downgrade(&slot));
        Subscription { id: id.to_owned(), slot, shared: Arc::clone(&self.shared) }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Subscription {
    /// The next news.
    pub async fn next(&self) -> News {
        loop {
            let arrival = self.slot.arrived.notified();
            if let Some(news) = lock(&self.slot.waiting).pop_front() {
                return news;
            }
            arrival.await;
        }
    }

    /// The latest news that has come, if any has; older ones are dropped.
    pub fn latest(&self) -> Option<News> {
        lock(&self.slot.waiting).drain(..).next_back()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut table = lock(&self.shared.table);
        // A later session with the same id may have taken the place.
        if table.listeners.get(&self.id).is_some_and(|listener| listener.ptr_eq(&Arc::downgrade(&self.slot)))
        {
            table.listeners.remove(&self.id);
        }
    }
}

impl Slot {
    fn push(&self, news: News) {
        let mut waiting = lock(&self.waiting);
        if waiting.len() == MAX_WAITING {
            waiting.pop_front();
        }
        waiting.push_back(news);
        drop(waiting);
        self.arrived.notify_one();
    }
}

impl Shared {
    async fn follow(self: Arc<Self>, upstream: Arc<dyn Upstream>) {
        let mut backoff = Backoff::new(REOPEN.0, REOPEN.1);
        loop {
            let broken = self.follow_once(&*upstream, &mut backoff).await;
            if self.set_closed() {
                // Before the first event nobody had counted on the stream.
                tracing::debug!(error = %broken.message(), "the monitor stream has broken");
                self.tell_all(&News::Lost);
            } else if broken.code() != Code::Unavailable {
                tracing::warn!(error = %broken.message(), "the next hop gives no monitor stream; vWires heal by liveness and refresh only");
                self.tell_all(&News::Refused);
            }
            tokio::time::sleep(backoff.pause()).await;
        }
    }

    /// Follows one stream to its end, and says why it ended.
    async fn follow_once(&self, upstream: &dyn Upstream, backoff: &mut Backoff) -> Status {
        let segment = PathSegment { name: self.name.to_string(), ..Default::default() };
        let selector = MonitorScopeSelector { path_segments: vec![segment], network_services: vec![] };
        let mut events = match upstream.monitor(selector).await {
            Ok(events) => events,
            Err(status) => return status,
        };
        let mut first = true;
        while let Some(event) = events.next().await {
            match event {
                Ok(event) if std::mem::take(&mut first) => {
                    backoff.reset();
                    self.opened(event);
                }
                Ok(event) => self.tell(event),
                Err(status) => return status,
            }
        }
        Status::new(Code::Unavailable, "the monitor stream has ended")
    }

    fn opened(&self, event: ConnectionEvent) {
        let mut known = self.ours(event);
        let mut table = lock(&self.table);
        table.open = true;
        table.listeners.retain(|id, listener| match listener.upgrade() {
            Some(slot) => {
                slot.push(News::Open(known.remove(id).map(|(_, connection)| Box::new(connection))));
                true
            }
            None => false,
        });
        table.unclaimed =
            known.into_iter().take(MAX_UNCLAIMED).map(|(id, (_, connection))| (id, connection)).collect();
    }

    fn tell(&self, event: ConnectionEvent) {
        let mut table = lock(&self.table);
        for (id, (state, _)) in self.ours(event) {
            match table.listeners.get(&id).and_then(Weak::upgrade) {
                Some(slot) => slot.push(News::State(state)),
                None => drop(table.unclaimed.remove(&id)),
            }
        }
    }

    fn tell_all(&self, news: &News) {
        let table = lock(&self.table);
        table.listeners.values().filter_map(Weak::upgrade).for_each(|slot| slot.push(news.clone()));
    }

    /// True if it was open.
    fn set_closed(&self) -> bool {
        let mut table = lock(&self.table);
        table.unclaimed.clear();
        std::mem::take(&mut table.open)
    }

    /// The event's connections in which we have a segment and the event is in our coordinates or the next hop's, by our id there.
    fn ours(&self, event: ConnectionEvent) -> HashMap<String, (State, Connection)> {
        let deleted = event.r#type() == ConnectionEventType::Delete;
        let mut ours = HashMap::new();
        for connection in event.connections.into_values() {
            let Some(path) = &connection.path else { continue };
            let at = path.index as usize;
            let mine = [at.checked_sub(1), Some(at)].into_iter().flatten();
            let segment = mine.filter_map(|i| path.path_segments.get(i)).find(|s| *s.name == *self.name);
            let Some(id) = segment.map(|segment| segment.id.clone()) else { continue };
            let state = if deleted { State::Down } else { connection.state() };
            ours.insert(id, (state, connection));
        }
        ours
    }
}
