//! Control sockets: one message and at most one file descriptor at a time, and never a blocked call.

use std::io::{IoSlice, IoSliceMut};
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sockopt,
};

use crate::address::Address;
use crate::handshake::Attached;
use crate::message::{MESSAGE_SIZE, Message, MessageError};

/// Connections that the kernel keeps ready for us to accept.
const BACKLOG: i32 = 64;

/// Who a peer is, as the kernel saw it when the connection was made (SO_PEERCRED).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PeerCredentials {
    /// Process id; 0 if the peer is in a process namespace that we cannot see into.
    pub pid: i32,
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
}

/// What is wrong with a socket, and which call said so.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A system call failed.
    #[error("memif socket {address}: {call}: {source}")]
    System {
        /// The socket.
        address: String,
        /// The system call.
        call: &'static str,
        /// What the kernel said.
        source: Errno,
    },
    /// Something other than a dead socket is where ours should be.
    #[error("memif socket {address}: {what}; it is left alone")]
    Occupied {
        /// The path.
        address: String,
        /// What is there.
        what: &'static str,
    },
    /// A descriptor that was handed to us is no such socket.
    #[error("the file descriptor handed over is no {wanted}: {found}")]
    Unsuitable {
        /// What it should be.
        wanted: &'static str,
        /// What it lacks.
        found: &'static str,
    },
}

/// What a receive found.
#[derive(Debug)]
pub(crate) enum Received {
    /// Nothing now.
    Nothing,
    /// The peer has gone.
    Closed,
    /// A datagram, with whatever came beside it.
    Message(Result<Message, MessageError>, Attached<OwnedFd>),
}

/// What a receive found, before anybody looks into it.
pub(crate) enum RawReceived<'b> {
    /// Nothing now.
    Nothing,
    /// The peer has gone.
    Closed,
    /// A datagram, with whatever came beside it.
    Bytes(&'b [u8], Attached<OwnedFd>),
}

/// A connected control socket.
#[derive(Debug)]
pub(crate) struct ControlSocket {
    fd: OwnedFd,
    pub(crate) peer: PeerCredentials,
}

impl ControlSocket {
    /// Takes over a connected socket: checks what it is, and makes it non-blocking.
    pub(crate) fn adopt(fd: OwnedFd) -> Result<Self, SocketError> {
        check_kind(&fd, false, "connected memif socket")?;
        // No address to name: the other process chose it.
        Self::prepare(fd).map_err(failed("(handed over)", "fcntl"))
    }

    /// Connects to a server; the kernel makes unix connections at once or not at all.
    pub(crate) fn connect(address: &Address) -> Result<Self, SocketError> {
        let shown = &address.to_string();
        let fd = new_socket().map_err(failed(shown, "socket"))?;
        let to = address.to_socket().map_err(failed(shown, "address"))?;
        rustix::net::connect(&fd, &to).map_err(failed(shown, "connect"))?;
        Self::prepare(fd).map_err(failed(shown, "getsockopt"))
    }

    fn prepare(fd: OwnedFd) -> Result<Self, Errno> {
        set_nonblocking(&fd)?;
        // Accepted sockets inherit SO_PASSCRED from the listener, whoever opened it. Credentials are had once
        // from SO_PEERCRED; beside messages they would only take up room.
        sockopt::set_socket_passcred(&fd, false)?;
        let peer = peer_credentials(fd.as_fd())?;
        Ok(Self { fd, peer })
    }

    /// Sends a message; a peer that does not make room for it counts as gone, as the protocol never has two
    /// outstanding.
    pub(crate) fn send(&self, message: &Message, fd: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
        self.send_raw(&message.encode(), fd)
    }

    /// The same with bytes that are somebody else's.
    pub(crate) fn send_raw(&self, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
        let fds = fd.as_slice();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(fds));
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        rustix::net::sendmsg(&self.fd, &[IoSlice::new(bytes)], &mut control, flags).map(drop)
    }

    /// Tells the peer why it is left, if it still listens.
    pub(crate) fn leave(&self, reason: &str) {
        let _ = self.send(&Message::disconnect(reason), None);
    }

    /// Receives one message. Every descriptor that came with it is either returned or closed.
    pub(crate) fn receive(&self) -> Result<Received, Errno> {
        // One byte more than a message, so that a longer one shows.
        let mut bytes = [0; MESSAGE_SIZE + 1];
        Ok(match self.receive_raw(&mut bytes)? {
            RawReceived::Nothing => Received::Nothing,
            RawReceived::Closed => Received::Closed,
            RawReceived::Bytes(bytes, attached) => Received::Message(Message::decode(bytes), attached),
        })
    }

    /// The same, without looking into it. What does not fit into `bytes` is lost.
    pub(crate) fn receive_raw<'b>(&self, bytes: &'b mut [u8]) -> Result<RawReceived<'b>, Errno> {
        let mut got = self.receive_once(bytes);
        if matches!(got, Err(Errno::CONNRESET)) {
            // The peer closed without having read all we sent. What it said before is still there, a reason
            // perhaps.
            got = self.receive_once(bytes);
        }
        Ok(match got? {
            None => RawReceived::Nothing,
            Some((0, _)) => RawReceived::Closed,
            Some((len, attached)) => RawReceived::Bytes(&bytes[..len], attached),
        })
    }

    /// How many bytes came, and what beside them.
    fn receive_once(&self, bytes: &mut [u8]) -> Result<Option<(usize, Attached<OwnedFd>)>, Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2), ScmCredentials(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let got = match rustix::net::recvmsg(&self.fd, &mut [IoSliceMut::new(bytes)], &mut control, flags) {
            Ok(got) => got,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
            Err(other) => return Err(other),
        };
        // Truncated control data: the kernel closed what did not fit, and what did is closed here.
        let attached = take_one(&mut control, got.flags.contains(ReturnFlags::CTRUNC));
        Ok(Some((got.bytes, attached)))
    }

    /// The socket itself.
    pub(crate) fn into_fd(self) -> OwnedFd {
        self.fd
    }
}

impl AsFd for ControlSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn take_one(control: &mut RecvAncillaryBuffer<'_>, truncated: bool) -> Attached<OwnedFd> {
    let mut attached = if truncated { Attached::TooMany } else { Attached::None };
    for message in control.drain() {
        let RecvAncillaryMessage::ScmRights(fds) = message else { continue };
        for fd in fds {
            attached = match attached {
                Attached::None => Attached::One(fd),
                Attached::One(_) | Attached::TooMany => Attached::TooMany,
            };
        }
    }
    attached
}

/// A listening control socket. One bound to a path by us removes it when dropped.
#[derive(Debug)]
pub(crate) struct ListeningSocket {
    fd: OwnedFd,
    _file: Option<SocketFile>,
}

impl ListeningSocket {
    /// Takes over a listening socket that somebody else bound, perhaps in another network namespace.
    pub(crate) fn adopt(fd: OwnedFd) -> Result<Self, SocketError> {
        check_kind(&fd, true, "listening memif socket")?;
        set_nonblocking(&fd).map_err(failed("(handed over)", "fcntl"))?;
        Ok(Self { fd, _file: None })
    }

    /// Binds and listens. A dead socket's file is replaced; anything else in the way is an error.
    pub(crate) fn bind(address: &Address) -> Result<Self, SocketError> {
        let shown = &address.to_string();
        let fd = new_socket().map_err(failed(shown, "socket"))?;
        let to = address.to_socket().map_err(failed(shown, "address"))?;
        match (rustix::net::bind(&fd, &to), address) {
            (Err(Errno::ADDRINUSE), Address::Path(path)) => {
                remove_dead_socket(address, path)?;
                rustix::net::bind(&fd, &to)
            }
            (result, _) => result,
        }
        .map_err(failed(shown, "bind"))?;
        let file = SocketFile::of(address);
        rustix::net::listen(&fd, BACKLOG).map_err(failed(shown, "listen"))?;
        Ok(Self { fd, _file: file })
    }

    /// The next waiting connection, if there is one.
    pub(crate) fn accept(&self) -> Result<Option<ControlSocket>, Errno> {
        match rustix::net::accept_with(&self.fd, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(fd) => ControlSocket::prepare(fd).map(Some),
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
            Err(other) => Err(other),
        }
    }
}

impl AsFd for ListeningSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The file of a socket that we bound. Removed at the end, unless somebody put another in its place.
#[derive(Debug)]
struct SocketFile {
    path: std::path::PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    fn of(address: &Address) -> Option<Self> {
        let Address::Path(path) = address else { return None };
        // Absolute, so that it is found again if the process changes its directory.
        let path = std::path::absolute(path).ok()?;
        let identity = identity(&path)?;
        Some(Self { path, identity })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path) == Some(self.identity) {
            let _ = rustix::fs::unlink(&self.path);
        }
    }
}

fn identity(path: &std::path::Path) -> Option<(u64, u64)> {
    rustix::fs::lstat(path).ok().map(|stat| (stat.st_dev, stat.st_ino))
}

/// Removes the file of a socket that nobody listens on any more, as a crashed process leaves it.
fn remove_dead_socket(address: &Address, path: &std::path::Path) -> Result<(), SocketError> {
    let shown = &address.to_string();
    let occupied = |what| SocketError::Occupied { address: shown.clone(), what };
    let stat = rustix::fs::lstat(path).map_err(failed(shown, "lstat"))?;
    match rustix::fs::FileType::from_raw_mode(stat.st_mode) {
        rustix::fs::FileType::Socket => {}
        rustix::fs::FileType::Symlink => return Err(occupied("a symbolic link has this name")),
        rustix::fs::FileType::Directory => return Err(occupied("a directory has this name")),
        _ => return Err(occupied("a file that is no socket has this name")),
    }
    match ControlSocket::connect(address) {
        Ok(_) | Err(SocketError::System { source: Errno::AGAIN, .. }) => {
            Err(occupied("another process listens on it"))
        }
        Err(SocketError::System { source: Errno::CONNREFUSED, .. }) => {
            rustix::fs::unlink(path).map_err(failed(shown, "unlink"))
        }
        Err(SocketError::System { source: Errno::PROTOTYPE, .. }) => {
            Err(occupied("a socket of another type has this name"))
        }
        Err(other) => Err(other),
    }
}

fn new_socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

fn check_kind(fd: &OwnedFd, listening: bool, wanted: &'static str) -> Result<(), SocketError> {
    let unsuitable = |found| SocketError::Unsuitable { wanted, found };
    let domain = sockopt::socket_domain(fd).map_err(|_| unsuitable("it is not a socket"))?;
    if domain != AddressFamily::UNIX {
        return Err(unsuitable("it is not a unix socket"));
    }
    if sockopt::socket_type(fd) != Ok(SocketType::SEQPACKET) {
        return Err(unsuitable("it is not of type SOCK_SEQPACKET"));
    }
    match (sockopt::socket_acceptconn(fd) == Ok(true), listening) {
        (false, true) => Err(unsuitable("it is not listening")),
        (true, false) => Err(unsuitable("it is listening")),
        (false, false) if rustix::net::getpeername(fd).is_err() => Err(unsuitable("it has no peer")),
        _ => Ok(()),
    }
}

fn set_nonblocking(fd: &OwnedFd) -> Result<(), Errno> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK)?;
    rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC)
}

pub(crate) fn failed(address: &str, call: &'static str) -> impl FnOnce(Errno) -> SocketError {
    move |source| SocketError::System { address: address.to_owned(), call, source }
}

/// SO_PEERCRED. Not by way of `rustix`, whose type says that a process id is never 0, which it is for a peer
/// in another process namespace.
fn peer_credentials(fd: BorrowedFd<'_>) -> Result<PeerCredentials, Errno> {
    let mut cred = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `cred`, which is valid whatever integers it holds.
    let result = unsafe {
        let to = (&raw mut cred).cast();
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, to, &raw mut len)
    };
    if result == 0 {
        Ok(PeerCredentials { pid: cred.pid, uid: cred.uid, gid: cred.gid })
    } else {
        Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL))
    }
}
