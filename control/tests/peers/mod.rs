//! Meshes of real processes: each role is a Go peer (control/tests/go) or `vwire`, in network namespaces of the test's own.
//! What a test starts ends with it, and what it wrote is shown if it fails.
#![allow(dead_code)] // each test binary uses its own part

pub mod build;
pub mod client;
pub mod endpoint;
pub mod mesh;
pub mod names;
pub mod netns;
pub mod observer;
pub mod process;
pub mod registry;

use std::time::{Duration, Instant};

/// Who plays a role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The Go implementation.
    Go,
    /// `vwire`.
    Vwire,
}

/// How long a test waits for what has to happen. It is far beyond what it takes: nothing is measured here.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `condition` gives something.
#[track_caller]
pub fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {} s in vain: {what}", PATIENCE.as_secs());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs a command that has to succeed and returns what it printed.
#[track_caller]
pub fn must(command: &mut std::process::Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed ({}):\n{text}{errors}", output.status);
    text
}
