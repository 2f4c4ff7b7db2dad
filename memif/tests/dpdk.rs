//! The real peer: DPDK's memif driver under `dpdk-testpmd`, which forwards what comes in at its port 0 out of
//! its port 1 and back. We hold the far ends of both ports and compare every frame, as server of DPDK's
//! clients and as client of its servers.

mod support;

use std::fs::File;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use memif::{
    Address, Dialer, DisconnectReason, Event, HandshakeError, InterfaceConfig, Lent, Link, Listener,
    ListenerConfig, Mode, PeerLimits, Relay, RingCounts,
};
use support::*;

/// A testpmd spins on a core, so only one runs at a time.
static TURN: Mutex<()> = Mutex::new(());

/// A testpmd with two memif ports; killed when dropped.
struct Testpmd {
    child: Child,
    log: std::path::PathBuf,
    _turn: MutexGuard<'static, ()>,
}

/// What the memif ports of a testpmd are like.
#[derive(Clone, Copy)]
struct Shape {
    role: &'static str,
    log2_ring: u8,
    queues: u16,
    secret: Option<&'static str>,
    /// One socket per server; clients share one and differ by id.
    sockets: [&'static str; 2],
    /// Share DPDK's own packet memory, on huge pages; clients only.
    zero_copy: bool,
}

const PLAIN_CLIENT: Shape = Shape {
    role: "client",
    log2_ring: 10,
    queues: 1,
    secret: None,
    sockets: ["m.sock"; 2],
    zero_copy: false,
};

impl Shape {
    fn arguments(&self, place: &Place) -> Vec<String> {
        let mut arguments =
            "-l 0,1 --no-pci -m 512 --no-telemetry --log-level=pmd.net.memif:debug".to_owned();
        arguments += match self.zero_copy {
            true => " --in-memory --single-file-segments",
            false => " --no-huge --no-shconf",
        };
        for port in 0..2 {
            let socket = place.path(self.sockets[port]);
            arguments += &format!(" --vdev=net_memif{port},role={},id={port}", self.role);
            arguments += &format!(",socket={},socket-abstract=no,rsize={}", socket.display(), self.log2_ring);
            arguments += &self.secret.map_or(String::new(), |secret| format!(",secret={secret}"));
            arguments += if self.zero_copy { ",zero-copy=yes" } else { "" };
        }
        arguments += " -- --forward-mode=io --auto-start --disable-link-check --tx-offloads=0x8000";
        // Else it throws away what arrived while it started.
        arguments += " --no-flush-rx";
        arguments += " --mbuf-size=2176 --total-num-mbufs=65536 --rxd=1024 --txd=1024";
        arguments += &format!(" --rxq={0} --txq={0}", self.queues);
        arguments.split(' ').map(str::to_owned).collect()
    }
}

/// Huge pages added to the system's; given back when dropped.
struct ExtraHugePages(usize);

const HUGE_PAGES: &str = "/proc/sys/vm/nr_hugepages";

impl ExtraHugePages {
    fn reserve(count: usize) -> Self {
        let before = Self::total();
        std::fs::write(HUGE_PAGES, (before + count).to_string()).expect("root may reserve huge pages");
        let reserved = Self(Self::total() - before);
        assert_eq!(reserved.0, count, "huge pages of 2 MB to be had");
        reserved
    }

    fn total() -> usize {
        std::fs::read_to_string(HUGE_PAGES).expect("/proc").trim().parse().expect("a number")
    }
}

impl Drop for ExtraHugePages {
    fn drop(&mut self) {
        let _ = std::fs::write(HUGE_PAGES, Self::total().saturating_sub(self.0).to_string());
    }
}

impl Testpmd {
    fn start(place: &Place, shape: Shape) -> Self {
        // A test that failed in its turn leaves the lock poisoned and nothing else.
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let log = place.path("testpmd.log");
        let out = File::create(&log).expect("a log");
        let mut command = Command::new("dpdk-testpmd");
        command.args(shape.arguments(place));
        // Where DPDK keeps what it shares between its processes.
        command.env("RUNTIME_DIRECTORY", place.path("dpdk"));
        std::fs::create_dir_all(place.path("dpdk")).expect("mkdir");
        // It ends when its standard input does, so that one is kept open.
        command.stdin(Stdio::piped()).stdout(out.try_clone().expect("dup")).stderr(out);
        match command.spawn() {
            Ok(child) => Self { child, log, _turn: turn },
            Err(error) => panic!("dpdk-testpmd does not start ({error}): apt-get install dpdk dpdk-dev"),
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn lost_descriptors(&self) -> bool {
        self.log().contains("sendmsg fail: Bad file descriptor")
    }

    fn assert_runs(&mut self) {
        if let Some(status) = self.child.try_wait().expect("wait") {
            panic!("testpmd ended with {status}:\n{}", self.log());
        }
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("testpmd said:\n{}", self.log());
        }
    }
}

/// Our ends of both ports.
struct Rig {
    testpmd: Testpmd,
    shape: Shape,
    ends: [Link; 2],
    control: Control,
    place: Place,
}

enum Control {
    Listener(Box<Listener>),
    Dialers(Vec<Dialer>),
    /// DPDK and we meet by way of these, one for each port.
    Relayed {
        _relays: Running,
        ours: Box<Control>,
    },
}

/// Relays on a thread of their own, until dropped.
struct Running(Arc<AtomicBool>, Option<JoinHandle<()>>);

impl Running {
    fn start(mut relays: Vec<Relay>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let fds: Vec<_> = relays.iter().map(AsFd::as_fd).collect();
                wait_readable(&fds, Duration::from_millis(20));
                relays.iter_mut().for_each(|relay| drop(relay.process()));
            }
        });
        Self(stop, Some(thread))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        self.1.take().map(JoinHandle::join);
    }
}

impl Control {
    fn process(&mut self) -> Vec<Event> {
        match self {
            Self::Listener(listener) => listener.process(),
            Self::Dialers(dialers) => dialers.iter_mut().flat_map(Dialer::process).collect(),
            Self::Relayed { ours, .. } => ours.process(),
        }
    }
}

/// DPDK connects to us.
fn dpdk_is_client(log2_ring: u8, queues: u16, secret: Option<&'static str>) -> Rig {
    dpdk_connects(Shape { log2_ring, queues, secret, ..PLAIN_CLIENT })
}

fn dpdk_connects(shape: Shape) -> Rig {
    try_dpdk_connects(shape).expect("DPDK connects both ports")
}

/// None if DPDK has closed what it was about to send; see [`meet`].
fn try_dpdk_connects(shape: Shape) -> Option<Rig> {
    let place = Place::new();
    let mut listener = Listener::bind(&place.socket(), ListenerConfig::default()).expect("bind");
    for id in 0..2 {
        let limits = PeerLimits { rings: shape.queues, ..PeerLimits::default() };
        let secret = shape.secret.unwrap_or_default().parse().expect("short");
        let name = "server".parse().expect("short");
        listener.add_interface(
            id,
            InterfaceConfig { limits, secret, ..InterfaceConfig::new(Mode::Ethernet, name) },
        );
    }
    Rig::try_start(shape, Control::Listener(Box::new(listener)), place)
}

/// We connect to DPDK.
fn dpdk_is_server(log2_ring: u8, queues: u16, secret: Option<&'static str>) -> Rig {
    let place = Place::new();
    let sockets = ["0.sock", "1.sock"];
    let shape = Shape { role: "server", log2_ring, queues, secret, sockets, zero_copy: false };
    let dialer = |(id, socket)| {
        let mut config = dialer_config();
        config.id = id;
        config.log2_ring = log2_ring;
        config.rings = RingCounts { c2s: queues, s2c: queues };
        config.secret = secret.unwrap_or_default().parse().expect("short");
        Dialer::new(Address::path(place.path(socket)).expect("short"), config).expect("a dialer")
    };
    let dialers = (0..).zip(sockets).map(dialer).collect();
    Rig::start(shape, Control::Dialers(dialers), place)
}

/// Relays between two pairs of sockets.
fn relays(place: &Place, fronts: [&str; 2], backs: [&str; 2]) -> Running {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let relay = |(front, back): (&str, &str)| {
        let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
        let fd = rustix::net::socket_with(family, SocketType::SEQPACKET, flags, None).expect("socket");
        let at = SocketAddrUnix::new(place.path(front)).expect("short");
        rustix::net::bind(&fd, &at).expect("bind");
        rustix::net::listen(&fd, 8).expect("listen");
        let to = Address::path(place.path(back)).expect("short");
        let dial = move || memif::connect(&to).map_err(|error| error.to_string());
        Relay::new(fd, Box::new(dial)).expect("a relay")
    };
    Running::start(fronts.into_iter().zip(backs).map(relay).collect())
}

/// Runs both connections until both are up. None if DPDK spoils one: with zero-copy its ports share the descriptors of its memory, and
/// the port that is up first closes them; what the other has not sent by then it can't send any more.
fn meet(testpmd: &mut Testpmd, control: &mut Control) -> Option<[Link; 2]> {
    let relayed = matches!(control, Control::Relayed { .. });
    let mut ends = [None, None];
    let mut spoilt = false;
    until("both ports to connect", || {
        testpmd.assert_runs();
        for event in control.process() {
            match event {
                Event::Connected { id, link } => ends[id as usize] = Some(link),
                Event::Disconnected { reason, .. } => panic!("disconnected: {reason}"),
                // Its sockets are not there yet, or have no interface yet; the dialer tries again.
                Event::Refused { peer: None, .. } => {}
                Event::Refused { reason: HandshakeError::PeerRefused(why), .. } if why == "ID not found" => {}
                // The relay is there, but not yet who it leads to.
                Event::Refused { reason: HandshakeError::PeerClosed, .. } if relayed => {}
                Event::Refused { reason: HandshakeError::PeerClosed, .. } if testpmd.lost_descriptors() => {
                    spoilt = true;
                }
                Event::Refused { reason, .. } => panic!("refused: {reason}"),
            }
        }
        std::thread::sleep(Duration::from_millis(1));
        (spoilt || ends.iter().all(Option::is_some)).then_some(())
    });
    if spoilt {
        return None;
    }
    // It learns so after we do, and drops what it has to send on a port that is not up.
    until("DPDK to know it", || {
        (testpmd.log().matches("memif_connect(): Connected.").count() == 2).then_some(())
    });
    let ends = ends.map(|end| end.expect("both are there"));
    for end in &ends {
        assert!(end.peer_program.as_str().starts_with("DPDK "), "{}", end.peer_program);
        let connected_by = if relayed { std::process::id() } else { testpmd.child.id() };
        assert_eq!(end.peer.pid, connected_by as i32);
    }
    Some(ends)
}

impl Rig {
    fn start(shape: Shape, control: Control, place: Place) -> Self {
        Self::try_start(shape, control, place).expect("DPDK connects both ports")
    }

    /// None as [`meet`] says.
    fn try_start(shape: Shape, mut control: Control, place: Place) -> Option<Self> {
        let mut testpmd = Testpmd::start(&place, shape);
        let ends = meet(&mut testpmd, &mut control)?;
        Some(Self { testpmd, shape, ends, control, place })
    }

    /// Kills testpmd without warning and starts another.
    fn restart(mut self) -> Self {
        drop(self.testpmd);
        let mut down = 0;
        until("both ends to notice", || {
            for event in self.control.process() {
                let Event::Disconnected { reason: DisconnectReason::Closed, .. } = event else { continue };
                down += 1;
            }
            (down == 2).then_some(())
        });
        if self.shape.role == "server" {
            // DPDK does not replace what its dead predecessor left.
            for socket in self.shape.sockets {
                std::fs::remove_file(self.place.path(socket)).expect("a dead socket");
            }
        }
        Self::start(self.shape, self.control, self.place)
    }
    /// Sends frames into one port, all at once, and returns what came out of the other.
    fn round(&mut self, into: usize, queue: usize, frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let lent: Vec<_> = frames.iter().map(|frame| Lent::from(&frame[..])).collect();
        // DPDK posts its buffers once it has started forwarding.
        let slots = frames.iter().map(|frame| frame.len().div_ceil(2048)).sum();
        until("room", || (self.ends[into].tx[queue].free() >= slots).then_some(()));
        self.ends[into].tx[queue].push_burst(&lent).expect("room");
        self.ends[into].tx[queue].publish();
        let mut back = Vec::new();
        until("all frames to come back", || {
            self.testpmd.assert_runs();
            back.extend(receive_on(&mut self.ends[1 - into], queue));
            (back.len() >= frames.len()).then_some(())
        });
        back
    }

    /// Frames of many sizes, in bursts, through each queue in each direction.
    fn assert_forwards(&mut self, bursts: &[usize], sizes: &[usize]) {
        let queues = self.ends[0].tx.len();
        let mut number = 0;
        let mut expected = [0; 2];
        for &burst in bursts {
            for (into, queue) in (0..2).flat_map(|into| (0..queues).map(move |queue| (into, queue))) {
                let frames: Vec<_> = (0..burst).map(|i| frame(number + i, sizes[i % sizes.len()])).collect();
                number += burst;
                expected[1 - into] += burst;
                let back = self.round(into, queue, &frames);
                assert_eq!(back.len(), frames.len(), "no more than was sent");
                for (at, (back, sent)) in back.iter().zip(&frames).enumerate() {
                    assert!(
                        back == sent,
                        "frame {at} of {burst}: {} bytes sent, {} came back",
                        sent.len(),
                        back.len()
                    );
                }
            }
        }
        for end in &mut self.ends {
            for queue in &mut end.rx {
                assert_eq!(queue.take_faults().total(), 0);
            }
            for queue in &mut end.tx {
                assert_eq!((queue.take_bad_slots(), queue.fault()), (0, None));
            }
        }
    }
}

const SIZES: [usize; 7] = [60, 64, 65, 512, 1500, 1514, 2048];
/// More than 255 at once, and in all more than the ring's slots several times over.
const BURSTS: [usize; 12] = [1, 31, 32, 33, 255, 256, 300, 511, 300, 511, 511, 511];

#[test]
fn dpdk_client_with_1024_slots() {
    let mut rig = dpdk_is_client(10, 1, None);
    assert_eq!((rig.ends[0].rx[0].size(), rig.ends[0].tx[0].size()), (1024, 1024));
    rig.assert_forwards(&BURSTS, &SIZES);
}

#[test]
fn dpdk_client_with_16384_slots_and_two_queues() {
    let mut rig = dpdk_is_client(14, 2, None);
    assert_eq!((rig.ends[0].rx.len(), rig.ends[0].tx.len()), (2, 2));
    assert_eq!((rig.ends[0].rx[1].size(), rig.ends[0].tx[1].size()), (16384, 16384));
    rig.assert_forwards(&BURSTS, &SIZES);
}

#[test]
fn dpdk_client_with_chained_frames_and_a_secret() {
    let mut rig = dpdk_is_client(10, 1, Some("hush"));
    rig.assert_forwards(&[1, 8, 32, 64, 64, 64], &[9000, 60, 4096, 2049, 9000]);
}

#[test]
fn dpdk_server_with_1024_slots() {
    let mut rig = dpdk_is_server(10, 1, None);
    rig.assert_forwards(&BURSTS, &SIZES);
}

#[test]
fn dpdk_server_with_16384_slots_and_two_queues() {
    let mut rig = dpdk_is_server(14, 2, None);
    rig.assert_forwards(&BURSTS, &SIZES);
}

#[test]
fn dpdk_server_with_chained_frames_and_a_secret() {
    let mut rig = dpdk_is_server(10, 1, Some("hush"));
    rig.assert_forwards(&[1, 8, 32, 64, 64, 64], &[9000, 60, 4096, 2049, 9000]);
}

#[test]
fn a_killed_dpdk_client_is_replaced_by_the_next() {
    let mut rig = dpdk_is_client(10, 1, None);
    rig.assert_forwards(&[32], &SIZES);
    rig.restart().assert_forwards(&[32, 300], &SIZES);
}

#[test]
fn a_killed_dpdk_server_is_found_again() {
    let mut rig = dpdk_is_server(10, 1, None);
    rig.assert_forwards(&[32], &SIZES);
    rig.restart().assert_forwards(&[32, 300], &SIZES);
}

#[test]
fn dpdk_client_by_way_of_a_relay() {
    let place = Place::new();
    let fronts = ["0.sock", "1.sock"];
    let relays = relays(&place, fronts, ["m.sock"; 2]);
    let mut listener = Listener::bind(&place.socket(), ListenerConfig::default()).expect("bind");
    for id in 0..2 {
        listener.add_interface(id, interface());
    }
    let control = Control::Relayed { _relays: relays, ours: Box::new(Control::Listener(Box::new(listener))) };
    let mut rig = Rig::start(Shape { sockets: fronts, ..PLAIN_CLIENT }, control, place);
    rig.assert_forwards(&BURSTS, &SIZES);
    rig.restart().assert_forwards(&[32, 300], &SIZES);
}

#[test]
fn dpdk_server_by_way_of_a_relay() {
    let place = Place::new();
    let (fronts, backs) = (["0.front", "1.front"], ["0.sock", "1.sock"]);
    let relays = relays(&place, fronts, backs);
    let dialer = |(id, socket)| {
        let config = memif::DialerConfig { id, log2_ring: 10, ..dialer_config() };
        Dialer::new(Address::path(place.path(socket)).expect("short"), config).expect("a dialer")
    };
    let dialers = (0..).zip(fronts).map(dialer).collect();
    let control = Control::Relayed { _relays: relays, ours: Box::new(Control::Dialers(dialers)) };
    let shape = Shape { role: "server", sockets: backs, ..PLAIN_CLIENT };
    let mut rig = Rig::start(shape, control, place);
    rig.assert_forwards(&BURSTS, &SIZES);
    rig.restart().assert_forwards(&[32, 300], &SIZES);
}

#[test]
fn a_dpdk_client_with_a_wrong_secret_is_told_so() {
    let place = Place::new();
    let mut listener = Listener::bind(&place.socket(), ListenerConfig::default()).expect("bind");
    let secret = "hush".parse().expect("short");
    listener.add_interface(0, InterfaceConfig { secret, ..interface() });
    let testpmd = Testpmd::start(&place, Shape { secret: Some("hash"), ..PLAIN_CLIENT });
    let reason = until_event(&mut listener, "the refusal", |event| match event {
        Event::Refused { reason, .. } => Some(reason.to_string()),
        _ => None,
    });
    assert_eq!(reason, "incorrect secret");
    until("DPDK to log what it was told", || testpmd.log().contains("incorrect secret").then_some(()));
}

/// As a network service's usual client does: two regions, the second of huge pages and not sealed, and
/// buffers anywhere in it. No chains here, which DPDK 22.11 corrupts in this mode (fixed in 2026).
#[test]
fn dpdk_client_with_zero_copy() {
    let _pages = ExtraHugePages::reserve(320);
    let shape = Shape { zero_copy: true, ..PLAIN_CLIENT };
    let mut rig =
        (0..10).find_map(|_| try_dpdk_connects(shape)).expect("both ports connect once in ten times");
    let regions = rig.testpmd.log().matches("Sent msg type 4.").count();
    assert_eq!(regions, 4, "two for each port");
    rig.assert_forwards(&BURSTS, &[60, 64, 65, 512, 1500, 2000]);
}
