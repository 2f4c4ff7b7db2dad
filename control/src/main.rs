//! `vwire`: the roles of the mesh, and the operator's verbs.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use vwire_control::config::{Common, Effective};
use vwire_control::roles::runtime::{self, Sharing};
use vwire_control::roles::{
    Process, begin, ca, forwarder, node, nsc, nse, nsmgr, nsmgr_proxy, nsmrs, proxy, registry,
    registry_proxy_dns, vl3, vl3_ipam,
};
use vwire_control::{cli, config};

/// Network Service Mesh: the roles of a mesh, and looks into a running one.
///
/// Roles take their settings from flags, the environment and a file, in this order. `vwire ROLE --help` lists them.
#[derive(Parser)]
#[command(name = "vwire", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The built-in issuer of SPIFFE identities, for labs and single hosts.
    Ca(Box<ca::Settings>),
    /// Makes vWires on its machine, and tunnels to other machines' forwarders.
    Forwarder(Box<forwarder::Settings>),
    /// The manager of a node: clients, endpoints and forwarders of the node call it.
    Nsmgr(Box<nsmgr::Settings>),
    /// A manager and a forwarder in one process.
    Node(Box<node::Settings>),
    /// A domain's registry: which services there are, and who offers them.
    Registry(Box<registry::Settings>),
    /// The registry of several domains, which floating interdomain names are found in.
    Nsmrs(Box<nsmrs::Settings>),
    /// Finds and registers names of other domains at their registries, which DNS says.
    RegistryProxyDns(Box<registry_proxy_dns::Settings>),
    /// A domain's door for Requests to and from other domains.
    NsmgrProxy(Box<nsmgr_proxy::Settings>),
    /// Both of them in one process.
    Proxy(Box<proxy::Settings>),
    /// A client: asks for network services and keeps them.
    Nsc(Box<nsc::Settings>),
    /// An endpoint that answers pings.
    Nse(Box<nse::Settings>),
    /// An endpoint of a virtual layer-3 network: routes between its clients, and to the other endpoints.
    Vl3(Box<vl3::Settings>),
    /// Hands out the prefixes of a virtual network (vL3) to its endpoints.
    Vl3Ipam(Box<vl3_ipam::Settings>),
    /// Shows every role of this machine, and how it is.
    Status(cli::StatusArgs),
    /// Shows a connection hop by hop, or lists all.
    Path(cli::PathArgs),
    /// Shows which endpoints would serve a client, and why not the others.
    Explain(cli::ExplainArgs),
    /// Makes trust domains believe each other, and ends that.
    Link(cli::LinkArgs),
    /// Says hello over HTTP, as the helloworld example's workload.
    Hello(cli::HelloArgs),
    /// Brings up topologies on this machine, checks them, and takes them down.
    Lab(cli::LabArgs),
}

impl Command {
    /// Whether the process is one of several that a Request passes on the same machine.
    fn sharing(&self) -> Sharing {
        match self {
            Self::Forwarder(_)
            | Self::Nsmgr(_)
            | Self::Node(_)
            | Self::Nsc(_)
            | Self::Nse(_)
            | Self::Vl3(_) => Sharing::Node,
            _ => Sharing::Alone,
        }
    }
}

/// What tasks have to end when their role has.
const LAST_TASKS: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    let (cli, settings) = config::load::<Cli>(&args).unwrap_or_else(|error| error.exit());
    let runtime = match runtime::of(cli.command.sharing()) {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("starting threads: {error}")),
    };
    let done = runtime.block_on(run(cli.command, settings));
    // What the tasks own goes with them, their sockets' files among it. Calls that are still under way must not hold up the end.
    runtime.shutdown_timeout(LAST_TASKS);
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => fail(&reason),
    }
}

fn fail(reason: &str) -> ExitCode {
    eprintln!("{reason}");
    ExitCode::FAILURE
}

async fn run(command: Command, effective: Effective) -> Result<(), String> {
    match command {
        Command::Ca(settings) => {
            let name = settings.trust_domain.to_string();
            let (admin, shutdown) = begin(&settings.common, "ca", &name, effective).await.map_err(text)?;
            ca::run(*settings, admin, shutdown).await.map_err(text)
        }
        Command::Forwarder(settings) => {
            let process = start(&settings.common, "forwarder", &settings.name, effective).await?;
            forwarder::run(*settings, process).await.map_err(text)
        }
        Command::Nsmgr(settings) => {
            let process = start(&settings.common, "nsmgr", &settings.name, effective).await?;
            nsmgr::run(*settings, process).await.map_err(text)
        }
        Command::Node(settings) => {
            let process = start(&settings.common, "node", &settings.name, effective).await?;
            node::run(*settings, process).await.map_err(text)
        }
        Command::Registry(settings) => {
            let process = start(&settings.common, "registry", "registry", effective).await?;
            registry::run(*settings, process).await.map_err(text)
        }
        Command::Nsmrs(settings) => {
            let process = start(&settings.common, "nsmrs", "nsmrs", effective).await?;
            nsmrs::run(*settings, process).await.map_err(text)
        }
        Command::RegistryProxyDns(settings) => {
            let process =
                start(&settings.common, "registry-proxy-dns", "registry-proxy-dns", effective).await?;
            registry_proxy_dns::run(*settings, process).await.map_err(text)
        }
        Command::NsmgrProxy(settings) => {
            let process = start(&settings.common, "nsmgr-proxy", &settings.door.name, effective).await?;
            nsmgr_proxy::run(*settings, process).await.map_err(text)
        }
        Command::Proxy(settings) => {
            let process = start(&settings.common, "proxy", &settings.door.name, effective).await?;
            proxy::run(*settings, process).await.map_err(text)
        }
        Command::Nsc(settings) => {
            let process = start(&settings.common, "nsc", &settings.name, effective).await?;
            nsc::run(*settings, process).await.map_err(text)
        }
        Command::Nse(settings) => {
            let process = start(&settings.common, "nse", &settings.name, effective).await?;
            nse::run(*settings, process).await.map_err(text)
        }
        Command::Vl3(settings) => {
            let process = start(&settings.common, "vl3", &settings.name, effective).await?;
            vl3::run(*settings, process).await.map_err(text)
        }
        Command::Vl3Ipam(settings) => {
            let process = start(&settings.common, "vl3-ipam", "vl3-ipam", effective).await?;
            vl3_ipam::run(*settings, process).await.map_err(text)
        }
        Command::Status(args) => args.run().await.map_err(text),
        Command::Path(args) => args.run().await.map_err(text),
        Command::Explain(args) => args.run().await.map_err(text),
        Command::Link(args) => args.run().await.map_err(text),
        Command::Hello(args) => args.run().await.map_err(text),
        Command::Lab(args) => args.run().await.map_err(text),
    }
}

async fn start(common: &Common, role: &str, name: &str, effective: Effective) -> Result<Process, String> {
    Process::start(common, role, name, effective).await.map_err(text)
}

fn text(error: impl std::error::Error) -> String {
    error.to_string()
}
