//! Many changes in one transaction, or at the same time.
//!
//! While a transaction is under way, changes gather; the next takes them all. If it is refused, each is tried alone, so that only the
//! one at fault fails; but a change with memif connections, which one attempt uses up, goes back to whoever can make new ones. A change
//! that the kernel takes long over is a transaction of its own, and nobody waits for it: the engine does several of them at the same
//! time, and those that are too many wait beside the queue.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tonic::{Code, Status};
use vwire_dataplane::fdpass::identify;
use vwire_proto::dataplane::v1 as pb;
use vwire_proto::dataplane::v1::dataplane_client::DataplaneClient;

use super::connection::{Connection, Connector};
use super::{Change, Queued, Refused};
use crate::transport::SharedFd;

/// Operations of one transaction; the engine takes 4096.
const MAX_OPS: usize = 2048;
/// Descriptors of one transaction; the engine keeps 256 of a connection.
const MAX_FDS: usize = 128;
/// Slow changes at the same time. Each has two descriptors at most, and the engine takes 64 calls of one connection.
const SLOW: usize = 48;

/// Makes changes until nobody can queue any more.
pub async fn serve(mut queue: mpsc::Receiver<Queued>, connector: Arc<Connector>) {
    let (slow, waiting) = (JoinSet::new(), VecDeque::new());
    let mut applier = Applier { connector, connection: None, opened: 0, slow, waiting };
    let mut left = None;
    loop {
        applier.begin_slow().await;
        let first = match left.take() {
            Some(left) => left,
            None => tokio::select! {
                first = queue.recv() => match first {
                    Some(first) => first,
                    None => return,
                },
                Some(done) = applier.slow.join_next() => {
                    applier.ended(done.ok().flatten());
                    continue;
                }
            },
        };
        if first.change.slow {
            applier.waiting.push_back(first);
            continue;
        }
        let mut batch = vec![first];
        let size = |batch: &[Queued]| {
            let count = |one: &Queued| (one.change.ops.len(), one.change.fds.len());
            batch.iter().map(count).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
        };
        while !batch[0].alone
            && let Ok(next) = queue.try_recv()
        {
            let (ops, fds) = size(&batch);
            let full = ops + next.change.ops.len() > MAX_OPS || fds + next.change.fds.len() > MAX_FDS;
            if full || next.change.slow || next.alone {
                left = Some(next);
                break;
            }
            batch.push(next);
        }
        applier.batch(batch).await;
    }
}

/// How many times we connected before; tells a connection that is no longer used from the one that has taken its place.
type Opened = u64;

struct Applier {
    connector: Arc<Connector>,
    connection: Option<Connection>,
    opened: Opened,
    /// Slow changes under way. Those that fail say which connection is not to be used again.
    slow: JoinSet<Option<Opened>>,
    /// Slow changes that there is no room for yet.
    waiting: VecDeque<Queued>,
}

impl Applier {
    async fn batch(&mut self, batch: Vec<Queued>) {
        let changes: Vec<&Change> = batch.iter().map(|one| &one.change).collect();
        let result = self.apply(&changes).await;
        tracing::trace!(changes = batch.len(), ok = result.is_ok(), "transaction");
        let refused = result.as_ref().is_err_and(|status| status.code() != Code::Unavailable);
        if batch.len() == 1 || !refused {
            batch.into_iter().for_each(|one| drop(one.done.send(result.clone().map_err(Refused::By))));
            return;
        }
        for one in batch {
            let result = match one.change.dials.is_empty() {
                true => self.apply(&[&one.change]).await.map_err(Refused::By),
                false => Err(Refused::BesideOthers),
            };
            let _ = one.done.send(result);
        }
    }

    async fn apply(&mut self, changes: &[&Change]) -> Result<(), Status> {
        let (call, opened) = self.call(changes).await?;
        let (result, usable) = call.made().await;
        if !usable {
            self.leave(opened);
        }
        result
    }

    /// Begins as many slow changes as there is room for.
    async fn begin_slow(&mut self) {
        while self.slow.len() < SLOW
            && let Some(one) = self.waiting.pop_front()
        {
            match self.call(&[&one.change]).await {
                Err(status) => drop(one.done.send(Err(Refused::By(status)))),
                Ok((call, opened)) => {
                    self.slow.spawn(async move {
                        let (result, usable) = call.made().await;
                        let _ = one.done.send(result.map_err(Refused::By));
                        (!usable).then_some(opened)
                    });
                }
            }
        }
    }

    fn ended(&mut self, unusable: Option<Opened>) {
        if let Some(opened) = unusable {
            self.leave(opened);
        }
    }

    /// Connects anew for the next call. Calls under way on the old connection go on.
    fn leave(&mut self, opened: Opened) {
        if self.opened == opened {
            self.connection = None;
        }
    }

    /// Sends what `changes` need and makes one call of them.
    async fn call(&mut self, changes: &[&Change]) -> Result<(Call, Opened), Status> {
        while let Some(done) = self.slow.try_join_next() {
            self.ended(done.ok().flatten());
        }
        let mut fds: BTreeMap<_, &SharedFd> = BTreeMap::new();
        for fd in changes.iter().flat_map(|change| &change.fds) {
            fds.insert(identify(fd)?, fd);
        }
        let ops: Vec<pb::Op> = changes.iter().flat_map(|change| change.ops.iter().cloned()).collect();
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => {
                self.opened += 1;
                none.insert(self.connector.open().await?)
            }
        };
        for fd in fds.values() {
            if let Err(error) = connection.fds.send(fd) {
                self.connection = None;
                return Err(error.into());
            }
        }
        Ok((Call { client: connection.client.clone(), ops, fds: !fds.is_empty() }, self.opened))
    }
}

/// A transaction about to be made.
struct Call {
    client: DataplaneClient<Channel>,
    ops: Vec<pb::Op>,
    /// Descriptors have been sent for it.
    fds: bool,
}

impl Call {
    /// Makes it. Returns also whether the connection can be used again.
    async fn made(mut self) -> (Result<(), Status>, bool) {
        match self.client.apply(pb::ApplyRequest { base_generation: None, ops: self.ops }).await {
            Ok(_) => (Ok(()), true),
            // Descriptors that a refused transaction did not take would stay at the engine for as long as the connection.
            Err(status) => {
                let usable = !self.fds && status.code() != Code::Unavailable;
                (Err(status), usable)
            }
        }
    }
}
