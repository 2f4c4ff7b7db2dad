//! The sending halves that a worker owns, and which of them are to be flushed at the end of the turn.

use crate::burst::Frames;
use crate::port::{PortFault, PortIndex, PortParts, Refused, Tx, TxContext, UnderlayTx, Underlays};
use crate::stats::Counters;
use crate::tables::Tables;

#[derive(Default)]
struct TxSlot {
    tx: Option<Box<dyn Tx>>,
    dirty: bool,
}

/// By port index.
#[derive(Default)]
pub(super) struct Outbox {
    slots: Vec<TxSlot>,
    underlays: Underlays,
    dirty: Vec<PortIndex>,
    underlays_hold: bool,
    refused: Refused,
    faults: Vec<(PortIndex, PortFault)>,
}

impl Outbox {
    pub fn add(&mut self, port: PortIndex, tx: Option<Box<dyn Tx>>, underlay: Option<Box<dyn UnderlayTx>>) {
        if self.slots.len() <= port.slot() {
            self.slots.resize_with(port.slot() + 1, TxSlot::default);
        }
        self.slots[port.slot()].tx = tx;
        if underlay.is_some() {
            self.underlays.set(port, underlay);
        }
    }

    /// Takes the port's sending half, and the underlay if it is one.
    pub fn remove(&mut self, port: PortIndex) -> PortParts {
        let tx = self.slots.get_mut(port.slot()).and_then(|slot| slot.tx.take());
        PortParts { rx: Vec::new(), tx, underlay: self.underlays.set(port, None) }
    }

    /// Sends frames by `port` and returns those it refused (already counted there), or `None` if the port is not here.
    #[inline]
    pub fn send(
        &mut self,
        port: PortIndex,
        frames: Frames<'_, '_>,
        tables: &Tables,
        counters: &Counters,
    ) -> Option<&Refused> {
        let slot = self.slots.get_mut(port.slot())?;
        let tx = slot.tx.as_mut()?;
        if !slot.dirty {
            slot.dirty = true;
            self.dirty.push(port);
        }
        self.refused.clear();
        let mut context =
            TxContext { port, counters, tables, underlays: &mut self.underlays, refused: &mut self.refused };
        tx.send(frames, &mut context);
        if !self.refused.is_empty()
            && let Some(fault) = tx.fault()
        {
            self.faults.push((port, fault));
        }
        Some(&self.refused)
    }

    /// Moves the ports that can't go on to `faults`.
    #[inline]
    pub fn take_faults(&mut self, faults: &mut Vec<(PortIndex, PortFault)>) {
        faults.append(&mut self.faults);
    }

    /// Ends the turn: what the ports collected goes out, but for what they may hold back because `more` is coming.
    #[inline]
    pub fn flush(&mut self, more: bool, tables: &Tables, counters: &Counters) {
        if self.dirty.is_empty() && !self.underlays_hold {
            return;
        }
        let Self { slots, underlays, dirty, refused, .. } = self;
        dirty.retain(|port| {
            let Some(slot) = slots.get_mut(port.slot()) else { return false };
            let Some(tx) = slot.tx.as_mut() else {
                slot.dirty = false;
                return false;
            };
            let mut context = TxContext { port: *port, counters, tables, underlays, refused };
            slot.dirty = tx.flush(more, &mut context);
            slot.dirty
        });
        // Tunnels leave their frames with the underlay, so it is flushed after all of them.
        self.underlays_hold = false;
        for underlay in self.underlays.iter_mut() {
            self.underlays_hold |= underlay.flush(more, counters);
        }
    }
}
