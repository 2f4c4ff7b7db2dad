//! The server's sockets.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::proto::op::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;

use super::Names;
use crate::client::Namespace;

/// Most questions under way at one time; further ones by UDP are not answered, and asked again.
const QUESTIONS: usize = 512;
/// Most connections by TCP.
const CONNECTIONS: usize = 64;
/// How long a connection may be silent.
const SILENCE: Duration = Duration::from_secs(10);
/// The least that any client takes by UDP (RFC 1035).
const LEAST: usize = 512;

/// Both sockets.
pub(super) struct Listener {
    udp: UdpSocket,
    tcp: TcpListener,
}

/// Opens both in the namespace, at the same port.
pub(super) async fn bind(address: SocketAddr, namespace: &Namespace) -> io::Result<Listener> {
    let namespace = namespace.clone();
    let open = move || {
        let udp = std::net::UdpSocket::bind(address)?;
        let tcp = std::net::TcpListener::bind(udp.local_addr()?)?;
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        Ok::<_, io::Error>((udp, tcp))
    };
    let opened = tokio::task::spawn_blocking(move || namespace.run(open).map_err(io::Error::other)?);
    let (udp, tcp) = opened.await.map_err(io::Error::other)??;
    Ok(Listener { udp: UdpSocket::from_std(udp)?, tcp: TcpListener::from_std(tcp)? })
}

impl Listener {
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.udp.local_addr()
    }

    /// Serves until it is dropped.
    pub async fn serve(self, names: Arc<Names>) {
        tokio::join!(serve_udp(Arc::new(self.udp), Arc::clone(&names)), serve_tcp(self.tcp, names));
    }
}

async fn serve_udp(socket: Arc<UdpSocket>, names: Arc<Names>) {
    let places = Arc::new(Semaphore::new(QUESTIONS));
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        // An error here is about an answer that an earlier client did not take.
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else {
            tokio::task::yield_now().await;
            continue;
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        let (socket, names, bytes) = (Arc::clone(&socket), Arc::clone(&names), buffer[..length].to_vec());
        tokio::spawn(async move {
            let _place = place;
            if let Some((query, answer)) = names.answer(&bytes).await
                && let Some(bytes) = fitting(&query, &answer)
            {
                // Whoever has gone needs no answer.
                let _ = socket.send_to(&bytes, client).await;
            }
        });
    }
}

/// The answer as the client can take it by UDP: without its records, and saying so, if it is too large.
fn fitting(query: &Message, answer: &Message) -> Option<Vec<u8>> {
    let most = LEAST.max(usize::from(query.max_payload()));
    let bytes = answer.to_vec().ok()?;
    if bytes.len() <= most { Some(bytes) } else { answer.truncate().to_vec().ok() }
}

async fn serve_tcp(listener: TcpListener, names: Arc<Names>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let names = Arc::clone(&names);
                tokio::spawn(async move {
                    let _place = place;
                    let ended = serve_stream(stream, &names).await;
                    tracing::trace!(?ended, "a resolver's connection");
                });
            }
            Err(error) => {
                tracing::debug!(%error, "a resolver's connection was not accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn serve_stream(mut stream: TcpStream, names: &Names) -> io::Result<()> {
    loop {
        let question = async {
            let mut bytes = vec![0; usize::from(stream.read_u16().await?)];
            stream.read_exact(&mut bytes).await?;
            Ok::<_, io::Error>(bytes)
        };
        let bytes = tokio::time::timeout(SILENCE, question).await.map_err(io::Error::other)??;
        let Some((_, answer)) = names.answer(&bytes).await else { return Ok(()) };
        let bytes = answer.to_vec().map_err(io::Error::other)?;
        let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
        let whole = [&length.to_be_bytes()[..], &bytes].concat();
        tokio::time::timeout(SILENCE, stream.write_all(&whole)).await.map_err(io::Error::other)??;
    }
}
