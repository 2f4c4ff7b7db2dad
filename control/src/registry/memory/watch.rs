//! Watches: who is told of a change, and what waits for those that read slowly.
//!
//! A change costs nothing for watchers that did not ask for it: they are found by the name or service of their query. Each has a
//! queue of its own, in which a later change of a name takes the place of an earlier one. So a watcher that stalls holds up nobody,
//! and one that recovers finds the latest of each name.

use std::collections::{HashMap, HashSet, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use futures::Stream;
use tonic::Status;

use super::resource::{Change, Resource};

/// The watchers of one table.
pub(super) struct Watchers<T> {
    next: u64,
    all: HashMap<u64, Watcher<T>>,
    /// Queries with a name.
    by_name: HashMap<String, HashSet<u64>>,
    /// Queries without a name, by one of their services.
    by_service: HashMap<String, HashSet<u64>>,
    /// The rest.
    others: HashSet<u64>,
}

struct Watcher<T> {
    query: T,
    queue: Arc<Queue<T>>,
}

impl<T> Default for Watchers<T> {
    fn default() -> Self {
        Self {
            next: 0,
            all: HashMap::new(),
            by_name: HashMap::new(),
            by_service: HashMap::new(),
            others: HashSet::new(),
        }
    }
}

impl<T: Resource> Watchers<T> {
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// Adds a watcher that is told `present` first.
    pub(super) fn add(&mut self, query: T, present: Vec<Arc<T>>, backlog: usize) -> (u64, Arc<Queue<T>>) {
        let id = self.next;
        self.next += 1;
        let queue = Arc::new(Queue::new(present, backlog));
        self.place_of(&query).insert(id);
        self.all.insert(id, Watcher { query, queue: Arc::clone(&queue) });
        (id, queue)
    }

    fn place_of(&mut self, query: &T) -> &mut HashSet<u64> {
        if !query.name().is_empty() {
            return self.by_name.entry(query.name().to_owned()).or_default();
        }
        let service = query.services().next().map(str::to_owned);
        match service {
            Some(service) => self.by_service.entry(service).or_default(),
            None => &mut self.others,
        }
    }

    pub(super) fn remove(&mut self, id: u64) {
        let Some(watcher) = self.all.remove(&id) else { return };
        let place = self.place_of(&watcher.query);
        place.remove(&id);
        if place.is_empty() {
            let query = &watcher.query;
            self.by_name.remove(query.name());
            if query.name().is_empty()
                && let Some(service) = query.services().next()
            {
                self.by_service.remove(service);
            }
        }
    }

    /// Tells of `new` in place of `old`; of the end of `old` if there is no `new`.
    pub(super) fn publish(&mut self, old: Option<&Arc<T>>, new: Option<&Arc<T>>) {
        let mut lost = Vec::new();
        for id in self.concerned(old, new) {
            let Some(watcher) = self.all.get(&id) else { continue };
            let asked = |item: &&Arc<T>| watcher.query.asks_for(item);
            let change = match (old.filter(asked), new.filter(asked)) {
                (_, Some(item)) => Change { item: Arc::clone(item), deleted: false },
                // It may still be there, but not for this query.
                (Some(item), None) => Change { item: Arc::clone(item), deleted: true },
                (None, None) => continue,
            };
            if !watcher.queue.push(change) {
                lost.push(id);
            }
        }
        lost.into_iter().for_each(|id| self.remove(id));
    }

    fn concerned(&self, old: Option<&Arc<T>>, new: Option<&Arc<T>>) -> Vec<u64> {
        let Some(item) = new.or(old) else { return vec![] };
        let mut ids: Vec<u64> = self.others.iter().copied().collect();
        ids.extend(self.by_name.get(item.name()).into_iter().flatten());
        if !self.by_service.is_empty() {
            let gone = old.filter(|_| new.is_some()).into_iter().flat_map(|old| old.services());
            let services: HashSet<&str> = item.services().chain(gone).collect();
            ids.extend(services.into_iter().filter_map(|service| self.by_service.get(service)).flatten());
        }
        ids
    }
}

/// What waits for one watcher.
pub(super) struct Queue<T> {
    state: Mutex<QueueState<T>>,
    backlog: usize,
}

struct QueueState<T> {
    /// What was there at the start.
    present: std::vec::IntoIter<Arc<T>>,
    order: VecDeque<Arc<T>>,
    /// By name; `order` has each name once, by the object that came first.
    waiting: HashMap<String, Change<T>>,
    end: Option<Status>,
    waker: Option<Waker>,
}

impl<T: Resource> Queue<T> {
    fn new(present: Vec<Arc<T>>, backlog: usize) -> Self {
        let state = QueueState {
            present: present.into_iter(),
            order: VecDeque::new(),
            waiting: HashMap::new(),
            end: None,
            waker: None,
        };
        Self { state: Mutex::new(state), backlog }
    }

    fn lock(&self) -> MutexGuard<'_, QueueState<T>> {
        // Every change of the state is whole, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// False if the watcher is too far behind; it is told so, and nothing else any more.
    fn push(&self, change: Change<T>) -> bool {
        let mut state = self.lock();
        if let Some(waiting) = state.waiting.get_mut(change.item.name()) {
            *waiting = change;
            return true;
        }
        let kept = state.order.len() < self.backlog;
        if kept {
            state.order.push_back(Arc::clone(&change.item));
            state.waiting.insert(change.item.name().to_owned(), change);
        } else {
            let told = format!("watch of {}s: {} changes not read yet; find again", T::KIND, self.backlog);
            (state.order, state.waiting) = Default::default();
            state.present = vec![].into_iter();
            state.end = Some(Status::resource_exhausted(told));
        }
        let waker = state.waker.take();
        drop(state);
        waker.into_iter().for_each(Waker::wake);
        kept
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Change<T>, Status>>> {
        let mut state = self.lock();
        if let Some(item) = state.present.next() {
            return Poll::Ready(Some(Ok(Change { item, deleted: false })));
        }
        if let Some(first) = state.order.pop_front()
            && let Some(change) = state.waiting.remove(first.name())
        {
            return Poll::Ready(Some(Ok(change)));
        }
        if let Some(status) = state.end.take() {
            return Poll::Ready(Some(Err(status)));
        }
        state.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// A watch as its reader sees it. It does not end by itself, but for an error.
pub(super) struct Watch<T: Resource> {
    queue: Arc<Queue<T>>,
    ended: bool,
    /// Takes the watcher out of the table.
    leave: Option<Box<dyn FnOnce() + Send>>,
}

impl<T: Resource> Watch<T> {
    pub(super) fn new(queue: Arc<Queue<T>>, leave: impl FnOnce() + Send + 'static) -> Self {
        Self { queue, ended: false, leave: Some(Box::new(leave)) }
    }
}

impl<T: Resource> Stream for Watch<T> {
    type Item = Result<T::Event, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let polled = self.queue.poll(cx);
        self.ended = matches!(polled, Poll::Ready(Some(Err(_))));
        polled.map(|next| next.map(|change| change.map(T::Event::from)))
    }
}

impl<T: Resource> Drop for Watch<T> {
    fn drop(&mut self) {
        if let Some(leave) = self.leave.take() {
            leave();
        }
    }
}
