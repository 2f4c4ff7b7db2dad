//! `vwire node`: a manager and a forwarder in one process, for a machine that needs both. They talk over the manager's unix socket, as
//! two processes would, so that everything that holds for them holds here.

use super::forwarder::Vwiring;
use super::nsmgr::Managing;
use super::{Process, forwarder, nsmgr};
use crate::config::{self, List, Maybe};
use crate::transport::Target;

/// The node's settings: the manager's and the forwarder's, where both are of use.
#[derive(Debug, Clone, clap::Args)]
pub struct Settings {
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened")]
    pub common: config::Common,
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened")]
    pub managing: Managing,

    /// The manager's name in paths; the forwarder's is NAME-forwarder.
    #[arg(long, env = "NSM_NAME", value_name = "NAME", default_value = "node")]
    pub name: String,

    /// The mesh's registry; empty: we are one ourselves, in memory.
    #[arg(long, env = "NSM_REGISTRY_URL", value_name = "URL", default_value = "")]
    pub registry_url: Maybe<Target>,

    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened")]
    pub vwires: Vwiring,
}

/// Why a node does not run.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// No socket for the forwarder.
    #[error(
        "NSM_LISTEN_ON: no unix socket among them; clients of this machine and the forwarder need one, such as unix:///var/lib/networkservicemesh/nsm.io.sock"
    )]
    NoSocket,
    /// The manager.
    #[error("manager: {0}")]
    Manager(#[from] nsmgr::NsmgrError),
    /// The forwarder.
    #[error("forwarder: {0}")]
    Forwarder(#[from] forwarder::ForwarderError),
}

/// Runs both until the process shall end. If one can't, neither does.
///
/// # Errors
/// [`NodeError`].
pub async fn run(settings: Settings, process: Process) -> Result<(), NodeError> {
    let (manager, forwarder) = split(settings)?;
    let places = [("nsmgr", &manager.name), ("forwarder", &forwarder.name)];
    let [for_manager, for_forwarder] = places.map(|(role, name)| process.for_role(role, name));
    let stop = process.shutdown.clone().drop_guard();
    let managing = async { nsmgr::run(manager, for_manager).await.map_err(NodeError::from) };
    let forwarding = async { forwarder::run(forwarder, for_forwarder).await.map_err(NodeError::from) };
    let done = tokio::try_join!(managing, forwarding).map(|_| ());
    // What runs still is told to end, too.
    drop(stop);
    done
}

fn split(settings: Settings) -> Result<(nsmgr::Settings, forwarder::Settings), NodeError> {
    let mut sockets = settings.managing.listen_on.iter();
    let connect_to = sockets.find(|target| target.is_local()).cloned().ok_or(NodeError::NoSocket)?;
    let name = format!("{}-forwarder", settings.name);
    let socket = settings.vwires.run.join(&name).join("listen.on.sock");
    let forwarder = forwarder::Settings {
        common: settings.common.clone(),
        limits: settings.managing.limits.clone(),
        name,
        nsname: "forwarder".to_owned(),
        connect_to,
        listen_on: List(vec![Target::Unix(socket)]),
        vwires: settings.vwires.clone(),
    };
    let manager = nsmgr::Settings {
        common: settings.common,
        managing: settings.managing,
        name: settings.name,
        registry_url: settings.registry_url,
        forwarder_network_service_name: "forwarder".to_owned(),
        guards: settings.vwires.guards,
    };
    Ok((manager, forwarder))
}
