//! A memif client that makes or counts traffic: what the packet engine, or any other memif server, is measured with.
//!
//! ```text
//! memif_traffic --from SOCKET --to SOCKET [--size 64,512,1500|imix] [--rate PPS] [--seconds 3] [--core 0]
//!     sends into the one, counts what comes out of the other; a line of JSON per size
//! memif_traffic --from SOCKET ...               only sends (what arrives is counted elsewhere)
//! memif_traffic --to SOCKET ...                 only counts
//! memif_traffic --latency --from … --to … --rate PPS
//!     each frame carries its time of departure; round trips as p50, p99, p99.9
//! ```
//! Several sockets, separated by commas, are served in turn (`--from a,b`: frames alternate between bursts of a and of b).

use std::error::Error;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use clap::Parser;
use hdrhistogram::Histogram;
use memif::handshake::Mode;
use memif::message::Name;
use memif::queue::{FrameSink, RxQueue, TxQueue};
use memif::{Address, Dialer, DialerConfig, Event, Lent};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vwire_benches::generator::{imix_frames, udp_frames};

/// Frames that one socket is given, or asked for, before the next one has its turn.
const BATCH: usize = 256;
/// Where a latency frame carries its departure: behind the Ethernet, IPv4 and UDP headers.
const STAMP: usize = 42;
/// Settling time before anything is counted.
const WARM_UP: Duration = Duration::from_millis(300);

#[derive(Parser)]
struct Options {
    /// Sockets to send into ("@name" is abstract); each is interface 0 unless ":ID" follows.
    #[arg(long, value_delimiter = ',')]
    from: Vec<String>,
    /// Sockets to count at.
    #[arg(long, value_delimiter = ',')]
    to: Vec<String>,
    /// Bytes per frame, or "imix" for the 7:4:1 mixture of 64, 594 and 1518 (each size a flow of its own).
    #[arg(long, value_delimiter = ',', default_value = "64,512,1500")]
    size: Vec<String>,
    /// Frames per second; as many as the peer takes if left out.
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
    /// Measure round trips instead of counts.
    #[arg(long)]
    latency: bool,
    /// Print a line when all sockets are connected.
    #[arg(long)]
    announce: bool,
}

/// One connected socket; the dialer keeps it open.
struct Client {
    _dialer: Dialer,
    tx: TxQueue,
    rx: RxQueue,
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    if let Some(id) = options.core {
        core_affinity::set_for_current(core_affinity::CoreId { id });
    }
    for size in &options.size {
        let mut senders = connect_all(&options.from, options.ring)?;
        let mut counters = connect_all(&options.to, options.ring)?;
        if options.announce {
            println!("connected");
        }
        if options.latency {
            latency(&options, size, &mut senders, &mut counters)?;
        } else {
            traffic(&options, size, &mut senders, &mut counters)?;
        }
    }
    Ok(())
}

fn connect_all(sockets: &[String], ring: u8) -> Result<Vec<Client>, Box<dyn Error>> {
    sockets.iter().map(|socket| connect(socket, ring)).collect()
}

fn connect(socket: &str, ring: u8) -> Result<Client, Box<dyn Error>> {
    let (path, id) = socket.rsplit_once(':').unwrap_or((socket, "0"));
    let address = match path.strip_prefix('@') {
        Some(name) => Address::abstract_name(name)?,
        None => Address::path(path)?,
    };
    let mut config = DialerConfig::new(id.parse()?, Mode::Ethernet, Name::cut("traffic"));
    config.log2_ring = ring;
    let mut dialer = Dialer::new(address, config)?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        for event in dialer.process() {
            if let Event::Connected { link, .. } = event {
                let (Some(tx), Some(rx)) = (link.tx.into_iter().next(), link.rx.into_iter().next()) else {
                    return Err("the server gave no rings".into());
                };
                return Ok(Client { _dialer: dialer, tx, rx });
            }
        }
        let wait = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
        poll(&mut [PollFd::new(&dialer.as_fd(), PollFlags::IN)], Some(&wait))?;
    }
    Err(format!("{socket}: no connection within 10 s").into())
}

fn frames(size: &str, flows: u16) -> Result<Vec<Vec<u8>>, Box<dyn Error>> {
    Ok(if size == "imix" { imix_frames(flows) } else { udp_frames(size.parse()?, flows) })
}

#[derive(Clone, Copy, Default)]
struct Tally {
    packets: u64,
    bytes: u64,
}

impl<'a> FrameSink<'a> for Tally {
    #[inline]
    fn room(&self) -> usize {
        BATCH
    }
    #[inline]
    fn frame(&mut self, frame: Lent<'a>) {
        self.packets += 1;
        self.bytes += frame.len() as u64;
    }
    fn chain(&mut self, _: &[Lent<'a>], total: usize) {
        self.packets += 1;
        self.bytes += total as u64;
    }
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
    senders: &mut [Client],
    counters: &mut [Client],
) -> Result<(), Box<dyn Error>> {
    let frames = frames(size, options.flows)?;
    let views: Vec<Lent<'_>> = frames.iter().map(|frame| Lent::from(frame.as_slice())).collect();
    for sender in &mut *senders {
        sender.tx.prefill(&views)?;
    }
    let (mut sent, mut got) = (0, Tally::default());
    let (mut sent_before, mut before) = (0, Tally::default());
    let mut pace = Pace::new(options.rate);
    let begin = Instant::now();
    let mut counting_since = None;
    let end = WARM_UP + Duration::from_secs_f64(options.seconds);
    while begin.elapsed() < end {
        for _ in 0..64 {
            for sender in &mut *senders {
                let count = sender.tx.republish(pace.due());
                pace.given += count as u64;
                sent += count as u64;
            }
            for counter in &mut *counters {
                counter.rx.receive(&mut got)?;
                counter.rx.release();
            }
        }
        if counting_since.is_none() && begin.elapsed() > WARM_UP {
            (sent_before, before) = (sent, got);
            counting_since = Some(Instant::now());
        }
    }
    let seconds = counting_since.map_or(0.0, |since| since.elapsed().as_secs_f64());
    drain(counters, &mut got)?;
    report(size, seconds, (sent, sent_before), (got, before));
    Ok(())
}

/// What is still on its way when the sending stops.
fn drain(counters: &mut [Client], got: &mut Tally) -> Result<(), Box<dyn Error>> {
    let mut last_arrival = Instant::now();
    while !counters.is_empty() && last_arrival.elapsed() < Duration::from_millis(200) {
        let before = got.packets;
        for counter in &mut *counters {
            counter.rx.receive(got)?;
            counter.rx.release();
        }
        if got.packets > before {
            last_arrival = Instant::now();
        }
    }
    Ok(())
}

fn report(size: &str, seconds: f64, (sent, sent_before): (u64, u64), (got, before): (Tally, Tally)) {
    println!(
        "{{\"size\":\"{size}\",\"seconds\":{seconds:.3},\"sent_mpps\":{:.4},\"mpps\":{:.4},\"gbps\":{:.3},\"sent\":{sent},\"received\":{},\"lost\":{}}}",
        (sent - sent_before) as f64 / seconds / 1e6,
        (got.packets - before.packets) as f64 / seconds / 1e6,
        (got.bytes - before.bytes) as f64 * 8.0 / seconds / 1e9,
        got.packets,
        sent as i64 - got.packets as i64,
    );
}

/// Round trips of frames as they arrive.
struct Trips<'h> {
    clock: Instant,
    histogram: &'h mut Histogram<u64>,
}

impl<'a> FrameSink<'a> for Trips<'_> {
    fn room(&self) -> usize {
        BATCH
    }
    fn frame(&mut self, frame: Lent<'a>) {
        if let Some(stamp) = frame.skip(STAMP).head::<8>() {
            let trip = (self.clock.elapsed().as_nanos() as u64).saturating_sub(u64::from_ne_bytes(stamp));
            self.histogram.saturating_record(trip);
        }
    }
    fn chain(&mut self, segments: &[Lent<'a>], _: usize) {
        self.frame(segments[0]);
    }
}

fn latency(
    options: &Options,
    size: &str,
    senders: &mut [Client],
    counters: &mut [Client],
) -> Result<(), Box<dyn Error>> {
    let mut frame = frames(size, 1)?.swap_remove(0);
    let clock = Instant::now();
    let mut histogram = Histogram::<u64>::new_with_bounds(1, 1_000_000_000, 3)?;
    let (sender, counter) = (&mut senders[0], &mut counters[0]);
    let mut pace = Pace::new(Some(options.rate.unwrap_or(100_000)));
    let end = Duration::from_secs_f64(options.seconds);
    let mut sent = 0u64;
    while clock.elapsed() < end + Duration::from_millis(200) {
        if clock.elapsed() < end {
            for _ in 0..pace.due() {
                frame[STAMP..STAMP + 8].copy_from_slice(&(clock.elapsed().as_nanos() as u64).to_ne_bytes());
                pace.given += 1;
                sent += u64::from(sender.tx.push(Lent::from(frame.as_slice())).is_ok());
            }
            sender.tx.publish();
        }
        counter.rx.receive(&mut Trips { clock, histogram: &mut histogram })?;
        counter.rx.release();
    }
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
