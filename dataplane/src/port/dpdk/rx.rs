//! The receiving half: one queue of a device, whose mbufs are lent as they are.
//!
//! Unsafe: views into mbufs, which live until [`DpdkRx::release`] or until a sender takes them.

use std::os::fd::{BorrowedFd, RawFd};
use std::ptr::NonNull;
use std::sync::Arc;

use dpdk_sys as sys;
use memif::Lent;

use super::device::Device;
use super::{eal, lending};
use crate::DropReason;
use crate::burst::{BURST, Burst};
use crate::offload::MAX_VIEWS;
use crate::port::{PortFault, PortIndex, Rx, RxContext};

/// One receive queue.
pub struct DpdkRx {
    port: PortIndex,
    device: Arc<Device>,
    queue: u16,
    /// The driver's descriptor for this queue's interrupts, if it has one.
    wake: Option<RawFd>,
    mbufs: [*mut sys::rte_mbuf; BURST],
    views: [sys::vwire_view; BURST],
}

// SAFETY: the arrays are scratch space of a call of `receive`.
unsafe impl Send for DpdkRx {}

impl DpdkRx {
    pub(super) fn new(port: PortIndex, device: Arc<Device>, queue: u16) -> Self {
        let wake = device.wake_fd(queue);
        let views = std::array::from_fn(|_| sys::vwire_view::default());
        Self { port, device, queue, wake, mbufs: [std::ptr::null_mut(); BURST], views }
    }

    /// Drops what the driver gave at `i`, and closes the gap.
    #[cold]
    fn refuse(&mut self, i: usize, received: &mut usize) {
        // SAFETY: the driver gave us this mbuf, and it is forgotten here.
        unsafe { sys::rte_pktmbuf_free_bulk(&raw mut self.mbufs[i], 1) };
        *received -= 1;
        self.mbufs.copy_within(i + 1..=*received, i);
        self.views.copy_within(i + 1..=*received, i);
    }
}

/// What can't be lent, and why.
#[inline]
fn check(view: &sys::vwire_view) -> Result<(), DropReason> {
    match view.segments {
        _ if view.data.is_null() => Err(DropReason::BadDescriptor),
        _ if view.len == 0 || view.frame_len == 0 => Err(DropReason::TooShort),
        1 if view.len == view.frame_len => Ok(()),
        2.. if usize::from(view.segments) + 2 <= MAX_VIEWS && view.len < view.frame_len => Ok(()),
        2.. => Err(DropReason::TooBig),
        _ => Err(DropReason::BadDescriptor),
    }
}

impl Rx for DpdkRx {
    fn receive<'a>(&'a mut self, burst: &mut Burst<'a>, context: &RxContext<'_>) -> Result<(), PortFault> {
        self.device.check()?;
        eal::register();
        let room = burst.room().min(BURST) as u16;
        let (mbufs, views) = (self.mbufs.as_mut_ptr(), self.views.as_mut_ptr());
        // SAFETY: the device is started as long as self holds it, this is the only thread that polls this queue, and both arrays
        // have room for `room`.
        let received = unsafe { sys::vwire_rx_burst(self.device.id(), self.queue, mbufs, views, room) };
        let mut received = usize::from(received.min(room));
        if received == 0 {
            return Ok(());
        }
        let mut i = 0;
        while i < received {
            match check(&self.views[i]) {
                Ok(()) => i += 1,
                Err(reason) => {
                    context.counters.port(self.port).dropped(reason, 1);
                    self.refuse(i, &mut received);
                }
            }
        }
        lending::lend(&self.mbufs[..received], &self.views[..received]);
        for (mbuf, view) in self.mbufs[..received].iter().zip(&self.views) {
            // SAFETY: the view was checked, and its mbuf is kept until `release`, or until it is taken by a sender, which keeps
            // it for at least as long as the burst is looked at: it is with the device then, which reads it.
            let Some(first) = (unsafe { lent(view) }) else { continue };
            if view.segments == 1 {
                burst.push(first);
            } else if !push_chained(burst, first, *mbuf, view.frame_len) {
                context.counters.port(self.port).dropped(DropReason::BadDescriptor, 1);
            }
        }
        Ok(())
    }

    fn release(&mut self, _: u64) {
        lending::release();
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the driver keeps the descriptor open as long as the device is started, and `self.device` keeps it so.
        self.wake.map(|fd| unsafe { BorrowedFd::borrow_raw(fd) })
    }

    fn arm(&mut self) {
        if self.wake.is_some() {
            self.device.interrupts(self.queue, true);
        }
    }

    fn disarm(&mut self) {
        if self.wake.is_some() {
            self.device.interrupts(self.queue, false);
        }
    }
}

/// # Safety
/// The view's mbuf must be there for `'a`.
#[inline]
unsafe fn lent<'a>(view: &sys::vwire_view) -> Option<Lent<'a>> {
    // SAFETY: forwarded from the caller; a driver's views lie within their buffers.
    NonNull::new(view.data).map(|data| unsafe { Lent::new(data, view.len) })
}

/// Lends a frame of several segments. False if they don't add up to `len`, or there is no room for their views.
#[cold]
fn push_chained<'a>(burst: &mut Burst<'a>, first: Lent<'a>, mbuf: *mut sys::rte_mbuf, len: u32) -> bool {
    let mut views = [sys::vwire_view::default(); MAX_VIEWS];
    // SAFETY: the mbuf is ours until `release`, and the array has room for as many views as are asked for.
    let count = unsafe { sys::vwire_next_views(mbuf, views.as_mut_ptr(), MAX_VIEWS as u16) };
    let mut chain = arrayvec::ArrayVec::<Lent<'a>, { MAX_VIEWS + 1 }>::new();
    chain.push(first);
    for view in views[..usize::from(count)].iter().filter(|view| view.len > 0) {
        // SAFETY: as for the first segment.
        chain.extend(unsafe { lent(view) });
    }
    let sum: usize = chain.iter().map(Lent::len).sum();
    sum == len as usize && burst.push_with(&chain, None)
}
