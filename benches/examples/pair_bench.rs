//! memif to memif, both ends served by one loop on one core, the traffic generator on the other: our queues with all their
//! checks beside a bare loop without any.
//!
//! `cargo run --release -p vwire-benches --example pair_bench [-- size ...]`
//! Each figure is the best of some rounds, each of which is the median of many short windows, as `traffic` takes it.

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::{Duration, Instant};
use std::{env, ptr, thread};

use memif::Lent;
use memif::queue::{BufferSpacing, ClientMemory, ClientShape, FrameSink, Queues, RxQueue, TxQueue, serve};
use memif::ring::{Direction, RingLocation};
use rustix::mm::{MapFlags, ProtFlags};
use vwire_benches::generator::{Generator, udp_frames};

const WINDOW: Duration = Duration::from_millis(2);
/// Rounds of each engine in turn, and windows in a round.
const ROUNDS: usize = 8;
const WINDOWS: usize = 30;
const BURST: usize = 64;

static STOP: AtomicBool = AtomicBool::new(false);

const ENGINES: [Engine; 3] = [bare_engine, burst_engine, direct_engine];

fn main() {
    let sizes: Vec<usize> = env::args().skip(1).filter_map(|arg| arg.parse().ok()).collect();
    let sizes = if sizes.is_empty() { vec![64, 512, 1500] } else { sizes };
    println!("median window of the best round, Mpps; in brackets the part of the bare loop");
    println!("{:>8} {:>6} {:>10} {:>18} {:>18}", "buffers", "bytes", "bare", "burst", "direct");
    for spacing in [BufferSpacing::Packed, BufferSpacing::OddLines] {
        for &size in &sizes {
            row(spacing, size);
        }
    }
}

fn row(spacing: BufferSpacing, size: usize) {
    let mut best = [0f64; ENGINES.len()];
    for _ in 0..ROUNDS {
        for (engine, best) in ENGINES.iter().zip(&mut best) {
            *best = best.max(measure(spacing, size, *engine));
        }
    }
    let [bare, burst, direct] = best;
    let (name, of_burst, of_direct) = (format!("{spacing:?}"), burst / bare, direct / bare);
    println!(
        "{name:>8} {size:>6} {bare:>10.2} {burst:>10.2} ({of_burst:>5.3}) {direct:>10.2} ({of_direct:>5.3})"
    );
}

/// One connection: the server's queues, and the same memory as bare addresses.
struct Link {
    server: Queues,
    client: Option<Queues>,
    bare: Bare,
}

/// What a loop without checks needs: the rings to and from the server, and the region.
struct Bare {
    start: *mut u8,
    to_server: RingLocation,
    to_client: RingLocation,
}

// SAFETY: the mapping is never unmapped, and is used by one engine at a time.
unsafe impl Send for Bare {}

impl Link {
    fn new(spacing: BufferSpacing) -> Self {
        let memory =
            ClientMemory::create(ClientShape { spacing, ..ClientShape::default() }).expect("client memory");
        let server = serve(&memory).expect("server queues");
        let bare = Bare::map(&memory);
        Self { server, client: Some(memory.connect().expect("client queues")), bare }
    }

    fn take_client(&mut self) -> Queues {
        self.client.take().expect("taken once")
    }
}

impl Bare {
    fn map(memory: &ClientMemory) -> Self {
        let (size, fd) = memory.regions().next().expect("one region");
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe { rustix::mm::mmap(ptr::null_mut(), size as usize, prot, flags, fd, 0) };
        let ring = |direction| {
            memory.rings().iter().find(|ring| ring.direction == direction).expect("a ring each way").location
        };
        Self {
            start: start.expect("mmap").cast(),
            to_server: ring(Direction::ClientToServer),
            to_client: ring(Direction::ServerToClient),
        }
    }
}

type Engine = fn(Link, Link);

/// Runs the engine on core 1 and the generator on core 0; Mpps of the median window.
fn measure(spacing: BufferSpacing, size: usize, engine: Engine) -> f64 {
    let (mut from, mut to) = (Link::new(spacing), Link::new(spacing));
    let (from_client, to_client) = (from.take_client(), to.take_client());
    let tx = from_client.tx.into_iter().next().expect("a ring");
    let rx = to_client.rx.into_iter().next().expect("a ring");
    let mut generator = Generator::new(tx, rx, &udp_frames(size, 8)).expect("frames fit");
    STOP.store(false, Ordering::SeqCst);
    let engine = thread::spawn(move || {
        pin(1);
        engine(from, to);
    });
    pin(0);
    let rate = median_window(&mut generator);
    STOP.store(true, Ordering::SeqCst);
    engine.join().expect("engine");
    rate
}

fn pin(core: usize) {
    core_affinity::set_for_current(core_affinity::CoreId { id: core });
}

fn median_window(generator: &mut Generator) -> f64 {
    let mut rates: Vec<f64> = (0..WINDOWS).map(|_| window(generator)).collect();
    rates.sort_by(f64::total_cmp);
    rates[WINDOWS / 2]
}

fn window(generator: &mut Generator) -> f64 {
    let (start, before) = (Instant::now(), generator.received().packets);
    while start.elapsed() < WINDOW {
        for _ in 0..16 {
            generator.turn().expect("rings are sound");
        }
    }
    (generator.received().packets - before) as f64 / start.elapsed().as_secs_f64() / 1e6
}

fn ends(from: Link, to: Link) -> (RxQueue, TxQueue) {
    let rx = from.server.rx.into_iter().next().expect("a ring");
    (rx, to.server.tx.into_iter().next().expect("a ring"))
}

/// A burst of views, as the engine's ports hand them on.
struct Burst<'a> {
    frames: [MaybeUninit<Lent<'a>>; BURST],
    count: usize,
}

impl<'a> Burst<'a> {
    fn new() -> Self {
        Self { frames: [const { MaybeUninit::uninit() }; BURST], count: 0 }
    }

    fn frames(&self) -> &[Lent<'a>] {
        // SAFETY: the first `count` are written.
        unsafe { std::slice::from_raw_parts(self.frames.as_ptr().cast(), self.count) }
    }
}

impl<'a> FrameSink<'a> for Burst<'a> {
    #[inline]
    fn room(&self) -> usize {
        BURST
    }

    #[inline]
    fn frame(&mut self, frame: Lent<'a>) {
        self.frames[self.count].write(frame);
        self.count += 1;
    }

    fn chain(&mut self, _: &[Lent<'a>], _: usize) {}
}

/// Receive into a burst of views, send the burst.
fn burst_engine(from: Link, to: Link) {
    let (mut rx, mut tx) = ends(from, to);
    while !STOP.load(Ordering::Relaxed) {
        {
            let mut burst = Burst::new();
            rx.receive(&mut burst).expect("rings are sound");
            let _ = tx.push_burst(burst.frames());
        }
        tx.publish();
        rx.release();
    }
}

/// Frames go from the one ring into the other as they are found.
struct Direct<'t>(&'t mut TxQueue);

impl<'a> FrameSink<'a> for Direct<'_> {
    #[inline]
    fn room(&self) -> usize {
        BURST
    }

    #[inline]
    fn frame(&mut self, frame: Lent<'a>) {
        let _ = self.0.push(frame);
    }

    fn chain(&mut self, _: &[Lent<'a>], _: usize) {}
}

fn direct_engine(from: Link, to: Link) {
    let (mut rx, mut tx) = ends(from, to);
    while !STOP.load(Ordering::Relaxed) {
        rx.receive(&mut Direct(&mut tx)).expect("rings are sound");
        tx.publish();
        rx.release();
    }
}

/// One copy from ring to ring with nothing checked, counted or chained: what the memory system allows.
fn bare_engine(from: Link, to: Link) {
    let (source, sink) = (from.bare, to.bare);
    // SAFETY: the layout is our own client's (see `memif::ring`), its descriptors are good, and both mappings stay.
    unsafe {
        let rx = source.start.add(source.to_server.offset as usize);
        let tx = sink.start.add(sink.to_client.offset as usize);
        let (rx_head, rx_tail) = (&*rx.add(6).cast::<AtomicU16>(), &*rx.add(64).cast::<AtomicU16>());
        let (tx_head, tx_tail) = (&*tx.add(6).cast::<AtomicU16>(), &*tx.add(64).cast::<AtomicU16>());
        let (rx_desc, tx_desc) = (rx.add(128).cast::<[u32; 4]>(), tx.add(128).cast::<[u32; 4]>());
        let mask = (1u16 << source.to_server.log2_size) - 1;
        let (mut a, mut b) = (0u16, 0u16);
        while !STOP.load(Ordering::Relaxed) {
            let ready = rx_head.load(Ordering::Acquire).wrapping_sub(a);
            let room = tx_head.load(Ordering::Acquire).wrapping_sub(b);
            let count = ready.min(room).min(BURST as u16);
            for i in 0..count {
                let ahead = *rx_desc.add(usize::from(a.wrapping_add(i + 8) & mask));
                memif::bytes::prefetch_read(ptr::NonNull::new_unchecked(source.start.add(ahead[2] as usize)));
                let from = *rx_desc.add(usize::from(a.wrapping_add(i) & mask));
                let slot = tx_desc.add(usize::from(b.wrapping_add(i) & mask));
                let len = from[1] as usize;
                ptr::copy_nonoverlapping(
                    source.start.add(from[2] as usize),
                    sink.start.add((*slot)[2] as usize),
                    len,
                );
                (*slot)[0] = 0;
                (*slot)[1] = len as u32;
            }
            a = a.wrapping_add(count);
            b = b.wrapping_add(count);
            tx_tail.store(b, Ordering::Release);
            rx_tail.store(a, Ordering::Release);
        }
    }
}
