//! memif ports: shared rings with a process that may lie in everything it writes. What the peer gets wrong is judged by the
//! `memif` crate; here its answers become frames, counts and faults.

use std::os::fd::BorrowedFd;

use arrayvec::ArrayVec;
use memif::Lent;
use memif::queue::{FrameSink, MAX_SEGMENTS, RingFault, RxQueue, TxQueue, TxRefused};

use super::{PortFault, PortIndex, PortParts, Rx, RxContext, Tx, TxContext};
use crate::DropReason;
use crate::burst::{Burst, Frame, Frames};

/// How far ahead of the copy the bytes of a frame are asked for. Between 4 and 16 made no difference that could be measured.
const PREFETCH_AHEAD: usize = 8;

/// One receive queue of a connection.
pub struct MemifRx {
    port: PortIndex,
    queue: RxQueue,
}

/// All transmit queues of a connection.
pub struct MemifTx {
    queues: Vec<TxQueue>,
}

/// Makes a port of a connection's queues.
pub fn parts(port: PortIndex, rx: Vec<RxQueue>, tx: Vec<TxQueue>) -> PortParts {
    let rx = rx.into_iter().map(|queue| Box::new(MemifRx { port, queue }) as Box<dyn Rx>).collect();
    let tx = (!tx.is_empty()).then(|| Box::new(MemifTx { queues: tx }) as Box<dyn Tx>);
    PortParts { rx, tx, underlay: None }
}

impl From<RingFault> for PortFault {
    fn from(fault: RingFault) -> Self {
        Self::Memif(fault.to_string())
    }
}

impl<'a> FrameSink<'a> for Burst<'a> {
    #[inline]
    fn room(&self) -> usize {
        Burst::room(self)
    }

    #[inline]
    fn frame(&mut self, frame: Lent<'a>) {
        self.push(frame);
    }

    fn chain(&mut self, segments: &[Lent<'a>], _: usize) {
        self.push_with(segments, None);
    }
}

impl Rx for MemifRx {
    fn receive<'a>(&'a mut self, burst: &mut Burst<'a>, context: &RxContext<'_>) -> Result<(), PortFault> {
        let faults = self.queue.take_faults().total();
        if faults > 0 {
            context.counters.port(self.port).dropped(DropReason::BadDescriptor, faults);
        }
        self.queue.receive(burst)?;
        Ok(())
    }

    fn release(&mut self, _: u64) {
        self.queue.release();
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.queue.event_fd())
    }

    fn arm(&mut self) {
        self.queue.unmask();
    }

    fn disarm(&mut self) {
        self.queue.mask();
    }
}

impl Tx for MemifTx {
    fn send(&mut self, frames: Frames<'_, '_>, context: &mut TxContext<'_>) {
        let queue = &mut self.queues[0];
        let all = frames.as_slice();
        let (mut packets, mut bytes) = (0, 0);
        for (i, frame) in all.iter().enumerate() {
            if let Some(ahead) = all.get(i + PREFETCH_AHEAD) {
                ahead.first().prefetch();
            }
            match push(queue, &frames, frame) {
                Ok(()) => {
                    packets += 1;
                    bytes += frame.len() as u64;
                }
                Err(TxRefused::Full) => {
                    context.refuse_from(i, all.len(), DropReason::TxFull);
                    break;
                }
                Err(why) => context.refuse(i, reason(why)),
            }
        }
        queue.publish();
        context.sent(packets, bytes);
    }
}

#[inline(always)]
fn push(queue: &mut TxQueue, frames: &Frames<'_, '_>, frame: &Frame<'_>) -> Result<(), TxRefused> {
    if frame.is_plain() { queue.push(frame.first()) } else { push_chain(queue, frames, frame) }
}

#[cold]
fn push_chain(queue: &mut TxQueue, frames: &Frames<'_, '_>, frame: &Frame<'_>) -> Result<(), TxRefused> {
    let views: ArrayVec<Lent<'_>, MAX_SEGMENTS> = frames.views(frame).take(MAX_SEGMENTS).collect();
    queue.push_chain(&views)
}

fn reason(why: TxRefused) -> DropReason {
    match why {
        TxRefused::Full => DropReason::TxFull,
        TxRefused::TooLong => DropReason::TooBig,
        TxRefused::Empty => DropReason::TooShort,
        TxRefused::BadSlot => DropReason::BadDescriptor,
    }
}
