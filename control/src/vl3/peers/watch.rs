//! Which endpoints there are, as long as one looks: for one service, in one domain.
//!
//! A watch says nothing of what went while it was not open. So what is not told again is given a time, in which a registry that has lost
//! everything hears from its endpoints again, and counts as gone then.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::Status;
use vwire_proto::nsm::registry::NetworkServiceEndpoint;

use crate::domain;
use crate::registry::{EndpointEvent, Registry, RegistryCall};

/// How long opening a watch may take.
const TIME: Duration = Duration::from_secs(15);
/// The pause after a first failure, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long what was known remains without being told again.
const GRACE: Duration = Duration::from_secs(30);

/// What a watch tells.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Seen {
    /// An endpoint of this service is registered.
    There {
        /// What was asked for, with its domain.
        service: String,
        /// The endpoint.
        endpoint: Arc<NetworkServiceEndpoint>,
    },
    /// It is not any more.
    Gone {
        /// Its name.
        name: String,
    },
}

/// Watches the endpoints of `service` until nobody listens.
pub(super) async fn follow(registry: Arc<dyn Registry>, service: String, tell: mpsc::Sender<Seen>) {
    let mut watch = Watch { service, tell, known: BTreeMap::new() };
    let mut pause = FIRST_PAUSE;
    while !watch.tell.is_closed() {
        let began = Instant::now();
        let Err(status) = watch.once(&*registry).await else { return };
        tracing::debug!(service = watch.service, %status, "the watch for peers ended; it is opened again");
        if began.elapsed() > LONGEST_PAUSE {
            pause = FIRST_PAUSE;
        }
        tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

struct Watch {
    service: String,
    tell: mpsc::Sender<Seen>,
    /// When what was known before the watch was opened counts as gone; None for what it has told itself.
    known: BTreeMap<String, Option<Instant>>,
}

impl Watch {
    /// One watch, until it breaks. Ok if nobody listens any more.
    async fn once(&mut self, registry: &dyn Registry) -> Result<(), Status> {
        let query = NetworkServiceEndpoint {
            network_service_names: vec![self.service.clone()],
            ..Default::default()
        };
        let mut call = RegistryCall::internal("peers", TIME);
        let opening = registry.find_endpoints(&mut call, query, true);
        let mut events = tokio::time::timeout(TIME, opening)
            .await
            .map_err(|_| Status::deadline_exceeded(format!("no answer within {TIME:?}")))??;
        let gone = Instant::now() + GRACE;
        self.known.values_mut().for_each(|until| *until = until.or(Some(gone)));
        loop {
            let next = self.known.values().flatten().min().copied();
            let event = tokio::select! {
                event = events.next() => event,
                () = sleep_until(next) => {
                    if self.sweep().await.is_err() {
                        return Ok(());
                    }
                    continue;
                }
                () = self.tell.closed() => return Ok(()),
            };
            let event = event.ok_or_else(|| Status::unavailable("the registry ended the watch"))??;
            if self.take(event).await.is_err() {
                return Ok(());
            }
        }
    }

    async fn take(&mut self, event: EndpointEvent) -> Result<(), Closed> {
        let EndpointEvent { endpoint, deleted, .. } = event;
        let name = endpoint.name.clone();
        if deleted {
            // Of one that is not known nothing is said: it may have been of another service by now.
            return match self.known.remove(&name) {
                Some(_) => self.say(Seen::Gone { name }).await,
                None => Ok(()),
            };
        }
        if !serves(&endpoint, &self.service) {
            return Ok(());
        }
        self.known.insert(name, None);
        self.say(Seen::There { service: self.service.clone(), endpoint }).await
    }

    /// What was not told again in time is gone.
    async fn sweep(&mut self) -> Result<(), Closed> {
        let now = Instant::now();
        let late = |until: &Option<Instant>| until.is_some_and(|until| until <= now);
        let gone: BTreeSet<String> =
            self.known.iter().filter(|(_, until)| late(until)).map(|(name, _)| name.clone()).collect();
        self.known.retain(|name, _| !gone.contains(name));
        for name in gone {
            self.say(Seen::Gone { name }).await?;
        }
        Ok(())
    }

    async fn say(&self, seen: Seen) -> Result<(), Closed> {
        self.tell.send(seen).await.map_err(|_| Closed)
    }
}

/// Nobody listens.
struct Closed;

async fn sleep_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Old registries find by parts of a name, and other domains' names come with or without their domain.
fn serves(endpoint: &NetworkServiceEndpoint, service: &str) -> bool {
    let wanted = domain::target(service);
    endpoint.network_service_names.iter().any(|name| domain::target(name) == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vl3::peers::testing::Book;

    fn endpoint(name: &str, service: &str) -> NetworkServiceEndpoint {
        NetworkServiceEndpoint {
            name: name.into(),
            network_service_names: vec![service.into()],
            url: "tcp://127.0.0.1:1".into(),
            ..Default::default()
        }
    }

    fn name_of(seen: &Seen) -> (&str, bool) {
        match seen {
            Seen::There { endpoint, .. } => (&endpoint.name, true),
            Seen::Gone { name } => (name, false),
        }
    }

    #[tokio::test]
    async fn what_comes_and_goes_is_told() {
        let store = Arc::new(Book::default());
        store.put(endpoint("a", "vl3"));
        store.put(endpoint("other", "vl3-other"));
        let (tell, mut told) = mpsc::channel(8);
        let following = tokio::spawn(follow(store.clone(), "vl3".into(), tell));
        assert_eq!(name_of(&told.recv().await.unwrap()), ("a", true));
        store.put(endpoint("b", "vl3"));
        assert_eq!(name_of(&told.recv().await.unwrap()), ("b", true));
        store.remove("a");
        assert_eq!(name_of(&told.recv().await.unwrap()), ("a", false));
        drop(told);
        following.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_registry_does_not_tell_again_is_gone_after_a_time() {
        let (tell, mut told) = mpsc::channel(8);
        let known = BTreeMap::from([("kept".to_owned(), None), ("lost".to_owned(), None)]);
        let mut watch = Watch { service: "vl3".into(), tell, known };
        let store = Book::default();
        store.put(endpoint("kept", "vl3"));
        let began = Instant::now();
        let watching = watch.once(&store);
        let hears = async {
            assert_eq!(name_of(&told.recv().await.unwrap()), ("kept", true));
            assert_eq!(name_of(&told.recv().await.unwrap()), ("lost", false));
            assert!(began.elapsed() >= GRACE);
            told.close();
        };
        let (ended, ()) = tokio::join!(watching, hears);
        assert!(ended.is_ok());
    }
}
