//! The one copy: from a lent view to a slot, over as many buffers as a ring has, so that caches are as full as in real life.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use memif::{Lent, Slot};

const SLOTS: usize = 1024;

fn copy(c: &mut Criterion) {
    let mut group = c.benchmark_group("copy: lent view to slot");
    for len in [64usize, 128, 256, 512, 1500, 9000] {
        let stride = len.next_multiple_of(2048);
        let source = vec![7u8; SLOTS * stride];
        let mut target = vec![0u8; SLOTS * stride];
        group.throughput(Throughput::Bytes(len as u64));
        let mut at = 0;
        group.bench_function(BenchmarkId::from_parameter(len), |b| {
            b.iter(|| {
                at = (at + stride) % (SLOTS * stride);
                Lent::from(&source[(at + 8 * stride) % (SLOTS * stride)..][..len]).prefetch();
                Slot::from(&mut target[at..at + stride]).write(0, Lent::from(&source[at..at + len]))
            });
        });
    }
    group.finish();
}

criterion_group!(benches, copy);
criterion_main!(benches);
