//! Rings: where they lie in a region, and the few words of them that both sides write.
//!
//! ```text
//! offset           what            written by
//! 0                cookie   u32    the client, once
//! 4                flags    u16    whoever receives packets from this ring; bit 0: "do not interrupt me"
//! 6                head     u16    always the client
//! header / 2       tail     u16    always the server
//! header           desc[2^log2], 16 bytes each: flags u16, region u16, length u32, offset u32, metadata u32
//! ```
//! The header is 128 bytes where cache lines have 64 bytes, 256 where they have 128. Head and tail run freely modulo 2^16; the
//! slots from tail up to head belong to the server, all others to the client, whichever way the packets go.
//!
//! Everything here may be rewritten by the peer at any moment, so each word is an atomic, a descriptor is loaded once, and
//! whatever was loaded is judged in private memory.

use core::ptr::NonNull;
use core::sync::atomic::Ordering;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::region::Region;

#[cfg(not(loom))]
pub(crate) use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, fence};
#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, fence};

/// First word of every ring.
pub const COOKIE: u32 = 0x03E3_1F20;
/// Bytes of one descriptor.
pub const DESCRIPTOR_BYTES: u32 = 16;
/// Smallest ring: 2 slots.
pub const MIN_LOG2_SIZE: u8 = 1;
/// Largest ring: 32,768 slots. With 2^16 a full ring could not be told from an empty one.
pub const MAX_LOG2_SIZE: u8 = 15;
/// Ring flag: the receiver of packets polls and wants no interrupt.
pub const MASK_INT: u16 = 1;
/// Descriptor flag: the packet goes on in the next descriptor.
pub const NEXT: u16 = 1;

/// Which way the packets of a ring go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From client to server ("S2M" in messages of the protocol, whose authors say slave and master).
    ClientToServer,
    /// From server to client ("M2S").
    ServerToClient,
}

/// Size of a ring's header. It is not negotiated: both sides must agree on the length of a cache line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingHeader {
    /// 128 bytes, tail at 64: built for 64-byte cache lines (x86).
    Lines64,
    /// 256 bytes, tail at 128: built for 128-byte cache lines (most arm64 builds).
    Lines128,
}

impl RingHeader {
    /// What peers on this machine most likely use.
    pub const NATIVE: Self = if cfg!(target_arch = "aarch64") { Self::Lines128 } else { Self::Lines64 };

    /// Bytes before the first descriptor.
    pub const fn bytes(self) -> u32 {
        match self {
            Self::Lines64 => 128,
            Self::Lines128 => 256,
        }
    }

    const fn tail(self) -> u32 {
        self.bytes() / 2
    }
}

/// Where a ring lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingLocation {
    /// Index of the region.
    pub region: u16,
    /// First byte of the ring in that region; a multiple of 16.
    pub offset: u32,
    /// The ring has 2^`log2_size` slots, [`MIN_LOG2_SIZE`] to [`MAX_LOG2_SIZE`].
    pub log2_size: u8,
}

/// One ring as announced: which way, where, and its interrupt.
#[derive(Debug)]
pub struct RingSpec {
    /// Which way its packets go.
    pub direction: Direction,
    /// Where it lies.
    pub location: RingLocation,
    /// Its eventfd, written by the sender of packets.
    pub event: OwnedFd,
}

/// Why a ring cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The size is outside what both ends can count.
    #[error("a ring of 2^{log2} slots was announced; 2^{MIN_LOG2_SIZE} to 2^{MAX_LOG2_SIZE} are possible")]
    BadSize {
        /// Announced logarithm.
        log2: u8,
    },
    /// Atomics and descriptors need natural alignment.
    #[error("a ring was announced at offset {offset}, which is not a multiple of {DESCRIPTOR_BYTES}")]
    Unaligned {
        /// Announced offset.
        offset: u32,
    },
    /// No such region was announced.
    #[error("a ring was announced in region {region}, but only {regions} regions were")]
    NoSuchRegion {
        /// Announced index.
        region: u16,
        /// Number of regions.
        regions: usize,
    },
    /// The ring does not lie wholly in its region.
    #[error("a ring at offset {offset} with 2^{log2} slots ends beyond its region of {region_bytes} bytes")]
    OutsideRegion {
        /// Announced offset.
        offset: u32,
        /// Announced logarithm.
        log2: u8,
        /// Bytes of the region.
        region_bytes: u64,
    },
    /// Two rings share bytes.
    #[error("two rings overlap in region {region}, at offsets {first} and {second}")]
    Overlap {
        /// Region of both.
        region: u16,
        /// Offset of the one.
        first: u32,
        /// Offset of the other.
        second: u32,
    },
    /// The first word is wrong: not a ring, or not initialized.
    #[error("the ring at offset {offset} begins with {found:#010x} instead of the cookie {COOKIE:#010x}")]
    BadCookie {
        /// Announced offset.
        offset: u32,
        /// The word found.
        found: u32,
    },
    /// The interrupt descriptor is not an eventfd.
    #[error("the interrupt descriptor of the ring at offset {offset} is {found}, not an eventfd")]
    NotAnEventFd {
        /// Announced offset.
        offset: u32,
        /// What /proc calls it.
        found: String,
    },
}

impl RingLocation {
    /// Slots of the ring.
    pub const fn slots(&self) -> u32 {
        1 << self.log2_size
    }

    /// Bytes of header and descriptors together.
    pub const fn bytes(&self, header: RingHeader) -> u32 {
        header.bytes() + DESCRIPTOR_BYTES * self.slots()
    }

    /// Checks everything that can be checked without touching the memory: size, alignment, region, bounds.
    ///
    /// `region_bytes` gives the size of region `i`, `None` if there is no such region; `regions` is only for the message.
    ///
    /// # Errors
    /// What is wrong with the announcement.
    pub fn check(
        &self,
        header: RingHeader,
        region_bytes: Option<u64>,
        regions: usize,
    ) -> Result<(), RingError> {
        let &Self { region, offset, log2_size: log2 } = self;
        if !(MIN_LOG2_SIZE..=MAX_LOG2_SIZE).contains(&log2) {
            return Err(RingError::BadSize { log2 });
        }
        if !offset.is_multiple_of(DESCRIPTOR_BYTES) {
            return Err(RingError::Unaligned { offset });
        }
        let region_bytes = region_bytes.ok_or(RingError::NoSuchRegion { region, regions })?;
        if u64::from(offset) + u64::from(self.bytes(header)) > region_bytes {
            return Err(RingError::OutsideRegion { offset, log2, region_bytes });
        }
        Ok(())
    }

    /// Checks that no two of `rings` share bytes. Each must have passed [`check`](Self::check).
    ///
    /// # Errors
    /// [`RingError::Overlap`].
    pub fn check_disjoint(rings: &[Self], header: RingHeader) -> Result<(), RingError> {
        let mut sorted: Vec<&Self> = rings.iter().collect();
        sorted.sort_by_key(|ring| (ring.region, ring.offset));
        for pair in sorted.windows(2) {
            let (first, second) = (pair[0], pair[1]);
            let end = u64::from(first.offset) + u64::from(first.bytes(header));
            if first.region == second.region && u64::from(second.offset) < end {
                return Err(RingError::Overlap {
                    region: first.region,
                    first: first.offset,
                    second: second.offset,
                });
            }
        }
        Ok(())
    }
}

/// One descriptor, in private memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub flags: u16,
    pub region: u16,
    pub len: u32,
    pub offset: u32,
}

impl Descriptor {
    #[inline(always)]
    pub(crate) const fn first_word(self) -> u64 {
        self.flags as u64 | (self.region as u64) << 16 | (self.len as u64) << 32
    }

    #[inline(always)]
    pub(crate) const fn from_words(first: u64, second: u64) -> Self {
        Self {
            flags: first as u16,
            region: (first >> 16) as u16,
            len: (first >> 32) as u32,
            offset: second as u32,
        }
    }

    #[inline(always)]
    pub(crate) const fn goes_on(self) -> bool {
        self.flags & NEXT != 0
    }
}

/// A ring mapped into this process. The region stays mapped while this lives.
#[derive(Debug)]
pub(crate) struct Ring {
    flags: NonNull<AtomicU16>,
    head: NonNull<AtomicU16>,
    tail: NonNull<AtomicU16>,
    slots: Slots,
    _region: Arc<Region>,
}

/// The descriptors of a ring: two words that loops keep in registers. Not to be kept longer than its [`Ring`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slots {
    first: NonNull<AtomicU64>,
    mask: u16,
}

// SAFETY: all fields but the Arc point at atomics inside the region, which the Arc keeps mapped; atomics may be used from any
// thread.
unsafe impl Send for Ring {}

impl Ring {
    /// Takes the ring at `location` of `region`, which must have passed [`RingLocation::check`]; it is checked again here,
    /// since everything below relies on it.
    pub(crate) fn new(
        region: Arc<Region>,
        location: &RingLocation,
        header: RingHeader,
    ) -> Result<Self, RingError> {
        location.check(header, Some(region.len() as u64), usize::from(location.region) + 1)?;
        // SAFETY: `check` has shown that header and descriptors lie inside the mapping, and the offset is a multiple of 16 in
        // a mapping that starts on a page, so each of the words is naturally aligned.
        let (flags, head, tail, first) = unsafe {
            let start = region.start().add(location.offset as usize);
            (
                start.add(4).cast(),
                start.add(6).cast(),
                start.add(header.tail() as usize).cast(),
                start.add(header.bytes() as usize).cast(),
            )
        };
        let slots = Slots { first, mask: (location.slots() - 1) as u16 };
        Ok(Self { flags, head, tail, slots, _region: region })
    }

    /// A ring over loom's atomics, which are no plain words and cannot lie in a region: `[flags, head, tail]` and two words a
    /// slot. They must outlive the ring.
    #[cfg(all(loom, test))]
    pub(crate) fn over(header: &[AtomicU16; 3], words: &[AtomicU64], region: Arc<Region>) -> Self {
        let [flags, head, tail] = header.each_ref().map(NonNull::from);
        let slots = Slots { first: NonNull::from(&words[0]), mask: (words.len() / 2 - 1) as u16 };
        Self { flags, head, tail, slots, _region: region }
    }

    /// Writes the header of a ring of our own: cookie, no flags, both indices zero.
    pub(crate) fn initialize(&self) {
        self.cookie().store(COOKIE, Ordering::Relaxed);
        self.flags().store(0, Ordering::Relaxed);
        self.head().store(0, Ordering::Relaxed);
        self.tail().store(0, Ordering::Release);
    }

    /// Reads the cookie once and judges it. It means nothing after this.
    pub(crate) fn check_cookie(&self, location: &RingLocation) -> Result<(), RingError> {
        match self.cookie().load(Ordering::Acquire) {
            COOKIE => Ok(()),
            found => Err(RingError::BadCookie { offset: location.offset, found }),
        }
    }

    fn cookie(&self) -> &AtomicU32 {
        // SAFETY: the cookie lies 4 bytes before the flags, inside the ring (see `new`) and aligned with it.
        unsafe { self.flags.byte_sub(4).cast::<AtomicU32>().as_ref() }
    }

    /// Number of slots less one: `index & mask` is the slot of an index.
    #[inline(always)]
    pub(crate) const fn mask(&self) -> u16 {
        self.slots.mask
    }

    /// Number of slots.
    #[inline(always)]
    pub(crate) const fn size(&self) -> u16 {
        self.slots.mask + 1
    }

    #[inline(always)]
    pub(crate) fn flags(&self) -> &AtomicU16 {
        // SAFETY: see `new`.
        unsafe { self.flags.as_ref() }
    }

    #[inline(always)]
    pub(crate) fn head(&self) -> &AtomicU16 {
        // SAFETY: see `new`.
        unsafe { self.head.as_ref() }
    }

    #[inline(always)]
    pub(crate) fn tail(&self) -> &AtomicU16 {
        // SAFETY: see `new`.
        unsafe { self.tail.as_ref() }
    }

    /// The descriptors.
    #[inline(always)]
    pub(crate) const fn slots(&self) -> Slots {
        self.slots
    }
}

impl Slots {
    /// The slot of an index.
    #[inline(always)]
    pub(crate) const fn slot(self, index: u16) -> u16 {
        index & self.mask
    }

    #[inline(always)]
    fn words<'r>(self, index: u16) -> (&'r AtomicU64, &'r AtomicU64) {
        let slot = usize::from(self.slot(index));
        // SAFETY: the masked index is less than the number of slots, all of which lie in the ring (see `new`).
        unsafe {
            let first = self.first.add(2 * slot);
            (first.as_ref(), first.add(1).as_ref())
        }
    }

    /// Reads the descriptor of an index, each of its words exactly once.
    #[inline(always)]
    pub(crate) fn load(self, index: u16) -> Descriptor {
        let (first, second) = self.words(index);
        Descriptor::from_words(first.load(Ordering::Relaxed), second.load(Ordering::Relaxed))
    }

    /// Writes a whole descriptor (with metadata 0). The peer sees it after the index is published.
    #[inline(always)]
    pub(crate) fn store(self, index: u16, descriptor: Descriptor) {
        let (first, second) = self.words(index);
        first.store(descriptor.first_word(), Ordering::Relaxed);
        second.store(u64::from(descriptor.offset), Ordering::Relaxed);
    }

    /// Writes flags, region and length, and leaves the offset as the peer posted it.
    #[inline(always)]
    pub(crate) fn store_first(self, index: u16, descriptor: Descriptor) {
        self.words(index).0.store(descriptor.first_word(), Ordering::Relaxed);
    }
}
