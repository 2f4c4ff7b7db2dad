//! What one frame costs: the copy alone, and ring to ring through the queues, all on one core.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use memif::queue::{ClientShape, FrameSink, Pair, TxQueue, pair};
use memif::{Lent, Slot};
use std::hint::black_box;
use vwire_benches::generator::{Generator, udp_frames};

const SIZES: [usize; 3] = [64, 512, 1500];
const BURST: usize = 64;

/// One frame from one private buffer to another, both in the nearest cache: the routine itself.
fn copy(c: &mut Criterion) {
    let mut group = c.benchmark_group("copy");
    for size in SIZES {
        let from = vec![0x5a; size];
        let mut to = vec![0; size];
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            b.iter(|| Slot::from(black_box(&mut to[..])).write(0, Lent::from(black_box(&from[..]))));
        });
    }
    group.finish();
}

/// Frames go from the one ring into the other as they are found.
struct Direct<'t>(&'t mut TxQueue);

impl<'a> FrameSink<'a> for Direct<'_> {
    fn room(&self) -> usize {
        BURST
    }

    fn frame(&mut self, frame: Lent<'a>) {
        let _ = self.0.push(frame);
    }

    fn chain(&mut self, segments: &[Lent<'a>], _: usize) {
        let _ = self.0.push_chain(segments);
    }
}

/// A burst of 64: sent by the generator, moved from ring to ring by the server's ends, counted by the generator.
fn ring_to_ring(c: &mut Criterion) {
    let mut group = c.benchmark_group("ring_to_ring");
    for size in SIZES {
        let Pair { client: from_client, server: from_server } = pair(ClientShape::default()).expect("pair");
        let Pair { client: to_client, server: to_server } = pair(ClientShape::default()).expect("pair");
        let first = |mut queues: Vec<_>| queues.pop().expect("a ring each way");
        let mut rx = from_server.rx.into_iter().next().expect("a ring each way");
        let (mut tx, back) = (first(to_server.tx), to_client.rx.into_iter().next().expect("a ring each way"));
        let mut generator =
            Generator::new(first(from_client.tx), back, &udp_frames(size, 8)).expect("frames fit");
        group.throughput(Throughput::Elements(BURST as u64));
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            b.iter(|| {
                generator.send(BURST).expect("sound rings");
                rx.receive(&mut Direct(&mut tx)).expect("sound rings");
                tx.publish();
                rx.release();
                generator.receive().expect("sound rings");
            });
        });
        assert_eq!(generator.sent(), generator.received().packets, "nothing is lost on the way");
    }
    group.finish();
}

criterion_group!(benches, copy, ring_to_ring);
criterion_main!(benches);
