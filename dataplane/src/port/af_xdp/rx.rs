//! The receiving half: frames of the UMEM are lent from the receive ring and go back by the fill ring.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use arrayvec::ArrayVec;
use memif::Lent;
use rustix::net::xdp::XdpStatistics;

use super::ledger::{BadRing, Descriptor, Ledger, MORE};
use super::ring::{Consumer, Producer};
use super::socket::Xsk;
use super::umem::Umem;
use super::{sys, unfinished};
use crate::DropReason;
use crate::burst::{BURST, Burst, CHAIN_VIEWS, Offload};
use crate::port::{PortFault, PortIndex, Rx, RxContext};

/// Most frames that one packet is spread over: the kernel has 17 fragments and a head (`MAX_SKB_FRAGS`).
const PARTS: usize = 18;
/// Frames that one burst can hold.
const LENT: usize = BURST + CHAIN_VIEWS;
/// Polls without a frame between two looks at what the kernel counted and whether the interface is still there.
const EMPTY_POLLS: u32 = 64;
/// Bursts between two such looks.
const BURSTS: u32 = 4096;

/// One queue of the interface.
pub struct AfXdpRx {
    port: PortIndex,
    umem: Umem,
    rx: Consumer<Descriptor>,
    fill: Producer<u64>,
    ledger: Ledger,
    /// First bytes of the frames that are lent, or to be given back.
    lent: ArrayVec<u64, LENT>,
    until_look: u32,
    counted: Option<XdpStatistics>,
    habits: Habits,
    // Last, so that the descriptor is closed after the rings are unmapped.
    socket: Arc<Xsk>,
}

/// What is done for some interfaces only.
#[derive(Debug, Clone, Copy)]
pub(super) struct Habits {
    /// The kernel delivers only to who asks.
    pub busy_poll: bool,
    /// Frames may come with open checksums.
    pub open_checksums: bool,
}

impl AfXdpRx {
    pub(super) fn new(
        port: PortIndex,
        socket: Arc<Xsk>,
        umem: Umem,
        rings: (Consumer<Descriptor>, Producer<u64>),
        ledger: Ledger,
        habits: Habits,
    ) -> Self {
        let (rx, fill) = rings;
        let (lent, counted) = (ArrayVec::new(), None);
        Self { port, umem, rx, fill, ledger, lent, until_look: EMPTY_POLLS, counted, habits, socket }
    }

    /// Counts what the kernel dropped, and notices when the interface is gone.
    #[cold]
    fn look(&mut self, context: &RxContext<'_>) -> Result<(), PortFault> {
        if let Some(error) = self.socket.error() {
            return Err(gone(&error));
        }
        let Ok(now) = self.socket.statistics() else { return Ok(()) };
        if let Some(before) = self.counted.replace(now) {
            let since = |read: fn(&XdpStatistics) -> u64| read(&now).saturating_sub(read(&before));
            let unfilled = since(|counts| counts.rx_fill_ring_empty_descs.unwrap_or(0));
            let full = since(|counts| counts.rx_ring_full.unwrap_or(0)) + unfilled;
            // The kernel counts a copy that found no frame here, too; what is left did not fit.
            let too_big = since(|counts| counts.rx_dropped).saturating_sub(unfilled);
            let counters = context.counters.port(self.port);
            for (reason, packets) in [(DropReason::SocketFull, full), (DropReason::TooBig, too_big)] {
                if packets > 0 {
                    counters.dropped(reason, packets);
                }
            }
        }
        Ok(())
    }

    #[inline]
    fn is_look_due(&mut self, empty: bool) -> bool {
        self.until_look = self.until_look.saturating_sub(if empty { BURSTS / EMPTY_POLLS } else { 1 });
        let due = self.until_look == 0;
        if due {
            self.until_look = BURSTS;
        }
        due
    }
}

impl Rx for AfXdpRx {
    fn receive<'a>(&'a mut self, burst: &mut Burst<'a>, context: &RxContext<'_>) -> Result<(), PortFault> {
        let available = self.rx.available().map_err(fault)?;
        if self.is_look_due(available == 0) {
            self.look(context)?;
        }
        if available == 0 {
            if self.habits.busy_poll || self.fill.needs_wakeup() {
                // Where the interface is down there is nothing to hear.
                let _ = sys::kick_receive(self.socket.as_fd());
            }
            return Ok(());
        }
        let Self { port, umem, rx, ledger, lent, habits, .. } = self;
        let mut taken = 0;
        while taken < available && burst.room() > 0 && lent.remaining_capacity() >= PARTS {
            let packet = rx.read(taken);
            if packet.options & MORE == 0 {
                taken += 1;
                lent.push(ledger.receive(&packet).map_err(fault)?);
                let view = umem.lend(packet.address, packet.len).filter(|view| !view.is_empty());
                if !view.is_some_and(|view| lend(&[view], *habits, burst)) {
                    context.counters.port(*port).dropped(DropReason::TooShort, 1);
                }
                continue;
            }
            let Some(parts) = whole(rx, taken, available) else { break };
            let refused =
                lend_chain(umem, ledger, lent, burst, rx, *habits, taken..taken + parts).map_err(fault)?;
            taken += parts;
            if let Some(reason) = refused {
                context.counters.port(*port).dropped(reason, 1);
            }
        }
        rx.take(taken);
        rx.release();
        Ok(())
    }

    fn release(&mut self, _: u64) {
        if self.lent.is_empty() {
            return;
        }
        // There is room for all frames in the ring; the ledger holds each one to be there once.
        let room = self.fill.room(self.lent.len() as u32).unwrap_or(0) as usize;
        let fits = room.min(self.lent.len());
        for address in self.lent.drain(..fits) {
            if self.ledger.give(address).is_ok() {
                self.fill.push(address);
            }
        }
        self.fill.publish();
        if self.fill.needs_wakeup() {
            let _ = sys::kick_receive(self.socket.as_fd());
        }
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }
}

/// Lends a frame, and says what it owes. False if there is no room for it.
#[inline(always)]
fn lend<'a>(views: &[Lent<'a>], habits: Habits, burst: &mut Burst<'a>) -> bool {
    match views {
        [view] if !habits.open_checksums => {
            burst.push(*view);
            true
        }
        _ => {
            let owed = if habits.open_checksums { owed(views) } else { None };
            burst.push_with(views, owed)
        }
    }
}

fn owed(views: &[Lent<'_>]) -> Option<Offload> {
    let mut head = [0; unfinished::HEAD];
    let len = views.first()?.copy_to(&mut head);
    unfinished::open_checksum(&head[..len])
}

/// How many descriptors the packet has that begins with the `from`th; `None` if its end is not there yet.
#[cold]
fn whole(rx: &Consumer<Descriptor>, from: u32, available: u32) -> Option<u32> {
    (from..available).position(|nth| rx.read(nth).options & MORE == 0).map(|last| last as u32 + 1)
}

/// Lends a packet of several frames. They are read once more than in [`whole`], which only counted; what they say is checked here.
#[cold]
fn lend_chain<'a>(
    umem: &'a Umem,
    ledger: &mut Ledger,
    lent: &mut ArrayVec<u64, LENT>,
    burst: &mut Burst<'a>,
    rx: &Consumer<Descriptor>,
    habits: Habits,
    parts: std::ops::Range<u32>,
) -> Result<Option<DropReason>, BadRing> {
    if parts.len() > PARTS {
        return Err(BadRing::Index { size: PARTS as u32, filled: parts.len() as u32 });
    }
    let mut views = ArrayVec::<Lent<'a>, PARTS>::new();
    for nth in parts {
        let part = rx.read(nth);
        lent.push(ledger.receive(&part)?);
        views.extend(umem.lend(part.address, part.len).filter(|view| !view.is_empty()));
    }
    Ok((!lend(&views, habits, burst)).then_some(DropReason::TooBig))
}

fn fault(error: BadRing) -> PortFault {
    PortFault::Device { what: "the rings of an AF_XDP socket", error: error.to_string() }
}

pub(super) fn gone(error: &std::io::Error) -> PortFault {
    let error = match error.raw_os_error() {
        Some(libc::ENETDOWN | libc::ENXIO | libc::ENODEV) => "the interface is gone".to_owned(),
        _ => error.to_string(),
    };
    PortFault::Device { what: "an AF_XDP socket", error }
}
