//! What a VXLAN tunnel over kernel UDP can reach here, and what ours reaches: in each round a bare loop that fills one buffer
//! and sends it with UDP_SEGMENT, and beside it our sending half fed with prefilled frames. Both cross a veth pair to a
//! receiver with UDP_GRO on the other core, which counts what arrives. Needs root; makes and removes two namespaces.
//!
//! `udp_bare [--rounds N] [--seconds S] [--size BYTES]...` prints one line per size: Mpps of frames, sent and arrived.
//! `--size 0` is IMIX (7 × 60, 4 × 566, 1 × 1464 bytes without FCS) in each of 64 tunnels in turn.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use memif::Lent;
use vwire_dataplane::burst::{BURST, Burst};
use vwire_dataplane::netns::{self, in_netns};
use vwire_dataplane::port::{PortIndex, Refused, TxContext, UnderlayTx, Underlays};
use vwire_dataplane::stats::Counters;
use vwire_dataplane::tables::{Tables, Tunnel, Vni};
use vwire_dataplane::underlay::{UdpSpec, UdpUnderlay};
use vwire_dataplane::wire::vxlan;

/// Command line.
#[derive(Parser)]
struct Arguments {
    /// Rounds; the median of them is printed.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Frame length in bytes; 0 is IMIX over 64 tunnels. May be given several times.
    #[arg(long)]
    size: Vec<usize>,
    /// Flows among the frames of one tunnel.
    #[arg(long, default_value_t = 12)]
    flows: u16,
    /// Source ports that one tunnel's flows are spread over.
    #[arg(long, default_value_t = 4)]
    spread: u16,
}

const SENDER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const RECEIVER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
/// Most bytes behind IPv4 and UDP headers in one call.
const CALL_BYTES: usize = 65_507;
const CALL_SEGMENTS: usize = 128;
/// IMIX frame lengths without FCS; the longest is what fits an MTU of 1500 behind VXLAN.
const IMIX: [usize; 12] = [60, 60, 566, 60, 60, 566, 60, 566, 60, 60, 566, 1464];
const TUNNELS: u16 = 64;

struct Netns {
    name: String,
    file: std::fs::File,
}

impl Netns {
    fn new(tag: &str) -> Self {
        let name = format!("vwbench{}-{tag}", std::process::id());
        ip(&["netns", "add", &name]);
        let file =
            netns::open(&PathBuf::from(format!("/run/netns/{name}"))).expect("the namespace just made");
        ip(&["-n", &name, "link", "set", "lo", "up"]);
        Self { name, file }
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

fn ip(arguments: &[&str]) {
    let status = Command::new("ip").args(arguments).status().expect("iproute2 is installed");
    assert!(status.success(), "ip {} failed", arguments.join(" "));
}

fn two_nodes() -> (Netns, Netns) {
    let (a, b) = (Netns::new("a"), Netns::new("b"));
    ip(&["link", "add", "u0", "netns", &a.name, "type", "veth", "peer", "name", "u0", "netns", &b.name]);
    for (node, address) in [(&a, SENDER), (&b, RECEIVER)] {
        ip(&["-n", &node.name, "link", "set", "u0", "up"]);
        ip(&["-n", &node.name, "addr", "add", &format!("{address}/24"), "dev", "u0"]);
    }
    (a, b)
}

/// The other core: receives with UDP_GRO and counts datagrams.
struct Receiver {
    arrived: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Receiver {
    fn start(node: &Netns) -> Self {
        let bind = || UdpSocket::bind((RECEIVER, vxlan::PORT)).expect("the port");
        let socket = in_netns(Some(node.file.as_fd()), bind).expect("the namespace");
        socket.set_read_timeout(Some(Duration::from_millis(20))).expect("a timeout");
        option(&socket, libc::SOL_UDP, libc::UDP_GRO, 1);
        option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 32 << 20);
        let (arrived, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, end) = (Arc::clone(&arrived), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            core_affinity::set_for_current(core_affinity::CoreId { id: 0 });
            let mut buffer = vec![0; 65_536];
            while !end.load(Ordering::Relaxed) {
                let Some((len, segment)) = receive(&socket, &mut buffer) else { continue };
                count.fetch_add(len.div_ceil(segment.unwrap_or(len).max(1)) as u64, Ordering::Relaxed);
            }
        });
        Self { arrived, stop, thread: Some(thread) }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

fn option(socket: &UdpSocket, level: i32, name: i32, value: i32) {
    // SAFETY: the kernel reads four bytes at the address of `value`.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, std::ptr::from_ref(&value).cast(), 4) };
    assert_eq!(result, 0, "setsockopt: {}", std::io::Error::last_os_error());
}

/// Bytes received and the segment size, if the kernel put several datagrams together.
fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> Option<(usize, Option<usize>)> {
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut control = [0u64; 8];
    // SAFETY: all-zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: the message names a buffer and a control buffer with their true lengths.
    let len = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, 0) };
    let len = usize::try_from(len).ok()?;
    // SAFETY: the kernel left whole control messages in `control`; UDP_GRO's holds an int.
    let segment = unsafe {
        let header = libc::CMSG_FIRSTHDR(&message);
        (!header.is_null() && (*header).cmsg_type == libc::UDP_GRO)
            .then(|| libc::CMSG_DATA(header).cast::<i32>().read_unaligned() as usize)
    };
    Some((len, segment))
}

/// The bare loop: copies one frame again and again into one buffer and sends it. Returns datagrams sent.
fn bare(sender: &Netns, frame_len: usize, time: Duration) -> u64 {
    let bind = || UdpSocket::bind((SENDER, 0)).expect("a port");
    let socket = in_netns(Some(sender.file.as_fd()), bind).expect("the namespace");
    socket.connect((RECEIVER, vxlan::PORT)).expect("a route");
    let len = frame_len + vxlan::HEADER_LEN;
    option(&socket, libc::SOL_UDP, libc::UDP_SEGMENT, len as i32);
    let segments = CALL_SEGMENTS.min(CALL_BYTES / len);
    let (frame, header) = (vec![0x55; frame_len], vxlan::header(Vni::new(42).expect("24 bits")));
    let mut buffer = vec![0; segments * len];
    let (start, mut sent) = (Instant::now(), 0);
    while start.elapsed() < time {
        for datagram in buffer.chunks_exact_mut(len) {
            datagram[..8].copy_from_slice(&header);
            datagram[8..].copy_from_slice(&frame);
        }
        if socket.send(&buffer).is_ok() {
            sent += segments as u64;
        }
    }
    sent
}

/// Frames with a UDP header each, so that the `i`-th belongs to flow `i` modulo `flows`.
fn frames(lens: &[usize], flows: u16) -> Vec<Vec<u8>> {
    let frame = |(i, len): (usize, &usize)| {
        let mut frame = vec![0x55; *len];
        frame[12..14].copy_from_slice(&[8, 0]);
        let ip = [0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        frame[14..34].copy_from_slice(&ip);
        frame[34..36].copy_from_slice(&((i % usize::from(flows)) as u16).to_be_bytes());
        frame
    };
    lens.iter().enumerate().map(frame).collect()
}

/// Our sending half, fed with bursts of prefilled frames. Returns frames that it counted as sent.
fn ours(sender: &Netns, lens: &[usize], tunnels: u16, arguments: &Arguments, time: Duration) -> u64 {
    let local = SocketAddr::from((SENDER, vxlan::PORT));
    let spec = UdpSpec {
        netns: Some(sender.file.as_fd()),
        spread: arguments.spread,
        ..UdpSpec::new(PortIndex(0), local)
    };
    let mut underlay = UdpUnderlay::open(&spec).expect("an underlay").tx;
    let tunnel = |n| Tunnel {
        port: PortIndex(1 + n),
        underlay: PortIndex(0),
        remote: SocketAddr::from((RECEIVER, vxlan::PORT)),
        vni: Vni::new(u32::from(n) + 42).expect("24 bits"),
        max_frame: 1464,
        link: vwire_dataplane::offload::Link::Ethernet,
    };
    let tunnels: Vec<_> = (0..tunnels).map(tunnel).collect();
    let counters = Counters::anonymous(1 + tunnels.len() as u16).expect("counters");
    let frames = frames(lens, arguments.flows);
    let (tables, mut others, mut refused) = (Tables::default(), Underlays::default(), Refused::new());
    let start = Instant::now();
    while start.elapsed() < time {
        for tunnel in &tunnels {
            let mut burst = Burst::new(PortIndex(0));
            frames.iter().cycle().take(BURST).for_each(|frame| burst.push(Lent::from(&frame[..])));
            refused.clear();
            let mut context = TxContext {
                port: tunnel.port,
                counters: &counters,
                tables: &tables,
                underlays: &mut others,
                refused: &mut refused,
            };
            for (_, run) in burst.runs() {
                underlay.send(tunnel, run, &mut context);
            }
        }
        underlay.flush(true, &counters);
    }
    underlay.flush(false, &counters);
    tunnels.iter().map(|tunnel| counters.port(tunnel.port).snapshot().tx.0).sum()
}

/// Seconds of processor time that this thread has used: what the rate would be on a core of its own.
fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Runs `send` and returns millions per second, by the clock and by the processor's time.
fn rate(send: impl FnOnce() -> u64) -> (u64, f64, f64) {
    let (start, cpu) = (Instant::now(), cpu_seconds());
    let sent = send();
    (sent, sent as f64 / start.elapsed().as_secs_f64() / 1e6, sent as f64 / (cpu_seconds() - cpu) / 1e6)
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let arguments = Arguments::parse();
    core_affinity::set_for_current(core_affinity::CoreId { id: 1 });
    let time = Duration::from_secs_f64(arguments.seconds);
    let (sender, receiver) = two_nodes();
    let sizes = if arguments.size.is_empty() { vec![64, 1450, 0] } else { arguments.size.clone() };
    for size in sizes {
        let (mut ours_rates, mut bare_rates, mut arrived) = (Rates::default(), Rates::default(), Vec::new());
        for _ in 0..arguments.rounds {
            if size > 0 {
                let _receiver = Receiver::start(&receiver);
                bare_rates.add(rate(|| bare(&sender, size, time)));
            }
            let at = Receiver::start(&receiver);
            let (lens, tunnels) = if size == 0 { (IMIX.repeat(16), TUNNELS) } else { (vec![size; 192], 1) };
            let measured = rate(|| ours(&sender, &lens, tunnels, &arguments, time));
            std::thread::sleep(Duration::from_millis(100)); // lets the receiver empty its socket
            arrived.push(at.arrived.load(Ordering::Relaxed) as f64 / measured.0 as f64 * 100.0);
            ours_rates.add(measured);
        }
        let name = if size == 0 { "IMIX/64 tunnels".to_owned() } else { format!("{size} B") };
        let beside = if size == 0 { String::new() } else { format!("  bare {bare_rates}") };
        println!("{name:16} ours {ours_rates}  arrived {:.1} %{beside}", median(&arrived));
    }
}

/// Rates by the clock and by processor time.
#[derive(Default)]
struct Rates(Vec<f64>, Vec<f64>);

impl Rates {
    fn add(&mut self, (_, by_clock, by_cpu): (u64, f64, f64)) {
        self.0.push(by_clock);
        self.1.push(by_cpu);
    }
}

impl std::fmt::Display for Rates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2} Mpps ({:.2} per CPU second)", median(&self.0), median(&self.1))
    }
}
