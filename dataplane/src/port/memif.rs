//! memif ports: shared rings with a process that may lie in everything it writes. What the peer gets wrong is judged by the
//! `memif` crate; here its answers become frames, counts and faults.

use std::os::fd::BorrowedFd;

use memif::Lent;
use memif::queue::{FrameSink, RingFault, RxQueue, TxQueue, TxRefused};

use super::{PortFault, PortIndex, PortParts, Rx, RxContext, Tx, TxContext};
use crate::burst::{Burst, Frame, Frames};
use crate::offload::Link;
use crate::wire::flow;
use crate::{DropReason, offload};

/// One receive queue of a connection.
pub struct MemifRx {
    port: PortIndex,
    queue: RxQueue,
}

/// All transmit queues of a connection.
pub struct MemifTx {
    queues: Vec<TxQueue>,
    link: Link,
}

/// Makes a port of a connection's queues, whose frames begin as `link` says.
pub fn parts(port: PortIndex, link: Link, rx: Vec<RxQueue>, tx: Vec<TxQueue>) -> PortParts {
    let rx = rx.into_iter().map(|queue| Box::new(MemifRx { port, queue }) as Box<dyn Rx>).collect();
    let tx = (!tx.is_empty()).then(|| Box::new(MemifTx { queues: tx, link }) as Box<dyn Tx>);
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
        let all = frames.as_slice();
        let mut sent = Sent::default();
        for (i, frame) in all.iter().enumerate() {
            let queue = self.queue_of(frame);
            match push(queue, &frames, frame, &mut sent) {
                Ok(()) => {}
                // One queue: what follows would find it full, too.
                Err(DropReason::TxFull) if self.queues.len() == 1 => {
                    context.refuse_from(i, all.len(), DropReason::TxFull);
                    break;
                }
                Err(reason) => context.refuse(i, reason),
            }
        }
        self.queues.iter_mut().for_each(TxQueue::publish);
        context.sent(sent.packets, sent.bytes);
    }

    /// A ring with a fault refuses everything as full, for ever.
    fn fault(&self) -> Option<PortFault> {
        self.queues.iter().find_map(TxQueue::fault).map(PortFault::from)
    }
}

impl MemifTx {
    /// A flow stays on one queue, so that it stays in order.
    #[inline(always)]
    fn queue_of(&mut self, frame: &Frame<'_>) -> &mut TxQueue {
        let count = self.queues.len();
        let at = if count == 1 { 0 } else { flow_of(self.link, frame) as usize % count };
        &mut self.queues[at]
    }
}

#[cold]
fn flow_of(link: Link, frame: &Frame<'_>) -> u32 {
    let mut head = [0; flow::HEAD_LEN];
    let copied = frame.first().copy_to(&mut head);
    match link {
        Link::Ethernet => flow::hash(&head[..copied]),
        Link::Ip => flow::hash_packet(&head[..copied]),
    }
}

/// What left in this call. A frame that was cut into segments counts as those: that is what the peer gets.
#[derive(Default)]
struct Sent {
    packets: u64,
    bytes: u64,
}

impl Sent {
    #[inline(always)]
    fn add(&mut self, bytes: usize) {
        self.packets += 1;
        self.bytes += bytes as u64;
    }
}

#[inline(always)]
fn push(
    queue: &mut TxQueue,
    frames: &Frames<'_, '_>,
    frame: &Frame<'_>,
    sent: &mut Sent,
) -> Result<(), DropReason> {
    if !frame.is_plain() {
        return match frames.offload(frame) {
            None => push_chained(queue, frames, frame, sent),
            Some(_) => push_owing(queue, frames, frame, sent),
        };
    }
    queue.push(frame.first()).map_err(reason)?;
    sent.add(frame.len());
    Ok(())
}

/// A routed packet is its rewritten head and the rest of it.
#[inline]
fn push_chained(
    queue: &mut TxQueue,
    frames: &Frames<'_, '_>,
    frame: &Frame<'_>,
    sent: &mut Sent,
) -> Result<(), DropReason> {
    let pushed = queue.push_with(frame.len(), |writer| {
        writer.append(frame.first());
        frames.rest(frame).iter().for_each(|view| writer.append(*view));
    });
    pushed.map_err(reason)?;
    sent.add(frame.len());
    Ok(())
}

#[cold]
fn push_owing(
    queue: &mut TxQueue,
    frames: &Frames<'_, '_>,
    frame: &Frame<'_>,
    sent: &mut Sent,
) -> Result<(), DropReason> {
    let mut refused = None;
    // A memif peer knows nothing of open checksums and segments: it gets whole frames.
    let cut = offload::each_plain(frames, frame, |views| {
        match queue.push_chain(views) {
            Ok(()) => sent.add(views.iter().map(Lent::len).sum()),
            Err(why) => refused = Some(reason(why)),
        }
        refused.is_none()
    });
    cut.map_err(|_| DropReason::BadOffload)?;
    refused.map_or(Ok(()), Err)
}

fn reason(why: TxRefused) -> DropReason {
    match why {
        TxRefused::Full => DropReason::TxFull,
        TxRefused::TooLong => DropReason::TooBig,
        TxRefused::Empty => DropReason::TooShort,
        TxRefused::BadSlot => DropReason::BadDescriptor,
    }
}
