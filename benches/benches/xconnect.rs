//! A turn of the worker that moves one burst from a memif to another: all of the engine, without a second core. Beside it, the
//! same burst through the two queues alone: what tables, counters and the loop add is the difference. And the same burst routed: to one
//! destination, to 64 of them among 10,000 prefixes, and without Ethernet headers; each packet's source is looked up as well.

use std::net::IpAddr;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use memif::Lent;
use memif::queue::{ClientShape, FrameSink, Pair, pair};
use vwire_benches::generator::{Generator, udp_frames};
use vwire_dataplane::offload::Link;
use vwire_dataplane::port::{PortIndex, memif as memif_port};
use vwire_dataplane::route::counters::RouteTable;
use vwire_dataplane::route::domain::{Domain, DomainIndex, Mac, Member, MemberIndex, Neighbour, Target};
use vwire_dataplane::stats::Counters;
use vwire_dataplane::tables::swap::Publisher;
use vwire_dataplane::tables::{Entry, Forward, Place, Tables, WorkerId};
use vwire_dataplane::worker::command::{Command, Commands, Events};
use vwire_dataplane::worker::handoff::Handoff;
use vwire_dataplane::worker::{Mode, Worker, WorkerSpec};

const BURST: usize = 64;
const A: PortIndex = PortIndex(0);
const B: PortIndex = PortIndex(1);

/// Two connections, their client ends driven by a generator.
fn rig(frames: &[Vec<u8>]) -> (Generator, [memif::queue::Queues; 2]) {
    let [a, b] = [(); 2].map(|()| pair(ClientShape::default()).expect("memory for two rings"));
    let (Pair { client: client_a, server: server_a }, Pair { client: client_b, server: server_b }) = (a, b);
    let (tx, rx) = (client_a.tx.into_iter().next(), client_b.rx.into_iter().next());
    let (Some(tx), Some(rx)) = (tx, rx) else { unreachable!("a pair has a ring each way") };
    (Generator::new(tx, rx, frames).expect("frames fit"), [server_a, server_b])
}

/// Frames that a generator can send to a routing domain: 64 destinations, 10.1.0.1, 10.1.1.1 and so on, or only the first.
fn routed_frames(size: usize, destinations: u8, link: Link) -> Vec<Vec<u8>> {
    let mut frames = udp_frames(size, destinations.into());
    for (i, frame) in frames.iter_mut().enumerate() {
        frame[30..34].copy_from_slice(&[10, 1, i as u8, 1]);
        frame[24..26].fill(0);
        let words = frame[14..34].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
        let sum = words.sum::<u32>();
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        if link == Link::Ip {
            frame.drain(..14);
        }
    }
    frames
}

/// A domain of the two ports: 10.0.0.0/24 behind A, 10.1.0.0/16 and many /24 of it and of others behind B.
fn domain(link: Link) -> Domain {
    let mac = Mac([2, 0, 0, 0, 0, 2]);
    let member = |port| Some(Member { port: Some(port), link, mac, mtu: 9000, strict: true });
    let mut domain = Domain { members: Arc::new(vec![member(A), member(B)]), ..Domain::default() };
    let mut routes = RouteTable::default();
    let mut next = 0;
    let mut add = |domain: &mut Domain, address: [u8; 4], len: u8, at: u16| {
        routes.open(next);
        let target = Target { route: next, member: MemberIndex(at), via: 0 };
        domain.set_route(IpAddr::from(address), len, Some(target));
        next += 1;
    };
    add(&mut domain, [10, 0, 0, 0], 24, 0);
    for i in 0..10_000u32 {
        let [.., a, b] = i.to_be_bytes();
        add(&mut domain, [10, 1 + a, b, 0], 24, 1);
    }
    for i in 0..64 {
        let neighbour = Neighbour { mac: Mac([2, 0, 0, 0, 1, i]), member: MemberIndex(1) };
        domain.set_neighbour(IpAddr::from([10, 1, i, 1]), Some(neighbour));
    }
    domain.routes = Arc::new(routes);
    domain
}

fn worker(servers: [memif::queue::Queues; 2], routed: Option<Link>) -> (Worker, Publisher<Tables>) {
    let mut tables = Tables::default();
    for (from, to) in [(A, B), (B, A)] {
        let place = Place { domain: DomainIndex(0), member: MemberIndex(from.0) };
        let forward = if routed.is_some() { Forward::Route(place) } else { Forward::Xconnect(to) };
        tables.set(from, Entry { forward, owner: Some(WorkerId(0).into()) });
    }
    tables.domains.extend(routed.map(|link| Some(Arc::new(domain(link)))));
    let publisher = Publisher::new(tables);
    let commands = Commands::new().expect("a descriptor");
    for (port, queues) in [A, B].into_iter().zip(servers) {
        let parts = memif_port::parts(port, routed.unwrap_or_default(), queues.rx, queues.tx);
        assert!(commands.give(Command::Attach { port, attachment: Default::default(), parts }).is_ok());
    }
    let worker = Worker::new(WorkerSpec {
        id: WorkerId(0),
        mode: Mode::Poll,
        commands,
        events: Events::new().expect("a descriptor").0,
        tables: publisher.reader(),
        counters: Counters::anonymous(4).expect("memory"),
        handoff: Handoff::none(),
    });
    (worker.expect("a descriptor"), publisher)
}

struct Views<'a>(arrayvec::ArrayVec<Lent<'a>, BURST>);
impl<'a> FrameSink<'a> for Views<'a> {
    fn room(&self) -> usize {
        self.0.remaining_capacity()
    }
    fn frame(&mut self, frame: Lent<'a>) {
        self.0.push(frame);
    }
    fn chain(&mut self, _: &[Lent<'a>], _: usize) {}
}

fn xconnect(c: &mut Criterion) {
    let mut group = c.benchmark_group("cross-connect: a burst of 64, memif to memif");
    group.throughput(Throughput::Elements(BURST as u64));
    for size in [64usize, 512, 1500] {
        let kinds = [
            ("worker", udp_frames(size, 8), None),
            ("routed, one destination", routed_frames(size, 1, Link::Ethernet), Some(Link::Ethernet)),
            ("routed, 64 destinations", routed_frames(size, 64, Link::Ethernet), Some(Link::Ethernet)),
            ("routed, 64 destinations, IP mode", routed_frames(size, 64, Link::Ip), Some(Link::Ip)),
        ];
        for (name, frames, routed) in kinds {
            let (mut generator, servers) = rig(&frames);
            let (mut worker, _publisher) = worker(servers, routed);
            group.bench_function(BenchmarkId::new(name, size), |b| {
                b.iter(|| {
                    generator.send(BURST).expect("sound rings");
                    assert_eq!(worker.poll(), BURST);
                    generator.receive().expect("sound rings");
                });
            });
            let received = generator.received().packets;
            assert_eq!(received, generator.sent(), "{name}: nothing is lost");
        }
        let (mut generator, [mut from, mut to]) = rig(&udp_frames(size, 8));
        group.bench_function(BenchmarkId::new("queues alone", size), |b| {
            b.iter(|| {
                generator.send(BURST).expect("sound rings");
                let mut views = Views(arrayvec::ArrayVec::new());
                from.rx[0].receive(&mut views).expect("sound rings");
                to.tx[0].push_burst(&views.0).expect("room");
                drop(views);
                to.tx[0].publish();
                from.rx[0].release();
                generator.receive().expect("sound rings");
            });
        });
    }
    group.finish();
}

criterion_group!(benches, xconnect);
criterion_main!(benches);
