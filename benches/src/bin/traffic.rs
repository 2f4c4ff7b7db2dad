//! Makes or counts traffic: what the packet engine, or any other memif server or VXLAN peer, is measured with.
//!
//! ```text
//! traffic --from END --to END [--size 64,512,1500|imix] [--rate PPS] [--seconds 3] [--core 0]
//!     sends into the one, counts what comes out of the other; a line of JSON per size
//! traffic --from END …                          only sends (what arrives is counted elsewhere)
//! traffic --to END …                            only counts
//! traffic --latency --from SOCKET --to SOCKET --rate PPS
//!     each frame carries its time of departure; times of travel as p50, p99, p99.9
//! ```
//! An END is a memif socket (`PATH`, `@NAME`, `PATH:ID`, `PATH:FIRST-LAST`) or the far end of tunnels
//! (`vxlan/LOCAL/REMOTE/VNI`, `…/FIRST-LAST`); several, separated by commas, take turns.

use std::error::Error;
use std::time::{Duration, Instant};

use clap::Parser;
use hdrhistogram::Histogram;
use memif::Lent;
use memif::queue::FrameSink;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vwire_benches::ends::{BATCH, End, MemifEnd, Tally, small};
use vwire_benches::generator::{imix_frames, udp_frames};

/// Where a latency frame carries its departure: behind the Ethernet, IPv4 and UDP headers.
const STAMP: usize = 42;
/// Settling time before anything is counted.
const WARM_UP: Duration = Duration::from_millis(300);
/// Rates are taken over windows of this length, and the median window is reported: on a machine that does other things, too,
/// the mean says more about those.
const WINDOW: Duration = Duration::from_millis(20);

#[derive(Parser)]
struct Options {
    /// Ends to send into.
    #[arg(long, value_delimiter = ',')]
    from: Vec<String>,
    /// Ends to count at.
    #[arg(long, value_delimiter = ',')]
    to: Vec<String>,
    /// memif sockets to be connected to and otherwise left alone.
    #[arg(long, value_delimiter = ',')]
    idle: Vec<String>,
    /// Bytes per frame, or "imix" for the 7:4:1 mixture of 64, 594 and 1464.
    #[arg(long, value_delimiter = ',', default_value = "64,512,1500")]
    size: Vec<String>,
    /// Frames per second in all; as many as the peer takes if left out.
    #[arg(long)]
    rate: Option<u64>,
    /// How long each size is measured.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Core to run on.
    #[arg(long)]
    core: Option<usize>,
    /// Slots of each ring, as log2.
    #[arg(long, default_value_t = 10)]
    ring: u8,
    /// Flows per size.
    #[arg(long, default_value_t = 8)]
    flows: u16,
    /// Measure times of travel instead of counts.
    #[arg(long)]
    latency: bool,
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    if let Some(id) = options.core {
        core_affinity::set_for_current(core_affinity::CoreId { id });
    }
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?;
    let mut idle = Vec::new();
    for end in &options.idle {
        idle.extend(End::open(end, &small)?);
    }
    for size in &options.size {
        let mut senders = open(&options.from, options.ring)?;
        let mut counters = open(&options.to, options.ring)?;
        if options.latency {
            latency(&options, size, &mut senders, &mut counters)?;
        } else {
            traffic(&options, size, &mut senders, &mut counters)?;
        }
    }
    Ok(())
}

fn open(ends: &[String], ring: u8) -> Result<Vec<End>, Box<dyn Error>> {
    let mut opened = Vec::new();
    for end in ends {
        opened.extend(End::open(end, &|config| config.log2_ring = ring)?);
    }
    Ok(opened)
}

fn frames(size: &str, flows: u16) -> Result<Vec<Vec<u8>>, Box<dyn Error>> {
    Ok(if size == "imix" { imix_frames(flows) } else { udp_frames(size.parse()?, flows) })
}

/// How many frames are due by now.
struct Pace {
    start: Instant,
    rate: Option<u64>,
    given: u64,
}

impl Pace {
    fn new(rate: Option<u64>) -> Self {
        Self { start: Instant::now(), rate, given: 0 }
    }

    fn due(&self) -> usize {
        let Some(rate) = self.rate else { return BATCH };
        let by_now = (self.start.elapsed().as_secs_f64() * rate as f64) as u64;
        by_now.saturating_sub(self.given).min(BATCH as u64) as usize
    }
}

fn traffic(
    options: &Options,
    size: &str,
    senders: &mut [End],
    counters: &mut [End],
) -> Result<(), Box<dyn Error>> {
    let frames = frames(size, options.flows)?;
    for sender in &mut *senders {
        sender.prefill(&frames)?;
    }
    let (mut sent, mut got) = (0, Tally::default());
    let mut pace = Pace::new(options.rate);
    let mut windows = Windows::new(WARM_UP);
    let begin = Instant::now();
    let end = WARM_UP + Duration::from_secs_f64(options.seconds);
    while begin.elapsed() < end {
        let before = (sent, got.packets);
        for _ in 0..16 {
            for sender in &mut *senders {
                let count = sender.send(pace.due()) as u64;
                pace.given += count;
                sent += count;
            }
            for counter in &mut *counters {
                counter.receive(&mut got)?;
            }
        }
        windows.look(sent, got);
        if before == (sent, got.packets) {
            // Nothing is due and nothing came: on a shared core, those that it should come from need it.
            std::thread::yield_now();
        }
    }
    drain(counters, &mut got)?;
    report(size, windows, sent, got);
    Ok(())
}

/// Rates of the windows so far: frames sent, frames received, bytes received, each per second.
struct Windows {
    next: Instant,
    since: Instant,
    sent: u64,
    got: Tally,
    rates: [Vec<f64>; 3],
}

impl Windows {
    fn new(warm_up: Duration) -> Self {
        let next = Instant::now() + warm_up;
        Self { next, since: next, sent: 0, got: Tally::default(), rates: Default::default() }
    }

    #[inline]
    fn look(&mut self, sent: u64, got: Tally) {
        let now = Instant::now();
        if now < self.next {
            return;
        }
        if self.next > self.since {
            let seconds = now.duration_since(self.since).as_secs_f64();
            let moved = [sent - self.sent, got.packets - self.got.packets, got.bytes - self.got.bytes];
            self.rates.iter_mut().zip(moved).for_each(|(rates, moved)| rates.push(moved as f64 / seconds));
        }
        (self.sent, self.got, self.since, self.next) = (sent, got, now, now + WINDOW);
    }

    fn medians(self) -> [f64; 3] {
        self.rates.map(|mut rates| {
            rates.sort_by(f64::total_cmp);
            rates.get(rates.len() / 2).copied().unwrap_or(0.0)
        })
    }
}

/// What is still on its way when the sending stops.
fn drain(counters: &mut [End], got: &mut Tally) -> Result<(), Box<dyn Error>> {
    let mut last_arrival = Instant::now();
    while !counters.is_empty() && last_arrival.elapsed() < Duration::from_millis(200) {
        let before = got.packets;
        for counter in &mut *counters {
            counter.receive(got)?;
        }
        if got.packets > before {
            last_arrival = Instant::now();
        }
    }
    Ok(())
}

fn report(size: &str, windows: Windows, sent: u64, got: Tally) {
    let [sent_rate, packets, bytes] = windows.medians();
    println!(
        "{{\"size\":\"{size}\",\"sent_mpps\":{:.4},\"mpps\":{:.4},\"gbps\":{:.3},\"sent\":{sent},\"received\":{},\"lost\":{}}}",
        sent_rate / 1e6,
        packets / 1e6,
        bytes * 8.0 / 1e9,
        got.packets,
        sent as i64 - got.packets as i64,
    );
}

/// Times of travel of frames as they arrive, by one reading of the clock for all that are found at once.
struct Trips<'h> {
    now: u64,
    histogram: &'h mut Histogram<u64>,
}

impl<'a> FrameSink<'a> for Trips<'_> {
    fn room(&self) -> usize {
        BATCH
    }
    fn frame(&mut self, frame: Lent<'a>) {
        if let Some(stamp) = frame.skip(STAMP).head::<8>() {
            self.histogram.saturating_record(self.now.saturating_sub(u64::from_ne_bytes(stamp)));
        }
    }
    fn chain(&mut self, segments: &[Lent<'a>], _: usize) {
        self.frame(segments[0]);
    }
}

fn latency(
    options: &Options,
    size: &str,
    senders: &mut [End],
    counters: &mut [End],
) -> Result<(), Box<dyn Error>> {
    let ([End::Memif(sender)], [End::Memif(counter)]) = (senders, counters) else {
        return Err("--latency takes one memif socket each way".into());
    };
    let mut histogram = Histogram::<u64>::new_with_bounds(1, 1_000_000_000, 3)?;
    let sent = send_stamped(options, frames(size, 1)?.swap_remove(0), sender, counter, &mut histogram)?;
    let at = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1000.0;
    println!(
        "{{\"size\":\"{size}\",\"sent\":{sent},\"received\":{},\"p50_us\":{:.2},\"p99_us\":{:.2},\"p999_us\":{:.2},\"max_us\":{:.1}}}",
        histogram.len(),
        at(0.5),
        at(0.99),
        at(0.999),
        histogram.max() as f64 / 1000.0,
    );
    Ok(())
}

fn send_stamped(
    options: &Options,
    mut frame: Vec<u8>,
    sender: &mut MemifEnd,
    counter: &mut MemifEnd,
    histogram: &mut Histogram<u64>,
) -> Result<u64, Box<dyn Error>> {
    let clock = Instant::now();
    let mut pace = Pace::new(Some(options.rate.unwrap_or(100_000)));
    let end = Duration::from_secs_f64(options.seconds);
    let mut sent = 0;
    while clock.elapsed() < end + Duration::from_millis(200) {
        if clock.elapsed() < end {
            // One reading for the frames that leave together: a reading each would cap the rate.
            frame[STAMP..STAMP + 8].copy_from_slice(&(clock.elapsed().as_nanos() as u64).to_ne_bytes());
            for _ in 0..pace.due() {
                pace.given += 1;
                sent += u64::from(sender.tx.push(Lent::from(frame.as_slice())).is_ok());
            }
            sender.tx.publish();
        }
        counter.rx.receive(&mut Trips { now: clock.elapsed().as_nanos() as u64, histogram })?;
        counter.rx.release();
    }
    Ok(sent)
}
