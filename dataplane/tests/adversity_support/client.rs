//! A well-behaved memif client, connected again whenever it lost its server.

use std::path::Path;
use std::time::{Duration, Instant};

use memif::region::HugePages;
use memif::{Address, Dialer, DialerConfig, Event, Lent, Link, Mode};
use rustix::event::{PollFd, PollFlags, Timespec};

use super::memory::receive_all;
use super::{PATIENCE, until};

/// Slots of a client's rings.
pub const RING: usize = 256;

/// One interface.
pub struct Client {
    dialer: Dialer,
    pub link: Option<Link>,
    /// How often it was connected.
    pub ups: usize,
    /// Why it was refused or lost its link, in order.
    pub told: Vec<String>,
}

impl Client {
    /// Not yet connected.
    pub fn new(socket: &Path) -> Self {
        Self::with_ring(socket, RING.trailing_zeros() as u8)
    }

    /// Not yet connected, with rings of 2^`log2` slots.
    pub fn with_ring(socket: &Path, log2: u8) -> Self {
        let mut config = DialerConfig::new(0, Mode::Ethernet, "tester".parse().unwrap());
        config.log2_ring = log2;
        config.huge_pages = HugePages::Never;
        (config.first_retry, config.last_retry) = (Duration::from_millis(5), Duration::from_millis(50));
        // The machine may be busy with other tests.
        config.handshake_timeout = Duration::from_secs(5);
        let dialer = Dialer::new(Address::path(socket).unwrap(), config).unwrap();
        Self { dialer, link: None, ups: 0, told: Vec::new() }
    }

    /// Connected.
    pub fn connected(socket: &Path) -> Self {
        let mut client = Self::new(socket);
        client.wait();
        client
    }

    /// As [`with_ring`](Self::with_ring), connected.
    pub fn connected_with_ring(socket: &Path, log2: u8) -> Self {
        let mut client = Self::with_ring(socket, log2);
        client.wait();
        client
    }

    /// Waits until there is a link.
    pub fn wait(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.link.is_none() {
            assert!(Instant::now() < deadline, "no link; told {:?}", self.told);
            let mut readable = [PollFd::new(&self.dialer, PollFlags::IN)];
            let _ = rustix::event::poll(&mut readable, Some(&Timespec { tv_sec: 0, tv_nsec: 50_000_000 }));
            self.tend();
        }
    }

    /// Does what the control socket calls for.
    pub fn tend(&mut self) {
        for event in self.dialer.process() {
            match event {
                Event::Connected { link, .. } => {
                    self.ups += 1;
                    self.link = Some(link);
                }
                Event::Disconnected { reason, .. } => {
                    self.told.push(reason.to_string());
                    self.link = None;
                }
                Event::Refused { reason, .. } => self.told.push(reason.to_string()),
            }
        }
    }

    /// Ends the connection; the next [`tend`](Self::tend)s make another.
    pub fn disconnect(&mut self) {
        self.link = None;
        self.dialer.disconnect("as the test wills");
    }

    /// Sends a frame if there is room.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        let Some(link) = &mut self.link else { return false };
        let pushed = link.tx[0].push(Lent::from(bytes)).is_ok();
        link.tx[0].publish();
        pushed
    }

    /// Sends a frame, waiting for room.
    pub fn send_surely(&mut self, bytes: &[u8]) {
        until("room to send", || self.send(bytes).then_some(()));
    }

    /// Waits until the engine has taken all that was sent.
    pub fn drain(&mut self) {
        until("the engine taking what was sent", || {
            let tx = &mut self.link.as_mut().expect("a link").tx[0];
            (tx.free() == tx.size()).then_some(())
        });
    }

    /// All frames that wait.
    pub fn receive(&mut self) -> Vec<Vec<u8>> {
        let Some(link) = &mut self.link else { return Vec::new() };
        receive_all(&mut link.rx[0]).expect("the engine's index is sound")
    }
}
