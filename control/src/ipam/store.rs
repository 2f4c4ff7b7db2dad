//! The prefixes of a service, in memory and in a file where one is named.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use tokio::sync::{Mutex, Notify};
use tokio::time::Instant;
use tonic::Status;

use super::blocks::{Blocks, MAX_BITS};
use super::file::{File, StateError};
use super::table::{Asker, Change, Figures, Refusal, Rules, Table};

/// How long whoever asks for a prefix that another stream of the same identity holds waits for the end of that stream: as long as a server
/// needs to find out that a silent connection is dead, and a little more.
const BUSY: Duration = Duration::from_secs(25);

/// What a service hands out.
#[derive(Debug, Clone)]
pub struct Settings {
    /// All of it (`NSM_PREFIX`).
    pub prefix: IpNet,
    /// The length of what one endpoint gets (`NSM_CLIENT_PREFIX_LEN`).
    pub client_prefix_len: u8,
    /// What no endpoint may assign addresses from.
    pub excluded: Vec<IpNet>,
    /// How long a prefix is kept for its owner after the stream has ended.
    pub grace: Duration,
    /// Most prefixes of one identity.
    pub per_identity: usize,
    /// Where leases are written.
    pub state: Option<PathBuf>,
}

/// Settings that nothing can be handed out by.
#[derive(Debug, thiserror::Error)]
pub enum BadSettings {
    /// The lengths.
    #[error(
        "NSM_CLIENT_PREFIX_LEN: {len}: a prefix for an endpoint out of NSM_PREFIX {prefix} has a length of {} to {}",
        prefix.prefix_len().max(1), prefix.max_prefix_len().min(prefix.prefix_len().saturating_add(MAX_BITS))
    )]
    Length {
        /// The endpoint's.
        len: u8,
        /// The whole.
        prefix: IpNet,
    },
    /// Nothing may be handed out.
    #[error("VWIRE_IPAM_EXCLUDED: nothing is left of NSM_PREFIX {0}")]
    NothingLeft(IpNet),
    /// The state file.
    #[error("VWIRE_IPAM_STATE: {0}")]
    State(#[from] StateError),
}

/// All prefixes and whose they are.
pub struct Store {
    table: Mutex<Table>,
    file: Option<File>,
    /// Told at each end of a stream.
    ended: Notify,
    streams: AtomicU64,
    busy: Duration,
}

impl Store {
    /// With what is in the state file. What was held when the service ended, however it did, is kept for its owners for the grace time from
    /// now on.
    ///
    /// # Errors
    /// [`BadSettings`].
    pub fn open(settings: &Settings) -> Result<Self, BadSettings> {
        let (len, prefix) = (settings.client_prefix_len, settings.prefix.trunc());
        let blocks = Blocks::new(prefix, len).ok_or(BadSettings::Length { len, prefix })?;
        if blocks.lowest_beside(blocks.covered(&settings.excluded)).is_none() {
            return Err(BadSettings::NothingLeft(prefix));
        }
        let Settings { excluded, grace, per_identity, state, .. } = settings.clone();
        let now = SystemTime::now();
        let (file, leases) = match state.as_deref() {
            Some(path) => {
                let (file, leases) = File::open(path, now, now + grace)?;
                (Some(file), leases)
            }
            None => (None, Vec::new()),
        };
        let (table, dropped) = Table::new(Rules { blocks, excluded, grace, per_identity }, leases);
        if let (Some(file), Some(path)) = (&file, state.as_deref()) {
            forget(file, path, &dropped, prefix);
        }
        let (ended, streams) = (Notify::new(), AtomicU64::new(0));
        Ok(Self { table: Mutex::new(table), file, ended, streams, busy: BUSY })
    }

    /// Waits no longer than this for a stream that may be dead.
    #[cfg(test)]
    pub(super) fn with_busy(self, busy: Duration) -> Self {
        Self { busy, ..self }
    }

    /// A number for a new stream.
    pub fn stream(&self) -> u64 {
        self.streams.fetch_add(1, Ordering::Relaxed)
    }

    /// A prefix for `asker`, written before it is returned: the wanted one where it can be had. Where that is held by another stream of the
    /// asker's identity it waits for the end of that, or of the time in which a dead one is found out, or until the asker is `gone`. Not to
    /// be dropped before it is done.
    ///
    /// # Errors
    /// CANCELLED if the asker is gone; RESOURCE_EXHAUSTED with the numbers if there is none left, or the identity has enough; UNAVAILABLE if it can't be written. Nothing is
    /// changed then.
    pub async fn allocate(
        &self,
        asker: &Asker,
        wanted: Option<IpNet>,
        excluded: &[IpNet],
        gone: impl Future<Output = ()>,
    ) -> Result<IpNet, Status> {
        let patience = Instant::now() + self.busy;
        let mut gone = std::pin::pin!(gone);
        loop {
            let mut ended = std::pin::pin!(self.ended.notified());
            ended.as_mut().enable();
            let wanted = wanted.filter(|_| Instant::now() < patience);
            match self.try_allocate(asker, wanted, excluded).await {
                Ok(prefix) => return Ok(prefix),
                Err(Tried::Busy(prefix)) => {
                    let owner = asker.owner.as_deref();
                    tracing::debug!(%prefix, owner, "another stream of its owner's holds it: waiting for the end of that");
                    tokio::select! {
                        () = ended => {}
                        // It is tried without the wish.
                        () = tokio::time::sleep_until(patience) => {}
                        () = gone.as_mut() => return Err(Status::cancelled("the caller is gone")),
                    }
                }
                Err(Tried::Refused(status)) => return Err(status),
            }
        }
    }

    async fn try_allocate(
        &self,
        asker: &Asker,
        wanted: Option<IpNet>,
        excluded: &[IpNet],
    ) -> Result<IpNet, Tried> {
        let mut table = self.table.lock().await;
        let now = SystemTime::now();
        let prefix = table.allocate(asker, wanted, excluded, now)?;
        let changes = table.give(asker, prefix, now);
        let changes = self.write(changes).await.map_err(Tried::Refused)?;
        table.apply(changes);
        Ok(prefix)
    }

    /// A stream has ended: what it held is kept for its owner.
    pub async fn end(&self, stream: u64) {
        let mut table = self.table.lock().await;
        let changes = table.end(stream, SystemTime::now());
        if !changes.is_empty() {
            self.change(&mut table, changes).await;
        }
        drop(table);
        self.ended.notify_waiters();
    }

    /// A stream gives a prefix back: anybody may have it. False if the stream does not hold it.
    pub async fn give_back(&self, stream: u64, prefix: IpNet) -> bool {
        let mut table = self.table.lock().await;
        let change = table.give_back(stream, prefix);
        let held = change.is_some();
        if let Some(change) = change {
            self.change(&mut table, vec![change]).await;
        }
        drop(table);
        self.ended.notify_waiters();
        held
    }

    /// What endpoints must leave alone.
    pub async fn excluded(&self) -> Vec<IpNet> {
        self.table.lock().await.rules().excluded.clone()
    }

    /// How many prefixes there are of each kind.
    pub async fn figures(&self) -> Figures {
        self.table.lock().await.figures(SystemTime::now())
    }

    /// Makes changes that have happened already, whether or not they can be written: at worst the file says that somebody still holds a
    /// prefix, and it is kept for its owner after a restart.
    async fn change(&self, table: &mut Table, changes: Vec<Change>) {
        if let Err(status) = self.write(changes.clone()).await {
            tracing::error!(%status, "what has ended is in memory only");
        }
        table.apply(changes);
    }

    async fn write(&self, changes: Vec<Change>) -> Result<Vec<Change>, Status> {
        let Some(file) = self.file.clone() else { return Ok(changes) };
        let written = tokio::task::spawn_blocking(move || file.write(&changes).map(|()| changes)).await;
        let reason = match written {
            Ok(Ok(changes)) => return Ok(changes),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        tracing::error!(reason, "the state file (VWIRE_IPAM_STATE) can't be written");
        Err(Status::unavailable(format!(
            "prefix: the IPAM can't write its state file (VWIRE_IPAM_STATE): {reason}"
        )))
    }
}

/// Why a try gave no prefix.
enum Tried {
    Busy(IpNet),
    Refused(Status),
}

impl From<Refusal> for Tried {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Busy(prefix) => Self::Busy(prefix),
            other => Self::Refused(Status::resource_exhausted(other.to_string())),
        }
    }
}

/// Leases of a former NSM_PREFIX mean nothing any more.
fn forget(file: &File, path: &Path, dropped: &[IpNet], prefix: IpNet) {
    if dropped.is_empty() {
        return;
    }
    tracing::warn!(
        file = %path.display(), count = dropped.len(), %prefix,
        "leases of the state file are not of NSM_PREFIX: forgotten; their owners will get others"
    );
    let changes: Vec<Change> = dropped.iter().map(|prefix| (*prefix, None)).collect();
    if let Err(error) = file.write(&changes) {
        tracing::warn!(file = %path.display(), %error, "they are still in the file");
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("file", &self.file.is_some()).finish_non_exhaustive()
    }
}

/// An identity as an owner.
pub(super) fn owner_of(id: &crate::identity::SpiffeId) -> Arc<str> {
    id.to_string().into()
}
