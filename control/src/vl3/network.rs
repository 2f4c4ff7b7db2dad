//! What the parts of an endpoint share, and the tasks that tell its clients what has changed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{Notify, watch};
use tonic::Status;
use vwire_proto::nsm::connection::Connection;

use super::addresses::Addresses;
use super::mtu::NetworkMtu;
use super::record::Record;
use super::router::{Restored, Router};
use super::server::{attachment, port_name};
use crate::chain::{Call, ChainHandle, State};
use crate::dataplane::netns::Namespace;
use crate::elements::{Begin, Hub};
use crate::ipam::Grant;

/// Between looks for what has expired.
const LOOK: Duration = Duration::from_secs(1);
/// How long a Close that an expiry started may take.
const CLOSE_TIME: Duration = Duration::from_secs(15);
/// Between two times that a client is asked to refresh: doubled from the first to the last.
const FIRST_REMINDER: Duration = Duration::from_secs(1);
const LAST_REMINDER: Duration = Duration::from_secs(60);
/// Between attempts to give an engine what it could not take.
const AGAIN: Duration = Duration::from_millis(100);

/// One endpoint's part of a virtual network.
///
/// Other parts plug in here: `peers` attaches ports of its own to [`router`](Self::router) (a peer is a port with its prefix as route),
/// takes part in the MTU by [`mtu`](Self::mtu) (`limit` in each Request, `put` after each answer, `watch` to refresh when it is lower),
/// announces [`addresses`](Self::addresses)`.grants()`, and judges, at its gate, what peers announce.
pub struct Network {
    /// The routing domain.
    pub router: Arc<Router>,
    /// Who has which address.
    pub addresses: Arc<Addresses>,
    /// The MTU of all.
    pub mtu: Arc<NetworkMtu>,
    /// Where memifs' sockets are.
    pub namespace: Namespace,
    /// Our clients' connections.
    pub hub: Arc<Hub>,
    /// Connections of an earlier process of ours that nobody has asked for yet.
    pub(super) orphans: Orphans,
    gateways_turn: tokio::sync::Mutex<()>,
    another_prefix: Notify,
}

/// When each of them ends, in seconds since 1970.
#[derive(Default)]
pub(super) struct Orphans(Mutex<HashMap<String, i64>>);

impl Orphans {
    pub(super) fn remove(&self, id: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    fn insert(&self, id: &str, expires: i64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned(), expires);
    }

    fn expired(&self, now: i64) -> Vec<String> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().filter(|(_, expires)| **expires <= now).map(|(id, _)| id.clone()).collect()
    }
}

impl Network {
    /// Of these parts, with addresses of so many prefix servers.
    pub fn new(router: Arc<Router>, slots: usize, namespace: Namespace, hub: Arc<Hub>) -> Self {
        Self {
            router,
            addresses: Arc::new(Addresses::new(slots)),
            mtu: Arc::default(),
            namespace,
            hub,
            orphans: Orphans::default(),
            gateways_turn: tokio::sync::Mutex::default(),
            another_prefix: Notify::new(),
        }
    }

    /// Makes the domain answer at the addresses that are ours.
    ///
    /// # Errors
    /// The engine's.
    pub async fn answer_at_gateways(&self) -> Result<(), Status> {
        let _turn = self.gateways_turn.lock().await;
        self.router.set_gateways(&self.addresses.gateways()).await
    }

    /// Takes over what an earlier process of ours had established; nothing of it is touched. Returns the ports that are not clients': those
    /// to other endpoints. To be called before any prefix is granted.
    pub async fn take_over(&self, restored: Vec<Restored>, begin: &Begin) -> Vec<Restored> {
        let mut others = Vec::new();
        for port in restored {
            let record = Record::read(&port.note);
            match record.as_ref().and_then(|record| Some((record, record.connection.as_ref()?))) {
                Some((record, connection)) if port_name(&connection.id) == port.port => {
                    self.take_over_one(&port, record, connection, begin).await;
                }
                _ => others.push(port),
            }
        }
        others
    }

    async fn take_over_one(&self, port: &Restored, record: &Record, connection: &Connection, begin: &Begin) {
        use crate::api::path::{self, PathExt};
        let root = path::of(connection).root_id();
        let mut wanted = attachment(self, connection, &port.routes, record);
        (wanted.mtu, wanted.note) = (port.mtu, port.note.clone());
        if let Err(status) = self.router.attach(&port.port, wanted).await {
            tracing::warn!(connection = root, %status, "a connection of an earlier process of ours is lost");
            return;
        }
        self.addresses.restore(&connection.id, record.held());
        self.mtu.put(&connection.id, port.mtu);
        if record.expires > 0 {
            self.orphans.insert(&connection.id, record.expires);
        }
        let caller = record.caller.parse().ok();
        tracing::info!(connection = root, "taken over");
        self.hub.update(connection.clone(), caller.as_ref());
        let client = Some(record.client.clone()).filter(|client| !client.is_empty());
        begin.adopt(connection.clone(), caller, client, State::default());
    }

    /// Asks those to refresh who have an address of a prefix that is no more, or a greater MTU than the network; again, with growing
    /// pauses, until they have. (A hop that does not know the connection yet, because its first Request is under way, hears nothing.)
    pub async fn ask_the_late(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = self.another_prefix.notified() => {}
                () = self.mtu.some_too_large() => {}
            }
            let mut pause = FIRST_REMINDER;
            while self.ask_once() {
                tokio::select! {
                    () = tokio::time::sleep(pause) => pause = (pause * 2).min(LAST_REMINDER),
                    () = self.another_prefix.notified() => {}
                }
            }
        }
    }

    /// False if nobody is late.
    fn ask_once(&self) -> bool {
        let prefixes = self.addresses.prefixes();
        let has_former = |id: &str| {
            let held = self.addresses.held(id).unwrap_or_default();
            held.iter().zip(&prefixes).any(|(held, now)| held.is_some_and(|held| Some(held.prefix) != *now))
        };
        let (mtu, too_large) = (self.mtu.get(), self.mtu.too_large());
        let mut late = false;
        for connection in self.hub.connections() {
            use crate::api::path::{self, PathExt};
            let (prefix, size) = (has_former(&connection.id), too_large.contains(&connection.id));
            if prefix || size {
                late = true;
                let root = path::of(&connection).root_id();
                tracing::info!(
                    connection = root,
                    prefix,
                    mtu = size,
                    "asked to refresh: the network has changed"
                );
                self.hub.ask_to_refresh(&connection.id, |connection| {
                    let context = connection.context.get_or_insert_default();
                    context.mtu = if size { mtu } else { context.mtu };
                });
            }
        }
        late || !too_large.is_empty()
    }

    /// Follows one prefix server until it is gone: its first prefix, and each in its place.
    pub async fn follow_prefix(self: Arc<Self>, slot: usize, mut grants: watch::Receiver<Option<Grant>>) {
        loop {
            let grant = grants.borrow_and_update().clone();
            if let Some(grant) = grant {
                self.addresses.grant(slot, grant.clone());
                while let Err(status) = self.answer_at_gateways().await {
                    tracing::warn!(%status, prefix = %grant.prefix, "the network's address is not answered at yet");
                    tokio::time::sleep(AGAIN).await;
                }
                self.another_prefix.notify_one();
            }
            if grants.changed().await.is_err() {
                return;
            }
        }
    }

    /// Follows the network's MTU for as long as it is polled: ports send nothing longer.
    pub async fn follow_mtu(self: Arc<Self>) {
        let mut seen = self.mtu.watch();
        loop {
            let mtu = *seen.borrow_and_update();
            if let Err(status) = self.router.lower_mtu(mtu).await {
                tracing::warn!(%status, mtu, "not all ports have the network's MTU; they get it when the engine is back");
            }
            if seen.changed().await.is_err() {
                return;
            }
        }
    }

    /// Ends connections of an earlier process of ours whose clients do not come back, for as long as it is polled.
    pub async fn expire(self: Arc<Self>, chain: ChainHandle) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs() as i64);
            for id in self.orphans.expired(now) {
                let Some(chain) = chain.upgrade() else { return };
                self.orphans.remove(&id);
                tracing::info!(segment = id, "nobody has refreshed it since we started; it ends");
                let mut call = Call::internal("expiry", CLOSE_TIME);
                let connection = Connection { id: id.clone(), ..Default::default() };
                if let Err(status) = chain.close(&mut call, connection).await {
                    tracing::warn!(segment = id, %status, "closing what has expired");
                }
            }
        }
    }
}
