//! A routing domain between peers that are none of ours: the kernel behind a tap and behind a tun, DPDK's memif driver, and smoltcp on
//! a memif without Ethernet headers. Needs root, dpdk-dev and tshark.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use vwire_proto::dataplane::v1 as pb;

mod kernel_support;
mod support;

use kernel_support::{Netns, tcp_both_ways, udp_both_ways};
use support::{Rig, kernel, memif};

/// A process that ends with its owner; its output is in a file.
struct Peer {
    child: Child,
    log: PathBuf,
}

impl Peer {
    fn start(mut command: Command, log: PathBuf) -> Self {
        let out = File::create(&log).unwrap();
        command.stdin(Stdio::piped()).stdout(out.try_clone().unwrap()).stderr(out);
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { child, log }
    }

    /// DPDK's own host: answers ARP requests and IPv4 echo requests, whatever the address.
    fn testpmd(place: &Path, socket: &Path) -> Self {
        let mut command = Command::new("dpdk-testpmd");
        let vdev = format!("net_memif0,role=client,id=0,socket={},socket-abstract=no", socket.display());
        command
            .args("-l 0,1 --no-pci -m 256 --no-telemetry --no-huge --no-shconf --vdev".split(' '))
            .arg(vdev);
        let forward = "-- --forward-mode=icmpecho --auto-start --disable-link-check --tx-offloads=0x8000";
        command
            .args(forward.split(' '))
            .args("--no-flush-rx --mbuf-size=2176 --total-num-mbufs=16384".split(' '));
        command.env("RUNTIME_DIRECTORY", place);
        Self::start(command, place.join("testpmd.log"))
    }

    /// smoltcp on a memif: answers echo requests of both families.
    fn responder(place: &Path, socket: &Path) -> Self {
        let here = std::env::current_exe().unwrap();
        let program = here.parent().and_then(Path::parent).unwrap().join("examples/icmp_responder");
        assert!(program.exists(), "{} is missing: cargo build -p memif --examples", program.display());
        let mut command = Command::new(program);
        command.args(["--role", "client", "--mode", "ip", "--socket"]).arg(socket);
        command.args(["--address", "10.61.3.2/16", "--address", "fd61:0:3::2/32"]);
        Self::start(command, place.join("responder.log"))
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{}:\n{}", self.log.display(), self.log());
        }
    }
}

/// Runs a command in a namespace, beside the engine's agent. Returns whether it succeeded, and what it printed.
async fn inside(netns: &Netns, line: &str) -> (bool, String) {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &netns.name]).args(line.split(' '));
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

/// Pings until one is answered, for what has to be resolved first; then all of `count` have to be.
async fn ping(rig: &mut Rig, netns: &Netns, address: &str, count: u32) {
    let deadline = Instant::now() + support::PATIENCE * 2;
    loop {
        let (answered, said) = inside(netns, &format!("ping -c 1 -W 1 {address}")).await;
        if answered {
            break;
        }
        assert!(Instant::now() < deadline, "{address} does not answer: {said}");
    }
    // After its last packet ping waits for twice the longest time so far, or the interval if that is longer, and no longer.
    let (_, said) = inside(netns, &format!("ping -c {count} -i 0.2 {address}")).await;
    if !said.contains(&format!(" {count} received")) {
        let mut ports = Vec::new();
        for port in PORTS {
            ports.push(rig.stats(port).await);
        }
        panic!("{said}\n{:#?}\n{ports:#?}\n{}", routing(rig).await, netns.ip(&["-s", "neigh"]));
    }
}

const PORTS: [&str; 4] = ["tap", "tun", "smoltcp", "dpdk"];

async fn routing(rig: &mut Rig) -> pb::GetRoutingResponse {
    let request = pb::GetRoutingRequest { domain: "net".into(), ..Default::default() };
    rig.client.get_routing(request).await.unwrap().into_inner()
}

fn member(port: &str) -> pb::DomainPort {
    pb::DomainPort { port: port.into(), ..Default::default() }
}

fn route(prefix: &str, port: &str) -> pb::Route {
    pb::Route { prefix: prefix.into(), port: port.into(), via: String::new() }
}

fn with_addresses(
    mut port: pb::Port,
    addresses: [&str; 2],
    change: impl FnOnce(&mut pb::Kernel),
) -> pb::Port {
    if let Some(pb::port::Kind::Kernel(kernel)) = &mut port.kind {
        kernel.addresses = addresses.map(str::to_owned).to_vec();
        change(kernel);
    }
    port
}

/// A tap in `one`, a tun in `two`, a memif of each mode.
fn state(rig: &Rig, one: &Netns, two: &Netns) -> pb::State {
    let netns = |netns: &Netns| format!("/run/netns/{}", netns.name);
    let tap = with_addresses(kernel("tap", "r0", netns(one)), ["10.61.1.2/32", "fd61:0:1::2/128"], |_| {});
    let tun = with_addresses(kernel("tun", "r1", netns(two)), ["10.61.2.2/32", "fd61:0:2::2/128"], |tun| {
        tun.mode = pb::Mode::Ip.into();
        tun.mtu = 1400;
    });
    let server = |name: &str, mode: pb::Mode| {
        let socket = rig.path(name).display().to_string();
        let mut port = memif(name, pb::memif::Role::Server, socket);
        if let Some(pb::port::Kind::Memif(memif)) = &mut port.kind {
            memif.mode = mode.into();
        }
        port
    };
    pb::State {
        ports: vec![tap, tun, server("smoltcp", pb::Mode::Ip), server("dpdk", pb::Mode::Ethernet)],
        domains: vec![pb::Domain {
            name: "net".into(),
            gateways: vec!["10.61.0.1".into(), "fd61::1".into()],
            ports: PORTS.map(member).to_vec(),
            routes: vec![
                route("10.61.1.2/32", "tap"),
                route("fd61:0:1::2/128", "tap"),
                route("10.61.2.2/32", "tun"),
                route("fd61:0:2::2/128", "tun"),
                route("10.61.3.0/24", "smoltcp"),
                route("fd61:0:3::/48", "smoltcp"),
                route("10.61.4.0/24", "dpdk"),
            ],
        }],
        ..Default::default()
    }
}

/// Routes towards the domain, as a client of it is told.
fn point_at_the_domain(one: &Netns, two: &Netns) {
    for line in [
        "route add 10.61.0.1 dev r0",
        "route add 10.61.0.0/16 via 10.61.0.1",
        "-6 route add fd61::1 dev r0",
        "-6 route add fd61::/32 via fd61::1",
    ] {
        one.ip(&line.split(' ').collect::<Vec<_>>());
    }
    for line in ["route add 10.61.0.0/16 dev r1", "-6 route add fd61::/32 dev r1"] {
        two.ip(&line.split(' ').collect::<Vec<_>>());
    }
}

/// What tshark finds with a display filter, a line for each packet.
fn tshark(file: &Path, filter: &str) -> Vec<String> {
    let mut command = Command::new("tshark");
    command.arg("-r").arg(file).args(["-o", "ip.check_checksum:TRUE", "-Y", filter]);
    let output = command.output().expect("tshark is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn the_kernel_dpdk_and_smoltcp_are_in_one_domain() {
    // A pass takes twelve seconds on an idle machine; `support::run` would give it a minute on any.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (one, two) = (Netns::new(), Netns::new());
        let mut rig = Rig::new().await;
        let state = state(&rig, &one, &two);
        rig.replace(state).await.unwrap();
        point_at_the_domain(&one, &two);
        let testpmd = Peer::testpmd(rig.dir.path(), &rig.path("dpdk"));
        let responder = Peer::responder(rig.dir.path(), &rig.path("smoltcp"));
        rig.wait_link("smoltcp", true).await;
        rig.wait_link("dpdk", true).await;
        let capture = Peer::capture(&rig, "tap").await;

        // Pings both ways, and to every kind of port.
        for address in
            ["10.61.0.1", "10.61.2.2", "10.61.3.2", "10.61.4.9", "fd61::1", "fd61:0:2::2", "fd61:0:3::2"]
        {
            ping(&mut rig, &one, address, 3).await;
        }
        for address in ["10.61.1.2", "10.61.3.2", "10.61.4.7", "fd61:0:1::2", "fd61:0:3::2", "fd61::1"] {
            ping(&mut rig, &two, address, 3).await;
        }
        // One hop away is the gateway, and it says so.
        for (address, expected) in [
            ("10.61.2.2", "From 10.61.0.1 icmp_seq=1 Time to live exceeded"),
            ("fd61:0:2::2", "From fd61::1 icmp_seq=1 Time exceeded: Hop limit"),
            ("10.61.9.9", "From 10.61.0.1 icmp_seq=1 Destination Net Unreachable"),
            ("fd61:0:9::9", "From fd61::1 icmp_seq=1 Destination unreachable: No route"),
        ] {
            let ttl = if expected.contains("xceeded") { 1 } else { 64 };
            let (_, said) = inside(&one, &format!("ping -c 1 -W 5 -t {ttl} {address}")).await;
            assert!(said.contains(expected), "{said}");
        }
        // The tun takes 1400 bytes: the kernel is told, and remembers.
        let (_, said) = inside(&one, "ping -c 1 -W 5 -M do -s 1450 10.61.2.2").await;
        assert!(said.contains("Frag needed and DF set (mtu = 1400)"), "{said}");
        assert!(one.ip(&["route", "get", "10.61.2.2"]).contains("mtu 1400"));
        let (_, said) = inside(&one, "ping -c 1 -W 5 -M do -s 1420 fd61:0:2::2").await;
        assert!(said.contains("Packet too big: mtu=1400"), "{said}");
        assert!(one.ip(&["-6", "route", "get", "fd61:0:2::2"]).contains("mtu 1400"));
        // Streams and datagrams, with segments and checksums that the kernel left open.
        let (from, to) = (one, two);
        let (one, two) = tokio::task::spawn_blocking(move || {
            tcp_both_ways(&from, &to, "10.61.2.2:5001", 2_000_000);
            tcp_both_ways(&to, &from, "[fd61:0:1::2]:5002", 2_000_000);
            let (a, b) = (from.udp("10.61.1.2:7001"), to.udp("10.61.2.2:7002"));
            udp_both_ways(&a, &b, &[1, 100, 1372]);
            (from, to)
        })
        .await
        .unwrap();
        let kernel = rig.stats("tap").await;
        assert!(kernel.rx_bytes / kernel.rx_packets > 2000, "uncut frames came: {kernel:?}");

        // Every answer that tshark saw at the tap was sound.
        let file = capture.end().await;
        for (what, filter) in [
            ("time exceeded", "icmp.type == 11"),
            ("time exceeded, IPv6", "icmpv6.type == 3"),
            ("fragmentation needed", "icmp.type == 3 && icmp.code == 4 && icmp.mtu == 1400"),
            ("packet too big", "icmpv6.type == 2 && icmpv6.mtu == 1400"),
            ("ARP replies", "arp.opcode == 2"),
            ("neighbour advertisements", "icmpv6.type == 136 && icmpv6.nd.na.target_address == fd61::1"),
        ] {
            assert!(!tshark(&file, filter).is_empty(), "no {what} was captured");
        }
        let wrong = "_ws.malformed || ip.checksum.status == \"Bad\" || icmp.checksum.status == \"Bad\" || icmpv6.checksum.status == \"Bad\"";
        assert_eq!(tshark(&file, wrong), Vec::<String>::new());

        let routing = routing(&mut rig).await;
        for unexpected in
            ["bad_ip_header", "bad_control", "wrong_mac", "egress_down", "bad_offload", "handoff_full"]
        {
            assert!(!routing.drops.contains_key(unexpected), "{:?}", routing.drops);
        }
        let dpdk: Vec<_> = routing.neighbours.iter().filter(|n| n.port == "dpdk").collect();
        assert_eq!(dpdk.len(), 2, "10.61.4.7 and 10.61.4.9: {:?}", routing.neighbours);
        drop((testpmd, responder, one, two));
    });
}

/// A capture that goes on until it is ended.
struct Capture {
    file: PathBuf,
    stop: tokio::sync::oneshot::Sender<()>,
    task: tokio::task::JoinHandle<()>,
}

impl Peer {
    async fn capture(rig: &Rig, port: &str) -> Capture {
        let file = rig.path("capture.pcapng");
        let request = pb::StreamCaptureRequest { port: port.into(), snap_len: 256, ring_bytes: 32 << 20 };
        let mut pieces = rig.client.clone().stream_capture(request).await.unwrap().into_inner();
        let mut out = File::create(&file).unwrap();
        let (stop, mut stopped) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(async move {
            loop {
                let piece = tokio::select! {
                    piece = pieces.message() => piece.unwrap(),
                    _ = &mut stopped => None,
                };
                let Some(piece) = piece else { return };
                std::io::Write::write_all(&mut out, &piece.pcapng).unwrap();
            }
        });
        Capture { file, stop, task }
    }
}

impl Capture {
    /// Ends it, when what was captured before has been written.
    async fn end(self) -> PathBuf {
        let mut len = 0;
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let now = std::fs::metadata(&self.file).unwrap().len();
            if now == len {
                break;
            }
            len = now;
        }
        let _ = self.stop.send(());
        self.task.await.unwrap();
        self.file
    }
}
