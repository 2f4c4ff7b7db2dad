//! Two hosts on one link, each a kernel in a namespace, and everything that passes between them: ping, TCP and datagrams of both
//! families, at the MTU and above it.

use std::process::{Child, Command, Stdio};

use super::{Netns, ip, tcp_both_ways, udp_both_ways, wait_until};

/// Frames between namespaces carry no checksum and come uncut, which net_af_packet knows nothing of.
pub fn no_offloads(netns: &Netns, interface: &str) {
    let options = ["tx", "off", "tso", "off", "gso", "off", "gro", "off"];
    let done = Command::new("ip")
        .args(["netns", "exec", &netns.name, "ethtool", "-K", interface])
        .args(options)
        .output()
        .unwrap();
    assert!(done.status.success(), "ethtool: {}", String::from_utf8_lossy(&done.stderr));
}

/// A pair of interfaces: `outer` in the engine's namespace, without addresses, and `inner` with `host`'s in another.
pub fn veth(engine: &Netns, outer: &str, other: &Netns, inner: &str, host: u8) {
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

pub fn address(netns: &Netns, interface: &str, host: u8) {
    netns.ip(&["link", "set", interface, "up"]);
    netns.ip(&["addr", "add", &format!("10.71.0.{host}/24"), "dev", interface]);
    netns.ip(&["addr", "add", &format!("fd71::{host}/64"), "dev", interface, "nodad"]);
}

pub fn ping(from: &Netns, options: &str, to: &str) {
    let words = ["netns", "exec", &from.name, "ping", "-c", "3", "-i", "0.05", "-W", "5"];
    let done = Command::new("ip").args(words).args(options.split_whitespace()).arg(to).output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success() && said.contains(" 0% packet loss"), "ping {options} {to}: {said}");
}

/// Until host 2 answers for the first time something may still be coming up, or an address be known as another device's.
pub fn answers(one: &Netns) {
    wait_until("the first answer", || {
        one.ip(&["neigh", "flush", "all"]);
        let words = ["netns", "exec", &one.name, "ping", "-c", "1", "-W", "1", "10.71.0.2"];
        Command::new("ip").args(words).output().unwrap().status.success()
    });
}

/// Everything between hosts 1 and 2, at an MTU of `mtu`. `joined` says that a driver is between them that puts fragments of IPv4
/// together again and then has no room for the packet: net_af_packet asks the kernel for that (PACKET_FANOUT_FLAG_DEFRAG).
pub fn traffic(one: &Netns, two: &Netns, mtu: usize, joined: bool) {
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

/// One packet from host 1 that is longer than `mtu`, which its own interface allows for once: it does not arrive.
pub fn above(one: &Netns, interface: &str, mtu: usize) {
    one.ip(&["link", "set", interface, "mtu", &(mtu + 100).to_string()]);
    let size = format!("{}", mtu + 50 - 28);
    let words =
        ["netns", "exec", &one.name, "ping", "-c", "1", "-W", "1", "-M", "do", "-s", &size, "10.71.0.2"];
    assert!(!Command::new("ip").args(words).output().unwrap().status.success(), "{size} bytes passed");
    one.ip(&["link", "set", interface, "mtu", &mtu.to_string()]);
}

/// An interface of `host` with `number`'s addresses, as a configuration of the engine writes it.
pub fn kernel(host: &Netns, number: u8, mtu: usize) -> String {
    format!(
        "kind = \"kernel\"\nifname = \"k0\"\nnetns = \"/run/netns/{}\"\naddresses = [\"10.71.0.{number}/24\", \"fd71::{number}/64\"]\nmtu = {mtu}",
        host.name
    )
}

/// Something that runs until it is dropped.
pub struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Host 1 pings host 2 a thousand times a second.
pub fn pinging(one: &Netns) -> Running {
    let words = ["netns", "exec", &one.name, "ping", "-q", "-i", "0.001", "10.71.0.2"];
    Running(Command::new("ip").args(words).stdout(Stdio::null()).spawn().unwrap())
}
