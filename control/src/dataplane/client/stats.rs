//! Counters, fetched for all who want them at once.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tonic::Status;
use vwire_proto::dataplane::v1 as pb;

use super::connection::{Connection, Connector};

/// The counters of all ports at one time.
pub struct Snapshot {
    taken: Instant,
    ports: HashMap<String, pb::PortStats>,
}

impl Snapshot {
    /// Those of one port.
    pub fn port(&self, name: &str) -> Option<&pb::PortStats> {
        self.ports.get(name)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &pb::PortStats> {
        self.ports.values()
    }
}

struct Latest {
    connection: Option<Connection>,
    snapshot: Option<Arc<Snapshot>>,
}

/// The latest snapshot.
pub struct Stats {
    connector: Arc<Connector>,
    latest: Mutex<Latest>,
    known: std::sync::Mutex<Option<Arc<Snapshot>>>,
}

impl Stats {
    /// None yet.
    pub fn new(connector: Arc<Connector>) -> Self {
        Self {
            connector,
            latest: Mutex::new(Latest { connection: None, snapshot: None }),
            known: std::sync::Mutex::default(),
        }
    }

    /// The latest, whatever its age.
    pub fn known(&self) -> Option<Arc<Snapshot>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// At most `age` old. Who comes while another asks gets the other's answer.
    pub async fn get(&self, age: Duration) -> Result<Arc<Snapshot>, Status> {
        let asked = Instant::now();
        let mut latest = self.latest.lock().await;
        if let Some(snapshot) = &latest.snapshot
            && snapshot.taken + age >= asked
        {
            return Ok(Arc::clone(snapshot));
        }
        let mut connection = match latest.connection.take() {
            Some(connection) => connection,
            None => self.connector.open().await?,
        };
        let taken = Instant::now();
        let stats = connection.client.get_stats(pb::GetStatsRequest::default()).await?.into_inner();
        let ports = stats.ports.into_iter().map(|port| (port.port.clone(), port)).collect();
        let snapshot = Arc::new(Snapshot { taken, ports });
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&snapshot));
        *latest = Latest { connection: Some(connection), snapshot: Some(Arc::clone(&snapshot)) };
        Ok(snapshot)
    }
}
