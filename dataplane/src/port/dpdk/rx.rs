//! The receiving half: one queue of a device, whose mbufs are lent as they are.
//!
//! Unsafe: views into mbufs, which live until [`DpdkRx::release`] or until a sender takes them.

use std::os::fd::{BorrowedFd, RawFd};
use std::ptr::NonNull;
use std::sync::Arc;

use dpdk_sys as sys;
use memif::Lent;

use super::batch::free;
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
    /// Bytes from which on a frame may be a part of one, of a driver that does not tell.
    cut_from: Option<u32>,
    /// The driver's descriptor for this queue's interrupts, if it has one.
    wake: Option<RawFd>,
}

impl DpdkRx {
    pub(super) fn new(port: PortIndex, device: Arc<Device>, queue: u16) -> Self {
        let (wake, cut_from) = (device.wake_fd(queue), device.about().cut_from);
        Self { port, device, queue, cut_from, wake }
    }

    /// Lends frames of which some are not one segment each. Returns how many mbufs are lent.
    #[cold]
    fn lend_odd<'a>(
        &self,
        from: &mut sys::vwire_received,
        received: usize,
        burst: &mut Burst<'a>,
        context: &RxContext<'_>,
    ) -> usize {
        let mut kept = 0;
        for i in 0..received {
            if let Err(reason) = check(from, i, self.cut_from) {
                context.counters.port(self.port).dropped(reason, 1);
                free(&mut from.mbufs[i..=i]);
                continue;
            }
            copy_place(from, i, kept);
            // SAFETY: as in `receive`.
            let first = unsafe { lent(&from.views[kept]) };
            if from.odd >> kept & 1 == 0 {
                burst.push(first);
            } else if !push_chained(burst, first, from.mbufs[kept], from.lens[kept]) {
                context.counters.port(self.port).dropped(DropReason::BadDescriptor, 1);
                free(&mut from.mbufs[kept..=kept]);
                continue;
            }
            kept += 1;
        }
        kept
    }
}

/// Marks those of the frames as odd that have `cut_from` bytes or more.
#[inline(never)]
fn note_cut(received: &mut sys::vwire_received, count: usize, cut_from: u32) {
    for i in 0..count {
        let len = received.views[i].len;
        if received.odd >> i & 1 == 0 && len >= cut_from {
            (received.lens[i], received.segments[i]) = (len, 1);
            received.odd |= 1 << i;
        }
    }
}

/// Whether frame `i` can be lent, and why not.
fn check(received: &sys::vwire_received, i: usize, cut_from: Option<u32>) -> Result<(), DropReason> {
    if received.odd >> i & 1 == 0 {
        return Ok(());
    }
    let (view, len, segments) = (&received.views[i], received.lens[i], received.segments[i]);
    match segments {
        _ if view.data.is_null() => Err(DropReason::BadDescriptor),
        1.. if view.len == 0 || len == 0 => Err(DropReason::TooShort),
        1.. if cut_from.is_some_and(|cut_from| len >= cut_from) => Err(DropReason::TooBig),
        2.. if usize::from(segments) + 2 <= MAX_VIEWS && view.len < len => Ok(()),
        2.. => Err(DropReason::TooBig),
        _ => Err(DropReason::BadDescriptor),
    }
}

/// Frame `i` takes the place `to`, which is not behind its own.
fn copy_place(received: &mut sys::vwire_received, i: usize, to: usize) {
    received.mbufs[to] = received.mbufs[i];
    received.views[to] = received.views[i];
    received.lens[to] = received.lens[i];
    for set in [&mut received.odd, &mut received.movable] {
        *set = *set & !(1 << to) | (*set >> i & 1) << to;
    }
}

impl Rx for DpdkRx {
    #[inline]
    fn receive<'a>(&'a mut self, burst: &mut Burst<'a>, context: &RxContext<'_>) -> Result<(), PortFault> {
        self.device.check()?;
        eal::register();
        let room = burst.room().min(BURST) as u16;
        let pool = self.device.pool().raw();
        lending::lend(pool, |to| {
            // SAFETY: the device is started as long as self holds it, this is the only thread that polls this queue, and the
            // arrays have room for a whole burst.
            let received = unsafe { sys::vwire_rx_burst(self.device.id(), self.queue, pool, to, room) };
            let received = usize::from(received.min(room));
            if let Some(cut_from) = self.cut_from {
                note_cut(to, received, cut_from);
            }
            if to.odd != 0 {
                return self.lend_odd(to, received, burst, context);
            }
            // SAFETY: the shim checked the views, and their mbufs are kept until `release`, or until they are taken by a sender,
            // after which nobody looks at the burst.
            burst.extend(&to.views[..received], |view| unsafe { lent(view) });
            received
        });
        Ok(())
    }

    #[inline]
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
/// The view must have data, and its mbuf be there for `'a`.
#[inline]
unsafe fn lent<'a>(view: &sys::vwire_view) -> Lent<'a> {
    // SAFETY: forwarded from the caller; the shim has checked that views lie within their buffers.
    unsafe { Lent::new(NonNull::new_unchecked(view.data), view.len) }
}

/// Lends a frame of several segments. False if they don't add up to `len`, or there is no room for their views.
fn push_chained<'a>(burst: &mut Burst<'a>, first: Lent<'a>, mbuf: *mut sys::rte_mbuf, len: u32) -> bool {
    let mut views = [sys::vwire_view::default(); MAX_VIEWS];
    // SAFETY: the mbuf is ours until `release`, and the array has room for as many views as are asked for.
    let count = unsafe { sys::vwire_next_views(mbuf, views.as_mut_ptr(), MAX_VIEWS as u16) };
    let mut chain = arrayvec::ArrayVec::<Lent<'a>, { MAX_VIEWS + 1 }>::new();
    chain.push(first);
    for view in views[..usize::from(count)].iter().filter(|view| view.len > 0 && !view.data.is_null()) {
        // SAFETY: as for the first segment.
        chain.push(unsafe { lent(view) });
    }
    let sum: usize = chain.iter().map(Lent::len).sum();
    sum == len as usize && burst.push_with(&chain, None)
}
