//! Capture files, and an engine inside the test's process with a port on one.

use std::path::Path;
use std::time::{Duration, Instant};

use vwire_dataplane::engine::{Engine, EngineSpec};
use vwire_dataplane::port::PortIndex;
use vwire_dataplane::port::dpdk::{self, Settings};
use vwire_dataplane::port::pipe::{PipeEnd, pipe};
use vwire_dataplane::stats::Counters;
use vwire_dataplane::tables::{Entry, Forward, Tables, WorkerId};

pub const PCAP: PortIndex = PortIndex(0);
pub const PIPE: PortIndex = PortIndex(1);

pub fn settings() -> Settings {
    Settings { huge_pages: false, memory: Some(128), buffers: 8192, ..Settings::default() }
}

pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// An engine whose first port, still to come, is cross-connected with a pipe: its first frame has a way out.
pub fn engine() -> (Engine, PipeEnd) {
    assert!(dpdk::configure(&settings()));
    let mut engine = Engine::start(&EngineSpec::default(), Counters::anonymous(4).unwrap()).unwrap();
    let (near, far) = pipe(1 << 20).unwrap();
    engine.counters().port(PIPE).open("pipe", "pipe");
    engine.counters().port(PCAP).open("pcap", "dpdk");
    engine.attach(PIPE, WorkerId(0), near.into_parts()).unwrap();
    let mut tables = Tables { generation: 1, ..Tables::default() };
    for (from, to) in [(PCAP, PIPE), (PIPE, PCAP)] {
        tables.set(from, Entry { forward: Forward::Xconnect(to), owner: Some(WorkerId(0).into()) });
    }
    engine.publish(tables).unwrap();
    (engine, far)
}

/// A frame as a capture file holds it: its bytes, how many it says these are, and how many it says the frame had on its wire.
pub struct Record {
    pub bytes: Vec<u8>,
    pub kept: u32,
    pub whole: u32,
}

impl From<Vec<u8>> for Record {
    fn from(bytes: Vec<u8>) -> Self {
        let len = bytes.len() as u32;
        Self { bytes, kept: len, whole: len }
    }
}

/// A pcap file of the classic format: Ethernet, microseconds, little endian.
pub fn write_pcap(file: &Path, frames: &[Vec<u8>]) {
    write_records(file, frames.iter().map(|frame| Record::from(frame.clone())));
}

pub fn write_records(file: &Path, records: impl IntoIterator<Item = Record>) {
    let mut bytes = Vec::new();
    for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 1] {
        bytes.extend(word.to_le_bytes());
    }
    for (i, record) in records.into_iter().enumerate() {
        for word in [i as u32, 0, record.kept, record.whole] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(record.bytes);
    }
    std::fs::write(file, bytes).unwrap();
}

/// The frames that a pcap file holds, each of them whole.
pub fn read_pcap(file: &Path) -> Vec<Vec<u8>> {
    let bytes = std::fs::read(file).unwrap();
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    assert!(matches!(word(0), 0xa1b2_c3d4 | 0xa1b2_3c4d) && word(20) == 1, "a pcap file of Ethernet frames");
    let (mut frames, mut at) = (Vec::new(), 24);
    while at < bytes.len() {
        let (kept, whole) = (word(at + 8), word(at + 12));
        assert_eq!(kept, whole, "a frame was cut");
        frames.push(bytes[at + 16..at + 16 + kept].to_vec());
        at += 16 + kept;
    }
    frames
}
