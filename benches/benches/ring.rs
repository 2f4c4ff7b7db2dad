//! The hand-off ring beside the queues that one would otherwise take: bursts of 32 records of 64 bytes, on one thread (what
//! the queue itself costs) and across two (what the cache lines cost).

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use crossbeam::queue::ArrayQueue;
use memif::Lent;
use vwire_dataplane::ring::{Consumer, Producer, ring};

const BURST: usize = 32;
const SLOTS: usize = 1024;
/// What our ring stores per frame of 64 bytes: tag and bytes.
type Record = ([u64; 2], [u8; 64]);

fn push_burst(producer: &mut Producer, bytes: &[u8; 64]) -> usize {
    let pushed = (0..BURST)
        .take_while(|i| producer.push([*i as u64, 0], 64, std::iter::once(Lent::from(&bytes[..]))))
        .count();
    producer.publish();
    pushed
}

fn drain(consumer: &mut Consumer) -> usize {
    consumer.drain(|tag, view| {
        black_box((tag, view.head::<64>()));
    })
}

fn one_thread(c: &mut Criterion) {
    let mut group = c.benchmark_group("ring: burst of 32 x 64 B, one thread");
    group.throughput(Throughput::Elements(BURST as u64));
    let bytes = [7; 64];
    let (mut producer, mut consumer) = ring(SLOTS * 88);
    group.bench_function("vwire byte ring", |b| {
        b.iter(|| {
            push_burst(&mut producer, &bytes);
            drain(&mut consumer)
        });
    });
    let queue = ArrayQueue::<Record>::new(SLOTS);
    group.bench_function("crossbeam ArrayQueue", |b| {
        b.iter(|| {
            for i in 0..BURST {
                let _ = queue.push(([i as u64, 0], bytes));
            }
            while let Some(record) = queue.pop() {
                black_box(record);
            }
        });
    });
    let (mut tx, mut rx) = rtrb::RingBuffer::<Record>::new(SLOTS);
    group.bench_function("rtrb", |b| {
        b.iter(|| {
            for i in 0..BURST {
                let _ = tx.push(([i as u64, 0], bytes));
            }
            while let Ok(record) = rx.pop() {
                black_box(record);
            }
        });
    });
    group.finish();
}

/// Moves `records` from one thread to another and returns how long that took. `push` and `pop` return how many they moved.
fn across<P: Send, C>(
    records: u64,
    (mut producer, mut consumer): (P, C),
    push: fn(&mut P) -> usize,
    pop: fn(&mut C) -> usize,
) -> Duration {
    std::thread::scope(|scope| {
        let start = Instant::now();
        scope.spawn(move || {
            core_affinity::set_for_current(core_affinity::CoreId { id: 1 });
            let mut sent = 0;
            while sent < records {
                sent += push(&mut producer) as u64;
            }
        });
        core_affinity::set_for_current(core_affinity::CoreId { id: 0 });
        let mut got = 0;
        while got < records {
            got += pop(&mut consumer) as u64;
        }
        start.elapsed()
    })
}

fn two_threads(c: &mut Criterion) {
    let mut group = c.benchmark_group("ring: burst of 32 x 64 B, two threads");
    group.throughput(Throughput::Elements(1)).sample_size(10).measurement_time(Duration::from_secs(3));
    group.bench_function("vwire byte ring", |b| {
        b.iter_custom(|n| across(n, ring(SLOTS * 88), |p| push_burst(p, &[7; 64]), drain));
    });
    group.bench_function("crossbeam ArrayQueue", |b| {
        b.iter_custom(|n| {
            let queue = ArrayQueue::<Record>::new(SLOTS);
            across(
                n,
                (&queue, &queue),
                |q| usize::from(q.push(([0; 2], [7; 64])).is_ok()),
                |q| usize::from(q.pop().map(black_box).is_some()),
            )
        });
    });
    group.bench_function("rtrb", |b| {
        b.iter_custom(|n| {
            across(
                n,
                rtrb::RingBuffer::<Record>::new(SLOTS),
                |tx| usize::from(tx.push(([0; 2], [7; 64])).is_ok()),
                |rx| usize::from(rx.pop().map(black_box).is_ok()),
            )
        });
    });
    group.finish();
}

criterion_group!(benches, one_thread, two_threads);
criterion_main!(benches);
