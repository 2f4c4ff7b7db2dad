//! DPDK's drivers on interfaces of the kernel: net_af_packet and net_pcap on a veth, and net_tap, whose other end is the stack of
//! the namespace that the engine runs in. What passes is real: ping, TCP and datagrams of both families, at the MTU and above it.
#![cfg(feature = "dpdk")]

mod dpdk_support;
mod kernel_support;
mod support;

use dpdk_support::{PLAIN, Process, dpdk, dpdk_port, pair};
use kernel_support::hosts::{above, address, answers, kernel, pinging, traffic, veth};
use kernel_support::{Netns, tcp_both_ways};
use support::{part, remove, set};

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

/// Frames that a host's interface has sent.
fn sent_by(host: &Netns, interface: &str) -> u64 {
    let shown = host.ip(&["-s", "-j", "link", "show", interface]);
    let (_, sent) = shown.split_once("\"tx\":").unwrap();
    let (_, packets) = sent.split_once("\"packets\":").unwrap();
    packets.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
}

#[test]
fn traffic_passes_between_two_veths_by_libpcap() {
    // One handle for both ways does not see what it sends; of two, the one that receives must be told to leave out what goes out.
    let both = |name: &str| format!("rx_iface_in={name},tx_iface={name}");
    for on in [|name: &str| format!("iface={name}"), both] {
        let (engine, one, two) = (Netns::new(), Netns::new(), Netns::new());
        veth(&engine, "e0", &one, "h0", 1);
        veth(&engine, "e1", &two, "h1", 2);
        let device = |number, name| dpdk(&format!("net_pcap{number},{}", on(name)));
        let ports = pair("p", &device(0, "e0"), "q", &device(1, "e1"));
        let mut process = Process::started(Some(&engine.name), &format!("{PLAIN}{ports}"));
        traffic(&one, &two, 1500, false);
        for (port, host, interface) in [("p", &one, "h0"), ("q", &two, "h1")] {
            let stats = process.stats(port);
            let sent = sent_by(host, interface);
            assert!((1000..=sent).contains(&stats.rx_packets), "no frame of our own among {sent}: {stats:?}");
            assert_eq!(stats.device["vwire_tx_copied_bytes"], 0, "{stats:?}");
            assert!(stats.drops.is_empty(), "{stats:?}");
        }
    }
}

#[test]
fn what_is_too_long_for_libpcaps_port_or_interface_is_counted() {
    let (engine, one, two) = (Netns::new(), Netns::new(), Netns::new());
    veth(&engine, "e0", &one, "h0", 1);
    veth(&engine, "e1", &two, "h1", 2);
    let ports = pair("p", &dpdk("net_pcap0,iface=e0"), "q", &dpdk("net_pcap1,iface=e1"));
    let mut process = Process::started(Some(&engine.name), &format!("{PLAIN}{ports}"));
    answers(&one);
    // Longer than the port's MTU.
    engine.ip(&["link", "set", "e0", "mtu", "1600"]);
    above(&one, "h0", 1500);
    process.wait_stats("q", |stats| stats.drops == [("too_big".to_owned(), 1)].into());
    // Not longer than that, but than its interface's, which the driver sees when the kernel refuses to send.
    engine.ip(&["link", "set", "e1", "mtu", "1400"]);
    above(&one, "h0", 1430);
    let both = [("too_big".to_owned(), 1), ("tx_full".to_owned(), 1)].into();
    process.wait_stats("q", |stats| stats.drops == both);
    // What comes behind it passes.
    answers(&one);
    engine.ip(&["link", "del", "e0"]);
    let link = process.wait_link("p", false);
    assert!(link.reason.contains("the device was removed"), "{link:?}");
    assert!(process.link("q").up);
}

#[test]
fn what_a_kernel_leaves_open_the_device_pays_where_it_can() {
    // net_tap completes checksums, and cuts what is to become frames of at most 1500 bytes.
    for (mtu, cuts) in [(1500, false), (1400, true)] {
        let (engine, host) = (Netns::new(), Netns::new());
        let ports = pair("k", &kernel(&host, 1, mtu), "t", &dpdk("net_tap0,iface=dtap0"));
        let mut process = Process::started(Some(&engine.name), &format!("{PLAIN}{ports}"));
        engine.ip(&["link", "set", "dtap0", "mtu", &mtu.to_string()]);
        address(&engine, "dtap0", 2);
        traffic(&host, &engine, mtu, false);
        let (kernel, tap) = (process.stats("k"), process.stats("t"));
        assert!(kernel.rx_bytes / kernel.rx_packets > 2000, "uncut frames came: {kernel:?}");
        assert_eq!(tap.tx_bytes / tap.tx_packets > 2000, cuts, "{tap:?}");
        assert!(!tap.drops.contains_key("bad_offload") && !tap.drops.contains_key("too_big"), "{tap:?}");
        // The port's MTU is 1500, whatever the interface's is.
        if mtu == 1500 {
            above(&host, "k0", mtu);
            process.wait_stats("t", |stats| stats.drops.get("too_big") == Some(&1));
        }
    }
}

#[test]
fn what_a_kernel_leaves_open_is_paid_here_where_the_device_cannot() {
    for (driver, joined) in [("net_af_packet0", true), ("net_pcap0", false)] {
        let (engine, one, two) = (Netns::new(), Netns::new(), Netns::new());
        veth(&engine, "e0", &two, "h0", 2);
        let ports = pair("k", &kernel(&one, 1, 1500), "a", &dpdk(&format!("{driver},iface=e0")));
        let mut process = Process::started(Some(&engine.name), &format!("{PLAIN}{ports}"));
        traffic(&one, &two, 1500, joined);
        let (kernel, packet) = (process.stats("k"), process.stats("a"));
        assert!(kernel.rx_bytes / kernel.rx_packets > 2000, "uncut frames came: {kernel:?}");
        assert!(packet.tx_bytes / packet.tx_packets <= 1514, "and were cut: {packet:?}");
        assert!(
            !packet.drops.contains_key("bad_offload") && !packet.drops.contains_key("too_big"),
            "{packet:?}"
        );
        above(&one, "k0", 1500);
        process.wait_stats("a", |stats| stats.drops.get("too_big") == Some(&1));
    }
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
    let flood = pinging(&host);
    process.wait_stats("t", |stats| stats.rx_packets > 100);
    engine.ip(&["link", "del", "e0"]);
    let link = process.wait_link("a", false);
    assert!(link.reason.contains("the device was removed"), "{link:?}");
    // Its peer goes on, and says where frames for it went.
    assert!(process.link("t").up && process.link("a1").up);
    process.wait_stats("n", |stats| stats.tx_packets + stats.rx_packets > 0);
    drop(flood);
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
