//! net_pcap on files that are not as they should be: refused with what is wrong, or read as far as they go.
#![cfg(feature = "dpdk")]

mod dpdk_support;

use std::path::Path;

use dpdk_support::files::{PCAP, Record, engine, settings, wait_until, write_pcap, write_records};
use vwire_dataplane::DropReason;
use vwire_dataplane::port::dpdk::{self, DeviceSpec};
use vwire_dataplane::tables::WorkerId;

fn frame(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i ^ (i / 251) ^ len) as u8).collect()
}

/// Why the device can't be had.
fn refused(device: String) -> String {
    dpdk::open(PCAP, &DeviceSpec::new(device)).map(drop).unwrap_err().to_string()
}

#[test]
fn what_is_no_capture_is_refused_with_what_is_wrong() {
    assert!(dpdk::configure(&settings()));
    let dir = tempfile::tempdir().unwrap();
    let (file, place) = (dir.path().join("odd.pcap"), dir.path().display());
    for (bytes, wrong) in [
        (&b""[..], "truncated dump file"),
        (b"\xd4\xc3\xb2\xa1\x02\x00", "truncated dump file"),
        (b"these bytes are no capture at all", "unknown file format"),
    ] {
        std::fs::write(&file, bytes).unwrap();
        let said = refused(format!("net_pcap0,rx_pcap={}", file.display()));
        assert!(said.contains("odd.pcap") && said.contains(wrong), "{said}");
    }
    write_pcap(&file, &[frame(60)]);
    for (arguments, wrong) in [
        (format!("rx_pcap={place}"), "Is a directory"),
        (format!("rx_pcap={0},tx_pcap={place}", file.display()), "for writing"),
        (format!("rx_pcap={0},tx_pcap={place}/none/out.pcap", file.display()), "for writing"),
    ] {
        let said = refused(format!("net_pcap0,{arguments}"));
        assert!(said.contains("can't be probed") && said.contains(wrong), "{said}");
    }
    drop(dpdk::open(PCAP, &DeviceSpec::new(format!("net_pcap0,rx_pcap={}", file.display()))).unwrap());
}

/// What a file with these records gives, in order; then the drops, and what the driver counts as errors.
fn read(
    file: &Path,
    number: usize,
    records: Vec<Record>,
    frames: &[Vec<u8>],
    drops: &[(DropReason, u64)],
    errors: bool,
) {
    write_records(file, records);
    let (mut engine, mut far) = engine();
    let device = format!("net_pcap1{number},rx_pcap={}", file.display());
    // A pool that no other test uses.
    let device = DeviceSpec { buffers: Some(2048), ..DeviceSpec::new(device) };
    let (parts, device) = dpdk::open(PCAP, &device).unwrap();
    engine.share(PCAP, std::iter::zip([WorkerId(0)], parts).collect()).unwrap();
    let mut received = Vec::new();
    wait_until("the file's frames", || {
        received.extend(far.collect().into_iter().map(|(frame, _)| frame));
        received.len() >= frames.len()
    });
    let lengths = |frames: &[Vec<u8>]| frames.iter().map(Vec::len).collect::<Vec<_>>();
    assert!(received == frames, "{number}: {:?}, not {:?}", lengths(&received), lengths(frames));
    wait_until("drops", || engine.counters().port(PCAP).snapshot().drops == drops);
    let rx_errors = || device.statistics().into_iter().any(|(name, count)| name == "rx_errors" && count > 0);
    wait_until("errors, or none", || rx_errors() == errors);
    // What was lent comes back a moment later.
    wait_until("all buffers in their pool", || device.buffers().0 == device.buffers().1);
    drop((engine.detach(PCAP).unwrap(), device));
}

#[test]
fn odd_records_are_read_as_far_as_they_go_or_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("in.pcap");
    let record = |len: usize, kept: u32, whole: u32| Record { bytes: frame(len), kept, whole };
    let plain = |len: usize| Record::from(frame(len));
    // Longer than the port's MTU, and than a buffer: as they were, in several.
    let long = [1519, 2048, 2049, 9000, 65_535];
    read(&file, 0, long.map(plain).into(), &long.map(frame), &[], false);
    // A snapped frame is what was kept of it.
    read(&file, 1, vec![record(60, 60, 1000), plain(100)], &[frame(60), frame(100)], &[], false);
    // Nothing was kept.
    read(&file, 2, vec![record(0, 0, 60), plain(100)], &[frame(100)], &[(DropReason::TooShort, 1)], false);
    // Shorter than a header.
    let short = [1, 13, 14];
    read(&file, 3, short.map(plain).into(), &short.map(frame), &[], false);
    // A length that can't be, and a file that ends within a record.
    read(&file, 4, vec![plain(61), record(60, 0xffff_fff0, 60), plain(100)], &[frame(61)], &[], true);
    read(&file, 5, vec![plain(61), record(60, 100, 100)], &[frame(61)], &[], true);
    read(&file, 6, Vec::new(), &[], &[], false);
}

/// The driver keeps a buffer of each refusal (22.11).
#[test]
fn what_a_refused_device_keeps_of_the_pool_does_not_cost_the_pool() {
    assert!(dpdk::configure(&settings()));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("long.pcap");
    write_pcap(&file, &[frame(60), frame(2049)]);
    // There is memory for six pools.
    for _ in 0..20 {
        let said = refused(format!("net_pcap2,rx_pcap={},infinite_rx=1", file.display()));
        assert!(said.contains("Multiseg mbufs are not supported in infinite_rx mode"), "{said}");
    }
    let device = DeviceSpec::new(format!("net_pcap2,rx_pcap={}", file.display()));
    let (_parts, device) = dpdk::open(PCAP, &device).unwrap();
    let (free, all) = device.buffers();
    assert!(free > all - 200, "{free} of {all} buffers");
}
