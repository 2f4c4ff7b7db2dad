//! `supersede`: a client that has begun anew gets its interface back, and nobody waits for the interfaces of the dead.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tonic::Status;

use super::begin::Lent;
use crate::api::connection::{Connection, Mechanism, Path};
use crate::api::mechanism::{INODE_URL, KERNEL, NAME};
use crate::api::networkservice::NetworkServiceRequest;
use crate::api::path;
use crate::api::token::claimed_subject;
use crate::chain::{Call, ChainHandle, Element, Fds, Next, Origin, State};
use crate::dataplane::kernel;
use crate::dataplane::netns::Namespace;

/// Closes a connection whose kernel interface is asked for again, in the same network namespace by the same name, by a new
/// connection, if the former one is of no use to anybody any more:
/// - the same client asks. It was started anew, or the answer was lost with a hop on the way.
/// - the interface is not there. Its namespace ended with the client, and the kernel has given the number to another.
///
/// Without this it would be refused until the former connection's end. Behind `recv_fd`, for it looks into the namespace.
pub struct Supersede {
    chain: ChainHandle,
    holders: Arc<Holders>,
}

/// Which connection has which kernel interface.
#[derive(Default)]
pub struct Holders(Mutex<HashMap<Interface, Holder>>);

/// A kernel interface: its namespace and its name.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Interface {
    inode: Arc<str>,
    name: Arc<str>,
}

/// Which connection has an interface, and whose that is.
#[derive(Clone)]
struct Holder {
    connection: Arc<str>,
    client: Arc<str>,
}

impl Holders {
    fn lock(&self) -> MutexGuard<'_, HashMap<Interface, Holder>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another connection that has this interface.
    fn former(&self, interface: &Interface, id: &str) -> Option<Holder> {
        self.lock().get(interface).filter(|holder| *holder.connection != *id).cloned()
    }

    /// A connection that was established, of the client with this SPIFFE ID: by a Request, or by an earlier process of this role.
    /// `state` is what elements remember of it until its Close.
    pub fn put(&self, connection: &Connection, client: &str, state: &mut State) {
        let Some(interface) = connection.mechanism.as_ref().and_then(interface) else { return };
        let holder = Holder { connection: connection.id.as_str().into(), client: client.into() };
        self.lock().insert(interface.clone(), holder);
        state.insert(interface);
    }

    /// A connection that ends.
    fn remove(&self, interface: &Interface, id: &str) {
        let mut known = self.lock();
        if known.get(interface).is_some_and(|holder| *holder.connection == *id) {
            known.remove(interface);
        }
    }
}

impl Supersede {
    /// For the chain behind `handle`; `holders` has the connections of before.
    pub fn new(handle: ChainHandle, holders: Arc<Holders>) -> Self {
        Self { chain: handle, holders }
    }

    async fn close_former(&self, call: &Call, asked: &NetworkServiceRequest) {
        let Some(connection) = &asked.connection else { return };
        for preference in &asked.mechanism_preferences {
            let Some(interface) = interface(preference) else { continue };
            let Some(former) = self.holders.former(&interface, &connection.id) else { continue };
            if *former.client == *client(connection) {
                let path = connection.path.clone();
                self.close_one(call, &former, path, "its client has begun anew").await;
            } else if is_gone(call, &interface).await {
                self.close_one(call, &former, None, "its interface is gone").await;
            }
        }
    }

    /// `path`: a path of the same client, whose tokens the former connection may need if it was taken over.
    async fn close_one(&self, call: &Call, former: &Holder, path: Option<Path>, why: &'static str) {
        let (id, Some(chain)) = (&former.connection, self.chain.upgrade()) else { return };
        tracing::info!(former = %id, why, "what a client had is closed");
        let mut closing = Call::internal(why, call.remaining());
        path.into_iter().for_each(|path| closing.state.insert(Lent(path)));
        let connection = Connection { id: id.to_string(), ..Default::default() };
        if let Err(status) = chain.close(&mut closing, connection).await {
            tracing::info!(former = %id, %status, "closing what a client had");
        }
    }
}

/// Who the path's first token says it is.
fn client(connection: &Connection) -> String {
    let first = path::of(connection).path_segments.first();
    first.and_then(|segment| claimed_subject(&segment.token)).unwrap_or_default()
}

fn interface(mechanism: &Mechanism) -> Option<Interface> {
    if mechanism.r#type != KERNEL {
        return None;
    }
    let of = |key| mechanism.parameters.get(key).map(|value| value.as_str().into());
    Some(Interface { inode: of(INODE_URL)?, name: of(NAME)? })
}

/// Whether the namespace whose descriptor came with the Request has no such interface. False where that can't be found out.
async fn is_gone(call: &Call, interface: &Interface) -> bool {
    let Ok(inode) = interface.inode.parse() else { return false };
    let Some(fd) = call.state.get::<Fds>().and_then(|fds| fds.get(&inode)) else { return false };
    let Ok(namespace) = Namespace::new(inode, fd) else { return false };
    let name = Arc::clone(&interface.name);
    namespace.run(move || kernel::apply::exists(&name)).await.is_ok_and(|exists| !exists)
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
        self.holders.put(&answer, &client(&answer), &mut call.state);
        Ok(answer)
    }

    async fn close(&self, call: &mut Call, connection: Connection, next: Next<'_>) -> Result<(), Status> {
        if let Some(interface) = call.state.remove::<Interface>() {
            self.holders.remove(&interface, &connection.id);
        }
        next.close(call, connection).await
    }
}
