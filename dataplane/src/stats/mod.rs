//! Counters, in a file that any process can map and read, also after a crash. The layout is [`vwire_proto::stats`]'s.
//!
//! Nearly every counter has one writer at a time, the worker that owns the port, so adding is a plain load and store: no bus lock.
//! The counters of a port that several workers share say so, and are added to atomically.

use std::sync::atomic::{AtomicU64, Ordering};

use vwire_proto::stats::{DROP_SLOTS, DropReason, NAME_LEN, PortEntry, PortState};

use crate::port::PortIndex;

mod segment;
pub use segment::{Counters, SegmentError};

/// One port's counters and identity.
#[repr(transparent)]
pub struct PortCounters(PortEntry);

/// A reading of one port's counters.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// Frames and bytes that entered.
    pub rx: (u64, u64),
    /// Frames and bytes that left.
    pub tx: (u64, u64),
    /// Frames lost, for each reason that occurred.
    pub drops: Vec<(DropReason, u64)>,
}

impl Snapshot {
    /// Frames lost for `reason`.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops.iter().find(|(r, _)| *r == reason).map_or(0, |(_, n)| *n)
    }

    /// Frames lost for any reason.
    pub fn dropped_in_all(&self) -> u64 {
        self.drops.iter().map(|(_, n)| n).sum()
    }
}

impl PortCounters {
    #[inline]
    fn add<const N: usize>(&self, counters: [(&AtomicU64, u64); N]) {
        let shared = self.0.shared.load(Ordering::Relaxed) != 0;
        for (counter, n) in counters {
            if shared {
                counter.fetch_add(n, Ordering::Relaxed);
            } else {
                counter.store(counter.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
            }
        }
    }

    /// Says whether several workers count here. Only the agent does, while none does.
    pub fn set_shared(&self, shared: bool) {
        self.0.shared.store(shared.into(), Ordering::Release);
    }

    /// Counts frames that entered by this port.
    #[inline]
    pub fn received(&self, packets: u64, bytes: u64) {
        self.add([(&self.0.rx.packets, packets), (&self.0.rx.bytes, bytes)]);
    }

    /// Counts frames that left by this port.
    #[inline]
    pub fn sent(&self, packets: u64, bytes: u64) {
        self.add([(&self.0.tx.packets, packets), (&self.0.tx.bytes, bytes)]);
    }

    /// Counts frames lost at this port.
    #[inline]
    pub fn dropped(&self, reason: DropReason, packets: u64) {
        self.add([(&self.0.drops[reason as usize], packets)]);
    }

    /// Reads all counters. Not one instant's picture while the port is busy: each value is exact at its own moment.
    pub fn snapshot(&self) -> Snapshot {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let drops =
            DropReason::ALL.iter().map(|r| (*r, read(&self.0.drops[*r as usize]))).filter(|(_, n)| *n > 0);
        Snapshot {
            rx: (read(&self.0.rx.packets), read(&self.0.rx.bytes)),
            tx: (read(&self.0.tx.packets), read(&self.0.tx.bytes)),
            drops: drops.collect(),
        }
    }

    /// The port's state as last set.
    pub fn state(&self) -> PortState {
        PortState::from_raw(self.0.state.load(Ordering::Acquire)).unwrap_or(PortState::Free)
    }

    /// Says whether frames can flow. Only the agent does.
    pub fn set_state(&self, state: PortState) {
        self.0.state.store(state as u32, Ordering::Release);
    }

    /// Gives the slot to a port: counters start at zero. Only the agent does, while no worker owns the slot.
    pub fn open(&self, name: &str, kind: &str) {
        write_text(&self.0.name, name);
        write_text(&self.0.kind, kind);
        for counter in [&self.0.rx.packets, &self.0.rx.bytes, &self.0.tx.packets, &self.0.tx.bytes] {
            counter.store(0, Ordering::Relaxed);
        }
        for slot in 0..DROP_SLOTS {
            self.0.drops[slot].store(0, Ordering::Relaxed);
        }
        self.0.epoch.fetch_add(1, Ordering::Relaxed);
        self.set_state(PortState::Down);
    }

    /// Frees the slot. The counters stay readable until another port takes it.
    pub fn close(&self) {
        self.set_state(PortState::Free);
    }

    /// The name of the port that has, or last had, this slot.
    pub fn name(&self) -> String {
        read_text(&self.0.name)
    }

    /// The kind of that port.
    pub fn kind(&self) -> String {
        read_text(&self.0.kind)
    }
}

/// Cuts at a character's boundary, so that what a reader gets is UTF-8.
fn write_text(words: &[AtomicU64], text: &str) {
    let fits =
        text.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= words.len() * 8).last();
    let mut bytes = [0; NAME_LEN];
    let text = &text.as_bytes()[..fits.unwrap_or(0)];
    bytes[..text.len()].copy_from_slice(text);
    for (word, chunk) in words.iter().zip(bytes.chunks_exact(8)) {
        word.store(u64::from_ne_bytes(chunk.try_into().unwrap_or_default()), Ordering::Relaxed);
    }
}

fn read_text(words: &[AtomicU64]) -> String {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes()).collect();
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

impl Counters {
    /// The first slot that no port has.
    pub fn free_slot(&self) -> Option<PortIndex> {
        (0..self.capacity()).map(PortIndex).find(|port| self.port(*port).state() == PortState::Free)
    }
}
