//! The links, as the engine tells of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tonic::Status;
use vwire_proto::dataplane::v1 as pb;
use vwire_proto::dataplane::v1::watch_links_response::Event as Told;

use super::connection::Connector;

/// How long between attempts to find an engine.
const PAUSES: [Duration; 5] = [
    Duration::from_millis(20),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
];

/// What happened at the engine.
#[derive(Debug)]
pub enum Event {
    /// There is an engine, and this is its state. Sent on each new connection; the instance tells whether it is another engine.
    Engine(Box<pb::GetSnapshotResponse>),
    /// The engine does not answer any more.
    Lost,
    /// A link changed.
    Link(pb::Link),
}

/// Events in their order.
pub type Events = mpsc::UnboundedReceiver<Event>;

/// The links that are known.
pub struct Links {
    known: Mutex<HashMap<String, pb::Link>>,
    changed: watch::Sender<u64>,
    events: mpsc::UnboundedSender<Event>,
}

impl Links {
    /// None yet.
    pub fn new() -> (Self, Events) {
        let (events, receiver) = mpsc::unbounded_channel();
        (Self { known: Mutex::default(), changed: watch::Sender::new(0), events }, receiver)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, pb::Link>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As last heard of.
    pub fn get(&self, port: &str) -> Option<pb::Link> {
        self.lock().get(port).cloned()
    }

    /// Waits until a port's link is up.
    pub async fn wait_up(&self, port: &str, deadline: Instant) -> Result<(), Status> {
        let mut changes = self.changed.subscribe();
        loop {
            changes.borrow_and_update();
            let link = self.get(port);
            if link.as_ref().is_some_and(|link| link.up) {
                return Ok(());
            }
            let changed = tokio::time::timeout_at(deadline.into(), changes.changed()).await;
            if !matches!(changed, Ok(Ok(()))) {
                let reason = link.map_or_else(|| "there is no such port".to_owned(), |link| link.reason);
                return Err(Status::deadline_exceeded(format!(
                    "the link of port {port} did not come up: {reason}"
                )));
            }
        }
    }

    fn tell(&self, event: Event) {
        self.changed.send_modify(|version| *version += 1);
        // Nobody listens when the forwarder is stopping.
        let _ = self.events.send(event);
    }

    /// Follows engines for as long as it is polled.
    pub async fn watch(self: Arc<Self>, connector: Arc<Connector>) {
        let mut attempt = 0;
        loop {
            match self.follow(&connector).await {
                Ok(()) => attempt = 0,
                Err(status) => {
                    let seldom = attempt % 20 == 0;
                    if seldom {
                        tracing::warn!("{}", status.message());
                    }
                    attempt += 1;
                }
            }
            tokio::time::sleep(PAUSES[attempt.min(PAUSES.len() - 1)]).await;
        }
    }

    /// Follows one connection to its end; an error if it never began.
    async fn follow(&self, connector: &Connector) -> Result<(), Status> {
        let mut connection = connector.open().await?;
        let mut stream = connection.client.watch_links(pb::WatchLinksRequest {}).await?.into_inner();
        // Asked for after the watch has begun: no change can be missed in between.
        let snapshot = connection.client.get_snapshot(pb::GetSnapshotRequest {}).await?.into_inner();
        *self.lock() = snapshot.links.iter().map(|link| (link.port.clone(), link.clone())).collect();
        self.tell(Event::Engine(Box::new(snapshot)));
        while let Ok(Some(told)) = stream.message().await {
            match told.event {
                Some(Told::Changed(link)) => {
                    self.lock().insert(link.port.clone(), link.clone());
                    self.tell(Event::Link(link));
                }
                Some(Told::Removed(port)) => {
                    self.lock().remove(&port);
                    self.changed.send_modify(|version| *version += 1);
                }
                Some(Told::Initial(_)) | None => {}
            }
        }
        self.lock().clear();
        self.tell(Event::Lost);
        Ok(())
    }
}
