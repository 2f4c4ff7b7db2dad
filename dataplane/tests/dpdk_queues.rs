//! DPDK ports whose queues several workers share: each worker polls its queues and sends by one of its own, no frame is lost or
//! counted twice between them, and the port comes and goes as a whole.
#![cfg(feature = "dpdk")]

mod dpdk_support;
mod kernel_support;
mod support;

use std::net::UdpSocket;

use dpdk_support::{Process, dpdk, dpdk_port, pair};
use kernel_support::hosts::{address, answers, traffic, veth};
use kernel_support::{Netns, tcp_both_ways};
use support::{join, part, pipe, remove, set};
use tonic::Code;
use vwire_proto::dataplane::v1 as pb;

/// Two workers, on two cores, and buffers for the queues of all.
const TWO: &str = "[workers]\ncores = [0, 1]\n[dpdk]\nhuge_pages = false\nmemory = 256\nbuffers = 32768\n";

/// A port on `device` with so many queues, for so many workers.
fn spread(device: &str, queues: u32, workers: u32) -> String {
    format!("{}\nqueues = {queues}\nworkers = {workers}", dpdk(device))
}

fn spread_port(name: &str, device: &str, queues: u32, workers: u32) -> pb::Port {
    let kind = pb::DpdkPort { device: device.into(), queues, workers, ..Default::default() };
    pb::Port { name: name.into(), kind: Some(pb::port::Kind::Dpdk(kind)), ..Default::default() }
}

fn each_queue(stats: &pb::PortStats, what: &str, queues: u32) -> Vec<u64> {
    (0..queues).map(|queue| stats.device[&format!("{what}_q{queue}_packets")]).collect()
}

/// Port `a` on a veth, whose other end is host 1's, and port `t` on a tap of host 2, which is where the engine runs; shared, both.
fn veth_and_tap() -> (Netns, Netns, Process) {
    let (engine, host) = (Netns::new(), Netns::new());
    veth(&engine, "e0", &host, "h0", 1);
    let ports = pair(
        "a",
        &spread("net_af_packet0,iface=e0,qpairs=2", 2, 2),
        "t",
        &spread("net_tap0,iface=dtap0", 2, 2),
    );
    let process = Process::started(Some(&engine.name), &format!("{TWO}{ports}"));
    address(&engine, "dtap0", 2);
    (engine, host, process)
}

#[test]
fn each_worker_polls_its_queues_and_sends_by_its_own() {
    let ports = pair("a", &spread("net_null0", 4, 2), "b", &spread("net_null1", 2, 2));
    let mut process = Process::started(None, &format!("{TWO}{ports}"));
    process.wait_stats("a", |stats| each_queue(stats, "rx", 4).iter().all(|packets| *packets > 10_000));
    process.wait_stats("b", |stats| each_queue(stats, "rx", 2).iter().all(|packets| *packets > 10_000));
    // What a worker received it sent itself, as it lay, by its own queue.
    let stats =
        process.wait_stats("b", |stats| each_queue(stats, "tx", 2).iter().all(|packets| *packets > 10_000));
    assert_eq!((stats.worker, &stats.workers[..]), (Some(0), &[0, 1][..]));
    assert_eq!(stats.device["vwire_tx_copied_bytes"], 0, "{stats:?}");
    // What came before the tables named the ports had nowhere to go.
    assert!(stats.drops.keys().all(|reason| reason == "no_egress"), "{stats:?}");
}

/// The kernel behind net_tap spreads flows over its queues, as a NIC does by RSS; and net_af_packet's sockets get theirs by the
/// kernel's fan-out.
#[test]
fn flows_of_two_kernels_pass_over_all_queues() {
    let (engine, host, mut process) = veth_and_tap();
    traffic(&host, &engine, 1500, true);
    for port in 6000..6016 {
        tcp_both_ways(&host, &engine, &format!("10.71.0.2:{port}"), 50_000);
    }
    for port in ["a", "t"] {
        let stats = process.stats(port);
        for what in ["rx", "tx"] {
            let queues = each_queue(&stats, what, 2);
            assert!(queues.iter().all(|packets| *packets > 10), "{port} {what}: {stats:?}");
        }
    }
}

/// Datagrams that one kernel sends by many flows, to be counted one by one at the other.
#[test]
fn every_frame_of_every_flow_is_forwarded_once_and_counted_once() {
    const FLOWS: usize = 32;
    const EACH: usize = 50;
    let (engine, host) = (Netns::new(), Netns::new());
    veth(&engine, "e0", &host, "h0", 1);
    let ports = pair("a", &dpdk("net_af_packet0,iface=e0"), "t", &spread("net_tap0,iface=dtap0", 4, 2));
    let mut process = Process::started(Some(&engine.name), &format!("{TWO}{ports}"));
    address(&engine, "dtap0", 2);
    answers(&host);
    let before = [process.stats("t").rx_packets, process.stats("a").tx_packets];
    let senders: Vec<UdpSocket> =
        (0..FLOWS).map(|flow| engine.udp(&format!("10.71.0.2:{}", 9000 + flow))).collect();
    let to = host.udp("10.71.0.1:9999");
    let mut seen = vec![0; FLOWS];
    let mut buffer = [0; 16];
    for round in 0..EACH {
        senders
            .iter()
            .for_each(|sender| assert_eq!(sender.send_to(&[round as u8], "10.71.0.1:9999").unwrap(), 1));
        // A flow's datagrams stay in order, whichever worker has it.
        for _ in 0..FLOWS {
            let (_, from) = to.recv_from(&mut buffer).expect("each is delivered");
            let flow = usize::from(from.port()) - 9000;
            assert_eq!(usize::from(buffer[0]), seen[flow], "of flow {flow}");
            seen[flow] += 1;
        }
    }
    assert!(seen.iter().all(|seen| *seen == EACH));
    to.set_nonblocking(true).unwrap();
    assert!(to.recv_from(&mut buffer).is_err(), "nothing came twice");
    let sent = (FLOWS * EACH) as u64;
    // ARP and the like pass, too.
    let stats = process.wait_stats("a", |stats| stats.tx_packets >= before[1] + sent);
    assert!(stats.tx_packets <= before[1] + sent + 40, "{stats:?}");
    let stats = process.stats("t");
    assert!((sent..sent + 40).contains(&(stats.rx_packets - before[0])), "{stats:?}");
    assert_eq!(each_queue(&stats, "rx", 4).iter().sum::<u64>(), stats.rx_packets, "{stats:?}");
    assert!(each_queue(&stats, "rx", 4).iter().filter(|packets| **packets > 0).count() >= 2, "{stats:?}");
}

/// A shared port in a routing domain: whichever worker receives a packet, it finds the way, asks for the next hop and answers.
#[test]
fn packets_of_all_queues_are_routed() {
    let (engine, other) = (Netns::new(), Netns::new());
    let domain = format!(
        "[[port]]\nname = \"t\"\n{}\n[[port]]\nname = \"k\"\nkind = \"kernel\"\nifname = \"k0\"\nnetns = \"/run/netns/{}\"\n\
         addresses = [\"10.72.1.2/32\"]\n[[domain]]\nname = \"net\"\ngateways = [\"10.72.0.1\"]\n\
         [[domain.port]]\nport = \"t\"\n[[domain.port]]\nport = \"k\"\n\
         [[domain.route]]\nprefix = \"10.72.2.2/32\"\nport = \"t\"\n[[domain.route]]\nprefix = \"10.72.1.2/32\"\nport = \"k\"\n",
        spread("net_tap0,iface=dtap0", 2, 2),
        other.name
    );
    let mut process = Process::started(Some(&engine.name), &format!("{TWO}{domain}"));
    engine.ip(&["link", "set", "dtap0", "up"]);
    engine.ip(&["addr", "add", "10.72.2.2/32", "dev", "dtap0"]);
    for (host, interface) in [(&engine, "dtap0"), (&other, "k0")] {
        host.ip(&["route", "add", "10.72.0.1", "dev", interface]);
        host.ip(&["route", "add", "10.72.0.0/16", "via", "10.72.0.1"]);
    }
    for port in 6000..6016 {
        tcp_both_ways(&engine, &other, &format!("10.72.1.2:{port}"), 50_000);
        tcp_both_ways(&other, &engine, &format!("10.72.2.2:{port}"), 50_000);
    }
    let stats = process.stats("t");
    assert!(each_queue(&stats, "rx", 2).iter().all(|packets| *packets > 10), "{stats:?}");
    assert_eq!(stats.workers.len(), 2);
    for port in ["t", "k"] {
        let drops = process.stats(port).drops;
        let wrong = ["spoofed_source", "no_route", "no_neighbour", "bad_offload"];
        assert!(wrong.iter().all(|reason| !drops.contains_key(*reason)), "{port}: {drops:?}");
    }
}

#[test]
fn a_shared_port_comes_and_goes_under_traffic_and_leaves_nothing() {
    let flood = pair("x", &dpdk("net_null8"), "y", &dpdk("net_null9"));
    let mut process = Process::started(None, &format!("{TWO}{flood}"));
    let mut usual = (0, 0);
    for round in 0..300 {
        let ops = vec![
            set(spread_port("a", "net_null0", 4, 2)),
            set(spread_port("b", "net_null1", 2, 2)),
            join("a", "b"),
        ];
        process.apply(ops).unwrap();
        process.wait_stats("b", |stats| stats.tx_packets > 100);
        process.apply(vec![part("a", "b"), remove("a"), remove("b")]).unwrap();
        let now = (open_descriptors_of(process.pid()), threads_of(process.pid()));
        if round == 20 {
            usual = now;
        }
        assert!(round < 20 || now == usual, "round {round}: {now:?}, not {usual:?}");
    }
    process.wait_stats("x", |stats| stats.tx_packets > 0);
}

fn open_descriptors_of(process: u32) -> usize {
    std::fs::read_dir(format!("/proc/{process}/fd")).unwrap().count()
}

fn threads_of(process: u32) -> usize {
    std::fs::read_dir(format!("/proc/{process}/task")).unwrap().count()
}

#[test]
fn a_shared_device_that_vanishes_is_a_fault_of_the_whole_port() {
    let (engine, host, mut process) = veth_and_tap();
    answers(&host);
    engine.ip(&["link", "del", "e0"]);
    let link = process.wait_link("a", false);
    assert!(link.reason.contains("the device was removed"), "{link:?}");
    assert!(process.stats("a").workers.is_empty() && process.link("t").up);
    veth(&engine, "e0", &host, "h2", 1);
    process.apply(vec![set(dpdk_port("a", "net_af_packet2,iface=e0"))]).unwrap();
    answers(&host);
}

#[test]
fn what_cannot_be_shared_is_refused_with_the_reason() {
    let mut process = Process::started(None, TWO);
    process.apply(vec![set(pipe("p", "p"))]).unwrap();
    for (port, code, expected) in [
        (spread_port("a", "net_null0", 2, 3), Code::InvalidArgument, "workers: 3 can't share 2 queues"),
        (spread_port("a", "net_null0", 4, 3), Code::InvalidArgument, "workers is 3, but the engine has 2"),
        (spread_port("a", "net_null0", 16, 65), Code::InvalidArgument, "workers can be 1 to 64, not 65"),
    ] {
        let refused = process.apply(vec![set(port)]).unwrap_err();
        assert!(refused.message().contains(expected) && refused.code() == code, "{refused:?}");
    }
    process.apply(vec![set(spread_port("a", "net_null0", 2, 2))]).unwrap();
    // The pipe's worker has one port already, so the other is the home.
    assert_eq!(process.stats("a").workers, [1, 0]);
}
