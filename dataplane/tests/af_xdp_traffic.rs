//! Real traffic of real kernels through AF_XDP ports on veth pairs. Needs root.
#![cfg(feature = "af_xdp")]

mod af_xdp_support;
mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use af_xdp_support::{
    Bench, Netns, TwoHosts, attach, run as run_in, spec, tcp_both_ways, udp_both_ways, veth, wait_until,
};
use support::{Rig, join, kernel, memif, set};
use vwire_dataplane::DropReason;
use vwire_dataplane::port::PortIndex;
use vwire_dataplane::port::af_xdp::{AfXdpSpec, CopyMode, QueueChoice, Steering};
use vwire_proto::dataplane::v1 as pb;

const MEGABYTE: usize = 1 << 20;
/// At an MTU of 1500 and just above it, and a lot more, which comes in fragments.
const SIZES: [usize; 6] = [1, 100, 1472, 1473, 9000, 60_000];

fn everything_passes(hosts: &[Netns; 2]) {
    let [a, b] = hosts;
    for address in ["10.70.0.2", "fd70::2"] {
        run_in(a, &["ping", "-c", "3", "-i", "0.01", "-w", "10", address]);
        run_in(a, &["ping", "-c", "1", "-w", "10", "-M", "do", "-s", "1400", address]);
    }
    tcp_both_ways(a, b, "10.70.0.2:7000", 2 * MEGABYTE);
    tcp_both_ways(b, a, "[fd70::1]:7000", 2 * MEGABYTE);
    udp_both_ways(&a.udp("10.70.0.1:7001"), &b.udp("10.70.0.2:7002"), &SIZES);
    udp_both_ways(&a.udp("[fd70::1]:7001"), &b.udp("[fd70::2]:7002"), &SIZES);
}

/// Full rings are what TCP is made for, and before the ports are joined a host may say that it is there. Nothing else is lost.
fn loses_only_to_full_rings(bench: &Bench, port: u16) {
    for (reason, count) in bench.engine.counters().port(PortIndex(port)).snapshot().drops {
        let expected = matches!(reason, DropReason::SocketFull | DropReason::TxFull | DropReason::NoEgress);
        assert!(expected, "{count} of {reason:?}");
    }
}

#[test]
fn ping_tcp_and_datagrams_pass_between_two_ports() {
    let two = TwoHosts::new(&[], |spec| spec);
    assert!(two.devices.iter().all(|device| device.is_native() && !device.is_zero_copy()));
    everything_passes(&two.hosts);
    loses_only_to_full_rings(&two.bench, 0);
    loses_only_to_full_rings(&two.bench, 1);
}

#[test]
fn they_pass_in_copy_mode_and_by_the_generic_hook() {
    for mode in [CopyMode::Copy, CopyMode::Generic] {
        let two = TwoHosts::new(&[], |spec| AfXdpSpec { mode, ..spec });
        assert!(two.devices.iter().all(|device| device.is_native() == (mode == CopyMode::Copy)));
        for host in &two.hosts {
            // Only the native program of a veth has its peer cut frames.
            run_in(host, &["ethtool", "-K", "eth0", "tso", "off", "gso", "off"]);
        }
        everything_passes(&two.hosts);
    }
}

#[test]
fn small_rings_and_large_frames_will_do() {
    let two = TwoHosts::new(&[], |spec| AfXdpSpec { ring_size: 64, frame_size: 4096, ..spec });
    everything_passes(&two.hosts);
}

#[test]
fn frames_that_fit_no_buffer_are_spread_over_several() {
    let two = TwoHosts::new(&["mtu", "9000"], |spec| spec);
    let [a, b] = &two.hosts;
    for address in ["10.70.0.2", "fd70::2"] {
        for size in ["1472", "2100", "8900"] {
            run_in(a, &["ping", "-c", "2", "-i", "0.01", "-w", "10", "-M", "do", "-s", size, address]);
        }
    }
    tcp_both_ways(a, b, "10.70.0.2:7000", 4 * MEGABYTE);
    tcp_both_ways(b, a, "[fd70::1]:7000", 4 * MEGABYTE);
    udp_both_ways(&a.udp("10.70.0.1:7001"), &b.udp("10.70.0.2:7002"), &[2030, 4078, 8972, 8973, 60_000]);
}

#[test]
fn a_frame_above_the_mtu_is_counted_and_the_next_one_passes() {
    let (host, nics) = (Netns::new(), Netns::new());
    veth((&host, "eth0"), (&nics, "nic0"), &[], &["10.70.0.1/24"]);
    let mut bench = Bench::new();
    let mut device = attach(&mut bench, 0, &spec(&nics, "nic0"));
    let mut far = bench.pipe(1, 1 << 20);
    bench.xconnect(&[(0, 1)]);
    let port = |bench: &Bench| bench.engine.counters().port(PortIndex(0)).snapshot();
    assert!(far.inject(&[2; 1519]));
    assert!(far.inject(&[2; 13]));
    wait_until("both are refused", || port(&bench).dropped_in_all() == 2);
    assert_eq!(port(&bench).dropped(DropReason::TooBig), 1);
    assert_eq!(port(&bench).dropped(DropReason::TooShort), 1);
    assert!(far.inject(&[2; 1514]));
    wait_until("it is sent", || port(&bench).tx == (1, 1514));
    // Nothing is sent by an interface that is down.
    let mut interface = device.interface().clone();
    interface.up = false;
    device.note(&interface);
    assert!(far.inject(&[2; 60]));
    wait_until("it is refused", || port(&bench).dropped(DropReason::EgressDown) == 1);
}

const TWO_QUEUES: [&str; 4] = ["numrxqueues", "2", "numtxqueues", "2"];

#[test]
fn flows_come_by_two_queues_and_leave_by_two() {
    flows_pass(&TwoHosts::new(&TWO_QUEUES, |spec| spec));
}

#[test]
fn flows_pass_where_two_workers_share_both_ports() {
    flows_pass(&TwoHosts::new(&TWO_QUEUES, |spec| AfXdpSpec { workers: 2, ..spec }));
}

fn flows_pass(two: &TwoHosts) {
    assert!(two.devices.iter().all(|device| device.interface().name.starts_with("nic")));
    let [a, b] = &two.hosts;
    for port in 0..8 {
        tcp_both_ways(a, b, &format!("10.70.0.2:{}", 7000 + port), MEGABYTE / 4);
        udp_both_ways(&a.udp(&format!("10.70.0.1:{}", 7100 + port)), &b.udp("10.70.0.2:7002"), &[100, 1472]);
    }
    everything_passes(&two.hosts);
}

#[test]
fn frames_of_a_queue_that_is_not_the_ports_stay_the_kernels() {
    let (host, nics) = (Netns::new(), Netns::new());
    veth((&host, "eth0"), (&nics, "nic0"), &TWO_QUEUES, &["10.70.0.1/24"]);
    nics.ip(&["address", "add", "10.70.0.2/24", "dev", "nic0"]);
    let mut bench = Bench::new();
    let choice = QueueChoice::These(vec![1]);
    let device = attach(&mut bench, 0, &AfXdpSpec { queues: choice, ..spec(&nics, "nic0") });
    let mut far = bench.pipe(1, 1 << 20);
    bench.xconnect(&[(0, 1)]);
    let mac = device.interface().mac.map(|byte| format!("{byte:02x}")).join(":");
    host.ip(&["neigh", "add", "10.70.0.2", "lladdr", &mac, "dev", "eth0", "nud", "permanent"]);
    // A veth's sender spreads flows over its queues, and the peer receives by the same.
    let kernels = nics.udp("10.70.0.2:7002");
    kernels.set_nonblocking(true).unwrap();
    for port in 7100..7164 {
        host.udp(&format!("10.70.0.1:{port}")).send_to(b"x", "10.70.0.2:7002").unwrap();
    }
    let (mut ours, mut others) = (0, 0);
    wait_until("each is somewhere", || {
        ours += far.collect().iter().filter(|(frame, _)| frame.ends_with(b"x")).count();
        others += std::iter::from_fn(|| kernels.recv(&mut [0; 8]).ok()).count();
        ours + others == 64
    });
    assert!(ours > 0 && others > 0, "{ours} were the port's, {others} the kernel's");
}

/// Of two queues each worker has one, and what is for the port at the other end is handed over.
#[test]
fn frames_of_both_workers_reach_a_port_that_one_has() {
    let (host, nics) = (Netns::new(), Netns::new());
    veth((&host, "eth0"), (&nics, "nic0"), &TWO_QUEUES, &["10.70.0.1/24"]);
    let mut bench = Bench::of(2);
    let device = attach(&mut bench, 0, &AfXdpSpec { workers: 2, ..spec(&nics, "nic0") });
    let mut far = bench.pipe(1, 1 << 20);
    bench.xconnect(&[(0, 1)]);
    let mac = device.interface().mac.map(|byte| format!("{byte:02x}")).join(":");
    host.ip(&["neigh", "add", "10.70.0.2", "lladdr", &mac, "dev", "eth0", "nud", "permanent"]);
    for port in 7100..7164 {
        host.udp(&format!("10.70.0.1:{port}")).send_to(b"x", "10.70.0.2:7002").unwrap();
    }
    let mut came = 0;
    wait_until("all 64, by either queue", || {
        came += far.collect().iter().filter(|(frame, _)| frame.ends_with(b"x")).count();
        came == 64
    });
    // And the other way.
    for flow in 0..64u8 {
        let mut frame = [0xff; 60];
        (frame[12], frame[13], frame[26]) = (0x08, 0x00, flow);
        assert!(far.inject(&frame));
    }
    let counters = |bench: &Bench| bench.engine.counters().port(PortIndex(0)).snapshot();
    wait_until("all to be sent", || counters(&bench).tx.0 == 64);
}

#[test]
fn a_kernel_interface_and_an_af_xdp_port_exchange_frames() {
    let (host, nics, workload) = (Netns::new(), Netns::new(), Netns::new());
    veth((&host, "eth0"), (&nics, "nic0"), &[], &["10.70.0.1/24", "fd70::1/64"]);
    let mut bench = Bench::new();
    let _nic = attach(&mut bench, 0, &spec(&nics, "nic0"));
    let tap = af_xdp_support::kernel_spec(&workload, "nsm-1", &["10.70.0.2/24", "fd70::2/64"]);
    let _tap = bench.kernel(1, &tap);
    bench.xconnect(&[(0, 1)]);
    // The tap's kernel gives frames of up to 64 KiB, which are cut for the interface.
    everything_passes(&[host, workload]);
}

/// A port of kind af_xdp, for the API.
fn nic(name: &str, netns: &Netns, ifname: &str) -> pb::Port {
    let netns = format!("/run/netns/{}", netns.name);
    let nic = pb::AfXdpPort { ifname: ifname.into(), netns, ring_size: 256, ..Default::default() };
    pb::Port { name: name.into(), kind: Some(pb::port::Kind::AfXdp(nic)), ..Default::default() }
}

#[test]
fn an_af_xdp_port_and_a_memif_exchange_frames() {
    support::run(async {
        let (host, nics, workload) = (Netns::new(), Netns::new(), Netns::new());
        veth((&host, "eth0"), (&nics, "nic0"), &[], &["10.70.0.1/24", "fd70::1/64"]);
        let mut rig = Rig::new().await;
        let socket = rig.path("m.sock").display().to_string();
        let mut tap = kernel("tap", "i0", format!("/run/netns/{}", workload.name));
        if let Some(pb::port::Kind::Kernel(tap)) = &mut tap.kind {
            tap.addresses = vec!["10.70.0.2/24".into(), "fd70::2/64".into()];
        }
        let (server, client) = (pb::memif::Role::Server, pb::memif::Role::Client);
        let ports =
            [nic("nic", &nics, "nic0"), memif("m1", server, &*socket), memif("m2", client, &*socket), tap];
        let mut ops: Vec<_> = ports.into_iter().map(set).collect();
        ops.extend([join("nic", "m1"), join("m2", "tap")]);
        rig.apply(ops).await.unwrap();
        rig.wait_link("m2", true).await;
        let link = rig.wait_link("nic", true).await;
        assert_eq!(link.peer, "nic0 (native XDP, copies)");
        let hosts = [host, workload];
        std::thread::scope(|scope| scope.spawn(|| everything_passes(&hosts)).join().unwrap());
        let stats = rig.stats("nic").await;
        assert!(stats.rx_packets > 100 && stats.tx_packets > 100, "{stats:?}");
    });
}

#[test]
fn steered_datagrams_are_the_ports_and_all_else_the_kernels() {
    let (host, node) = (Netns::new(), Netns::new());
    veth((&host, "eth0"), (&node, "nic0"), &[], &["10.70.0.1/24", "fd70::1/64"]);
    for address in ["10.70.0.2/24", "fd70::2/64"] {
        node.ip(&["address", "add", address, "dev", "nic0", "nodad"]);
    }
    let mut bench = Bench::new();
    let steering = Steering::Datagrams(Vec::new());
    let device = attach(&mut bench, 0, &AfXdpSpec { steering, ..spec(&node, "nic0") });
    let mut far = bench.pipe(1, 1 << 20);
    bench.xconnect(&[(0, 1)]);
    let steerer = device.steerer().unwrap();

    // Something like a remote shell that is open all the while, by which the node is run.
    let address: SocketAddr = "10.70.0.2:22".parse().unwrap();
    let listener = node.inside(|| TcpListener::bind(address)).unwrap();
    let mut shell = host.inside(|| TcpStream::connect(address)).unwrap();
    let mut served = listener.accept().unwrap().0;
    let mut shell_answers = || {
        let mut answer = [0; 2];
        shell.write_all(b"ls").unwrap();
        served.read_exact(&mut answer).unwrap();
        served.write_all(b"ok").unwrap();
        shell.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"ok");
    };
    shell_answers();

    for (here, steered, other) in [
        ("10.70.0.1:7001", "10.70.0.2:4789", "10.70.0.2:4790"),
        ("[fd70::1]:7001", "[fd70::2]:4789", "[fd70::2]:4790"),
    ] {
        let (sender, kernels, others) = (host.udp(here), node.udp(steered), node.udp(other));
        udp_both_ways(&sender, &kernels, &SIZES);
        steerer.add(steered.parse().unwrap()).unwrap();
        assert_eq!(steerer.destinations(), [steered.parse().unwrap()]);
        sender.send_to(b"for the port", steered).unwrap();
        let mut frames = Vec::new();
        wait_until("the datagram at the pipe", || {
            frames.extend(far.collect());
            !frames.is_empty()
        });
        assert!(frames[0].0.ends_with(b"for the port") && frames.len() == 1, "{frames:?}");
        // The kernel's neighbours, errors, other ports and fragments go on as if nobody were there.
        udp_both_ways(&sender, &others, &SIZES);
        run_in(&host, &["ping", "-c", "2", "-i", "0.01", "-w", "10", here_to_there(here)]);
        shell_answers();
        assert!(far.collect().is_empty());
        steerer.remove(steered.parse().unwrap()).unwrap();
        steerer.remove(steered.parse().unwrap()).unwrap();
        udp_both_ways(&sender, &kernels, &SIZES);
    }
    tcp_both_ways(&host, &node, "10.70.0.2:4789", MEGABYTE);
    assert!(far.collect().is_empty());
}

fn here_to_there(here: &str) -> &'static str {
    if here.starts_with('[') { "fd70::2" } else { "10.70.0.2" }
}
