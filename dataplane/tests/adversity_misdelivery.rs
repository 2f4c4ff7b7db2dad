//! Many vWires at once, some of whose ends come and go: no frame ever reaches another vWire. Needs root, for namespaces.

mod adversity_support;
mod lab;

use std::time::{Duration, Instant};

use adversity_support::memory::Random;
use adversity_support::*;
use lab::Family;
use vwire_proto::dataplane::v1 as pb;

/// Frames on their way in each lane: all lanes together must fit into a hand-off ring.
const WINDOW: u64 = 8;
/// After this long without a frame, a lane that may lose frames counts those on their way as lost.
const LOST: Duration = Duration::from_millis(20);

/// One direction of a vWire.
struct Lane {
    tag: Tag,
    lossless: bool,
    sent: u64,
    received: u64,
    /// The number that comes next, or a later one.
    expected: u64,
    last: Option<u64>,
    moved: Instant,
}

impl Lane {
    fn new(tag: Tag, lossless: bool) -> Self {
        Self { tag, lossless, sent: 0, received: 0, expected: 0, last: None, moved: Instant::now() }
    }

    fn turn(&mut self, from: &mut Client, to: &mut Client, until: u64) {
        if !self.lossless && self.moved.elapsed() > LOST {
            (self.expected, self.moved) = (self.sent, Instant::now());
        }
        while self.received < until
            && self.sent < self.expected + WINDOW
            && from.send(&frame(self.tag, self.sent))
        {
            self.sent += 1;
        }
        for bytes in to.receive() {
            self.take(&bytes);
        }
        let stalled = self.lossless && self.received < self.sent && self.moved.elapsed() > PATIENCE;
        assert!(!stalled, "frame {} of {:#x} is lost", self.received, self.tag);
    }

    fn take(&mut self, bytes: &[u8]) {
        let (tag, number) = check(bytes);
        assert_eq!(tag, self.tag, "a frame of another vWire");
        if self.lossless {
            assert_eq!(number, self.received, "of {tag:#x}");
        }
        // One that was given up may still come, but none twice and none before its predecessor.
        assert!(Some(number) > self.last, "frame {number} of {tag:#x} came after {:?}", self.last);
        self.last = Some(number);
        self.received += 1;
        self.expected = self.expected.max(number + 1);
        self.moved = Instant::now();
    }
}

/// A vWire and its two lanes.
struct Wire {
    ends: [Client; 2],
    lanes: [Lane; 2],
}

impl Wire {
    fn new(number: usize, ends: [Client; 2], lossless: bool) -> Self {
        let tag = (number as Tag + 1) << 8;
        Self { ends, lanes: [Lane::new(tag, lossless), Lane::new(tag | 1, lossless)] }
    }

    /// Until `count` frames have come each way.
    fn turn(&mut self, count: u64) {
        let [a, b] = &mut self.ends;
        self.lanes[0].turn(a, b, count);
        self.lanes[1].turn(b, a, count);
    }

    fn is_done(&self, count: u64) -> bool {
        self.lanes.iter().all(|lane| lane.received >= count && (!lane.lossless || lane.received == lane.sent))
    }
}

fn op(op: pb::op::Op) -> pb::Op {
    pb::Op { op: Some(op) }
}

fn pair(a: &str, b: &str) -> pb::Xconnect {
    pb::Xconnect { a: a.into(), b: b.into() }
}

/// Takes the second port of a vWire away and puts another on the same socket: its slot in the tables is another, too.
fn replace(engine: &mut Engine, number: usize, round: u64, name: &mut String) {
    let socket = engine.socket(&format!("b{number}")).display().to_string();
    let (a, next) = (format!("a{number}"), format!("b{number}-{round}"));
    let memif = pb::Memif { role: pb::memif::Role::Server.into(), socket, ..Default::default() };
    let port =
        pb::Port { name: next.clone(), kind: Some(pb::port::Kind::Memif(memif)), ..Default::default() };
    engine.apply(vec![
        op(pb::op::Op::RemoveXconnect(pair(&a, name))),
        op(pb::op::Op::RemovePort(name.clone())),
        op(pb::op::Op::SetPort(port)),
        op(pb::op::Op::AddXconnect(pair(&a, &next))),
    ]);
    *name = next;
}

#[test]
fn sixty_four_vwires_on_two_workers_never_mix_while_a_quarter_of_them_comes_and_goes() {
    const WIRES: usize = 64;
    const FRAMES: u64 = 2000;
    let names = |number: usize| [format!("a{number}"), format!("b{number}")];
    let ports: String = (0..WIRES).flat_map(names).map(|name| memif_server(&name)).collect();
    let cores = if std::thread::available_parallelism().unwrap().get() > 1 { "[0, 1]" } else { "[0]" };
    let mut engine = Engine::start_with(&format!("[workers]\ncores = {cores}\n{ports}"), None);
    let churned = |number: usize| number % 4 == 3;
    // Each end goes to the worker that has fewest. Joined only then, many vWires have their ends on different workers.
    let client = |name: String| Client::connected_with_ring(&engine.socket(&name), 6);
    let mut wires: Vec<_> =
        (0..WIRES).map(|number| Wire::new(number, names(number).map(client), !churned(number))).collect();
    let all = (0..WIRES).flat_map(names);
    all.for_each(|name| assert!(engine.link(&name).up));
    let joins =
        (0..WIRES).map(|number| op(pb::op::Op::AddXconnect(pair(&names(number)[0], &names(number)[1]))));
    engine.apply(joins.collect());

    let mut second: Vec<_> = (0..WIRES).map(|number| names(number)[1].clone()).collect();
    let (mut random, mut round, mut last) = (Random(0xc0ffee), 0, Instant::now());
    let deadline = Instant::now() + PATIENCE;
    while !wires.iter().all(|wire| wire.is_done(FRAMES)) {
        for wire in &mut wires {
            wire.turn(FRAMES);
        }
        let number = random.below(WIRES as u64 / 4) as usize * 4 + 3;
        if last.elapsed() > Duration::from_millis(5) {
            (round, last) = (round + 1, Instant::now());
            match random.below(4) {
                0 => replace(&mut engine, number, round, &mut second[number]),
                end => wires[number].ends[end as usize % 2].disconnect(),
            }
        }
        wires.iter_mut().skip(3).step_by(4).flat_map(|wire| &mut wire.ends).for_each(Client::tend);
        let behind = || wires.iter().map(|wire| wire.lanes[0].received.min(wire.lanes[1].received)).min();
        assert!(
            Instant::now() < deadline + PATIENCE,
            "the slowest has {:?} of {FRAMES} after {round} changes",
            behind()
        );
    }
    for number in (0..WIRES).filter(|number| !churned(*number)) {
        for (name, lane) in names(number).iter().zip([0, 1]) {
            let stats = engine.stats(name);
            let lanes = &wires[number].lanes;
            assert_eq!((stats.rx.0, stats.tx.0), (lanes[lane].sent, lanes[1 - lane].sent), "{name}");
            assert_eq!(stats.drops, [], "{name}");
        }
    }
    let worker = |name: &str| {
        let log = engine.log();
        let line = log.lines().find(|line| line.contains(&format!("memif connected port={name} "))).unwrap();
        line.split("worker=").nth(1).unwrap().chars().next().unwrap()
    };
    let split = (0..WIRES).filter(|number| !churned(*number)).map(names);
    let split = split.filter(|[a, b]| worker(a) != worker(b)).count();
    assert!(split > 5 || cores == "[0]", "only {split} vWires have their ends on different workers");
    let ups: usize = wires.iter().flat_map(|wire| &wire.ends).map(|end| end.ups).sum();
    println!(
        "{WIRES} vWires, {split} of them across workers, {round} changes, {ups} links, {} frames",
        WIRES as u64 * 2 * FRAMES
    );
    assert!(round > 20 && ups > 2 * WIRES + 20, "{round} changes, {ups} links");
    engine.assert_alive();
}

#[test]
fn eight_tunnels_between_two_engines_never_mix_while_some_of_their_ends_come_and_go() {
    const TUNNELS: usize = 8;
    const FRAMES: u64 = 2000;
    let (left, right) = lab::two_nodes(Family::V4);
    let config = |local: &str, remote: &str| -> String {
        let tunnel = |number: usize| {
            let vni = 100 + number;
            let vxlan =
                format!("kind = \"vxlan\"\nvni = {vni}\nlocal = \"{local}\"\nremote = \"{remote}\"\n");
            memif_server(&format!("m{number}"))
                + &format!("[[port]]\nname = \"t{number}\"\n{vxlan}")
                + &join(&format!("m{number}"), &format!("t{number}"))
        };
        "[workers]\ncores = [0]\n".to_owned() + &(0..TUNNELS).map(tunnel).collect::<String>()
    };
    let mut engines = [
        Engine::start_with(&config("10.9.0.1", "10.9.0.2"), Some(&left.name)),
        Engine::start_with(&config("10.9.0.2", "10.9.0.1"), Some(&right.name)),
    ];
    let socket = |side: usize, number: usize| engines[side].socket(&format!("m{number}"));
    let ends = |number: usize| [0, 1].map(|side| Client::connected_with_ring(&socket(side, number), 6));
    // Datagrams may be lost, by the kernel if not by us; what counts here is where they arrive.
    let mut wires: Vec<_> = (0..TUNNELS).map(|number| Wire::new(number, ends(number), false)).collect();

    let (mut random, mut round, mut last) = (Random(0xbeef), 0, Instant::now());
    let deadline = Instant::now() + PATIENCE;
    while !wires.iter().all(|wire| wire.is_done(FRAMES)) {
        wires.iter_mut().for_each(|wire| wire.turn(FRAMES));
        if last.elapsed() > Duration::from_millis(10) {
            (round, last) = (round + 1, Instant::now());
            // The first six are left alone.
            wires[6 + round % 2].ends[random.below(2) as usize].disconnect();
        }
        wires.iter_mut().flat_map(|wire| &mut wire.ends).for_each(Client::tend);
        let behind = || wires.iter().map(|wire| wire.lanes[0].received.min(wire.lanes[1].received)).min();
        assert!(
            Instant::now() < deadline + PATIENCE,
            "the slowest has {:?} of {FRAMES} after {round} changes",
            behind()
        );
    }
    for engine in &mut engines {
        engine.assert_alive();
        for number in 0..TUNNELS {
            let stats = engine.stats(&format!("t{number}"));
            assert!(stats.tx.0 >= FRAMES && stats.rx.0 >= FRAMES, "t{number}: {stats:?}");
        }
    }
    println!("{TUNNELS} tunnels, {round} changes");
}
