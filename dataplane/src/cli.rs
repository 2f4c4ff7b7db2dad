//! The sub-commands that look into an engine from outside.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use vwire_dataplane::fdpass;
use vwire_dataplane::port::PortIndex;
use vwire_dataplane::stats::Counters;
use vwire_proto::dataplane::v1::dataplane_client::DataplaneClient;
use vwire_proto::dataplane::v1::{GetRoutingRequest, GetRoutingResponse, RouteStats, StreamCaptureRequest};
use vwire_proto::stats::PortState;

/// A runtime on the calling thread.
pub fn runtime() -> Result<tokio::runtime::Runtime, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| format!("starting the agent's thread: {error}"))
}

/// `stats`
#[derive(Args)]
pub struct StatsArgs {
    /// The statistics segment, the configuration's [stats] path.
    #[arg(long, default_value = "/run/vwire/stats")]
    path: PathBuf,
}

/// Prints a line for each port, and one for each drop reason that occurred.
pub fn stats(args: &StatsArgs) -> Result<(), String> {
    let counters = Counters::open(&args.path).map_err(|error| error.to_string())?;
    let pid = counters.header().pid.load(std::sync::atomic::Ordering::Relaxed);
    let alive = std::path::Path::new(&format!("/proc/{pid}")).exists();
    let mut out = String::new();
    out += &format!("engine: process {pid}, {}\n", if alive { "running" } else { "gone" });
    out += &format!(
        "{:24} {:7} {:5} {:>14} {:>16} {:>14} {:>16}\n",
        "port", "kind", "state", "rx packets", "rx bytes", "tx packets", "tx bytes"
    );
    for port in (0..counters.capacity()).map(PortIndex).map(|index| counters.port(index)) {
        if port.state() == PortState::Free {
            continue;
        }
        let read = port.snapshot();
        out += &format!(
            "{:24} {:7} {:5} {:>14} {:>16} {:>14} {:>16}\n",
            port.name(),
            port.kind(),
            port.state().name(),
            read.rx.0,
            read.rx.1,
            read.tx.0,
            read.tx.1
        );
        for (reason, count) in read.drops {
            out += &format!("{:24} dropped {:22} {count:>14}\n", "", reason.name());
        }
    }
    print(out.as_bytes())
}

/// A reader that has enough is no error.
fn print(bytes: &[u8]) -> Result<(), String> {
    match std::io::stdout().write_all(bytes) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(format!("writing: {error}")),
        _ => Ok(()),
    }
}

/// `routes`
#[derive(Args)]
pub struct RoutesArgs {
    /// The engine's API socket.
    #[arg(long, value_name = "SOCKET", default_value = "/run/vwire/dataplane.sock")]
    api: PathBuf,
    /// The routing domain.
    #[arg(long)]
    domain: String,
}

/// Prints a domain's counters and neighbours, and all of its routes, a thousand to a call.
pub fn routes(args: &RoutesArgs) -> Result<(), String> {
    runtime()?.block_on(async {
        let connected = fdpass::connect(&args.api).await;
        let (channel, _) = connected.map_err(|error| format!("{}: {}", args.api.display(), root(&error)))?;
        let mut client = DataplaneClient::new(channel);
        let mut after = String::new();
        loop {
            let request = GetRoutingRequest { domain: args.domain.clone(), after: after.clone(), limit: 0 };
            let answer = client.get_routing(request).await;
            let answer = answer.map_err(|status| status.message().to_owned())?.into_inner();
            if after.is_empty() {
                print(about_domain(&answer).as_bytes())?;
            }
            let lines: String = answer.routes.iter().map(about_route).collect();
            print(lines.as_bytes())?;
            match answer.routes.into_iter().next_back().and_then(|last| last.route) {
                Some(last) => after = last.prefix,
                None => return Ok(()),
            }
        }
    })
}

fn about_domain(answer: &GetRoutingResponse) -> String {
    let GetRoutingResponse { packets, bytes, answers, echoes, errors, questions, route_count, .. } = answer;
    let mut out = format!(
        "routed: {packets} packets, {bytes} bytes; sent: {answers} answers, {echoes} echoes, {errors} errors, {questions} questions\n"
    );
    if answer.fragments + answer.waited > 0 {
        out += &format!(
            "{} fragments were made, {} packets waited for their next hop\n",
            answer.fragments, answer.waited
        );
    }
    let drops: std::collections::BTreeMap<_, _> = answer.drops.iter().collect();
    for (reason, count) in drops {
        out += &format!("dropped {reason:22} {count:>14}\n");
    }
    for neighbour in &answer.neighbours {
        let how = if neighbour.configured { "configured" } else { "learnt" };
        out += &format!(
            "neighbour {} is {} behind {}, {how}\n",
            neighbour.address, neighbour.mac, neighbour.port
        );
    }
    out + &format!("{route_count} routes\n")
}

fn about_route(stats: &RouteStats) -> String {
    let route = stats.route.clone().unwrap_or_default();
    let via = if route.via.is_empty() { String::new() } else { format!(" via {}", route.via) };
    let to = format!("{}{via}", route.port);
    let mut line = format!("{:43} {to:32} {:>14} {:>16}", route.prefix, stats.packets, stats.bytes);
    let drops: std::collections::BTreeMap<_, _> = stats.drops.iter().collect();
    for (reason, count) in drops {
        line += &format!(" {reason}={count}");
    }
    line + "\n"
}

/// `capture`
#[derive(Args)]
pub struct CaptureArgs {
    /// The engine's API socket.
    #[arg(long, value_name = "SOCKET", default_value = "/run/vwire/dataplane.sock")]
    api: PathBuf,
    /// The port to watch.
    #[arg(long)]
    port: String,
    /// Bytes kept of each frame; 0 keeps all.
    #[arg(long, default_value_t = 0)]
    snap_len: u32,
    /// Where to write; - is standard output, as in `… -w - | wireshark -k -i -`.
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    write: PathBuf,
}

/// Writes the capture until the port is removed, the reader has enough, or SIGINT.
pub fn capture(args: &CaptureArgs) -> Result<(), String> {
    let mut out: Box<dyn Write> = if args.write.as_os_str() == "-" {
        Box::new(std::io::stdout())
    } else {
        let file = std::fs::File::create(&args.write);
        Box::new(file.map_err(|error| format!("{}: {error}", args.write.display()))?)
    };
    runtime()?.block_on(async {
        let connected = fdpass::connect(&args.api).await;
        let (channel, _) = connected.map_err(|error| format!("{}: {}", args.api.display(), root(&error)))?;
        let request =
            StreamCaptureRequest { port: args.port.clone(), snap_len: args.snap_len, ring_bytes: 0 };
        let answer = DataplaneClient::new(channel).stream_capture(request).await;
        let mut pieces = answer.map_err(|status| status.message().to_owned())?.into_inner();
        loop {
            let piece = tokio::select! {
                piece = pieces.message() => piece.map_err(|status| status.message().to_owned())?,
                _ = tokio::signal::ctrl_c() => None,
            };
            let Some(piece) = piece else { return Ok(()) };
            match out.write_all(&piece.pcapng).and_then(|()| out.flush()) {
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
                written => written.map_err(|error| format!("{}: {error}", args.write.display()))?,
            }
        }
    })
}

/// The cause at the bottom: tonic says "transport error" and no more.
fn root(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}
