//! Peers that are processes of their own: the test program once more, told by its environment which part to play.

use std::process::{Child, Command, ExitStatus, Stdio};

use super::until;

const PART: &str = "VWIRE_TEST_PART";

/// What this process was told to play, if it is not the test itself.
pub fn played_part() -> Option<String> {
    std::env::var(PART).ok()
}

/// A process that ends with its owner.
pub struct Peer(Child);

impl Peer {
    /// Runs the test of this name in another process, where [`played_part`] is `part`.
    pub fn spawn(test: &str, part: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(PART, part);
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().unwrap()
    }

    /// Waits for its end, which must be a good one.
    pub fn finish(mut self) {
        let status = until("the peer's end", || self.0.try_wait().unwrap());
        assert!(status.success(), "the peer ended with {status}");
    }

    /// kill -9.
    pub fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
