//! One question to one name server.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_resolver::proto::op::{Message, MessageType, OpCode, Query};
use hickory_resolver::proto::rr::Name;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, UdpSocket};

use super::question::PAYLOAD;
use crate::client::Namespace;

/// How long a server has to answer, by UDP and then by TCP.
const TIME: Duration = Duration::from_secs(1);

/// Where questions are asked from.
#[derive(Debug, Clone)]
pub(crate) struct From {
    /// In this namespace.
    pub namespace: Namespace,
    /// With this address as their source; any if none is said, or if it is of the other version of IP.
    pub address: Option<IpAddr>,
}

/// Asks by UDP; by TCP if the answer does not fit, or none comes.
pub(crate) async fn exchange(from: &From, server: SocketAddr, question: &Message) -> io::Result<Message> {
    let by_udp = tokio::time::timeout(TIME, by_udp(from, server, question)).await;
    match by_udp {
        Ok(Ok(answer)) if !answer.metadata.truncation => Ok(answer),
        _ => tokio::time::timeout(TIME, by_tcp(from, server, question))
            .await
            .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, format!("{server}: no answer")))),
    }
}

/// A client's question with this name, and an id that only we know.
pub(crate) fn question(query: &Message, name: &Name) -> Message {
    let mut question = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    question.metadata.recursion_desired = query.metadata.recursion_desired;
    question.metadata.checking_disabled = query.metadata.checking_disabled;
    for asked in &query.queries {
        let mut renamed = Query::query(name.clone(), asked.query_type());
        renamed.set_query_class(asked.query_class());
        question.add_query(renamed);
    }
    question.edns = query.edns.clone().map(|mut edns| {
        edns.set_max_payload(PAYLOAD);
        edns
    });
    question
}

/// Whether an answer is one to our question.
fn is_answer(answer: &Message, question: &Message) -> bool {
    answer.metadata.id == question.metadata.id
        && answer.metadata.message_type == MessageType::Response
        && answer.queries == question.queries
}

impl From {
    /// Any port of ours, of the version of IP that the server has.
    fn end(&self, server: SocketAddr) -> SocketAddr {
        let any: IpAddr =
            if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        SocketAddr::new(self.address.filter(|own| own.is_ipv4() == server.is_ipv4()).unwrap_or(any), 0)
    }
}

async fn by_udp(from: &From, server: SocketAddr, question: &Message) -> io::Result<Message> {
    let end = from.end(server);
    let socket = inside(&from.namespace, move || {
        let socket = std::net::UdpSocket::bind(end)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    });
    let socket = UdpSocket::from_std(socket.await?)?;
    // Only what comes from there is taken.
    socket.connect(server).await?;
    socket.send(&encode(question)?).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if let Ok(answer) = Message::from_vec(&buffer[..length])
            && is_answer(&answer, question)
        {
            return Ok(answer);
        }
    }
}

async fn by_tcp(from: &From, server: SocketAddr, question: &Message) -> io::Result<Message> {
    let end = from.end(server);
    let socket = inside(&from.namespace, move || {
        let socket = if end.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.bind(end)?;
        Ok(socket)
    });
    let mut stream = socket.await?.connect(server).await?;
    let bytes = encode(question)?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], &bytes].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    let answer = Message::from_vec(&answer).map_err(io::Error::other)?;
    match is_answer(&answer, question) {
        true => Ok(answer),
        false => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{server}: an answer to another question"),
        )),
    }
}

/// Makes a socket that belongs to the namespace.
async fn inside<T: Send + 'static>(
    namespace: &Namespace,
    make: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let namespace = namespace.clone();
    let made = tokio::task::spawn_blocking(move || namespace.run(make).map_err(io::Error::other)?);
    made.await.map_err(io::Error::other)?
}

fn encode(message: &Message) -> io::Result<Vec<u8>> {
    message.to_vec().map_err(io::Error::other)
}
