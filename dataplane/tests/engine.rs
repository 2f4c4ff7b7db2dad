//! The engine with pipes for ports: what enters leaves once, in order, or is counted under its reason.

use std::time::{Duration, Instant};

use vwire_dataplane::DropReason;
use vwire_dataplane::engine::{Engine, EngineError, EngineSpec};
use vwire_dataplane::port::pipe::{PipeEnd, pipe};
use vwire_dataplane::port::{PortFault, PortIndex, PortParts, Rx, RxContext};
use vwire_dataplane::stats::{Counters, Snapshot};
use vwire_dataplane::tables::{Entry, Forward, Tables, WorkerId};
use vwire_dataplane::worker::Mode;
use vwire_dataplane::worker::capture::Direction;
use vwire_dataplane::worker::command::Event;

const A: PortIndex = PortIndex(0);
const B: PortIndex = PortIndex(1);
const W0: WorkerId = WorkerId(0);
const W1: WorkerId = WorkerId(1);

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "waited 10 s in vain: {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn engine(workers: usize) -> Engine {
    let counters = Counters::anonymous(16).unwrap();
    let spec = EngineSpec { cores: vec![None; workers], mode: Mode::Adaptive, handoff_bytes: 1 << 16 };
    Engine::start(&spec, counters).unwrap()
}

/// Attaches a pipe as `port` and returns the far end.
fn attach(engine: &mut Engine, port: PortIndex, worker: WorkerId, bytes: usize) -> PipeEnd {
    let (near, far) = pipe(bytes).unwrap();
    engine.counters().port(port).open(&format!("pipe-{}", port.0), "pipe");
    engine.attach(port, worker, near.into_parts()).unwrap();
    far
}

fn xconnect(engine: &mut Engine, generation: u64, pairs: &[(PortIndex, PortIndex)]) {
    let mut tables = Tables { generation, ..Tables::default() };
    for (a, b) in pairs {
        for (from, to) in [(*a, *b), (*b, *a)] {
            tables.set(from, Entry { forward: Forward::Xconnect(to), owner: engine.owner(from) });
        }
    }
    engine.publish(tables).unwrap();
}

fn collect(end: &mut PipeEnd, count: usize) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    wait_until("frames at the far end", || {
        frames.extend(end.collect().into_iter().map(|(frame, _)| frame));
        frames.len() >= count
    });
    frames
}

fn frame(i: usize) -> Vec<u8> {
    (0..60 + i % 1400).map(|b| (b + i) as u8).collect()
}

/// Sends `count` frames both ways at once and checks that all arrive as they were, and that the counters say so.
fn both_ways(engine: &mut Engine, a: &mut PipeEnd, b: &mut PipeEnd, count: usize) {
    let sent: Vec<_> = (0..count).map(frame).collect();
    for chunk in sent.chunks(20) {
        for frame in chunk {
            assert!(a.inject(frame) && b.inject(frame));
        }
        assert_eq!(collect(a, chunk.len()), chunk);
        assert_eq!(collect(b, chunk.len()), chunk);
    }
    let bytes = sent.iter().map(|frame| frame.len() as u64).sum();
    let all = (count as u64, bytes);
    for port in [A, B] {
        let counters = engine.counters().clone();
        wait_until("counters", || {
            counters.port(port).snapshot() == Snapshot { rx: all, tx: all, drops: vec![] }
        });
    }
}

#[test]
fn frames_cross_one_worker_both_ways_in_order() {
    let mut engine = engine(1);
    let (mut a, mut b) = (attach(&mut engine, A, W0, 1 << 18), attach(&mut engine, B, W0, 1 << 18));
    xconnect(&mut engine, 1, &[(A, B)]);
    both_ways(&mut engine, &mut a, &mut b, 1000);
}

#[test]
fn frames_cross_from_worker_to_worker_both_ways_in_order() {
    let mut engine = engine(2);
    let (mut a, mut b) = (attach(&mut engine, A, W0, 1 << 18), attach(&mut engine, B, W1, 1 << 18));
    xconnect(&mut engine, 1, &[(A, B)]);
    both_ways(&mut engine, &mut a, &mut b, 1000);
}

#[test]
fn a_frame_without_a_way_out_is_dropped_as_no_egress() {
    let mut engine = engine(1);
    let mut a = attach(&mut engine, A, W0, 1 << 16);
    a.inject(&frame(0));
    let counters = engine.counters().clone();
    wait_until("the drop", || counters.port(A).snapshot().dropped(DropReason::NoEgress) == 1);
    assert_eq!(
        counters.port(A).snapshot(),
        Snapshot { rx: (1, 60), tx: (0, 0), drops: vec![(DropReason::NoEgress, 1)] }
    );
}

#[test]
fn a_frame_for_a_port_that_is_down_is_dropped_as_egress_down() {
    let mut engine = engine(1);
    let mut a = attach(&mut engine, A, W0, 1 << 16);
    xconnect(&mut engine, 1, &[(A, B)]);
    a.inject(&frame(0));
    let counters = engine.counters().clone();
    wait_until("the drop", || counters.port(A).snapshot().dropped(DropReason::EgressDown) == 1);
}

#[test]
fn what_a_slow_reader_leaves_no_room_for_is_counted_and_nothing_else_waits() {
    let mut engine = engine(1);
    let (mut a, mut b) = (attach(&mut engine, A, W0, 1 << 18), attach(&mut engine, B, W0, 4096));
    xconnect(&mut engine, 1, &[(A, B)]);
    let count = 100;
    (0..count).for_each(|i| assert!(a.inject(&frame(i))));
    let counters = engine.counters().clone();
    let (at_a, at_b) = (|| counters.port(A).snapshot(), || counters.port(B).snapshot());
    wait_until("all frames accounted for", || {
        at_b().tx.0 + at_b().dropped(DropReason::TxFull) == count as u64
    });
    assert!(at_b().dropped(DropReason::TxFull) > 0);
    assert_eq!((at_a().rx.0, at_a().dropped_in_all()), (count as u64, 0));
    assert_eq!(b.collect().len() as u64, at_b().tx.0);
    b.inject(&frame(1));
    assert_eq!(collect(&mut a, 1), [frame(1)], "the other way is not held up");
}

#[test]
fn a_full_handoff_ring_drops_at_the_ingress_port() {
    let mut engine = engine(2);
    // The second worker is kept from draining by having no time: a stopped one would be the same, but can't be had portably.
    let (mut a, _b) = (attach(&mut engine, A, W0, 1 << 22), attach(&mut engine, B, W1, 4096));
    xconnect(&mut engine, 1, &[(A, B)]);
    let big = vec![7; 9000];
    let count = 300;
    (0..count).for_each(|_| assert!(a.inject(&big)));
    let counters = engine.counters().clone();
    let lost = || {
        counters.port(A).snapshot().dropped(DropReason::HandoffFull)
            + counters.port(B).snapshot().dropped(DropReason::TxFull)
            + counters.port(B).snapshot().tx.0
    };
    wait_until("all frames accounted for", || lost() == count);
}

#[test]
fn a_detached_port_stops_at_once_and_another_goes_on() {
    let mut engine = engine(1);
    let (mut a, b) = (attach(&mut engine, A, W0, 1 << 16), attach(&mut engine, B, W0, 1 << 16));
    xconnect(&mut engine, 1, &[(A, B)]);
    engine.detach(B).unwrap();
    assert!(matches!(engine.detach(B), Err(EngineError::NotAttached(B))));
    drop(b);
    let mut again = attach(&mut engine, B, W0, 1 << 16);
    xconnect(&mut engine, 2, &[(A, B)]);
    a.inject(&frame(3));
    assert_eq!(collect(&mut again, 1), [frame(3)]);
}

#[test]
fn tables_change_under_traffic_without_loss() {
    let mut engine = engine(2);
    let (mut a, mut b) = (attach(&mut engine, A, W0, 1 << 20), attach(&mut engine, B, W0, 1 << 20));
    xconnect(&mut engine, 1, &[(A, B)]);
    let mut got = 0;
    for round in 0..200u64 {
        (0..10).for_each(|i| assert!(a.inject(&frame(i))));
        xconnect(&mut engine, round + 2, &[(A, B)]);
        got += b.collect().len();
    }
    got += collect(&mut b, 2000 - got).len();
    assert_eq!(got, 2000);
    assert_eq!(engine.counters().port(A).snapshot().dropped_in_all(), 0);
}

#[test]
fn a_capture_shows_both_ports_views_with_direction_and_drop_reason() {
    let mut engine = engine(1);
    let (mut a, _b) = (attach(&mut engine, A, W0, 1 << 16), attach(&mut engine, B, W0, 4096));
    xconnect(&mut engine, 1, &[(A, B)]);
    let mut at_a = engine.capture(A, 64, 1 << 16).unwrap();
    let mut at_b = engine.capture(B, 64, 1 << 16).unwrap();
    let (fits, too_much) = (vec![1; 3000], vec![2; 3000]);
    assert!(a.inject(&fits) && a.inject(&too_much));
    let (mut seen_a, mut seen_b) = (Vec::new(), Vec::new());
    wait_until("captured frames", || {
        seen_a.extend(at_a.read());
        seen_b.extend(at_b.read());
        seen_a.len() + seen_b.len() == 4
    });
    let about = |records: &[vwire_dataplane::worker::capture::Record]| {
        records.iter().map(|r| (r.direction, r.dropped, r.original_len, r.bytes.clone())).collect::<Vec<_>>()
    };
    assert_eq!(
        about(&seen_a),
        [(Direction::In, None, 3000, vec![1; 64]), (Direction::In, None, 3000, vec![2; 64])]
    );
    assert_eq!(
        about(&seen_b),
        [
            (Direction::Out, None, 3000, vec![1; 64]),
            (Direction::Out, Some(DropReason::TxFull), 3000, vec![2; 64])
        ]
    );
    assert_eq!((at_a.missed(), at_b.missed()), (0, 0));
}

/// A receiver whose device is gone.
struct Broken;
impl Rx for Broken {
    fn receive<'a>(
        &'a mut self,
        _: &mut vwire_dataplane::burst::Burst<'a>,
        _: &RxContext<'_>,
    ) -> Result<(), PortFault> {
        Err(PortFault::Device { what: "reading the test", error: "gone".to_owned() })
    }
    fn release(&mut self, _: u64) {}
}

#[test]
fn a_port_that_faults_is_detached_and_reported_and_its_neighbours_go_on() {
    let mut engine = engine(1);
    let (mut a, mut b) = (attach(&mut engine, A, W0, 1 << 18), attach(&mut engine, B, W0, 1 << 18));
    xconnect(&mut engine, 1, &[(A, B)]);
    let broken = PortParts { rx: vec![Box::new(Broken)], ..PortParts::default() };
    engine.attach(PortIndex(5), W0, broken).unwrap();
    match engine.events().recv_timeout(Duration::from_secs(10)).unwrap() {
        Event::Faulted { port, fault, parts, .. } => {
            assert_eq!((port, fault.to_string()), (PortIndex(5), "reading the test: gone".to_owned()));
            assert_eq!(parts.rx.len(), 1);
        }
        Event::Died { message, .. } => panic!("the worker died: {message}"),
        Event::Learnt { address, .. } => panic!("nothing is routed, but {address} was learnt"),
        Event::Link { port } => panic!("{port} has no link that could change"),
        Event::Heard { port, .. } => panic!("nothing is an underlay, but {port} heard something"),
    }
    both_ways(&mut engine, &mut a, &mut b, 100);
}

#[test]
fn a_fault_of_a_port_that_was_attached_anew_meanwhile_does_not_concern_the_new_one() {
    let mut engine = engine(1);
    let broken = PortParts { rx: vec![Box::new(Broken)], ..PortParts::default() };
    engine.attach(A, W0, broken).unwrap();
    let event = engine.events().recv_timeout(Duration::from_secs(10)).unwrap();
    // As if the agent had heard of the end of the link first.
    engine.detach(A).unwrap();
    let (mut a, mut b) = (attach(&mut engine, A, W0, 1 << 18), attach(&mut engine, B, W0, 1 << 18));
    let Event::Faulted { port, attachment, .. } = event else { panic!("the worker died") };
    assert!(!engine.forget(port, attachment));
    assert_eq!(engine.owner(A), Some(W0.into()));
    xconnect(&mut engine, 1, &[(A, B)]);
    both_ways(&mut engine, &mut a, &mut b, 100);
    engine.detach(A).unwrap();
}

/// A port that two workers share, each with an end of a pipe; and the far ends.
fn share(engine: &mut Engine, port: PortIndex) -> [PipeEnd; 2] {
    let ((near, far), (second, far_second)) = (pipe(1 << 18).unwrap(), pipe(1 << 18).unwrap());
    engine.counters().port(port).open("shared", "pipe");
    engine.share(port, vec![(W0, near.into_parts()), (W1, second.into_parts())]).unwrap();
    [far, far_second]
}

#[test]
fn a_shared_port_is_sent_to_and_received_from_by_every_worker_that_has_it() {
    let mut engine = engine(3);
    let mut shared = share(&mut engine, A);
    let at_w1 = PortIndex(2);
    let mut others = [attach(&mut engine, B, W0, 1 << 18), attach(&mut engine, at_w1, W1, 1 << 18)];
    let mut third = attach(&mut engine, PortIndex(3), WorkerId(2), 1 << 18);
    let owners = engine.owner(A).unwrap();
    assert_eq!((owners.home(), owners.to_string()), (W0, "0, 1".to_owned()));
    // All send by the shared port; what comes by it goes to one of them.
    let mut tables = Tables { generation: 1, ..Tables::default() };
    for from in [B, at_w1, PortIndex(3)] {
        tables.set(from, Entry { forward: Forward::Xconnect(A), owner: engine.owner(from) });
    }
    tables.set(A, Entry { forward: Forward::Xconnect(at_w1), owner: engine.owner(A) });
    engine.publish(tables).unwrap();
    let mut captured = engine.capture(A, 64, 1 << 18).unwrap();
    for i in 0..100u8 {
        assert!(others[0].inject(&[i; 60]) && others[1].inject(&[i; 61]) && third.inject(&[i; 62]));
        assert!(shared[0].inject(&[i; 63]) && shared[1].inject(&[i; 64]));
    }
    // Who has a share sends by it; who has none hands over to the first that has.
    let lengths = |frames: &[Vec<u8>], len| frames.iter().filter(|frame| frame.len() == len).count();
    let by_w0 = collect(&mut shared[0], 200);
    assert_eq!((lengths(&by_w0, 60), lengths(&by_w0, 62)), (100, 100));
    let by_w1 = collect(&mut shared[1], 100);
    assert_eq!(lengths(&by_w1, 61), 100);
    let came = collect(&mut others[1], 200);
    assert_eq!((lengths(&came, 63), lengths(&came, 64)), (100, 100));
    wait_until("all to be counted", || {
        let snapshot = engine.counters().port(A).snapshot();
        snapshot.rx == (200, (63 + 64) * 100) && snapshot.tx == (300, (60 + 61 + 62) * 100)
    });
    // One capture shows what passes at either.
    let mut seen = Vec::new();
    wait_until("the capture", || {
        seen.extend(captured.read());
        seen.len() == 500
    });
    assert_eq!(seen.iter().filter(|record| record.direction == Direction::In).count(), 200);
    assert_eq!(captured.missed(), 0);
    assert_eq!(engine.detach(A).unwrap().len(), 2, "a share from each");
    assert!(captured.is_over() && engine.owner(A).is_none());
}

#[test]
fn a_fault_at_one_worker_ends_a_shared_port_at_all() {
    let mut engine = engine(2);
    let (near, mut far) = pipe(1 << 16).unwrap();
    let broken = PortParts { rx: vec![Box::new(Broken)], ..PortParts::default() };
    engine.share(A, vec![(W0, near.into_parts()), (W1, broken)]).unwrap();
    let event = engine.events().recv_timeout(Duration::from_secs(10)).unwrap();
    let Event::Faulted { port, attachment, parts, .. } = event else { panic!("a worker died") };
    drop(parts);
    assert!(engine.forget(port, attachment));
    assert_eq!(engine.owner(A), None);
    // The other share went, too, and the port can be had again.
    wait_until("the pipe's end to go", || !far.inject(&[0; 60]));
    let (mut a, mut b) = (attach(&mut engine, A, W1, 1 << 18), attach(&mut engine, B, W0, 1 << 18));
    xconnect(&mut engine, 1, &[(A, B)]);
    both_ways(&mut engine, &mut a, &mut b, 100);
}

#[test]
fn a_port_that_cannot_be_given_to_all_is_given_to_none() {
    let mut engine = engine(1);
    let (near, _far) = pipe(1 << 16).unwrap();
    let shares = vec![(W0, near.into_parts()), (W1, PortParts::default())];
    assert!(matches!(engine.share(A, shares), Err(EngineError::NoSuchWorker(1))));
    assert_eq!(engine.owner(A), None);
    attach(&mut engine, A, W0, 1 << 16);
}

/// A receiver with a bug.
struct Panics;
impl Rx for Panics {
    fn receive<'a>(
        &'a mut self,
        _: &mut vwire_dataplane::burst::Burst<'a>,
        _: &RxContext<'_>,
    ) -> Result<(), PortFault> {
        panic!("as the test wills")
    }
    fn release(&mut self, _: u64) {}
}

#[test]
fn a_worker_that_panics_is_reported_and_the_other_worker_goes_on() {
    let mut engine = engine(2);
    let (mut a, mut b) = (attach(&mut engine, A, W0, 1 << 18), attach(&mut engine, B, W0, 1 << 18));
    xconnect(&mut engine, 1, &[(A, B)]);
    engine
        .attach(PortIndex(5), W1, PortParts { rx: vec![Box::new(Panics)], ..PortParts::default() })
        .unwrap();
    match engine.events().recv_timeout(Duration::from_secs(10)).unwrap() {
        Event::Died { worker, message } => assert_eq!((worker, &*message), (W1, "as the test wills")),
        Event::Faulted { fault, .. } => panic!("only a fault: {fault}"),
        Event::Learnt { address, .. } => panic!("nothing is routed, but {address} was learnt"),
        Event::Link { port } => panic!("{port} has no link that could change"),
        Event::Heard { port, .. } => panic!("nothing is an underlay, but {port} heard something"),
    }
    both_ways(&mut engine, &mut a, &mut b, 100);
    // Nobody waits for a worker that is no more: an engine that is told to stop has many ports to close.
    let before = Instant::now();
    assert!(matches!(engine.detach(PortIndex(5)), Err(EngineError::Stuck(1))));
    xconnect(&mut engine, 2, &[(A, B)]);
    assert!(before.elapsed() < Duration::from_secs(1), "it took {:?}", before.elapsed());
}

#[test]
fn a_core_that_does_not_exist_is_refused_by_name() {
    let spec = EngineSpec { cores: vec![Some(4096)], ..EngineSpec::default() };
    let error = Engine::start(&spec, Counters::anonymous(1).unwrap()).err().unwrap();
    assert!(
        error.to_string().starts_with("workers.cores names core 4096, but this process may use only ["),
        "{error}"
    );
}
