//! The sending half: each frame is copied once, into a frame of the UMEM that the kernel gives back when it has been sent.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use memif::Lent;

use super::ledger::{BadRing, Descriptor, Ledger, MORE};
use super::ring::{Consumer, Producer};
use super::rx::gone;
use super::socket::Xsk;
use super::sys;
use super::umem::Umem;
use crate::DropReason;
use crate::burst::{Frame, Frames};
use crate::offload;
use crate::port::{PortFault, Tx, TxContext};
use crate::wire::flow;

/// Most frames that one packet may be spread over (`MAX_SKB_FRAGS`).
const PARTS: usize = 17;
/// The shortest frame that Ethernet's header allows.
const ETHERNET: usize = 14;

/// Sends by the queues of one share of the port; a flow stays on one.
pub struct AfXdpTx {
    queues: Vec<TxQueue>,
    /// The longest frame that the interface takes, 0 while it is down.
    longest: Arc<AtomicU32>,
}

/// One queue.
pub struct TxQueue {
    umem: Umem,
    tx: Producer<Descriptor>,
    completion: Consumer<u64>,
    ledger: Ledger,
    /// Frames that nobody has; the last one given back is the next to be used, while it is in the cache.
    free: Vec<u64>,
    /// There is something in the ring that the kernel has not been told of.
    unsent: bool,
    fragments: bool,
    /// The interface is down: what is sent now would be old when it comes up.
    down: bool,
    fault: Option<PortFault>,
    // Last, so that the descriptor is closed after the rings are unmapped.
    socket: Arc<Xsk>,
}

impl AfXdpTx {
    pub(super) fn new(queues: Vec<TxQueue>, longest: Arc<AtomicU32>) -> Self {
        Self { queues, longest }
    }

    #[inline(always)]
    fn queue_of(&mut self, frame: &Frame<'_>) -> &mut TxQueue {
        let count = self.queues.len();
        let at = if count == 1 { 0 } else { flow_of(frame) as usize % count };
        &mut self.queues[at]
    }
}

#[cold]
fn flow_of(frame: &Frame<'_>) -> u32 {
    let mut head = [0; flow::HEAD_LEN];
    let copied = frame.first().copy_to(&mut head);
    flow::hash(&head[..copied])
}

#[derive(Default)]
struct Sent {
    packets: u64,
    bytes: u64,
}

impl Tx for AfXdpTx {
    fn send(&mut self, frames: Frames<'_, '_>, context: &mut TxContext<'_>) {
        let longest = self.longest.load(Ordering::Relaxed) as usize;
        let mut sent = Sent::default();
        for (i, frame) in frames.as_slice().iter().enumerate() {
            if let Err(reason) = self.queue_of(frame).send(&frames, frame, longest, &mut sent) {
                context.refuse(i, reason);
            }
        }
        for queue in self.queues.iter_mut().filter(|queue| queue.unsent) {
            queue.tx.publish();
        }
        context.sent(sent.packets, sent.bytes);
    }

    fn fault(&self) -> Option<PortFault> {
        self.queues.iter().find_map(|queue| queue.fault.clone())
    }

    fn flush(&mut self, _: bool, _: &mut TxContext<'_>) -> bool {
        self.queues.iter_mut().fold(false, |again, queue| queue.flush() | again)
    }
}

impl TxQueue {
    pub(super) fn new(
        socket: Arc<Xsk>,
        umem: Umem,
        rings: (Producer<Descriptor>, Consumer<u64>),
        ledger: Ledger,
        fragments: bool,
    ) -> Self {
        let (tx, completion) = rings;
        let free = ledger.addresses().collect();
        let (unsent, down, fault) = (false, false, None);
        Self { umem, tx, completion, ledger, free, unsent, fragments, down, fault, socket }
    }

    #[inline(always)]
    fn send(
        &mut self,
        frames: &Frames<'_, '_>,
        frame: &Frame<'_>,
        longest: usize,
        sent: &mut Sent,
    ) -> Result<(), DropReason> {
        if frame.is_plain() {
            return self.push(&[frame.first()], longest, sent);
        }
        // The socket has no way to say what a frame owes, so it is paid here; several views are one frame of the UMEM.
        let mut refused = None;
        let cut = offload::each_plain(frames, frame, |views| {
            refused = self.push(views, longest, sent).err();
            refused.is_none()
        });
        cut.map_err(|_| DropReason::BadOffload)?;
        refused.map_or(Ok(()), Err)
    }

    #[inline]
    fn push(&mut self, views: &[Lent<'_>], longest: usize, sent: &mut Sent) -> Result<(), DropReason> {
        let len: usize = views.iter().map(Lent::len).sum();
        let frame_size = self.umem.frame_size() as usize;
        let parts = len.div_ceil(frame_size);
        if longest == 0 {
            return Err(DropReason::EgressDown);
        }
        if len > longest || (parts > 1 && !self.fragments) || parts > PARTS {
            return Err(DropReason::TooBig);
        }
        if len < ETHERNET {
            return Err(DropReason::TooShort);
        }
        self.reserve(parts)?;
        if parts == 1 {
            self.copy_one(views, len)
        } else {
            self.copy_parts(views, len, frame_size)
        }
        self.unsent = true;
        sent.packets += 1;
        sent.bytes += len as u64;
        Ok(())
    }

    /// Sees to it that so many frames are free, and as many entries of the ring.
    #[inline]
    fn reserve(&mut self, parts: usize) -> Result<(), DropReason> {
        if self.down || self.fault.is_some() {
            self.unsent = true;
            return Err(DropReason::EgressDown);
        }
        if self.free.len() < parts {
            self.reap();
        }
        let room = self.tx.room(parts as u32).map_err(|error| self.bad(error))?;
        if self.free.len() < parts || (room as usize) < parts {
            // Perhaps the kernel waits to be called.
            self.unsent = true;
            return Err(DropReason::TxFull);
        }
        Ok(())
    }

    #[inline(always)]
    fn copy_one(&mut self, views: &[Lent<'_>], len: usize) {
        let Some(address) = self.take_free() else { return };
        // SAFETY: the frame was free: neither the kernel's nor anybody else's, by the ledger.
        if let Some(mut slot) = unsafe { self.umem.slot(address) } {
            let mut at = 0;
            for view in views {
                at += slot.write(at, *view);
            }
        }
        self.tx.push(Descriptor { address, len: len as u32, options: 0 });
    }

    #[cold]
    fn copy_parts(&mut self, views: &[Lent<'_>], len: usize, frame_size: usize) {
        let mut views = views.iter().copied();
        let mut rest: Option<Lent<'_>> = None;
        let mut left = len;
        while left > 0 {
            let Some(address) = self.take_free() else { return };
            let part = left.min(frame_size);
            // SAFETY: as in `copy_one`.
            if let Some(mut slot) = unsafe { self.umem.slot(address) } {
                let mut at = 0;
                while at < part {
                    let Some(view) = rest.take().or_else(|| views.next()) else { break };
                    let written = slot.write(at, view);
                    at += written;
                    rest = Some(view.skip(written)).filter(|rest| !rest.is_empty());
                }
            }
            left -= part;
            let options = if left > 0 { MORE } else { 0 };
            self.tx.push(Descriptor { address, len: part as u32, options });
        }
    }

    /// A free frame, which is the kernel's from here on.
    #[inline(always)]
    fn take_free(&mut self) -> Option<u64> {
        let address = self.free.pop()?;
        // It is ours and free, so the ledger agrees.
        let given = self.ledger.give(address);
        debug_assert!(given.is_ok());
        Some(address)
    }

    /// Takes back what has been sent.
    #[inline]
    fn reap(&mut self) {
        let done = match self.completion.look() {
            Ok(done) => done,
            Err(error) => {
                self.bad(error);
                return;
            }
        };
        for nth in 0..done {
            match self.ledger.take_back(self.completion.read(nth)) {
                Ok(address) => self.free.push(address),
                Err(error) => {
                    self.bad(error);
                    return;
                }
            }
        }
        if done > 0 {
            self.completion.take(done);
            self.completion.release();
        }
    }

    #[inline]
    fn flush(&mut self) -> bool {
        if !self.unsent || self.fault.is_some() {
            return false;
        }
        let again = self.kick();
        self.unsent = again;
        self.reap();
        again
    }

    /// Has the kernel send what is in the ring. True if it has not taken all of it, but goes on or will when it is called again.
    fn kick(&mut self) -> bool {
        let Ok(mut waiting) = self.tx.waiting().map_err(|error| self.bad(error)) else { return false };
        while waiting > 0 || self.down {
            if !self.tx.needs_wakeup() {
                return true;
            }
            let result = sys::kick_send(self.socket.as_fd());
            if !self.take_answer(result) {
                return false;
            }
            let Ok(now) = self.tx.waiting().map_err(|error| self.bad(error)) else { return false };
            if now == waiting {
                return waiting > 0;
            }
            waiting = now;
            self.reap();
        }
        false
    }

    /// False if calling again is no use.
    fn take_answer(&mut self, answer: std::io::Result<()>) -> bool {
        let Err(error) = answer else {
            self.down = false;
            return true;
        };
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EBUSY | libc::ENOBUFS | libc::EINTR) => {
                self.down = false;
                true
            }
            Some(libc::ENETDOWN) => {
                self.down = true;
                false
            }
            _ => {
                self.fault = Some(gone(&error));
                false
            }
        }
    }

    #[cold]
    fn bad(&mut self, error: BadRing) -> DropReason {
        let what = "the rings of an AF_XDP socket";
        self.fault = Some(PortFault::Device { what, error: error.to_string() });
        DropReason::EgressDown
    }
}
