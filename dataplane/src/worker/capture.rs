//! Copies of a port's frames for somebody who watches: written to a ring beside the packet path, and lost (and counted) when
//! the reader is too slow. Traffic never waits for a capture.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::DropReason;
use crate::burst::Frames;
use crate::port::PortIndex;
use crate::ring::{Consumer, Producer, ring};

/// Which way a captured frame was going, seen from the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// It entered by the port.
    In,
    /// It left by the port, or would have.
    Out,
}

/// A captured frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Nanoseconds since the Unix epoch.
    pub time_ns: u64,
    /// Which way.
    pub direction: Direction,
    /// Why it was dropped, if it was.
    pub dropped: Option<DropReason>,
    /// Length of the whole frame.
    pub original_len: usize,
    /// Its first bytes, at most the tap's snap length.
    pub bytes: Vec<u8>,
}

/// A worker's end of a capture.
pub struct Tap {
    ring: Producer,
    snap_len: usize,
    missed: Arc<AtomicU64>,
}

/// The watcher's end. Dropping it ends the capture.
pub struct CaptureReader {
    /// One from each worker that has the port.
    rings: Vec<Consumer>,
    missed: Arc<AtomicU64>,
}

/// Makes a capture that keeps up to `snap_len` bytes of each frame, for so many `workers`, each of which can run `ring_bytes` ahead.
pub fn capture(workers: usize, snap_len: usize, ring_bytes: usize) -> (Vec<Tap>, CaptureReader) {
    let missed = Arc::new(AtomicU64::new(0));
    let (producers, rings): (Vec<_>, Vec<_>) = (0..workers).map(|_| ring(ring_bytes)).unzip();
    let tap = |ring| Tap { ring, snap_len, missed: Arc::clone(&missed) };
    (producers.into_iter().map(tap).collect(), CaptureReader { rings, missed })
}

impl CaptureReader {
    /// Takes what was captured since the last call, in the order of time. Non-blocking; poll it a few times a second, the rings hold
    /// the rest.
    pub fn read(&mut self) -> Vec<Record> {
        let mut records = Vec::new();
        for ring in &mut self.rings {
            ring.drain(|[time_ns, about], view| {
                records.push(Record {
                    time_ns,
                    direction: if about >> 63 == 0 { Direction::In } else { Direction::Out },
                    dropped: DropReason::ALL.get(((about >> 32) as u8 as usize).wrapping_sub(1)).copied(),
                    original_len: about as u32 as usize,
                    bytes: view.to_vec(),
                });
            });
        }
        if self.rings.len() > 1 {
            records.sort_by_key(|record| record.time_ns);
        }
        records
    }

    /// Frames that the rings had no room for.
    pub fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }

    /// True if the port was detached or its workers stopped: no more will come.
    pub fn is_over(&self) -> bool {
        self.rings.iter().all(Consumer::is_abandoned)
    }
}

impl Tap {
    fn push(&mut self, time_ns: u64, about: u64, frames: &Frames<'_, '_>, i: usize) {
        let frame = &frames.as_slice()[i];
        let kept = frame.len().min(self.snap_len);
        let mut left = kept;
        let views = frames.views(frame).map_while(|view| {
            let part = view.take(left);
            left -= part.len();
            (!part.is_empty()).then_some(part)
        });
        if !self.ring.push([time_ns, about | frame.len() as u64], kept, views) {
            self.missed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The taps of a worker: hardly ever any, so the packet path asks one flag.
#[derive(Default)]
pub(super) struct Taps {
    taps: Vec<(PortIndex, Tap)>,
}

impl Taps {
    /// True if some port is being watched.
    #[inline]
    pub fn any(&self) -> bool {
        !self.taps.is_empty()
    }

    /// Adds a tap to a port, or ends all of the port's.
    pub fn set(&mut self, port: PortIndex, tap: Option<Tap>) {
        match tap {
            Some(tap) => self.taps.push((port, tap)),
            None => self.taps.retain(|(watched, _)| *watched != port),
        }
    }

    /// Copies `frames` to the port's taps; `verdict(i)` says why the `i`-th was dropped.
    pub fn record(
        &mut self,
        port: PortIndex,
        direction: Direction,
        frames: &Frames<'_, '_>,
        verdict: impl Fn(usize) -> Option<DropReason>,
    ) {
        let time_ns = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
        let way = u64::from(direction == Direction::Out) << 63;
        self.taps.retain_mut(|(watched, tap)| {
            if *watched != port {
                return true;
            }
            for i in 0..frames.len() {
                let reason = verdict(i).map_or(0, |reason| reason as u64 + 1) << 32;
                tap.push(time_ns, way | reason, frames, i);
            }
            tap.ring.publish();
            !tap.ring.is_abandoned()
        });
    }
}
