//! A name server's sockets.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::question::Reply;
use crate::client::Namespace;

/// Most questions by UDP that are under way at one time; further ones are not answered, and asked again.
const QUESTIONS: usize = 512;
/// Most connections by TCP; further ones are closed.
const CONNECTIONS: usize = 64;
/// How long a connection may be silent, or not take its answer.
const SILENCE: Duration = Duration::from_secs(10);

/// What knows answers.
pub(crate) trait Answers: Send + Sync + 'static {
    /// Most questions by UDP, and most connections, of one of those who ask.
    const EACH: (usize, usize) = (QUESTIONS, CONNECTIONS);

    /// The answer to a message; none where silence is right.
    fn answer(&self, bytes: &[u8], from: IpAddr) -> impl Future<Output = Option<Reply>> + Send;

    /// A message or a connection was not looked at: there are too many.
    fn overloaded(&self) {}
}

/// Both sockets.
pub(crate) struct Listener {
    udp: UdpSocket,
    tcp: TcpListener,
}

/// Opens both in the namespace, at the same port.
pub(crate) async fn bind(address: SocketAddr, namespace: &Namespace) -> io::Result<Listener> {
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
    pub async fn serve<A: Answers>(self, answers: Arc<A>) {
        tokio::join!(serve_udp(Arc::new(self.udp), Arc::clone(&answers)), serve_tcp(self.tcp, answers));
    }
}

/// So many at one time, and so many for each.
struct Places {
    most: usize,
    each: usize,
    /// Only those who have one: its size is bounded by `most`.
    taken: Mutex<HashMap<IpAddr, usize>>,
}

/// Gives its place back when it is dropped.
struct Place {
    places: Arc<Places>,
    who: IpAddr,
}

impl Places {
    fn new(most: usize, each: usize) -> Arc<Self> {
        Arc::new(Self { most, each, taken: Mutex::default() })
    }

    fn take(self: &Arc<Self>, who: IpAddr) -> Option<Place> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = taken.values().sum();
        let own = taken.get(&who).copied().unwrap_or_default();
        if all >= self.most || own >= self.each {
            return None;
        }
        taken.insert(who, own + 1);
        Some(Place { places: Arc::clone(self), who })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.who) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.who);
            }
        }
    }
}

async fn serve_udp<A: Answers>(socket: Arc<UdpSocket>, answers: Arc<A>) {
    let places = Places::new(QUESTIONS, A::EACH.0);
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        // An error here is about an answer that an earlier client did not take.
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else {
            tokio::task::yield_now().await;
            continue;
        };
        let Some(place) = places.take(client.ip()) else {
            answers.overloaded();
            continue;
        };
        let (socket, answers, bytes) = (Arc::clone(&socket), Arc::clone(&answers), buffer[..length].to_vec());
        tokio::spawn(async move {
            let _place = place;
            if let Some(bytes) = answers.answer(&bytes, client.ip()).await.and_then(|reply| reply.datagram())
            {
                // Whoever has gone needs no answer.
                let _ = socket.send_to(&bytes, client).await;
            }
        });
    }
}

async fn serve_tcp<A: Answers>(listener: TcpListener, answers: Arc<A>) {
    let places = Places::new(CONNECTIONS, A::EACH.1);
    loop {
        match listener.accept().await {
            Ok((stream, client)) => {
                let Some(place) = places.take(client.ip()) else {
                    answers.overloaded();
                    continue;
                };
                let answers = Arc::clone(&answers);
                tokio::spawn(async move {
                    let _place = place;
                    let ended = serve_stream(stream, client.ip(), answers.as_ref()).await;
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

async fn serve_stream<A: Answers>(mut stream: TcpStream, client: IpAddr, answers: &A) -> io::Result<()> {
    loop {
        let question = async {
            let mut bytes = vec![0; usize::from(stream.read_u16().await?)];
            stream.read_exact(&mut bytes).await?;
            Ok::<_, io::Error>(bytes)
        };
        let bytes = tokio::time::timeout(SILENCE, question).await.map_err(io::Error::other)??;
        let Some(reply) = answers.answer(&bytes, client).await else { return Ok(()) };
        let whole = reply.framed().ok_or_else(|| io::Error::other("an answer that can't be written"))?;
        tokio::time::timeout(SILENCE, stream.write_all(&whole)).await.map_err(io::Error::other)??;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_in_all_and_for_each() {
        let places = Places::new(3, 2);
        let [one, other, third] = [1, 2, 3].map(|n| IpAddr::from([127, 0, 0, n]));
        let first = places.take(one);
        let second = places.take(one);
        assert!(first.is_some() && second.is_some() && places.take(one).is_none());
        let elsewhere = places.take(other);
        assert!(elsewhere.is_some() && places.take(third).is_none());
        drop(second);
        assert!(places.take(third).is_some());
        drop((first, elsewhere));
        assert!(places.taken.lock().unwrap().is_empty());
    }
}
