//! `vwire forwarder`: makes vWires on its machine, and tunnels to other machines' forwarders. For the mesh it is an endpoint of the
//! service `forwarder`.
//!
//! SIGTERM ends the control of vWires, not the vWires: packets flow on through the engine, and the next start takes them over. (The Go
//! forwarder closes all of them.)

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Map, Value};

use super::Process;
use super::engine::{self, NoEngine};
use super::guards::Guards;
use crate::api::path::{self, PathExt};
use crate::api::registry::{NetworkServiceEndpoint, NetworkServiceLabels};
use crate::chain::service::Service;
use crate::chain::{Chain, Element, State};
use crate::config::{self, Labels, List, Maybe};
use crate::dataplane::client::Events;
use crate::dataplane::note::Note;
use crate::dataplane::prometheus::Vwires;
use crate::dataplane::reconcile::Keeper as Reconciler;
use crate::dataplane::{Client, Dataplane, tunnel};
use crate::elements::authorize::PathPolicy;
use crate::elements::connect::Connected;
use crate::elements::mechanisms::{Kernel, Kind, Memif, TowardEndpoint, Tunnel, Vxlan};
use crate::elements::stats::metrics;
use crate::elements::{
    Authorize, Begin, Commit, Connect, Discover, Follow, ForgetFds, Holders, Hub, KnownByName, Mechanisms,
    Monitor, RecvFd, RoundRobin, SendFd, Stats, Supersede, Timeout, TrimPath, UpdatePath, UpdateToken,
};
use crate::identity::policy::Policies;
use crate::obs::{ConnectionView, Reporter};
use crate::registry::Registry;
use crate::registry::cache::Cached;
use crate::registry::keeper::Keeper;
use crate::registry::remote::Remote;
use crate::transport::{Limits, ServeError, Server, Services, Target};

/// How old counters may be that an operator is shown.
const FRESH: Duration = Duration::from_millis(200);
/// Settings of the Go forwarder that mean nothing here: they are about VPP and SR-IOV.
const IGNORED: [&str; 18] = [
    "NSM_VPP_API_SOCKET",
    "NSM_VPP_INIT",
    "NSM_VPP_INIT_PARAMS",
    "NSM_VPP_MIN_OPERATION_TIMEOUT",
    "NSM_SRIOV_CONFIG_FILE",
    "NSM_DEVICE_SELECTOR_FILE",
    "NSM_PCI_DEVICES_PATH",
    "NSM_PCI_DRIVERS_PATH",
    "NSM_CGROUP_PATH",
    "NSM_VFIO_PATH",
    "NSM_DEVICE_PLUGIN_PATH",
    "NSM_POD_RESOURCES_PATH",
    "NSM_RESOURCE_POLL_TIMEOUT",
    "NSM_PROMETHEUS_LISTEN_ON",
    "NSM_PROMETHEUS_CA_FILE",
    "NSM_PROMETHEUS_KEY_FILE",
    "NSM_PROMETHEUS_CERT_FILE",
    "NSM_PROMETHEUS_MONITOR_CERTIFICATE",
];

/// The forwarder's settings.
#[derive(Debug, Clone, clap::Args)]
pub struct Settings {
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened")]
    pub common: config::Common,
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened")]
    pub limits: Limits,

    /// Our name in paths and registries.
    #[arg(long, env = "NSM_NAME", value_name = "NAME", default_value = "forwarder")]
    pub name: String,

    /// The service that we are an endpoint of.
    #[arg(long, env = "NSM_NSNAME", value_name = "SERVICE", default_value = "forwarder")]
    pub nsname: String,

    /// The node's manager.
    #[arg(long, env = "NSM_CONNECT_TO", value_name = "URL", default_value = "unix:///connect.to.socket")]
    pub connect_to: Target,

    /// Where we listen; the first is what we register.
    #[arg(long, env = "NSM_LISTEN_ON", value_name = "URL", default_value = "unix:///listen.on.socket")]
    pub listen_on: List<Target>,

    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened")]
    pub vwires: Vwiring,
}

/// How vWires are made: what `vwire node` has of a forwarder's settings.
#[derive(Debug, Clone, clap::Args)]
pub struct Vwiring {
    /// The forwarder's labels as an endpoint of the service `forwarder`; services may ask for some.
    #[arg(long, env = "NSM_LABELS", value_name = "LABELS", default_value = "p2p:true")]
    pub labels: Labels,

    /// Our address for tunnels; the first global one of the default route's interface if left out.
    #[arg(long, env = "NSM_TUNNEL_IP", value_name = "IP", default_value = "")]
    pub tunnel_ip: Maybe<IpAddr>,

    /// The UDP port of VXLAN, the same on all forwarders; 0 is 4789.
    #[arg(long, env = "NSM_VXLAN_PORT", value_name = "PORT", default_value_t = 0)]
    pub vxlan_port: u16,

    /// Mechanisms that are offered to endpoints before others: MEMIF, KERNEL, VXLAN.
    #[arg(long, env = "NSM_MECHANISM_PRIORITY", value_name = "TYPES", default_value = "")]
    pub mechanism_priority: List<String>,

    /// The socket of the packet engine. If left out, one is started that outlives us, and found again at the next start.
    #[arg(long, env = "VWIRE_DATAPLANE", value_name = "SOCKET", default_value = "")]
    pub dataplane: Maybe<Target>,

    /// Where an engine that we start has its socket, counters and log: in a directory of our name below this one.
    #[arg(long, env = "VWIRE_RUN", value_name = "FOLDER", default_value = "/run/vwire")]
    pub run: PathBuf,

    /// Hands two memifs on this machine through to each other: nothing is faster, and their packets are not counted. With false they
    /// are cross-connected in the engine, which counts them, and keeps each from the other's memory.
    #[arg(long, env = "VWIRE_MEMIF_DIRECT", value_name = "BOOL", default_value = "true", value_parser = config::boolean,
          action = clap::ArgAction::Set)]
    pub memif_direct: bool,

    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened")]
    pub guards: Guards,
}

/// Why a forwarder does not run.
#[derive(Debug, thiserror::Error)]
pub enum ForwarderError {
    /// A setting will not do.
    #[error("{name}: {reason}")]
    Setting {
        /// Its variable.
        name: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// There is no engine.
    #[error("no packet engine: {0}")]
    Engine(String),
    /// A socket can't be opened.
    #[error("NSM_LISTEN_ON: {0}")]
    Serve(#[from] ServeError),
}

/// Forwards until the process shall end.
///
/// # Errors
/// [`ForwarderError`].
pub async fn run(settings: Settings, process: Process) -> Result<(), ForwarderError> {
    let ignored: Vec<_> = IGNORED.into_iter().filter(|name| std::env::var_os(name).is_some()).collect();
    if !ignored.is_empty() {
        tracing::info!("without meaning here, and ignored: {}", ignored.join(", "));
    }
    let server = Server::bind(&settings.listen_on, settings.limits.clone()).await?;
    let policies = if settings.common.insecure { Policies::off() } else { Policies::standard() };
    let policies =
        Arc::new(policies.with_transit(&settings.common.transit).counted_by(process.admin.metrics()));
    let manager = Remote::new(Arc::clone(&process.pool), settings.connect_to.clone())
        .with_rules(Some(policies.clone()));
    // Each Request asks for its service and endpoints: a watch of the manager's registry answers, not a call each time.
    let registry: Arc<dyn Registry> = Arc::new(Cached::new(manager));
    let tunnel = find_tunnel(&settings).await?;
    let forwarder = Forwarder::start(&settings, &process, Arc::clone(&registry), policies, tunnel).await?;
    let service =
        Service::new(Arc::clone(&forwarder.chain), Arc::clone(&forwarder.hub), process.identity.clone())
            .counted_by(Arc::clone(process.admin.metrics()));
    let (routes, _health) = Services::new()
        .with(|routes| service.add_to(routes))
        .named("networkservice.NetworkService")
        .named("connection.MonitorConnection")
        .routes()
        .await;
    let registered = register(&settings, &server, registry);
    let served = server.serve(process.identity.clone(), routes, process.shutdown.clone()).await;
    // The vWires stay, and so does our name: who asks for us meanwhile is told that we are not there, and asks again.
    drop(registered);
    served.map_err(ForwarderError::from)
}

/// Registers us with the node's manager, for as long as what is returned lives.
fn register(settings: &Settings, server: &Server, registry: Arc<dyn Registry>) -> Keeper {
    let labels = NetworkServiceLabels { labels: settings.vwires.labels.0.clone().into_iter().collect() };
    let url = server.targets().first().map(ToString::to_string).unwrap_or_default();
    let endpoint = NetworkServiceEndpoint {
        name: settings.name.clone(),
        network_service_names: vec![settings.nsname.clone()],
        network_service_labels: [(settings.nsname.clone(), labels)].into(),
        url,
        ..Default::default()
    };
    // Not the service: a domain has many forwarders, and the first one's identity would own it. (The Go forwarder does not, either.)
    Keeper::start_for(settings.common.max_token_lifetime, registry, Vec::new(), endpoint)
}

async fn find_tunnel(settings: &Settings) -> Result<Option<Tunnel>, ForwarderError> {
    let asked = settings.vwires.tunnel_ip.0;
    let found = tokio::task::spawn_blocking(move || tunnel::find(asked)).await;
    let found = found.unwrap_or_else(|error| Err(error.to_string()));
    let found = found.map_err(|reason| ForwarderError::Setting { name: "NSM_TUNNEL_IP", reason })?;
    match found {
        Some(local) => tracing::info!(ip = %local.ip, mtu = local.mtu, "address of tunnels"),
        None => tracing::warn!(
            "no default route, so no address for tunnels: only this machine is reached; NSM_TUNNEL_IP names one"
        ),
    }
    let port = settings.vwires.vxlan_port;
    Ok(found.map(|local| Tunnel { ip: local.ip, port, interface_mtu: local.mtu }))
}

/// The parts of a forwarder that runs.
pub struct Forwarder {
    /// What Requests go through.
    pub chain: Arc<Chain>,
    /// Our connections.
    pub hub: Arc<Hub>,
    /// The engine.
    pub dataplane: Arc<Dataplane>,
}

impl Forwarder {
    /// Finds the engine, takes over what we left there, and is ready for Requests.
    ///
    /// # Errors
    /// [`ForwarderError::Engine`] if there is no engine; a setting that will not do.
    pub async fn start(
        settings: &Settings,
        process: &Process,
        registry: Arc<dyn Registry>,
        policies: Arc<dyn PathPolicy>,
        tunnel: Option<Tunnel>,
    ) -> Result<Self, ForwarderError> {
        process.admin.wait("the packet engine");
        let vwires = &settings.vwires;
        let (client, mut events) = engine(&vwires.dataplane, &vwires.run, &settings.name)?;
        let snapshot = client
            .first_state(&mut events)
            .await
            .map_err(|status| ForwarderError::Engine(status.message().to_owned()))?;
        process.admin.ready("the packet engine");
        let dataplane = Arc::new(
            Dataplane::new(client, settings.name.clone()).direct_memif(settings.vwires.memif_direct),
        );
        let notes = dataplane.adopt(&snapshot);

        let hub = settings.vwires.guards.hub();
        let follow = Follow::new(settings.name.clone(), Arc::clone(&hub), Arc::clone(&process.pool));
        let begin = Arc::new(settings.vwires.guards.begin());
        let holders = Arc::<Holders>::default();
        let mut kinds: Vec<Box<dyn Kind>> = vec![Box::new(Memif), Box::new(Kernel)];
        kinds.extend(tunnel.map(|tunnel| Box::new(Vxlan(tunnel)) as Box<dyn Kind>));
        let chain = Chain::new(settings.name.clone(), |handle| {
            let elements: Vec<Arc<dyn Element>> = vec![
                Arc::new(UpdatePath::new(settings.name.clone())),
                Arc::clone(&begin) as Arc<dyn Element>,
                Arc::new(UpdateToken::new(process.tokens.clone())),
                Arc::new(Authorize::new(policies)),
                Arc::new(Timeout::new(handle.clone())),
                Arc::new(Monitor::new(Arc::clone(&hub))),
                Arc::new(TrimPath),
                Arc::new(ForgetFds),
                Arc::new(RecvFd),
                Arc::new(SendFd),
                Arc::new(Supersede::new(handle, Arc::clone(&holders))),
                Arc::new(Discover::new(registry)),
                Arc::new(RoundRobin::default()),
                Arc::new(Stats::new(Arc::clone(&dataplane))),
                Arc::new(Commit::new(Arc::clone(&dataplane))),
                Arc::new(Mechanisms::new(Arc::clone(&dataplane), kinds, &settings.vwires.mechanism_priority)),
                Arc::new(Connect::new(Arc::clone(&process.pool)).following(Arc::clone(&follow))),
            ];
            elements
        });
        for note in notes {
            take_over(&begin, &hub, &follow, &holders, note);
        }
        let down = {
            let hub = Arc::clone(&hub);
            Box::new(move |id: &str, why: &str| {
                tracing::warn!(connection = id, why, "a vWire is down");
                hub.down(id);
            })
        };
        let reconciler = Reconciler::new(Arc::clone(&dataplane), Arc::downgrade(&chain), down, &snapshot);
        let running = reconciler.run(events);
        tokio::spawn(process.shutdown.clone().run_until_cancelled_owned(running));
        let counters = Vwires::new(Arc::clone(&dataplane));
        process.admin.register(|registry| registry.register_collector(Box::new(counters)));
        process.admin.report(Arc::new(Report { hub: Arc::clone(&hub), dataplane: Arc::clone(&dataplane) }));
        Ok(Self { chain, hub, dataplane })
    }
}

/// What an earlier process of ours had established.
fn take_over(begin: &Begin, hub: &Hub, follow: &Arc<Follow>, holders: &Holders, note: Note) {
    let Some(connection) = note.connection else { return };
    let mut state = State::default();
    match Target::parse(&note.next_hop) {
        Ok(target) => {
            follow.add(&target, &connection.id);
            state.insert(Connected { target });
        }
        Err(_) => state.insert(KnownByName),
    }
    state.insert(TowardEndpoint(note.toward_endpoint.unwrap_or_default()));
    holders.put(&connection, &note.client, &mut state);
    let caller = note.caller.parse().ok();
    tracing::info!(connection = path::of(&connection).root_id(), "taken over");
    hub.update(connection.clone(), caller.as_ref());
    begin.adopt(connection, caller, Some(note.client).filter(|client| !client.is_empty()), state);
}

fn engine(dataplane: &Maybe<Target>, run: &Path, name: &str) -> Result<(Client, Events), ForwarderError> {
    engine::find(dataplane, run, name).map_err(|error| match error {
        NoEngine::Setting(reason) => ForwarderError::Setting { name: "VWIRE_DATAPLANE", reason },
        NoEngine::Program(reason) => ForwarderError::Engine(reason),
    })
}

/// What we report to the operator.
struct Report {
    hub: Arc<Hub>,
    dataplane: Arc<Dataplane>,
}

#[async_trait]
impl Reporter for Report {
    /// With the counters of now; those in the path are of the last Request.
    async fn connections(&self) -> Vec<ConnectionView> {
        let counted = self.dataplane.client.stats(FRESH).await.ok();
        let view = |connection: Arc<crate::api::connection::Connection>| {
            let mut view = ConnectionView::of(&connection);
            let Some(record) = self.dataplane.wanted.get(&connection.id) else { return view };
            let port = |name: &str| counted.as_ref().and_then(|counted| counted.port(name));
            if let Some(hop) = view.hops.get_mut(view.index as usize) {
                hop.metrics.extend(metrics(&record, port));
            }
            match &record.note.toward_endpoint {
                Some(mechanism) => view.toward_endpoint(mechanism),
                None => view,
            }
        };
        self.hub.connections().into_iter().map(view).collect()
    }

    async fn report(&self) -> Map<String, Value> {
        let engine = self.dataplane.client.socket().display().to_string();
        let vwires = self.dataplane.wanted.ids().len();
        [("engine".to_owned(), engine.into()), ("vwires".to_owned(), vwires.into())].into_iter().collect()
    }
}
