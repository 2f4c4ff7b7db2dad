//! The mbufs that this thread's receiver has lent for the present turn, where a sender of the same thread finds them: it sends the
//! mbuf itself on instead of copying what is in it.
//!
//! A worker's turn is: receive, forward, release, by one receiver after the other. So a thread has at most one lending at a time,
//! and whoever sends meanwhile sends frames of it, frames made of it (a routed packet's new head, a decapsulated one's inside), or
//! frames that were copied before. Which of these a frame is, its address tells: it is a lent mbuf's if it begins where that
//! mbuf's data begins and is as long.
//!
//! Unsafe: mbufs are raw pointers, owned by whoever has them here.

use std::cell::{Cell, UnsafeCell};
use std::ptr::NonNull;

use dpdk_sys as sys;

use crate::burst::{BURST, Frame};

/// A received frame's mbuf.
#[derive(Clone, Copy)]
struct Lent {
    mbuf: *mut sys::rte_mbuf,
    data: *const u8,
    len: u32,
    pool: *mut sys::rte_mempool,
    /// Its first segment is the whole frame.
    whole: bool,
}

struct Table {
    lent: [Lent; BURST],
    count: Cell<usize>,
}

const NOTHING: Lent = Lent {
    mbuf: std::ptr::null_mut(),
    data: std::ptr::null(),
    len: 0,
    pool: std::ptr::null_mut(),
    whole: false,
};

thread_local! {
    static TABLE: UnsafeCell<Table> = const { UnsafeCell::new(Table { lent: [NOTHING; BURST], count: Cell::new(0) }) };
}

/// Notes what has been received: frame `i` of the burst to come is `mbufs[i]`. Only mbufs that a device may send on are offered to
/// senders; all of them are freed by [`release`].
#[inline]
pub(super) fn lend(mbufs: &[*mut sys::rte_mbuf], views: &[sys::vwire_view]) {
    TABLE.with(|table| {
        // SAFETY: the table is this thread's, and none of this module's functions calls out while it has a reference.
        let table = unsafe { &mut *table.get() };
        let count = mbufs.len().min(views.len()).min(BURST);
        for ((lent, mbuf), view) in table.lent.iter_mut().zip(&mbufs[..count]).zip(views) {
            *lent = Lent {
                mbuf: *mbuf,
                data: view.data,
                len: view.frame_len,
                pool: if view.exclusive == 1 { view.pool } else { std::ptr::null_mut() },
                whole: view.segments == 1,
            };
        }
        table.count.set(count);
    });
}

/// The mbuf that `frame`, the burst's `i`-th, is the whole of, if it is of `pool`; it is the caller's from here on. `chains` says
/// that one of several segments will do, too.
#[inline]
pub(super) fn take(
    frame: &Frame<'_>,
    i: usize,
    pool: *mut sys::rte_mempool,
    chains: bool,
) -> Option<NonNull<sys::rte_mbuf>> {
    TABLE.with(|table| {
        // SAFETY: as in `lend`.
        let table = unsafe { &mut *table.get() };
        if i >= table.count.get() {
            return None;
        }
        let lent = &mut table.lent[i];
        let same = lent.data == frame.first().as_ptr() && lent.len as usize == frame.len();
        if !same || lent.pool != pool || !(lent.whole || chains) {
            return None;
        }
        NonNull::new(std::mem::replace(&mut lent.mbuf, std::ptr::null_mut()))
    })
}

/// Frees what nobody took.
#[inline]
pub(super) fn release() {
    let mut left = [std::ptr::null_mut(); BURST];
    let count = TABLE.with(|table| {
        // SAFETY: as in `lend`.
        let table = unsafe { &mut *table.get() };
        let mut count = 0;
        for lent in table.lent.iter().take(table.count.replace(0)).filter(|lent| !lent.mbuf.is_null()) {
            left[count] = lent.mbuf;
            count += 1;
        }
        count
    });
    if count > 0 {
        // SAFETY: these came from a driver, nobody else has them, and they are forgotten here.
        unsafe { sys::rte_pktmbuf_free_bulk(left.as_mut_ptr(), count as u32) }
    }
}
