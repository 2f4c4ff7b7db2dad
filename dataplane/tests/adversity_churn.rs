//! Peers that come and go, at bad moments and very often. Each test counts what the engine's process holds.

mod adversity_support;

use std::time::{Duration, Instant};

use adversity_support::memory::Random;
use adversity_support::*;
use memif::{Address, Event, InterfaceConfig, Listener, ListenerConfig, Mode};
use vwire_dataplane::DropReason;
use vwire_proto::dataplane::v1 as pb;

/// Clients that are killed.
const KILLS: u64 = 200;
/// Connections made and ended.
const CYCLES: u64 = 10_000;

/// Waits until the engine holds what it held before. What it may map once and keep (an allocator's arena, a thread's stack of one
/// that has not quite ended) is a few mappings; what leaks does so every time.
fn wait_for(engine: &Engine, before: &Holdings) {
    let mut now = engine.holdings();
    let same = |now: &Holdings| {
        (now.descriptors, now.threads) == (before.descriptors, before.threads)
            && now.mappings <= before.mappings + 8
    };
    let deadline = Instant::now() + PATIENCE;
    while !same(&now) {
        assert!(Instant::now() < deadline, "the engine holds {now:?}, and held {before:?}");
        std::thread::sleep(Duration::from_millis(5));
        now = engine.holdings();
    }
}

/// The other process: traffic both ways until it is killed, for a minute at most.
fn client_to_be_killed(socket: &str) {
    let end = Instant::now() + Duration::from_secs(60);
    let mut client = Client::new(socket.as_ref());
    for number in 0.. {
        client.tend();
        client.send(&frame(3, number));
        client.receive();
        if Instant::now() > end {
            return;
        }
    }
}

#[test]
fn clients_killed_in_the_middle_of_traffic_leave_nothing_behind() {
    let name = "clients_killed_in_the_middle_of_traffic_leave_nothing_behind";
    if let Some(socket) = played_part() {
        return client_to_be_killed(&socket);
    }
    let mut engine = Engine::start(&(wire("v", "p") + &wire("n1", "n2")));
    let neighbour = Neighbour::start(&mut engine);
    let mut p = Client::connected(&engine.socket("p"));
    engine.wait_up("p", true);
    let socket = engine.socket("v").display().to_string();
    let (mut random, mut sent, mut number) = (Random(0xdead), 0, 0);
    let before = engine.holdings();
    for round in 0..KILLS {
        let peer = Peer::spawn(name, &socket);
        let (start, moment) = (engine.stats("v"), Instant::now());
        // After some frames both ways, or, each fourth time, whenever it is: before, in or after the handshake.
        let (frames, pause) = (random.below(3000), Duration::from_micros(random.below(20_000)));
        wait_until("the moment to kill", || {
            for _ in 0..32 {
                sent += u64::from(p.send(&frame(4, number)));
                number += 1;
            }
            p.receive();
            let now = engine.stats("v");
            let moved = now.rx.0 - start.rx.0 > frames && now.tx.0 > start.tx.0;
            if round % 4 == 3 { moment.elapsed() > pause } else { moved }
        });
        peer.kill();
    }
    let reason = engine.wait_reason("v", "");
    assert!(reason.contains("closed the connection"), "{reason}");
    p.send_surely(&frame(4, number));
    sent += 1;
    wait_until("every frame being accounted for", || {
        let (p, v) = (engine.stats("p"), engine.stats("v"));
        p.rx.0 == sent && p.rx.0 == v.tx.0 + v.dropped(DropReason::TxFull) + p.dropped(DropReason::EgressDown)
    });
    assert!(engine.dropped("p", DropReason::EgressDown) > 0);
    wait_for(&engine, &before);
    let ups = engine.log().matches("memif connected port=v").count();
    println!("{KILLS} kills of {ups} links: {:?}, v {:?}", engine.holdings(), engine.stats("v"));
    let mut v = Client::connected(&engine.socket("v"));
    engine.wait_up("v", true);
    p.receive();
    exchange(&mut v, &mut p, 0x5500, 1000);
    neighbour.finish(&engine);
}

#[test]
fn ten_thousand_connections_through_the_engine_leave_nothing_behind() {
    let mut engine = Engine::start(&(wire("v", "p") + &wire("n1", "n2")));
    let mut p = Client::connected(&engine.socket("p"));
    engine.wait_up("p", true);
    let socket = engine.socket("v");
    let mut cycle = |engine: &mut Engine, number: u64| {
        // Small rings: zeroing the memory would be most of the work.
        let mut v = Client::connected_with_ring(&socket, 3);
        // Frames from it are lent and sent on; now and then both ways.
        v.send_surely(&frame(6, number));
        let there = until("its frame", || p.receive().pop());
        assert_eq!(check(&there), (6, number));
        if number.is_multiple_of(100) {
            engine.wait_up("v", true);
            exchange(&mut v, &mut p, 0x6000, 8);
        }
    };
    (0..20).for_each(|number| cycle(&mut engine, number));
    engine.wait_up("v", false);
    let (before, started) = (engine.holdings(), Instant::now());
    (0..CYCLES).for_each(|number| cycle(&mut engine, number));
    let took = started.elapsed();
    engine.wait_up("v", false);
    wait_for(&engine, &before);
    println!("{CYCLES} connections in {took:.2?}: {:?}, before {before:?}", engine.holdings());
    assert_eq!(engine.stats("v").rx.0, CYCLES + 20 + 8 * (CYCLES / 100 + 1), "no frame was lost");
    assert_eq!(engine.stats("p").drops, []);
}

#[test]
fn frames_for_a_port_without_a_peer_are_counted_and_flow_once_it_has_one_in_either_order() {
    let mut engine = Engine::start(&wire("a", "b"));
    for (early, late) in [("a", "b"), ("b", "a")] {
        let before = engine.dropped(early, DropReason::EgressDown);
        let mut first = Client::connected(&engine.socket(early));
        engine.wait_up(early, true);
        (0..1000).for_each(|number| first.send_surely(&frame(9, number)));
        wait_until("the drops", || engine.dropped(early, DropReason::EgressDown) == before + 1000);
        let mut second = Client::connected(&engine.socket(late));
        engine.wait_up(late, true);
        exchange(&mut first, &mut second, 0x9000, 1000);
        drop((first, second));
        engine.wait_up(early, false);
        engine.wait_up(late, false);
    }
    for port in ["a", "b"] {
        let stats = engine.stats(port);
        assert_eq!(
            (stats.rx.0, stats.tx.0, &*stats.drops),
            (3000, 2000, &[(DropReason::EgressDown, 1000)][..])
        );
    }
}

/// A server in the test for the engine's client port.
struct Server {
    listener: Listener,
    link: Option<memif::Link>,
}

impl Server {
    fn new(engine: &Engine) -> Self {
        let address = Address::path(engine.socket("c")).unwrap();
        let mut listener = Listener::bind(&address, ListenerConfig::default()).unwrap();
        listener.add_interface(0, InterfaceConfig::new(Mode::Ethernet, "test".parse().unwrap()));
        Self { listener, link: None }
    }

    fn tend(&mut self) {
        for event in self.listener.process() {
            match event {
                Event::Connected { link, .. } => self.link = Some(link),
                Event::Disconnected { .. } => self.link = None,
                Event::Refused { .. } => {}
            }
        }
    }

    /// Waits for the engine, and exchanges a frame each way with `p`.
    fn works(&mut self, engine: &mut Engine, p: &mut Client, number: u64) {
        wait_until("the engine's connection", || {
            self.tend();
            self.link.is_some()
        });
        engine.wait_up("c", true);
        let link = self.link.as_mut().unwrap();
        link.tx[0].push(memif::Lent::from(&frame(1, number)[..])).unwrap();
        link.tx[0].publish();
        let there = until("the frame there", || p.receive().pop());
        assert_eq!(check(&there), (1, number));
        p.send_surely(&frame(2, number));
        let back = until("the frame back", || memory::receive_all(&mut link.rx[0]).unwrap().pop());
        assert_eq!(check(&back), (2, number));
    }
}

#[test]
fn a_client_port_comes_back_whenever_its_server_does() {
    let mut engine = Engine::start(&(memif_client("c") + &memif_server("p") + &join("c", "p")));
    let mut p = Client::connected(&engine.socket("p"));
    engine.wait_reason("c", "No such file or directory");
    let before = engine.holdings();
    for number in 0..10 {
        let mut server = Server::new(&engine);
        server.works(&mut engine, &mut p, 2 * number);
        // The server ends the link, and stays.
        assert!(server.listener.disconnect(0, "not today"));
        server.link = None;
        engine.wait_reason("c", "peer disconnected: not today");
        server.works(&mut engine, &mut p, 2 * number + 1);
        // The server goes.
        drop(server);
        engine.wait_reason("c", "");
        p.send_surely(&frame(2, 99));
        wait_until("the drop", || engine.dropped("p", DropReason::EgressDown) == number + 1);
    }
    wait_for(&engine, &before);
    // A file without a listener, as a server leaves it that was killed.
    drop(std::os::unix::net::UnixListener::bind(engine.socket("c")).unwrap());
    engine.wait_reason("c", "refused");
    let mut server = Server::new(&engine);
    server.works(&mut engine, &mut p, 100);
    // And the other side may leave, too.
    let port = |name: &str| pb::op::Op::RemovePort(name.into());
    let cut = pb::op::Op::RemoveXconnect(pb::Xconnect { a: "c".into(), b: "p".into() });
    engine.apply(vec![pb::Op { op: Some(cut) }, pb::Op { op: Some(port("c")) }]);
    wait_until("the server being told", || {
        server.tend();
        server.link.is_none()
    });
}
