//! DPDK ports on virtual devices that need nothing outside the process: frames move, uncopied between ports of one pool; what
//! can't be had is refused with the reason; and nothing is left behind.
#![cfg(feature = "dpdk")]

mod support;

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use support::{Rig, collect, frame, join, open_descriptors, part, pipe, remove, run, set};
use tonic::Code;
use vwire_dataplane::port::PortIndex;
use vwire_dataplane::port::dpdk::{self, DeviceSpec, LinkState};
use vwire_proto::dataplane::v1 as pb;

/// Every test of this file has the same, since there is one EAL in a process.
const DPDK: &str = "[dpdk]\nhuge_pages = false\nmemory = 256\n";

fn port(name: &str, dpdk: pb::DpdkPort) -> pb::Port {
    pb::Port { name: name.into(), kind: Some(pb::port::Kind::Dpdk(dpdk)), ..Default::default() }
}

fn on(device: impl Into<String>) -> pb::DpdkPort {
    pb::DpdkPort { device: device.into(), ..Default::default() }
}

/// A name that no other test of this process uses.
fn device(driver: &str) -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{driver}{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Held by the test that asks for more memory than there is, and by the one that never expects to be refused any: while the EAL finds
/// out that it has not enough, it has none for others.
static MEMORY: Mutex<()> = Mutex::new(());

/// Two devices that receive without end, cross-connected.
async fn flood(rig: &mut Rig, buffers: u32) {
    let null = || pb::DpdkPort { buffers, ..on(device("net_null")) };
    let ops = vec![set(port("a", null())), set(port("b", null())), join("a", "b")];
    rig.apply(ops).await.unwrap();
}

#[test]
fn between_two_ports_of_one_pool_no_byte_is_copied() {
    run(async {
        let mut rig = Rig::with(DPDK).await;
        flood(&mut rig, 0).await;
        for name in ["a", "b"] {
            let stats = rig.wait_stats(name, |stats| stats.device["vwire_tx_taken_packets"] > 100_000).await;
            assert_eq!(stats.device["vwire_tx_copied_bytes"], 0, "{stats:?}");
            // Until the cross-connect was in force there was no way out.
            assert!(stats.drops.keys().all(|reason| reason == "no_egress"), "{stats:?}");
            assert!(stats.device["rx_good_packets"] > 100_000, "the driver's own counters: {stats:?}");
        }
        rig.dataplane.stop().await;
    });
}

#[test]
fn between_ports_with_pools_of_their_own_a_frame_is_copied_once() {
    run(async {
        let mut rig = Rig::with(DPDK).await;
        flood(&mut rig, 2048).await;
        let sent = rig.wait_stats("a", |stats| stats.tx_packets > 10_000).await.tx_bytes;
        // The device's counters are read before the port's, while frames go: what was sent by then was copied by a later reading.
        let stats = rig.wait_stats("a", |stats| stats.device["vwire_tx_copied_bytes"] >= sent).await;
        assert_eq!(stats.device["vwire_tx_taken_packets"], 0, "{stats:?}");
        assert!(stats.drops.keys().all(|reason| reason == "no_egress"), "{stats:?}");
        rig.dataplane.stop().await;
    });
}

#[test]
fn every_queue_of_a_device_is_polled() {
    run(async {
        let mut rig = Rig::with(DPDK).await;
        let two = pb::DpdkPort { queues: 2, ..on(device("net_null")) };
        let ops = vec![set(port("a", two)), set(port("b", on(device("net_null")))), join("a", "b")];
        rig.apply(ops).await.unwrap();
        for queue in ["rx_q0_packets", "rx_q1_packets"] {
            rig.wait_stats("a", |stats| stats.device[queue] > 1000).await;
        }
        rig.dataplane.stop().await;
    });
}

#[test]
fn while_a_port_is_captured_its_frames_are_copied_so_that_the_capture_sees_them() {
    run(async {
        let mut rig = Rig::with(DPDK).await;
        flood(&mut rig, 0).await;
        let request = pb::StreamCaptureRequest { port: "a".into(), snap_len: 64, ring_bytes: 1 << 16 };
        let mut capture = rig.client.stream_capture(request).await.unwrap().into_inner();
        assert!(capture.message().await.unwrap().is_some(), "the capture's own header");
        rig.wait_stats("a", |stats| stats.device["vwire_tx_copied_bytes"] > 0).await;
        drop(capture);
        rig.dataplane.stop().await;
    });
}

/// A device whose transmit queue is its receive queue.
async fn looped(rig: &mut Rig, name: &str, pipe_: &str, dpdk: pb::DpdkPort) {
    let ops = vec![set(pipe(&format!("{name}-pipe"), pipe_)), set(port(name, dpdk))];
    rig.apply(ops).await.unwrap();
    rig.apply(vec![join(&format!("{name}-pipe"), name)]).await.unwrap();
}

#[test]
fn what_a_device_gets_is_what_was_sent_and_what_it_gives_arrives() {
    run(async {
        let mut rig = Rig::with(DPDK).await;
        looped(&mut rig, "ring", "p", on(device("net_ring"))).await;
        let mut far = rig.far_end("p");
        for _ in 0..20 {
            let sent: Vec<_> = (0..50).map(frame).collect();
            sent.iter().for_each(|frame| assert!(far.inject(frame)));
            assert_eq!(collect(&mut far, sent.len()).await, sent);
        }
        let stats = rig.wait_stats("ring", |stats| stats.rx_packets == 1000).await;
        let copied = stats.device["vwire_tx_copied_bytes"];
        assert_eq!((stats.tx_packets, stats.tx_bytes), (1000, copied), "once each: {stats:?}");
        assert!(stats.drops.is_empty(), "{stats:?}");
        rig.dataplane.stop().await;
    });
}

#[test]
fn a_frame_up_to_the_mtu_passes_and_a_longer_one_is_counted_as_too_big() {
    run(async {
        let mut rig = Rig::with(DPDK).await;
        looped(&mut rig, "ring", "p", pb::DpdkPort { mtu: 1600, ..on(device("net_ring")) }).await;
        let mut far = rig.far_end("p");
        let frame = |len: usize| -> Vec<u8> { (0..len).map(|i| i as u8).collect() };
        // The MTU, an Ethernet header, and one VLAN tag.
        for len in [60, 1614, 1618] {
            assert!(far.inject(&frame(len)));
            assert_eq!(collect(&mut far, 1).await, [frame(len)]);
        }
        assert!(far.inject(&frame(1619)));
        let stats = rig.wait_stats("ring", |stats| !stats.drops.is_empty()).await;
        assert_eq!(stats.drops, [("too_big".to_owned(), 1)].into());
        rig.dataplane.stop().await;
    });
}

#[test]
fn a_frame_longer_than_a_buffer_lies_in_several() {
    run(async {
        let mut rig = Rig::with(DPDK).await;
        // A buffer holds 2048 bytes, and this driver can chain them.
        looped(&mut rig, "ring", "p", pb::DpdkPort { mtu: 9000, ..on(device("net_ring")) }).await;
        let mut far = rig.far_end("p");
        for len in [2047, 2048, 2049, 4096, 4097, 9014] {
            let frame: Vec<u8> = (0..len).map(|i: usize| (i * 7) as u8).collect();
            assert!(far.inject(&frame));
            assert_eq!(collect(&mut far, 1).await, [frame]);
        }
        assert!(rig.stats("ring").await.drops.is_empty());
        rig.dataplane.stop().await;
    });
}

#[test]
fn under_overload_every_frame_comes_back_or_is_counted() {
    run(async {
        let mut rig = Rig::with(DPDK).await;
        let ring = device("net_ring");
        let ops = vec![set(pipe("pipe", "p")), set(port("ring", on(&ring))), join("pipe", "ring")];
        rig.apply(ops).await.unwrap();
        let mut far = rig.far_end("p");
        let sent = 5000;
        let mut gone = 0;
        for i in 0..sent {
            while !far.inject(&frame(i)) {
                gone += far.collect().len();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut dropped = 0;
        while gone + dropped != sent {
            assert!(
                Instant::now() < deadline,
                "of {sent} frames {gone} came back and {dropped} were counted"
            );
            let (ring, pipe) = (rig.stats("ring").await, rig.stats("pipe").await);
            gone += far.collect().len();
            dropped = ring.drops.values().chain(pipe.drops.values()).sum::<u64>() as usize;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        rig.dataplane.stop().await;
    });
}

#[test]
fn what_cannot_be_had_is_refused_with_the_reason_and_disturbs_nobody() {
    let _memory = MEMORY.lock().unwrap_or_else(PoisonError::into_inner);
    run(async {
        let mut rig = Rig::with(DPDK).await;
        let ring = device("net_ring");
        looped(&mut rig, "good", "p", on(&ring)).await;
        let mut far = rig.far_end("p");
        for (wrong, code, expected) in [
            (on("net_nonsense0"), Code::FailedPrecondition, vec!["\"net_nonsense0\" can't be probed"]),
            (on("0000:ff:1f.7"), Code::FailedPrecondition, vec!["\"0000:ff:1f.7\" can't be probed"]),
            (
                on(format!("{},nonsense=1", device("net_null"))),
                Code::FailedPrecondition,
                vec!["can't be probed", "nonsense"],
            ),
            (
                on(format!("{},iface=vw-no-such-if", device("net_af_packet"))),
                Code::FailedPrecondition,
                vec!["can't be probed", "vw-no-such-if"],
            ),
            (
                pb::DpdkPort { mtu: 9000, ..on(device("net_null")) },
                Code::InvalidArgument,
                vec!["frames of mtu 9000 do not fit into buffers of 2048 bytes", "buffer_size to 9018"],
            ),
            (
                pb::DpdkPort { buffers: 1000, ..on(device("net_null")) },
                Code::ResourceExhausted,
                vec!["its own pool", "raise the port's buffers"],
            ),
            (
                pb::DpdkPort { rx_descriptors: 32_000, ..on(device("net_null")) },
                Code::ResourceExhausted,
                vec!["the ports' pool", "raise [dpdk] buffers"],
            ),
            (
                pb::DpdkPort { buffers: 10_000_000, ..on(device("net_null")) },
                Code::ResourceExhausted,
                vec!["no memory for a pool of 10000000 buffers", "raise [dpdk] memory"],
            ),
        ] {
            let status = rig.apply(vec![set(port("wrong", wrong.clone()))]).await.expect_err(&wrong.device);
            let said = status.message();
            assert!(expected.iter().all(|part| said.contains(part)), "{wrong:?}: {said}");
            assert_eq!(status.code(), code, "{wrong:?}: {said}");
            assert!(far.inject(&frame(1)));
            assert_eq!(collect(&mut far, 1).await, [frame(1)], "after {wrong:?}");
        }
        let twice = rig.apply(vec![set(port("twice", on(format!("{ring},size=1"))))]).await;
        let said = format!("ports good and twice both want DPDK device {ring}");
        assert!(twice.unwrap_err().message().contains(&said));
        let no_name = rig.apply(vec![set(port("none", on("")))]).await.unwrap_err();
        assert!(no_name.message().contains("dpdk.device: a device is a PCI address"), "{no_name:?}");
        assert_eq!(rig.stats("good").await.drops, Default::default());
        rig.dataplane.stop().await;
    });
}

#[test]
fn a_port_is_replaced_on_the_same_device_and_reads_back_as_it_was_set() {
    run(async {
        let mut rig = Rig::with(DPDK).await;
        let ring = device("net_ring");
        looped(&mut rig, "ring", "p", on(&ring)).await;
        let other = pb::DpdkPort {
            device: ring,
            queues: 1,
            workers: 1,
            rx_descriptors: 128,
            tx_descriptors: 256,
            mtu: 1000,
            not_promiscuous: true,
            buffers: 2000,
        };
        rig.apply(vec![set(port("ring", other.clone()))]).await.unwrap();
        let state = rig.snapshot().await.state.unwrap();
        let is = state.ports.into_iter().find(|port| port.name == "ring").unwrap().kind;
        assert_eq!(is, Some(pb::port::Kind::Dpdk(other)));
        let mut far = rig.far_end("p");
        assert!(far.inject(&frame(3)));
        assert_eq!(collect(&mut far, 1).await, [frame(3)]);
        rig.dataplane.stop().await;
    });
}

/// Resident memory of this process in KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn ten_thousand_ports_come_and_go_and_leave_nothing() {
    let _memory = MEMORY.lock().unwrap_or_else(PoisonError::into_inner);
    run_long(async {
        let mut rig = Rig::with(DPDK).await;
        // Keeps the pool, and says how many of its buffers are out.
        let (parts, keeper) = dpdk::open(PortIndex(4000), &DeviceSpec::new(device("net_null"))).unwrap();
        assert!(matches!(keeper.link(), LinkState::Up(_)));
        rig.apply(vec![set(pipe("pipe", "p"))]).await.unwrap();
        let (null, mut before) = (device("net_null"), None);
        for round in 0..10_000 {
            rig.apply(vec![set(port("null", on(&null))), join("pipe", "null")]).await.unwrap();
            if round % 100 == 0 {
                rig.wait_stats("null", |stats| stats.rx_packets > 0).await;
            }
            rig.apply(vec![part("pipe", "null"), remove("null")]).await.unwrap();
            if round == 1000 {
                before = Some((open_descriptors(), resident(), keeper.buffers().0));
            }
        }
        let (descriptors, memory, buffers) = before.unwrap();
        assert_eq!(open_descriptors(), descriptors);
        assert_eq!(keeper.buffers().0, buffers, "buffers of the pool");
        let grown = resident().saturating_sub(memory);
        assert!(grown < 8 << 10, "{grown} KiB more after 9000 rounds");
        drop((parts, keeper));
        rig.dataplane.stop().await;
    });
}

fn run_long<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(300), test).await.expect("within five minutes")
    })
}
