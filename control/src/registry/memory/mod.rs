//! The store: what is registered, in memory, with indexes, watches, ownership and expiry. Optionally kept in a file, too.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use futures::{StreamExt, stream};
use prost_types::Timestamp;
use tokio::sync::Notify;
use tonic::Status;
use vwire_proto::nsm::registry::{NetworkService, NetworkServiceEndpoint};

use super::{EndpointEvent, Found, Registry, RegistryCall, ServiceEvent, expiry};
use crate::api::mechanism;

mod journal;
mod limits;
mod resource;
mod table;
mod watch;

#[cfg(test)]
mod tests;

use journal::Journal;
pub use journal::StateError;
pub use limits::Limits;
use resource::Resource;
use table::Table;
pub(super) use table::check_owner;
use watch::Watch;

/// How a store is set up.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long an endpoint stays without being renewed (`NSM_EXPIRE_PERIOD`).
    pub expire: Duration,
    /// How much is taken.
    pub limits: Limits,
}

impl Default for Settings {
    fn default() -> Self {
        Self { expire: expiry::DEFAULT, limits: Limits::default() }
    }
}

/// What is registered, in memory.
pub struct Store(Arc<Shared>);

struct Shared {
    settings: Settings,
    services: RwLock<Table<NetworkService>>,
    endpoints: RwLock<Table<NetworkServiceEndpoint>>,
    /// The first end has come closer.
    sooner: Notify,
    journal: Option<Journal>,
}

/// Access to a table; every change of one is whole, so a panic elsewhere does not spoil it.
fn read<T>(table: &RwLock<Table<T>>) -> RwLockReadGuard<'_, Table<T>> {
    table.read().unwrap_or_else(PoisonError::into_inner)
}

/// As [`read`], to change it.
fn write<T>(table: &RwLock<Table<T>>) -> RwLockWriteGuard<'_, Table<T>> {
    table.write().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    /// An empty store. Needs a runtime: a task of it removes what expires, until the store is dropped.
    pub fn new(settings: Settings) -> Self {
        Self::start(settings, Table::default(), Table::default(), None)
    }

    /// A store that is kept in a file, if there is one.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn kept(settings: Settings, file: Option<&Path>) -> Result<Self, StateError> {
        match file {
            Some(file) => Self::open(settings, file),
            None => Ok(Self::new(settings)),
        }
    }

    /// A store that is kept in a file, too: with what was registered before and has not expired.
    ///
    /// # Errors
    /// [`StateError`] if the file can't be opened, read or written.
    pub fn open(settings: Settings, file: &Path) -> Result<Self, StateError> {
        let (mut services, mut endpoints) = (Table::default(), Table::default());
        let journal = Journal::open(file, &mut services, &mut endpoints)?;
        let store = Self::start(settings, services, endpoints, Some(journal));
        tokio::spawn(journal::keep(Arc::downgrade(&store.0)));
        Ok(store)
    }

    fn start(
        settings: Settings,
        services: Table<NetworkService>,
        endpoints: Table<NetworkServiceEndpoint>,
        journal: Option<Journal>,
    ) -> Self {
        let (services, endpoints) = (RwLock::new(services), RwLock::new(endpoints));
        let shared = Arc::new(Shared { settings, services, endpoints, sooner: Notify::new(), journal });
        tokio::spawn(expire(Arc::downgrade(&shared)));
        Self(shared)
    }

    /// Writes what has changed to the file, if there is one.
    pub async fn flush(&self) {
        self.0.flush().await;
    }

    /// How many watches there are.
    pub fn watches(&self) -> usize {
        read(&self.0.services).watchers.len() + read(&self.0.endpoints).watchers.len()
    }

    /// How many services and endpoints there are.
    pub fn counts(&self) -> (usize, usize) {
        (read(&self.0.services).len(), read(&self.0.endpoints).len())
    }

    /// True if nothing is left of anything that was ever registered.
    pub fn is_empty(&self) -> bool {
        read(&self.0.services).is_empty() && read(&self.0.endpoints).is_empty()
    }
}

/// Removes endpoints when their time has come.
async fn expire(shared: Weak<Shared>) {
    loop {
        let Some(store) = shared.upgrade() else { return };
        store.remove_ended(Instant::now());
        let sooner = store.sooner.notified();
        let first = read(&store.endpoints).first_end();
        // The store is not kept alive while waiting; a look now and then is enough to see that it is gone.
        let look = Instant::now() + Duration::from_secs(1);
        let until = first.map_or(look, |first| first.min(look));
        tokio::select! {
            () = sooner => {}
            () = tokio::time::sleep_until(until.into()) => {}
        }
    }
}

impl Shared {
    fn remove_ended(&self, now: Instant) {
        // One at a time, so that callers come in between even if very many end together.
        loop {
            let mut table = write(&self.endpoints);
            let Some(name) = table.ended(now) else { return };
            table.remove(&name);
            drop(table);
            tracing::debug!(endpoint = %name, "endpoint expired");
        }
    }

    fn find<T: Resource>(
        self: &Arc<Self>,
        table: impl Fn(&Self) -> &RwLock<Table<T>> + Send + 'static,
        query: T,
        watch: bool,
    ) -> Result<Found<T::Event>, Status> {
        if !watch {
            let found = read(table(self)).find(&query);
            let events = found.into_iter().map(|item| Ok(resource::Change { item, deleted: false }.into()));
            return Ok(stream::iter(events).boxed());
        }
        let limits = &self.settings.limits;
        let mut locked = write(table(self));
        if locked.watchers.len() >= limits.watches {
            let told = format!(
                "{} watches of {}s already: the limit of this registry (VWIRE_REGISTRY_WATCHES)",
                limits.watches,
                T::KIND
            );
            return Err(Status::resource_exhausted(told));
        }
        let present = locked.find(&query);
        let (id, queue) = locked.watchers.add(query, present, limits.watch_backlog);
        drop(locked);
        let store = Arc::downgrade(self);
        let leave = move || {
            if let Some(store) = store.upgrade() {
                write(table(&store)).watchers.remove(id);
            }
        };
        Ok(Watch::new(queue, leave).boxed())
    }

    fn unregister<T: Resource>(
        &self,
        table: &RwLock<Table<T>>,
        call: &RegistryCall,
        item: &T,
    ) -> Result<(), Status> {
        let mut locked = write(table);
        if let Some(record) = locked.get(item.name()) {
            check_owner(T::KIND, item.name(), record.owner.as_ref(), call.owner.as_ref())?;
            locked.remove(item.name());
        }
        Ok(())
    }
}

#[async_trait]
impl Registry for Store {
    async fn register_service(
        &self,
        call: &mut RegistryCall,
        mut service: NetworkService,
    ) -> Result<NetworkService, Status> {
        let Shared { settings, services, .. } = &*self.0;
        settings.limits.check(&service)?;
        if service.payload.is_empty() {
            mechanism::PAYLOAD_IP.clone_into(&mut service.payload);
        }
        let mut table = write(services);
        table.check(&service.name, call.owner.as_ref(), &settings.limits)?;
        table.put(Arc::new(service.clone()), call.owner.clone(), None);
        Ok(service)
    }

    async fn unregister_service(
        &self,
        call: &mut RegistryCall,
        service: NetworkService,
    ) -> Result<(), Status> {
        self.0.unregister(&self.0.services, call, &service)
    }

    async fn find_services(
        &self,
        _: &mut RegistryCall,
        query: NetworkService,
        watch: bool,
    ) -> Result<Found<ServiceEvent>, Status> {
        self.0.find(|store| &store.services, query, watch)
    }

    async fn register_endpoint(
        &self,
        call: &mut RegistryCall,
        mut endpoint: NetworkServiceEndpoint,
    ) -> Result<NetworkServiceEndpoint, Status> {
        let Shared { settings, endpoints, sooner, .. } = &*self.0;
        settings.limits.check(&endpoint)?;
        let end = expiry::end(endpoint.expiration_time.as_ref(), call.not_after.as_ref(), settings.expire)?;
        let until = expiry::instant(&end);
        endpoint.expiration_time = Some(end);
        let mut table = write(endpoints);
        table.check(&endpoint.name, call.owner.as_ref(), &settings.limits)?;
        let first = table.get(&endpoint.name).and_then(|record| record.item.initial_registration_time);
        let now = || Timestamp::from(SystemTime::now());
        endpoint.initial_registration_time =
            first.or(endpoint.initial_registration_time).or_else(|| Some(now()));
        let earliest = table.first_end();
        table.put(Arc::new(endpoint.clone()), call.owner.clone(), Some(until));
        if earliest.is_none_or(|earliest| until < earliest) {
            sooner.notify_one();
        }
        Ok(endpoint)
    }

    async fn unregister_endpoint(
        &self,
        call: &mut RegistryCall,
        endpoint: NetworkServiceEndpoint,
    ) -> Result<(), Status> {
        self.0.unregister(&self.0.endpoints, call, &endpoint)
    }

    async fn find_endpoints(
        &self,
        _: &mut RegistryCall,
        query: NetworkServiceEndpoint,
        watch: bool,
    ) -> Result<Found<EndpointEvent>, Status> {
        self.0.find(|store| &store.endpoints, query, watch)
    }
}
