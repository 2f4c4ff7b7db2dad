//! Questions to the kernel of one network namespace: the one that the calling thread is in when the socket is opened. Blocking, and
//! short-lived: a thousand connections need no thousand sockets.

use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::Socket;
use vwire_dataplane::netlink;

/// How often a dump is begun again that changes interrupted. Each one is short; a namespace that never rests is broken.
const ATTEMPTS: usize = 16;

/// A connection to the kernel.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

/// How a dump ended.
enum Dump {
    Whole(Vec<RouteNetlinkMessage>),
    /// The table changed meanwhile: entries may be missing or there twice.
    Interrupted,
}

impl Netlink {
    /// For the calling thread's namespace.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open() -> io::Result<Self> {
        Ok(Self { socket: netlink::connect()?, sequence: 0 })
    }

    /// Sends one request and waits for its acknowledgement.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn ask(&mut self, request: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.send(request, NLM_F_ACK | flags)?;
        loop {
            for message in self.receive()? {
                if let NetlinkPayload::Error(error) = message.payload {
                    return if error.code.is_none() { Ok(()) } else { Err(error.to_io()) };
                }
            }
        }
    }

    /// All entries of a table.
    ///
    /// # Errors
    /// The kernel's; EINTR if changes interrupted it again and again.
    pub fn dump(&mut self, request: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..ATTEMPTS {
            self.send(request.clone(), NLM_F_DUMP)?;
            match self.collect() {
                Ok(Dump::Whole(entries)) => return Ok(entries),
                Ok(Dump::Interrupted) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::Interrupted.into())
    }

    fn collect(&mut self) -> io::Result<Dump> {
        let (mut entries, mut interrupted) = (Vec::new(), false);
        loop {
            for message in self.receive()? {
                interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(entry) => entries.push(entry),
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        return Err(io::Error::from_raw_os_error(-done.code));
                    }
                    NetlinkPayload::Done(_) => {
                        return Ok(if interrupted { Dump::Interrupted } else { Dump::Whole(entries) });
                    }
                    _ => {}
                }
            }
        }
    }

    fn send(&mut self, request: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.sequence += 1;
        self.socket.send(&netlink::request(request, flags, self.sequence), 0).map(|_| ())
    }

    /// The messages of one datagram that answer the latest request.
    fn receive(&mut self) -> io::Result<Vec<NetlinkMessage<RouteNetlinkMessage>>> {
        let (bytes, _) = self.socket.recv_from_full()?;
        let (mut messages, mut rest) = (Vec::new(), &bytes[..]);
        while rest.len() >= 16 {
            let length = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
            if length < 16 || length > rest.len() {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "a netlink message of an impossible length",
                ));
            }
            let message = NetlinkMessage::deserialize(&rest[..length])
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
            if message.header.sequence_number == self.sequence {
                messages.push(message);
            }
            rest = &rest[length.next_multiple_of(4).min(rest.len())..];
        }
        Ok(messages)
    }
}
