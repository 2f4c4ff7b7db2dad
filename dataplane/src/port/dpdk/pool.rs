//! Pools of packet buffers. The ports of one pool pass frames to each other without a copy; a port with a pool of its own can't
//! use up the others' buffers.
//!
//! Unsafe: a pool is a C object that must outlive every mbuf of it.

use std::ffi::CString;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use dpdk_sys as sys;

use super::eal;
use super::error::DpdkError;

/// Buffers that each registered thread may keep in its own cache of a pool.
const CACHE: u32 = 256;
/// DPDK's mark for "any memory node".
const ANY_SOCKET: i32 = -1;

/// A pool of mbufs.
pub(super) struct Pool {
    raw: NonNull<sys::rte_mempool>,
    size: u32,
    room: usize,
    promised: AtomicU32,
    shared: bool,
}

// SAFETY: DPDK's pools are made for many threads; everything else here is atomic or never changes.
unsafe impl Send for Pool {}
// SAFETY: as above.
unsafe impl Sync for Pool {}

/// Buffers of a pool that are promised to a port's queues.
pub(super) struct Promise {
    pool: Arc<Pool>,
    buffers: u32,
}

static SHARED: Mutex<Shared> = Mutex::new(Shared { used: Weak::new(), left: None });

struct Shared {
    /// The pool, while a port has it.
    used: Weak<Pool>,
    /// One that no port has any more, and that a driver did not give back all buffers to.
    left: Option<Left>,
}

struct Left(NonNull<sys::rte_mempool>);

// SAFETY: DPDK's pools are made for many threads.
unsafe impl Send for Left {}

fn shared() -> MutexGuard<'static, Shared> {
    SHARED.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// The pool that ports share: made for the first of them, gone with the last.
    pub fn shared() -> Result<Arc<Self>, DpdkError> {
        let mut shared = shared();
        if let Some(pool) = shared.used.upgrade() {
            return Ok(pool);
        }
        let size = eal::settings().buffers;
        let pool = Arc::new(match shared.left.take() {
            Some(Left(raw)) => Self::of(raw, size, true),
            None => Self::new(size, true)?,
        });
        shared.used = Arc::downgrade(&pool);
        Ok(pool)
    }

    /// A pool of one port.
    pub fn own(buffers: u32) -> Result<Arc<Self>, DpdkError> {
        Ok(Arc::new(Self::new(buffers, false)?))
    }

    fn new(size: u32, shared: bool) -> Result<Self, DpdkError> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let room = usize::from(eal::settings().buffer_size);
        let name = format!("vwire-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let name = CString::new(name).unwrap_or_default();
        let cache = CACHE.min(size * 2 / 3);
        let mark = eal::mark();
        let data = eal::settings().buffer_size + sys::VWIRE_HEADROOM;
        // SAFETY: the EAL runs (a port is being opened), and the name is copied.
        let raw = unsafe { sys::rte_pktmbuf_pool_create(name.as_ptr(), size, cache, 0, data, ANY_SOCKET) };
        let Some(raw) = NonNull::new(raw) else {
            // SAFETY: reads a thread's own variable.
            let reason = eal::why(mark, unsafe { sys::vwire_errno() });
            return Err(DpdkError::Memory { buffers: size, size: room, reason });
        };
        Ok(Self::of(raw, size, shared))
    }

    fn of(raw: NonNull<sys::rte_mempool>, size: u32, shared: bool) -> Self {
        let room = usize::from(eal::settings().buffer_size);
        Self { raw, size, room, promised: AtomicU32::new(0), shared }
    }

    /// For calls of DPDK's.
    pub fn raw(&self) -> *mut sys::rte_mempool {
        self.raw.as_ptr()
    }

    /// Bytes that fit into a buffer.
    pub fn room(&self) -> usize {
        self.room
    }

    /// Buffers that nobody uses.
    pub fn available(&self) -> u32 {
        // SAFETY: the pool lives as long as self.
        unsafe { sys::rte_mempool_avail_count(self.raw()) }
    }

    /// All of its buffers.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// Promises `buffers` to `device`.
    pub fn promise(self: &Arc<Self>, buffers: u32, device: &str) -> Result<Promise, DpdkError> {
        let take = |promised: u32| promised.checked_add(buffers).filter(|all| *all <= self.size);
        match self.promised.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
            Ok(_) => Ok(Promise { pool: Arc::clone(self), buffers }),
            Err(promised) => Err(DpdkError::PoolTooSmall {
                device: device.to_owned(),
                needed: buffers,
                free: self.size - promised,
                size: self.size,
                pool: if self.shared { "the ports' pool" } else { "its own pool" },
                key: if self.shared { "[dpdk] buffers" } else { "the port's buffers" },
            }),
        }
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.pool.promised.fetch_sub(self.buffers, Ordering::Relaxed);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: the pool is there until the next call.
        let used = unsafe { sys::rte_mempool_in_use_count(self.raw()) };
        if used > 0 {
            // Somebody may still write to them: better to lose the memory than to give it away.
            tracing::error!(used, "a driver did not give back all buffers; their pool stays");
            if self.shared {
                // It has others, and will do for the next port. Another was made if one came meanwhile.
                shared().left.get_or_insert(Left(self.raw));
            }
            return;
        }
        // SAFETY: every buffer is back, and whoever could ask for one is gone with the last Arc.
        unsafe { sys::rte_mempool_free(self.raw()) }
    }
}
