//! How many calls of one kind may be under way.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;

/// Lets so many in at one time, and refuses the rest at once: who waits keeps memory.
#[derive(Clone)]
pub struct Gate {
    places: Arc<Semaphore>,
    most: usize,
    what: &'static str,
    setting: &'static str,
}

impl Gate {
    /// For `most` of `what`, as `setting` says.
    pub fn new(most: usize, what: &'static str, setting: &'static str) -> Self {
        Self { places: Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS))), most, what, setting }
    }

    /// A place, until it is dropped.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED, with the limit and whose it is.
    pub fn enter(&self) -> Result<OwnedSemaphorePermit, Status> {
        Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!(
                "{} {} are under way, which is the most ({}); ask again later",
                self.most, self.what, self.setting
            ))
        })
    }

    /// How many are in.
    pub fn inside(&self) -> usize {
        self.most.saturating_sub(self.places.available_permits())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_is_told_the_limit_and_a_place_that_is_left_is_free() {
        let gate = Gate::new(2, "Requests", "VWIRE_PROXY_MAX_REQUESTS");
        let (first, _second) = (gate.enter().unwrap(), gate.enter().unwrap());
        let told = gate.enter().unwrap_err();
        assert_eq!(told.code(), tonic::Code::ResourceExhausted);
        assert!(
            told.message().starts_with("2 Requests") && told.message().contains("VWIRE_PROXY_MAX_REQUESTS")
        );
        drop(first);
        assert_eq!(gate.inside(), 1);
        drop(gate.enter().unwrap());
    }
}
