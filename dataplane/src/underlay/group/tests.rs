use super::*;
use proptest::prelude::*;
use std::collections::HashMap;

/// Keeps what it was given to send.
#[derive(Default)]
struct Recorder {
    batches: Vec<(Destination, usize, Vec<u8>)>,
}

impl Carrier for Recorder {
    fn most_datagrams(&self) -> usize {
        128
    }

    fn carry(&mut self, batch: &Batch<'_>, _: &Counters) {
        self.batches.push((batch.to, batch.datagram_len, batch.bytes.to_vec()));
    }
}

impl Recorder {
    /// The datagram lengths of each batch.
    fn lens(&self) -> Vec<Vec<usize>> {
        self.batches.iter().map(|(_, len, bytes)| bytes.chunks(*len).map(<[u8]>::len).collect()).collect()
    }
}

struct Bench {
    groups: Groups<Recorder>,
    counters: Counters,
}

impl Bench {
    fn new(buffers: usize) -> Self {
        Self { groups: Groups::new(Recorder::default(), buffers), counters: Counters::anonymous(8).unwrap() }
    }

    fn append_to(&mut self, port: u16, socket: u16, flow: u32, len: usize, mark: u8) {
        let remote = SocketAddr::from(([10, 0, 0, 2], 4789));
        let to = Destination { port: PortIndex(port), socket, remote };
        self.groups.append(&to, flow, len, &self.counters, |place| place.fill(mark));
    }

    fn append(&mut self, flow: u32, len: usize) {
        self.append_to(1, 0, flow, len, flow as u8);
    }

    fn flush(&mut self, hold: Option<Instant>) -> bool {
        self.groups.flush(hold, &self.counters)
    }

    fn lens(&self) -> Vec<Vec<usize>> {
        self.groups.carrier().lens()
    }
}

#[test]
fn equal_frames_fill_one_call() {
    let mut bench = Bench::new(4);
    (0..128).for_each(|_| bench.append(1, 72));
    assert_eq!(bench.lens(), [vec![72; 128]], "full, so sent at once");
    (0..10).for_each(|_| bench.append(1, 72));
    assert!(!bench.flush(None));
    assert_eq!(bench.lens()[1], [72; 10]);
}

#[test]
fn long_frames_fill_a_call_by_bytes() {
    let mut bench = Bench::new(4);
    (0..50).for_each(|_| bench.append(1, 1458));
    bench.flush(None);
    assert_eq!(bench.lens(), [vec![1458; 44], vec![1458; 6]]);
}

#[test]
fn the_longest_datagram_goes_alone() {
    let mut bench = Bench::new(1);
    bench.append(1, GROUP_BYTES);
    assert_eq!(bench.lens(), [[GROUP_BYTES]]);
}

#[test]
fn a_flow_whose_frame_is_shorter_ends_its_group_with_it() {
    let mut bench = Bench::new(4);
    [1458, 1458, 300, 1458].iter().for_each(|len| bench.append(1, *len));
    bench.flush(None);
    assert_eq!(bench.lens(), [vec![1458, 1458, 300], vec![1458]]);
}

#[test]
fn a_flow_whose_frame_is_longer_has_its_group_sent_first() {
    let mut bench = Bench::new(4);
    [72, 72, 1458].iter().for_each(|len| bench.append(1, *len));
    bench.flush(None);
    assert_eq!(bench.lens(), [vec![72, 72], vec![1458]]);
}

#[test]
fn different_flows_fill_groups_of_their_own_lengths() {
    let mut bench = Bench::new(8);
    for _ in 0..20 {
        bench.append(1, 72);
        bench.append(2, 578);
        bench.append(3, 1458);
    }
    bench.flush(None);
    let mut lens = bench.lens();
    lens.sort();
    assert_eq!(lens, [vec![72; 20], vec![578; 20], vec![1458; 20]]);
}

#[test]
fn more_lengths_than_ways_are_still_all_sent() {
    let mut bench = Bench::new(8);
    (0..9).for_each(|flow| bench.append(flow, 100 + flow as usize * 10));
    bench.flush(None);
    let mut lens: Vec<_> = bench.lens().concat();
    lens.sort_unstable();
    assert_eq!(lens, (0..9).map(|flow| 100 + flow * 10).collect::<Vec<_>>());
}

#[test]
fn a_group_waits_a_few_turns_for_more_but_not_longer() {
    let mut bench = Bench::new(4);
    let now = Instant::now();
    bench.append(1, 72);
    for _ in 0..HOLD_TURNS {
        assert!(bench.flush(Some(now)));
    }
    assert!(bench.lens().is_empty());
    assert!(!bench.flush(Some(now)));
    assert_eq!(bench.lens(), [[72]]);
}

#[test]
fn a_group_waits_one_long_turn_at_most() {
    let mut bench = Bench::new(4);
    let now = Instant::now();
    bench.append(1, 72);
    assert!(bench.flush(Some(now)));
    assert!(!bench.flush(Some(now + HOLD_TIME * 2)));
    assert_eq!(bench.lens(), [[72]]);
}

#[test]
fn without_a_free_buffer_an_older_group_goes_first() {
    let mut bench = Bench::new(2);
    (0..5).for_each(|socket| bench.append_to(1, socket, 9, 72, socket as u8));
    bench.flush(None);
    let mut sockets: Vec<_> = bench.groups.carrier().batches.iter().map(|(to, _, _)| to.socket).collect();
    sockets.sort_unstable();
    assert_eq!(sockets, [0, 1, 2, 3, 4]);
}

#[test]
fn more_destinations_than_lanes_lose_nothing() {
    let mut bench = Bench::new(64);
    for port in 0..3000 {
        bench.append_to(port, 0, 1, 72, 0);
    }
    bench.flush(None);
    let ports: std::collections::BTreeSet<_> =
        bench.groups.carrier().batches.iter().map(|(to, _, _)| to.port.0).collect();
    assert_eq!((ports.len(), bench.lens().len()), (3000, 3000));
}

proptest! {
    /// Whatever is sent in whatever sizes: nothing is lost, nothing is changed, and no flow overtakes itself.
    #[test]
    fn every_flow_stays_in_order(
        frames in proptest::collection::vec((0u32..300, 0usize..6, 0u16..3, 0u8..20), 1..400),
        buffers in 1usize..6,
    ) {
        const LENS: [usize; 6] = [40, 72, 300, 578, 1458, 40_000];
        let mut bench = Bench::new(buffers);
        let mut given: HashMap<(u16, u32), Vec<(usize, u32)>> = HashMap::new();
        for (number, (flow, len, port, turn)) in frames.iter().enumerate() {
            let to = Destination {
                port: PortIndex(*port),
                socket: (flow % 3) as u16,
                remote: SocketAddr::from(([10, 0, 0, 2], 4789)),
            };
            let len = LENS[*len] + (*flow as usize % 2) * (number % 7);
            let number = number as u32;
            bench.groups.append(&to, *flow, len, &bench.counters, |place| {
                place[..4].copy_from_slice(&flow.to_be_bytes());
                place[4..8].copy_from_slice(&number.to_be_bytes());
            });
            given.entry((*port, *flow)).or_default().push((len, number));
            if *turn == 0 {
                bench.flush(Some(Instant::now()));
            }
        }
        bench.flush(None);
        let mut sent: HashMap<(u16, u32), Vec<(usize, u32)>> = HashMap::new();
        for (to, len, bytes) in &bench.groups.carrier().batches {
            prop_assert!(bytes.len() <= GROUP_BYTES && bytes.len().div_ceil(*len) <= 128);
            for datagram in bytes.chunks(*len) {
                let word = |at: usize| u32::from_be_bytes(datagram[at..at + 4].try_into().unwrap());
                sent.entry((to.port.0, word(0))).or_default().push((datagram.len(), word(4)));
            }
        }
        prop_assert_eq!(sent, given);
    }
}
