//! Finds answered from what a watch keeps current, instead of asking a registry beyond each time.
//!
//! The first find of a query goes through, and starts a watch of the same query. Once the watch has spoken, and a whole find made
//! after that has filled in the rest, later finds are answered from here. What the watch says counts more than that find, for they
//! may overtake each other. A watch that breaks takes its entry with it. That nothing was found is never remembered: such a find
//! goes through each time, and so does one whose remembered endpoints have all expired.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use futures::{StreamExt, stream};
use prost::Message;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Status;
use vwire_proto::nsm::registry::{NetworkService, NetworkServiceEndpoint};

use super::{EndpointEvent, Found, Registry, RegistryCall, ServiceEvent, expiry, find, matching};

/// An entry that nobody has asked for this long is given up.
const IDLE: Duration = Duration::from_secs(120);
/// Most queries that are remembered; one more goes through.
const MOST: usize = 4096;
/// How long opening a watch and the find after it may take.
const TIME: Duration = Duration::from_secs(15);

/// A registry whose finds are remembered.
pub struct Cached<R: Registry>(Arc<Shared<R>>);

struct Shared<R> {
    inner: R,
    services: Kept<ServiceEvent>,
    endpoints: Kept<EndpointEvent>,
}

/// Answers by query, as encoded.
struct Kept<E>(Mutex<HashMap<Vec<u8>, Entry<E>>>);

struct Entry<E> {
    /// By name; none until it is known to be all.
    found: Option<HashMap<String, E>>,
    used: Instant,
    /// Says which life of the entry this is.
    life: u64,
    /// Ends the watch.
    _watch: DropGuard,
}

/// What is cached: services and endpoints alike.
trait Cacheable: Clone + Send + Sync + Sized + 'static {
    type Query: Message + Clone + Default + Send + Sync + 'static;

    fn name(&self) -> &str;
    fn is_deleted(&self) -> bool;
    fn has_expired(&self, now: SystemTime) -> bool;
    fn agrees(&self, query: &Self::Query) -> bool;
    fn is_empty_query(query: &Self::Query) -> bool;
    fn kept<R>(shared: &Shared<R>) -> &Kept<Self>;

    fn find<R: Registry>(
        registry: &R,
        call: &mut RegistryCall,
        query: Self::Query,
        watch: bool,
    ) -> impl Future<Output = Result<Found<Self>, Status>> + Send;

    fn all<R: Registry>(
        registry: &R,
        call: &mut RegistryCall,
        query: Self::Query,
    ) -> impl Future<Output = Result<Vec<Self>, Status>> + Send;
}

impl Cacheable for ServiceEvent {
    type Query = NetworkService;

    fn name(&self) -> &str {
        &self.service.name
    }

    fn is_deleted(&self) -> bool {
        self.deleted
    }

    fn has_expired(&self, _: SystemTime) -> bool {
        false
    }

    fn agrees(&self, query: &NetworkService) -> bool {
        matching::service(query, &self.service)
    }

    fn is_empty_query(query: &NetworkService) -> bool {
        query.name.is_empty()
    }

    fn kept<R>(shared: &Shared<R>) -> &Kept<Self> {
        &shared.services
    }

    async fn find<R: Registry>(
        registry: &R,
        call: &mut RegistryCall,
        query: NetworkService,
        watch: bool,
    ) -> Result<Found<Self>, Status> {
        registry.find_services(call, query, watch).await
    }

    async fn all<R: Registry>(
        registry: &R,
        call: &mut RegistryCall,
        query: NetworkService,
    ) -> Result<Vec<Self>, Status> {
        let found = find::services(registry, call, query).await?;
        Ok(found.into_iter().map(|service| Self { service, deleted: false }).collect())
    }
}

impl Cacheable for EndpointEvent {
    type Query = NetworkServiceEndpoint;

    fn name(&self) -> &str {
        &self.endpoint.name
    }

    fn is_deleted(&self) -> bool {
        self.deleted
    }

    fn has_expired(&self, now: SystemTime) -> bool {
        self.endpoint.expiration_time.as_ref().is_some_and(|end| expiry::left(end, now).is_zero())
    }

    fn agrees(&self, query: &NetworkServiceEndpoint) -> bool {
        matching::endpoint(query, &self.endpoint)
    }

    fn is_empty_query(query: &NetworkServiceEndpoint) -> bool {
        query.name.is_empty() && query.network_service_names.is_empty()
    }

    fn kept<R>(shared: &Shared<R>) -> &Kept<Self> {
        &shared.endpoints
    }

    async fn find<R: Registry>(
        registry: &R,
        call: &mut RegistryCall,
        query: NetworkServiceEndpoint,
        watch: bool,
    ) -> Result<Found<Self>, Status> {
        registry.find_endpoints(call, query, watch).await
    }

    async fn all<R: Registry>(
        registry: &R,
        call: &mut RegistryCall,
        query: NetworkServiceEndpoint,
    ) -> Result<Vec<Self>, Status> {
        find::endpoints(registry, call, query).await
    }
}

impl<E: Cacheable> Kept<E> {
    fn lock(&self) -> MutexGuard<'_, HashMap<Vec<u8>, Entry<E>>> {
        // Every change is of one entry, so a panic elsewhere does not spoil the rest.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer, if it is known and not empty.
    fn answer(&self, key: &[u8]) -> Option<Vec<E>> {
        let mut entries = self.lock();
        let entry = entries.get_mut(key)?;
        entry.used = Instant::now();
        let now = SystemTime::now();
        let found: Vec<E> = entry.found.as_ref()?.values().filter(|e| !e.has_expired(now)).cloned().collect();
        (!found.is_empty()).then_some(found)
    }

    /// Changes an entry, if it is still in that life of it.
    fn change(&self, key: &[u8], life: u64, change: impl FnOnce(&mut Entry<E>)) {
        if let Some(entry) = self.lock().get_mut(key)
            && entry.life == life
        {
            change(entry);
        }
    }

    fn give_up(&self, key: &[u8], life: u64) {
        let mut entries = self.lock();
        if entries.get(key).is_some_and(|entry| entry.life == life) {
            entries.remove(key);
        }
    }

    /// For how long nobody has asked.
    fn idle(&self, key: &[u8]) -> Duration {
        self.lock().get(key).map_or(IDLE, |entry| entry.used.elapsed())
    }
}

/// Puts in what a watch says.
fn note<E: Cacheable>(found: &mut HashMap<String, E>, event: E) {
    if event.is_deleted() {
        found.remove(event.name());
    } else {
        found.insert(event.name().to_owned(), event);
    }
}

impl<R: Registry> Cached<R> {
    /// Remembers what is found in `inner`.
    pub fn new(inner: R) -> Self {
        let (services, endpoints) = (Kept(Mutex::default()), Kept(Mutex::default()));
        Self(Arc::new(Shared { inner, services, endpoints }))
    }

    async fn find<E: Cacheable>(
        &self,
        call: &mut RegistryCall,
        query: E::Query,
        watch: bool,
    ) -> Result<Found<E>, Status> {
        if watch || E::is_empty_query(&query) {
            return E::find(&self.0.inner, call, query, watch).await;
        }
        let key = query.encode_to_vec();
        if let Some(found) = E::kept(&self.0).answer(&key) {
            return Ok(stream::iter(found.into_iter().map(Ok)).boxed());
        }
        let found = E::all(&self.0.inner, call, query.clone()).await?;
        if !found.is_empty() {
            self.start::<E>(key, query);
        }
        Ok(stream::iter(found.into_iter().map(Ok)).boxed())
    }

    /// Begins to watch a query, unless it is watched already.
    fn start<E: Cacheable>(&self, key: Vec<u8>, query: E::Query) {
        static LIVES: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let mut entries = E::kept(&self.0).lock();
        if entries.len() >= MOST || entries.contains_key(&key) {
            return;
        }
        let life = LIVES.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let end = CancellationToken::new();
        let watch = end.clone().drop_guard();
        entries.insert(key.clone(), Entry { found: None, used: Instant::now(), life, _watch: watch });
        drop(entries);
        let shared = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            let watching = follow::<E, R>(&shared, &key, life, query);
            let why = tokio::select! {
                why = watching => why,
                () = end.cancelled() => return,
            };
            tracing::debug!(%why, "a remembered find is given up");
            if let Some(shared) = shared.upgrade() {
                E::kept(&shared).give_up(&key, life);
            }
        });
    }

    /// What this process registers is known here without waiting for the watches.
    fn noted<E: Cacheable>(&self, event: E) {
        for (query, entry) in E::kept(&self.0).lock().iter_mut() {
            let asked = E::Query::decode(query.as_slice()).is_ok_and(|query| event.agrees(&query));
            if let Some(found) = entry.found.as_mut().filter(|_| asked || event.is_deleted()) {
                note(found, event.clone());
            }
        }
    }
}

/// Keeps one entry current until the watch breaks or nobody asks any more. Returns why it ended.
async fn follow<E: Cacheable, R: Registry>(
    shared: &Weak<Shared<R>>,
    key: &[u8],
    life: u64,
    query: E::Query,
) -> Status {
    match try_follow::<E, R>(shared, key, life, query).await {
        Ok(()) => Status::unavailable("the watch ended"),
        Err(status) => status,
    }
}

async fn try_follow<E: Cacheable, R: Registry>(
    shared: &Weak<Shared<R>>,
    key: &[u8],
    life: u64,
    query: E::Query,
) -> Result<(), Status> {
    let gone = || Status::cancelled("nobody asks any more");
    let mut events = {
        let shared = shared.upgrade().ok_or_else(gone)?;
        let mut call = RegistryCall::internal("cache", TIME);
        E::find(&shared.inner, &mut call, query.clone(), true).await?
    };
    // The watch is known to work once it has spoken.
    let first = tokio::time::timeout(TIME, events.next()).await;
    let Ok(Some(first)) = first else { return Err(Status::unavailable("the watch does not speak")) };
    let mut said = HashMap::new();
    let mut touched = HashSet::new();
    let mut hear = |event: E, said: &mut HashMap<String, E>| {
        touched.insert(event.name().to_owned());
        note(said, event);
    };
    hear(first?, &mut said);
    // What there is beyond what the watch has said so far.
    let all = {
        let shared = shared.upgrade().ok_or_else(gone)?;
        let mut call = RegistryCall::internal("cache", TIME);
        let all = E::all(&shared.inner, &mut call, query);
        tokio::pin!(all);
        loop {
            tokio::select! {
                all = &mut all => break all?,
                event = events.next() => match event {
                    Some(event) => hear(event?, &mut said),
                    None => return Ok(()),
                },
            }
        }
    };
    for event in all {
        if !touched.contains(event.name()) {
            note(&mut said, event);
        }
    }
    let kept = shared.upgrade().ok_or_else(gone)?;
    E::kept(&kept).change(key, life, |entry| entry.found = Some(said));
    drop(kept);
    loop {
        let event = tokio::time::timeout(IDLE / 2, events.next()).await;
        let shared = shared.upgrade().ok_or_else(gone)?;
        match event {
            Ok(Some(event)) => {
                let event = event?;
                E::kept(&shared).change(key, life, |entry| {
                    entry.found.iter_mut().for_each(|found| note(found, event.clone()))
                });
            }
            Ok(None) => return Ok(()),
            Err(_) => {}
        }
        if E::kept(&shared).idle(key) >= IDLE {
            return Err(gone());
        }
    }
}

#[async_trait]
impl<R: Registry> Registry for Cached<R> {
    async fn register_service(
        &self,
        call: &mut RegistryCall,
        service: NetworkService,
    ) -> Result<NetworkService, Status> {
        let registered = self.0.inner.register_service(call, service).await?;
        self.noted(ServiceEvent { service: Arc::new(registered.clone()), deleted: false });
        Ok(registered)
    }

    async fn unregister_service(
        &self,
        call: &mut RegistryCall,
        service: NetworkService,
    ) -> Result<(), Status> {
        self.0.inner.unregister_service(call, service.clone()).await?;
        self.noted(ServiceEvent { service: Arc::new(service), deleted: true });
        Ok(())
    }

    async fn find_services(
        &self,
        call: &mut RegistryCall,
        query: NetworkService,
        watch: bool,
    ) -> Result<Found<ServiceEvent>, Status> {
        self.find(call, query, watch).await
    }

    async fn register_endpoint(
        &self,
        call: &mut RegistryCall,
        endpoint: NetworkServiceEndpoint,
    ) -> Result<NetworkServiceEndpoint, Status> {
        let registered = self.0.inner.register_endpoint(call, endpoint).await?;
        let endpoint = Arc::new(registered.clone());
        self.noted(EndpointEvent { endpoint, deleted: false, socket: call.socket.clone() });
        Ok(registered)
    }

    async fn unregister_endpoint(
        &self,
        call: &mut RegistryCall,
        endpoint: NetworkServiceEndpoint,
    ) -> Result<(), Status> {
        self.0.inner.unregister_endpoint(call, endpoint.clone()).await?;
        self.noted(EndpointEvent { endpoint: Arc::new(endpoint), deleted: true, socket: None });
        Ok(())
    }

    async fn find_endpoints(
        &self,
        call: &mut RegistryCall,
        query: NetworkServiceEndpoint,
        watch: bool,
    ) -> Result<Found<EndpointEvent>, Status> {
        self.find(call, query, watch).await
    }
}
