//! Whose a connection is: a connection's id alone, which others may learn, gives no right to it.

use tonic::Status;

use crate::api::connection::Connection;
use crate::api::path::{self, PathExt};
use crate::api::token::claimed_subject;
use crate::chain::Call;
use crate::identity::SpiffeId;

/// Who may go on with a connection that someone else began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Binding {
    /// Anyone who knows the id, as the Go components have it.
    Off,
    /// The caller that began it, by its SPIFFE ID and the segment before ours. A Request may also come by another hop, as it does
    /// after the death of a forwarder, if the path begins at the same client: the same id, the same SPIFFE ID in its token.
    #[default]
    Healing,
    /// Only the caller that began it. A client whose forwarder or manager was replaced must close and ask anew.
    Exact,
}

/// Who made the last Request that succeeded.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Owner {
    caller: Option<SpiffeId>,
    /// The id of the segment before ours.
    previous: String,
    /// Where the path begins.
    root: String,
    /// Whom the token of the path's first segment names. Verified only if that is the caller.
    client: Option<String>,
}

impl Owner {
    pub(super) fn of(call: &Call, connection: &Connection) -> Self {
        let path = path::of(connection);
        Self {
            caller: caller(call).cloned(),
            previous: previous(connection).to_owned(),
            root: path.root_id().to_owned(),
            client: client(connection),
        }
    }

    /// As an earlier process wrote it down.
    pub(super) fn recorded(
        connection: &Connection,
        caller: Option<SpiffeId>,
        client: Option<String>,
    ) -> Self {
        let root = path::of(connection).root_id().to_owned();
        Self { caller, previous: previous(connection).to_owned(), root, client }
    }

    /// Whether this call may change the connection.
    pub(super) fn admit(&self, call: &Call, asked: &Connection, binding: Binding) -> Result<(), Status> {
        if call.peer().is_none() || binding == Binding::Off || self.is_same(call, asked) {
            return Ok(());
        }
        let heals = binding == Binding::Healing && !self.is_by_client() && self.begins_alike(asked);
        if heals { Ok(()) } else { Err(refuse(asked)) }
    }

    /// Whether this call may end the connection.
    pub(super) fn admit_close(
        &self,
        call: &Call,
        asked: &Connection,
        binding: Binding,
    ) -> Result<(), Status> {
        if call.peer().is_none() || binding == Binding::Off || self.is_same(call, asked) {
            return Ok(());
        }
        Err(refuse(asked))
    }

    /// True if the call comes from whom the last one came, by the same connection.
    pub(super) fn is_same(&self, call: &Call, asked: &Connection) -> bool {
        self.caller.as_ref() == caller(call) && self.previous == previous(asked)
    }

    /// True if the caller is the client itself: nothing between us can have been replaced.
    fn is_by_client(&self) -> bool {
        self.previous == self.root
    }

    fn begins_alike(&self, asked: &Connection) -> bool {
        self.root == path::of(asked).root_id() && self.client == client(asked)
    }
}

fn caller(call: &Call) -> Option<&SpiffeId> {
    call.peer().and_then(|peer| peer.id.as_ref())
}

fn previous(connection: &Connection) -> &str {
    path::of(connection).previous().map_or("", |segment| &segment.id)
}

fn client(connection: &Connection) -> Option<String> {
    path::of(connection).path_segments.first().and_then(|segment| claimed_subject(&segment.token))
}

fn refuse(asked: &Connection) -> Status {
    Status::permission_denied(format!("connection {} was made by another caller", asked.id))
}
