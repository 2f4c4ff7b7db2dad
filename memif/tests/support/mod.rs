//! What the tests share: a directory of their own, waiting on conditions, frames in vectors, and peers
//! without manners.
#![allow(dead_code, missing_docs)] // each test binary uses its part

pub mod raw;

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use memif::queue::FrameSink;
use memif::{
    Address, Dialer, DialerConfig, DisconnectReason, Event, InterfaceConfig, Lent, Link, Listener,
    ListenerConfig, Mode,
};

/// Nothing a test waits for takes this long unless it is broken.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A directory that goes with the test.
pub struct Place(tempfile::TempDir);

impl Place {
    pub fn new() -> Self {
        Self(tempfile::Builder::new().prefix("memif-test-").tempdir().expect("a directory"))
    }

    pub fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    pub fn socket(&self) -> Address {
        Address::path(self.path("m.sock")).expect("a short path")
    }
}

/// Waits until one of the descriptors is readable, at most for `limit`; says whether one is.
pub fn wait_readable(fds: &[BorrowedFd<'_>], limit: Duration) -> bool {
    let mut fds: Vec<_> = fds
        .iter()
        .map(|fd| rustix::event::PollFd::from_borrowed_fd(*fd, rustix::event::PollFlags::IN))
        .collect();
    let limit =
        rustix::event::Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: limit.subsec_nanos().into() };
    rustix::event::poll(&mut fds, Some(&limit)).is_ok_and(|ready| ready > 0)
}

/// Runs `step` until it yields something.
pub fn until<T>(what: &str, mut step: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(result) = step() {
            return result;
        }
        assert!(Instant::now() < end, "waited {PATIENCE:?} for {what}");
    }
}

/// Runs a listener until one of its events is what is wanted; the others are dropped.
pub fn until_event<T>(listener: &mut Listener, what: &str, mut pick: impl FnMut(Event) -> Option<T>) -> T {
    until(what, || {
        let found = listener.process().into_iter().find_map(&mut pick);
        if found.is_none() {
            wait_readable(&[listener.as_fd()], Duration::from_millis(50));
        }
        found
    })
}

/// Runs both sides until both have a link; returns the server's and the client's.
pub fn connect(listener: &mut Listener, dialer: &mut Dialer) -> (Link, Link) {
    let (mut server, mut client) = (None, None);
    until("a link on both sides", || {
        wait_readable(&[listener.as_fd(), dialer.as_fd()], Duration::from_millis(50));
        for event in listener.process() {
            if let Event::Connected { link, .. } = event {
                server = Some(link);
            }
        }
        for event in dialer.process() {
            if let Event::Connected { link, .. } = event {
                client = Some(link);
            }
        }
        if server.is_some() && client.is_some() { server.take().zip(client.take()) } else { None }
    })
}

/// An ethernet interface without ado.
pub fn interface() -> InterfaceConfig {
    InterfaceConfig::new(Mode::Ethernet, "server0".parse().expect("short"))
}

/// A listener with one interface, id 0.
pub fn listener(address: &Address) -> Listener {
    let mut listener = Listener::bind(address, ListenerConfig::default()).expect("bind");
    assert!(listener.add_interface(0, interface()));
    listener
}

/// A client of interface 0, with small rings so that tests are quick.
pub fn dialer_config() -> DialerConfig {
    let mut config = DialerConfig::new(0, Mode::Ethernet, "client0".parse().expect("short"));
    config.log2_ring = 6;
    config.huge_pages = memif::region::HugePages::Never;
    // A busy machine may keep the peer waiting, and DPDK 22.11 panics when a client leaves in the middle of a handshake.
    config.handshake_timeout = PATIENCE;
    config
}

/// Takes frames into vectors.
#[derive(Default)]
pub struct Collect(pub Vec<Vec<u8>>);

impl<'a> FrameSink<'a> for Collect {
    fn room(&self) -> usize {
        4096
    }

    fn frame(&mut self, frame: Lent<'a>) {
        self.0.push(frame.to_vec());
    }

    fn chain(&mut self, segments: &[Lent<'a>], total: usize) {
        let frame: Vec<u8> = segments.iter().flat_map(|segment| segment.to_vec()).collect();
        assert_eq!(frame.len(), total);
        self.0.push(frame);
    }
}

/// Receives what is there on the first queue.
pub fn receive(link: &mut Link) -> Vec<Vec<u8>> {
    receive_on(link, 0)
}

pub fn receive_on(link: &mut Link, queue: usize) -> Vec<Vec<u8>> {
    let mut sink = Collect::default();
    link.rx[queue].receive(&mut sink).expect("a sound ring");
    link.rx[queue].release();
    sink.0
}

/// Sends frames on the first queue; all must fit.
pub fn send(link: &mut Link, frames: &[Vec<u8>]) {
    for frame in frames {
        link.tx[0].push(Lent::from(&frame[..])).expect("room");
    }
    link.tx[0].publish();
}

/// A frame that no other equals.
pub fn frame(number: usize, len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..len).map(|i| (i * 31 + number * 7) as u8).collect();
    let tag = number.to_le_bytes();
    let at = len.min(tag.len());
    bytes[..at].copy_from_slice(&tag[..at]);
    bytes
}

/// Frames go both ways.
pub fn assert_traffic(server: &mut Link, client: &mut Link) {
    let frames: Vec<_> = (0..5).map(|number| frame(number, 60 + number)).collect();
    send(client, &frames);
    assert_eq!(receive(server), frames, "client to server");
    send(server, &frames);
    assert_eq!(receive(client), frames, "server to client");
}

/// The listener still serves a good client, and traffic flows.
pub fn assert_serves(listener: &mut Listener, address: &Address) {
    let mut dialer = Dialer::new(address.clone(), dialer_config()).expect("a dialer");
    let (mut server, mut client) = connect(listener, &mut dialer);
    assert_traffic(&mut server, &mut client);
    drop(dialer);
    until_event(listener, "the good client's leave", |event| match event {
        Event::Disconnected { id: 0, reason: DisconnectReason::Peer(_) } => Some(()),
        _ => None,
    });
}

/// What a process must have as much of after a peer as before. Only one test that counts runs at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holdings {
    /// Open descriptors by kind.
    fds: Vec<String>,
    mappings: usize,
}

static COUNTING: Mutex<()> = Mutex::new(());

/// Keeps other tests of this process from opening anything meanwhile.
pub fn alone() -> MutexGuard<'static, ()> {
    COUNTING.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Holdings {
    /// What is held now.
    pub fn now() -> Self {
        let kind = |entry: std::io::Result<std::fs::DirEntry>| {
            let path = std::fs::read_link(entry.ok()?.path()).ok()?.to_string_lossy().into_owned();
            // The directory that is being read is open too.
            (!path.starts_with("/proc/")).then(|| path.split('[').next().unwrap_or_default().to_owned())
        };
        let mut fds: Vec<String> =
            std::fs::read_dir("/proc/self/fd").expect("/proc").filter_map(kind).collect();
        fds.sort();
        let maps = std::fs::read_to_string("/proc/self/maps").expect("/proc");
        Self {
            fds,
            mappings: maps
                .lines()
                .filter(|line| line.contains("memif-region") || line.contains("raw"))
                .count(),
        }
    }
}

/// Threads of this process.
pub fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").expect("/proc").count()
}
