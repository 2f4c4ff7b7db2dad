//! VXLAN without the kernel: what a frame costs on its way into a send group, and on its way out of a received run.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use memif::Lent;
use vwire_dataplane::burst::{BURST, Burst, Frames};
use vwire_dataplane::offload::Link;
use vwire_dataplane::port::{PortIndex, Refused, RxContext, Tx, TxContext, UnderlayTx, Underlays};
use vwire_dataplane::route::domain::Mac;
use vwire_dataplane::stats::Counters;
use vwire_dataplane::tables::{Hop, Tables, Tunnel, Vni};
use vwire_dataplane::underlay::decap::{Decap, Run};
use vwire_dataplane::underlay::encap::Encap;
use vwire_dataplane::underlay::group::{Batch, Carrier};
use vwire_dataplane::underlay::l2::send::L2Tx;
use vwire_dataplane::wire::vxlan;

const UNDERLAY: PortIndex = PortIndex(0);
const TUNNEL: PortIndex = PortIndex(1);

/// Takes groups as the kernel would, at no cost.
struct Nowhere;

impl Carrier for Nowhere {
    fn most_datagrams(&self) -> usize {
        128
    }

    fn carry(&mut self, batch: &Batch<'_>, _: &Counters) {
        black_box(batch.bytes);
    }
}

fn tunnel() -> Tunnel {
    Tunnel {
        port: TUNNEL,
        underlay: UNDERLAY,
        remote: ([10, 9, 0, 2], vxlan::PORT).into(),
        vni: Vni::new(42).expect("24 bits"),
        max_frame: 1464,
        link: Link::Ethernet,
    }
}

/// Frames of a UDP flow each.
fn frames(len: usize, flows: u8) -> Vec<Vec<u8>> {
    let frame = |flow| {
        let mut frame = vec![0x55; len];
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[14..34].copy_from_slice(&[0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame[35] = flow;
        frame
    };
    (0..flows).map(frame).collect()
}

/// Sends a burst of these frames by the tunnel, whose underlay is `by`.
fn send(
    frames: &[Vec<u8>],
    tunnel: &Tunnel,
    by: &mut impl UnderlayTx,
    (tables, counters): (&Tables, &Counters),
    underlays: &mut Underlays,
    refused: &mut Refused,
) {
    let mut burst = Burst::new(UNDERLAY);
    frames.iter().cycle().take(BURST).for_each(|frame| burst.push(Lent::from(&frame[..])));
    let mut context = TxContext { port: TUNNEL, counters, tables, underlays, refused };
    for (_, run) in burst.runs() {
        by.send(tunnel, run, &mut context);
    }
}

fn encapsulation(c: &mut Criterion) {
    let mut group = c.benchmark_group("encapsulation");
    group.throughput(Throughput::Elements(BURST as u64));
    for (len, flows) in [(64, 1), (64, 16), (512, 1), (1450, 1)] {
        let frames = frames(len, flows);
        let (tables, tunnel, counters) =
            (Tables::default(), tunnel(), Counters::anonymous(4).expect("counters"));
        let (mut others, mut refused) = (Underlays::default(), Refused::new());
        let mut underlay = Encap::new(Nowhere, 16, 4, 64);
        group.bench_function(BenchmarkId::new(format!("{flows} flows"), len), |b| {
            b.iter(|| {
                send(&frames, &tunnel, &mut underlay, (&tables, &counters), &mut others, &mut refused);
                underlay.flush(true, &counters)
            });
        });
    }
    group.finish();
}

/// Copies frames once, as a device's sender does, and forgets them.
struct OneCopy(Vec<u8>);

impl Tx for OneCopy {
    fn send(&mut self, frames: Frames<'_, '_>, context: &mut TxContext<'_>) {
        for frame in frames.as_slice() {
            let mut at = 0;
            for view in frames.views(frame) {
                at += view.copy_to(&mut self.0[at..]);
            }
            black_box(&self.0[..at]);
        }
        context.sent(frames.len() as u64, frames.bytes());
    }
}

/// The same behind all headers, from the template of an underlay on an Ethernet port.
fn template(c: &mut Criterion) {
    let mut group = c.benchmark_group("template");
    group.throughput(Throughput::Elements(BURST as u64));
    let (tunnel, counters) = (tunnel(), Counters::anonymous(4).expect("counters"));
    let mut tables = Tables { publication: 1, ..Tables::default() };
    let (from, to) = (Mac([2; 6]), Mac([4; 6]));
    tables.set_hop(TUNNEL, Some(Hop { from, to, local: [10, 9, 0, 1].into(), max_frame: 1464 }));
    for len in [64, 512, 1450] {
        let frames = frames(len, 1);
        let (mut others, mut refused) = (Underlays::default(), Refused::new());
        let mut underlay = L2Tx::new(UNDERLAY, Box::new(OneCopy(vec![0; 2048])), Arc::default());
        group.bench_function(BenchmarkId::from_parameter(len), |b| {
            b.iter(|| {
                send(&frames, &tunnel, &mut underlay, (&tables, &counters), &mut others, &mut refused);
            });
        });
    }
    group.finish();
}

fn decapsulation(c: &mut Criterion) {
    let mut group = c.benchmark_group("decapsulation");
    group.throughput(Throughput::Elements(BURST as u64));
    let mut tables = Tables { generation: 1, ..Tables::default() };
    tables.tunnels.insert(&tunnel());
    let counters = Counters::anonymous(4).expect("counters");
    let context = RxContext { tables: &tables, counters: &counters };
    for len in [64, 512, 1450] {
        let datagram = [&vxlan::header(tunnel().vni)[..], &frames(len, 1)[0]].concat();
        let buffer = datagram.repeat(BURST.min(65_507 / datagram.len()));
        let mut decap = Decap::new(UNDERLAY, [10, 9, 0, 1].into());
        group.bench_function(BenchmarkId::from_parameter(len), |b| {
            b.iter(|| {
                let mut burst = Burst::new(UNDERLAY);
                while burst.room() > 0 {
                    let mut run = Run {
                        sender: [10, 9, 0, 2].into(),
                        datagram_len: datagram.len(),
                        next: 0,
                        len: buffer.len(),
                    };
                    decap.lend(&buffer, &mut run, &mut burst, &context);
                }
                burst.runs().map(|(_, frames)| frames.bytes()).sum::<u64>()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, encapsulation, template, decapsulation);
criterion_main!(benches);
