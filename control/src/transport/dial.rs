//! Dialling one peer.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use rustls_pki_types::ServerName;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::belief::{self, Proof};
use super::hop::{Hop, Link};
use super::stream::{Stream, peer_of, unix_address, unproven};
use super::tls::{Tls, in_words};
use super::{Dialling, PeerAddress, Target};
use crate::identity::TokenSource;

/// How long an address of a name has for itself before the next one is tried beside it (RFC 8305's recommendation).
const HEAD_START: Duration = Duration::from_millis(250);

/// Dials, shakes hands and starts HTTP/2.
pub(super) async fn dial(target: &Target, tls: &Tls, tokens: TokenSource, how: &Dialling) -> io::Result<Hop> {
    let link = |peer| Link {
        peer: Arc::new(peer),
        target: target.clone(),
        tokens,
        silence: how.silence,
        sign_of_life: how.sign_of_life,
    };
    let session = tls.current()?;
    let (stream, address) = connect(target).await?;
    let lane = stream.lane();
    let Some(session) = session else {
        let peer = unproven(address, lane);
        return Hop::start(stream, link(peer)).await;
    };
    // The name plays no part: SPIFFE IDs are verified, and SNI is off.
    let name = ServerName::try_from("peer.invalid").expect("a DNS name");
    let stream = TlsConnector::from(session.client).connect(name, stream).await.map_err(in_words)?;
    let proof = Proof::of(stream.get_ref().1, &session.svid);
    let peer = peer_of(stream.get_ref().1, session.svid, address, lane)?;
    let hop = Hop::start(stream, link(peer)).await?;
    if proof.is_some() {
        hop.cut_when(belief::lost(tls.identity().clone(), tls.accepted().clone(), proof));
    }
    Ok(hop)
}

async fn connect(target: &Target) -> io::Result<(Stream, PeerAddress)> {
    let stream = match target {
        Target::Tcp(address) => {
            let stream = connect_tcp(address).await?;
            let address = stream.peer_addr()?;
            return Ok((Stream::tcp(stream)?, PeerAddress::Tcp(address)));
        }
        Target::Unix(path) => UnixStream::connect(path).await?,
        // The kernel follows this name to the open file, wherever its path is.
        Target::File { file, .. } => {
            UnixStream::connect(format!("/proc/self/fd/{}", file.as_raw_fd())).await?
        }
    };
    let address = unix_address(&stream)?;
    Ok((Stream::unix(stream), address))
}

/// Tries a name's addresses, each with a head start before the next; the first that answers is taken.
async fn connect_tcp(address: &str) -> io::Result<TcpStream> {
    // As Go has it, no host is this one.
    let with_host = if address.starts_with(':') { format!("localhost{address}") } else { address.to_owned() };
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host(with_host).await?.collect();
    let mut attempts: FuturesUnordered<_> = addresses
        .iter()
        .zip(0_u32..)
        .map(|(address, turn)| async move {
            tokio::time::sleep(HEAD_START * turn).await;
            let connected = TcpStream::connect(address).await;
            connected.map_err(|error| io::Error::new(error.kind(), format!("{address}: {error}")))
        })
        .collect();
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    while let Some(attempt) = attempts.next().await {
        match attempt {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}
