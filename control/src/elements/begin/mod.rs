//! `begin`: one run at a time for each connection, and what is known of it between runs.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use async_trait::async_trait;
use futures::FutureExt;
use tonic::Status;

use crate::api::connection::{Connection, Path, State as ConnectionState};
use crate::api::networkservice::NetworkServiceRequest;
use crate::chain::{Call, Element, Next, Origin, Packed, PackedMechanisms, State};
use crate::identity::SpiffeId;

use super::authorize::Refused;

mod owner;
mod slots;

pub use owner::Binding;
use owner::Owner;
use slots::Slots;

/// Runs for one connection id wait for each other, in the order in which they came; those of different ids don't. Keeps a
/// connection as it was answered last, with what elements remember of it, from the first Request that succeeds until its Close.
///
/// - A first Request that fails leaves nothing behind: what elements keep by then is closed.
/// - A refresh that fails leaves the connection as it was.
/// - Close of an unknown connection is done already; that of a known one gets the connection as it was answered last, whatever
///   the caller passed. A run that the role itself starts may bring [tokens](Lent) for its path, though.
/// - A Close that the policies refuse leaves the connection as it was.
/// - A Request in the state `RESELECT_REQUESTED` is a Close and a first Request in one. The policies judge the Close, too, by how
///   this Request came: it may have come by another hop than the one before.
/// - A run that the role itself starts names the connection by its id; where it gives no path, it gets the stored connection and
///   preferences.
pub struct Begin {
    slots: Slots<Established>,
    binding: Binding,
    passes_unknown: bool,
}

/// In the state of a run that closes a connection: a path through the same hops, up to us, whose tokens serve for the connection's.
/// Those of one that was taken over are not known, and the next hop asks for them.
#[derive(Debug)]
pub struct Lent(pub Path);

/// A connection between runs.
struct Established {
    connection: Packed,
    preferences: PackedMechanisms,
    state: State,
    owner: Owner,
    revision: u64,
}

impl Begin {
    /// With this rule about who may go on with a connection that someone else began.
    pub fn new(binding: Binding) -> Self {
        Self { slots: Slots::default(), binding, passes_unknown: false }
    }

    /// Passes the Close of an unknown connection on, too: where several processes of one name do the same work, another may have made
    /// it. What the caller says of it is then all that is known.
    #[must_use]
    pub fn passing_unknown(self) -> Self {
        Self { passes_unknown: true, ..self }
    }

    /// Takes over a connection that an earlier process of this role had established: in our coordinates, with what elements would
    /// remember of it. `caller` and `client` are the SPIFFE IDs of who asked for it last, and of whom the path's first token named.
    pub fn adopt(
        &self,
        connection: Connection,
        caller: Option<SpiffeId>,
        client: Option<String>,
        state: State,
    ) {
        let Ok(id) = known_id(&connection) else { return };
        let owner = Owner::recorded(&connection, caller, client);
        let connection = connection.into();
        self.slots.fill(
            id,
            Established { connection, preferences: PackedMechanisms::default(), state, owner, revision: 1 },
        );
    }

    /// How many connections there are, and those being made.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ends the connection as elements know it, in the coordinates of this chain; what they remember goes.
    async fn end(call: &mut Call, connection: Connection, next: Next<'_>) -> Result<(), Status> {
        let done = guarded(next.close(call, connection)).await;
        forget(call);
        done
    }

    /// Closes what is there, told to elements as `closing`. It is given back if the policies refuse that.
    async fn end_known(
        call: &mut Call,
        mut known: Established,
        closing: Connection,
        next: Next<'_>,
    ) -> (Option<Established>, Result<(), Status>) {
        call.state = std::mem::take(&mut known.state);
        let done = guarded(next.close(call, closing)).await;
        if call.state.remove::<Refused>().is_some() {
            known.state = std::mem::take(&mut call.state);
            return (Some(known), done);
        }
        forget(call);
        (None, done)
    }

    /// Frees what elements keep for a connection that never came to be.
    async fn undo(call: &mut Call, connection: Connection, next: Next<'_>) {
        if call.state.is_empty() {
            return;
        }
        let time = call.remaining().max(UNDO_TIME);
        let mut undo = Call::internal("undoing a Request that failed", time);
        undo.state = std::mem::take(&mut call.state);
        if let Err(status) = Self::end(&mut undo, connection, next).await {
            tracing::debug!(%status, "undoing a Request that failed");
        }
    }
}

/// How long the undoing of a failed Request may take at least: its own time may be over.
const UNDO_TIME: std::time::Duration = std::time::Duration::from_secs(5);

#[async_trait]
impl Element for Begin {
    async fn request(
        &self,
        call: &mut Call,
        mut request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        let asked = request.connection.get_or_insert_default();
        let lease = self.slots.lease(known_id(asked)?);
        let mut slot = lease.turn(call).await?;
        let internal = matches!(call.origin, Origin::Internal(_));

        let Some(known) = slot.take() else {
            if internal && asked.path.is_none() {
                return Err(Status::not_found(format!("connection {} is not there any more", asked.id)));
            }
            let (established, answer) = first(call, request, next, 1).await?;
            *slot = Some(established);
            return Ok(answer);
        };
        if let Err(status) = known.owner.admit(call, asked, self.binding) {
            *slot = Some(known);
            return Err(status);
        }
        if internal && asked.path.is_none() {
            let state = asked.state;
            request = NetworkServiceRequest {
                connection: Some(Connection { state, ..known.connection.unpack() }),
                mechanism_preferences: known.preferences.unpack(),
            };
        }
        if let Some(asked) = request.connection.as_ref().filter(|asked| wants_reselect(asked)) {
            let (closing, revision) = (come_anew(known.connection.unpack(), asked), known.revision);
            let (kept, done) = Self::end_known(call, known, closing, next).await;
            *slot = kept;
            match done {
                Err(status) if slot.is_some() => return Err(status),
                Err(status) => tracing::info!(%status, "closing before a new selection"),
                Ok(()) => {}
            }
            let (established, answer) = first(call, request, next, revision + 1).await?;
            *slot = Some(established);
            return Ok(answer);
        }
        let (established, done) = refresh(call, request, next, known).await;
        *slot = Some(established);
        done
    }

    async fn close(&self, call: &mut Call, connection: Connection, next: Next<'_>) -> Result<(), Status> {
        let lease = self.slots.lease(known_id(&connection)?);
        let mut slot = lease.turn(call).await?;
        let Some(known) = slot.take() else {
            if self.passes_unknown && call.peer().is_some() {
                return Self::end(call, connection, next).await;
            }
            return Ok(());
        };
        if call.revision.is_some_and(|revision| revision != known.revision) {
            *slot = Some(known);
            return Ok(());
        }
        if let Err(status) = known.owner.admit_close(call, &connection, self.binding) {
            *slot = Some(known);
            return Err(status);
        }
        let mut closing = known.connection.unpack();
        if let Some(Lent(path)) = call.state.remove() {
            lend_tokens(&mut closing, &path);
        }
        let (kept, done) = Self::end_known(call, known, closing, next).await;
        *slot = kept;
        done
    }
}

/// Takes tokens of the hops before us from another path through the same hops.
fn lend_tokens(closing: &mut Connection, other: &Path) {
    let Some(path) = &mut closing.path else { return };
    let ours = path.index as usize;
    for (segment, lender) in path.path_segments.iter_mut().take(ours).zip(&other.path_segments) {
        if segment.name == lender.name && !lender.token.is_empty() {
            segment.token.clone_from(&lender.token);
            segment.expires.clone_from(&lender.expires);
        }
    }
}

/// After a Close: nothing is remembered.
fn forget(call: &mut Call) {
    call.state.clear();
    call.next_hop = None;
    call.candidates.clear();
}

/// A connection that is there, with the path up to us as it is in a later Request: the rest of the path is where it went.
fn come_anew(mut closing: Connection, asked: &Connection) -> Connection {
    if let (Some(old), Some(new)) = (closing.path.as_mut(), asked.path.as_ref()) {
        let ours = (new.index as usize + 1).min(new.path_segments.len());
        let onward = old.path_segments.split_off((old.index as usize + 1).min(old.path_segments.len()));
        old.path_segments = new.path_segments[..ours].to_vec();
        old.path_segments.extend(onward);
        old.index = new.index;
    }
    closing
}

/// A Request for what is not there yet.
async fn first(
    call: &mut Call,
    request: NetworkServiceRequest,
    next: Next<'_>,
    revision: u64,
) -> Result<(Established, Connection), Status> {
    call.first = true;
    call.revision = Some(revision);
    let asked = request.connection.clone().unwrap_or_default();
    let preferences = PackedMechanisms::from(&*request.mechanism_preferences);
    match guarded(next.request(call, request)).await {
        Ok(mut connection) => {
            connection.state = ConnectionState::Up.into();
            let owner = Owner::of(call, &connection);
            let state = std::mem::take(&mut call.state);
            let kept = connection.clone().into();
            Ok((Established { connection: kept, preferences, state, owner, revision }, connection))
        }
        Err(status) => {
            Begin::undo(call, asked, next).await;
            Err(status)
        }
    }
}

/// A Request for what is there.
async fn refresh(
    call: &mut Call,
    request: NetworkServiceRequest,
    next: Next<'_>,
    mut known: Established,
) -> (Established, Result<Connection, Status>) {
    call.state = std::mem::take(&mut known.state);
    call.revision = Some(known.revision + 1);
    let preferences = PackedMechanisms::from(&*request.mechanism_preferences);
    let done = guarded(next.request(call, request)).await;
    known.state = std::mem::take(&mut call.state);
    let done = done.map(|mut connection| {
        connection.state = ConnectionState::Up.into();
        if call.peer().is_some() && !known.owner.is_same(call, &connection) {
            known.owner = Owner::of(call, &connection);
        }
        known.connection = connection.clone().into();
        known.preferences = preferences;
        known.revision += 1;
        connection
    });
    (known, done)
}

fn wants_reselect(connection: &Connection) -> bool {
    connection.state() == ConnectionState::ReselectRequested
}

fn known_id(connection: &Connection) -> Result<Arc<str>, Status> {
    if connection.id.is_empty() {
        return Err(Status::invalid_argument("connection.id: empty"));
    }
    Ok(Arc::from(connection.id.as_str()))
}

/// A panic in an element fails its run, and only that.
async fn guarded<T>(run: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    AssertUnwindSafe(run).catch_unwind().await.unwrap_or_else(|_| {
        Err(Status::internal(
            "an element of the chain panicked; the log has the place. This is an error in vwire",
        ))
    })
}

#[cfg(test)]
mod tests;
