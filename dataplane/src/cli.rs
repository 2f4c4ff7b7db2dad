//! The sub-commands that look into an engine from outside.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use vwire_dataplane::fdpass;
use vwire_dataplane::port::PortIndex;
use vwire_dataplane::stats::Counters;
use vwire_proto::dataplane::v1::StreamCaptureRequest;
use vwire_proto::dataplane::v1::dataplane_client::DataplaneClient;
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
