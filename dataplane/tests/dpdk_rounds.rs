//! Ports on DPDK's drivers come and go under traffic and leave nothing: no descriptor, no thread, no interface, no buffer and no
//! memory. VWIRE_DPDK_ROUNDS says how often; what a round took is printed (`-- --nocapture`). net_null's rounds are in dpdk_ports.
#![cfg(feature = "dpdk")]

mod dpdk_support;
mod kernel_support;
mod support;

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::time::Instant;

use dpdk_support::files::write_pcap;
use dpdk_support::{Process, dpdk, dpdk_port, pair};
use kernel_support::hosts::{address, pinging, veth};
use kernel_support::{Netns, wait_until};
use support::{join, part, remove, set};
use vwire_proto::dataplane::v1 as pb;

/// With so little memory a dozen pools that stayed would use it up.
const DPDK: &str = "[dpdk]\nhuge_pages = false\nbuffers = 8192\nmemory = ";
const MEMORY: usize = 64;
/// Buffers of a pool of a port's own.
const OWN: u32 = 2048;

/// KiB that a process may grow by: a pool may come to lie elsewhere than the one before.
const GROWTH: usize = 16 << 10;
/// KiB of DPDK's memory that net_memif may keep of a port.
const KEEPS: usize = 40;

/// What a process holds.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    /// How many of each kind.
    descriptors: BTreeMap<String, usize>,
    threads: usize,
    interfaces: Vec<String>,
}

struct Rig {
    process: Process,
    netns: Netns,
    /// The port at the other end, if it is the engine's own.
    peer: Option<&'static str>,
    /// KiB of DPDK's memory that the driver keeps of each port.
    keeps: usize,
}

impl Rig {
    /// Port `flood` sends without end to whatever is connected with it.
    fn new(netns: Netns, more: &str) -> Self {
        Self::with(MEMORY, netns, more)
    }

    fn with(memory: usize, netns: Netns, more: &str) -> Self {
        let flood = format!("[[port]]\nname = \"flood\"\n{}\n", dpdk("net_null0"));
        let config = format!("{DPDK}{memory}\n{flood}{more}");
        Self { process: Process::started(Some(&netns.name), &config), netns, peer: None, keeps: 0 }
    }

    fn held(&self) -> Held {
        let entries = |kind| std::fs::read_dir(format!("/proc/{}/{kind}", self.process.pid())).unwrap();
        let mut descriptors = BTreeMap::new();
        for descriptor in entries("fd") {
            let Ok(target) = std::fs::read_link(descriptor.unwrap().path()) else { continue };
            // "socket:[12345]", "/memfd:vwire-ring (deleted)", or a file's name.
            let kind = target.display().to_string().replace(|c: char| c.is_ascii_digit(), "");
            *descriptors.entry(kind).or_default() += 1;
        }
        Held { descriptors, threads: entries("task").count(), interfaces: self.netns.interfaces() }
    }

    /// Resident memory in KiB.
    fn resident(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Port `p` comes, is flooded, and goes. In two of ten rounds something has passed before it goes, which `passed` waits for.
    fn rounds(mut self, rounds: usize, device: impl Fn(usize) -> String, passed: impl Fn(&mut Self)) {
        assert!(rounds >= 20, "a tenth of the rounds must have two");
        let (began, mut before, mut resident) = (Instant::now(), None, Vec::new());
        for round in 1..=rounds {
            let mut port = dpdk_port("p", &device(round));
            if let Some(pb::port::Kind::Dpdk(dpdk)) = &mut port.kind {
                // Half of the time what passes is copied, else it goes on as it is.
                dpdk.buffers = if round % 2 == 0 { OWN } else { 0 };
            }
            let done = self.process.apply(vec![set(port), join("p", "flood")]);
            done.unwrap_or_else(|refused| panic!("round {round}: {refused}"));
            if round % 10 < 2 {
                passed(&mut self);
            }
            self.process.apply(vec![part("p", "flood"), remove("p")]).unwrap();
            if round == rounds / 10 {
                if let Some(peer) = self.peer {
                    // It gives back what it holds when it hears that the other is gone.
                    self.process.wait_link(peer, false);
                }
                before = Some(self.held());
            }
            if round % (rounds / 10) == 0 {
                resident.push(self.resident());
            }
        }
        let took = began.elapsed().as_secs_f64() * 1000.0 / rounds as f64;
        let before = before.unwrap();
        wait_until(&format!("{:?}, as after a tenth, not {before:?}", self.held()), || self.held() == before);
        eprintln!(
            "{}: {rounds} rounds of {took:.1} ms; KiB resident after each tenth {resident:?}; {before:?}",
            device(0)
        );
        let may = resident[0] + GROWTH + rounds * self.keeps;
        assert!(self.resident() < may, "KiB resident after each tenth: {resident:?}");
        // The shared pool goes with the last port.
        self.process.apply(vec![remove("flood")]).unwrap();
        let log = self.process.log();
        assert!(!log.contains("did not give back all buffers"), "{log}");
        assert!(!log.contains("removing the device from DPDK"), "{log}");
    }
}

/// How many rounds there are to be, if nobody says.
fn rounds(usually: usize) -> usize {
    std::env::var("VWIRE_DPDK_ROUNDS").map_or(usually, |rounds| rounds.parse().unwrap())
}

/// Frames went out by `p`, and came in by it.
fn both_ways(rig: &mut Rig) {
    rig.process.wait_stats("p", |stats| stats.tx_packets > 0 && stats.rx_packets > 0);
}

#[test]
fn on_a_veth() {
    let (engine, host) = (Netns::new(), Netns::new());
    veth(&engine, "e0", &host, "h0", 1);
    // Nobody need be there to be asked for an address.
    host.ip(&["neigh", "replace", "10.71.0.2", "lladdr", "02:00:00:00:00:02", "dev", "h0"]);
    let _pings = pinging(&host);
    Rig::new(engine, "").rounds(rounds(60), |_| "net_af_packet0,iface=e0".into(), both_ways);
}

#[test]
fn on_a_tap() {
    Rig::new(Netns::new(), "").rounds(
        rounds(60),
        |_| "net_tap0,iface=dtap0".into(),
        |rig| {
            address(&rig.netns, "dtap0", 2);
            let socket = rig.netns.inside(|| UdpSocket::bind("10.71.0.2:0")).unwrap();
            socket.set_broadcast(true).unwrap();
            socket.send_to(b"hello", "10.71.0.255:9").unwrap();
            both_ways(rig);
        },
    );
}

/// As a client: the driver (22.11) never closes the socket that it listens at as a server, and what connects there uses freed memory.
#[test]
fn on_a_memif() {
    let rounds = rounds(200);
    let more = pair(
        "m",
        "kind = \"memif\"\nrole = \"server\"\nsocket = \"$DIR/m.sock\"",
        "more",
        &dpdk("net_null1"),
    );
    // Of each port that goes the driver keeps an interrupt handle of its transmit queue.
    let rig = Rig {
        peer: Some("m"),
        keeps: KEEPS,
        ..Rig::with(MEMORY + rounds * KEEPS / 1024, Netns::new(), &more)
    };
    let socket = rig.process.path("m.sock").display().to_string();
    let device = format!("net_memif0,role=client,socket={socket},socket-abstract=no,id=0,bsize=2048");
    rig.rounds(rounds, |_| device.clone(), both_ways);
}

#[test]
fn on_a_file() {
    let rig = Rig::new(Netns::new(), "");
    let place = rig.process.dir.path().display().to_string();
    write_pcap(&rig.process.path("in.pcap"), &(0..200).map(support::frame).collect::<Vec<_>>());
    let device = |round: usize| {
        // What is read again and again stays in the driver's memory.
        let (endless, out) =
            if round % 4 < 2 { ("1", String::new()) } else { ("0", format!(",tx_pcap={place}/out.pcap")) };
        format!("net_pcap0,rx_pcap={place}/in.pcap,infinite_rx={endless}{out}")
    };
    rig.rounds(rounds(200), device, both_ways);
}
