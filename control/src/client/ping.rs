//! Pings from inside a namespace, over the kernel's own ICMP sockets.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::net::UdpSocket;

use super::Namespace;

/// Bytes of data in each echo request.
const SIZE: usize = 16;

/// A socket from one address, in one namespace.
pub struct Pinger {
    socket: UdpSocket,
    from: IpAddr,
    /// A raw socket sees what all others on the machine get, and has an identifier of its own choice; the kernel chooses that of a
    /// ping socket, and sorts.
    raw: Option<u16>,
    sequence: u16,
}

impl Pinger {
    /// Opens a socket in `namespace` that sends from `from`: a ping socket, which needs no rights but the namespace's
    /// `net.ipv4.ping_group_range`, or else a raw one, which needs CAP_NET_RAW.
    ///
    /// # Errors
    /// The kernel's: without the right to ping, or without the address.
    pub fn open(namespace: &Namespace, from: IpAddr) -> io::Result<Self> {
        let made = namespace.run(|| {
            make(from, Type::DGRAM).or_else(|error| match error.kind() {
                io::ErrorKind::PermissionDenied => make(from, Type::RAW),
                _ => Err(error),
            })
        });
        let (socket, kind) = made.map_err(io::Error::other)??;
        let raw = (kind == Type::RAW).then(rand::random);
        Ok(Self { socket: UdpSocket::from_std(socket.into())?, from, raw, sequence: 0 })
    }

    /// As [`open`](Self::open), from a task: entering a namespace takes a thread.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn open_in(namespace: &Namespace, from: IpAddr) -> io::Result<Self> {
        let namespace = namespace.clone();
        let handle = tokio::runtime::Handle::current();
        let opened = tokio::task::spawn_blocking(move || {
            let _inside = handle.enter();
            Self::open(&namespace, from)
        });
        opened.await.map_err(io::Error::other)?
    }

    /// Sends up to `count` echo requests to `to`, evenly over `time`, and returns as soon as one is answered. False if none was.
    ///
    /// # Errors
    /// The kernel's: no route, no interface.
    pub async fn ping(&mut self, to: IpAddr, count: u32, time: Duration) -> io::Result<bool> {
        let first = self.sequence.wrapping_add(1);
        let mut interval = tokio::time::interval(time / count.max(1));
        let mut buffer = [0; 1500];
        let mut sent = 0;
        let end = tokio::time::sleep(time);
        tokio::pin!(end);
        loop {
            tokio::select! {
                _ = interval.tick(), if sent < count => {
                    self.sequence = self.sequence.wrapping_add(1);
                    sent += 1;
                    let request = request(to, self.raw.unwrap_or(0), self.sequence);
                    self.socket.send_to(&request, SocketAddr::new(to, 0)).await?;
                }
                received = self.socket.recv_from(&mut buffer) => {
                    let (length, from) = received?;
                    if from.ip() == to && self.is_reply(&buffer[..length], first) {
                        return Ok(true);
                    }
                }
                () = &mut end => return Ok(false),
            }
        }
    }

    /// True for the reply to a request of ours from `first` on.
    fn is_reply(&self, packet: &[u8], first: u16) -> bool {
        // Raw IPv4 sockets deliver the IP header, too.
        let skip = match (self.raw, self.from, packet.first()) {
            (Some(_), IpAddr::V4(_), Some(first)) => usize::from(first & 0x0f) * 4,
            _ => 0,
        };
        let Some([kind, 0, _, _, i0, i1, s0, s1, ..]) = packet.get(skip..) else { return false };
        let expected = if self.from.is_ipv4() { 0 } else { 129 };
        let age = self.sequence.wrapping_sub(u16::from_be_bytes([*s0, *s1]));
        *kind == expected
            && self.raw.is_none_or(|ident| ident == u16::from_be_bytes([*i0, *i1]))
            && age <= self.sequence.wrapping_sub(first)
    }
}

fn make(from: IpAddr, kind: Type) -> io::Result<(Socket, Type)> {
    let (domain, protocol) = match from {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket = Socket::new(domain, kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::from(SocketAddr::new(from, 0)))?;
    Ok((socket, kind))
}

/// An echo request. The kernel fills in checksums of ICMPv6, and of ping sockets; raw IPv4 sockets send what they are given.
fn request(to: IpAddr, ident: u16, sequence: u16) -> Vec<u8> {
    let mut message = vec![if to.is_ipv4() { 8 } else { 128 }, 0, 0, 0];
    message.extend(ident.to_be_bytes());
    message.extend(sequence.to_be_bytes());
    message.resize(8 + SIZE, 0xa5);
    if to.is_ipv4() {
        smoltcp::wire::Icmpv4Packet::new_unchecked(&mut message[..]).fill_checksum();
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn our_own_loopback_answers_and_a_black_hole_does_not() {
        let own = Namespace::own().unwrap();
        let mut pinger = Pinger::open(&own, [127, 0, 0, 1].into()).expect("a ping socket, or CAP_NET_RAW");
        for _ in 0..3 {
            assert!(pinger.ping([127, 0, 0, 1].into(), 4, Duration::from_secs(10)).await.unwrap());
        }
        let missing = Pinger::open(&own, [192, 0, 2, 1].into()).err().expect("not our address");
        assert_eq!(missing.kind(), io::ErrorKind::AddrNotAvailable);
    }

    #[test]
    fn replies_to_others_and_late_ones_are_told_apart() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _inside = runtime.enter();
        let mut pinger = Pinger::open(&Namespace::own().unwrap(), [127, 0, 0, 1].into()).unwrap();
        pinger.raw = Some(0x1234);
        pinger.sequence = 2;
        let reply = |ident: u16, sequence: u16| {
            let mut packet = vec![0x45; 20];
            packet.extend([0, 0, 0, 0]);
            packet.extend(ident.to_be_bytes());
            packet.extend(sequence.to_be_bytes());
            packet
        };
        assert!(pinger.is_reply(&reply(0x1234, 2), 1) && pinger.is_reply(&reply(0x1234, 1), 1));
        assert!(!pinger.is_reply(&reply(0x1234, 0), 1), "of the round before");
        assert!(!pinger.is_reply(&reply(0x1235, 2), 1) && !pinger.is_reply(&reply(0x1234, 3), 1));
        for cut in 0..28 {
            assert!(!pinger.is_reply(&reply(0x1234, 2)[..cut], 1));
        }
    }
}
