//! Making, refreshing and removing a vWire: one transaction at the engine, then the workload's side of interfaces. Undo is here and
//! nowhere else.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tonic::{Code, Status};
use vwire_proto::dataplane::v1 as pb;
use vwire_proto::dataplane::v1::op::Op;

use super::client::{Change, Client};
use super::ends::{EndSpec, Prepared};
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
            orphans: Mutex::default(),
            turns: std::iter::repeat_with(Default::default).take(TURNS).collect(),
        }
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
        let mut configuring = Vec::new();
        for (side, spec) in [(Side::Server, &server), (Side::Client, &client)] {
            configuring.extend(spec.interface.clone().map(|(namespace, ifname, wanted)| Configuring {
                side,
                namespace,
                ifname,
                wanted,
                fresh: false,
            }));
        }
        let end = |side| before.as_ref().and_then(|record| record.end(side));
        let server = server.prepare(&self.client, id, Side::Server, end(Side::Server), deadline).await?;
        let client = client.prepare(&self.client, id, Side::Client, end(Side::Client), deadline).await?;
        for interface in &mut configuring {
            interface.fresh = if interface.side == Side::Server { server.fresh } else { client.fresh };
        }
        note.server_port.clone_from(&server.end.port.name);
        note.client_port.clone_from(&client.end.port.name);
        note.server_key.clone_from(&server.end.key);
        note.client_key.clone_from(&client.end.key);
        note.tables = before.as_ref().map(|record| record.note.tables.clone()).unwrap_or_default();

        self.apply(before.as_ref(), &server, &client, &note, &configuring).await?;
        let done = self.finish(before.as_ref(), &client, &mut note, configuring, deadline).await;
        match done {
            Ok(rules_in) => {
                let record = Record {
                    note,
                    server: Some(server.end),
                    client: Some(client.end),
                    rules_in,
                    adopted: false,
                };
                self.wanted.put(id, record);
                Ok(())
            }
            Err(status) => {
                self.undo(id, before, &server, &client).await;
                Err(status)
            }
        }
    }

    /// The transaction. An interface that is in the way because a forwarder before us died is removed by its alias.
    async fn apply(
        &self,
        before: Option<&Record>,
        server: &Prepared,
        client: &Prepared,
        note: &Note,
        interfaces: &[Configuring],
    ) -> Result<(), Status> {
        let change = || self.change(before, server, client, note);
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
    fn change(&self, before: Option<&Record>, server: &Prepared, client: &Prepared, note: &Note) -> Change {
        let mut change = Change::default();
        let joined = before.and_then(|record| self.joined(record));
        let kept = !server.fresh && !client.fresh;
        if let Some((a, b)) = joined.clone().filter(|_| !kept) {
            change.push(Op::RemoveXconnect(pb::Xconnect { a, b }));
        }
        for prepared in [server, client] {
            if let Some(port) = prepared.replaces.clone().filter(|port| self.client.link(port).is_some()) {
                change.push(Op::RemovePort(port));
            }
        }
        let note = note.encoded();
        if server.fresh {
            change.push(Op::SetPort(pb::Port { note, ..server.end.port.clone() }));
        } else {
            change.push(Op::SetNote(pb::SetNote { port: server.end.port.name.clone(), note }));
        }
        if client.fresh {
            change.push(Op::SetPort(client.end.port.clone()));
        }
        if !kept || joined.is_none() {
            let (a, b) = (server.end.port.name.clone(), client.end.port.name.clone());
            change.push(Op::AddXconnect(pb::Xconnect { a, b }));
        }
        change.fds.extend(server.fds.iter().chain(&client.fds).cloned());
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
        client: &Prepared,
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
        if client.must_come_up && failed.is_none() {
            let deadline = deadline.min(Instant::now() + LINK_TIME);
            failed = self.client.wait_up(&client.end.port.name, deadline).await.err();
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
    async fn undo(&self, id: &str, before: Option<Record>, server: &Prepared, client: &Prepared) {
        let mut change = Change::default();
        if !server.fresh && !client.fresh {
            return;
        }
        let (a, b) = (server.end.port.name.clone(), client.end.port.name.clone());
        change.push(Op::RemoveXconnect(pb::Xconnect { a, b }));
        for prepared in [server, client].into_iter().filter(|prepared| prepared.fresh) {
            change.push(Op::RemovePort(prepared.end.port.name.clone()));
        }
        if let Err(status) = self.client.apply(change).await {
            tracing::warn!(connection = id, %status, "undoing a Request that failed");
            let ports = [server, client].map(|prepared| prepared.end.port.name.clone());
            self.orphans.lock().unwrap_or_else(PoisonError::into_inner).extend(ports);
        }
        if let Some(mut record) = before {
            record.server = record.server.filter(|_| !server.fresh);
            record.client = record.client.filter(|_| !client.fresh);
            self.wanted.put(id, record);
        }
    }

    /// Ends a connection's vWire: ports, links, rules, network identifiers. Not an error if there is none.
    ///
    /// # Errors
    /// What the engine or the kernel refused; what else there was is removed all the same.
    pub async fn remove(&self, id: &str) -> Result<(), Status> {
        let _turn = self.turn(id).await;
        self.wanted.vnis.release(id, &[]);
        let Some(record) = self.wanted.remove(id) else { return Ok(()) };
        let ports: Vec<String> =
            record.server.iter().chain(&record.client).map(|end| end.port.name.clone()).collect();
        let mut change = Change::default();
        if let Some((a, b)) = self.joined(&record) {
            change.push(Op::RemoveXconnect(pb::Xconnect { a, b }));
        }
        for port in ports.iter().filter(|port| self.client.link(port).is_some()) {
            change.push(Op::RemovePort(port.clone()));
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

impl Configuring {
    async fn configure(self, tables: Vec<u32>) -> Result<(Side, Namespace, Vec<u32>), Status> {
        let Self { side, namespace, ifname, wanted, fresh } = self;
        let applied = namespace.run(move || kernel::configure(&ifname, &wanted, &tables, fresh)).await?;
        Ok((side, namespace, applied.tables))
    }
}
