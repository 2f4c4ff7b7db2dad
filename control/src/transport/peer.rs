//! Who is at the other end of a connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use vwire_dataplane::fdpass::{FdSender, FdTable};

use crate::identity::{SpiffeId, Svid};

/// The other end of one connection, as TLS proved it. One TLS session has one `Peer`, whichever side dialled.
#[derive(Clone)]
pub struct Peer {
    /// Its SPIFFE ID; none without TLS.
    pub id: Option<SpiffeId>,
    /// Its leaf certificate, which its tokens must verify with; none without TLS.
    pub leaf: Option<CertificateDer<'static>>,
    /// The leaf's end.
    pub not_after: Option<SystemTime>,
    /// Our own SVID in this session: what the other end knows us by, and what our tokens for it must be signed with; none without TLS.
    pub local: Option<Arc<Svid>>,
    /// By which way it came.
    pub address: PeerAddress,
    /// Descriptors to and from it; unix connections only.
    pub fds: Option<FdLane>,
}

/// The kind of connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerAddress {
    /// A unix socket, and the process at its other end.
    Unix {
        /// As the kernel tells it (`SO_PEERCRED`), in our pid namespace.
        pid: Option<i32>,
        /// Likewise.
        uid: u32,
    },
    /// TCP.
    Tcp(SocketAddr),
}

/// Descriptors that came and that no call took for this long are closed: they would keep namespaces alive.
pub(super) const UNTAKEN: std::time::Duration = std::time::Duration::from_secs(120);

/// Descriptors beside one connection's bytes, both ways.
#[derive(Clone)]
pub struct FdLane {
    /// What came and was not taken yet.
    pub received: Arc<FdTable>,
    /// Goes out before whatever is written after.
    pub sender: FdSender,
}
