//! The memory that a socket's frames are in (`UMEM`): mapped by us, pinned by the kernel, cut into frames of one size.

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use memif::{Lent, Slot};
use rustix::mm::{self, Advice, MapFlags, ProtFlags};

const HUGE_PAGE: usize = 2 << 20;

/// A range of memory that is unmapped when nobody needs it any more.
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: plain memory; who may touch which part of it is the matter of the halves that share it.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Anonymous memory of at least `len` bytes: in huge pages if some are free, else where the kernel may make some of it.
    pub fn anonymous(len: usize) -> io::Result<Self> {
        if len >= HUGE_PAGE {
            let flags = MapFlags::PRIVATE | MapFlags::POPULATE | MapFlags::HUGETLB | MapFlags::HUGE_2MB;
            if let Ok(mapping) = Self::map_anonymous(len.next_multiple_of(HUGE_PAGE), flags) {
                return Ok(mapping);
            }
        }
        let mapping = Self::map_anonymous(len.next_multiple_of(4096), MapFlags::PRIVATE)?;
        // SAFETY: our own mapping; the advice changes nothing that is in it.
        let _ = unsafe { mm::madvise(mapping.start.as_ptr().cast(), mapping.len, Advice::LinuxHugepage) };
        Ok(mapping)
    }

    fn map_anonymous(len: usize, flags: MapFlags) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe {
            mm::mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, flags)?
        };
        Self::new(start.cast(), len)
    }

    /// A ring of the socket `fd`, which the kernel has at this offset.
    pub fn ring(fd: std::os::fd::BorrowedFd<'_>, len: usize, offset: u64) -> io::Result<Self> {
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe {
            mm::mmap(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, flags, fd, offset)?
        };
        Self::new(start.cast(), len)
    }

    fn new(start: *mut u8, len: usize) -> io::Result<Self> {
        let start = NonNull::new(start).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self { start, len })
    }

    /// Where it begins.
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by us with this length, and nobody has a reference to it any more.
        let _ = unsafe { mm::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// The frames of one socket.
#[derive(Clone)]
pub struct Umem {
    memory: Arc<Mapping>,
    frame_size: u32,
    frames: u32,
}

impl Umem {
    /// Maps `frames` frames of `frame_size` bytes, a power of two.
    pub fn new(frames: u32, frame_size: u32) -> io::Result<Self> {
        let memory = Arc::new(Mapping::anonymous(frames as usize * frame_size as usize)?);
        Ok(Self { memory, frame_size, frames })
    }

    /// Bytes of a frame.
    pub fn frame_size(&self) -> u32 {
        self.frame_size
    }

    /// Bytes of all frames.
    pub fn len(&self) -> u64 {
        u64::from(self.frames) * u64::from(self.frame_size)
    }

    /// Where they begin in this process.
    pub fn address(&self) -> u64 {
        self.memory.start().as_ptr() as u64
    }

    /// Lends `len` bytes at `address` of the UMEM, or nothing if that is not all inside.
    #[inline]
    pub fn lend<'a>(&'a self, address: u64, len: u32) -> Option<Lent<'a>> {
        let start = self.place(address, len)?;
        // SAFETY: inside the mapping, which lives as long as `self`. That the kernel writes into it meanwhile is expected.
        Some(unsafe { Lent::new(start, len) })
    }

    /// The frame that begins at `address`, for writing.
    ///
    /// # Safety
    /// Nobody else may have this frame: neither the kernel, nor another `Slot`.
    #[inline]
    pub unsafe fn slot<'a>(&'a self, address: u64) -> Option<Slot<'a>> {
        let start = self.place(address, self.frame_size)?;
        // SAFETY: inside the mapping; the caller vouches for the rest.
        Some(unsafe { Slot::new(start, self.frame_size) })
    }

    #[inline]
    fn place(&self, address: u64, len: u32) -> Option<NonNull<u8>> {
        let end = address.checked_add(u64::from(len))?;
        // SAFETY: address is at most the length of the mapping.
        (end <= self.len()).then(|| unsafe { self.memory.start().add(address as usize) })
    }
}
