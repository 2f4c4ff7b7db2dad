//! `vwire-dataplane`: the packet engine as a process, and a few looks into a running or a crashed one.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use vwire_dataplane::agent::run;
use vwire_dataplane::config::{Config, Log, LogFormat};

mod cli;

/// The vwire packet engine: moves frames between memif, kernel, AF_XDP, DPDK and VXLAN ports.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true, arg_required_else_help = true, after_help = kinds() + "\n\n" + UNDERLAYS)]
struct Args {
    /// The configuration file; see config/ for examples with every key.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Only check the configuration.
    #[arg(long, requires = "config")]
    check: bool,
    /// What is logged, in place of the configuration's [log] filter: error, warn, info, debug or a tracing
    /// filter.
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    /// How it is logged, in place of the configuration's [log] format.
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Which kinds of ports this build has: some are features.
fn kinds() -> String {
    let built = [
        ("af_xdp", cfg!(feature = "af_xdp"), "--features af_xdp"),
        ("dpdk", vwire_dataplane::port::dpdk::BUILT, "--features dpdk; needs libdpdk-dev and libclang-dev"),
    ];
    let has: Vec<&str> = built.iter().filter(|(_, has, _)| *has).map(|(kind, ..)| *kind).collect();
    let mut said = format!(
        "Kinds of ports in this build: {}",
        [&["memif", "kernel", "vxlan", "pipe"], &has[..]].concat().join(", ")
    );
    for (kind, _, how) in built.iter().filter(|(_, has, _)| !*has) {
        said += &format!("\nNot in this build: {kind} ({how})");
    }
    said
}

/// Which port and which underlay to choose when; the README has the whole table.
const UNDERLAYS: &str = "\
Ports that meet the kernel:
  kind = \"kernel\"            makes an interface for a workload: TCP passes uncut, in frames of up to 64 KiB
  kind = \"af_xdp\"            takes an interface that is there already, a card's for example, past the kernel's stack

What carries VXLAN tunnels:
  a UDP socket of the kernel   the default: any interface, nothing to set up; the kernel does ARP, routes and path MTU
  kind = \"af_xdp\"            a card whose driver has zero copy (in copy mode the default is faster): Linux 5.9, CAP_NET_ADMIN
                               and CAP_BPF; the card, its addresses and all other traffic stay the kernel's
  kind = \"dpdk\"              a card that is given to the engine whole, in a build with the feature dpdk; other traffic goes
                               by the exception port
A tunnel that names a port (underlay = \"nic\") goes by it; [[underlay]] says which addresses it has, its gateways, its MTU and
its exception port. config/underlay.toml is an example, config/dataplane.toml has every key.";

#[derive(Subcommand)]
enum Command {
    /// Prints the counters of an engine that runs, or that crashed.
    Stats(cli::StatsArgs),
    /// Prints a routing domain: its counters, its neighbours and its routes.
    Routes(cli::RoutesArgs),
    /// Writes a port's frames as pcapng until it is interrupted.
    Capture(cli::CaptureArgs),
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match (args.command, args.config) {
        (Some(Command::Stats(stats)), _) => cli::stats(&stats),
        (Some(Command::Routes(routes)), _) => cli::routes(&routes),
        (Some(Command::Capture(capture)), _) => cli::capture(&capture),
        (None, Some(file)) => engine(&file, args.check, args.log, args.log_format),
        (None, None) => Err("give --config FILE".to_owned()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("{reason}");
            ExitCode::FAILURE
        }
    }
}

fn engine(
    file: &std::path::Path,
    check: bool,
    filter: Option<String>,
    format: Option<LogFormat>,
) -> Result<(), String> {
    let mut config = Config::load(file).map_err(|error| error.to_string())?;
    config.log.filter = filter.unwrap_or(config.log.filter);
    config.log.format = format.unwrap_or(config.log.format);
    start_log(&config.log).map_err(|reason| format!("{}: log.filter: {reason}", file.display()))?;
    if check {
        return Ok(());
    }
    run::raise_descriptor_limit();
    let runtime = cli::runtime()?;
    let done = runtime.block_on(run::run(file, &config)).map_err(|error| error.to_string());
    // Calls that are still under way must not hold up the end.
    runtime.shutdown_background();
    done
}

fn start_log(log: &Log) -> Result<(), String> {
    let filter: tracing_subscriber::EnvFilter =
        log.filter.parse().map_err(|error| format!("{:?}: {error}", log.filter))?;
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let to_stderr =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr);
    match log.format {
        LogFormat::Text => to_stderr.init(),
        LogFormat::Json => to_stderr.json().init(),
    }
    Ok(())
}
