//! The memory behind descriptors: the peer's regions as windows that are looked through with care, and our own when we are the
//! client.

use core::ptr::NonNull;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::EventfdFlags;

use super::event::EventFd;
use super::{MAX_FRAME, Queues, RingFault, RxQueue, TxQueue};
use crate::region::{HugePages, Region, RegionError};
use crate::ring::{Descriptor, Direction, Ring, RingError, RingHeader, RingLocation, RingSpec};
use crate::sigbus;

/// All regions of a connection, as descriptors address them.
#[derive(Debug)]
pub(super) struct Windows {
    windows: Box<[Window]>,
    regions: Arc<[Arc<Region>]>,
    faults_seen: u32,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    start: NonNull<u8>,
    len: u64,
}

// SAFETY: the windows are addresses of regions that the Arc beside them keeps mapped; see `Region`.
unsafe impl Send for Windows {}

/// What is wrong with a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadDescriptor {
    Region,
    Bounds,
    Empty,
    TooLong,
}

impl Windows {
    pub(super) fn new(regions: &Arc<[Arc<Region>]>) -> Self {
        let window = |region: &Arc<Region>| Window { start: region.start(), len: region.len() as u64 };
        let windows = regions.iter().map(window).collect();
        // Zero and not the present count: if some region was poisoned already, the first look must find it.
        Self { windows, regions: Arc::clone(regions), faults_seen: 0 }
    }

    /// The windows alone: what a loop needs of them.
    #[inline(always)]
    pub(super) fn view(&self) -> View<'_> {
        View(&self.windows)
    }

    /// See [`View::resolve`].
    #[inline(always)]
    pub(super) fn resolve(&self, descriptor: Descriptor) -> Option<NonNull<u8>> {
        self.view().resolve(descriptor)
    }

    /// Why `resolve` refused.
    #[cold]
    pub(super) fn blame(&self, descriptor: Descriptor) -> BadDescriptor {
        if usize::from(descriptor.region) >= self.windows.len() {
            BadDescriptor::Region
        } else if descriptor.len == 0 {
            BadDescriptor::Empty
        } else if descriptor.len as usize > MAX_FRAME {
            BadDescriptor::TooLong
        } else {
            BadDescriptor::Bounds
        }
    }

    /// One load per burst as long as no peer of this process ever cut a region short.
    #[inline(always)]
    pub(super) fn check_poison(&mut self) -> Result<(), RingFault> {
        let faults = sigbus::faults();
        if faults == self.faults_seen { Ok(()) } else { self.look_for_poison(faults) }
    }

    /// What is behind `fault`: an index in a region that was cut short reads as 0, and is not what went wrong.
    #[cold]
    pub(super) fn why(&mut self, fault: RingFault) -> RingFault {
        self.check_poison().err().unwrap_or(fault)
    }

    #[cold]
    fn look_for_poison(&mut self, faults: u32) -> Result<(), RingFault> {
        if self.regions.iter().any(|region| region.is_poisoned()) {
            return Err(RingFault::Truncated);
        }
        self.faults_seen = faults;
        Ok(())
    }
}

/// The regions of a connection, borrowed.
#[derive(Clone, Copy)]
pub(super) struct View<'a>(&'a [Window]);

impl View<'_> {
    /// Where the bytes of a descriptor lie, if all of them lie in one region and there are 1 to [`MAX_FRAME`] of them.
    #[inline(always)]
    pub(super) fn resolve(self, descriptor: Descriptor) -> Option<NonNull<u8>> {
        let window = self.0.get(usize::from(descriptor.region))?;
        let end = u64::from(descriptor.offset) + u64::from(descriptor.len);
        // One comparison for both ends of the range: 0 wraps to the top.
        if end > window.len || descriptor.len.wrapping_sub(1) >= MAX_FRAME as u32 {
            return None;
        }
        // SAFETY: offset is less than the window's length, by the comparison above and len > 0.
        Some(unsafe { window.start.add(descriptor.offset as usize) })
    }
}

/// How far apart the buffers of a ring lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BufferSpacing {
    /// An odd number of cache lines, one more than the buffer has if need be. The first lines of all buffers then fall into
    /// different sets of the caches; at distances of a power of two they crowd into a few. (Measured with 1024 buffers of 2048
    /// bytes on a Zen 5: 1.6 times the packets of 64 and of 512 bytes.)
    #[default]
    OddLines,
    /// None: each begins where the one before ends, as other implementations have it.
    Packed,
}

/// How a client lays out its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientShape {
    /// Rings that carry packets to the server.
    pub to_server: u16,
    /// Rings that carry packets to the client.
    pub to_client: u16,
    /// Each ring has 2^`log2_size` slots.
    pub log2_size: u8,
    /// Bytes of the buffer of one slot. Longer frames are chained. 2048 is what every peer copes with.
    pub buffer_size: u32,
    /// How far apart the buffers lie.
    pub spacing: BufferSpacing,
    /// Pages of the memory.
    pub huge_pages: HugePages,
    /// Header of the rings.
    pub header: RingHeader,
}

impl Default for ClientShape {
    /// One ring each way, 1024 slots of 2048 bytes, huge pages if there are any.
    fn default() -> Self {
        Self {
            to_server: 1,
            to_client: 1,
            log2_size: 10,
            buffer_size: 2048,
            spacing: BufferSpacing::default(),
            huge_pages: HugePages::Try,
            header: RingHeader::NATIVE,
        }
    }
}

/// Where the buffers of one ring of ours lie: that of slot `i` at `offset + i * stride` of region `region`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Buffers {
    pub region: u16,
    pub offset: u32,
    pub size: u32,
    pub stride: u32,
}

impl Buffers {
    /// The descriptor of an empty buffer.
    #[inline(always)]
    pub(super) fn descriptor(&self, slot: u16) -> Descriptor {
        Descriptor {
            flags: 0,
            region: self.region,
            len: self.size,
            offset: self.offset + u32::from(slot) * self.stride,
        }
    }
}

/// The client's memory: regions and rings to announce, and after CONNECTED the queues over them.
#[derive(Debug)]
pub struct ClientMemory {
    shape: ClientShape,
    region: Arc<Region>,
    fd: OwnedFd,
    rings: Vec<RingSpec>,
}

/// Why a client's memory was not made.
#[derive(Debug, thiserror::Error)]
pub enum ClientMemoryError {
    /// The rings and buffers do not fit what a descriptor can address.
    #[error(
        "{rings} rings of 2^{log2} slots of {buffer} bytes are more than the 4 GiB that a region can have; \
         use fewer rings, smaller rings or smaller buffers"
    )]
    TooLarge {
        /// Rings of both directions.
        rings: u32,
        /// Their size.
        log2: u8,
        /// Bytes of a slot's buffer.
        buffer: u32,
    },
    /// A buffer must hold something, and no more than the longest frame.
    #[error("buffers of {buffer} bytes were asked for; 64 to {MAX_FRAME}, in multiples of 64, are possible")]
    BadBuffer {
        /// Bytes asked for.
        buffer: u32,
    },
    /// The ring's size is impossible.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The memory was refused.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// No event descriptor was to be had.
    #[error("eventfd: {0}")]
    Event(rustix::io::Errno),
}

impl ClientMemory {
    /// Makes and initializes one region with all rings first and all buffers behind them.
    ///
    /// # Errors
    /// What is wrong with the shape, or what the system refused.
    pub fn create(shape: ClientShape) -> Result<Self, ClientMemoryError> {
        let locations = shape.locations()?;
        let bytes = shape.bytes()?;
        let (region, fd) = Region::create(bytes as usize, shape.huge_pages)?;
        let mut rings = Vec::with_capacity(locations.len());
        for (direction, location) in locations {
            Ring::new(Arc::clone(&region), &location, shape.header)?.initialize();
            let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
            let event = rustix::event::eventfd(0, flags).map_err(ClientMemoryError::Event)?;
            rings.push(RingSpec { direction, location, event });
        }
        Ok(Self { shape, region, fd, rings })
    }

    /// The regions to announce, in the order of their indices: size in bytes, and file.
    pub fn regions(&self) -> impl Iterator<Item = (u64, BorrowedFd<'_>)> {
        core::iter::once((self.region.len() as u64, self.fd.as_fd()))
    }

    /// The rings to announce, in the order of announcement: first those to the server, then those to the client.
    pub fn rings(&self) -> &[RingSpec] {
        &self.rings
    }

    /// The shape it was made with.
    pub fn shape(&self) -> &ClientShape {
        &self.shape
    }

    /// Makes the queues and posts the empty buffers to the server. To be called when CONNECTED has arrived and not before:
    /// peers reset the indices until then.
    ///
    /// # Errors
    /// None that can happen with memory of our own; the checks are those of any ring.
    pub fn connect(self) -> Result<Queues, RingError> {
        Self::queues(&self.shape, &self.region, self.rings)
    }

    /// For tests that break a connection in its memory and go on in the same: queues as from [`connect`](Self::connect), from
    /// the start.
    #[doc(hidden)]
    pub fn connect_again(&self) -> Result<Queues, RingError> {
        let duplicate = |ring: &RingSpec| {
            let event = ring.event.try_clone().ok()?;
            Some(RingSpec { event, ..*ring })
        };
        Self::queues(&self.shape, &self.region, self.rings.iter().filter_map(duplicate).collect())
    }

    fn queues(shape: &ClientShape, region: &Arc<Region>, rings: Vec<RingSpec>) -> Result<Queues, RingError> {
        let regions: Arc<[Arc<Region>]> = [Arc::clone(region)].into();
        let mut queues = Queues { rx: Vec::new(), tx: Vec::new() };
        for (number, spec) in rings.into_iter().enumerate() {
            let ring = Ring::new(Arc::clone(region), &spec.location, shape.header)?;
            let (direction, event) = (spec.direction, EventFd::new(spec)?);
            let buffers = shape.buffers(number);
            match direction {
                Direction::ClientToServer => queues.tx.push(TxQueue::client(ring, &regions, event, buffers)),
                Direction::ServerToClient => queues.rx.push(RxQueue::client(ring, &regions, event, buffers)),
            }
        }
        Ok(queues)
    }
}

impl ClientShape {
    /// Whether memory of this shape can be made.
    ///
    /// # Errors
    /// What is wrong with the shape, and what is possible.
    pub fn check(&self) -> Result<(), ClientMemoryError> {
        self.locations().map(drop)
    }

    fn rings(&self) -> u32 {
        u32::from(self.to_server) + u32::from(self.to_client)
    }

    fn ring_bytes(&self) -> u32 {
        let location = RingLocation { region: 0, offset: 0, log2_size: self.log2_size };
        location.bytes(self.header)
    }

    /// The rings one behind the other from offset 0, as every peer's own client lays them out.
    fn locations(&self) -> Result<Vec<(Direction, RingLocation)>, ClientMemoryError> {
        let probe = RingLocation { region: 0, offset: 0, log2_size: self.log2_size };
        probe.check(self.header, Some(u64::MAX), 1)?;
        self.bytes()?;
        let direction = |number| match number < u32::from(self.to_server) {
            true => Direction::ClientToServer,
            false => Direction::ServerToClient,
        };
        let place =
            |number| (direction(number), RingLocation { offset: number * self.ring_bytes(), ..probe });
        Ok((0..self.rings()).map(place).collect())
    }

    fn buffer_bytes(&self) -> u64 {
        u64::from(self.stride()) << self.log2_size
    }

    fn stride(&self) -> u32 {
        match self.spacing {
            // Bit 6 set: an odd multiple of 64. Buffers are multiples of 64 themselves.
            BufferSpacing::OddLines => self.buffer_size | 64,
            BufferSpacing::Packed => self.buffer_size,
        }
    }

    /// Rings, rounded up to whole pages, and buffers.
    fn buffers_start(&self) -> u64 {
        (u64::from(self.rings()) * u64::from(self.ring_bytes())).next_multiple_of(4096)
    }

    fn bytes(&self) -> Result<u64, ClientMemoryError> {
        let buffer = self.buffer_size;
        if !(64..=MAX_FRAME as u32).contains(&buffer) || !buffer.is_multiple_of(64) {
            return Err(ClientMemoryError::BadBuffer { buffer });
        }
        let bytes = self.buffers_start() + u64::from(self.rings()) * self.buffer_bytes();
        if bytes > u64::from(u32::MAX) {
            return Err(ClientMemoryError::TooLarge { rings: self.rings(), log2: self.log2_size, buffer });
        }
        Ok(bytes)
    }

    /// `bytes` has shown that all of this fits 32 bits.
    fn buffers(&self, number: usize) -> Buffers {
        let offset = self.buffers_start() + number as u64 * self.buffer_bytes();
        Buffers { region: 0, offset: offset as u32, size: self.buffer_size, stride: self.stride() }
    }
}
