//! Queues: the two ends of a ring as a packet engine uses them.
//!
//! A connection has rings of both directions, and each side of it holds one end of every ring. There are four such ends, of two
//! kinds:
//!
//! | | packets to the server | packets to the client |
//! |---|---|---|
//! | client | [`TxQueue`]: fills its buffers, advances head | [`RxQueue`]: posts empty buffers, receives up to tail |
//! | server | [`RxQueue`]: receives up to head, advances tail | [`TxQueue`]: fills posted buffers, advances tail |
//!
//! A queue belongs to one thread at a time (`Send`, not `Sync`); nothing in it locks, allocates, or enters the kernel, but for
//! the one interrupt per [`TxQueue::publish`] that a sleeping peer asks for.
//!
//! **What the peer may do.** It may write anything, at any time, into all memory that is shared. What follows from a descriptor
//! is checked after it was copied out; indices of our own are kept privately and only ever published; an index of the peer's
//! that lies outside the ring is a [`RingFault`], after which the connection should be closed.

mod event;
#[cfg(all(loom, test))]
mod loom_model;
mod memory;
mod pair;
mod rx;
mod signal;
mod tx;
mod writer;

use std::sync::Arc;

pub use memory::{BufferSpacing, ClientMemory, ClientMemoryError, ClientShape};
pub use pair::{Pair, PairError, pair, serve};
pub use rx::{FrameSink, RxFaults, RxQueue};
pub use tx::{Stopped, TxQueue, TxRefused};
pub use writer::FrameWriter;

use crate::region::Region;
use crate::ring::{Direction, Ring, RingError, RingHeader, RingLocation, RingSpec};
use event::EventFd;

/// Descriptors that one packet may span. A peer that chains more is not sending packets.
pub const MAX_SEGMENTS: usize = 64;
/// Bytes of the longest packet.
pub const MAX_FRAME: usize = 65_536;

/// Which end of the connection we are; it decides which index is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Owner of the memory; writes every head.
    Client,
    /// Listener; writes every tail.
    Server,
}

/// Why a connection's rings can no longer be used. The connection should be closed with this as the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingFault {
    /// The peer's index is not within the ring.
    #[error(
        "the peer moved its ring index by {distance} slots to {peer}, where at most {bound} were possible"
    )]
    Corrupt {
        /// The index the peer wrote.
        peer: u16,
        /// How far that is from where it was, modulo 2^16.
        distance: u16,
        /// The most it could be.
        bound: u16,
    },
    /// The peer cut a region's file short while it was in use.
    #[error("the peer made the file of a shared region shorter while it was in use")]
    Truncated,
}

/// All queues of one end of a connection, in the order of their rings' indices.
#[derive(Debug)]
pub struct Queues {
    /// Ends that receive.
    pub rx: Vec<RxQueue>,
    /// Ends that send.
    pub tx: Vec<TxQueue>,
}

/// Makes the server's queues over the regions and rings that a client announced, each list in the order of the indices.
///
/// Interrupts of the receiving ends are masked; [`RxQueue::unmask`] wants them.
///
/// # Errors
/// The first ring that cannot be used, and why.
pub fn server_queues(
    regions: Vec<Arc<Region>>,
    rings: Vec<RingSpec>,
    header: RingHeader,
) -> Result<Queues, RingError> {
    let locations: Vec<RingLocation> = rings.iter().map(|ring| ring.location).collect();
    let mut queues = Queues { rx: Vec::new(), tx: Vec::new() };
    let mut mapped = Vec::with_capacity(rings.len());
    for spec in rings {
        mapped.push((spec.direction, map_ring(&regions, &spec.location, header)?, EventFd::new(spec)?));
    }
    RingLocation::check_disjoint(&locations, header)?;
    let regions: Arc<[Arc<Region>]> = regions.into();
    for (direction, ring, event) in mapped {
        match direction {
            Direction::ClientToServer => queues.rx.push(RxQueue::server(ring, &regions, event)),
            Direction::ServerToClient => queues.tx.push(TxQueue::server(ring, &regions, event)),
        }
    }
    Ok(queues)
}

fn map_ring(regions: &[Arc<Region>], location: &RingLocation, header: RingHeader) -> Result<Ring, RingError> {
    let region = regions.get(usize::from(location.region));
    location.check(header, region.map(|region| region.len() as u64), regions.len())?;
    // `check` refuses a location without a region, so the index is good.
    let ring = Ring::new(Arc::clone(&regions[usize::from(location.region)]), location, header)?;
    ring.check_cookie(location)?;
    Ok(ring)
}
