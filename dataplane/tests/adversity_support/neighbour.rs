//! A vWire that nobody harms, and that must not notice what happens to others: all its frames arrive, in order, as they were sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Client, Engine, PATIENCE, Tag, check, frame};

/// Frames on their way in each direction: less than any ring on the way holds.
const WINDOW: u64 = 64;

/// One direction.
struct Flow {
    tag: Tag,
    sent: u64,
    received: u64,
}

impl Flow {
    fn new(tag: Tag) -> Self {
        Self { tag, sent: 0, received: 0 }
    }

    /// Sends up to `until` in all while the window is open, and receives what has come. True if anything moved.
    fn turn(&mut self, from: &mut Client, to: &mut Client, until: u64) -> bool {
        let before = self.sent + self.received;
        while self.sent < until && self.sent - self.received < WINDOW {
            if !from.send(&frame(self.tag, self.sent)) {
                break;
            }
            self.sent += 1;
        }
        for bytes in to.receive() {
            assert_eq!(check(&bytes), (self.tag, self.received), "frames come in order, and none is missing");
            self.received += 1;
        }
        self.sent + self.received > before
    }
}

/// Sends `count` frames each way and checks that all arrive.
pub fn exchange(a: &mut Client, b: &mut Client, tag: Tag, count: u64) {
    let (mut there, mut back) = (Flow::new(tag), Flow::new(tag + 1));
    let mut moved = Instant::now();
    while there.received < count || back.received < count {
        if there.turn(a, b, count) | back.turn(b, a, count) {
            moved = Instant::now();
        } else {
            let at = (there.received, back.received);
            assert!(moved.elapsed() < PATIENCE, "{at:?} of {count} frames came; the rest is lost");
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

/// The vWire between ports `n1` and `n2`, with traffic both ways until [`finish`](Self::finish).
pub struct Neighbour {
    stop: Arc<AtomicBool>,
    carried: Arc<AtomicU64>,
    thread: JoinHandle<(u64, u64)>,
}

impl Neighbour {
    /// Connects to both ports of `engine` and begins.
    pub fn start(engine: &mut Engine) -> Self {
        let (mut a, mut b) =
            (Client::connected(&engine.socket("n1")), Client::connected(&engine.socket("n2")));
        engine.wait_up("n1", true);
        engine.wait_up("n2", true);
        let (stop, carried) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&carried));
        let thread = std::thread::spawn(move || carry(&mut a, &mut b, &stopped, &count));
        let neighbour = Self { stop, carried, thread };
        neighbour.carries(100);
        neighbour
    }

    /// Waits until this many frames more have been carried.
    pub fn carries(&self, more: u64) {
        let enough = self.carried.load(Ordering::Relaxed) + more;
        super::wait_until("the neighbour's frames", || {
            assert!(!self.thread.is_finished(), "the neighbour has lost a frame; its message is above");
            self.carried.load(Ordering::Relaxed) >= enough
        });
    }

    /// Stops, and checks that every frame arrived and that the engine counted each once and no loss. Returns how many there were.
    pub fn finish(self, engine: &Engine) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let (there, back) = self.thread.join().expect("the neighbour lost nothing");
        for (port, rx, tx) in [("n1", there, back), ("n2", back, there)] {
            let stats = engine.stats(port);
            assert_eq!(stats.drops, [], "the neighbour's {port}");
            assert_eq!((stats.rx.0, stats.tx.0), (rx, tx), "the neighbour's {port}");
        }
        there + back
    }
}

fn carry(a: &mut Client, b: &mut Client, stop: &AtomicBool, carried: &AtomicU64) -> (u64, u64) {
    let (mut there, mut back) = (Flow::new(0x4e01), Flow::new(0x4e02));
    let mut moved = Instant::now();
    loop {
        let until = if stop.load(Ordering::Relaxed) { 0 } else { u64::MAX };
        if there.turn(a, b, until) | back.turn(b, a, until) {
            moved = Instant::now();
            carried.store(there.received + back.received, Ordering::Relaxed);
        } else if until == 0 && there.sent == there.received && back.sent == back.received {
            return (there.received, back.received);
        } else {
            let at = (there.received, back.received);
            assert!(moved.elapsed() < PATIENCE, "nothing came after {at:?}: a frame is lost");
            std::thread::sleep(Duration::from_micros(50));
        }
        a.tend();
        b.tend();
        assert!(a.link.is_some() && b.link.is_some(), "the neighbour was cut off: {:?} {:?}", a.told, b.told);
    }
}
