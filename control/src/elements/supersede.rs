//! `supersede`: a client that has begun anew gets its interface back.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tonic::Status;

use crate::api::connection::{Connection, Mechanism};
use crate::api::mechanism::{INODE_URL, KERNEL, NAME};
use crate::api::networkservice::NetworkServiceRequest;
use crate::api::path;
use crate::api::token::claimed_subject;
use crate::chain::{Call, ChainHandle, Element, Next, Origin};

/// Closes a connection whose kernel interface the same client asks for again, in the same network namespace by the same name, as
/// a new connection: it does not know the former one any more. It was started anew, or the answer was lost with a hop on the way.
/// Without this it would be refused until the former connection's end, for its interface is there.
pub struct Supersede {
    chain: ChainHandle,
    known: Mutex<HashMap<Arc<str>, Arc<str>>>,
}

/// The interface that a connection is known by, in its state.
struct Known(Arc<str>);

impl Supersede {
    /// For the chain behind `handle`.
    pub fn new(handle: ChainHandle) -> Self {
        Self { chain: handle, known: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<str>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another connection that has this interface.
    fn former(&self, interface: &str, id: &str) -> Option<Arc<str>> {
        self.lock().get(interface).filter(|known| &***known != id).cloned()
    }

    async fn close_former(&self, call: &Call, asked: &NetworkServiceRequest) {
        let Some(connection) = &asked.connection else { return };
        let client = client(connection);
        for preference in &asked.mechanism_preferences {
            let Some(interface) = interface(&client, preference) else { continue };
            let (Some(id), Some(chain)) = (self.former(&interface, &connection.id), self.chain.upgrade())
            else {
                continue;
            };
            tracing::info!(former = %id, "the client has begun anew; what it had is closed");
            let mut closing = Call::internal("its client has begun anew", call.remaining());
            let former = Connection { id: id.to_string(), ..Default::default() };
            if let Err(status) = chain.close(&mut closing, former).await {
                tracing::info!(former = %id, %status, "closing what a client had");
            }
        }
    }
}

/// Who the path's first token says it is.
fn client(connection: &Connection) -> String {
    let first = path::of(connection).path_segments.first();
    first.and_then(|segment| claimed_subject(&segment.token)).unwrap_or_default()
}

/// A kernel interface by its namespace, its name and its owner.
fn interface(client: &str, mechanism: &Mechanism) -> Option<Arc<str>> {
    if mechanism.r#type != KERNEL {
        return None;
    }
    let (inode, name) = (mechanism.parameters.get(INODE_URL)?, mechanism.parameters.get(NAME)?);
    Some(format!("{inode} {name} {client}").into())
}

#[async_trait]
impl Element for Supersede {
    async fn request(
        &self,
        call: &mut Call,
        request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        if !call.first || matches!(call.origin, Origin::Internal(_)) {
            return next.request(call, request).await;
        }
        self.close_former(call, &request).await;
        let answer = next.request(call, request).await?;
        if let Some(interface) =
            answer.mechanism.as_ref().and_then(|mechanism| interface(&client(&answer), mechanism))
        {
            self.lock().insert(Arc::clone(&interface), answer.id.as_str().into());
            call.state.insert(Known(interface));
        }
        Ok(answer)
    }

    async fn close(&self, call: &mut Call, connection: Connection, next: Next<'_>) -> Result<(), Status> {
        if let Some(Known(interface)) = call.state.remove::<Known>() {
            let mut known = self.lock();
            if known.get(&interface).is_some_and(|id| **id == *connection.id) {
                known.remove(&interface);
            }
        }
        next.close(call, connection).await
    }
}
