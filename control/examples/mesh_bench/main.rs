//! Measures a mesh of real processes, and Go's beside it in the same run: connection setup, memory, the registry, and how long
//! healing takes. `scripts/bench_mesh.sh` builds what is needed and runs it; needs root.
//!
//! One program with several jobs: `run` starts the processes and prints the table; `load`, `registry-load` and `forwarder` are
//! processes of the mesh that `run` starts.

mod figures;
mod forwarder;
mod groups;
mod heal;
mod load;
mod mesh;
mod ping;
mod registry_load;
mod table;

use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand};
use vwire_control::identity::{Identity, TokenSource};
use vwire_control::roles::runtime::{self, Sharing};
use vwire_control::transport::{Dialling, Pool, Target};

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measures, and prints a table.
    Run(groups::Settings),
    /// Makes connections, refreshes and closes them, and tells how fast; drives any NSM v1 mesh.
    Load(load::Settings),
    /// Registers, finds and watches endpoints, and tells how fast; drives any NSM v1 registry.
    RegistryLoad(registry_load::Settings),
    /// A forwarder that joins nothing: what is measured with it is the control plane.
    Forwarder(forwarder::Settings),
}

/// What every process of a mesh is told.
#[derive(Debug, Clone, clap::Args)]
struct Common {
    /// Who we are.
    #[arg(long, env = "SPIFFE_ENDPOINT_SOCKET")]
    workload_api: Target,
    /// Whom we call.
    #[arg(long, env = "NSM_CONNECT_TO")]
    connect_to: Target,
}

/// What a process calls others with.
struct Member {
    identity: Identity,
    tokens: TokenSource,
}

impl Member {
    async fn new(common: &Common) -> Result<Self, String> {
        let identity = Identity::from_workload_api(&common.workload_api).await.map_err(text)?;
        let tokens = TokenSource::new(identity.clone(), std::time::Duration::from_secs(600));
        Ok(Self { identity, tokens })
    }

    /// Connections of its own, as another workload of the same identity has them.
    fn pool(&self) -> Arc<Pool> {
        Arc::new(Pool::new(self.identity.clone(), self.tokens.clone(), Dialling::default()))
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    let runtime = match &command {
        Command::Forwarder(_) => runtime::of(Sharing::Node),
        // A load shall cost little beside what it measures.
        _ => tokio::runtime::Builder::new_current_thread().enable_all().build(),
    };
    let done = match runtime {
        Ok(runtime) => runtime.block_on(async {
            match command {
                Command::Run(settings) => groups::run(settings).await,
                Command::Load(settings) => load::run(settings).await,
                Command::RegistryLoad(settings) => registry_load::run(settings).await,
                Command::Forwarder(settings) => forwarder::run(settings).await,
            }
        }),
        Err(error) => Err(error.to_string()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("{reason}");
            ExitCode::FAILURE
        }
    }
}
