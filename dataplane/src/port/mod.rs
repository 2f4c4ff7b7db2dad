//! Ports: where bursts enter and leave. One file per kind; a new kind is one new file that implements [`Rx`] and [`Tx`].
//!
//! # The contract of a turn
//! 1. [`Rx::receive`] *lends* frames: the burst borrows the receiver, so nothing can move under it.
//! 2. The worker finds the egress port and calls [`Tx::send`], which copies each frame **once**, from the lent view into the
//!    egress port's own memory, and makes the whole burst visible to its peer with one store.
//! 3. The burst is dropped, and [`Rx::release`] gives the lent buffers back with one store.
//! 4. At the end of the turn [`Tx::flush`] is called on every port that was sent to.
//!
//! # Why this shape also fits AF_XDP and DPDK (on paper; those ports are issues of their own)
//! * *Lent receive buffers that are returned late.* `receive` takes descriptors off the RX ring (AF_XDP) or mbufs off the
//!   device (`rte_eth_rx_burst`) and lends views into them; `release` puts the UMEM addresses on the fill ring, or frees the
//!   mbufs in bulk. Between the two calls the worker holds the only borrow, so the device can't reuse them.
//! * *No copy between ports of one pool.* An egress port that recognises the ingress port's memory (same UMEM, same mempool)
//!   calls [`Frames::take`](crate::burst::Frames::take) instead of copying; the bit arrives in `release(taken)`, and the
//!   receiver leaves that buffer out of what it returns. Recognising is a range check on the view's address against the pool.
//! * *Transmit completion.* Buffers that a device still reads after `send` returned belong to the `Tx` until the device says
//!   so; `flush` collects them (AF_XDP's completion ring; DPDK does it inside its own `tx_burst`) and returns them to the pool
//!   that both halves of the port share. `flush` runs every turn while it returns `true`, so buffers come back without traffic.
//! * *System calls per burst, not per packet.* `flush` is where `sendto` (AF_XDP need-wakeup), `sendmmsg` or an io_uring
//!   submission belongs.

use std::fmt;
use std::os::fd::BorrowedFd;

use crate::burst::{Burst, Frames};
use crate::stats::Counters;
use crate::tables::Tables;
use crate::{DropReason, burst::BURST};

#[cfg(all(feature = "af_xdp", not(loom)))]
pub mod af_xdp;
#[cfg(not(loom))]
pub mod dpdk;
pub mod kernel;
pub mod memif;
pub mod pipe;
pub mod vxlan;

/// A port's number in this engine: its slot in the forwarding tables and in the statistics segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PortIndex(pub u16);

impl PortIndex {
    /// The number as an index into a table.
    #[inline]
    pub const fn slot(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for PortIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "port {}", self.0)
    }
}

/// Why a port can't go on. The worker detaches it and tells the agent; no other port is touched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PortFault {
    /// A memif peer broke the rules of its rings.
    #[error("memif: {0}")]
    Memif(String),
    /// The device or socket behind the port is gone.
    #[error("{what}: {error}")]
    Device {
        /// What was being done to what.
        what: &'static str,
        /// The kernel's answer.
        error: String,
    },
}

/// What a receiver may look at while it fills a burst.
pub struct RxContext<'w> {
    /// This turn's forwarding tables.
    pub tables: &'w Tables,
    /// The counters of all ports.
    pub counters: &'w Counters,
}

/// The receiving half of a port (one queue of it). Owned by one worker; called from nowhere else. Queues of a port can be several
/// workers', who then have a sending half each.
pub trait Rx: Send {
    /// Lends as many frames as are there and fit into `burst`.
    ///
    /// What can't be lent (a bad descriptor, an unknown tunnel) is consumed and counted under its reason in `context.counters`.
    ///
    /// # Errors
    /// [`PortFault`] if the port can't go on; the worker then detaches it.
    fn receive<'a>(&'a mut self, burst: &mut Burst<'a>, context: &RxContext<'_>) -> Result<(), PortFault>;

    /// Takes back everything lent by the last [`Rx::receive`], but for the frames whose bit is set in `taken`.
    fn release(&mut self, taken: u64);

    /// The descriptor that becomes readable when frames arrive, for an idle worker to sleep on (edge-triggered: it need not be
    /// read). A receiver without one is polled at the bound of the worker's sleep.
    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Called before the worker sleeps: ask the peer for wake-ups. The worker polls once more after this.
    fn arm(&mut self) {}

    /// Called when the worker polls again: wake-ups are a waste from here on.
    fn disarm(&mut self) {}
}

/// The sending half of a port, or of one worker's share of it. Owned by the same worker as the receivers beside it.
pub trait Tx: Send {
    /// Sends `frames` in order: copies each once, or refuses it with [`TxContext::refuse`]. Never waits.
    ///
    /// The port counts what it sent with [`TxContext::sent`], here or, if it holds frames back to fill a system call, in
    /// [`Tx::flush`].
    fn send(&mut self, frames: Frames<'_, '_>, context: &mut TxContext<'_>);

    /// Why the port can't go on, if that is so; the worker then detaches it. Asked when [`Tx::send`] has refused a frame.
    fn fault(&self) -> Option<PortFault> {
        None
    }

    /// End of the turn: give the kernel or the device what was collected. `more` says that the next turn will very likely bring
    /// more for this port, so a call that is not yet full may be held back once. Returns true to be called in the next turn too.
    fn flush(&mut self, more: bool, context: &mut TxContext<'_>) -> bool {
        let _ = (more, context);
        false
    }
}

/// What carries a VXLAN tunnel's datagrams: a kernel UDP socket, or an Ethernet port (see [`underlay::l2`](crate::underlay::l2)).
pub trait UnderlayTx: Send {
    /// Encapsulates `frames` for `tunnel` and sends them, now or in [`UnderlayTx::flush`]; counts at `context`'s port, which is
    /// the tunnel's.
    fn send(&mut self, tunnel: &crate::tables::Tunnel, frames: Frames<'_, '_>, context: &mut TxContext<'_>);

    /// Sends `frames` as they are, by the port that the underlay is on: what comes from its exception port. Counts at `context`'s
    /// port, which is that port.
    fn send_plain(&mut self, frames: Frames<'_, '_>, context: &mut TxContext<'_>) {
        context.refuse_from(0, frames.len(), DropReason::EgressDown);
    }

    /// As [`Tx::flush`]. Counts at the ports of the tunnels whose frames were held back.
    fn flush(&mut self, more: bool, counters: &Counters) -> bool;
}

/// What a port, or one worker's share of it, is made of once it is up. The worker owns all of it until it is detached.
#[derive(Default)]
pub struct PortParts {
    /// One per receive queue.
    pub rx: Vec<Box<dyn Rx>>,
    /// The sending half; queues inside are the port's own matter.
    pub tx: Option<Box<dyn Tx>>,
    /// Set for a port that is an underlay.
    pub underlay: Option<Box<dyn UnderlayTx>>,
}

impl PortParts {
    /// True if there is nothing of a port.
    pub fn is_empty(&self) -> bool {
        self.rx.is_empty() && self.tx.is_none() && self.underlay.is_none()
    }
}

/// The underlays that a worker owns, by their port's index.
#[derive(Default)]
pub struct Underlays(Vec<Option<Box<dyn UnderlayTx>>>);

impl Underlays {
    /// The underlay with this port index, if this worker has it.
    #[inline]
    pub fn get(&mut self, port: PortIndex) -> Option<&mut (dyn UnderlayTx + 'static)> {
        self.0.get_mut(port.slot())?.as_deref_mut()
    }

    /// Adds or replaces the underlay of `port`.
    pub fn set(
        &mut self,
        port: PortIndex,
        underlay: Option<Box<dyn UnderlayTx>>,
    ) -> Option<Box<dyn UnderlayTx>> {
        if self.0.len() <= port.slot() {
            self.0.resize_with(port.slot() + 1, || None);
        }
        std::mem::replace(&mut self.0[port.slot()], underlay)
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Box<dyn UnderlayTx>> {
        self.0.iter_mut().flatten()
    }
}

/// What a sender may use and where it counts.
pub struct TxContext<'w> {
    /// The egress port.
    pub port: PortIndex,
    /// The counters of all ports.
    pub counters: &'w Counters,
    /// This turn's forwarding tables.
    pub tables: &'w Tables,
    /// The underlays of this worker, for ports that are tunnels.
    pub underlays: &'w mut Underlays,
    /// Which of the frames of this call were refused, and why: what a capture shows.
    pub refused: &'w mut Refused,
}

/// The frames of one [`Tx::send`] that were not sent, by their index in it.
pub type Refused = arrayvec::ArrayVec<(u8, DropReason), BURST>;

impl TxContext<'_> {
    /// Counts frames that left by this port.
    #[inline]
    pub fn sent(&self, packets: u64, bytes: u64) {
        self.counters.port(self.port).sent(packets, bytes);
    }

    /// Counts the `i`-th frame of this call as dropped.
    #[inline]
    pub fn refuse(&mut self, i: usize, reason: DropReason) {
        self.counters.port(self.port).dropped(reason, 1);
        let _ = self.refused.try_push((i as u8, reason));
    }

    /// Counts the frames from the `i`-th on as dropped.
    pub fn refuse_from(&mut self, i: usize, frames: usize, reason: DropReason) {
        for i in i..frames {
            self.refuse(i, reason);
        }
    }
}
