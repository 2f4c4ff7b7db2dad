//! One run of a chain.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::State;
use crate::api::matching::Candidate;
use crate::identity::Token;
use crate::transport::{Inode, Peer, Target};

/// Why a chain runs.
#[derive(Clone)]
pub enum Origin {
    /// A peer called.
    Peer {
        /// Who it is, and by which connection.
        peer: Arc<Peer>,
        /// The token that came with the call, parsed and not yet verified: made by the peer for us.
        token: Option<Token>,
    },
    /// The role itself: a timer, a watcher, a restart. The text is for logs. `begin` gives such a run the stored connection.
    Internal(&'static str),
}

/// One run of a chain: who asked, how long there is time, and what elements tell those after them.
pub struct Call {
    /// Why the chain runs.
    pub origin: Origin,
    /// When the answer is of no use any more. `connect` tells the next hop.
    pub deadline: Instant,
    /// What elements remember of this connection. Empty outside `begin`, which fills it and keeps it afterwards.
    pub state: State,
    /// Where `connect` goes; none where the chain ends here.
    pub next_hop: Option<Target>,
    /// The endpoints that match, best first; `discover` finds them, `round_robin` tries them.
    pub candidates: Vec<Candidate>,
    /// Counts the Requests of a connection that succeeded; `begin` sets it. A Close that has one set is dropped by `begin` if
    /// there was another Request since: what a timer or a caller that left wants closed is closed only as it was.
    pub revision: Option<u64>,
    /// True in a Request that made a connection, where there was none; `begin` sets it.
    pub first: bool,
    /// The descriptors that were taken from the caller's lane. What else the message names is closed when the run ends.
    pub fds_taken: Vec<Inode>,
}

impl Call {
    /// A run for `origin` that has `time`.
    pub fn new(origin: Origin, time: Duration) -> Self {
        Self {
            origin,
            deadline: Instant::now() + time,
            state: State::default(),
            next_hop: None,
            candidates: Vec::new(),
            revision: None,
            first: false,
            fds_taken: Vec::new(),
        }
    }

    /// A run that the role itself starts.
    pub fn internal(why: &'static str, time: Duration) -> Self {
        Self::new(Origin::Internal(why), time)
    }

    /// The peer that called, if one did.
    pub fn peer(&self) -> Option<&Arc<Peer>> {
        match &self.origin {
            Origin::Peer { peer, .. } => Some(peer),
            Origin::Internal(_) => None,
        }
    }

    /// How long there is time.
    pub fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}
