//! Shared regions: the memory in which rings and buffers lie.
//!
//! The client of a connection makes the regions and announces their file descriptors; the server maps them. Both keep the
//! mapping for as long as any queue uses it ([`Region`] is shared by `Arc` and unmapped when the last owner drops it).

use core::ptr::NonNull;
use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FileType, MemfdFlags, OFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

use crate::sigbus::{self, RegistryFull, Watched};

const HUGE_PAGE: u64 = 2 << 20;
const TMPFS_MAGIC: u64 = 0x0102_1994;
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;
const NAME: &CStr = c"memif-region";

/// Whether memory that we create uses pages of 2 MB, which spare address translation on every packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HugePages {
    /// Use them if the machine has enough free ones (`vm.nr_hugepages`), ordinary pages otherwise.
    #[default]
    Try,
    /// Ordinary pages.
    Never,
    /// Fail where there are none.
    Require,
}

/// What a peer may ask this process to map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest single region, in bytes. Descriptors address 4 GiB.
    pub max_region_bytes: u64,
    /// Number of regions of one connection.
    pub max_regions: u16,
    /// All regions of one connection together, in bytes.
    pub max_total_bytes: u64,
}

impl Default for Limits {
    /// 4 GiB a region (all that a descriptor can address), 256 regions, 16 GiB together: address space, not memory.
    fn default() -> Self {
        Self { max_region_bytes: 4 << 30, max_regions: 256, max_total_bytes: 16 << 30 }
    }
}

impl Limits {
    /// Whether a connection that has `count` regions of `total` bytes together may add one of `size` bytes.
    ///
    /// # Errors
    /// The limit that it would pass.
    pub fn admit(&self, count: usize, total: u64, size: u64) -> Result<(), RegionError> {
        if count >= usize::from(self.max_regions) {
            return Err(RegionError::TooMany { limit: self.max_regions });
        }
        self.admit_size(size)?;
        match total.checked_add(size) {
            Some(sum) if sum <= self.max_total_bytes => Ok(()),
            _ => Err(RegionError::TotalTooLarge { total, size, limit: self.max_total_bytes }),
        }
    }

    fn admit_size(&self, size: u64) -> Result<(), RegionError> {
        match size {
            0 => Err(RegionError::Empty),
            size if size > self.max_region_bytes => {
                Err(RegionError::TooLarge { size, limit: self.max_region_bytes })
            }
            _ => Ok(()),
        }
    }
}

/// Why a region was not made or not mapped.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// Announced with size 0.
    #[error("the region has no bytes")]
    Empty,
    /// Larger than one region may be.
    #[error("a region of {size} bytes was asked for; at most {limit} are allowed here")]
    TooLarge {
        /// Bytes asked for.
        size: u64,
        /// `Limits::max_region_bytes`.
        limit: u64,
    },
    /// More regions than a connection may have.
    #[error("more than {limit} regions were announced, which is the limit here")]
    TooMany {
        /// `Limits::max_regions`.
        limit: u16,
    },
    /// The regions of the connection would be too large together.
    #[error(
        "a region of {size} bytes beside {total} already announced passes the limit of {limit} bytes here"
    )]
    TotalTooLarge {
        /// Bytes of the earlier regions.
        total: u64,
        /// Bytes of this one.
        size: u64,
        /// `Limits::max_total_bytes`.
        limit: u64,
    },
    /// The file ends before the region does: touching the rest would raise SIGBUS.
    #[error("the region was announced with {announced} bytes but its file has {actual}")]
    FileTooShort {
        /// Size in the peer's message.
        announced: u64,
        /// Size of the file.
        actual: u64,
    },
    /// The descriptor is a socket, a pipe, a directory, a device, or was opened with O_PATH.
    #[error("the region's file descriptor is no regular file open for reading and writing ({found})")]
    NotAFile {
        /// What it is instead.
        found: &'static str,
    },
    /// A file on a disk or a network file system: its pages may take for ever to arrive, and a worker would wait.
    #[error(
        "the region's file is not in memory (file system type {magic:#x}); a memfd, tmpfs or hugetlbfs file is needed"
    )]
    NotInMemory {
        /// `f_type` of fstatfs(2).
        magic: u64,
    },
    /// As many peer regions are mapped as this process can watch.
    #[error(transparent)]
    RegistryFull(#[from] RegistryFull),
    /// The kernel refused.
    #[error("{call} for a region of {size} bytes: {source}")]
    System {
        /// The system call.
        call: &'static str,
        /// Bytes of the region.
        size: u64,
        /// What the kernel said.
        source: Errno,
    },
}

/// One mapped shared region.
#[derive(Debug)]
pub struct Region {
    start: NonNull<u8>,
    len: usize,
    mapped: usize,
    sealed: bool,
    huge: bool,
    /// Only peers' regions are watched: the seals on ours are our own doing.
    watched: Option<Watched>,
}

// SAFETY: a Region is a range of memory with a fixed address; it hands out raw addresses only, and whoever uses them (the
// queues) keeps to atomics and copies. Unmapping needs the last owner, whichever thread that is.
unsafe impl Send for Region {}
// SAFETY: as above; no method changes the Region.
unsafe impl Sync for Region {}

impl Region {
    /// Makes a region of `size` bytes or more (whole huge pages when they are used), zeroed, resident and sealed against any
    /// change of its size, and the file descriptor to announce it with.
    ///
    /// # Errors
    /// [`RegionError::Empty`], or the system call that failed (`Require` without free huge pages: mmap, ENOMEM).
    pub fn create(size: usize, huge: HugePages) -> Result<(Arc<Self>, OwnedFd), RegionError> {
        let size = size as u64;
        if size == 0 {
            return Err(RegionError::Empty);
        }
        match huge {
            HugePages::Never => Self::create_with(size, false),
            HugePages::Require => Self::create_with(size, true),
            HugePages::Try => Self::create_with(size, true).or_else(|_| Self::create_with(size, false)),
        }
    }

    fn create_with(size: u64, huge: bool) -> Result<(Arc<Self>, OwnedFd), RegionError> {
        let size = if huge { size.next_multiple_of(HUGE_PAGE) } else { size };
        let kind = if huge { MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB } else { MemfdFlags::empty() };
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | kind;
        let fd =
            rustix::fs::memfd_create(NAME, flags).map_err(|source| failed("memfd_create", size, source))?;
        rustix::fs::ftruncate(&fd, size).map_err(|source| failed("ftruncate", size, source))?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&fd, seals)
            .map_err(|source| failed("fcntl(F_ADD_SEALS)", size, source))?;
        let page = if huge { HUGE_PAGE } else { 1 };
        let mut region = Self::map(&fd, size, page, MapFlags::SHARED | MapFlags::POPULATE)?;
        region.sealed = true;
        region.huge = huge;
        Ok((Arc::new(region), fd))
    }

    /// Maps the region of `size` bytes that a peer announced with `fd`. The descriptor is closed, the mapping stays.
    ///
    /// The file must be in memory and hold `size` bytes. It need not be sealed (zero-copy peers cannot seal theirs): every
    /// peer region is watched, and one that is cut short later becomes [`poisoned`](Self::is_poisoned) instead of ending the
    /// process.
    ///
    /// # Errors
    /// What is wrong with the file, or the limit it passes.
    pub fn map_peer(fd: OwnedFd, size: u64, limits: &Limits) -> Result<Arc<Self>, RegionError> {
        limits.admit_size(size)?;
        check_file(&fd, size)?;
        let (page, huge) = page_of(&fd, size)?;
        let mut region = Self::map(&fd, size, page, MapFlags::SHARED)?;
        region.sealed = rustix::fs::fcntl_get_seals(&fd).is_ok_and(|seals| seals.contains(SealFlags::SHRINK));
        region.huge = huge;
        region.watched = Some(sigbus::watch(region.start.as_ptr().expose_provenance(), region.mapped)?);
        Ok(Arc::new(region))
    }

    fn map(fd: impl AsFd, size: u64, page: u64, flags: MapFlags) -> Result<Self, RegionError> {
        let too_large = || RegionError::TooLarge { size, limit: isize::MAX as u64 };
        let len = usize::try_from(size).map_err(|_| too_large())?;
        // Huge pages can only be unmapped whole, so remember the mapping's length, not the region's.
        let mapped = len.checked_next_multiple_of(page as usize).ok_or_else(too_large)?;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let start = unsafe {
            rustix::mm::mmap(core::ptr::null_mut(), mapped, ProtFlags::READ | ProtFlags::WRITE, flags, fd, 0)
        }
        .map_err(|source| failed("mmap", size, source))?;
        let start = NonNull::new(start.cast()).ok_or_else(|| failed("mmap", size, Errno::NOMEM))?;
        Ok(Self { start, len, mapped, sealed: false, huge: false, watched: None })
    }

    /// Bytes of the region.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never true: an empty region is refused.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// True if nobody can make the file shorter.
    pub fn is_sealed(&self) -> bool {
        self.sealed
    }

    /// True if the region lies on huge pages.
    pub fn is_huge(&self) -> bool {
        self.huge
    }

    /// True once the peer cut the file short and we ran into it. The region reads as zeros since, and its connection must end.
    pub fn is_poisoned(&self) -> bool {
        self.watched.as_ref().is_some_and(Watched::is_poisoned)
    }

    /// First byte of the mapping.
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // First the watch, then the mapping: see `Watch::range`.
        self.watched = None;
        // SAFETY: the range was mapped by `map` and nobody else unmaps it; this is the last owner. A failure would leave the
        // mapping, which is harmless.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.mapped) };
    }
}

fn failed(call: &'static str, size: u64, source: Errno) -> RegionError {
    RegionError::System { call, size, source }
}

fn check_file(fd: &OwnedFd, size: u64) -> Result<(), RegionError> {
    let stat = rustix::fs::fstat(fd).map_err(|source| failed("fstat", size, source))?;
    if let Some(found) = other_than_file(FileType::from_raw_mode(stat.st_mode)) {
        return Err(RegionError::NotAFile { found });
    }
    let flags = rustix::fs::fcntl_getfl(fd).map_err(|source| failed("fcntl(F_GETFL)", size, source))?;
    if flags.contains(OFlags::PATH) {
        return Err(RegionError::NotAFile { found: "opened with O_PATH" });
    }
    if flags & OFlags::RWMODE != OFlags::RDWR {
        return Err(RegionError::NotAFile { found: "opened for one direction only" });
    }
    match u64::try_from(stat.st_size) {
        Ok(actual) if actual >= size => Ok(()),
        actual => Err(RegionError::FileTooShort { announced: size, actual: actual.unwrap_or(0) }),
    }
}

fn other_than_file(kind: FileType) -> Option<&'static str> {
    match kind {
        FileType::RegularFile => None,
        FileType::Directory => Some("a directory"),
        FileType::Fifo => Some("a pipe"),
        FileType::Socket => Some("a socket"),
        FileType::CharacterDevice | FileType::BlockDevice => Some("a device"),
        FileType::Symlink => Some("a symbolic link"),
        // Anonymous inodes (eventfd, epoll, …) have no type.
        _ => Some("no file at all"),
    }
}

/// Page size of the file, and whether it is in hugetlbfs; refuses file systems that are not memory.
fn page_of(fd: &OwnedFd, size: u64) -> Result<(u64, bool), RegionError> {
    let stat = rustix::fs::fstatfs(fd).map_err(|source| failed("fstatfs", size, source))?;
    match stat.f_type as u64 & 0xffff_ffff {
        TMPFS_MAGIC => Ok((1, false)),
        HUGETLBFS_MAGIC => Ok((u64::try_from(stat.f_bsize).unwrap_or(HUGE_PAGE).max(1), true)),
        magic => Err(RegionError::NotInMemory { magic }),
    }
}
