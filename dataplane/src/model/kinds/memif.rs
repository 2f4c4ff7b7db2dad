//! What is said about a memif.

use serde::Deserialize;

use super::Mode;
use crate::model::value::{BufferSize, ControlSocket, Queues, RingSize, Secret};

/// Which side of a memif this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Listens; memif calls it master.
    Server,
    /// Connects and provides the memory; memif calls it slave.
    Client,
}

/// A memif.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemifSpec {
    /// Which side.
    pub role: Role,
    /// The control socket.
    pub socket: ControlSocket,
    /// Which of the socket's interfaces.
    #[serde(default)]
    pub id: u32,
    /// What the frames are.
    #[serde(default)]
    pub mode: Mode,
    /// What both sides must know.
    #[serde(default)]
    pub secret: Secret,
    /// Ring pairs: a client makes them, a server takes at most so many.
    #[serde(default)]
    pub queues: Queues,
    /// Slots of a client's rings.
    #[serde(default)]
    pub ring_size: RingSize,
    /// Bytes of a client's buffers.
    #[serde(default)]
    pub buffer_size: BufferSize,
}
