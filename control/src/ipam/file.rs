//! Leases in a file, so that prefixes keep their owners while the service is away.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ipnet::IpNet;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::table::{Change, Lease, State};

/// By prefix: the owner's identity, empty without one, and until when it is kept (milliseconds since 1970), 0 while it is held.
const LEASES: TableDefinition<'static, &'static str, (&'static str, u64)> = TableDefinition::new("leases");

/// Why a state file can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct StateError {
    path: String,
    reason: redb::Error,
}

/// An open state file.
#[derive(Clone)]
pub(super) struct File(Arc<Database>);

impl File {
    /// Opens or creates a file and reads what is in it. What was held when it was last written is kept until `held_until`: nobody could
    /// come for it meanwhile. What was kept and whose time is over by `now` is left out.
    pub fn open(
        path: &Path,
        now: SystemTime,
        held_until: SystemTime,
    ) -> Result<(Self, Vec<(IpNet, Lease)>), StateError> {
        Self::try_open(path, now, held_until)
            .map_err(|reason| StateError { path: path.display().to_string(), reason })
    }

    fn try_open(
        path: &Path,
        now: SystemTime,
        held_until: SystemTime,
    ) -> Result<(Self, Vec<(IpNet, Lease)>), redb::Error> {
        let database = Database::create(path)?;
        let begin = database.begin_write()?;
        begin.open_table(LEASES)?;
        begin.commit()?;
        let mut leases = Vec::new();
        let read = database.begin_read()?;
        for row in read.open_table(LEASES)?.iter()? {
            let (key, value) = row?;
            let (owner, kept) = value.value();
            let Ok(prefix) = key.value().parse::<IpNet>() else {
                tracing::warn!(prefix = key.value(), "a prefix of the state file can't be read: left out");
                continue;
            };
            let until = if kept == 0 {
                Some(held_until)
            } else {
                UNIX_EPOCH.checked_add(Duration::from_millis(kept))
            };
            if let Some(until) = until.filter(|until| *until > now) {
                let owner = (!owner.is_empty()).then(|| owner.into());
                leases.push((prefix.trunc(), Lease { owner, state: State::Kept(until) }));
            }
        }
        Ok((Self(Arc::new(database)), leases))
    }

    /// Writes changes; they are on the disk then.
    pub fn write(&self, changes: &[Change]) -> Result<(), redb::Error> {
        let transaction = self.0.begin_write()?;
        let mut table = transaction.open_table(LEASES)?;
        for (prefix, lease) in changes {
            match lease {
                Some(lease) => {
                    let value = (lease.owner.as_deref().unwrap_or(""), until(lease.state));
                    table.insert(prefix.to_string().as_str(), value)?;
                }
                None => drop(table.remove(prefix.to_string().as_str())?),
            }
        }
        drop(table);
        transaction.commit()?;
        Ok(())
    }
}

fn until(state: State) -> u64 {
    match state {
        State::Held(_) => 0,
        State::Kept(until) => {
            let since = until.duration_since(UNIX_EPOCH).unwrap_or_default();
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX).max(1)
        }
    }
}
