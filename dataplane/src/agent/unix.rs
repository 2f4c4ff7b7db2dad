//! The API's socket: who may open it, and what may be removed to make room for it.

use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio_stream::wrappers::ReceiverStream;

use crate::fdpass::FdStream;

/// Owner and group may connect.
const SOCKET_MODE: u32 = 0o660;
/// Mode of a directory that is made for the socket.
const DIRECTORY_MODE: u32 = 0o750;
/// Connections at one time. Those who may connect at all are few and trusted; this is against mistakes.
const MAX_CONNECTIONS: usize = 128;
/// How long nothing is accepted after the process ran out of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Why the socket can't be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The kernel says no.
    #[error("{path}: {what}: {error}")]
    System {
        /// The socket.
        path: PathBuf,
        /// What was being done.
        what: &'static str,
        /// The kernel's answer.
        error: io::Error,
    },
    /// Something is there that is not ours to remove.
    #[error("{path}: {what}; it is left alone")]
    Occupied {
        /// The socket.
        path: PathBuf,
        /// What is there.
        what: &'static str,
    },
}

/// A listening socket whose file is removed with it.
pub struct ApiSocket {
    listener: UnixListener,
    file: SocketFile,
}

/// The socket's file, unless somebody has put another in its place.
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = |meta: std::fs::Metadata| (meta.dev(), meta.ino()) == self.identity;
        if std::fs::symlink_metadata(&self.path).is_ok_and(ours) {
            // Nothing can be done about a failure here, and the next start will find a dead socket.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl ApiSocket {
    /// Listens at `path`, for owner and group. Makes the directory if there is none; replaces a dead socket
    /// of ours.
    ///
    /// # Errors
    /// [`SocketError`].
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let wrap = |what| move |error| SocketError::System { path: path.to_owned(), what, error };
        if let Some(parent) = path.parent().filter(|parent| !parent.exists()) {
            std::fs::DirBuilder::new()
                .mode(DIRECTORY_MODE)
                .recursive(true)
                .create(parent)
                .map_err(wrap("making its directory"))?;
        }
        make_room(path)?;
        let listener = std::os::unix::net::UnixListener::bind(path).map_err(wrap("binding"))?;
        let meta = std::fs::symlink_metadata(path).map_err(wrap("looking at it"))?;
        let file = SocketFile { path: path.to_owned(), identity: (meta.dev(), meta.ino()) };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE))
            .map_err(wrap("setting its mode"))?;
        listener.set_nonblocking(true).map_err(wrap("making it non-blocking"))?;
        let listener = UnixListener::from_std(listener).map_err(wrap("watching it"))?;
        Ok(Self { listener, file })
    }

    /// Accepts connections for as long as the stream is read.
    pub fn incoming(self) -> ReceiverStream<io::Result<FdStream>> {
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            let _file = self.file;
            let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
            loop {
                // Newcomers wait in the backlog while all places are taken, and those who have one go on.
                let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
                let accepted = tokio::select! {
                    accepted = self.listener.accept() => accepted,
                    () = sender.closed() => return,
                };
                match accepted {
                    Ok((stream, _)) => {
                        if sender.send(Ok(FdStream::with_permit(stream, place))).await.is_err() {
                            return;
                        }
                    }
                    Err(error) => {
                        // The connection stays in the backlog; accepting again at once would spin.
                        tracing::warn!("API: accepting a connection: {error}");
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            }
        });
        ReceiverStream::new(receiver)
    }
}

/// Removes a socket that nobody listens on, if it is ours.
fn make_room(path: &Path) -> Result<(), SocketError> {
    let occupied = |what| Err(SocketError::Occupied { path: path.to_owned(), what });
    let wrap = |what| move |error| SocketError::System { path: path.to_owned(), what, error };
    let meta = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        meta => meta.map_err(wrap("looking at it"))?,
    };
    if !meta.file_type().is_socket() {
        return occupied("something other than a socket is there");
    }
    if meta.uid() != rustix::process::geteuid().as_raw() {
        return occupied("the socket there belongs to another user");
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(wrap("removing a dead socket"))
        }
        Err(error) => Err(wrap("asking whether somebody listens")(error)),
        Ok(_) => occupied("another process listens on it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/api.sock");
        (dir, path)
    }

    fn refusal(path: &Path) -> String {
        ApiSocket::bind(path).err().expect("must be refused").to_string()
    }

    #[tokio::test]
    async fn owner_and_group_may_connect_and_the_file_goes_with_the_socket() {
        let (_dir, path) = place();
        let socket = ApiSocket::bind(&path).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o660);
        assert_eq!(mode(path.parent().unwrap()), 0o750);
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_live_one_left_alone() {
        let (_dir, path) = place();
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let socket = ApiSocket::bind(&path).unwrap();
        assert!(refusal(&path).ends_with("another process listens on it; it is left alone"));
        drop(socket);
    }

    #[tokio::test]
    async fn what_is_not_a_socket_is_left_alone() {
        let (_dir, path) = place();
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "precious").unwrap();
        assert!(refusal(&path).ends_with("something other than a socket is there; it is left alone"));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/null", &path).unwrap();
        assert!(refusal(&path).contains("other than a socket"));
    }

    #[tokio::test]
    async fn a_file_put_in_its_place_survives() {
        let (_dir, path) = place();
        let socket = ApiSocket::bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "another's").unwrap();
        drop(socket);
        assert!(path.exists());
    }
}
