//! Listening sockets, and leaving no trace of them.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, UnixListener};

use super::stream::{Stream, unix_address};
use super::{PeerAddress, Target};

/// One listening socket.
pub(super) enum Listener {
    Unix(UnixListener, SocketFile),
    Tcp(TcpListener),
}

/// The socket's file; removed when this is gone, unless another took its place.
pub(super) struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|file| (file.dev(), file.ino()) == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Listener {
    pub async fn bind(target: &Target, socket_mode: u32) -> io::Result<Self> {
        match target {
            Target::Unix(path) => bind_unix(path, socket_mode),
            Target::Tcp(address) => bind_tcp(address).await,
            Target::File { .. } => Err(io::Error::other("a file that was sent can't be listened on")),
        }
    }

    /// Where it listens, with the port that the kernel chose.
    pub fn target(&self) -> io::Result<Target> {
        match self {
            Self::Unix(_, file) => Ok(Target::Unix(file.path.clone())),
            Self::Tcp(listener) => Ok(Target::Tcp(listener.local_addr()?.to_string())),
        }
    }

    pub async fn accept(&self) -> io::Result<(Stream, PeerAddress)> {
        match self {
            Self::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                let address = unix_address(&stream)?;
                Ok((Stream::unix(stream), address))
            }
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                Ok((Stream::tcp(stream)?, PeerAddress::Tcp(address)))
            }
        }
    }
}

async fn bind_tcp(address: &str) -> io::Result<Listener> {
    // `tcp://:5001` is every address: of both families where the machine has IPv6.
    let Some(port) = address.strip_prefix(':') else {
        return TcpListener::bind(address).await.map(Listener::Tcp);
    };
    let listener = match TcpListener::bind(format!("[::]:{port}")).await {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error()) => {
            TcpListener::bind(format!("0.0.0.0:{port}")).await?
        }
        bound => bound?,
    };
    Ok(Listener::Tcp(listener))
}

fn bind_unix(path: &Path, mode: u32) -> io::Result<Listener> {
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent)?;
    }
    remove_stale(path)?;
    let listener = UnixListener::bind(path)?;
    let file = std::fs::symlink_metadata(path)?;
    let file = SocketFile { path: path.to_owned(), inode: (file.dev(), file.ino()) };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    Ok(Listener::Unix(listener, file))
}

/// Removes what a killed process left: a socket that nobody listens on. Anything else stays, and is an error.
fn remove_stale(path: &Path) -> io::Result<()> {
    let file = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    if !file.file_type().is_socket() {
        let reason = "the path exists and is not a socket; remove it or listen elsewhere";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, reason));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another process listens there; end it or listen elsewhere",
        )),
        Err(error) => Err(error),
    }
}
