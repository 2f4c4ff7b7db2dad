//! Why a handshake ends without a link. The text goes to the peer as DISCONNECT's reason, so it fits 95
//! bytes.

use super::{Mode, RingCounts};
use crate::message::{Kind, MessageError};
use crate::queue::ClientMemoryError;
use crate::region::RegionError;
use crate::ring::{Direction, RingError};
use crate::socket::SocketError;

/// Why a handshake ended without a link, or a link ended for a breach of protocol.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// Bytes that are no message.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// A message at the wrong time.
    #[error("unexpected {got} {when}")]
    Unexpected {
        /// The message.
        got: Kind,
        /// The moment, as in "before INIT".
        when: &'static str,
    },
    /// ADD_REGION and ADD_RING carry one descriptor.
    #[error("{0} without its file descriptor")]
    FdMissing(Kind),
    /// The others carry none.
    #[error("{0} with a file descriptor; it carries none")]
    FdUnwanted(Kind),
    /// No message carries more than one; or the kernel could not hand over even that.
    #[error("{0} with more file descriptors than one, or than this process may open")]
    TooManyFds(Kind),
    /// INIT's version.
    #[error("unsupported version {offered:#06x}; this server speaks 0x0200")]
    ClientVersion {
        /// What the client speaks.
        offered: u16,
    },
    /// HELLO's versions.
    #[error("server speaks versions {min:#06x} to {max:#06x}; this client speaks 0x0200")]
    ServerVersion {
        /// Lowest.
        min: u16,
        /// Highest.
        max: u16,
    },
    /// HELLO's ring size.
    #[error("server allows rings of 2^0 slots; at least 2^1 are needed")]
    ServerRingSize,
    /// INIT's id.
    #[error("no interface with id {0} on this socket")]
    UnknownId(u32),
    /// One connection per id.
    #[error("already connected: interface id {0} has a peer")]
    AlreadyConnected(u32),
    /// INIT's mode.
    #[error("mode mismatch: interface is {ours}, client asked for {theirs}")]
    ModeMismatch {
        /// The interface's.
        ours: Mode,
        /// The client's, by name or number.
        theirs: ModeName,
    },
    /// No secret in INIT.
    #[error("secret required")]
    SecretRequired,
    /// Another secret in INIT.
    #[error("incorrect secret")]
    SecretIncorrect,
    /// Regions count from 0, in order.
    #[error("ADD_REGION index {got}; expected {expected}")]
    RegionIndex {
        /// The index in the message.
        got: u16,
        /// The next in order.
        expected: usize,
    },
    /// A region that passes a limit, or whose file cannot be mapped.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// A ring that does not lie where rings can, or whose memory or eventfd is none.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// Rings count from 0 in each direction.
    #[error("ADD_RING {0} index {got}; expected {expected}", direction_name(*.direction))]
    RingIndex {
        /// Which kind of ring.
        direction: Direction,
        /// The index in the message.
        got: u16,
        /// The next in order.
        expected: usize,
    },
    /// Too many rings.
    #[error("Invalid ring index {index}; at most {max} rings each way")]
    RingCount {
        /// The index in the message.
        index: u16,
        /// Rings allowed in each direction.
        max: u16,
    },
    /// A ring's slots.
    #[error("a ring of 2^{asked} slots was announced; 2^1 to 2^{max} are allowed here")]
    RingSize {
        /// log2 in the message.
        asked: u8,
        /// log2 allowed.
        max: u8,
    },
    /// Private headers.
    #[error("private header of {0} bytes; only 0 is supported")]
    PrivateHeader(u16),
    /// CONNECT too early.
    #[error(
        "CONNECT with {} client-to-server and {} server-to-client rings; one of each is needed",
        .0.c2s, .0.s2c
    )]
    NoRings(RingCounts),
    /// The deadline of the handshake.
    #[error("handshake not finished in {0} ms")]
    Timeout(u128),
    /// The peer's user.
    #[error("peer has uid {got}; only uid {expected} may connect")]
    Uid {
        /// The peer's.
        got: u32,
        /// The one allowed.
        expected: u32,
    },
    /// No more handshakes fit.
    #[error("too many handshakes at once; at most {0}")]
    Crowded(usize),
    /// The peer left before the end.
    #[error("peer closed the connection during the handshake")]
    PeerClosed,
    /// The peer left with a reason.
    #[error("peer refused: {0}")]
    PeerRefused(String),
    /// The interface was removed meanwhile.
    #[error("interface removed")]
    Removed,
    /// The control socket could not be had, or not be used.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The client's own memory could not be had.
    #[error(transparent)]
    Memory(#[from] ClientMemoryError),
}

/// A mode as a peer numbered it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModeName(pub u8);

impl core::fmt::Display for ModeName {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match (Mode::from_wire(self.0), self.0) {
            (Some(mode), _) => mode.fmt(f),
            (None, 2) => f.write_str("punt/inject"),
            (None, number) => write!(f, "number {number}"),
        }
    }
}

fn direction_name(direction: Direction) -> &'static str {
    match direction {
        Direction::ClientToServer => "client-to-server",
        Direction::ServerToClient => "server-to-client",
    }
}
