//! The handshake of both roles as state machines without I/O: a message goes in, what to do comes out.
//!
//! The protocol is lock-step: a client sends one message for each it receives, so a handshake is a list of
//! pairs and a test of it needs no socket. `F` stands for a file descriptor; tests and fuzzers use a number.
//!
//! ```text
//! client                          server
//!   connect()            ->
//!                        <-       HELLO            before it knows which interface is wanted
//!   INIT                 ->       ACK              id, mode and secret were right
//!   ADD_REGION 0..       ->       ACK (each)       with the region's file
//!   ADD_RING c2s 0..     ->       ACK (each)       with the ring's eventfd
//!   ADD_RING s2c 0..     ->       ACK (each)
//!   CONNECT              ->       CONNECTED        regions mapped, rings checked: packets may flow
//! ```
//! Either side ends the connection at any time with DISCONNECT, or by closing the socket.

mod client;
mod error;
mod server;

pub use client::{Agreed, ClientHandshake, ClientStep, Introduction, RingCounts};
pub use error::{HandshakeError, ModeName};
pub use server::{Admission, Directory, ServerHandshake, ServerStep};

use crate::message::{Kind, Name};
use crate::region::Limits;
use crate::ring::{MAX_LOG2_SIZE, RingHeader, RingLocation};

/// What the frames of an interface are. Both sides must agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Ethernet frames without checksum (mode 0).
    Ethernet,
    /// IPv4 and IPv6 packets (mode 1).
    Ip,
}

impl Mode {
    /// The mode with this number in INIT. `None` for 2, punt/inject, which nobody serves, and for the
    /// unknown.
    pub const fn from_wire(number: u8) -> Option<Self> {
        match number {
            0 => Some(Mode::Ethernet),
            1 => Some(Mode::Ip),
            _ => None,
        }
    }

    /// Its number in INIT.
    pub const fn to_wire(self) -> u8 {
        match self {
            Mode::Ethernet => 0,
            Mode::Ip => 1,
        }
    }
}

impl core::fmt::Display for Mode {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Mode::Ethernet => "ethernet",
            Mode::Ip => "ip",
        })
    }
}

/// What a server lets a client announce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerLimits {
    /// Rings in each direction, 1 to 256.
    pub rings: u16,
    /// Slots of a ring as log2, 1 to 15.
    pub log2_ring: u8,
    /// Number and size of regions.
    pub regions: Limits,
}

impl Default for PeerLimits {
    /// 256 rings each way, as the other implementations have it, of up to 2^15 slots.
    fn default() -> Self {
        Self { rings: 256, log2_ring: MAX_LOG2_SIZE, regions: Limits::default() }
    }
}

/// The file descriptors that came with one message.
#[derive(Debug)]
pub enum Attached<F> {
    /// None.
    None,
    /// One, still open.
    One(F),
    /// More than one, or more than there was room for: closed already.
    TooMany,
}

impl<F> Attached<F> {
    /// The descriptor if the message needs one, nothing if it needs none.
    ///
    /// # Errors
    /// If there is any other number of them.
    pub(crate) fn expect_for(self, kind: Kind) -> Result<Option<F>, HandshakeError> {
        match (self, kind.carries_fd()) {
            (Attached::One(fd), true) => Ok(Some(fd)),
            (Attached::None, false) => Ok(None),
            (Attached::None, true) => Err(HandshakeError::FdMissing(kind)),
            (Attached::One(_), false) => Err(HandshakeError::FdUnwanted(kind)),
            (Attached::TooMany, _) => Err(HandshakeError::TooManyFds(kind)),
        }
    }
}

/// A region that a client announced.
#[derive(Debug)]
pub struct OfferedRegion<F> {
    /// Bytes, within the limits, not yet compared with the file.
    pub size: u64,
    /// The file.
    pub file: F,
}

/// A ring that a client announced.
#[derive(Debug)]
pub struct OfferedRing<F> {
    /// Where it is.
    pub location: RingLocation,
    /// Its eventfd.
    pub event: F,
}

/// Everything a client announced, ready to be mapped.
#[derive(Debug)]
pub struct Offer<F> {
    /// The interface it is for.
    pub id: u32,
    /// Its mode, equal to ours.
    pub mode: Mode,
    /// The client's program.
    pub program: Name,
    /// The client's name for the interface.
    pub interface: Name,
    /// Regions in order of their indices.
    pub regions: Vec<OfferedRegion<F>>,
    /// What the client's rings begin with.
    pub header: RingHeader,
    /// Client-to-server rings in order, wholly inside their regions, aligned, apart from all others.
    pub c2s: Vec<OfferedRing<F>>,
    /// Server-to-client rings in order, likewise.
    pub s2c: Vec<OfferedRing<F>>,
}

#[cfg(test)]
mod tests;
