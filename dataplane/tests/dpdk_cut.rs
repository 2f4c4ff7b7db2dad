//! Drivers that cut a frame which is longer than they have room for, and give its beginning as if it were all: net_af_packet, which also has
//! the kernel put fragments of IPv4 together, and net_pcap. Beside them is a port that takes frames of any length.
#![cfg(feature = "dpdk")]

mod dpdk_support;
mod kernel_support;

use std::net::UdpSocket;

use dpdk_support::{PLAIN, Process, dpdk, pair};
use kernel_support::hosts::{answers, kernel, veth};
use kernel_support::{Netns, udp_both_ways};

struct Rig {
    process: Process,
    one: Netns,
    two: Netns,
    a: UdpSocket,
    b: UdpSocket,
    // The last to go.
    _engine: Netns,
}

impl Rig {
    /// Host 1 behind the device, on a veth of this MTU; host 2 behind a kernel port.
    fn new(device: &str, mtu: usize) -> Self {
        Self::with(PLAIN, device, mtu)
    }

    fn with(dpdk_is: &str, device: &str, mtu: usize) -> Self {
        let (engine, one, two) = (Netns::new(), Netns::new(), Netns::new());
        veth(&engine, "e0", &one, "h0", 1);
        engine.ip(&["link", "set", "e0", "mtu", &mtu.to_string()]);
        one.ip(&["link", "set", "h0", "mtu", &mtu.to_string()]);
        let ports = pair("d", &dpdk(device), "k", &kernel(&two, 2, 1500));
        let process = Process::started(Some(&engine.name), &format!("{dpdk_is}{ports}"));
        answers(&one);
        let (a, b) = (one.udp("10.71.0.1:7001"), two.udp("10.71.0.2:7002"));
        Self { process, one, two, a, b, _engine: engine }
    }

    /// Datagrams of these sizes go from host 1; none arrives, each is counted as one frame that is too big. What comes next does arrive.
    fn lost(&mut self, sizes: &[usize]) {
        for size in sizes {
            let before = self.process.stats("d").drops.get("too_big").copied().unwrap_or(0);
            self.a.send_to(&vec![7; *size], self.b.local_addr().unwrap()).unwrap();
            self.process.wait_stats("d", |stats| stats.drops == [("too_big".to_owned(), before + 1)].into());
        }
        udp_both_ways(&self.a, &self.b, &[100]);
        // Had a part of one come, host 2 would have counted it here.
        assert_eq!((truncated(&self.two), truncated(&self.one)), (0, 0));
    }
}

/// Packets of IPv4 that a host got less of than their length says.
fn truncated(host: &Netns) -> u64 {
    let text = host.inside(|| std::fs::read_to_string("/proc/thread-self/net/netstat")).unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with("IpExt:")).map(|line| line.split(' '));
    let (names, counts) = (lines.next().unwrap(), lines.next().unwrap());
    names.zip(counts).find(|(name, _)| *name == "InTruncatedPkts").unwrap().1.parse().unwrap()
}

#[test]
fn fragments_that_were_joined_arrive_whole_or_are_counted_as_lost() {
    let mut rig = Rig::new("net_af_packet0,iface=e0", 1500);
    // Headers are 42 bytes; a slot of the ring has room for 1982.
    udp_both_ways(&rig.a, &rig.b, &[1472, 1473, 1600, 1939]);
    // The first may have been whole, for all that the driver tells.
    rig.lost(&[1940, 1941, 9000, 60_000]);
}

#[test]
fn with_larger_slots_and_buffers_longer_packets_arrive_whole() {
    let device = "net_af_packet0,iface=e0,framesz=16384,blocksz=16384,framecnt=64";
    let plain = PLAIN.replace("buffers = 8192", "buffers = 2048\nbuffer_size = 16384");
    let mut rig = Rig::with(&plain, device, 1500);
    udp_both_ways(&rig.a, &rig.b, &[1472, 1473, 1941, 9000, 16_000]);
    let stats = rig.process.stats("d");
    assert!(stats.drops.is_empty(), "{stats:?}");
}

#[test]
fn what_libpcap_cut_is_counted_as_lost() {
    let mut rig = Rig::new("net_pcap0,iface=e0", 20_000);
    udp_both_ways(&rig.a, &rig.b, &[1472, 9000, 16_085]);
    rig.lost(&[16_086, 16_087, 19_900]);
}
