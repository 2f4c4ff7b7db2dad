//! A role's connections as watchers see them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures::Stream;
use tokio::sync::mpsc;
use tonic::Status;

use super::selector::{id_of, selects};
use crate::api::connection::{
    Connection, ConnectionEvent, ConnectionEventType, MonitorScopeSelector, State as ConnectionState,
};
use crate::api::path;
use crate::api::token::claimed_subject;
use crate::chain::Packed;
use crate::identity::SpiffeId;

/// Most events that wait for one watcher; one that is further behind is sent away.
const MAX_WAITING: usize = 4096;

/// Who may see what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Strictness {
    /// As the Go components have it: everyone sees every connection, with all tokens in its path.
    Open,
    /// A watcher sees the connections that it is a hop of, by the SPIFFE IDs in the path's tokens, or that it asked us for; and one
    /// that shares our SPIFFE ID sees all. Events have no tokens: a client that takes up a connection from an event gets new ones
    /// with its next Request.
    #[default]
    Strict,
}

/// The connections of one role, and those who watch them. An event costs as much as there are watchers of that connection.
pub struct Hub {
    strictness: Strictness,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    connections: HashMap<Arc<str>, Entry>,
    /// Segments' ids, each with the id of a connection that it is of.
    by_segment: BTreeSet<(Arc<str>, Arc<str>)>,
    watchers: HashMap<u64, Watcher>,
    /// Watchers by the segment id that they ask for.
    watchers_of: HashMap<String, HashSet<u64>>,
    /// Those that name no segment id.
    watchers_of_all: HashSet<u64>,
    next_watcher: u64,
}

struct Entry {
    /// In our coordinates.
    connection: Packed,
    /// The ids of its segments.
    ids: Box<[Arc<str>]>,
    /// The SPIFFE IDs of its hops, sorted.
    hops: Arc<[String]>,
}

impl Entry {
    fn has_path_of(&self, connection: &Connection) -> bool {
        self.ids.iter().map(|id| &**id).eq(ids(connection))
    }
}

struct Watcher {
    selector: MonitorScopeSelector,
    /// Who may see only its own; none sees all.
    only: Option<String>,
    events: mpsc::Sender<Event>,
}

type Event = (ConnectionEventType, Vec<Arc<Connection>>);

impl Hub {
    /// No connections, no watchers.
    pub fn new(strictness: Strictness) -> Arc<Self> {
        Arc::new(Self { strictness, inner: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection as it is now, in our coordinates; it was asked for by `caller`.
    pub fn update(&self, connection: Connection, caller: Option<&SpiffeId>) {
        let mut inner = self.lock();
        // Who the hops are is read from their tokens; a refresh has the same hops.
        let same_caller =
            |hops: &[String]| caller.is_none_or(|caller| hops.binary_search(&caller.to_string()).is_ok());
        let known = inner.connections.get(connection.id.as_str());
        let known = known.filter(|known| known.has_path_of(&connection) && same_caller(&known.hops));
        let hops = match known {
            Some(known) => Arc::clone(&known.hops),
            None => hops(&connection, caller).into(),
        };
        inner.put(connection, hops);
    }

    /// What the next hop says of a connection: its path from there on, its context and its state.
    pub(super) fn change_from_below(&self, id: &str, change: impl FnOnce(&mut Connection)) {
        let mut inner = self.lock();
        let Some(entry) = inner.connections.get(id) else { return };
        let (before, hops) = (entry.connection.unpack(), Arc::clone(&entry.hops));
        let mut changed = before.clone();
        change(&mut changed);
        if changed != before {
            inner.put(changed, hops);
        }
    }

    /// Says that a connection is down, if it is known and was not.
    pub fn down(&self, id: &str) {
        self.change_from_below(id, |connection| connection.set_state(ConnectionState::Down));
    }

    /// Asks whoever watches a connection, if it is known, to refresh it; `change` is what they are told of it meanwhile. Who was asked
    /// before is told in between that it is up: a hop that had not known the connection then passes on what is news to it.
    pub fn ask_to_refresh(&self, id: &str, change: impl FnOnce(&mut Connection)) {
        let asked = |connection: &Arc<Connection>| connection.state() == ConnectionState::RefreshRequested;
        if self.get(id).as_ref().is_some_and(asked) {
            self.change_from_below(id, |connection| connection.set_state(ConnectionState::Up));
        }
        self.change_from_below(id, |connection| {
            connection.set_state(ConnectionState::RefreshRequested);
            change(connection);
        });
    }

    /// Forgets a connection.
    pub fn remove(&self, id: &str) {
        let mut inner = self.lock();
        let Some((id, entry)) = inner.connections.remove_entry(id) else { return };
        inner.unlist(&id, &entry.ids);
        inner.publish(ConnectionEventType::Delete, &Arc::new(entry.connection.unpack()), &entry.hops);
    }

    /// The connection of this id, with all tokens.
    pub fn get(&self, id: &str) -> Option<Arc<Connection>> {
        self.lock().connections.get(id).map(|entry| Arc::new(entry.connection.unpack()))
    }

    /// All connections, with all tokens.
    pub fn connections(&self) -> Vec<Arc<Connection>> {
        self.lock().connections.values().map(|entry| Arc::new(entry.connection.unpack())).collect()
    }

    /// How many connections there are.
    pub fn len(&self) -> usize {
        self.lock().connections.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many watch.
    pub fn watchers(&self) -> usize {
        self.lock().watchers.len()
    }

    /// Watches what the selector means: first what there is, even if it is nothing, then what changes. `watcher` is who asks and
    /// `own` who we are; without TLS there is neither.
    pub fn watch(
        self: &Arc<Self>,
        selector: MonitorScopeSelector,
        watcher: Option<&SpiffeId>,
        own: Option<&SpiffeId>,
    ) -> Watch {
        let all = self.strictness == Strictness::Open || watcher == own;
        let only = if all { None } else { watcher.map(ToString::to_string) };
        let (events, received) = mpsc::channel(MAX_WAITING);
        let watcher = Watcher { selector, only, events };
        let mut inner = self.lock();
        let present = inner.present(&watcher);
        let id = inner.next_watcher;
        inner.next_watcher += 1;
        inner.list_watcher(id, watcher);
        Watch {
            tokens: self.strictness == Strictness::Open,
            hub: Arc::clone(self),
            id,
            initial: Some(present),
            events: received,
            ended: false,
        }
    }
}

impl Inner {
    fn put(&mut self, connection: Connection, hops: Arc<[String]>) {
        let connection = Arc::new(connection);
        self.publish(ConnectionEventType::Update, &connection, &hops);
        let known = self.connections.get_key_value(connection.id.as_str());
        let (id, listed) = match known.map(|(id, entry)| (Arc::clone(id), entry)) {
            Some((id, entry)) if entry.has_path_of(&connection) => (id, Some(entry.ids.clone())),
            Some((id, entry)) => {
                let old = entry.ids.clone();
                self.unlist(&id, &old);
                (id, None)
            }
            None => (connection.id.as_str().into(), None),
        };
        let ids = listed.unwrap_or_else(|| self.list(&id, &connection));
        let connection = Arc::unwrap_or_clone(connection).into();
        self.connections.insert(id, Entry { connection, ids, hops });
    }

    /// Lists a connection by its segments; returns their ids.
    fn list(&mut self, id: &Arc<str>, connection: &Connection) -> Box<[Arc<str>]> {
        let own = |segment: &str| if segment == &**id { Arc::clone(id) } else { segment.into() };
        let ids: Box<[Arc<str>]> = ids(connection).map(own).collect();
        self.by_segment.extend(ids.iter().map(|segment| (Arc::clone(segment), Arc::clone(id))));
        ids
    }

    fn unlist(&mut self, id: &Arc<str>, ids: &[Arc<str>]) {
        for segment in ids {
            self.by_segment.remove(&(Arc::clone(segment), Arc::clone(id)));
        }
    }

    /// The connections that have a segment of this id.
    fn of_segment<'a>(&'a self, segment: &str) -> impl Iterator<Item = &'a Entry> {
        let segment: Arc<str> = segment.into();
        let from = (Arc::clone(&segment), Arc::from(""));
        let listed = self.by_segment.range(from..).take_while(move |(listed, _)| *listed == segment);
        listed.filter_map(|(_, id)| self.connections.get(id))
    }

    fn list_watcher(&mut self, id: u64, watcher: Watcher) {
        match id_of(&watcher.selector) {
            Some(segment) => self.watchers_of.entry(segment.to_owned()).or_default().insert(id),
            None => self.watchers_of_all.insert(id),
        };
        self.watchers.insert(id, watcher);
    }

    fn unlist_watcher(&mut self, id: u64) {
        let Some(watcher) = self.watchers.remove(&id) else { return };
        match id_of(&watcher.selector) {
            Some(segment) => take_from(&mut self.watchers_of, segment, &id),
            None => _ = self.watchers_of_all.remove(&id),
        }
    }

    /// What a new watcher is told first.
    fn present(&self, watcher: &Watcher) -> Vec<Arc<Connection>> {
        let shown = |entry: &Entry| {
            let connection = entry.connection.unpack();
            watcher.hears(&connection, &entry.hops).then(|| Arc::new(connection))
        };
        match id_of(&watcher.selector) {
            Some(segment) => self.of_segment(segment).filter_map(shown).collect(),
            None => self.connections.values().filter_map(shown).collect(),
        }
    }

    fn publish(&mut self, kind: ConnectionEventType, connection: &Arc<Connection>, hops: &[String]) {
        let named = ids(connection).filter_map(|id| self.watchers_of.get(id)).flatten();
        let concerned: HashSet<u64> = named.chain(&self.watchers_of_all).copied().collect();
        for id in concerned {
            let Some(watcher) = self.watchers.get(&id) else { continue };
            if !watcher.hears(connection, hops) {
                continue;
            }
            if watcher.events.try_send((kind, vec![Arc::clone(connection)])).is_err() {
                // Its stream ends with an error once it has read what waits.
                self.unlist_watcher(id);
            }
        }
    }
}

impl Watcher {
    fn hears(&self, connection: &Connection, hops: &[String]) -> bool {
        self.only.as_ref().is_none_or(|only| hops.binary_search(only).is_ok())
            && selects(&self.selector, connection)
    }
}

/// The SPIFFE IDs of a connection's hops, sorted: of the caller, and what tokens claim.
fn hops(connection: &Connection, caller: Option<&SpiffeId>) -> Vec<String> {
    let mut hops: Vec<String> = caller.map(ToString::to_string).into_iter().collect();
    hops.extend(
        path::of(connection).path_segments.iter().filter_map(|segment| claimed_subject(&segment.token)),
    );
    hops.sort_unstable();
    hops.dedup();
    hops
}

fn ids(connection: &Connection) -> impl Iterator<Item = &str> {
    path::of(connection).path_segments.iter().map(|segment| segment.id.as_str())
}

fn take_from<K, V>(map: &mut HashMap<String, HashSet<V>>, key: &str, value: &K)
where
    V: std::borrow::Borrow<K> + Eq + std::hash::Hash,
    K: Eq + std::hash::Hash + ?Sized,
{
    if let Some(set) = map.get_mut(key) {
        set.remove(value);
        if set.is_empty() {
            map.remove(key);
        }
    }
}

/// One watcher's events; ends with RESOURCE_EXHAUSTED if it reads too slowly.
pub struct Watch {
    hub: Arc<Hub>,
    /// Whether events have tokens.
    tokens: bool,
    id: u64,
    initial: Option<Vec<Arc<Connection>>>,
    events: mpsc::Receiver<Event>,
    ended: bool,
}

impl Stream for Watch {
    type Item = Result<ConnectionEvent, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(initial) = self.initial.take() {
            return Poll::Ready(Some(Ok(event(
                (ConnectionEventType::InitialStateTransfer, initial),
                self.tokens,
            ))));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        match self.events.poll_recv(cx) {
            Poll::Ready(Some(one)) => Poll::Ready(Some(Ok(event(one, self.tokens)))),
            Poll::Ready(None) => {
                self.ended = true;
                let reason = format!("this watcher is more than {MAX_WAITING} events behind; watch again");
                Poll::Ready(Some(Err(Status::resource_exhausted(reason))))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.hub.lock().unlist_watcher(self.id);
    }
}

fn event((kind, connections): Event, tokens: bool) -> ConnectionEvent {
    let shown = connections.into_iter().map(|one| {
        let mut one = Arc::unwrap_or_clone(one);
        if !tokens && let Some(path) = &mut one.path {
            path.path_segments.iter_mut().for_each(|segment| segment.token = String::new());
        }
        (one.id.clone(), one)
    });
    let connections: BTreeMap<String, Connection> = shown.collect();
    ConnectionEvent { r#type: kind.into(), connections }
}

#[cfg(test)]
#[path = "hub_tests.rs"]
mod tests;
