//! What is said about a memif that is handed through.

use crate::model::value::{ControlSocket, Inode, Invalid, Netns, shown};

/// A memif that is handed through: control messages are passed on between a client and a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelaySpec {
    /// The listening socket that the client connects to.
    pub listen: Inode,
    /// Where the server's socket is; the engine's own namespace if `None`.
    pub netns: Option<Netns>,
    /// The server's abstract socket, without the leading `@`.
    pub socket: String,
}

impl RelaySpec {
    /// The relay to a socket that is written `@name`.
    ///
    /// # Errors
    /// If it is no such name.
    pub fn new(listen: Inode, netns: Option<Netns>, socket: &str) -> Result<Self, Invalid> {
        match socket.parse()? {
            ControlSocket::Abstract(socket) => Ok(Self { listen, netns, socket }),
            _ => Err(Invalid(format!("{} is no abstract socket; write @name", shown(socket)))),
        }
    }
}
