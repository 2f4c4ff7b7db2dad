//! A store's records in a file, so that names keep their owners when the registry starts anew.
//!
//! Changes are written a moment after they were made, many at a time: a registry that is killed may forget the last of them, and
//! whoever made them will renew them.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use vwire_proto::nsm::registry::{NetworkService, NetworkServiceEndpoint};

use super::resource::Resource;
use super::table::{Dirty, Saved, Table};
use super::{Shared, write};
use crate::registry::{Owner, expiry};

/// How long changes are collected.
const COLLECT: Duration = Duration::from_millis(20);

/// By name: the owner's identity, who asserted it, and the record as the API encodes it.
type Rows = TableDefinition<'static, &'static str, (&'static str, &'static str, &'static [u8])>;
const SERVICES: Rows = TableDefinition::new("services");
const ENDPOINTS: Rows = TableDefinition::new("endpoints");

/// Why a state file can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct StateError {
    path: String,
    reason: redb::Error,
}

/// An open state file.
pub(super) struct Journal {
    database: Arc<Database>,
}

impl Journal {
    /// Opens or creates a file and reads what is in it.
    pub(super) fn open(
        path: &Path,
        services: &mut Table<NetworkService>,
        endpoints: &mut Table<NetworkServiceEndpoint>,
    ) -> Result<Self, StateError> {
        Self::try_open(path, services, endpoints)
            .map_err(|reason| StateError { path: path.display().to_string(), reason })
    }

    fn try_open(
        path: &Path,
        services: &mut Table<NetworkService>,
        endpoints: &mut Table<NetworkServiceEndpoint>,
    ) -> Result<Self, redb::Error> {
        let database = Database::create(path)?;
        let begin = database.begin_write()?;
        begin.open_table(SERVICES)?;
        begin.open_table(ENDPOINTS)?;
        begin.commit()?;
        let read = database.begin_read()?;
        load(&read.open_table(SERVICES)?, services, |_| Some(None))?;
        load(&read.open_table(ENDPOINTS)?, endpoints, |endpoint| {
            let end = endpoint.expiration_time.as_ref()?;
            (!expiry::left(end, SystemTime::now()).is_zero()).then(|| Some(expiry::instant(end)))
        })?;
        Ok(Self { database: Arc::new(database) })
    }
}

/// Puts rows into a table; those that `until` gives no time any more will be deleted.
fn load<T: Resource>(
    rows: &impl ReadableTable<&'static str, (&'static str, &'static str, &'static [u8])>,
    table: &mut Table<T>,
    until: impl Fn(&T) -> Option<Option<std::time::Instant>>,
) -> Result<(), redb::Error> {
    let mut ended = Dirty::default();
    for row in rows.iter()? {
        let (name, value) = row?;
        let (identity, asserter, bytes) = value.value();
        let Ok(item) = T::decode(bytes) else {
            tracing::warn!(name = name.value(), "a {} of the state file can't be read: left out", T::KIND);
            ended.insert(name.value().into(), None);
            continue;
        };
        let owner =
            (!identity.is_empty()).then(|| Owner { identity: identity.into(), asserter: asserter.into() });
        match until(&item) {
            Some(until) => table.put(Arc::new(item), owner, until),
            None => drop(ended.insert(name.value().into(), None)),
        }
    }
    table.dirty = Some(ended);
    Ok(())
}

impl Shared {
    /// Writes what has changed since the last time.
    pub(super) async fn flush(self: &Arc<Self>) {
        let Some(journal) = &self.journal else { return };
        let services = write(&self.services).dirty.as_mut().map(std::mem::take).unwrap_or_default();
        let endpoints = write(&self.endpoints).dirty.as_mut().map(std::mem::take).unwrap_or_default();
        if services.is_empty() && endpoints.is_empty() {
            return;
        }
        let database = Arc::clone(&journal.database);
        let written = tokio::task::spawn_blocking(move || {
            let result = save(&database, &services, &endpoints);
            (result, services, endpoints)
        });
        match written.await {
            Ok((Ok(()), ..)) => {}
            Ok((Err(error), services, endpoints)) => {
                tracing::error!(%error, "the registry's state file can't be written; what is registered is in memory only");
                again(&mut write(&self.services).dirty, services);
                again(&mut write(&self.endpoints).dirty, endpoints);
            }
            Err(error) => tracing::error!(%error, "writing the registry's state file"),
        }
    }
}

/// Puts back what was not written, unless it has changed again.
fn again<T>(dirty: &mut Option<Dirty<T>>, unwritten: Dirty<T>) {
    if let Some(dirty) = dirty {
        for (name, saved) in unwritten {
            dirty.entry(name).or_insert(saved);
        }
    }
}

fn save(
    database: &Database,
    services: &Dirty<NetworkService>,
    endpoints: &Dirty<NetworkServiceEndpoint>,
) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    save_rows(&transaction, SERVICES, services)?;
    save_rows(&transaction, ENDPOINTS, endpoints)?;
    transaction.commit()?;
    Ok(())
}

fn save_rows<T: Resource>(
    transaction: &WriteTransaction,
    rows: Rows,
    changed: &HashMap<Arc<str>, Option<Saved<T>>>,
) -> Result<(), redb::Error> {
    let mut table = transaction.open_table(rows)?;
    for (name, saved) in changed {
        match saved {
            Some(Saved { item, owner }) => {
                let (identity, asserter) = owner.as_ref().map_or(("", ""), |o| (&*o.identity, &*o.asserter));
                table.insert(&**name, (identity, asserter, item.encode_to_vec().as_slice()))?;
            }
            None => drop(table.remove(&**name)?),
        }
    }
    Ok(())
}

/// Writes changes until the store is gone.
pub(super) async fn keep(store: Weak<Shared>) {
    loop {
        let Some(shared) = store.upgrade() else { return };
        shared.flush().await;
        drop(shared);
        tokio::time::sleep(COLLECT).await;
    }
}
