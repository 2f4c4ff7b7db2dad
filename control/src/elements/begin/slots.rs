//! A place for each connection id, in which one run at a time is.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tonic::Status;

use crate::chain::Call;

/// Places by id. One is there while someone is in it, waits for it, or has left something in it.
pub(super) struct Slots<T>(Mutex<HashMap<Arc<str>, Slot<T>>>);

struct Slot<T> {
    place: Arc<tokio::sync::Mutex<Option<T>>>,
    /// How many leases there are.
    users: usize,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Slots<T> {
    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Slot<T>>> {
        // Each change is one step, so a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    /// Puts something into the place of `id`, unless it is in use.
    pub(super) fn fill(&self, id: Arc<str>, value: T) {
        let lease = self.lease(id);
        if let Ok(mut place) = lease.place.try_lock() {
            *place = Some(value);
        };
    }

    /// A share in the place of `id`.
    pub(super) fn lease(&self, id: Arc<str>) -> Lease<'_, T> {
        let mut slots = self.lock();
        let slot = slots
            .entry(Arc::clone(&id))
            .or_insert_with(|| Slot { place: Arc::new(tokio::sync::Mutex::new(None)), users: 0 });
        slot.users += 1;
        Lease { slots: self, id, place: Arc::clone(&slot.place) }
    }
}

/// A share in a place; the last one that goes takes an empty place away.
pub(super) struct Lease<'a, T> {
    slots: &'a Slots<T>,
    id: Arc<str>,
    place: Arc<tokio::sync::Mutex<Option<T>>>,
}

impl<T> Lease<'_, T> {
    /// Waits until all that came before have left.
    ///
    /// # Errors
    /// DEADLINE_EXCEEDED if that takes longer than the call has time.
    pub(super) async fn turn(&self, call: &Call) -> Result<tokio::sync::MutexGuard<'_, Option<T>>, Status> {
        tokio::time::timeout_at(call.deadline.into(), self.place.lock()).await.map_err(|_| {
            Status::deadline_exceeded(format!(
                "connection {}: waited for an earlier call of this connection until the deadline",
                self.id
            ))
        })
    }
}

impl<T> Drop for Lease<'_, T> {
    fn drop(&mut self) {
        let mut slots = self.slots.lock();
        let Some(slot) = slots.get_mut(&self.id) else { return };
        slot.users -= 1;
        let empty = slot.users == 0 && slot.place.try_lock().is_ok_and(|place| place.is_none());
        if empty {
            slots.remove(&self.id);
        }
    }
}
