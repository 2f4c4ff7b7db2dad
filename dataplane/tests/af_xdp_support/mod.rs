//! Namespaces joined to an engine's AF_XDP ports by veth pairs.
#![allow(dead_code, unused_imports, reason = "each test program uses its own part")]

use std::process::Command;

use vwire_dataplane::port::PortIndex;
use vwire_dataplane::port::af_xdp::{self, AfXdpDevice, AfXdpError, AfXdpSpec};
use vwire_dataplane::tables::WorkerId;

#[path = "../kernel_support/mod.rs"]
mod kernel_support;
pub use kernel_support::spec as kernel_spec;
pub use kernel_support::{Bench, Netns, ip, tcp_both_ways, udp_both_ways, wait_until};

/// Joins `host`, where the interface gets the addresses, to `nic`, where the engine's port will be. `more` is added to what makes
/// the pair: numbers of queues, say.
pub fn veth(host: (&Netns, &str), nic: (&Netns, &str), more: &[&str], addresses: &[&str]) {
    let [host_end, nic_end] = [host.1, nic.1];
    let (host_ns, nic_ns) = (host.0.name.as_str(), nic.0.name.as_str());
    let first = ["link", "add", host_end, "netns", host_ns];
    let second = ["type", "veth", "peer", "name", nic_end, "netns", nic_ns];
    ip(&[&first[..], more, &second[..], more].concat());
    for (netns, end) in [host, nic] {
        // Nobody speaks unless the test does.
        sysctl(netns, &format!("net.ipv6.conf.{end}.accept_dad=0"));
        netns.ip(&["link", "set", end, "up"]);
    }
    for address in addresses {
        host.0.ip(&["address", "add", address, "dev", host_end, "nodad"]);
    }
}

pub fn sysctl(netns: &Netns, setting: &str) {
    run(netns, &["sysctl", "-qw", setting]);
}

/// Runs a command inside; it must succeed. Returns what it printed.
pub fn run(netns: &Netns, command: &[&str]) -> String {
    let output = Command::new("ip").args(["netns", "exec", &netns.name]).args(command).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?} in {}: {printed}{error}", netns.name);
    printed
}

/// A spec for `ifname` inside `netns`.
pub fn spec(netns: &Netns, ifname: &str) -> AfXdpSpec {
    AfXdpSpec { netns: Some(netns.open()), ring_size: 256, ..AfXdpSpec::new(ifname) }
}

/// Opens a port and attaches it to the engine's first workers.
pub fn attach(bench: &mut Bench, port: u16, spec: &AfXdpSpec) -> AfXdpDevice {
    let (device, shares) = af_xdp::open(spec, PortIndex(port)).unwrap();
    bench.engine.counters().port(PortIndex(port)).open(&spec.ifname, "af_xdp");
    let shares = (0..).map(WorkerId).zip(shares).collect();
    bench.engine.share(PortIndex(port), shares).unwrap();
    device
}

/// Why a port can't be opened.
pub fn refusal(spec: &AfXdpSpec) -> AfXdpError {
    match af_xdp::open(spec, PortIndex(0)) {
        Ok(_) => panic!("{spec:?} must be refused"),
        Err(error) => error,
    }
}

/// Two hosts, each on a veth pair whose other end is an AF_XDP port; the ports are cross-connected.
pub struct TwoHosts {
    pub hosts: [Netns; 2],
    pub nics: Netns,
    pub bench: Bench,
    pub devices: Vec<AfXdpDevice>,
}

impl TwoHosts {
    pub fn new(more: &[&str], change: impl Fn(AfXdpSpec) -> AfXdpSpec) -> Self {
        let (hosts, nics) = ([Netns::new(), Netns::new()], Netns::new());
        let mut bench = Bench::of(2);
        let mut devices = Vec::new();
        for (i, host) in hosts.iter().enumerate() {
            let nic = format!("nic{i}");
            let addresses = [format!("10.70.0.{}/24", i + 1), format!("fd70::{}/64", i + 1)];
            veth((host, "eth0"), (&nics, &nic), more, &addresses.each_ref().map(String::as_str));
            devices.push(attach(&mut bench, i as u16, &change(spec(&nics, &nic))));
        }
        bench.xconnect(&[(0, 1)]);
        Self { hosts, nics, bench, devices }
    }
}
