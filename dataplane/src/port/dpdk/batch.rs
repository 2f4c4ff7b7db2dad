//! Mbufs on their way to a device: empty ones in stock, filled ones in a batch, and what becomes of those the device has no room
//! for.
//!
//! Unsafe: mbufs are raw pointers, owned by the stock, then by the batch, then by the device.

use arrayvec::ArrayVec;
use dpdk_sys as sys;
use memif::{Lent, Slot};

use super::device::Device;
use crate::DropReason;
use crate::burst::BURST;
use crate::port::TxContext;

/// Empty mbufs, taken from the pool many at a time.
#[derive(Default)]
pub(super) struct Stock(ArrayVec<sys::vwire_room, BURST>);

impl Stock {
    /// An empty mbuf, or `None` while the pool has none.
    #[inline]
    pub fn take(&mut self, pool: *mut sys::rte_mempool) -> Option<sys::vwire_room> {
        if self.0.is_empty() {
            self.fill(pool);
        }
        self.0.pop()
    }

    fn fill(&mut self, pool: *mut sys::rte_mempool) {
        // A pool that is nearly empty may still have one.
        for count in [BURST, 1] {
            let mut mbufs = [std::ptr::null_mut(); BURST];
            let mut rooms = [sys::vwire_room::default(); BURST];
            // SAFETY: the port that this stock is a part of keeps the pool, and both arrays have room for `count`.
            let error =
                unsafe { sys::vwire_alloc_bulk(pool, mbufs.as_mut_ptr(), rooms.as_mut_ptr(), count as u16) };
            if error == 0 {
                self.0.extend(rooms[..count].iter().copied());
                return;
            }
        }
    }

    /// Puts back what was not used.
    #[inline]
    pub fn put(&mut self, room: sys::vwire_room) {
        if let Err(full) = self.0.try_push(room) {
            free(&mut [full.element().mbuf]);
        }
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        let mut mbufs: ArrayVec<_, BURST> = self.0.iter().map(|room| room.mbuf).collect();
        free(&mut mbufs);
    }
}

/// Gives mbufs back to their pools.
pub(super) fn free(mbufs: &mut [*mut sys::rte_mbuf]) {
    if !mbufs.is_empty() {
        // SAFETY: the caller owns these, and forgets them.
        unsafe { sys::rte_pktmbuf_free_bulk(mbufs.as_mut_ptr(), mbufs.len() as u32) }
    }
}

/// An mbuf's free bytes, to be written to.
#[inline]
pub(super) fn slot(room: &mut sys::vwire_room) -> Option<Slot<'_>> {
    // SAFETY: the mbuf is the caller's, and nobody else's until it is sent; DPDK says how much fits. The borrow of `room` keeps
    // it that way.
    std::ptr::NonNull::new(room.data).map(|data| unsafe { Slot::new(data, room.room) })
}

/// Frames that go to the device in one call.
pub(super) struct Batch {
    mbufs: [*mut sys::rte_mbuf; BURST],
    /// Lengths that are still to be written into the mbufs; 0 for those that have theirs.
    lens: [u16; BURST],
    bytes: [u32; BURST],
    /// Which frame of the call each is, or is a part of.
    frame: [u8; BURST],
    count: usize,
    /// What became of the frames of this call: sent as they lay, or copied.
    taken: u64,
    copied: u64,
    /// Some of them leave work to the device.
    owing: bool,
    /// The device's transmit queue that they go by.
    queue: u16,
}

impl Batch {
    /// No frames yet, for this transmit queue of a device, which no other thread sends by.
    pub const fn new(queue: u16) -> Self {
        Self {
            queue,
            mbufs: [std::ptr::null_mut(); BURST],
            lens: [0; BURST],
            bytes: [0; BURST],
            frame: [0; BURST],
            count: 0,
            taken: 0,
            copied: 0,
            owing: false,
        }
    }

    #[inline]
    pub const fn is_full(&self) -> bool {
        self.count == BURST
    }

    /// Adds an mbuf of `bytes`, which is of frame `i`. `len` is the length it is to get first, or 0. The batch must not be full.
    #[inline]
    pub fn push(&mut self, i: usize, mbuf: *mut sys::rte_mbuf, len: u16, bytes: usize) {
        let at = self.count;
        self.mbufs[at] = mbuf;
        self.lens[at] = len;
        self.bytes[at] = bytes as u32;
        self.frame[at] = i as u8;
        self.count += 1;
        self.copied += bytes as u64;
    }

    /// Adds a received mbuf as it is. The batch must not be full.
    #[inline]
    pub fn push_taken(&mut self, i: usize, mbuf: *mut sys::rte_mbuf, bytes: usize) {
        self.push(i, mbuf, 0, bytes);
        self.copied -= bytes as u64;
        self.taken += 1;
    }

    /// The mbuf added last leaves work to the device.
    pub fn owes(&mut self) {
        self.owing = true;
    }

    /// Gives all to the device, counts what it took, and refuses the rest.
    #[inline]
    pub fn submit(&mut self, device: &Device, context: &mut TxContext<'_>) {
        if self.count == 0 {
            return;
        }
        if self.owing {
            self.prepare(device, context);
        }
        let count = self.count as u16;
        // SAFETY: the mbufs are ours and complete but for the lengths given, the device is started, and this is the only thread
        // that sends by this queue. What it takes is its own from here on.
        let sent = unsafe {
            sys::vwire_tx_burst_of(
                device.id(),
                self.queue,
                self.mbufs.as_mut_ptr(),
                self.lens.as_ptr(),
                count,
            )
        };
        let sent = usize::from(sent).min(self.count);
        device.sent(self.queue, std::mem::take(&mut self.taken), std::mem::take(&mut self.copied));
        context.sent(sent as u64, self.bytes[..sent].iter().map(|bytes| u64::from(*bytes)).sum());
        if sent < self.count {
            self.refuse_from(sent, DropReason::TxFull, context);
        }
        self.count = 0;
    }

    /// Lets the driver look at what it is to do, and drops what it can't.
    #[cold]
    fn prepare(&mut self, device: &Device, context: &mut TxContext<'_>) {
        self.owing = false;
        for (mbuf, len) in self.mbufs.iter().zip(&mut self.lens).take(self.count).filter(|(_, len)| **len > 0)
        {
            // SAFETY: the mbuf is ours, and has so many bytes.
            unsafe { sys::vwire_set_len(*mbuf, std::mem::take(len)) }
        }
        let mut at = 0;
        while at < self.count {
            let rest = (self.count - at) as u16;
            // SAFETY: `rest` mbufs from `at` on are ours and complete.
            let good = unsafe {
                sys::vwire_tx_prepare(device.id(), self.queue, self.mbufs[at..].as_mut_ptr(), rest)
            };
            at += usize::from(good);
            if at < self.count {
                free(&mut self.mbufs[at..=at]);
                context.refuse(usize::from(self.frame[at]), DropReason::BadOffload);
                self.mbufs.copy_within(at + 1..self.count, at);
                self.bytes.copy_within(at + 1..self.count, at);
                self.frame.copy_within(at + 1..self.count, at);
                self.count -= 1;
            }
        }
    }

    /// A frame is refused once, however many of its segments are.
    #[cold]
    fn refuse_from(&mut self, from: usize, reason: DropReason, context: &mut TxContext<'_>) {
        let mut last = None;
        for frame in &self.frame[from..self.count] {
            if last != Some(*frame) {
                context.refuse(usize::from(*frame), reason);
            }
            last = Some(*frame);
        }
        free(&mut self.mbufs[from..self.count]);
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        // Only after a panic in the middle of a call.
        free(&mut self.mbufs[..self.count]);
    }
}

/// Frees a frame that was not finished.
pub(super) struct Unfinished(pub Option<*mut sys::rte_mbuf>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(mbuf) = self.0.take() {
            free(&mut [mbuf]);
        }
    }
}

/// Writes views one behind the other into mbufs of `pool`, several chained where one is too short.
pub(super) struct Writer<'s> {
    stock: &'s mut Stock,
    pool: *mut sys::rte_mempool,
    head: Unfinished,
    last: Option<(sys::vwire_room, usize)>,
    total: usize,
}

impl<'s> Writer<'s> {
    pub fn new(stock: &'s mut Stock, pool: *mut sys::rte_mempool) -> Self {
        Self { stock, pool, head: Unfinished(None), last: None, total: 0 }
    }

    /// Appends a view.
    ///
    /// # Errors
    /// The pool is empty.
    pub fn append(&mut self, mut view: Lent<'_>) -> Result<(), DropReason> {
        while !view.is_empty() {
            let (room, used) = match &mut self.last {
                Some((room, used)) if *used < room.room as usize => (room, used),
                _ => {
                    self.close_last();
                    let room = self.stock.take(self.pool).ok_or(DropReason::NoBuffer)?;
                    let (room, used) = self.last.insert((room, 0));
                    (room, used)
                }
            };
            let written = slot(room).map_or(0, |mut slot| slot.write(*used, view));
            if written == 0 {
                return Err(DropReason::NoBuffer);
            }
            *used += written;
            self.total += written;
            view = view.skip(written);
        }
        Ok(())
    }

    /// Hangs the mbuf that is written to at the end of the chain.
    fn close_last(&mut self) {
        let Some((room, used)) = self.last.take() else { return };
        match self.head.0 {
            // SAFETY: the mbuf is ours and has so many bytes written.
            None => unsafe {
                sys::vwire_set_len(room.mbuf, used as u16);
                self.head.0 = Some(room.mbuf);
            },
            // SAFETY: both are ours; the shim finds the chain's end.
            Some(head) => unsafe { sys::vwire_chain(head, room.mbuf, used as u16) },
        }
    }

    /// The frame, and its length.
    pub fn finish(mut self) -> Option<(*mut sys::rte_mbuf, usize)> {
        self.close_last();
        self.head.0.take().map(|mbuf| (mbuf, self.total))
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        if let Some((room, _)) = self.last.take() {
            self.stock.put(room);
        }
    }
}
