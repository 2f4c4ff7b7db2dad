//! The sending half: a frame that lies in an mbuf of our pool goes out as that mbuf, any other is copied into one, once.

use std::sync::Arc;

use dpdk_sys as sys;
use memif::Lent;

use super::batch::{Batch, Stock, Writer, free, slot};
use super::debt;
use super::device::Device;
use super::{eal, lending};
use crate::burst::{Frame, Frames};
use crate::port::{PortFault, Tx, TxContext};
use crate::{DropReason, offload};

/// Sends by one of the device's transmit queues.
pub struct DpdkTx {
    // Dropped in this order: the mbufs before the device, whose pool they are of.
    stock: Stock,
    batch: Batch,
    queue: u16,
    device: Arc<Device>,
}

// SAFETY: the mbufs inside are owned by whoever owns this, and tied to no thread.
unsafe impl Send for DpdkTx {}

impl DpdkTx {
    pub(super) fn new(device: Arc<Device>, queue: u16) -> Self {
        Self { device, queue, stock: Stock::default(), batch: Batch::new(queue) }
    }

    /// Sends all frames in the mbufs that they were received in. False, and nothing done, if that can't be.
    #[inline]
    fn send_received(&self, frames: &Frames<'_, '_>, context: &mut TxContext<'_>) -> bool {
        if !frames.may_take() {
            return false;
        }
        let (device, queue) = (&*self.device, self.queue);
        let sent = lending::take_all(frames, device.pool().raw(), device.max_frame(), |mbufs, bytes| {
            let count = mbufs.len() as u16;
            // SAFETY: the mbufs are ours and complete, the device is started, and this is the only thread that sends by this queue.
            // What it takes is its own from here on.
            let sent = unsafe { sys::vwire_tx_burst(device.id(), queue, mbufs.as_mut_ptr(), count) };
            let sent = usize::from(sent).min(mbufs.len());
            free(&mut mbufs[sent..]);
            (sent, bytes)
        });
        let Some((sent, bytes)) = sent else { return false };
        frames.take_all();
        device.sent(queue, frames.len() as u64, 0);
        let unsent: u64 = frames.as_slice()[sent..].iter().map(|frame| frame.len() as u64).sum();
        context.sent(sent as u64, bytes - unsent);
        context.refuse_from(sent, frames.len(), DropReason::TxFull);
        true
    }

    #[inline]
    fn push(
        &mut self,
        frames: &Frames<'_, '_>,
        i: usize,
        context: &mut TxContext<'_>,
    ) -> Result<(), DropReason> {
        let frame = &frames.as_slice()[i];
        if !frame.is_plain() {
            return self.push_other(frames, i, context);
        }
        if frame.len() > self.device.max_frame() {
            return Err(DropReason::TooBig);
        }
        if self.push_taken(frames, i) {
            return Ok(());
        }
        if frame.len() > self.device.pool().room() {
            return self.push_views(i, &[frame.first()], context);
        }
        let mut room = self.stock.take(self.device.pool().raw()).ok_or(DropReason::NoBuffer)?;
        if let Some(mut slot) = slot(&mut room) {
            slot.write(0, frame.first());
        }
        self.batch.push(i, room.mbuf, frame.len() as u16, frame.len());
        Ok(())
    }

    /// Sends the mbuf that the frame lies in, if that can be.
    #[inline]
    fn push_taken(&mut self, frames: &Frames<'_, '_>, i: usize) -> bool {
        if !frames.may_take() {
            return false;
        }
        let frame = &frames.as_slice()[i];
        let chains = self.device.sends_chains();
        let Some(mbuf) = lending::take(frame, frames.place(i), self.device.pool().raw(), chains) else {
            return false;
        };
        frames.take(i);
        self.batch.push_taken(i, mbuf.as_ptr(), frame.len());
        true
    }

    /// A frame of several views, or one that owes something.
    #[cold]
    fn push_other(
        &mut self,
        frames: &Frames<'_, '_>,
        i: usize,
        context: &mut TxContext<'_>,
    ) -> Result<(), DropReason> {
        let frame = &frames.as_slice()[i];
        match frames.offload(frame) {
            Some(owed) => match debt::of(frames, frame, &owed, self.device.offloads()) {
                Some(debt) if debt.longest(frame.len()) <= self.device.about().max_segment => {
                    self.push_debt(frames, i, &debt, context)
                }
                _ => self.push_plain(frames, i, context),
            },
            None if frame.len() > self.device.max_frame() => Err(DropReason::TooBig),
            None if self.push_taken(frames, i) => Ok(()),
            None => self.push_plain(frames, i, context),
        }
    }

    /// The device pays what the frame owes.
    fn push_debt(
        &mut self,
        frames: &Frames<'_, '_>,
        i: usize,
        debt: &debt::Debt,
        context: &mut TxContext<'_>,
    ) -> Result<(), DropReason> {
        let frame = &frames.as_slice()[i];
        let mut writer = Writer::new(&mut self.stock, self.device.pool().raw());
        debt.write(frames, frame, |view| writer.append(view))?;
        let Some((mbuf, len)) = writer.finish() else { return Err(DropReason::TooShort) };
        debt.mark(mbuf);
        self.make_room(context);
        self.batch.push(i, mbuf, 0, len);
        self.batch.owes();
        Ok(())
    }

    /// The frame, or the segments it is to be cut into, with everything paid here.
    fn push_plain(
        &mut self,
        frames: &Frames<'_, '_>,
        i: usize,
        context: &mut TxContext<'_>,
    ) -> Result<(), DropReason> {
        let frame: &Frame<'_> = &frames.as_slice()[i];
        let mut refused = None;
        let cut = offload::each_plain(frames, frame, |views| {
            if let Err(reason) = self.push_views(i, views, context) {
                refused = Some(reason);
            }
            refused.is_none()
        });
        cut.map_err(|_| DropReason::BadOffload)?;
        refused.map_or(Ok(()), Err)
    }

    fn push_views(
        &mut self,
        i: usize,
        views: &[Lent<'_>],
        context: &mut TxContext<'_>,
    ) -> Result<(), DropReason> {
        let len: usize = views.iter().map(Lent::len).sum();
        if len > self.device.max_frame() {
            return Err(DropReason::TooBig);
        }
        let mut writer = Writer::new(&mut self.stock, self.device.pool().raw());
        views.iter().try_for_each(|view| writer.append(*view))?;
        let Some((mbuf, len)) = writer.finish() else { return Err(DropReason::TooShort) };
        self.make_room(context);
        self.batch.push(i, mbuf, 0, len);
        Ok(())
    }

    /// A frame cut into segments fills more than one batch.
    fn make_room(&mut self, context: &mut TxContext<'_>) {
        if self.batch.is_full() {
            self.batch.submit(&self.device, context);
        }
    }
}

impl Tx for DpdkTx {
    fn send(&mut self, frames: Frames<'_, '_>, context: &mut TxContext<'_>) {
        if !self.device.is_up() {
            return context.refuse_from(0, frames.len(), DropReason::EgressDown);
        }
        eal::register();
        if self.send_received(&frames, context) {
            return;
        }
        for i in 0..frames.len() {
            self.make_room(context);
            if let Err(reason) = self.push(&frames, i, context) {
                context.refuse(i, reason);
            }
        }
        self.batch.submit(&self.device, context);
    }

    fn fault(&self) -> Option<PortFault> {
        self.device.check().err()
    }
}
