//! Who changes what: changes that have something in common wait for each other, all others go on at the same time.
//!
//! A kernel interface takes the kernel tens of milliseconds to make and to delete. That is done beside the agent's thread, so for a
//! while a port is neither there nor gone; nobody else may use its name, or its interface's, until that is over.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedMutexGuard, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use crate::model::{Claim, Op, PortName};

type Places<K> = HashMap<K, Arc<tokio::sync::Mutex<()>>>;

/// Turns at things of one kind.
struct Table<K>(Mutex<Places<K>>);

impl<K> Default for Table<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

/// Turns that are being had; they end with this.
struct Held<K: Hash + Eq> {
    table: Arc<Table<K>>,
    keys: Vec<(K, Option<OwnedMutexGuard<()>>)>,
}

impl<K: Hash + Eq + Clone + Ord> Table<K> {
    fn lock(&self) -> MutexGuard<'_, Places<K>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the turn at each of `keys`. All take them in the same order, so none waits for another that waits for it.
    async fn take(self: &Arc<Self>, keys: BTreeSet<K>) -> Held<K> {
        let mut held = Held { table: Arc::clone(self), keys: Vec::new() };
        for key in keys {
            let place = Arc::clone(self.lock().entry(key.clone()).or_default());
            // Remembered first: a caller that gives up while it waits leaves no place behind.
            held.keys.push((key, None));
            let turn = place.lock_owned().await;
            if let Some(last) = held.keys.last_mut() {
                last.1 = Some(turn);
            }
        }
        held
    }
}

impl<K: Hash + Eq> Drop for Held<K> {
    fn drop(&mut self) {
        let mut places = self.table.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, turn) in self.keys.drain(..) {
            drop(turn);
            // Ours was the last use of it, but for the table's own.
            if places.get(&key).is_some_and(|place| Arc::strong_count(place) == 1) {
                places.remove(&key);
            }
        }
    }
}

/// The turns of all changes. Cheap to copy.
#[derive(Clone, Default)]
pub struct Turns {
    all: Arc<RwLock<()>>,
    ports: Arc<Table<PortName>>,
    claims: Arc<Table<Claim>>,
}

/// The turn at some ports; it ends with this.
pub struct AtPorts {
    _some: OwnedRwLockReadGuard<()>,
    _ports: Held<PortName>,
}

/// The turn at what ports claim outside; it ends with this.
pub struct AtClaims {
    _claims: Held<Claim>,
}

impl Turns {
    /// Waits until nobody else changes a port that `ops` name.
    pub async fn at_ports(&self, ops: &[Op]) -> AtPorts {
        let some = Arc::clone(&self.all).read_owned().await;
        let names = ops.iter().flat_map(names).cloned().collect();
        AtPorts { _some: some, _ports: self.ports.take(names).await }
    }

    /// Waits until nobody changes anything.
    pub async fn at_all(&self) -> OwnedRwLockWriteGuard<()> {
        Arc::clone(&self.all).write_owned().await
    }

    /// Waits until nobody else makes or deletes one of these. Asked for with the turn at the ports, never before it: so nobody who has
    /// a claim waits for a port.
    pub async fn at_claims(&self, claims: BTreeSet<Claim>) -> AtClaims {
        AtClaims { _claims: self.claims.take(claims).await }
    }
}

fn names(op: &Op) -> impl Iterator<Item = &PortName> {
    let (port, ends) = match op {
        Op::SetPort(port, ..) | Op::RemovePort(port) | Op::RemoveRelay(port) | Op::SetNote(port, _) => {
            (Some(port), None)
        }
        Op::SetMember(port, _)
        | Op::RemoveMember(port)
        | Op::SetUnderlay(port, _)
        | Op::RemoveUnderlay(port) => (Some(port), None),
        Op::SetDomain(..) | Op::RemoveDomain(_) | Op::SetRoute(..) | Op::RemoveRoute(..) => (None, None),
        Op::AddXconnect(xconnect) | Op::RemoveXconnect(xconnect) => (None, Some(xconnect.ends())),
    };
    port.into_iter().chain(ends.into_iter().flatten())
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::model::Xconnect;

    fn name(text: &str) -> PortName {
        text.parse().unwrap()
    }

    fn ready<T>(future: &mut std::pin::Pin<&mut impl Future<Output = T>>) -> Option<T> {
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(done) => Some(done),
            Poll::Pending => None,
        }
    }

    #[test]
    fn what_has_a_port_in_common_waits_and_the_rest_does_not() {
        let turns = Turns::default();
        let (a, b) = ([Op::RemovePort(name("a"))], [Op::RemovePort(name("b"))]);
        let both = [Op::AddXconnect(Xconnect::new(name("a"), name("b")).unwrap())];
        let first = ready(&mut pin!(turns.at_ports(&a))).expect("nobody else is there");
        let other = ready(&mut pin!(turns.at_ports(&b))).expect("it is another port");
        let mut third = pin!(turns.at_ports(&both));
        let mut all = pin!(turns.at_all());
        assert!(ready(&mut third).is_none());
        drop(first);
        assert!(ready(&mut third).is_none(), "the other is still there");
        drop(other);
        let third = ready(&mut third).expect("both are free");
        assert!(ready(&mut all).is_none());
        drop(third);
        assert!(ready(&mut all).is_some());
        assert!(turns.ports.lock().is_empty(), "no place is left behind");
    }

    #[test]
    fn who_gives_up_waiting_leaves_nothing_behind() {
        let turns = Turns::default();
        let ops = [Op::RemovePort(name("a")), Op::RemovePort(name("b"))];
        let first = ready(&mut pin!(turns.at_ports(&ops[1..]))).unwrap();
        {
            let mut second = pin!(turns.at_ports(&ops));
            assert!(ready(&mut second).is_none());
        }
        drop(first);
        assert!(turns.ports.lock().is_empty());
        assert!(ready(&mut pin!(turns.at_ports(&ops))).is_some());
    }
}
