//! net_pcap: what a file holds comes in byte for byte, and what goes out stands in a file byte for byte.
#![cfg(feature = "dpdk")]

mod dpdk_support;

use dpdk_support::files::{PCAP, engine, read_pcap, settings, wait_until, write_pcap};
use vwire_dataplane::DropReason;
use vwire_dataplane::burst::{Gso, Offload};
use vwire_dataplane::port::dpdk::{self, DeviceSpec, DpdkError};
use vwire_dataplane::tables::WorkerId;

fn golden() -> Vec<Vec<u8>> {
    let frame = |len: usize, i: usize| (0..len).map(|b| (b ^ (b / 251) ^ i) as u8).collect::<Vec<_>>();
    let tagged = |tags: &[[u8; 4]], len: usize| {
        let mut tagged = frame(len, tags.len());
        tagged.splice(12..12, tags.concat());
        tagged
    };
    let (vlan, outer) = ([0x81, 0, 0x20, 42], [0x88, 0xa8, 0, 7]);
    let mut golden: Vec<_> = (0..490).map(|i| frame(60 + (i * 37) % 1455, i)).collect();
    // With a header of 14 bytes, 1514 are the MTU; one tag more may be.
    golden.extend([1513, 1514, 1515, 1518].map(|len| frame(len, 0)));
    golden.extend([60, 1513, 1514].map(|len| tagged(&[vlan], len)));
    golden.extend([60, 1509, 1510].map(|len| tagged(&[outer, vlan], len)));
    golden
}

#[test]
fn a_file_is_received_as_it_is_and_what_is_sent_is_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let (read, written) = (dir.path().join("in.pcap"), dir.path().join("out.pcap"));
    write_pcap(&read, &golden());
    let (mut engine, mut far) = engine();
    let device = format!("net_pcap0,rx_pcap={},tx_pcap={}", read.display(), written.display());
    let (parts, device) = dpdk::open(PCAP, &DeviceSpec::new(device)).unwrap();
    engine.share(PCAP, std::iter::zip([WorkerId(0)], parts).collect()).unwrap();
    let mut received = Vec::new();
    wait_until("the file's frames", || {
        received.extend(far.collect().into_iter().map(|(frame, _)| frame));
        received.len() >= golden().len()
    });
    assert!(received == golden(), "they are as they were, and in order");

    let sent: Vec<Vec<u8>> = golden().into_iter().rev().collect();
    for (i, frame) in sent.iter().enumerate() {
        wait_until("room", || far.inject(frame));
        wait_until("the frame's way out", || engine.counters().port(PCAP).snapshot().tx.0 == i as u64 + 1);
    }
    let counted = engine.counters().port(PCAP).snapshot();
    assert_eq!((counted.rx.0, counted.tx.0, counted.dropped_in_all()), (500, 500, 0));

    wait_until("room", || far.inject(&vec![0; 1519]));
    wait_until("a longer one's drop", || {
        engine.counters().port(PCAP).snapshot().dropped(DropReason::TooBig) == 1
    });
    drop((engine.detach(PCAP).unwrap(), device));
    assert!(read_pcap(&written) == sent, "the file holds what was sent");
}

/// Ethernet, IPv6, UDP; the checksum is open over the pseudo header, as a kernel leaves it.
fn open_datagram(payload: usize) -> (Vec<u8>, Offload) {
    let mut frame = vec![0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2, 0x86, 0xdd];
    frame.extend([0x60, 0, 0, 0]);
    let udp = (8 + payload) as u16;
    frame.extend(udp.to_be_bytes());
    frame.extend([17, 64]);
    let addresses: Vec<u8> = (0..32_u8).map(|i| 0xfd ^ i.wrapping_mul(11)).collect();
    frame.extend(&addresses);
    frame.extend([0x12, 0xb5, 0x12, 0xb6]);
    frame.extend(udp.to_be_bytes());
    let pseudo = sum(&addresses) + u32::from(udp) + 17;
    frame.extend(fold(pseudo).to_be_bytes());
    frame.extend((0..payload).map(|i| (i * 3) as u8));
    let offload =
        Offload { needs_csum: true, gso: Gso::None, csum_start: 54, csum_offset: 6, ..Offload::default() };
    (frame, offload)
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[test]
fn an_open_checksum_of_ipv6_is_paid_before_the_frame_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    let written = dir.path().join("out.pcap");
    let (mut engine, mut far) = engine();
    let read = dir.path().join("in.pcap");
    write_pcap(&read, &[]);
    let device = format!("net_pcap1,rx_pcap={},tx_pcap={}", read.display(), written.display());
    let (parts, device) = dpdk::open(PCAP, &DeviceSpec::new(device)).unwrap();
    engine.share(PCAP, std::iter::zip([WorkerId(0)], parts).collect()).unwrap();
    for payload in [0, 1, 2, 99, 1452] {
        let (frame, offload) = open_datagram(payload);
        wait_until("room", || far.inject_with(&frame, Some(offload)));
    }
    wait_until("all five", || engine.counters().port(PCAP).snapshot().tx.0 == 5);
    drop((engine.detach(PCAP).unwrap(), device));
    for (written, payload) in read_pcap(&written).iter().zip([0, 1, 2, 99, 1452]) {
        let (sent, _) = open_datagram(payload);
        let udp = sent.len() - 54;
        let over = sum(&written[22..54]) + udp as u32 + 17 + sum(&written[54..]);
        assert_eq!(fold(over), 0xffff, "{payload} bytes: the sum over everything");
        assert!(written[..60] == sent[..60] && written[62..] == sent[62..], "nothing else is changed");
    }
}

#[test]
fn more_queues_than_the_driver_has_are_refused_with_its_limit() {
    assert!(dpdk::configure(&settings()));
    let dir = tempfile::tempdir().unwrap();
    let read = dir.path().join("in.pcap");
    write_pcap(&read, &[]);
    let device = format!("net_pcap2,rx_pcap={}", read.display());
    let refused =
        dpdk::open(PCAP, &DeviceSpec { queues: 2, ..DeviceSpec::new(&device) }).map(drop).unwrap_err();
    let limit = DpdkError::Limit {
        device: "net_pcap2".into(),
        what: "queues",
        asked: 2,
        driver: "net_pcap".into(),
        low: 1,
        high: 1,
    };
    assert_eq!(refused, limit);
    assert_eq!(limit.to_string(), "device net_pcap2: queues is 2, but its driver net_pcap allows 1 to 1");
    let nothing = dir.path().join("nothing.pcap");
    let missing = dpdk::open(PCAP, &DeviceSpec::new(format!("net_pcap2,rx_pcap={}", nothing.display())));
    let said = missing.map(drop).unwrap_err().to_string();
    assert!(said.contains("can't be probed") && said.contains("nothing.pcap"), "{said}");
    drop(dpdk::open(PCAP, &DeviceSpec::new(device)).unwrap());
}
