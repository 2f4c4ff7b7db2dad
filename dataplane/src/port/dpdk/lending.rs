//! The mbufs that this thread's receiver has lent for the present turn, where a sender of the same thread finds them: it sends the
//! mbuf itself on instead of copying what is in it.
//!
//! A worker's turn is: receive, forward, release, by one receiver after the other. So a thread has at most one lending at a time,
//! and whoever sends meanwhile sends frames of it, frames made of it (a routed packet's new head, a decapsulated one's inside), or
//! frames that were copied before. Which of these a frame is, its address tells: it is a lent mbuf's if it begins where that
//! mbuf's data begins and is as long.
//!
//! Unsafe: mbufs are raw pointers, owned by whoever has them here.

use std::cell::UnsafeCell;
use std::ptr::NonNull;

use dpdk_sys as sys;

use super::batch::free;
use crate::burst::{BURST, Frame, Frames};

/// The shim's arrays hold a burst.
const _: () = assert!(BURST == sys::VWIRE_BURST as usize);

struct Table {
    /// Filled by the shim; frame `i` of the burst is `mbufs[i]`.
    received: sys::vwire_received,
    /// The pool of those that are movable.
    pool: *mut sys::rte_mempool,
    /// The frames whose mbufs nobody has taken.
    here: u64,
}

const EMPTY: Table = Table {
    received: sys::vwire_received {
        mbufs: [std::ptr::null_mut(); BURST],
        views: [sys::vwire_view { data: std::ptr::null_mut(), len: 0 }; BURST],
        odd: 0,
        lens: [0; BURST],
        segments: [0; BURST],
        movable: 0,
    },
    pool: std::ptr::null_mut(),
    here: 0,
};

thread_local! {
    static TABLE: UnsafeCell<Table> = const { UnsafeCell::new(EMPTY) };
}

/// The bits of `count` frames from `start` on.
#[inline]
const fn bits(start: usize, count: usize) -> u64 {
    match count {
        0 => 0,
        _ => (u64::MAX >> (BURST - count)) << start,
    }
}

/// Lets `receive` fill the table with mbufs, of which those that are movable are of `pool`, and say how many there are. Those that a
/// device may send on are offered to senders; all of them are freed by [`release`].
#[inline]
pub(super) fn lend(
    pool: *mut sys::rte_mempool,
    receive: impl FnOnce(&mut sys::vwire_received) -> usize,
) -> usize {
    TABLE.with(|table| {
        // SAFETY: the table is this thread's, and nothing that this module's functions call comes back to it.
        let table = unsafe { &mut *table.get() };
        let count = receive(&mut table.received).min(BURST);
        table.pool = pool;
        table.here = bits(0, count);
        count
    })
}

/// Lets `send` take the mbufs of `frames`, and tells it their bytes, if these are received frames as they lay, each in one mbuf of
/// `pool` and no longer than `longest` bytes; otherwise it is not called. It owns the mbufs it is called with.
#[inline]
pub(super) fn take_all<R>(
    frames: &Frames<'_, '_>,
    pool: *mut sys::rte_mempool,
    longest: usize,
    send: impl FnOnce(&mut [*mut sys::rte_mbuf], u64) -> R,
) -> Option<R> {
    TABLE.with(|table| {
        // SAFETY: as in `lend`.
        let table = unsafe { &mut *table.get() };
        let (start, count) = (frames.place(0), frames.len());
        let wanted = bits(start, count);
        let offered = table.here & table.received.movable & !table.received.odd;
        if offered & wanted != wanted || table.pool != pool || !frames.are_plain() {
            return None;
        }
        let mut bytes = 0;
        for (frame, view) in frames.as_slice().iter().zip(&table.received.views[start..start + count]) {
            if !is_of(frame, view.data, view.len) || frame.len() > longest {
                return None;
            }
            bytes += frame.len() as u64;
        }
        table.here &= !wanted;
        Some(send(&mut table.received.mbufs[start..start + count], bytes))
    })
}

/// Whether the frame lies where one was received, and is as long.
#[inline]
fn is_of(frame: &Frame<'_>, data: *const u8, len: u32) -> bool {
    frame.first().as_ptr() == data && frame.len() == len as usize
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
        let received = &table.received;
        let offered = table.here & received.movable & bits(i, 1) != 0 && table.pool == pool;
        let len = match received.odd & bits(i, 1) {
            0 => received.views[i].len,
            _ if chains => received.lens[i],
            _ => return None,
        };
        if !offered || !is_of(frame, received.views[i].data, len) {
            return None;
        }
        table.here &= !bits(i, 1);
        NonNull::new(table.received.mbufs[i])
    })
}

/// Frees what nobody took.
#[inline]
pub(super) fn release() {
    TABLE.with(|table| {
        // SAFETY: as in `lend`.
        let table = unsafe { &mut *table.get() };
        let mut left = std::mem::take(&mut table.here);
        // Mostly all or none are left.
        while left != 0 {
            let start = left.trailing_zeros() as usize;
            let count = (!(left >> start)).trailing_zeros() as usize;
            left &= !bits(start, count);
            free(&mut table.received.mbufs[start..start + count]);
        }
    });
}
