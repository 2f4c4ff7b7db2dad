//! Where endpoints that pass a domain's nsmgr-proxy are.

use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lru::LruCache;

use crate::transport::Target;

/// Endpoints that are remembered, of each kind. One that is forgotten is looked up again.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(16_384).expect("not zero");

/// Endpoints by their names with domains: those of this domain that registered in others by way of us, and those of others that were
/// found by way of us.
pub struct Places(Mutex<Known>);

struct Known {
    ours: LruCache<String, Target>,
    theirs: LruCache<String, Target>,
}

impl Default for Places {
    fn default() -> Self {
        Self(Mutex::new(Known { ours: LruCache::new(REMEMBERED), theirs: LruCache::new(REMEMBERED) }))
    }
}

impl Places {
    /// An endpoint of this domain is behind this manager.
    pub fn register(&self, name: &str, manager: Target) {
        self.known().ours.put(name.to_owned(), manager);
    }

    /// It is not any more.
    pub fn unregister(&self, name: &str) {
        self.known().ours.pop(name);
    }

    /// An endpoint of another domain is behind this proxy.
    pub fn found(&self, name: &str, proxy: Target) {
        self.known().theirs.put(name.to_owned(), proxy);
    }

    /// The manager of an endpoint of this domain.
    pub fn ours(&self, name: &str) -> Option<Target> {
        self.known().ours.get(name).cloned()
    }

    /// Where a Request for the endpoint goes on.
    pub fn of(&self, name: &str) -> Option<Target> {
        let mut known = self.known();
        let ours = known.ours.get(name).cloned();
        ours.or_else(|| known.theirs.get(name).cloned())
    }

    /// How many endpoints of this domain, and of others, are known.
    pub fn counts(&self) -> (usize, usize) {
        let known = self.known();
        (known.ours.len(), known.theirs.len())
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Every change is of one entry, so a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
