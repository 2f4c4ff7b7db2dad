//! DPDK's drivers on interfaces of the kernel: net_af_packet on a veth, and net_tap, whose other end is the stack of the
//! namespace that the engine runs in. What passes is real: ping, TCP and datagrams of both families, at the MTU and above it.
#![cfg(feature = "dpdk")]

mod dpdk_support;
mod kernel_support;
mod support;

use std::process::Command;

use dpdk_support::{PLAIN, Process, dpdk, dpdk_port, pair};
use kernel_support::{Netns, ip, tcp_both_ways, udp_both_ways, wait_until};
use support::{part, remove, set};

/// Frames between namespaces carry no checksum and come uncut, which net_af_packet knows nothing of.
fn no_offloads(netns: &Netns, interface: &str) {
    let options = ["tx", "off", "tso", "off", "gso", "off", "gro", "off"];
    let done = Command::new("ip")
        .args(["netns", "exec", &netns.name, "ethtool", "-K", interface])
        .args(options)
        .output()
        .unwrap();
    assert!(done.status.success(), "ethtool: {}", String::from_utf8_lossy(&done.stderr));
}

/// A pair of interfaces: `outer` in the engine's namespace, without addresses, and `inner` with `host`'s in another.
fn veth(engine: &Netns, outer: &str, other: &Netns, inner: &str, host: u8) {
    ip(&[
        "link",
        "add",
        outer,
        "netns",
        &engine.name,
        "type",
        "veth",
        "peer",
        "name",
        inner,
        "netns",
        &other.name,
    ]);
    no_offloads(other, inner);
    engine.ip(&["link", "set", outer, "addrgenmode", "none", "promisc", "on", "up"]);
    address(other, inner, host);
}

fn address(netns: &Netns, interface: &str, host: u8) {
    netns.ip(&["link", "set", interface, "up"]);
    netns.ip(&["addr", "add", &format!("10.71.0.{host}/24"), "dev", interface]);
    netns.ip(&["addr", "add", &format!("fd71::{host}/64"), "dev", interface, "nodad"]);
}

fn ping(from: &Netns, options: &str, to: &str) {
    let words = ["netns", "exec", &from.name, "ping", "-c", "3", "-i", "0.05", "-W", "5"];
    let done = Command::new("ip").args(words).args(options.split_whitespace()).arg(to).output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success() && said.contains(" 0% packet loss"), "ping {options} {to}: {said}");
}

/// Until host 2 answers for the first time something may still be coming up, or an address be known as another device's.
fn answers(one: &Netns) {
    wait_until("the first answer", || {
        one.ip(&["neigh", "flush", "all"]);
        let words = ["netns", "exec", &one.name, "ping", "-c", "1", "-W", "1", "10.71.0.2"];
        Command::new("ip").args(words).output().unwrap().status.success()
    });
}

/// Everything between hosts 1 and 2, at an MTU of `mtu`. `joined` says that a driver is between them that puts fragments of IPv4
/// together again and then has no room for the packet: net_af_packet asks the kernel for that (PACKET_FANOUT_FLAG_DEFRAG).
fn traffic(one: &Netns, two: &Netns, mtu: usize, joined: bool) {
    answers(one);
    let above: &[usize] = if joined { &[] } else { &[mtu - 27, 9000] };
    for size in [16, mtu - 28].iter().chain(above) {
        ping(one, &format!("-s {size}"), "10.71.0.2");
    }
    for size in [16, mtu - 48, mtu - 47, 9000] {
        ping(two, &format!("-s {size}"), "fd71::1");
    }
    tcp_both_ways(one, two, "10.71.0.2:5001", 2_000_000);
    tcp_both_ways(two, one, "[fd71::1]:5002", 2_000_000);
    let (a, b) = (one.udp("10.71.0.1:7001"), two.udp("10.71.0.2:7002"));
    udp_both_ways(&a, &b, &[&[1, 100, mtu - 28], above].concat());
    let (a, b) = (one.udp("[fd71::1]:7001"), two.udp("[fd71::2]:7002"));
    udp_both_ways(&a, &b, &[1, 100, mtu - 48, mtu - 47, 9000]);
}

#[test]
fn traffic_passes_between_a_veth_and_a_tap_of_dpdks() {
    let (engine, host) = (Netns::new(), Netns::new());
    veth(&engine, "e0", &host, "h0", 1);
    let ports = pair("a", &dpdk("net_af_packet0,iface=e0"), "t", &dpdk("net_tap0,iface=dtap0"));
    let mut process = Process::started(Some(&engine.name), &format!("{PLAIN}{ports}"));
    address(&engine, "dtap0", 2);
    traffic(&host, &engine, 1500, true);
    let stats = process.stats("t");
    assert!(stats.device["rx_good_packets"] > 1000 && stats.rx_packets > 1000, "{stats:?}");
    assert!(stats.device["vwire_tx_taken_packets"] > 1000, "the tap sends the veth's own buffers: {stats:?}");
    assert_eq!(stats.device["vwire_tx_copied_bytes"], 0, "{stats:?}");
}

/// An interface in `host` with address 1, as a configuration writes it.
fn kernel(host: &Netns, mtu: usize) -> String {
    format!(
        "kind = \"kernel\"\nifname = \"k0\"\nnetns = \"/run/netns/{}\"\naddresses = [\"10.71.0.1/24\", \"fd71::1/64\"]\nmtu = {mtu}",
        host.name
    )
}

#[test]
fn what_a_kernel_leaves_open_the_device_pays_where_it_can() {
    // net_tap completes checksums, and cuts what is to become frames of at most 1500 bytes.
    for (mtu, cuts) in [(1500, false), (1400, true)] {
        let (engine, host) = (Netns::new(), Netns::new());
        let ports = pair("k", &kernel(&host, mtu), "t", &dpdk("net_tap0,iface=dtap0"));
        let mut process = Process::started(Some(&engine.name), &format!("{PLAIN}{ports}"));
        engine.ip(&["link", "set", "dtap0", "mtu", &mtu.to_string()]);
        address(&engine, "dtap0", 2);
        traffic(&host, &engine, mtu, false);
        let (kernel, tap) = (process.stats("k"), process.stats("t"));
        assert!(kernel.rx_bytes / kernel.rx_packets > 2000, "uncut frames came: {kernel:?}");
        assert_eq!(tap.tx_bytes / tap.tx_packets > 2000, cuts, "{tap:?}");
        assert!(!tap.drops.contains_key("bad_offload") && !tap.drops.contains_key("too_big"), "{tap:?}");
    }
}

#[test]
fn what_a_kernel_leaves_open_is_paid_here_where_the_device_cannot() {
    let (engine, one, two) = (Netns::new(), Netns::new(), Netns::new());
    veth(&engine, "e0", &two, "h0", 2);
    let ports = pair("k", &kernel(&one, 1500), "a", &dpdk("net_af_packet0,iface=e0"));
    let mut process = Process::started(Some(&engine.name), &format!("{PLAIN}{ports}"));
    traffic(&one, &two, 1500, true);
    let (kernel, packet) = (process.stats("k"), process.stats("a"));
    assert!(kernel.rx_bytes / kernel.rx_packets > 2000, "uncut frames came: {kernel:?}");
    assert!(packet.tx_bytes / packet.tx_packets <= 1514, "and were cut: {packet:?}");
    assert!(!packet.drops.contains_key("bad_offload"), "{packet:?}");
}

#[test]
fn after_a_kill_the_next_engine_has_the_same_devices() {
    let (engine, host) = (Netns::new(), Netns::new());
    veth(&engine, "e0", &host, "h0", 1);
    let ports = pair("a", &dpdk("net_af_packet0,iface=e0"), "t", &dpdk("net_tap0,iface=dtap0"));
    let mut process = Process::new(Some(&engine.name));
    for _ in 0..3 {
        process.start(&format!("{PLAIN}{ports}"));
        address(&engine, "dtap0", 2);
        answers(&host);
        tcp_both_ways(&host, &engine, "10.71.0.2:5001", 200_000);
        process.kill();
        assert_eq!(engine.interfaces().iter().filter(|name| name.starts_with("dtap")).count(), 0);
    }
}

#[test]
fn a_device_that_vanishes_under_traffic_is_a_fault_of_its_port_alone() {
    let (engine, host, other) = (Netns::new(), Netns::new(), Netns::new());
    veth(&engine, "e0", &host, "h0", 1);
    veth(&engine, "e1", &other, "h1", 1);
    let ports = pair("a", &dpdk("net_af_packet0,iface=e0"), "t", &dpdk("net_tap0,iface=dtap0"));
    let others = pair("a1", &dpdk("net_af_packet1,iface=e1"), "n", &dpdk("net_null0"));
    let mut process = Process::started(Some(&engine.name), &format!("{PLAIN}{ports}{others}"));
    address(&engine, "dtap0", 2);
    let flood = Command::new("ip")
        .args(["netns", "exec", &host.name, "ping", "-q", "-i", "0.001", "10.71.0.2"])
        .stdout(std::process::Stdio::null())
        .spawn();
    let mut flood = guarded(flood.unwrap());
    process.wait_stats("t", |stats| stats.rx_packets > 100);
    engine.ip(&["link", "del", "e0"]);
    let link = process.wait_link("a", false);
    assert!(link.reason.contains("the device was removed"), "{link:?}");
    // Its peer goes on, and says where frames for it went.
    assert!(process.link("t").up && process.link("a1").up);
    process.wait_stats("n", |stats| stats.tx_packets + stats.rx_packets > 0);
    flood.0.kill().unwrap();
    process.apply(vec![part("a1", "n"), remove("a1")]).unwrap();

    // The interface comes back; the port is set anew, and frames pass again.
    veth(&engine, "e0", &host, "h2", 1);
    host.ip(&["addr", "flush", "dev", "h2"]);
    address(&host, "h2", 1);
    process.apply(vec![set(dpdk_port("a", "net_af_packet2,iface=e0"))]).unwrap();
    answers(&host);
    // The tap's interface goes, too: the driver is asked, and sees it.
    engine.ip(&["link", "del", "dtap0"]);
    let link = process.wait_link("t", false);
    assert!(link.reason.contains("the device was removed"), "{link:?}");
    assert!(process.is_running());
}

struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn guarded(child: std::process::Child) -> Killed {
    Killed(child)
}

#[test]
fn ports_on_a_veth_and_on_a_tap_come_and_go_and_leave_nothing() {
    let (engine, host) = (Netns::new(), Netns::new());
    veth(&engine, "e0", &host, "h0", 1);
    let mut process = Process::started(
        Some(&engine.name),
        &format!("{PLAIN}[[port]]\nname = \"keep\"\n{}\n", dpdk("net_null0")),
    );
    // Ten thousand rounds would take the kernel half an hour: it waits some milliseconds for each packet socket and each tap.
    let open = |process: &Process| {
        let folder = format!("/proc/{}/fd", process.pid());
        std::fs::read_dir(folder).unwrap().count()
    };
    for (device, rounds) in [("net_af_packet0,iface=e0", 150), ("net_tap0,iface=dtap0", 50)] {
        let mut before = 0;
        for round in 0..rounds {
            process.apply(vec![set(dpdk_port("p", device))]).unwrap();
            process.apply(vec![remove("p")]).unwrap();
            if round == 10 {
                before = open(&process);
            }
        }
        assert_eq!(open(&process), before, "descriptors after {device}");
    }
    assert_eq!(engine.interfaces().iter().filter(|name| name.starts_with("dtap")).count(), 0);
}
