//! A large table by the API: how long it takes to say a million routes to a running engine, in batches; what memory they take; and what
//! becomes of traffic while routes in the middle of them change one by one.
//!
//! `routes [--routes N] [--batch N] [--changes N]`. The engine runs in this process, its API on a unix socket as always. Packets go from
//! one in-process pipe to another, at most 64 on the way, so that a lost one is the table's fault: the program fails then.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clap::Parser;
use tonic::transport::Channel;
use vwire_benches::generator::udp_frames;
use vwire_dataplane::agent::run::Dataplane;
use vwire_dataplane::config::Config;
use vwire_dataplane::fdpass;
use vwire_dataplane::port::pipe::PipeEnd;
use vwire_proto::dataplane::v1 as pb;
use vwire_proto::dataplane::v1::dataplane_client::DataplaneClient;
use vwire_proto::dataplane::v1::op::Op;

/// Command line.
#[derive(Parser)]
struct Arguments {
    /// How many routes; at most 1,048,000.
    #[arg(long, default_value_t = 1_000_000)]
    routes: u32,
    /// Routes in one Apply; at most 4096.
    #[arg(long, default_value_t = 4096)]
    batch: usize,
    /// Changes of one route each while packets flow.
    #[arg(long, default_value_t = 1000)]
    changes: u32,
}

type Error = Box<dyn std::error::Error>;

/// Route `i`: a /24 from 20.0.0.0 on.
fn prefix(i: u32) -> String {
    format!("{}/24", std::net::Ipv4Addr::from(0x1400_0000 + (i << 8)))
}

fn set_route(prefix: String, port: &str) -> pb::Op {
    let route = Some(pb::Route { prefix, port: port.into(), via: "10.0.1.1".into() });
    pb::Op { op: Some(Op::SetRoute(pb::SetRoute { domain: "net".into(), route })) }
}

fn remove_route(prefix: String) -> pb::Op {
    pb::Op { op: Some(Op::RemoveRoute(pb::RemoveRoute { domain: "net".into(), prefix })) }
}

/// Ports a and b; 10.0.0.0/24 is behind the one, 10.0.1.0/24 behind the other.
fn two_ports() -> pb::State {
    let port = |name: &str| pb::Port {
        name: name.into(),
        kind: Some(pb::port::Kind::Pipe(pb::Pipe { pipe: name.into() })),
        ..Default::default()
    };
    let member = |name: &str, neighbour: &str| pb::DomainPort {
        port: name.into(),
        mac: "02:00:00:00:00:02".into(),
        neighbours: vec![pb::Neighbour {
            address: neighbour.into(),
            mac: "02:00:00:00:00:03".into(),
            ..Default::default()
        }],
        ..Default::default()
    };
    let route =
        |prefix: &str, port: &str| pb::Route { prefix: prefix.into(), port: port.into(), via: String::new() };
    pb::State {
        ports: vec![port("a"), port("b")],
        domains: vec![pb::Domain {
            name: "net".into(),
            gateways: vec!["10.0.2.1".into()],
            ports: vec![member("a", "10.0.0.1"), member("b", "10.0.1.1")],
            routes: vec![route("10.0.0.0/24", "a"), route("10.0.1.0/24", "b")],
        }],
        ..Default::default()
    }
}

/// A packet to route `i`.
fn packet(i: u32) -> Vec<u8> {
    let mut frame = udp_frames(100, 1).remove(0);
    frame[30..34].copy_from_slice(&(0x1400_0007 + (i << 8)).to_be_bytes());
    frame[24..26].fill(0);
    let sum =
        frame[14..34].chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum::<u32>();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// Resident memory of this process, in MB.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().split(' ').next().and_then(|kb| kb.parse::<f64>().ok()).unwrap_or_default() / 1024.0
}

/// The middle, the one of a hundred that takes longest, and the longest.
fn spread(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |part: usize| times.get((times.len() * part / 100).min(times.len().saturating_sub(1)));
    let shown = |time: Option<&Duration>| format!("{:.2?}", time.copied().unwrap_or_default());
    format!("p50 {}, p99 {}, worst {}", shown(at(50)), shown(at(99)), shown(times.last()))
}

/// Sends packets until it is told to stop, and waits for the last of them. Returns how many were sent, and how many came.
fn traffic(
    mut from: PipeEnd,
    mut to: PipeEnd,
    frame: Vec<u8>,
    stop: Arc<AtomicBool>,
) -> JoinHandle<(u64, u64)> {
    std::thread::spawn(move || {
        let (mut sent, mut came) = (0u64, 0u64);
        let mut last = Instant::now();
        loop {
            let ending = stop.load(Ordering::Relaxed);
            if !ending && sent - came < 64 {
                sent += u64::from(from.inject(&frame));
            }
            let more = to.collect().len() as u64;
            came += more;
            if more > 0 {
                last = Instant::now();
            }
            if ending && (came == sent || last.elapsed() > Duration::from_secs(5)) {
                return (sent, came);
            }
        }
    })
}

async fn apply(client: &mut DataplaneClient<Channel>, ops: Vec<pb::Op>) -> Result<Duration, Error> {
    let start = Instant::now();
    client.apply(pb::ApplyRequest { base_generation: None, ops }).await?;
    Ok(start.elapsed())
}

/// Does something to all routes in batches, and says what it took.
async fn in_batches(
    client: &mut DataplaneClient<Channel>,
    what: &str,
    arguments: &Arguments,
    op: impl Fn(u32) -> pb::Op,
) -> Result<(), Error> {
    let (before, start) = (resident(), Instant::now());
    let all: Vec<u32> = (0..arguments.routes).collect();
    let mut times = Vec::new();
    for batch in all.chunks(arguments.batch) {
        times.push(apply(client, batch.iter().map(|i| op(*i)).collect()).await?);
    }
    let (took, after) = (start.elapsed(), resident());
    println!(
        "{} routes {what} in batches of {}: {took:.2?}; one Apply: {}",
        all.len(),
        arguments.batch,
        spread(times)
    );
    println!("resident: {before:.0} MB before, {after:.0} MB after");
    Ok(())
}

async fn measure(arguments: &Arguments) -> Result<(), Error> {
    let place = std::env::temp_dir().join(format!("vwire-routes-{}", std::process::id()));
    std::fs::create_dir_all(&place)?;
    let socket = place.join("api.sock");
    let text = format!("[stats]\npath = \"{0}/stats\"\n[api]\nsocket = \"{0}/api.sock\"\n", place.display());
    let file = Path::new("routes.toml");
    let dataplane = Dataplane::start(file, &Config::parse(file, &text)?).await?;
    let (channel, _fds) = fdpass::connect(&socket).await?;
    let mut client = DataplaneClient::new(channel).max_decoding_message_size(1 << 30);
    client.replace(pb::ReplaceRequest { base_generation: None, state: Some(two_ports()) }).await?;

    in_batches(&mut client, "added", arguments, |i| set_route(prefix(i), "b")).await?;

    let end = |name: &str| -> Result<PipeEnd, Error> {
        let name = name.parse()?;
        dataplane.agent().lock().ports_mut().take_pipe_end(&name).ok_or("no such pipe".into())
    };
    let middle = arguments.routes / 2;
    let stop = Arc::new(AtomicBool::new(false));
    let running = traffic(end("a")?, end("b")?, packet(middle), Arc::clone(&stop));
    let (start, mut times) = (Instant::now(), Vec::new());
    for i in 0..arguments.changes {
        // The packets' neighbours go and come; their own route is set anew now and then.
        let other = middle - 1 - i % 100;
        times.push(apply(&mut client, vec![remove_route(prefix(other))]).await?);
        times.push(
            apply(&mut client, vec![set_route(prefix(other), "b"), set_route(prefix(middle), "b")]).await?,
        );
    }
    let took = start.elapsed();
    stop.store(true, Ordering::Relaxed);
    let (sent, came) = running.join().map_err(|_| "the traffic's thread failed")?;
    println!(
        "{} changes among them in {took:.2?}, {sent} packets meanwhile, {} lost; one Apply: {}",
        2 * arguments.changes,
        sent - came,
        spread(times)
    );

    in_batches(&mut client, "removed", arguments, |i| remove_route(prefix(i))).await?;
    dataplane.stop().await;
    let _ = std::fs::remove_dir_all(place);
    if sent == came { Ok(()) } else { Err(format!("{} packets of {sent} were lost", sent - came).into()) }
}

fn main() -> Result<(), Error> {
    let arguments = Arguments::parse();
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(measure(&arguments))
}
