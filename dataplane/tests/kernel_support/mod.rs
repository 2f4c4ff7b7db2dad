//! Namespaces of the test's own, an engine between them, and sockets inside them.

#![allow(dead_code, reason = "each test program uses its own part")]

pub mod hosts;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use vwire_dataplane::engine::{Engine, EngineSpec};
use vwire_dataplane::netns;
use vwire_dataplane::port::PortIndex;
use vwire_dataplane::port::kernel::{self, KernelDevice, KernelSpec};
use vwire_dataplane::port::pipe::{PipeEnd, pipe};
use vwire_dataplane::stats::Counters;
use vwire_dataplane::tables::{Entry, Forward, Tables, WorkerId};
use vwire_dataplane::worker::Mode;

pub const PATIENCE: Duration = Duration::from_secs(20);

/// A network namespace that is deleted when the test ends, however it ends.
pub struct Netns {
    pub name: String,
}

impl Netns {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vwire-k{}-{number}", std::process::id());
        ip(&["netns", "add", &name]);
        ip(&["-n", &name, "link", "set", "lo", "up"]);
        Self { name }
    }

    pub fn open(&self) -> OwnedFd {
        netns::open(Path::new(&format!("/run/netns/{}", self.name))).unwrap().into()
    }

    /// Runs `work` inside.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        netns::in_netns(Some(self.open().as_fd()), work).unwrap()
    }

    /// What `ip ARGS` prints inside.
    pub fn ip(&self, args: &[&str]) -> String {
        ip(&[&["-n", self.name.as_str()], args].concat())
    }

    /// Names of the interfaces inside.
    pub fn interfaces(&self) -> Vec<String> {
        let listed = self.ip(&["-o", "link", "show"]);
        let name = |line: &str| line.split(": ").nth(1).unwrap_or_default().to_owned();
        listed.lines().map(name).filter(|name| name != "lo").collect()
    }

    pub fn delete(&self) {
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
            .stderr(std::process::Stdio::null())
            .status();
    }

    pub fn udp(&self, address: &str) -> UdpSocket {
        let socket = self.inside(|| UdpSocket::bind(address)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        self.delete();
    }
}

/// Runs `ip` and returns what it prints.
pub fn ip(args: &[&str]) -> String {
    let output = Command::new("ip").args(args).output().expect("iproute2 is installed");
    assert!(output.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A spec for `ifname` inside `netns`.
pub fn spec(netns: &Netns, ifname: &str, addresses: &[&str]) -> KernelSpec {
    KernelSpec {
        netns: Some(netns.open()),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        ..KernelSpec::new(ifname)
    }
}

/// An engine, whose first worker has the ports unless they are shared.
pub struct Bench {
    pub engine: Engine,
    generation: u64,
}

impl Bench {
    pub fn new() -> Self {
        Self::of(1)
    }

    /// With so many workers.
    pub fn of(workers: usize) -> Self {
        let spec = EngineSpec { cores: vec![None; workers], mode: Mode::Adaptive, handoff_bytes: 1 << 20 };
        Self { engine: Engine::start(&spec, Counters::anonymous(16).unwrap()).unwrap(), generation: 0 }
    }

    pub fn kernel(&mut self, port: u16, spec: &KernelSpec) -> KernelDevice {
        let (parts, device) = kernel::open(PortIndex(port), spec).unwrap();
        self.engine.counters().port(PortIndex(port)).open(&spec.ifname, "kernel");
        self.engine.attach(PortIndex(port), WorkerId(0), parts).unwrap();
        device
    }

    pub fn pipe(&mut self, port: u16, bytes: usize) -> PipeEnd {
        let (near, far) = pipe(bytes).unwrap();
        self.engine.counters().port(PortIndex(port)).open("pipe", "pipe");
        self.engine.attach(PortIndex(port), WorkerId(0), near.into_parts()).unwrap();
        far
    }

    pub fn xconnect(&mut self, pairs: &[(u16, u16)]) {
        self.generation += 1;
        let mut tables = Tables { generation: self.generation, ..Tables::default() };
        for (from, to) in pairs.iter().flat_map(|(a, b)| [(*a, *b), (*b, *a)]) {
            let forward = Forward::Xconnect(PortIndex(to));
            tables.set(PortIndex(from), Entry { forward, owner: self.engine.owner(PortIndex(from)) });
        }
        self.engine.publish(tables).unwrap();
    }
}

/// Bytes that repeat only after 251 × 256, so that no lost or doubled segment goes unseen.
fn stream_byte(i: usize) -> u8 {
    (i ^ (i / 251)) as u8
}

/// Sends `len` bytes each way over one TCP connection from `from` to `address` in `to`, and checks every one of them.
pub fn tcp_both_ways(from: &Netns, to: &Netns, address: &str, len: usize) {
    let address: SocketAddr = address.parse().unwrap();
    let listener = to.inside(|| TcpListener::bind(address)).unwrap();
    std::thread::scope(|scope| {
        let server = scope.spawn(move || exchange(listener.accept().unwrap().0, len));
        let client = from.inside(|| TcpStream::connect_timeout(&address, PATIENCE)).unwrap();
        exchange(client, len);
        server.join().unwrap();
    });
}

fn exchange(stream: TcpStream, len: usize) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    let (mut reading, mut writing) = (stream.try_clone().unwrap(), stream);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let bytes: Vec<u8> = (0..len).map(stream_byte).collect();
            writing.write_all(&bytes).unwrap();
            writing.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let mut received = Vec::with_capacity(len);
        reading.read_to_end(&mut received).unwrap();
        assert_eq!(received.len(), len);
        assert!(
            received.iter().enumerate().all(|(i, byte)| *byte == stream_byte(i)),
            "the stream was changed"
        );
    });
}

/// Sends a datagram of each size both ways and checks what arrives.
pub fn udp_both_ways(a: &UdpSocket, b: &UdpSocket, sizes: &[usize]) {
    for size in sizes {
        let sent: Vec<u8> = (0..*size).map(stream_byte).collect();
        for (from, to) in [(a, b), (b, a)] {
            from.send_to(&sent, to.local_addr().unwrap()).unwrap();
            let mut buffer = vec![0; 70_000];
            let (len, sender) = to.recv_from(&mut buffer).unwrap_or_else(|e| panic!("{size} bytes: {e}"));
            assert_eq!(sender, from.local_addr().unwrap());
            assert!(buffer[..len] == sent[..], "{size} bytes sent, {len} received, or others");
        }
    }
}
