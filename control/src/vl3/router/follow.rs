//! Following the engine: after its restart it is made to hold again what the table says, and a dialled memif whose link breaks is
//! dialled again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tonic::Status;
use vwire_proto::dataplane::v1 as pb;

use super::Router;
use super::port::{End, Port};
use crate::dataplane::client::{Change, Event, Events};
use crate::dataplane::ends::DIAL_TIME;

/// Between attempts to dial again: doubled from the first to the last.
const PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long a handshake may take after the port was made.
const HANDSHAKE: Duration = Duration::from_secs(2);
/// What the engine says of a port that was just made.
const NO_PEER_YET: &str = "no peer yet";
/// Rounds after which nothing more is expected of another one: each is needed only if somebody changed something meanwhile.
const ROUNDS: usize = 5;

/// Until the engine's client is gone.
pub(super) async fn run(router: Arc<Router>, mut events: Events) {
    while let Some(event) = events.recv().await {
        match event {
            Event::Lost => {
                tracing::warn!("the packet engine does not answer; what it forwards, it may still forward");
            }
            Event::Engine(_) => {
                if let Err(status) = router.agree().await {
                    tracing::warn!(%status, domain = router.domain, "the packet engine does not hold all of the network");
                }
            }
            Event::Link(link) if !link.up => router.broken(&link),
            Event::Link(_) => {}
        }
    }
}

impl Router {
    /// Makes the engine hold what the table says, and touches nothing that agrees.
    pub(super) async fn agree(&self) -> Result<(), Status> {
        let mut agreed = self.agreed.lock().await;
        self.agree_now(&mut agreed).await
    }

    /// As [`agree`](Self::agree), if the engine is another than the one that agreed last. True if it is, and agrees now.
    pub(super) async fn agree_if_new(&self) -> bool {
        let asked = *self.agreed.lock().await;
        let Ok(snapshot) = self.client.snapshot().await else { return false };
        if snapshot.instance == asked {
            return false;
        }
        let mut agreed = self.agreed.lock().await;
        *agreed == snapshot.instance || self.agree_now(&mut agreed).await.is_ok()
    }

    async fn agree_now(&self, agreed: &mut u64) -> Result<(), Status> {
        for _ in 0..ROUNDS {
            let snapshot = self.client.snapshot().await?;
            let plan = self.lock().plan(&self.domain, &snapshot);
            if snapshot.instance != *agreed {
                tracing::warn!(
                    domain = self.domain,
                    "the packet engine is another one; making the network again"
                );
            }
            *agreed = snapshot.instance;
            if plan.is_empty() {
                return Ok(());
            }
            let mut first = Change::default();
            plan.first.into_iter().for_each(|op| first.push(op));
            self.client.apply(first).await?;
            let made = plan.ports.into_iter().map(|(name, wanted, found, fresh)| async move {
                let made = self.remake(&name, wanted, found.as_ref(), fresh).await;
                made.map_err(|status| {
                    Status::new(status.code(), format!("port {name}: {}", status.message()))
                })
            });
            futures::future::join_all(made).await.into_iter().collect::<Result<(), _>>()?;
        }
        Ok(())
    }

    async fn remake(
        &self,
        name: &str,
        mut port: Port,
        found: Option<&Port>,
        fresh: bool,
    ) -> Result<(), Status> {
        if fresh && port.lacks_socket() {
            let Some(end @ End::Listen(_)) = port.end.clone() else {
                return Err(Status::unavailable("nobody has said yet where it listens"));
            };
            port.listen(&end).await?;
            let mut table = self.lock();
            if let Some(known) = table.ports.get_mut(name) {
                (known.memif, known.listening) = (port.memif.clone(), port.listening.clone());
            }
        }
        let until = Instant::now() + DIAL_TIME;
        self.client.apply(port.change(&self.domain, name, found, (fresh, until))).await
    }

    /// Dials again, beside the rest of the work, until the link is up or the port is another's.
    fn broken(self: &Arc<Self>, link: &pb::Link) {
        let mut table = self.lock();
        let dialled = |port: &Port| matches!(port.end, Some(End::Dial(_)));
        // Each attempt makes the port anew, which is down at first, too: whoever sees to it already is enough.
        if !table.ports.get(&link.port).is_some_and(dialled) || !table.dialling.insert(link.port.clone()) {
            return;
        }
        drop(table);
        let (router, link) = (Arc::clone(self), link.clone());
        tokio::spawn(async move {
            router.mend(&link).await;
            router.lock().dialling.remove(&link.port);
            // It may have broken again before we had said that we are done.
            if let Some(link) = router.link(&link.port).filter(|link| !link.up) {
                router.broken(&link);
            }
        });
    }

    /// A port that was just made has its handshake still before it; one that was up is dialled at once.
    async fn mend(&self, link: &pb::Link) {
        let fresh = link.reason == NO_PEER_YET;
        if fresh && self.client.wait_up(&link.port, Instant::now() + HANDSHAKE).await.is_ok() {
            return;
        }
        tracing::info!(port = link.port, reason = link.reason, "a link is down; dialling again");
        self.dial_again(&link.port).await;
    }

    async fn dial_again(&self, name: &str) {
        let mut pause = PAUSE;
        loop {
            let turn = self.turn(name).await;
            let port = self.lock().ports.get(name).cloned();
            let is_up = || self.client.link(name).is_some_and(|link| link.up);
            let Some(port) = port.filter(|port| matches!(port.end, Some(End::Dial(_))) && !is_up()) else {
                return;
            };
            let change = port.change(&self.domain, name, Some(&port), (true, Instant::now()));
            let made = self.client.apply(change).await;
            drop(turn);
            let up = match made {
                Ok(()) => self.client.wait_up(name, Instant::now() + DIAL_TIME).await,
                refused => refused,
            };
            match up {
                Ok(()) => return,
                Err(status) => tracing::debug!(port = name, %status, "dialling again"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}
