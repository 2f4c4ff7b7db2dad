//! Making, refreshing and removing a vWire: one transaction at the engine, then the workload's side of interfaces. Undo is here and
//! nowhere else.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tonic::{Code, Status};
use vwire_proto::dataplane::v1 as pb;
use vwire_proto::dataplane::v1::op::Op;

use super::client::{Change, Client};
use super::ends::{DIAL_TIME, EndSpec, Make, Prepared};
use super::kernel::{self, Interface, Side};
use super::netns::Namespace;
use super::note::Note;
use super::wanted::{End, Record, Wanted};

/// How long a memif's other side may take to shake hands.
const LINK_TIME: Duration = Duration::from_secs(5);

/// The engine, and what we want of it.
pub struct Dataplane {
    /// The engine.
    pub client: Client,
    /// What each connection has there.
    pub wanted: Wanted,
    /// Our name in notes.
    pub owner: String,
    /// True if two memifs on this machine are handed through: their packets never meet the engine, and are not counted.
    direct: bool,
    /// Ports whose removal failed, because there was no engine.
    orphans: Mutex<BTreeSet<String>>,
    /// Requests of one connection wait for each other in `begin`; here they wait for repairs, too.
    turns: Vec<tokio::sync::Mutex<()>>,
}

/// Connections that share a turn wait for each other without need; seldom, with so many.
const TURNS: usize = 1024;

/// An interface that a Request wants configured.
struct Configuring {
    side: Side,
    namespace: Namespace,
    ifname: String,
    wanted: Interface,
    fresh: bool,
}

impl Dataplane {
    /// For the forwarder called `owner`.
    pub fn new(client: Client, owner: impl Into<String>) -> Self {
        Self {
            client,
            wanted: Wanted::default(),
            owner: owner.into(),
            direct: false,
            orphans: Mutex::default(),
            turns: std::iter::repeat_with(Default::default).take(TURNS).collect(),
        }
    }

    /// Hands two memifs on this machine through to each other, or not.
    #[must_use]
    pub fn direct_memif(self, direct: bool) -> Self {
        Self { direct, ..self }
    }

    /// Waits until nobody else changes the connection.
    pub(super) async fn turn(&self, id: &str) -> tokio::sync::MutexGuard<'_, ()> {
        let hash =
            id.bytes().fold(0_usize, |hash, byte| hash.wrapping_mul(31).wrapping_add(usize::from(byte)));
        self.turns[hash % TURNS].lock().await
    }

    /// Makes a connection's vWire what the two ends say; what agrees is not touched. On an error, what this call added is gone again.
    ///
    /// # Errors
    /// What the engine or the kernel refused, by name.
    pub async fn set(
        &self,
        id: &str,
        (server, client): (EndSpec, EndSpec),
        mut note: Note,
        deadline: Instant,
    ) -> Result<(), Status> {
        let _turn = self.turn(id).await;
        let before = self.wanted.get(id);
        let mut ends = Vec::new();
        let mut configuring = Vec::new();
        for (side, spec) in self.specs(server, client) {
            let interface = spec.interface.clone();
            let end = before.as_ref().and_then(|record| record.end(side));
            let prepared = spec.prepare(&self.client, id, side, end, deadline).await?;
            configuring.extend(interface.map(|(namespace, ifname, wanted)| Configuring {
                side,
                namespace,
                ifname,
                wanted,
                fresh: prepared.fresh,
            }));
            ends.push(prepared);
        }
        let named = |at: usize| ends.get(at).map(|end| (end.end.port.name.clone(), end.end.key.clone()));
        (note.server_port, note.server_key) = named(0).unwrap_or_default();
        (note.client_port, note.client_key) = named(1).unwrap_or_default();
        note.tables = before.as_ref().map(|record| record.note.tables.clone()).unwrap_or_default();

        self.make(id, before.as_ref(), &ends, &note, &configuring, deadline).await?;
        match self.finish(before.as_ref(), &ends, &mut note, configuring, deadline).await {
            Ok(rules_in) => {
                let mut ends = ends.into_iter().map(|prepared| prepared.end);
                let (server, client) = (ends.next(), ends.next());
                self.wanted.put(id, Record { note, server, client, rules_in, adopted: false });
                Ok(())
            }
            Err(status) => {
                self.undo(id, before, &ends).await;
                Err(status)
            }
        }
    }

    /// Two memifs are handed through if that is wanted; else each end has a port.
    fn specs(&self, server: EndSpec, client: EndSpec) -> Vec<(Side, EndSpec)> {
        match (&server.make, &client.make) {
            (Make::MemifServer { socket }, Make::MemifClient { socket: to }) if self.direct => {
                let (socket, to, endpoint) = (socket.clone(), to.clone(), client.namespace);
                vec![(Side::Server, EndSpec { make: Make::Relay { socket, endpoint, to }, ..server })]
            }
            _ => vec![(Side::Server, server), (Side::Client, client)],
        }
    }

    /// The transaction; or two, where an interface is made and a memif dialled: the memif's server would not wait for the interface,
    /// which can take seconds where many are made at the same time.
    async fn make(
        &self,
        id: &str,
        before: Option<&Record>,
        ends: &[Prepared],
        note: &Note,
        interfaces: &[Configuring],
        deadline: Instant,
    ) -> Result<(), Status> {
        let patience = || deadline.min(Instant::now() + DIAL_TIME);
        let whole = || self.change(before, ends, note, patience());
        let [first, Prepared { end, dial: Some(to), .. }] = ends else {
            return self.apply(whole, interfaces).await;
        };
        if !whole().slow {
            return self.apply(whole, interfaces).await;
        }
        self.apply(|| self.change(before, &ends[..1], note, patience()), interfaces).await?;
        let mut change = Change::default();
        change.push_dialled(end.port.clone(), to.clone(), patience());
        let (a, b) = (first.end.port.name.clone(), end.port.name.clone());
        change.push(Op::AddXconnect(pb::Xconnect { a, b }));
        let joined = self.client.apply(change).await;
        if joined.is_err() {
            self.undo(id, before.cloned(), ends).await;
        }
        joined
    }

    /// One transaction. An interface that is in the way because a forwarder before us died is removed by its alias.
    async fn apply(&self, change: impl Fn() -> Change, interfaces: &[Configuring]) -> Result<(), Status> {
        let refused = match self.client.apply(change()).await {
            Err(refused)
                if refused.code() == Code::FailedPrecondition && refused.message().contains("exist") =>
            {
                refused
            }
            other => return other,
        };
        let mut removed = false;
        for interface in interfaces.iter().filter(|interface| interface.fresh) {
            let (ifname, alias) = (interface.ifname.clone(), interface.wanted.alias.clone());
            let leftover = interface.namespace.run(move || kernel::apply::remove_leftover(&ifname, &alias));
            removed |= leftover.await?;
        }
        if removed { self.client.apply(change()).await } else { Err(refused) }
    }

    /// From what there was to what there shall be.
    fn change(&self, before: Option<&Record>, ends: &[Prepared], note: &Note, until: Instant) -> Change {
        let mut change = Change::default();
        let joined = before.and_then(|record| self.joined(record));
        let join = match ends {
            [a, b] => Some((a.end.port.name.clone(), b.end.port.name.clone())),
            _ => None,
        };
        if joined != join {
            change.ops.extend(joined.clone().map(|(a, b)| op(Op::RemoveXconnect(pb::Xconnect { a, b }))));
        }
        let stays = |end: &End| ends.iter().any(|new| new.end.port.name == end.port.name);
        let there = |end: &&End| self.client.link(&end.port.name).is_some();
        let leaving = before.into_iter().flat_map(Record::ends).filter(|end| !stays(end)).filter(there);
        leaving.for_each(|end| change.remove(end));
        for (at, prepared) in ends.iter().enumerate() {
            let note = if at == 0 { note.encoded() } else { Vec::new() };
            if let Some(to) = &prepared.dial {
                change.push_dialled(pb::Port { note, ..prepared.end.port.clone() }, to.clone(), until);
            } else if prepared.fresh {
                change.push(prepared.end.set(note));
            } else if at == 0 {
                change.push(Op::SetNote(pb::SetNote { port: prepared.end.port.name.clone(), note }));
            }
            change.fds.extend(prepared.fds.iter().cloned());
        }
        if joined != join {
            change.ops.extend(join.map(|(a, b)| op(Op::AddXconnect(pb::Xconnect { a, b }))));
        }
        change
    }

    /// The cross-connect of a connection both of whose ports are there.
    fn joined(&self, record: &Record) -> Option<(String, String)> {
        let (a, b) = (record.server.as_ref()?, record.client.as_ref()?);
        let there = |end: &End| self.client.link(&end.port.name).is_some();
        (there(a) && there(b)).then(|| (a.port.name.clone(), b.port.name.clone()))
    }

    /// What comes after the transaction: interfaces get their addresses, and what was dialled comes up. Returns the namespace that has
    /// rules of ours.
    async fn finish(
        &self,
        before: Option<&Record>,
        ends: &[Prepared],
        note: &mut Note,
        interfaces: Vec<Configuring>,
        deadline: Instant,
    ) -> Result<Option<Namespace>, Status> {
        let tables = note.tables.clone();
        let configured = futures::future::join_all(interfaces.into_iter().map(|interface| {
            let tables = if interface.side == Side::Server { tables.clone() } else { Vec::new() };
            interface.configure(tables)
        }));
        let mut rules_in = before.and_then(|record| record.rules_in.clone());
        let mut failed = None;
        for done in configured.await {
            match done {
                Ok((Side::Server, namespace, made)) => {
                    rules_in = (!made.is_empty()).then_some(namespace);
                    note.tables = made;
                }
                Ok(_) => {}
                Err(status) => failed = Some(status),
            }
        }
        if note.tables != tables && failed.is_none() {
            let mut change = Change::default();
            change.push(Op::SetNote(pb::SetNote { port: note.server_port.clone(), note: note.encoded() }));
            failed = self.client.apply(change).await.err();
        }
        for dialled in ends.iter().filter(|end| end.dial.is_some()) {
            let deadline = deadline.min(Instant::now() + LINK_TIME);
            if failed.is_none() {
                failed = self.client.wait_up(&dialled.end.port.name, deadline).await.err();
            }
        }
        match failed {
            None => Ok(rules_in),
            Some(status) => {
                // Rules that were there before stay: the connection is refreshed, or closed, later.
                if before.is_none_or(|record| record.note.tables.is_empty())
                    && let Some(namespace) = rules_in
                {
                    let tables = std::mem::take(&mut note.tables);
                    let _ = namespace.run(move || kernel::unconfigure(&tables)).await;
                }
                Err(status)
            }
        }
    }

    /// Removes what a failed Request added. What it had replaced can't be had back; the next Request makes it anew.
    async fn undo(&self, id: &str, before: Option<Record>, ends: &[Prepared]) {
        let added: BTreeSet<String> =
            ends.iter().filter(|end| end.fresh).map(|end| end.end.port.name.clone()).collect();
        if added.is_empty() {
            return;
        }
        if let Err(status) = self.remove_ports(&added).await {
            tracing::warn!(connection = id, %status, "undoing a Request that failed");
            self.orphans.lock().unwrap_or_else(PoisonError::into_inner).extend(added);
        }
        if let Some(mut record) = before {
            let kept = |end: &End| ends.iter().any(|new| !new.fresh && new.end.port.name == end.port.name);
            record.server = record.server.filter(kept);
            record.client = record.client.filter(kept);
            self.wanted.put(id, record);
        }
    }

    /// Ends a connection's vWire: ports, links, rules, network identifiers. Not an error if there is none.
    ///
    /// # Errors
    /// What the engine or the kernel refused; what else there was is removed all the same.
    pub async fn remove(&self, id: &str) -> Result<(), Status> {
        let _turn = self.turn(id).await;
        let Some(record) = self.wanted.remove(id) else {
            self.wanted.vnis.release(id, &[]);
            return Ok(());
        };
        let ports: Vec<String> = record.ends().map(|end| end.port.name.clone()).collect();
        let mut change = Change::default();
        if let Some((a, b)) = self.joined(&record) {
            change.push(Op::RemoveXconnect(pb::Xconnect { a, b }));
        }
        for end in record.ends().filter(|end| self.client.link(&end.port.name).is_some()) {
            change.remove(end);
        }
        let removed = match self.client.apply(change).await {
            Err(status) if status.code() == Code::Unavailable => {
                self.orphans.lock().unwrap_or_else(PoisonError::into_inner).extend(ports);
                Ok(())
            }
            // What was known of the links was out of date.
            Err(_) => self.remove_ports(&ports.into_iter().collect()).await,
            done => done,
        };
        // Not before: the next who gets them must not come to the engine while these ports are there.
        self.wanted.vnis.release(id, &[]);
        let tables = record.note.tables.clone();
        let unconfigured = match record.rules_in.filter(|_| !tables.is_empty()) {
            Some(namespace) => namespace.run(move || kernel::unconfigure(&tables)).await,
            None => Ok(()),
        };
        removed.and(unconfigured)
    }

    /// Frees network identifiers that were taken for a connection and that none of its tunnels has: those of a Request that failed, and
    /// of a next hop that was left.
    pub fn keep_numbers(&self, id: &str) {
        let keep = self.wanted.get(id).map(|record| record.tunnels()).unwrap_or_default();
        self.wanted.vnis.release(id, &keep);
    }

    /// Removes those of the ports that are there.
    async fn remove_ports(&self, ports: &BTreeSet<String>) -> Result<(), Status> {
        let state = self.client.snapshot().await?.state.unwrap_or_default();
        let mut change = Change::default();
        for join in
            state.xconnects.into_iter().filter(|join| ports.contains(&join.a) || ports.contains(&join.b))
        {
            change.push(Op::RemoveXconnect(join));
        }
        for port in state.ports.into_iter().filter(|port| ports.contains(&port.name)) {
            change.push(Op::RemovePort(port.name));
        }
        for relay in state.relays.into_iter().filter(|relay| ports.contains(&relay.name)) {
            change.push(Op::RemoveRelay(relay.name));
        }
        self.client.apply(change).await
    }

    /// Removes what could not be removed while there was no engine.
    pub async fn remove_orphans(&self) {
        let orphans = std::mem::take(&mut *self.orphans.lock().unwrap_or_else(PoisonError::into_inner));
        if orphans.is_empty() {
            return;
        }
        if let Err(status) = self.remove_ports(&orphans).await {
            tracing::warn!(%status, "removing ports of connections that have ended");
            self.orphans.lock().unwrap_or_else(PoisonError::into_inner).extend(orphans);
        }
    }
}

fn op(op: Op) -> pb::Op {
    pb::Op { op: Some(op) }
}

impl Configuring {
    async fn configure(self, tables: Vec<u32>) -> Result<(Side, Namespace, Vec<u32>), Status> {
        let Self { side, namespace, ifname, wanted, fresh } = self;
        let applied = namespace.run(move || kernel::configure(&ifname, &wanted, &tables, fresh)).await?;
        Ok((side, namespace, applied.tables))
    }
}
