//! The byte streams under TLS, and what a session proves about its other end.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::CommonState;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use vwire_dataplane::fdpass::FdStream;

use super::tls::ALPN;
use super::{FdLane, Peer, PeerAddress};
use crate::identity::{Leaf, Svid};

/// How long a TCP peer may leave what we sent unacknowledged, or our probes unanswered, before the connection counts as broken.
const TCP_GIVE_UP: Duration = Duration::from_secs(10);
/// After which silence a TCP peer is probed, and how often then.
const TCP_PROBE: Duration = Duration::from_secs(5);

/// A connection of either kind.
pub(super) enum Stream {
    Unix(FdStream),
    Tcp(TcpStream),
}

impl Stream {
    pub fn unix(stream: UnixStream) -> Self {
        Self::Unix(FdStream::new(stream))
    }

    /// Sends small messages at once, and notices a peer whose machine is gone. The probes are TCP's: HTTP/2 pings would end
    /// connections to grpc-go servers, which take more than one in five minutes for an attack.
    pub fn tcp(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let socket = socket2::SockRef::from(&stream);
        let probes = socket2::TcpKeepalive::new().with_time(TCP_PROBE).with_interval(Duration::from_secs(1));
        socket.set_tcp_keepalive(&probes.with_retries(3))?;
        socket.set_tcp_user_timeout(Some(TCP_GIVE_UP))?;
        Ok(Self::Tcp(stream))
    }

    /// Where its descriptors come and go.
    pub fn lane(&self) -> Option<FdLane> {
        match self {
            Self::Unix(stream) => Some(FdLane { received: stream.received(), sender: stream.sender() }),
            Self::Tcp(_) => None,
        }
    }
}

/// Who is at the other end of a unix connection, as the kernel says.
pub(super) fn unix_address(stream: &UnixStream) -> io::Result<PeerAddress> {
    let who = stream.peer_cred()?;
    Ok(PeerAddress::Unix { pid: who.pid(), uid: who.uid() })
}

/// The other end of a finished handshake.
pub(super) fn peer_of(
    state: &CommonState,
    local: Arc<Svid>,
    address: PeerAddress,
    fds: Option<FdLane>,
) -> io::Result<Peer> {
    let bad = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
    if state.alpn_protocol() != Some(ALPN) {
        return Err(bad("the peer does not negotiate ALPN h2, which gRPC asks for".to_owned()));
    }
    let leaf = state.peer_certificates().and_then(<[_]>::first);
    let leaf = leaf.ok_or_else(|| bad("the peer showed no certificate".to_owned()))?.clone().into_owned();
    let read = Leaf::read(&leaf).map_err(|error| bad(error.to_string()))?;
    Ok(Peer {
        id: Some(read.id),
        leaf: Some(leaf),
        not_after: Some(read.not_after),
        local: Some(local),
        address,
        fds,
    })
}

/// The other end of a connection without TLS.
pub(super) fn unproven(address: PeerAddress, fds: Option<FdLane>) -> Peer {
    Peer { id: None, leaf: None, not_after: None, local: None, address, fds }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
