//! The real engine as a process of its own, well-behaved memif clients in the test's, and peers without manners.
#![allow(dead_code, unused_imports, reason = "each test program uses its own part")]

use std::time::{Duration, Instant};

mod client;
mod engine;
mod frames;
mod neighbour;
mod process;
mod raw_peer;

#[path = "../../../memif/tests/common/mod.rs"]
pub mod memory;
#[path = "../../../memif/tests/support/raw.rs"]
pub mod raw;

pub use client::{Client, RING};
pub use engine::{Engine, Holdings, find, join, memif_client, memif_server, wire};
pub use frames::{Tag, check, frame};
pub use neighbour::{Neighbour, exchange};
pub use process::{Peer, played_part};
pub use raw_peer::{REGION, RawPeer};

/// Nothing a test waits for takes this long unless it is broken.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Runs `step` until it yields something.
pub fn until<T>(what: &str, mut step: impl FnMut() -> Option<T>) -> T {
    let (deadline, mut turns) = (Instant::now() + PATIENCE, 0);
    loop {
        if let Some(result) = step() {
            return result;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain: {what}");
        // Most waits are short; the machine has few cores for those who are waited for.
        turns += 1;
        std::thread::sleep(Duration::from_micros(if turns < 50 { 20 } else { 500 }));
    }
}

/// Waits until `condition` holds.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    until(what, || condition().then_some(()));
}
