//! One table of the store: records with their owners and ends, found by name and by service.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use tonic::Status;

use super::limits::Limits;
use super::resource::Resource;
use super::watch::Watchers;
use crate::registry::Owner;

/// What is kept of one name.
pub(super) struct Record<T> {
    pub item: Arc<T>,
    pub owner: Option<Owner>,
    /// When it goes unless it is renewed.
    pub until: Option<Instant>,
}

/// The records, and what finds them.
pub(super) struct Table<T> {
    records: HashMap<Arc<str>, Record<T>>,
    /// In order of their names, so that an answer is the same each time.
    by_service: HashMap<String, BTreeMap<Arc<str>, Arc<T>>>,
    by_end: BTreeSet<(Instant, Arc<str>)>,
    by_owner: HashMap<Arc<str>, usize>,
    pub watchers: Watchers<T>,
    /// What has changed since it was last written to a file, if there is one.
    pub dirty: Option<Dirty<T>>,
}

/// Changes by name; none for what went.
pub(super) type Dirty<T> = HashMap<Arc<str>, Option<Saved<T>>>;

/// What a file keeps of a record.
pub(super) struct Saved<T> {
    pub item: Arc<T>,
    pub owner: Option<Owner>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self {
            records: HashMap::new(),
            by_service: HashMap::new(),
            by_end: BTreeSet::new(),
            by_owner: HashMap::new(),
            watchers: Watchers::default(),
            dirty: None,
        }
    }
}

impl<T: Resource> Table<T> {
    pub(super) fn get(&self, name: &str) -> Option<&Record<T>> {
        self.records.get(name)
    }

    /// True if nothing is left of anything: no record, index or owner. Watchers don't count.
    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty()
            && self.by_service.is_empty()
            && self.by_end.is_empty()
            && self.by_owner.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    /// Refuses those to whom a name does not belong, and more than is allowed.
    pub(super) fn check(&self, name: &str, caller: Option<&Owner>, limits: &Limits) -> Result<(), Status> {
        match self.records.get(name) {
            Some(record) => check_owner(T::KIND, name, record.owner.as_ref(), caller),
            None => {
                let of_owner = caller.and_then(|owner| self.by_owner.get(&owner.identity)).copied();
                limits.check_counts::<T>(self.records.len(), of_owner.unwrap_or_default())
            }
        }
    }

    /// Adds or replaces, and tells the watchers. A record keeps its owner when somebody unnamed renews it.
    pub(super) fn put(&mut self, item: Arc<T>, owner: Option<Owner>, until: Option<Instant>) {
        let name: Arc<str> = item.name().into();
        let old = self.take(&name);
        let owner = owner.or_else(|| old.as_ref().and_then(|record| record.owner.clone()));
        for service in item.services() {
            let place = match self.by_service.get_mut(service) {
                Some(place) => place,
                None => self.by_service.entry(service.to_owned()).or_default(),
            };
            place.insert(Arc::clone(&name), Arc::clone(&item));
        }
        if let Some(until) = until {
            self.by_end.insert((until, Arc::clone(&name)));
        }
        if let Some(owner) = &owner {
            *self.by_owner.entry(Arc::clone(&owner.identity)).or_default() += 1;
        }
        self.watchers.publish(old.as_ref().map(|record| &record.item), Some(&item));
        if let Some(dirty) = &mut self.dirty {
            let saved = Saved { item: Arc::clone(&item), owner: owner.clone() };
            dirty.insert(Arc::clone(&name), Some(saved));
        }
        self.records.insert(name, Record { item, owner, until });
    }

    /// Removes, and tells the watchers.
    pub(super) fn remove(&mut self, name: &str) -> Option<Record<T>> {
        let record = self.take(name)?;
        self.watchers.publish(Some(&record.item), None);
        if let Some(dirty) = &mut self.dirty {
            dirty.insert(name.into(), None);
        }
        Some(record)
    }

    /// Takes a record out of all indexes.
    fn take(&mut self, name: &str) -> Option<Record<T>> {
        let (name, record) = self.records.remove_entry(name)?;
        for service in record.item.services() {
            if let Some(place) = self.by_service.get_mut(service) {
                place.remove(&name);
                if place.is_empty() {
                    self.by_service.remove(service);
                }
            }
        }
        if let Some(until) = record.until {
            self.by_end.remove(&(until, name));
        }
        if let Some(owner) = &record.owner
            && let Some(count) = self.by_owner.get_mut(&owner.identity)
        {
            *count -= 1;
            if *count == 0 {
                self.by_owner.remove(&owner.identity);
            }
        }
        Some(record)
    }

    /// When the first record ends.
    pub(super) fn first_end(&self) -> Option<Instant> {
        self.by_end.first().map(|(until, _)| *until)
    }

    /// A name whose record has ended.
    pub(super) fn ended(&self, now: Instant) -> Option<Arc<str>> {
        self.by_end.first().filter(|(until, _)| *until <= now).map(|(_, name)| Arc::clone(name))
    }

    /// All that `query` asks for, looking only where it can be.
    pub(super) fn find(&self, query: &T) -> Vec<Arc<T>> {
        let asked = |item: &&Arc<T>| query.asks_for(item);
        if !query.name().is_empty() {
            let there = self.records.get(query.name()).map(|record| &record.item);
            return there.filter(asked).cloned().into_iter().collect();
        }
        let mut services = query.services().peekable();
        if services.peek().is_none() {
            return self.records.values().map(|record| &record.item).filter(asked).cloned().collect();
        }
        let places: Option<Vec<_>> = services.map(|service| self.by_service.get(service)).collect();
        let smallest = places.into_iter().flatten().min_by_key(|place| place.len());
        smallest.into_iter().flat_map(BTreeMap::values).filter(asked).cloned().collect()
    }
}

/// Only the owner changes what it registered; where either is not known nobody checks.
///
/// # Errors
/// PERMISSION_DENIED to another identity.
pub(crate) fn check_owner(
    kind: &str,
    name: &str,
    owner: Option<&Owner>,
    caller: Option<&Owner>,
) -> Result<(), Status> {
    match (owner, caller) {
        (Some(owner), Some(caller)) if owner.identity != caller.identity => Err(Status::permission_denied(
            format!("no sufficient privileges: {kind} `{name}` belongs to another identity"),
        )),
        _ => Ok(()),
    }
}
