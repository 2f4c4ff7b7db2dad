//! Two nodes on one machine: network namespaces joined by a veth pair, engines inside them, and taps as their hosts. Everything
//! is removed when its owner is dropped, also when a test fails.
#![allow(dead_code)] // each test binary uses its own part

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use memif::Lent;
use vwire_dataplane::DropReason;
use vwire_dataplane::burst::{Burst, Frames};
use vwire_dataplane::engine::{Engine, EngineSpec};
use vwire_dataplane::netns;
use vwire_dataplane::offload::{Link, each_plain};
use vwire_dataplane::port::vxlan::VxlanTx;
use vwire_dataplane::port::{PortFault, PortIndex, PortParts, Rx, RxContext, Tx, TxContext};
use vwire_dataplane::stats::{Counters, Snapshot};
use vwire_dataplane::tables::{Entry, Forward, Tables, Tunnel, Vni, WorkerId};
use vwire_dataplane::underlay::{MtuProbe, UdpSpec, UdpUnderlay};
use vwire_dataplane::worker::Mode;

/// Waits until `condition` holds.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "waited 20 s in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A network namespace of this test's own.
pub struct Netns {
    pub name: String,
    file: File,
}

impl Netns {
    pub fn new(tag: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("vwx{}-{}-{tag}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        must(Command::new("ip").args(["netns", "add", &name]));
        let file = netns::open(&PathBuf::from(format!("/run/netns/{name}"))).unwrap();
        let space = Self { name, file };
        space.ip("link set lo up");
        space
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Runs `work` on a thread inside.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        netns::in_netns(Some(self.fd()), work).unwrap()
    }

    /// Starts `work` on a thread inside.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> std::thread::JoinHandle<T> {
        let file = self.file.try_clone().unwrap();
        std::thread::spawn(move || netns::in_netns(Some(file.as_fd()), work).unwrap())
    }

    /// Runs `ip ARGUMENTS` inside; it must succeed.
    pub fn ip(&self, arguments: &str) {
        must(Command::new("ip").args(["-n", &self.name]).args(arguments.split_whitespace()));
    }

    /// A command to be run inside.
    pub fn command(&self, line: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).args(line.split_whitespace());
        command
    }

    /// Runs a command inside; it must succeed. Returns what it printed.
    pub fn run(&self, line: &str) -> String {
        must(&mut self.command(line))
    }

    /// Runs a command inside, and says whether it succeeded.
    pub fn succeeds(&self, line: &str) -> bool {
        self.command(line).output().unwrap().status.success()
    }

    /// Starts a command inside, ended when dropped.
    pub fn start(&self, line: &str) -> Running {
        Running(self.command(line).spawn().unwrap())
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// A process that ends with its owner.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a command that has to succeed and returns what it printed.
pub fn must(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command:?} failed ({}):\n{text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// The two families of an underlay, and addresses on each side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn local(self) -> IpAddr {
        self.address(1)
    }

    pub fn remote(self) -> IpAddr {
        self.address(2)
    }

    pub fn address(self, host: u8) -> IpAddr {
        match self {
            Self::V4 => IpAddr::from([10, 9, 0, host]),
            Self::V6 => format!("fd09::{host:x}").parse().unwrap(),
        }
    }

    /// Gives `host`'s address to the underlay interface of a namespace.
    pub fn assign(self, space: &Netns, host: u8) {
        let (prefix, options) = if self == Self::V4 { (24, "") } else { (64, "nodad") };
        space.ip(&format!("addr add {}/{prefix} dev u0 {options}", self.address(host)));
    }
}

/// Joins two namespaces by a veth pair with the same name on both sides. Both ends are up and have no address.
pub fn join(ifname: &str, a: &Netns, b: &Netns) {
    join_by_queues(ifname, 1, a, b);
}

/// The same with so many queues on both sides.
pub fn join_by_queues(ifname: &str, queues: usize, a: &Netns, b: &Netns) {
    let (a_name, b_name) = (&a.name, &b.name);
    let many = format!("numrxqueues {queues} numtxqueues {queues}");
    let line =
        format!("link add {ifname} netns {a_name} {many} type veth peer name {ifname} netns {b_name} {many}");
    must(Command::new("ip").args(line.split(' ')));
    for space in [a, b] {
        space.ip(&format!("link set {ifname} up"));
    }
}

/// Joins two namespaces by a veth pair, `u0` on both sides, with the family's first and second address.
pub fn join_with_addresses(family: Family, a: &Netns, b: &Netns) {
    join("u0", a, b);
    family.assign(a, 1);
    family.assign(b, 2);
}

/// Two namespaces joined by a veth pair, `u0` on both sides, with an address each.
pub fn two_nodes(family: Family) -> (Netns, Netns) {
    let (a, b) = (Netns::new("a"), Netns::new("b"));
    join_with_addresses(family, &a, &b);
    (a, b)
}

/// An engine on a node, with one underlay (port 0) and what is added.
pub struct Node {
    pub engine: Engine,
    pub mtu: MtuProbe,
    pub local: SocketAddr,
    tables: Vec<(PortIndex, PortIndex)>,
    tunnels: Vec<Tunnel>,
    generation: u64,
}

/// The underlay's port on every node.
pub const UNDERLAY: PortIndex = PortIndex(0);

impl Node {
    pub fn new(space: &Netns, local: IpAddr) -> Self {
        Self::with(space, SocketAddr::new(local, 4789))
    }

    pub fn with(space: &Netns, local: SocketAddr) -> Self {
        let counters = Counters::anonymous(64).unwrap();
        let spec = EngineSpec { cores: vec![None], mode: Mode::Adaptive, handoff_bytes: 1 << 16 };
        let mut engine = Engine::start(&spec, counters).unwrap();
        let spec = UdpSpec { netns: Some(space.fd()), ..UdpSpec::new(UNDERLAY, local) };
        let (parts, mtu) = UdpUnderlay::open(&spec).unwrap().into_parts();
        engine.counters().port(UNDERLAY).open("underlay", "udp");
        engine.attach(UNDERLAY, WorkerId(0), parts).unwrap();
        Self { engine, mtu, local, tables: Vec::new(), tunnels: Vec::new(), generation: 0 }
    }

    /// Adds a tunnel to `remote` (port 4789) at `port`, cross-connected with `other` at the port after it.
    pub fn tunnel(&mut self, port: u16, vni: u32, remote: IpAddr, other: PortParts) -> PortIndex {
        self.tunnel_of(Link::Ethernet, port, vni, remote, other)
    }

    /// The same for frames that begin as `link` says.
    pub fn tunnel_of(
        &mut self,
        link: Link,
        port: u16,
        vni: u32,
        remote: IpAddr,
        other: PortParts,
    ) -> PortIndex {
        let (port, peer) = (PortIndex(port), PortIndex(port + 1));
        let tunnel = Tunnel {
            port,
            underlay: UNDERLAY,
            remote: SocketAddr::new(remote, 4789),
            vni: Vni::new(vni).unwrap(),
            max_frame: self.mtu.max_frame(remote).unwrap(),
            link,
        };
        for (port, name, parts) in
            [(port, "tunnel", VxlanTx::new(tunnel.clone()).into_parts()), (peer, "host", other)]
        {
            self.engine.counters().port(port).open(&format!("{name}-{}", port.0), name);
            self.engine.attach(port, WorkerId(0), parts).unwrap();
        }
        self.tunnels.push(tunnel);
        self.tables.push((port, peer));
        self.publish();
        port
    }

    fn publish(&mut self) {
        self.generation += 1;
        let mut tables = Tables { generation: self.generation, ..Tables::default() };
        let owner = Some(WorkerId(0).into());
        for (a, b) in &self.tables {
            tables.set(*a, Entry { forward: Forward::Xconnect(*b), owner });
            tables.set(*b, Entry { forward: Forward::Xconnect(*a), owner });
        }
        self.tunnels.iter().for_each(|tunnel| assert!(tables.tunnels.insert(tunnel)));
        self.engine.publish(tables).unwrap();
    }

    pub fn stats(&self, port: PortIndex) -> Snapshot {
        self.engine.counters().port(port).snapshot()
    }

    pub fn dropped(&self, port: PortIndex, reason: DropReason) -> u64 {
        self.stats(port).dropped(reason)
    }
}

/// Sends `bytes` from `client` to `server` and back, over TCP, and compares.
pub fn tcp_echo(client: &Netns, server: &Netns, address: &str, bytes: usize) {
    let at: SocketAddr = format!("{address}:5001").parse().unwrap();
    let listener = server.within(|| TcpListener::bind(at).unwrap());
    let echo = server.spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        stream.write_all(&got).unwrap();
    });
    let sent: Vec<u8> = (0..bytes).map(|i| ((i * 31) >> 3) as u8).collect();
    let back = client.within(|| {
        let mut stream = TcpStream::connect_timeout(&at, Duration::from_secs(10)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(&sent).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut back = Vec::new();
        stream.read_to_end(&mut back).unwrap();
        back
    });
    echo.join().unwrap();
    assert!(back == sent, "{} of {bytes} bytes came back, or changed", back.len());
}

/// Makes a tap in `space`, up and with an address, and a port that is its wire. It takes and gives plain frames only.
pub fn tap(space: &Netns, name: &str, address: &str, mtu: usize) -> PortParts {
    let device = Arc::new(space.within(|| open_tap(name)));
    space.ip(&format!("link set {name} mtu {mtu} up"));
    space.ip(&format!("addr add {address} dev {name} {}", if address.contains(':') { "nodad" } else { "" }));
    PortParts {
        rx: vec![Box::new(TapRx { device: Arc::clone(&device), buffers: vec![vec![0; 65_600]; 16] })],
        tx: Some(Box::new(TapTx { device })),
        underlay: None,
    }
}

#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

fn open_tap(name: &str) -> File {
    use std::os::unix::fs::OpenOptionsExt;
    let device = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .expect("/dev/net/tun (modprobe tun)");
    let mut request = InterfaceRequest {
        name: [0; libc::IFNAMSIZ],
        flags: (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short,
        rest: [0; 22],
    };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: TUNSETIFF reads and writes one ifreq, which `request` is as long as (40 bytes).
    let result = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &mut request) };
    assert_eq!(result, 0, "TUNSETIFF {name}: {}", std::io::Error::last_os_error());
    device
}

struct TapRx {
    device: Arc<File>,
    buffers: Vec<Vec<u8>>,
}

impl Rx for TapRx {
    fn receive<'a>(&'a mut self, burst: &mut Burst<'a>, _: &RxContext<'_>) -> Result<(), PortFault> {
        for buffer in &mut self.buffers {
            match (&*self.device).read(buffer) {
                Ok(len) if len > 0 => burst.push(Lent::from(&buffer[..len])),
                _ => break,
            }
        }
        Ok(())
    }

    fn release(&mut self, _: u64) {}

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.device.as_fd())
    }
}

struct TapTx {
    device: Arc<File>,
}

impl Tx for TapTx {
    fn send(&mut self, frames: Frames<'_, '_>, context: &mut TxContext<'_>) {
        for (i, frame) in frames.as_slice().iter().enumerate() {
            let mut refused = None;
            let outcome = each_plain(&frames, frame, |views| {
                let bytes: Vec<u8> = views.iter().flat_map(Lent::to_vec).collect();
                refused = (&*self.device).write(&bytes).err();
                refused.is_none()
            });
            match (outcome, refused) {
                (Err(_), _) => context.refuse(i, DropReason::BadOffload),
                (_, Some(_)) => context.refuse(i, DropReason::KernelRefused),
                (Ok(_), None) => context.sent(1, frame.len() as u64),
            }
        }
    }
}
