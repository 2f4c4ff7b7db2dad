//! Both ends of a connection in one process, without a control socket: for tests and benchmarks.

use std::os::fd::AsFd;

use super::{ClientMemory, ClientMemoryError, ClientShape, Queues, server_queues};
use crate::region::{Limits, Region, RegionError};
use crate::ring::{RingError, RingSpec};

/// The two ends of one connection.
#[derive(Debug)]
pub struct Pair {
    /// The end that owns the memory.
    pub client: Queues,
    /// The end that mapped it.
    pub server: Queues,
}

/// Why a pair was not made.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    /// The client's side.
    #[error(transparent)]
    Client(#[from] ClientMemoryError),
    /// A region, on the server's side.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// A ring, on either side.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// A file descriptor could not be duplicated.
    #[error("dup: {0}")]
    Dup(#[from] std::io::Error),
}

/// Makes the server's queues over a client's memory, as if it had been announced on a socket.
///
/// # Errors
/// As for a peer's memory.
pub fn serve(memory: &ClientMemory) -> Result<Queues, PairError> {
    let mut regions = Vec::new();
    for (size, fd) in memory.regions() {
        regions.push(Region::map_peer(fd.try_clone_to_owned()?, size, &Limits::default())?);
    }
    let mut rings = Vec::new();
    for ring in memory.rings() {
        let event = ring.event.as_fd().try_clone_to_owned()?;
        rings.push(RingSpec { direction: ring.direction, location: ring.location, event });
    }
    Ok(server_queues(regions, rings, memory.shape().header)?)
}

/// Makes a client's memory and the queues of both ends. The server's end maps the memory a second time, at another address,
/// as another process would.
///
/// # Errors
/// What the shape or the system refuses.
pub fn pair(shape: ClientShape) -> Result<Pair, PairError> {
    let memory = ClientMemory::create(shape)?;
    let server = serve(&memory)?;
    Ok(Pair { client: memory.connect()?, server })
}
