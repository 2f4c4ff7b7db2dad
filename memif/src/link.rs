//! What a finished handshake yields, and what the owner of a listener or a dialer is told.

use crate::handshake::{HandshakeError, Mode};
use crate::message::{Name, Reason};
use crate::queue::{Queues, RxQueue, TxQueue};
use crate::socket::PeerCredentials;

/// A live connection's queues. They keep the shared memory mapped; the control socket stays with the
/// [`Listener`](crate::Listener) or [`Dialer`](crate::Dialer), which reports the end of the connection as
/// [`Event::Disconnected`]. Drop the link then: no packet comes or goes any more.
#[derive(Debug)]
pub struct Link {
    /// What the frames are.
    pub mode: Mode,
    /// The peer's program, as it calls itself.
    pub peer_program: Name,
    /// The peer's name for the interface.
    pub peer_interface: Name,
    /// Who the peer is, as the kernel says.
    pub peer: PeerCredentials,
    /// Ends that receive, in the order of their rings.
    pub rx: Vec<RxQueue>,
    /// Ends that send, in the order of their rings.
    pub tx: Vec<TxQueue>,
}

impl Link {
    pub(crate) fn new(mode: Mode, names: (Name, Name), peer: PeerCredentials, queues: Queues) -> Self {
        let (peer_program, peer_interface) = names;
        Self { mode, peer_program, peer_interface, peer, rx: queues.rx, tx: queues.tx }
    }
}

/// What happened on a control socket.
#[derive(Debug)]
pub enum Event {
    /// A link is up.
    Connected {
        /// The interface.
        id: u32,
        /// Its queues.
        link: Link,
    },
    /// A link is down, not by the owner's wish.
    Disconnected {
        /// The interface.
        id: u32,
        /// Why.
        reason: DisconnectReason,
    },
    /// A peer got no link, or a dialer found no server. A dialer with an address tries again.
    Refused {
        /// The interface, if the peer came as far as to name one.
        id: Option<u32>,
        /// The peer, if there was one.
        peer: Option<PeerCredentials>,
        /// Why; the peer was told the same.
        reason: HandshakeError,
    },
}

/// Why a link went down.
#[derive(Debug, thiserror::Error)]
pub enum DisconnectReason {
    /// The peer said DISCONNECT.
    #[error("peer disconnected: {0}")]
    Peer(Reason),
    /// The peer closed its socket, or its process ended.
    #[error("peer closed the connection")]
    Closed,
    /// The peer broke the protocol.
    #[error("peer broke the protocol: {0}")]
    Protocol(HandshakeError),
}
