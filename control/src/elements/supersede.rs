//! A client that comes back as a stranger: it and its manager have died, and all ids between it and us are new.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tonic::Status;

use crate::api::connection::Connection;
use crate::api::networkservice::NetworkServiceRequest;
use crate::api::path::{self, PathExt};
use crate::api::token::claimed_subject;
use crate::chain::{Call, ChainHandle, Element, Next, State};
use crate::identity::SpiffeId;

/// How long the Close of what is superseded may take.
const TIME: Duration = Duration::from_secs(10);

/// Closes the connection that a client had before, when it asks for the same one by a new path: its interface would be in the way
/// until it expires. The same is the one with the same id and token's subject of the client, the same workload that asks for it (by
/// its segment's id), the same hops by name, and the same caller by certificate.
pub struct Supersede {
    chain: ChainHandle,
    /// Our ids of connections.
    known: Mutex<HashMap<Origin, String>>,
}

/// From whom a connection is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Origin {
    caller: Option<SpiffeId>,
    client: Option<String>,
    root: String,
    workload: String,
    hops: Vec<String>,
}

impl Origin {
    fn of(connection: &Connection, caller: Option<&SpiffeId>, client: Option<String>) -> Option<Self> {
        let path = path::of(connection);
        let own = usize::try_from(path.index).ok()?;
        // Without a hop between there is no id that can have changed: the client's own names the connection.
        let workload = path.path_segments.get(own.checked_sub(2)?)?;
        Some(Self {
            caller: caller.cloned(),
            client,
            root: path.root_id().to_owned(),
            workload: workload.id.clone(),
            hops: path.path_segments.get(..=own)?.iter().map(|segment| segment.name.clone()).collect(),
        })
    }

    fn of_call(call: &Call, connection: &Connection) -> Option<Self> {
        let caller = call.peer().and_then(|peer| peer.id.as_ref());
        let first = path::of(connection).path_segments.first();
        Self::of(connection, caller, first.and_then(|segment| claimed_subject(&segment.token)))
    }
}

impl Supersede {
    /// Closes by way of `chain`.
    pub fn new(chain: ChainHandle) -> Self {
        Self { chain, known: Mutex::default() }
    }

    /// Knows a connection that an earlier process of this role had established, in our coordinates.
    pub fn adopt(
        &self,
        connection: &Connection,
        caller: Option<&SpiffeId>,
        client: Option<String>,
        state: &mut State,
    ) {
        if let Some(origin) = Origin::of(connection, caller, client) {
            self.known().insert(origin.clone(), connection.id.clone());
            state.insert(origin);
        }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Origin, String>> {
        // Every change is one insertion or removal, so a panic elsewhere does not spoil it.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes what `id` takes the place of.
    async fn close_former(&self, origin: &Origin, id: &str) {
        let former = self.known().get(origin).filter(|former| *former != id).cloned();
        let (Some(former), Some(chain)) = (former, self.chain.upgrade()) else { return };
        tracing::info!(%former, now = id, "a client has come back by a new path: its former connection is closed");
        let mut call = Call::internal("its client has come back by a new path", TIME);
        let connection = Connection { id: former, ..Default::default() };
        if let Err(status) = chain.close(&mut call, connection).await {
            tracing::info!(%status, "closing a connection whose client has come back");
        }
    }
}

#[async_trait]
impl Element for Supersede {
    async fn request(
        &self,
        call: &mut Call,
        request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        let asked = request.connection.as_ref();
        let (Some(origin), Some(id)) =
            (asked.and_then(|asked| Origin::of_call(call, asked)), asked.map(|asked| asked.id.clone()))
        else {
            return next.request(call, request).await;
        };
        if call.peer().is_none() {
            return next.request(call, request).await;
        }
        if call.first {
            self.close_former(&origin, &id).await;
        }
        let connection = next.request(call, request).await?;
        self.known().insert(origin.clone(), id);
        call.state.insert(origin);
        Ok(connection)
    }

    async fn close(&self, call: &mut Call, connection: Connection, next: Next<'_>) -> Result<(), Status> {
        if let Some(origin) = call.state.remove::<Origin>() {
            let mut known = self.known();
            if known.get(&origin).is_some_and(|id| *id == connection.id) {
                known.remove(&origin);
            }
        }
        next.close(call, connection).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::chain::Chain;
    use crate::chain::testing::{Probe, call_by, connection, request};
    use crate::elements::{Begin, Binding};

    struct Fixture {
        chain: Arc<Chain>,
        probe: Arc<Probe>,
    }

    fn fixture() -> Fixture {
        let probe = Arc::<Probe>::default();
        let chain = Chain::new("forwarder", |handle| {
            let begin = Begin::new(Binding::default());
            vec![Arc::new(begin), Arc::new(Supersede::new(handle)), Arc::new(Arc::clone(&probe))]
        });
        Fixture { chain, probe }
    }

    impl Fixture {
        async fn ask(&self, by: &str, segments: &[&str]) {
            let asked = request(connection(segments));
            self.chain.request(&mut call_by(by), asked).await.unwrap();
        }

        fn closed(&self) -> Vec<String> {
            self.probe.closes.lock().unwrap().iter().map(|closed| closed.id.clone()).collect()
        }
    }

    #[tokio::test]
    async fn a_client_that_comes_back_by_a_new_path_takes_the_place_of_what_it_had() {
        let f = fixture();
        f.ask("nsmgr", &["nsc/nsc-0", "nsmgr/m1", "forwarder/f1"]).await;
        f.ask("nsmgr", &["nsc/nsc-0", "nsmgr/m1", "forwarder/f1"]).await;
        assert_eq!(f.closed(), [""; 0], "a refresh");
        f.ask("nsmgr", &["nsc/nsc-0", "nsmgr/m2", "forwarder/f2"]).await;
        assert_eq!(f.closed(), ["f1"]);
        f.ask("nsmgr", &["nsc/nsc-0", "nsmgr/m3", "forwarder/f3"]).await;
        assert_eq!(f.closed(), ["f1", "f2"]);
    }

    #[tokio::test]
    async fn what_is_not_the_same_stays() {
        let f = fixture();
        f.ask("nsmgr", &["nsc/nsc-0", "nsmgr/m1", "forwarder/f1"]).await;
        for (by, segments) in [
            ("nsmgr", &["nsc/nsc-1", "nsmgr/m2", "forwarder/f2"][..]),
            ("nsmgr", &["other/nsc-0", "nsmgr/m3", "forwarder/f3"]),
            ("nsmgr-2", &["nsc/nsc-0", "nsmgr/m4", "forwarder/f4"]),
            ("nsmgr", &["nsc/nsc-0", "nsmgr-2/m5", "forwarder/f5"]),
            // The same client further along a chain of services: this forwarder is passed more than once.
            ("nsmgr", &["nsc/nsc-0", "nsmgr/m1", "forwarder/f1", "pass/p1", "nsmgr/m6", "forwarder/f6"]),
        ] {
            f.ask(by, segments).await;
        }
        assert_eq!(f.closed(), [""; 0]);
    }
}
