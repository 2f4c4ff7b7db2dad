//! After a restart, ours or the engine's, and when links break.
//!
//! *We* restart: the records are read from the notes at the engine, and nothing is touched. *The engine* restarts: what can be made
//! again of what is held is made again; interfaces can't be, as their namespaces are not held, so their connections are reported down
//! and their clients, who have the namespaces, ask again. A connection that nobody refreshes ends.
//!
//! A memif's *client* may leave: it is the workload's own, and whoever connects next, to the same socket, goes on with the vWire. That
//! is no fault, and nobody is told. Its endpoint's memif is dialled again; if nobody listens there, the connection is reported down.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tonic::{Code, Status};
use vwire_proto::dataplane::v1 as pb;
use vwire_proto::dataplane::v1::op::Op;

use super::client::{Change, Event, Events};
use super::ends::DIAL_TIME;
use super::kernel::Side;
use super::memif_socket;
use super::note::Note;
use super::transact::Dataplane;
use super::wanted::{End, Record, Redial};
use crate::api::connection::Connection;
use crate::chain::{Call, ChainHandle};

/// Between looks for a memif's listener after its connection broke.
const PAUSE: Duration = Duration::from_millis(10);
/// Longer than `timeout` waits: what is still there then has no timer any more.
const GRACE: i64 = 5;
/// Between looks for what has expired.
const LOOK: Duration = Duration::from_secs(1);
/// How long a Close that an expiry started may take.
const CLOSE_TIME: Duration = Duration::from_secs(15);

/// Who is told that a connection is down, by its id, and why.
pub type OnDown = Box<dyn Fn(&str, &str) + Send + Sync>;

impl Dataplane {
    /// Takes over what an earlier forwarder of our name left at the engine. Returns the records' notes.
    pub fn adopt(&self, snapshot: &pb::GetSnapshotResponse) -> Vec<Note> {
        let Some(state) = &snapshot.state else { return Vec::new() };
        let ports: HashMap<&str, &pb::Port> =
            state.ports.iter().map(|port| (port.name.as_str(), port)).collect();
        let relays: HashMap<&str, &pb::Relay> =
            state.relays.iter().map(|relay| (relay.name.as_str(), relay)).collect();
        let mut notes = Vec::new();
        for note in Note::all(state, &self.owner) {
            let Some(id) = note.id().map(str::to_owned) else { continue };
            let end = |name: &str, key: &str| {
                let relay = relays.get(name).map(|relay| pb::Relay { note: Vec::new(), ..(*relay).clone() });
                let port = match (ports.get(name), &relay) {
                    (Some(port), _) => pb::Port { note: Vec::new(), ..(*port).clone() },
                    (None, Some(_)) => pb::Port { name: name.to_owned(), ..Default::default() },
                    (None, None) => return None,
                };
                Some(End { key: key.to_owned(), port, relay, fds: Vec::new(), redial: None, interface: None })
            };
            let record = Record {
                server: end(&note.server_port, &note.server_key),
                client: end(&note.client_port, &note.client_key),
                note: note.clone(),
                rules_in: None,
                adopted: true,
            };
            for (peer, vni) in record.tunnels() {
                self.wanted.vnis.take(peer, vni, &id);
            }
            self.wanted.put(&id, record);
            notes.push(note);
        }
        notes
    }
}

/// Follows the engine's events, and ends what has expired.
pub struct Keeper {
    dataplane: Arc<Dataplane>,
    chain: ChainHandle,
    down: OnDown,
    instance: u64,
    up: HashSet<String>,
}

impl Keeper {
    /// Of connections made by `chain`. `snapshot` is the engine's state that was adopted.
    pub fn new(
        dataplane: Arc<Dataplane>,
        chain: ChainHandle,
        down: OnDown,
        snapshot: &pb::GetSnapshotResponse,
    ) -> Self {
        let up = snapshot.links.iter().filter(|link| link.up).map(|link| link.port.clone()).collect();
        Self { dataplane, chain, down, instance: snapshot.instance, up }
    }

    /// Runs until the engine's client is gone.
    pub async fn run(mut self, mut events: Events) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (done, mut repaired) = tokio::sync::mpsc::unbounded_channel::<(String, Status)>();
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.hear(event, &done).await,
                    None => return,
                },
                Some((id, status)) = repaired.recv() => (self.down)(&id, status.message()),
                _ = look.tick() => self.expire(),
            }
        }
    }

    async fn hear(&mut self, event: Event, done: &tokio::sync::mpsc::UnboundedSender<(String, Status)>) {
        match event {
            Event::Lost => {
                tracing::warn!("the packet engine does not answer; what it forwards, it may still forward")
            }
            Event::Engine(snapshot) => {
                self.dataplane.remove_orphans().await;
                if snapshot.instance != self.instance {
                    tracing::warn!("the packet engine is another one; making again what can be made");
                    self.instance = snapshot.instance;
                }
                let there: HashSet<&str> = snapshot.links.iter().map(|link| link.port.as_str()).collect();
                for id in self.dataplane.wanted.ids() {
                    let Some(record) = self.dataplane.wanted.get(&id) else { continue };
                    let missing = record
                        .server
                        .iter()
                        .chain(&record.client)
                        .any(|end| !there.contains(end.port.name.as_str()));
                    if missing {
                        self.repair(id, None, done);
                    }
                }
                self.up = snapshot.links.into_iter().filter(|link| link.up).map(|link| link.port).collect();
            }
            Event::Link(link) if link.up => {
                self.up.insert(link.port);
            }
            Event::Link(link) => {
                // A memif that has never been up is waiting for its peer.
                if self.up.remove(&link.port)
                    && let Some((id, side)) = self.dataplane.wanted.owner(&link.port)
                {
                    tracing::info!(connection = id, port = link.port, reason = link.reason, "a link is down");
                    self.repair(id, Some((side, link.reason)), done);
                }
            }
        }
    }

    /// Makes again what is missing of a connection, beside the rest of the work; who can't be helped is reported.
    fn repair(
        &self,
        id: String,
        broken: Option<(Side, String)>,
        done: &tokio::sync::mpsc::UnboundedSender<(String, Status)>,
    ) {
        let (dataplane, done) = (Arc::clone(&self.dataplane), done.clone());
        tokio::spawn(async move {
            let repaired = match broken {
                Some((side, reason)) => dataplane.redial(&id, side, &reason).await,
                None => dataplane.remake(&id).await,
            };
            if let Err(status) = repaired {
                // Nobody listens when the forwarder is stopping.
                let _ = done.send((id, status));
            }
        });
    }

    /// Ends connections whose clients are gone, and that no element has a timer for: we have restarted since.
    fn expire(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs() as i64);
        for id in self.dataplane.wanted.ids() {
            let Some(record) = self.dataplane.wanted.get(&id) else { continue };
            let grace = if record.adopted { 0 } else { GRACE };
            if record.note.expires + grace > now {
                continue;
            }
            tracing::info!(connection = id, "nobody has refreshed it; it ends");
            let (dataplane, chain) = (Arc::clone(&self.dataplane), self.chain.clone());
            tokio::spawn(async move {
                let mut call = Call::internal("expiry", CLOSE_TIME);
                if let Some(chain) = chain.upgrade() {
                    let connection = Connection { id: id.clone(), ..Default::default() };
                    let _ = chain.close(&mut call, connection).await;
                }
                // Unknown to the chain, or refused by one of its elements.
                if let Err(status) = dataplane.remove(&id).await {
                    tracing::warn!(connection = id, %status, "removing what has expired");
                }
            });
        }
    }
}

impl Dataplane {
    /// Makes both ports of a connection again at an engine that does not know them.
    async fn remake(&self, id: &str) -> Result<(), Status> {
        let _turn = self.turn(id).await;
        let Some(record) = self.wanted.get(id) else { return Ok(()) };
        let note = record.note.encoded();
        let relayed = record.server.as_ref().is_some_and(|end| end.relay.is_some());
        if record.server.is_none() || record.client.is_none() && !relayed {
            return Err(Status::unavailable("an end of it could not be made"));
        }
        let mut change = Change::default();
        for (at, end) in record.ends().enumerate() {
            if self.client.link(&end.port.name).is_none() {
                revive(end, if at == 0 { note.clone() } else { Vec::new() }, &mut change)?;
            }
        }
        if change.ops.is_empty() {
            return Ok(());
        }
        if let (Some(server), Some(client)) = (&record.server, &record.client) {
            let (a, b) = (server.port.name.clone(), client.port.name.clone());
            change.push(Op::AddXconnect(pb::Xconnect { a, b }));
        }
        self.client.apply(change).await?;
        tracing::info!(connection = id, "made again at the new packet engine");
        Ok(())
    }

    /// Dials a memif again whose connection broke. Not in the connection's turn while it waits for a listener or for the handshake: the
    /// Request that leads elsewhere must not wait for an endpoint that is gone.
    async fn redial(&self, id: &str, side: Side, reason: &str) -> Result<(), Status> {
        let Some(end) = self.end(id, side) else { return Ok(()) };
        if end.listens() {
            return Ok(());
        }
        let Some(redial) = &end.redial else {
            return Err(Status::unavailable(format!(
                "the link on the {} side is down: {reason}",
                side.name()
            )));
        };
        let dialled = match end.relay {
            // Which of the two has left is best asked of the endpoint.
            Some(_) => {
                memif_socket::connect(&redial.namespace, &redial.socket, Instant::now()).await.map(drop)
            }
            None => self.dial_again(id, side, &end, redial).await,
        };
        let superseded = || self.end(id, side).is_none_or(|now| !now.dials_as(&end));
        if superseded() { Ok(()) } else { dialled }
    }

    async fn dial_again(&self, id: &str, side: Side, broken: &End, redial: &Redial) -> Result<(), Status> {
        let until = Instant::now() + DIAL_TIME;
        loop {
            let turn = self.turn(id).await;
            let name = &broken.port.name;
            let is_done = self.client.link(name).is_some_and(|link| link.up);
            let Some(end) = self.end(id, side).filter(|end| end.dials_as(broken) && !is_done) else {
                return Ok(());
            };
            let mut change = Change::default();
            change.push_dialled(end.port, redial.clone(), Instant::now());
            let made = self.client.apply(change).await;
            drop(turn);
            match made {
                Ok(()) => return self.client.wait_up(name, until).await,
                // Nobody listens yet.
                Err(status) if status.code() == Code::Unavailable && Instant::now() + PAUSE < until => {
                    tokio::time::sleep(PAUSE).await;
                }
                Err(status) => return Err(status),
            }
        }
    }

    fn end(&self, id: &str, side: Side) -> Option<End> {
        self.wanted.get(id)?.end(side).cloned()
    }
}

/// What makes an end's port again.
fn revive(end: &End, note: Vec<u8>, change: &mut Change) -> Result<(), Status> {
    let lost = |what: &str| Status::unavailable(format!("its memif {what} not held here"));
    match (&end.relay, &end.port.kind, &end.redial) {
        (Some(_), ..) if end.fds.is_empty() => return Err(lost("sockets are")),
        (None, Some(pb::port::Kind::Memif(_)), Some(to)) => {
            let port = pb::Port { note, ..end.port.clone() };
            change.push_dialled(port, to.clone(), Instant::now() + DIAL_TIME);
            return Ok(());
        }
        (None, Some(pb::port::Kind::Memif(_)), None) if end.fds.is_empty() => return Err(lost("socket is")),
        (Some(_), ..) | (None, Some(pb::port::Kind::Memif(_) | pb::port::Kind::Vxlan(_)), _) => {}
        _ => {
            return Err(Status::unavailable(
                "its interface is gone with the packet engine; its owner has to ask again",
            ));
        }
    }
    change.fds.extend(end.fds.iter().cloned());
    change.push(end.set(note));
    Ok(())
}
