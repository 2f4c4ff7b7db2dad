//! Counters, in a file that any process can map and read, also after a crash. The layout is [`vwire_proto::stats`]'s.
//!
//! Every counter has one writer at a time, a worker that has the port, so adding is a plain load and store: no bus lock, and no line
//! that two cores write. Of a port that several workers share each has counters of its own, which are added up where they are read.

use std::sync::atomic::{AtomicU64, Ordering};

use vwire_proto::stats::{DROP_SLOTS, DropReason, NAME_LEN, PortEntry, PortState};

use crate::port::PortIndex;

mod segment;
pub use segment::{Counters, SegmentError};

/// One port's counters and identity, as one worker, or a reader, sees them.
#[derive(Clone, Copy)]
pub struct PortCounters<'c> {
    /// What the port is.
    port: &'c PortEntry,
    /// Where this worker counts: there, or in its own share.
    mine: &'c PortEntry,
    all: &'c Counters,
    index: PortIndex,
}

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

#[inline]
fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

impl PortCounters<'_> {
    /// Counts frames that entered by this port.
    #[inline]
    pub fn received(&self, packets: u64, bytes: u64) {
        add(&self.mine.rx.packets, packets);
        add(&self.mine.rx.bytes, bytes);
    }

    /// Counts frames that left by this port.
    #[inline]
    pub fn sent(&self, packets: u64, bytes: u64) {
        add(&self.mine.tx.packets, packets);
        add(&self.mine.tx.bytes, bytes);
    }

    /// Counts frames lost at this port.
    #[inline]
    pub fn dropped(&self, reason: DropReason, packets: u64) {
        add(&self.mine.drops[reason as usize], packets);
    }

    /// Reads all counters. Not one instant's picture while the port is busy: each value is exact at its own moment.
    pub fn snapshot(&self) -> Snapshot {
        let read = |counter: &dyn Fn(&PortEntry) -> &AtomicU64| -> u64 {
            self.shares().map(|share| counter(share).load(Ordering::Relaxed)).fold(0, u64::wrapping_add)
        };
        let drops = DropReason::ALL.iter().map(|r| (*r, read(&|share| &share.drops[*r as usize])));
        Snapshot {
            rx: (read(&|share| &share.rx.packets), read(&|share| &share.rx.bytes)),
            tx: (read(&|share| &share.tx.packets), read(&|share| &share.tx.bytes)),
            drops: drops.filter(|(_, n)| *n > 0).collect(),
        }
    }

    /// Where the port is counted.
    fn shares(&self) -> impl Iterator<Item = &PortEntry> {
        let others = if is_shared(self.port) { 1..self.all.workers() } else { 1..1 };
        std::iter::once(self.port).chain(others.map(|worker| self.all.entry(worker, self.index)))
    }

    /// From now on, until the slot is another port's, each worker counts for itself. Only the agent says so, while no worker has the
    /// port.
    pub fn share(&self) {
        self.port.shared.store(1, Ordering::Release);
    }

    /// The port's state as last set.
    pub fn state(&self) -> PortState {
        PortState::from_raw(self.port.state.load(Ordering::Acquire)).unwrap_or(PortState::Free)
    }

    /// Says whether frames can flow. Only the agent does.
    pub fn set_state(&self, state: PortState) {
        self.port.state.store(state as u32, Ordering::Release);
    }

    /// Gives the slot to a port: counters start at zero. Only the agent does, while no worker owns the slot.
    pub fn open(&self, name: &str, kind: &str) {
        write_text(&self.port.name, name);
        write_text(&self.port.kind, kind);
        self.shares().for_each(reset);
        self.port.shared.store(0, Ordering::Relaxed);
        self.port.epoch.fetch_add(1, Ordering::Relaxed);
        self.set_state(PortState::Down);
    }

    /// Frees the slot. The counters stay readable until another port takes it.
    pub fn close(&self) {
        self.set_state(PortState::Free);
    }

    /// The name of the port that has, or last had, this slot.
    pub fn name(&self) -> String {
        read_text(&self.port.name)
    }

    /// The kind of that port.
    pub fn kind(&self) -> String {
        read_text(&self.port.kind)
    }
}

#[inline]
fn is_shared(port: &PortEntry) -> bool {
    port.shared.load(Ordering::Relaxed) != 0
}

fn reset(share: &PortEntry) {
    for counter in [&share.rx.packets, &share.rx.bytes, &share.tx.packets, &share.tx.bytes] {
        counter.store(0, Ordering::Relaxed);
    }
    for slot in 0..DROP_SLOTS {
        share.drops[slot].store(0, Ordering::Relaxed);
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
    /// The counters of `port`.
    ///
    /// # Panics
    /// If the segment has no such slot; ports get their index from [`Counters::free_slot`].
    #[inline]
    pub fn port(&self, index: PortIndex) -> PortCounters<'_> {
        let port = self.entry(0, index);
        let mine = match self.worker() {
            0 => port,
            worker if is_shared(port) => self.entry(worker, index),
            _ => port,
        };
        PortCounters { port, mine, all: self, index }
    }

    /// The first slot that no port has.
    pub fn free_slot(&self) -> Option<PortIndex> {
        (0..self.capacity()).map(PortIndex).find(|port| self.port(*port).state() == PortState::Free)
    }
}
