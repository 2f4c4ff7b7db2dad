//! Clients: what asks for connections and keeps them.
//!
//! A [`Client`] speaks for one name with one next hop (a network service manager). Each of its [`Session`]s keeps one connection: one
//! task that is in one of these states, and that alone may change it:
//!
//! | state | does | left for |
//! |---|---|---|
//! | Recovering | waits for the monitor stream's first event, at most the request timeout: a connection of an earlier life is gone on with | Requesting |
//! | Requesting | sends Requests until one succeeds, with growing pauses | Up on success |
//! | Up | refreshes, listens to the next hop, asks whether packets are answered | Healing on DOWN, DELETE, a lost stream, a dead data plane, or tokens that ended while refreshes failed |
//! | Healing | sends Requests until one succeeds: the same connection again while packets are answered, another endpoint once they are not | Up on success, or when a next hop that was lost is back and knows the connection |
//! | Closing | tells the data path, sends Close | Closed |
//! | Closed | – | – |
//!
//! Every state but the last two is left for Closing when the owner says so; a first Request that is under way is waited for (3 s),
//! since only its answer has the ids by which hops can close. All clocks are tokio's, but for the ends of tokens.
//!
//! Where it cannot be known whether packets are answered (liveness off, mechanisms that nobody can ask): DOWN and DELETE choose
//! another endpoint, a lost next hop or failed refreshes ask for the same one first.

mod datapath;
pub mod dns;
mod excluded;
mod kernel;
mod manager;
mod memif;
mod negotiate;
mod netns;
pub mod nsurl;
mod ping;
mod session;
mod settings;
mod task;
mod timing;
mod upstream;
mod watch;

use std::sync::Arc;

use tokio::sync::{mpsc, watch as tokio_watch};
use tracing::Instrument;

pub use datapath::{Alive, DataPath, Elsewhere};
pub use kernel::KernelPath;
pub use manager::Manager;
pub use memif::MemifPath;
pub use netns::Namespace;
pub use ping::Pinger;
pub use session::{Heal, Phase, Reason, Session, SessionStatus, Wanted};
pub use settings::{ClientSettings, LivenessSettings};
pub use upstream::Upstream;

/// A name, a next hop, and any number of sessions.
pub struct Client {
    name: Arc<str>,
    upstream: Arc<dyn Upstream>,
    settings: ClientSettings,
    addresses: Arc<excluded::AddressBook>,
    watcher: watch::Watcher,
}

impl Client {
    /// A client with this name in paths. It begins to watch the next hop at once.
    pub fn new(name: impl Into<Arc<str>>, upstream: Arc<dyn Upstream>, settings: ClientSettings) -> Self {
        let name = name.into();
        let watcher = watch::Watcher::start(Arc::clone(&name), Arc::clone(&upstream));
        Self { name, upstream, settings, addresses: Arc::default(), watcher }
    }

    /// Begins to ask for a connection, and keeps it from then on. The id in `wanted.connection` must not be another open session's.
    pub fn open(&self, wanted: Wanted, datapath: Arc<dyn DataPath>) -> Session {
        let id = wanted.connection.id.clone();
        let (commands, orders) = mpsc::unbounded_channel();
        let (status, seen) = tokio_watch::channel(SessionStatus::new());
        let negotiator = negotiate::Negotiator {
            name: Arc::clone(&self.name),
            upstream: Arc::clone(&self.upstream),
            addresses: Arc::clone(&self.addresses),
            datapath,
            time: self.settings.request_timeout,
        };
        let span =
            tracing::info_span!("session", connection = %id, service = %wanted.connection.network_service);
        let news = self.watcher.subscribe(&id);
        let settings = self.settings.clone();
        let (life, asked_with) = (settings.token_life, settings.request_timeout);
        let asked_context = wanted.connection.context.clone();
        let task = task::Task {
            wanted,
            negotiator,
            settings,
            news,
            commands: orders,
            status,
            connection: None,
            life,
            asked_with,
            asked_context,
        };
        let task = tokio::spawn(task.run().instrument(span));
        Session { id, commands, status: seen, task }
    }
}

#[cfg(test)]
mod tests;
