//! The eight control messages of memif 2.0 and their 128 bytes.
//!
//! Layout: `type` is a u16 at 0..2 and the payload begins at 2, unaligned, in host byte order; bytes nobody
//! names are zero. A message is one datagram; the file descriptor that some carry travels beside it.

mod text;

use crate::ring::Direction;

pub use text::{BadText, Name, Reason, Secret, SecretError, Text, TextError};

/// Bytes of every control message.
pub const MESSAGE_SIZE: usize = 128;

/// The one protocol version there is: 2.0.
pub const VERSION: u16 = 0x0200;

/// One control message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Server to client: go on.
    Ack,
    /// Server to client, at once after accepting: what this server can do.
    Hello(Hello),
    /// Client to server: which interface is wanted, and by whom.
    Init(Init),
    /// Client to server, with the region's memory file.
    AddRegion(AddRegion),
    /// Client to server, with the ring's eventfd.
    AddRing(AddRing),
    /// Client to server: all is announced; the client's interface name.
    Connect(Name),
    /// Server to client: the link is up; the server's interface name.
    Connected(Name),
    /// Either way: the end, and why.
    Disconnect(Disconnect),
}

/// What a server offers to any client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The serving program.
    pub name: Name,
    /// Lowest protocol version spoken.
    pub min_version: u16,
    /// Highest protocol version spoken.
    pub max_version: u16,
    /// Highest region index accepted.
    pub max_region: u16,
    /// Highest index of a server-to-client ring.
    pub max_s2c_ring: u16,
    /// Highest index of a client-to-server ring.
    pub max_c2s_ring: u16,
    /// Largest ring, as log2 of its slots.
    pub max_log2_ring: u8,
}

/// Which interface a client wants, and its credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Init {
    /// The version the client speaks.
    pub version: u16,
    /// The interface's id on this socket.
    pub id: u32,
    /// 0 ethernet, 1 IP, 2 punt/inject; see [`crate::Mode`]. Not checked here, so that the server can say
    /// what it wanted.
    pub mode: u8,
    /// Proof that the client may have the interface.
    pub secret: Secret,
    /// The client's program.
    pub name: Name,
}

/// One region of shared memory, whose file travels with the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddRegion {
    /// Regions count from 0.
    pub index: u16,
    /// Bytes.
    pub size: u64,
}

/// One ring, whose eventfd travels with the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddRing {
    /// Which way its packets go.
    pub direction: Direction,
    /// Rings count from 0 in each direction.
    pub index: u16,
    /// The region that holds it.
    pub region: u16,
    /// Where in that region its header begins, in bytes.
    pub offset: u32,
    /// Slots, as log2.
    pub log2_size: u8,
    /// Bytes of private header before each packet; nobody implements other than 0.
    pub private_header: u16,
}

/// The end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disconnect {
    /// Means nothing in any known implementation; 0 here.
    pub code: u32,
    /// For people.
    pub reason: Reason,
}

/// What is wrong with received bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Control messages have one size.
    #[error("control message of {0} bytes; memif's have 128")]
    Size(usize),
    /// The type field.
    #[error("unknown control message type {0}")]
    UnknownType(u16),
    /// A string field.
    #[error("{field} {problem}")]
    Text {
        /// Which one, such as "INIT name".
        field: &'static str,
        /// What is wrong with it.
        problem: BadText,
    },
}

/// The kind of a message, as errors and logs name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Kind {
    /// [`Message::Ack`]
    Ack = 1,
    /// [`Message::Hello`]
    Hello = 2,
    /// [`Message::Init`]
    Init = 3,
    /// [`Message::AddRegion`]
    AddRegion = 4,
    /// [`Message::AddRing`]
    AddRing = 5,
    /// [`Message::Connect`]
    Connect = 6,
    /// [`Message::Connected`]
    Connected = 7,
    /// [`Message::Disconnect`]
    Disconnect = 8,
}

impl Kind {
    /// True if exactly one file descriptor belongs to such a message; none belongs to the others.
    pub const fn carries_fd(self) -> bool {
        matches!(self, Kind::AddRegion | Kind::AddRing)
    }
}

impl core::fmt::Display for Kind {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Kind::Ack => "ACK",
            Kind::Hello => "HELLO",
            Kind::Init => "INIT",
            Kind::AddRegion => "ADD_REGION",
            Kind::AddRing => "ADD_RING",
            Kind::Connect => "CONNECT",
            Kind::Connected => "CONNECTED",
            Kind::Disconnect => "DISCONNECT",
        })
    }
}

/// Bit 0 of ADD_RING's flags: the ring is client-to-server.
const RING_IS_C2S: u16 = 1;

impl Message {
    /// What kind of message this is.
    pub const fn kind(&self) -> Kind {
        match self {
            Message::Ack => Kind::Ack,
            Message::Hello(_) => Kind::Hello,
            Message::Init(_) => Kind::Init,
            Message::AddRegion(_) => Kind::AddRegion,
            Message::AddRing(_) => Kind::AddRing,
            Message::Connect(_) => Kind::Connect,
            Message::Connected(_) => Kind::Connected,
            Message::Disconnect(_) => Kind::Disconnect,
        }
    }

    /// A DISCONNECT with as much of `reason` as fits.
    pub fn disconnect(reason: &str) -> Self {
        Message::Disconnect(Disconnect { code: 0, reason: Reason::cut(reason) })
    }

    /// The message's 128 bytes.
    pub fn encode(&self) -> [u8; MESSAGE_SIZE] {
        let mut bytes = [0; MESSAGE_SIZE];
        put(&mut bytes, 0, (self.kind() as u16).to_ne_bytes());
        match self {
            Message::Ack => {}
            Message::Hello(hello) => hello.encode(&mut bytes),
            Message::Init(init) => init.encode(&mut bytes),
            Message::AddRegion(region) => region.encode(&mut bytes),
            Message::AddRing(ring) => ring.encode(&mut bytes),
            Message::Connect(name) | Message::Connected(name) => name.encode(&mut bytes[2..34]),
            Message::Disconnect(end) => end.encode(&mut bytes),
        }
        bytes
    }

    /// Reads a received datagram.
    ///
    /// # Errors
    /// If it has another size than 128 bytes, an unknown type, or a string that is unterminated or not UTF-8.
    pub fn decode(datagram: &[u8]) -> Result<Self, MessageError> {
        let bytes = datagram.try_into().map_err(|_| MessageError::Size(datagram.len()))?;
        Ok(match u16::from_ne_bytes(get(bytes, 0)) {
            1 => Message::Ack,
            2 => Message::Hello(Hello::decode(bytes)?),
            3 => Message::Init(Init::decode(bytes)?),
            4 => Message::AddRegion(AddRegion::decode(bytes)),
            5 => Message::AddRing(AddRing::decode(bytes)),
            6 => Message::Connect(name(bytes, 2, "CONNECT interface name")?),
            7 => Message::Connected(name(bytes, 2, "CONNECTED interface name")?),
            8 => Message::Disconnect(Disconnect::decode(bytes)),
            unknown => return Err(MessageError::UnknownType(unknown)),
        })
    }
}

impl Hello {
    fn encode(&self, to: &mut [u8; MESSAGE_SIZE]) {
        self.name.encode(&mut to[2..34]);
        put(to, 34, self.min_version.to_ne_bytes());
        put(to, 36, self.max_version.to_ne_bytes());
        put(to, 38, self.max_region.to_ne_bytes());
        put(to, 40, self.max_s2c_ring.to_ne_bytes());
        put(to, 42, self.max_c2s_ring.to_ne_bytes());
        put(to, 44, [self.max_log2_ring]);
    }

    fn decode(from: &[u8; MESSAGE_SIZE]) -> Result<Self, MessageError> {
        Ok(Self {
            name: name(from, 2, "HELLO name")?,
            min_version: u16::from_ne_bytes(get(from, 34)),
            max_version: u16::from_ne_bytes(get(from, 36)),
            max_region: u16::from_ne_bytes(get(from, 38)),
            max_s2c_ring: u16::from_ne_bytes(get(from, 40)),
            max_c2s_ring: u16::from_ne_bytes(get(from, 42)),
            max_log2_ring: from[44],
        })
    }
}

impl Init {
    fn encode(&self, to: &mut [u8; MESSAGE_SIZE]) {
        put(to, 2, self.version.to_ne_bytes());
        put(to, 4, self.id.to_ne_bytes());
        put(to, 8, [self.mode]);
        self.secret.encode(&mut to[9..33]);
        self.name.encode(&mut to[33..65]);
    }

    fn decode(from: &[u8; MESSAGE_SIZE]) -> Result<Self, MessageError> {
        let secret = Secret::decode(get(from, 9))
            .map_err(|problem| MessageError::Text { field: "INIT secret", problem })?;
        Ok(Self {
            version: u16::from_ne_bytes(get(from, 2)),
            id: u32::from_ne_bytes(get(from, 4)),
            mode: from[8],
            secret,
            name: name(from, 33, "INIT name")?,
        })
    }
}

impl AddRegion {
    fn encode(&self, to: &mut [u8; MESSAGE_SIZE]) {
        put(to, 2, self.index.to_ne_bytes());
        put(to, 4, self.size.to_ne_bytes());
    }

    fn decode(from: &[u8; MESSAGE_SIZE]) -> Self {
        Self { index: u16::from_ne_bytes(get(from, 2)), size: u64::from_ne_bytes(get(from, 4)) }
    }
}

impl AddRing {
    fn encode(&self, to: &mut [u8; MESSAGE_SIZE]) {
        let flags = if self.direction == Direction::ClientToServer { RING_IS_C2S } else { 0 };
        put(to, 2, flags.to_ne_bytes());
        put(to, 4, self.index.to_ne_bytes());
        put(to, 6, self.region.to_ne_bytes());
        put(to, 8, self.offset.to_ne_bytes());
        put(to, 12, [self.log2_size]);
        put(to, 13, self.private_header.to_ne_bytes());
    }

    fn decode(from: &[u8; MESSAGE_SIZE]) -> Self {
        let flags = u16::from_ne_bytes(get(from, 2));
        let c2s = flags & RING_IS_C2S != 0;
        Self {
            direction: if c2s { Direction::ClientToServer } else { Direction::ServerToClient },
            index: u16::from_ne_bytes(get(from, 4)),
            region: u16::from_ne_bytes(get(from, 6)),
            offset: u32::from_ne_bytes(get(from, 8)),
            log2_size: from[12],
            private_header: u16::from_ne_bytes(get(from, 13)),
        }
    }
}

impl Disconnect {
    fn encode(&self, to: &mut [u8; MESSAGE_SIZE]) {
        put(to, 2, self.code.to_ne_bytes());
        self.reason.encode(&mut to[6..102]);
    }

    fn decode(from: &[u8; MESSAGE_SIZE]) -> Self {
        Self { code: u32::from_ne_bytes(get(from, 2)), reason: Reason::decode_lossy(get(from, 6)) }
    }
}

fn put<const N: usize>(to: &mut [u8; MESSAGE_SIZE], at: usize, value: [u8; N]) {
    to[at..at + N].copy_from_slice(&value);
}

fn get<const N: usize>(from: &[u8; MESSAGE_SIZE], at: usize) -> [u8; N] {
    core::array::from_fn(|i| from[at + i])
}

fn name(from: &[u8; MESSAGE_SIZE], at: usize, field: &'static str) -> Result<Name, MessageError> {
    Name::decode(get(from, at)).map_err(|problem| MessageError::Text { field, problem })
}

#[cfg(test)]
mod tests;
