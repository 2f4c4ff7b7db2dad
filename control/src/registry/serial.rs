//! One at a time by name, all names at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OwnedMutexGuard;

/// A lock for each name in use.
#[derive(Default)]
pub(super) struct Serial(Mutex<HashMap<Arc<str>, Arc<tokio::sync::Mutex<()>>>>);

/// The lock of one name.
pub(super) struct Turn<'a> {
    serial: &'a Serial,
    name: Arc<str>,
    /// Given up before the entry is looked at.
    held: Option<OwnedMutexGuard<()>>,
}

impl Serial {
    /// Waits for the name's turn.
    pub(super) async fn turn(&self, name: &str) -> Turn<'_> {
        let name: Arc<str> = name.into();
        let lock = Arc::clone(self.lock().entry(Arc::clone(&name)).or_default());
        let mut turn = Turn { serial: self, name, held: None };
        turn.held = Some(lock.lock_owned().await);
        turn
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Arc<str>, Arc<tokio::sync::Mutex<()>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.held = None;
        let mut names = self.serial.lock();
        // Nobody else has it or waits for it: whoever does holds a copy.
        if names.get(&self.name).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            names.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn turns_of_a_name_do_not_overlap_and_leave_nothing() {
        let (serial, inside) =
            (Arc::new(Serial::default()), Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]));
        let tasks = (0..200).map(|n| {
            let (serial, inside) = (Arc::clone(&serial), Arc::clone(&inside));
            tokio::spawn(async move {
                let _turn = serial.turn(["a", "b"][n % 2]).await;
                assert_eq!(inside[n % 2].fetch_add(1, Ordering::SeqCst), 0);
                tokio::task::yield_now().await;
                inside[n % 2].fetch_sub(1, Ordering::SeqCst);
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap();
        }
        assert!(serial.lock().is_empty());
    }

    #[tokio::test]
    async fn giving_up_while_waiting_leaves_nothing() {
        let serial = Serial::default();
        let first = serial.turn("a").await;
        assert!(tokio::time::timeout(std::time::Duration::from_millis(5), serial.turn("a")).await.is_err());
        drop(first);
        assert!(serial.lock().is_empty());
    }
}
