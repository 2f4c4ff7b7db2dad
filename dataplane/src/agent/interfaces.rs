//! Kernel interfaces are made and deleted beside the agent's thread.
//!
//! Measured on kernel 6.18 with two cores: an interface is made in 0.3 ms, but to move it into its workload's namespace takes about
//! 25 ms, which the kernel spends waiting in `rcu_barrier` and `synchronize_rcu_expedited` with its lock of all interfaces held; to
//! delete it takes as long, half of that without the lock. Nearly none of it is work. So whoever has no interface must not wait for
//! whoever has, and several can be deleted at the same time; to move several at the same time would only keep everybody else from the
//! kernel's lock.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, LazyLock};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::ports::{Gone, kernel_spec};
use super::{ChangeError, Made, OpenError, SentFds};
use crate::model::{Claim, Inode, KernelSpec, PortName};
use crate::port::kernel;

/// Deletions at the same time.
const DELETERS: usize = 8;
/// Creations at the same time: one moves, and others are about to. They are made one by one, see `port::kernel`.
const MAKERS: usize = 2;

/// What has to be at hand before a change is made.
pub struct Ahead {
    /// The descriptors that it cannot do without.
    pub needs: BTreeSet<Inode>,
    /// The interfaces it makes that nobody has before it.
    pub interfaces: Vec<(PortName, KernelSpec)>,
    /// The interfaces that it makes or deletes.
    pub claims: BTreeSet<Claim>,
}

/// Makes all of `wanted`, or none.
///
/// # Errors
/// [`ChangeError::Open`].
pub async fn make(wanted: Vec<(PortName, KernelSpec)>, fds: &SentFds) -> Result<Made, ChangeError> {
    static PLACES: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(MAKERS)));
    let mut making = JoinSet::new();
    let mut failed = None;
    for (port, spec) in wanted {
        match kernel_spec(&spec, fds) {
            Ok(spec) => drop(making.spawn(async move {
                let made = on_a_thread(&PLACES, move || kernel::create(&spec)).await;
                (port, made.and_then(|made| made.map_err(OpenError::system)))
            })),
            Err(error) => failed = Some(ChangeError::Open { port, error }),
        }
    }
    let mut made = Made::new();
    while let Some(done) = making.join_next().await {
        match done {
            Ok((port, Ok(device))) => drop(made.insert(port, device)),
            Ok((port, Err(error))) => failed = Some(ChangeError::Open { port, error }),
            // It was neither cancelled, nor did it panic: what may panic is on the thread.
            Err(error) => tracing::error!("making an interface: {error}"),
        }
    }
    match failed {
        None => Ok(made),
        Some(error) => {
            delete(made.into_values().map(Gone::unused).collect()).await;
            Err(error)
        }
    }
}

/// Deletes interfaces; done when all are gone.
pub async fn delete(gone: Vec<Gone>) {
    static PLACES: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(DELETERS)));
    let mut deleting = JoinSet::new();
    for one in gone {
        deleting.spawn(on_a_thread(&PLACES, move || drop(one)));
    }
    while let Some(done) = deleting.join_next().await {
        if let Ok(Err(error)) = done {
            tracing::error!("deleting an interface: {error}");
        }
    }
}

/// Deletes interfaces and waits for that: where nothing else goes on any more.
pub fn delete_here(gone: Vec<Gone>) {
    let each = gone.len().div_ceil(DELETERS).max(1);
    let mut shares: Vec<Vec<Gone>> = Vec::new();
    for (at, one) in gone.into_iter().enumerate() {
        if at % each == 0 {
            shares.push(Vec::new());
        }
        if let Some(share) = shares.last_mut() {
            share.push(one);
        }
    }
    std::thread::scope(|scope| {
        for share in shares {
            scope.spawn(move || drop(share));
        }
    });
}

async fn on_a_thread<T: Send + 'static>(
    places: &Arc<Semaphore>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, OpenError> {
    // It is never closed, so an error can't happen, and would only mean more threads.
    let place = Arc::clone(places).acquire_owned().await;
    let done = tokio::task::spawn_blocking(move || {
        let _place = place;
        work()
    });
    done.await.map_err(|error| OpenError::new(super::Cause::Engine, error.to_string()))
}

/// Nothing was made ahead.
pub fn nothing() -> Made {
    HashMap::new()
}
