//! A turn of the worker that moves one burst from a memif to another: all of the engine, without a second core. Beside it, the
//! same burst through the two queues alone: what tables, counters and the loop add is the difference.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use memif::Lent;
use memif::queue::{ClientShape, FrameSink, Pair, pair};
use vwire_benches::generator::{Generator, udp_frames};
use vwire_dataplane::port::{PortIndex, memif as memif_port};
use vwire_dataplane::stats::Counters;
use vwire_dataplane::tables::swap::Publisher;
use vwire_dataplane::tables::{Entry, Forward, Tables, WorkerId};
use vwire_dataplane::worker::command::{Command, Commands, Events};
use vwire_dataplane::worker::handoff::Handoff;
use vwire_dataplane::worker::{Mode, Worker, WorkerSpec};

const BURST: usize = 64;
const A: PortIndex = PortIndex(0);
const B: PortIndex = PortIndex(1);

/// Two connections, their client ends driven by a generator.
fn rig(size: usize) -> (Generator, [memif::queue::Queues; 2]) {
    let [a, b] = [(); 2].map(|()| pair(ClientShape::default()).expect("memory for two rings"));
    let (Pair { client: client_a, server: server_a }, Pair { client: client_b, server: server_b }) = (a, b);
    let (tx, rx) = (client_a.tx.into_iter().next(), client_b.rx.into_iter().next());
    let (Some(tx), Some(rx)) = (tx, rx) else { unreachable!("a pair has a ring each way") };
    (Generator::new(tx, rx, &udp_frames(size, 8)).expect("frames fit"), [server_a, server_b])
}

fn worker(servers: [memif::queue::Queues; 2]) -> (Worker, Publisher<Tables>) {
    let mut tables = Tables::default();
    for (from, to) in [(A, B), (B, A)] {
        tables.set(from, Entry { forward: Forward::Xconnect(to), owner: Some(WorkerId(0)) });
    }
    let publisher = Publisher::new(tables);
    let commands = Commands::new().expect("a descriptor");
    for (port, queues) in [A, B].into_iter().zip(servers) {
        let parts = memif_port::parts(port, vwire_dataplane::offload::Link::Ethernet, queues.rx, queues.tx);
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
        let (mut generator, servers) = rig(size);
        let (mut worker, _publisher) = worker(servers);
        group.bench_function(BenchmarkId::new("worker", size), |b| {
            b.iter(|| {
                generator.send(BURST).expect("sound rings");
                assert_eq!(worker.poll(), BURST);
                generator.receive().expect("sound rings");
            });
        });
        let (mut generator, [mut from, mut to]) = rig(size);
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
