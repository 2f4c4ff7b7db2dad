//! Many changes in one transaction.
//!
//! While a transaction is under way, changes gather; the next takes them all. If it is refused, each is tried alone, so that only the
//! one at fault fails.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::mpsc;
use tonic::{Code, Status};
use vwire_dataplane::fdpass::identify;
use vwire_proto::dataplane::v1 as pb;

use super::connection::{Connection, Connector};
use super::{Change, Queued};
use crate::transport::SharedFd;

/// Operations of one transaction; the engine takes 4096.
const MAX_OPS: usize = 2048;
/// Descriptors of one transaction; the engine keeps 256 of a connection.
const MAX_FDS: usize = 128;

/// Makes changes until nobody can queue any more.
pub async fn serve(mut queue: mpsc::Receiver<Queued>, connector: Arc<Connector>) {
    let mut applier = Applier { connector, connection: None };
    let mut left = None;
    loop {
        let first = match left.take() {
            Some(left) => left,
            None => match queue.recv().await {
                Some(first) => first,
                None => return,
            },
        };
        let mut batch = vec![first];
        let size = |batch: &[Queued]| {
            let count = |one: &Queued| (one.change.ops.len(), one.change.fds.len());
            batch.iter().map(count).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
        };
        while let Ok(next) = queue.try_recv() {
            let (ops, fds) = size(&batch);
            if ops + next.change.ops.len() > MAX_OPS || fds + next.change.fds.len() > MAX_FDS {
                left = Some(next);
                break;
            }
            batch.push(next);
        }
        applier.batch(batch).await;
    }
}

struct Applier {
    connector: Arc<Connector>,
    connection: Option<Connection>,
}

impl Applier {
    async fn batch(&mut self, batch: Vec<Queued>) {
        let changes: Vec<&Change> = batch.iter().map(|one| &one.change).collect();
        let result = self.apply(&changes).await;
        tracing::trace!(changes = batch.len(), ok = result.is_ok(), "transaction");
        let refused = result.as_ref().is_err_and(|status| status.code() != Code::Unavailable);
        if batch.len() == 1 || !refused {
            batch.into_iter().for_each(|one| drop(one.done.send(result.clone())));
            return;
        }
        for one in batch {
            let result = self.apply(&[&one.change]).await;
            let _ = one.done.send(result);
        }
    }

    async fn apply(&mut self, changes: &[&Change]) -> Result<(), Status> {
        let mut fds: BTreeMap<_, &SharedFd> = BTreeMap::new();
        for fd in changes.iter().flat_map(|change| &change.fds) {
            fds.insert(identify(fd)?, fd);
        }
        let ops: Vec<pb::Op> = changes.iter().flat_map(|change| change.ops.iter().cloned()).collect();
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connector.open().await?,
        };
        for fd in fds.values() {
            connection.fds.send(fd)?;
        }
        match connection.client.apply(pb::ApplyRequest { base_generation: None, ops }).await {
            Ok(_) => {
                self.connection = Some(connection);
                Ok(())
            }
            // Descriptors that a refused transaction did not take would stay at the engine for as long as the connection.
            Err(status) if fds.is_empty() && status.code() != Code::Unavailable => {
                self.connection = Some(connection);
                Err(status)
            }
            Err(status) => Err(status),
        }
    }
}
