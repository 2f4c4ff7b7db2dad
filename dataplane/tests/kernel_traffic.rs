//! Real traffic of real kernels through kernel interfaces. Needs root.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use memif::Lent;
use vwire_dataplane::DropReason;
use vwire_dataplane::burst::{Burst, Gso, Offload};
use vwire_dataplane::offload::each_plain;
use vwire_dataplane::port::PortIndex;
use vwire_dataplane::port::kernel::{self, KernelDevice, KernelSpec, Kind};
use vwire_dataplane::port::pipe::PipeEnd;
use vwire_dataplane::tables::WorkerId;

mod kernel_support;
use kernel_support::{Bench, Netns, spec, tcp_both_ways, udp_both_ways, wait_until};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const PEER_MAC: &str = "02:00:00:00:00:02";
const MEGABYTE: usize = 1 << 20;

/// One namespace with an interface whose frames end at a pipe.
fn kernel_and_pipe(kind: Kind) -> (Netns, Bench, PipeEnd, KernelDevice) {
    let netns = Netns::new();
    let mut bench = Bench::new();
    let mac = (kind == Kind::Tap).then_some(MAC);
    let device = bench.kernel(0, &KernelSpec { mac, kind, ..spec(&netns, "nsm-1", &["10.62.0.1/24"]) });
    let far = bench.pipe(1, 1 << 20);
    bench.xconnect(&[(0, 1)]);
    if kind == Kind::Tap {
        netns.ip(&["neigh", "add", "10.62.0.2", "lladdr", PEER_MAC, "dev", "nsm-1", "nud", "permanent"]);
    }
    (netns, bench, far, device)
}

/// The plain frames that a frame stands for.
fn plain(frame: &[u8], offload: Option<Offload>) -> Vec<Vec<u8>> {
    let mut burst = Burst::new(PortIndex(0));
    assert!(burst.push_with(&[Lent::from(frame)], offload));
    let (_, frames) = burst.runs().next().unwrap();
    let mut all = Vec::new();
    each_plain(&frames, &frames.as_slice()[0], |views| {
        all.push(views.iter().flat_map(Lent::to_vec).collect());
        true
    })
    .unwrap();
    all
}

/// The UDP payload of the first frame that has the destination port 7002.
fn await_datagram(far: &mut PipeEnd, parse: fn(&[u8]) -> Option<SlicedPacket<'_>>) -> Vec<u8> {
    let mut found = None;
    wait_until("the datagram at the pipe", || {
        for (frame, offload) in far.collect() {
            let frame = plain(&frame, offload).remove(0);
            if let Some(SlicedPacket { transport: Some(TransportSlice::Udp(udp)), .. }) = parse(&frame)
                && udp.destination_port() == 7002
            {
                let checksum =
                    udp.to_header().calc_checksum_ipv4_raw([10, 62, 0, 1], [10, 62, 0, 2], udp.payload());
                assert_eq!(Ok(udp.checksum()), checksum, "the open checksum was completed");
                found = Some(udp.payload().to_vec());
            }
        }
        found.is_some()
    });
    found.unwrap()
}

#[test]
fn a_datagram_leaves_the_kernel_and_the_answer_reaches_the_socket() {
    let (netns, _bench, mut far, _device) = kernel_and_pipe(Kind::Tap);
    let socket = netns.udp("10.62.0.1:7001");
    socket.send_to(b"are you there", "10.62.0.2:7002").unwrap();
    assert_eq!(await_datagram(&mut far, |frame| SlicedPacket::from_ethernet(frame).ok()), b"are you there");

    let packet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 2], MAC).ipv4([10, 62, 0, 2], [10, 62, 0, 1], 64);
    let mut answer = Vec::new();
    packet.udp(7002, 7001).write(&mut answer, b"yes").unwrap();
    assert!(far.inject(&answer));
    let mut buffer = [0; 64];
    assert_eq!(socket.recv(&mut buffer).unwrap(), 3);
}

#[test]
fn an_ip_interface_carries_packets_without_link_headers_and_refuses_what_is_not_ip() {
    let (netns, bench, mut far, _device) = kernel_and_pipe(Kind::Tun);
    let socket = netns.udp("10.62.0.1:7001");
    socket.send_to(b"are you there", "10.62.0.2:7002").unwrap();
    assert_eq!(await_datagram(&mut far, |packet| SlicedPacket::from_ip(packet).ok()), b"are you there");

    let mut answer = Vec::new();
    let packet = PacketBuilder::ipv4([10, 62, 0, 2], [10, 62, 0, 1], 64).udp(7002, 7001);
    packet.write(&mut answer, b"yes").unwrap();
    assert!(far.inject(&[0xf5; 40]) && far.inject(&answer));
    let mut buffer = [0; 64];
    assert_eq!(socket.recv(&mut buffer).unwrap(), 3);
    assert_eq!(bench.engine.counters().port(PortIndex(0)).snapshot().dropped(DropReason::NotIp), 1);
}

#[test]
fn offloads_that_the_kernel_refuses_are_counted() {
    let (_netns, bench, mut far, _device) = kernel_and_pipe(Kind::Tap);
    let lie = Offload { needs_csum: true, csum_start: 500, csum_offset: 16, ..Offload::default() };
    assert!(far.inject_with(&[0; 60], Some(lie)));
    let lie = Offload {
        gso: Gso::Tcp4,
        gso_size: 0,
        needs_csum: true,
        csum_start: 34,
        csum_offset: 16,
        hdr_len: 54,
    };
    assert!(far.inject_with(&[0; 600], Some(lie)));
    wait_until("both are refused", || {
        bench.engine.counters().port(PortIndex(0)).snapshot().dropped(DropReason::KernelRefused) == 2
    });
}

#[test]
fn frames_for_an_interface_that_is_down_are_dropped_as_such() {
    let (netns, bench, mut far, _device) = kernel_and_pipe(Kind::Tap);
    netns.ip(&["link", "set", "nsm-1", "down"]);
    assert!(far.inject(&[0; 60]));
    let counters = bench.engine.counters().port(PortIndex(0));
    wait_until("it is refused", || counters.snapshot().dropped(DropReason::EgressDown) == 1);
    netns.ip(&["link", "set", "nsm-1", "up"]);
    assert!(far.inject(&[0; 60]));
    wait_until("the next is taken", || counters.snapshot().tx.0 == 1);
}

#[test]
fn two_kernels_exchange_datagrams_and_streams_through_one_engine() {
    let (a, b) = (Netns::new(), Netns::new());
    let mut bench = Bench::new();
    let _devices = [
        bench.kernel(0, &spec(&a, "nsm-1", &["10.63.0.1/24", "fd63::1/64"])),
        bench.kernel(1, &spec(&b, "nsm-1", &["10.63.0.2/24", "fd63::2/64"])),
    ];
    bench.xconnect(&[(0, 1)]);
    let sizes = [0, 1, 22, 512, 1471, 1472, 1473, 9000, 60_000];
    udp_both_ways(&a.udp("10.63.0.1:7000"), &b.udp("10.63.0.2:7000"), &sizes);
    udp_both_ways(&a.udp("[fd63::1]:7000"), &b.udp("[fd63::2]:7000"), &sizes);
    tcp_both_ways(&a, &b, "10.63.0.2:7001", 16 * MEGABYTE);
    tcp_both_ways(&a, &b, "[fd63::2]:7001", 16 * MEGABYTE);
    for port in [PortIndex(0), PortIndex(1)] {
        let snapshot = bench.engine.counters().port(port).snapshot();
        // The kernel's first multicast frames come before the ports are joined.
        let drops = snapshot.dropped_in_all() - snapshot.dropped(DropReason::NoEgress);
        assert_eq!(drops, 0, "{port}: {snapshot:?}");
        assert!(snapshot.rx.1 > 32 * MEGABYTE as u64);
        assert!(snapshot.rx.1 / snapshot.rx.0 > 3000, "TCP frames stay large: {snapshot:?}");
    }
}

#[test]
fn interfaces_with_several_queues_and_adopted_ones_carry_traffic() {
    let (a, b) = (Netns::new(), Netns::new());
    let mut bench = Bench::new();
    let _several = bench.kernel(0, &KernelSpec { queues: 3, ..spec(&a, "nsm-1", &["10.65.0.1/24"]) });
    let (parts, theirs) = kernel::open(PortIndex(1), &spec(&b, "nsm-1", &["10.65.0.2/24"])).unwrap();
    let (adopted, _device) =
        kernel::adopt(PortIndex(1), theirs.queue().try_clone_to_owned().unwrap()).unwrap();
    drop((parts, theirs));
    bench.engine.attach(PortIndex(1), WorkerId(0), adopted).unwrap();
    bench.xconnect(&[(0, 1)]);
    // Many flows, so that the kernel uses all queues.
    for port in 7100..7132 {
        udp_both_ways(&a.udp(&format!("10.65.0.1:{port}")), &b.udp(&format!("10.65.0.2:{port}")), &[100]);
    }
    tcp_both_ways(&a, &b, "10.65.0.2:7001", 4 * MEGABYTE);
}

/// Passes frames from one pipe to the other as a wire would: plain, and none longer than `longest`.
fn relay(from: &mut PipeEnd, to: &mut PipeEnd, longest: usize) -> u64 {
    let mut frames = 0;
    for (frame, offload) in from.collect() {
        for frame in plain(&frame, offload) {
            assert!(frame.len() <= longest, "{} bytes on the wire", frame.len());
            SlicedPacket::from_ethernet(&frame).expect("a well-formed packet");
            // A full pipe loses frames, as wires do; TCP sends them again.
            frames += u64::from(to.inject(&frame));
        }
    }
    frames
}

fn received_packets(netns: &Netns) -> u64 {
    let shown = netns.inside(|| std::fs::read_to_string("/proc/thread-self/net/dev")).unwrap();
    let line = shown.lines().find(|line| line.contains("nsm-1:")).unwrap();
    line.split_whitespace().nth(2).unwrap().parse().unwrap()
}

#[test]
fn large_frames_are_cut_for_a_wire_and_joined_again_behind_it() {
    let (a, b) = (Netns::new(), Netns::new());
    let mut bench = Bench::new();
    let _devices = [
        bench.kernel(0, &spec(&a, "nsm-1", &["10.64.0.1/24", "fd64::1/64"])),
        bench.kernel(1, &spec(&b, "nsm-1", &["10.64.0.2/24", "fd64::2/64"])),
    ];
    let (mut wire_a, mut wire_b) = (bench.pipe(2, 1 << 22), bench.pipe(3, 1 << 22));
    bench.xconnect(&[(0, 2), (1, 3)]);
    let (done, frames) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let moved = relay(&mut wire_a, &mut wire_b, 1514) + relay(&mut wire_b, &mut wire_a, 1514);
                frames.fetch_add(moved, Ordering::Relaxed);
                if moved == 0 {
                    std::thread::sleep(std::time::Duration::from_micros(100));
                }
            }
        });
        // The relay ends whatever becomes of the transfers.
        let _stop = Stop(&done);
        udp_both_ways(&a.udp("10.64.0.1:7000"), &b.udp("10.64.0.2:7000"), &[1, 1472, 9000]);
        tcp_both_ways(&a, &b, "10.64.0.2:7001", 8 * MEGABYTE);
        tcp_both_ways(&a, &b, "[fd64::2]:7001", 8 * MEGABYTE);
    });
    let sent = bench.engine.counters().port(PortIndex(1)).snapshot().tx.0;
    assert!(received_packets(&b) * 2 < sent, "{sent} frames became {}", received_packets(&b));
    assert!(frames.load(Ordering::Relaxed) > (32 * MEGABYTE / 1448) as u64);
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
