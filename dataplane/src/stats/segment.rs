//! Mapping the segment: the only unsafe part of the statistics.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use vwire_proto::stats::{DropReason, Header, LAYOUT, MAGIC, PORTS_OFFSET, PortEntry};

use crate::port::PortIndex;
use crate::tables::{Owners, WorkerId};

/// Why a segment could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// The file can't be created, opened, sized or mapped.
    #[error("statistics segment {path}: {error}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// The kernel's answer.
        error: std::io::Error,
    },
    /// Another engine counts there.
    #[error("statistics segment {path}: {who} counts there; give each engine a [stats] path of its own")]
    InUse {
        /// Which file.
        path: PathBuf,
        /// The other engine's process.
        who: String,
    },
    /// The file is not a segment of this layout.
    #[error("statistics segment {path}: {reason}")]
    Format {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

struct Mapping {
    start: NonNull<u8>,
    len: usize,
    ports: u16,
    /// Tables of so many ports each.
    workers: u16,
    /// Of an engine's own segment: its lock says that somebody counts there, and goes with the process.
    file: Option<File>,
}

// SAFETY: the mapping is shared memory whose every field is an atomic; it is unmapped only when the last owner is gone.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `start` and `len` are what mmap returned, and no reference into the mapping outlives its owner.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// The counters of all ports, for one worker, or for a reader. Clones share one segment.
#[derive(Clone)]
pub struct Counters {
    mapping: Arc<Mapping>,
    worker: u16,
}

impl Counters {
    /// Creates the segment at `path` with room for `ports` ports and so many workers, replacing an earlier engine's. The file stays when the engine
    /// is gone, so that what it counted can be read after a crash.
    ///
    /// # Errors
    /// [`SegmentError::Io`] if the file can't be made, [`SegmentError::InUse`] if the earlier engine still runs: its counters must
    /// stay where they are looked for.
    pub fn create(path: &Path, ports: u16, workers: u16) -> Result<Self, SegmentError> {
        let wrap = |error: std::io::Error| SegmentError::Io { path: path.to_owned(), error };
        // A new file under the old name: a reader that still maps the old one keeps a consistent picture.
        let fresh = path.with_extension("new");
        // Truncated only once it is locked: it may be that of another engine which is just starting.
        let file =
            File::options().read(true).write(true).create(true).truncate(false).open(&fresh).map_err(wrap)?;
        lock(&file, &fresh)?;
        if let Err(error) = check_unused(path) {
            let _ = std::fs::remove_file(&fresh);
            return Err(error);
        }
        file.set_len(0).map_err(wrap)?;
        let counters = Self::over(file, ports, workers).map_err(wrap)?;
        std::fs::rename(&fresh, path).map_err(wrap)?;
        Ok(counters)
    }

    /// A segment without a name, for as many workers as there can be: for tests and benchmarks.
    ///
    /// # Errors
    /// The kernel's, if it has no memory for it.
    pub fn anonymous(ports: u16) -> Result<Self, std::io::Error> {
        let file = File::from(rustix::fs::memfd_create("vwire-stats", rustix::fs::MemfdFlags::CLOEXEC)?);
        Self::over(file, ports, Owners::MOST)
    }

    fn over(file: File, ports: u16, workers: u16) -> std::io::Result<Self> {
        // What is never written takes no memory: a file with holes.
        let len = length(ports.into(), workers.into());
        file.set_len(len as u64)?;
        let mut mapping = map(&file, len, (ports, workers), ProtFlags::READ | ProtFlags::WRITE)?;
        mapping.file = Some(file);
        let counters = Self { mapping: Arc::new(mapping), worker: 0 };
        counters.write_header(ports, workers);
        Ok(counters)
    }

    /// The same as this worker counts in them. One that the segment has no table for counts as the first, and can share no port.
    #[must_use]
    pub fn of(&self, worker: WorkerId) -> Self {
        let worker = if worker.0 < self.mapping.workers { worker.0 } else { 0 };
        Self { mapping: Arc::clone(&self.mapping), worker }
    }

    fn write_header(&self, ports: u16, workers: u16) {
        let mut names = [[0; 24]; vwire_proto::stats::DROP_SLOTS];
        for (slot, reason) in names.iter_mut().zip(DropReason::ALL) {
            slot[..reason.name().len()].copy_from_slice(reason.name().as_bytes());
        }
        // SAFETY: the segment is new and MAGIC not yet written, so nobody reads the names while they are set; the field lies
        // inside the first page of the mapping.
        unsafe { (&raw mut (*self.mapping.start.as_ptr().cast::<Header>()).drop_names).write(names) };
        let header = self.header();
        let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        header.layout.store(LAYOUT, Ordering::Relaxed);
        header.pid.store(std::process::id(), Ordering::Relaxed);
        header.ports.store(u32::from(ports), Ordering::Relaxed);
        header.workers.store(u32::from(workers), Ordering::Relaxed);
        header.port_size.store(size_of::<PortEntry>() as u32, Ordering::Relaxed);
        header.started.store(started, Ordering::Relaxed);
        header.magic.store(MAGIC, Ordering::Release);
    }

    /// Maps another engine's segment to read it.
    ///
    /// # Errors
    /// [`SegmentError`] if the file is not there or is not a segment of this layout.
    pub fn open(path: &Path) -> Result<Self, SegmentError> {
        let wrap = |error: std::io::Error| SegmentError::Io { path: path.to_owned(), error };
        let file = File::open(path).map_err(wrap)?;
        let len = file.metadata().map_err(wrap)?.len() as usize;
        let format = |reason: String| SegmentError::Format { path: path.to_owned(), reason };
        if len < PORTS_OFFSET {
            return Err(format(format!("{len} bytes are too few; a segment has at least {PORTS_OFFSET}")));
        }
        let mut mapping = map(&file, len, (0, 0), ProtFlags::READ).map_err(wrap)?;
        // SAFETY: the mapping holds at least a page and the header is made of atomics, valid for any content.
        let header = unsafe { mapping.start.cast::<Header>().as_ref() };
        let (magic, layout) = (header.magic.load(Ordering::Acquire), header.layout.load(Ordering::Relaxed));
        if (magic, layout) != (MAGIC, LAYOUT) {
            return Err(format(format!(
                "not a segment of layout {LAYOUT} (magic {magic:#x}, layout {layout})"
            )));
        }
        let (ports, workers) = (header.ports.load(Ordering::Relaxed), header.workers.load(Ordering::Relaxed));
        let known = u16::try_from(ports).ok().zip(u16::try_from(workers).ok().filter(|workers| *workers > 0));
        let Some(known) = known.filter(|_| length(ports as usize, workers as usize) <= len) else {
            return Err(format(format!(
                "{len} bytes can't hold the {ports} ports for {workers} workers that its header names"
            )));
        };
        (mapping.ports, mapping.workers) = known;
        Ok(Self { mapping: Arc::new(mapping), worker: 0 })
    }

    /// How many ports the segment has room for.
    pub fn capacity(&self) -> u16 {
        self.mapping.ports
    }

    /// How many workers can share a port.
    pub fn workers(&self) -> u16 {
        self.mapping.workers
    }

    /// The worker that counts in these.
    #[inline]
    pub(super) fn worker(&self) -> u16 {
        self.worker
    }

    /// The segment's header.
    pub fn header(&self) -> &Header {
        // SAFETY: the mapping is at least a page long and page-aligned; all fields but the names, which never change after
        // creation, are atomics.
        unsafe { self.mapping.start.cast::<Header>().as_ref() }
    }

    /// The slot of `port` in a worker's table.
    ///
    /// # Panics
    /// If there is no such slot.
    #[inline]
    pub(super) fn entry(&self, worker: u16, port: PortIndex) -> &PortEntry {
        let Mapping { start, ports, workers, .. } = &*self.mapping;
        assert!(port.0 < *ports && worker < *workers, "{port} is beyond the statistics segment");
        let at = usize::from(worker) * usize::from(*ports) + port.slot();
        // SAFETY: the slot is inside the mapping by the check above and 64-byte aligned; PortEntry is made of atomics.
        unsafe { start.add(PORTS_OFFSET).cast::<PortEntry>().add(at).as_ref() }
    }
}

/// Bytes of a segment.
const fn length(ports: usize, workers: usize) -> usize {
    PORTS_OFFSET + ports * workers * size_of::<PortEntry>()
}

fn map(file: &File, len: usize, (ports, workers): (u16, u16), access: ProtFlags) -> std::io::Result<Mapping> {
    // SAFETY: a fresh mapping at an address of the kernel's choice; nothing else refers to it.
    let start = unsafe { mmap(std::ptr::null_mut(), len, access, MapFlags::SHARED, file.as_fd(), 0)? };
    let start = NonNull::new(start.cast()).ok_or_else(|| std::io::Error::other("mmap returned address 0"))?;
    Ok(Mapping { start, len, ports, workers, file: None })
}

fn lock(file: &File, path: &Path) -> Result<(), SegmentError> {
    match rustix::fs::flock(file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let pid = |other: Counters| other.header().pid.load(Ordering::Relaxed);
            let who = Counters::open(path)
                .map_or("another process".to_owned(), |other| format!("process {}", pid(other)));
            Err(SegmentError::InUse { path: path.to_owned(), who })
        }
        Err(error) => Err(SegmentError::Io { path: path.to_owned(), error: error.into() }),
    }
}

/// Refuses a path at which a living engine counts.
fn check_unused(path: &Path) -> Result<(), SegmentError> {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    match File::options().read(true).custom_flags(flags).open(path) {
        Ok(earlier) => lock(&earlier, path),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(SegmentError::Io { path: path.to_owned(), error }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Snapshot;

    #[test]
    fn what_one_process_counts_another_reads_after_it_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stats");
        let writer = Counters::create(&path, 8, 1).unwrap();
        let port = writer.free_slot().unwrap();
        writer.port(port).open("uplink-ä", "memif");
        writer.port(port).received(3, 180);
        writer.port(port).dropped(DropReason::TxFull, 2);
        drop(writer);
        let reader = Counters::open(&path).unwrap();
        let expected = Snapshot { rx: (3, 180), tx: (0, 0), drops: vec![(DropReason::TxFull, 2)] };
        assert_eq!(reader.port(port).snapshot(), expected);
        assert_eq!((reader.port(port).name(), reader.port(port).kind()), ("uplink-ä".into(), "memif".into()));
        assert_eq!(&reader.header().drop_names[DropReason::TxFull as usize][..7], b"tx_full");
    }

    #[test]
    fn a_segment_that_is_counted_in_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stats");
        let first = Counters::create(&path, 8, 1).unwrap();
        let refused = Counters::create(&path, 8, 1).err().unwrap().to_string();
        let expected = format!(
            "statistics segment {}: process {} counts there; give each engine a [stats] path of its own",
            path.display(),
            std::process::id()
        );
        assert_eq!(refused, expected);
        assert!(!path.with_extension("new").exists());
        drop(first);
        Counters::create(&path, 8, 1).unwrap();
    }

    #[test]
    fn a_file_that_is_no_segment_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, b"short").unwrap();
        assert!(Counters::open(&path).err().unwrap().to_string().contains("5 bytes are too few"));
        std::fs::write(&path, [0; 8192]).unwrap();
        assert!(Counters::open(&path).err().unwrap().to_string().contains("not a segment of layout 2"));
    }

    #[test]
    fn what_several_workers_count_at_once_adds_up() {
        let counters = Counters::anonymous(1).unwrap();
        let port = counters.free_slot().unwrap();
        counters.port(port).open("shared", "dpdk");
        counters.port(port).share();
        let count = |worker| {
            let counters = counters.of(WorkerId(worker));
            for _ in 0..100_000 {
                counters.port(port).received(2, 120);
                counters.port(port).dropped(DropReason::TxFull, 1);
            }
        };
        std::thread::scope(|scope| (0..4).for_each(|worker| drop(scope.spawn(move || count(worker)))));
        let expected =
            Snapshot { rx: (800_000, 48_000_000), tx: (0, 0), drops: vec![(DropReason::TxFull, 400_000)] };
        assert_eq!(counters.of(WorkerId(2)).port(port).snapshot(), expected, "whoever reads");
        // The slot's next port is one worker's again, and begins at zero.
        counters.port(port).close();
        counters.port(port).open("alone", "pipe");
        counters.of(WorkerId(3)).port(port).received(1, 60);
        assert_eq!(counters.port(port).snapshot(), Snapshot { rx: (1, 60), ..Snapshot::default() });
        counters.port(port).share();
        assert_eq!(counters.port(port).snapshot(), Snapshot { rx: (1, 60), ..Snapshot::default() });
    }

    #[test]
    fn a_slot_starts_at_zero_for_its_next_port() {
        let counters = Counters::anonymous(2).unwrap();
        let slot = counters.free_slot().unwrap();
        counters.port(slot).open("a", "pipe");
        counters.port(slot).sent(1, 60);
        counters.port(slot).close();
        counters.port(slot).open("b", "pipe");
        assert_eq!(counters.port(slot).snapshot(), Snapshot::default());
    }
}
