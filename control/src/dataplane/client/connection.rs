//! Connections to the engine.

use std::path::PathBuf;

use tonic::Status;
use tonic::transport::Channel;
use vwire_dataplane::fdpass::{self, FdSender};
use vwire_proto::dataplane::v1::dataplane_client::DataplaneClient;

use crate::dataplane::launch::Launcher;

/// A snapshot holds all notes, 64 MiB at most, and the ports.
const MAX_MESSAGE: usize = 80 << 20;

/// Makes connections.
pub struct Connector {
    socket: PathBuf,
    launcher: Option<Launcher>,
}

/// One connection.
pub struct Connection {
    /// Calls.
    pub client: DataplaneClient<Channel>,
    /// Descriptors, to be queued before the call that names them.
    pub fds: FdSender,
}

impl Connector {
    /// For the engine at `socket`.
    pub fn new(socket: PathBuf, launcher: Option<Launcher>) -> Self {
        Self { socket, launcher }
    }

    /// Where the engine listens.
    pub fn socket(&self) -> &PathBuf {
        &self.socket
    }

    /// A new connection, to an engine that is started if there is none and we may.
    pub async fn open(&self) -> Result<Connection, Status> {
        if let Some(launcher) = &self.launcher {
            launcher.ensure().await.map_err(Status::unavailable)?;
        }
        let (channel, fds) = fdpass::connect(&self.socket).await.map_err(|error| {
            let socket = self.socket.display();
            Status::unavailable(format!("the packet engine at {socket} does not answer: {}", root(&error)))
        })?;
        let client = DataplaneClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        Ok(Connection { client, fds })
    }
}

/// The cause at the bottom: tonic says "transport error" and no more.
fn root(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}
