//! `vwire nse`: an endpoint that assigns addresses and answers pings, on kernel interfaces and memifs.
//!
//! It takes the settings of the Go components' `nse-icmp-responder` and `nse-icmp-responder-vpp`, and is both at once.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ipnet::IpNet;
use serde_json::{Map, Value};
use vwire_proto::nsm::connection::Mechanism;
use vwire_proto::nsm::connectioncontext::DnsConfig;

use super::Process;
use super::guards::Guards;
use super::place::Place;
use super::registration::{self, Registration};
use crate::api::mechanism::{self, PAYLOAD_ETHERNET, PAYLOAD_IP};
use crate::chain::service::Service;
use crate::chain::{Chain, Element};
use crate::client::Namespace;
use crate::config::{self, Labels, List, Maybe};
use crate::elements::authorize::PathPolicy;
use crate::elements::monitor::Follow;
use crate::elements::{Authorize, Connect, Hub, Monitor, SendFd, Timeout, TrimPath, UpdatePath, UpdateToken};
use crate::endpoint::context::{ClientRoutes, DnsContext, PolicyRoutes, dns_configs};
use crate::endpoint::ipam::{Groups, Ipam, Policy};
use crate::endpoint::responder::Responder;
use crate::endpoint::{EndpointMechanism, Idle, Kernel, Mechanisms, Memif, Noop, PassThrough};
use crate::identity::policy::Policies;
use crate::obs::{ConnectionView, Reporter};
use crate::registry::Registry;
use crate::registry::remote::Remote;
use crate::transport::{Limits, ServeError, Server, Services, Target};

/// The endpoint's settings.
#[derive(Debug, Clone, clap::Args)]
pub struct Settings {
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened")]
    pub common: config::Common,
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened")]
    pub limits: Limits,

    /// Our name in paths and in the registry.
    #[arg(long, env = "NSM_NAME", value_name = "NAME", default_value = "icmp-server")]
    pub name: String,

    /// The node's manager.
    #[arg(
        long,
        env = "NSM_CONNECT_TO",
        value_name = "URL",
        default_value = "unix:///var/lib/networkservicemesh/nsm.io.sock"
    )]
    pub connect_to: Target,

    /// The services that we are an endpoint of.
    #[arg(long, env = "NSM_SERVICE_NAMES", value_name = "NAMES", default_value = "icmp-responder")]
    pub service_names: List<String>,

    /// What the services carry: ETHERNET or IP.
    #[arg(long, env = "NSM_PAYLOAD", value_name = "PAYLOAD", default_value = PAYLOAD_ETHERNET, value_parser = [PAYLOAD_ETHERNET, PAYLOAD_IP])]
    pub payload: String,

    /// Our labels; services may ask for some.
    #[arg(long, env = "NSM_LABELS", value_name = "LABELS", default_value = "")]
    pub labels: Labels,

    /// Prefixes to assign from; a connection gets two addresses of each group: `[a,b],c` has two groups.
    #[arg(long, env = "NSM_CIDR_PREFIX", value_name = "GROUPS", default_value = "169.254.0.0/16")]
    pub cidr_prefix: Groups,

    /// What happens to addresses of other endpoints that a connection brings: `polite` leaves them, `strict` removes them.
    #[arg(long, env = "NSM_IPAM_POLICY", value_enum, default_value_t = Policy::Polite)]
    pub ipam_policy: Policy,

    /// Networks that clients reach by way of us, separated by commas; they get routes to them.
    #[arg(long, env = "VWIRE_ROUTES", value_name = "PREFIXES", default_value = "")]
    pub routes: List<IpNet>,

    /// Name servers for clients, JSON: [{"dns_server_ips": ["10.0.0.1"], "search_domains": ["my.domain"]}].
    #[arg(long, env = "NSM_DNS_CONFIGS", value_name = "JSON", default_value = "[]")]
    pub dns_configs: DnsConfigs,

    /// Policy routes for clients: a YAML list with the keys from, proto, dstport, srcport, routes. Need not exist.
    #[arg(
        long,
        env = "NSM_PBR_CONFIG_PATH",
        value_name = "FILE",
        default_value = "/etc/policy-based-routing/config.yaml"
    )]
    pub pbr_config_path: PathBuf,

    /// Ends when there was no connection for this long; 0: never.
    #[arg(long, env = "NSM_IDLE_TIMEOUT", value_name = "DURATION", default_value = "0s", value_parser = config::duration)]
    pub idle_timeout: Duration,

    /// Registers the services, too.
    #[arg(long, env = "NSM_REGISTER_SERVICE", value_name = "BOOL", default_value = "true", value_parser = config::boolean,
          action = clap::ArgAction::Set)]
    pub register_service: bool,

    /// Takes the endpoint out of the registry at the end. Otherwise it expires there, and a restart finds its connections again.
    #[arg(long, env = "NSM_UNREGISTER_ITSELF", value_name = "BOOL", default_value = "false", value_parser = config::boolean,
          action = clap::ArgAction::Set)]
    pub unregister_itself: bool,

    /// Where we listen; a socket in a new folder below the temporary one if left out, or if it is a plain name.
    #[arg(long, env = "NSM_LISTEN_ON", value_name = "URL", default_value = "")]
    pub listen_on: String,

    /// Threads that serve memif interfaces.
    #[arg(long, env = "VWIRE_MEMIF_THREADS", value_name = "N", default_value_t = 1)]
    pub memif_threads: usize,

    /// The network namespace of our interfaces; our own if left out.
    #[arg(long, env = "VWIRE_NETNS", value_name = "FILE", default_value = "")]
    pub netns: Maybe<PathBuf>,

    /// Mechanisms that we take: KERNEL, MEMIF, NOOP. Among them the client's preferences have the order.
    #[arg(long, env = "VWIRE_MECHANISMS", value_name = "TYPES", default_value = "KERNEL,MEMIF,NOOP")]
    pub mechanisms: List<MechanismKind>,

    /// Passes connections on: asks the manager for the same service with our labels in place of the client's, so that the service's
    /// matches lead to the next endpoint. Both interfaces are kernel interfaces in our namespace, without addresses of ours; what
    /// joins them there is for whoever set the namespace up.
    #[arg(long, env = "VWIRE_PASS_THROUGH", value_name = "BOOL", default_value = "false", value_parser = config::boolean,
          action = clap::ArgAction::Set)]
    pub pass_through: bool,

    /// The service that is asked for in place of our own when a connection is passed on: `service` or `service@domain`.
    #[arg(long, env = "VWIRE_PASS_THROUGH_SERVICE", value_name = "NAME", default_value = "")]
    pub pass_through_service: String,

    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened")]
    pub guards: Guards,
}

/// A mechanism that an endpoint may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MechanismKind {
    /// A kernel interface.
    Kernel,
    /// Shared memory.
    Memif,
    /// Nothing: the client is told how it would be reached.
    Noop,
}

impl FromStr for MechanismKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_uppercase().as_str() {
            "KERNEL" => Ok(Self::Kernel),
            "MEMIF" => Ok(Self::Memif),
            "NOOP" => Ok(Self::Noop),
            _ => Err("not a mechanism of endpoints; there are KERNEL, MEMIF and NOOP".to_owned()),
        }
    }
}

/// `NSM_DNS_CONFIGS`.
#[derive(Debug, Clone, Default)]
pub struct DnsConfigs(pub Vec<DnsConfig>);

impl FromStr for DnsConfigs {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        dns_configs(text).map(Self)
    }
}

/// Why an endpoint does not run.
#[derive(Debug, thiserror::Error)]
pub enum NseError {
    /// A setting will not do.
    #[error("{name}: {reason}")]
    Setting {
        /// Its variable.
        name: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// A socket can't be opened.
    #[error("NSM_LISTEN_ON: {0}")]
    Serve(#[from] ServeError),
    /// The kernel gave no descriptor or thread.
    #[error("{0}")]
    Kernel(#[from] std::io::Error),
}

/// Serves until the process shall end, or nobody has used us for the idle timeout.
///
/// # Errors
/// [`NseError`].
pub async fn run(settings: Settings, process: Process) -> Result<(), NseError> {
    let place = Place::choose("vwire-nse", &settings.listen_on)
        .map_err(|reason| NseError::Setting { name: "NSM_LISTEN_ON", reason })?;
    let server = Server::bind(std::slice::from_ref(&place.target), settings.limits.clone()).await?;
    let policies = if settings.common.insecure { Policies::off() } else { Policies::standard() };
    let policies =
        Arc::new(policies.with_transit(&settings.common.transit).counted_by(process.admin.metrics()));
    let hub = settings.guards.hub();
    let chain = chain(&settings, &process, policies.clone(), &hub)?;
    process.admin.report(Arc::new(Report(Arc::clone(&hub))));
    let service =
        Service::new(chain, hub, process.identity.clone()).counted_by(Arc::clone(process.admin.metrics()));
    let (routes, _health) = Services::new()
        .with(|routes| service.add_to(routes))
        .named("networkservice.NetworkService")
        .named("connection.MonitorConnection")
        .routes()
        .await;
    let registry: Arc<dyn Registry> = Arc::new(
        Remote::new(Arc::clone(&process.pool), settings.connect_to.clone()).with_rules(Some(policies)),
    );
    let url = server.targets().first().map(ToString::to_string).unwrap_or_default();
    let registered = registration(&settings, url).keep(registry);
    let announced = registration::announce(&registered, &process);
    let served = tokio::select! {
        served = server.serve(process.identity.clone(), routes, process.shutdown.clone()) => served,
        () = announced => Ok(()),
    };
    if settings.unregister_itself {
        registration::farewell(registered).await;
    }
    served.map_err(NseError::from)
}

fn chain(
    settings: &Settings,
    process: &Process,
    policies: Arc<dyn PathPolicy>,
    hub: &Arc<Hub>,
) -> Result<Arc<Chain>, NseError> {
    let namespace = match &settings.netns.0 {
        Some(file) => Namespace::open(file)
            .map_err(|error| NseError::Setting { name: "VWIRE_NETNS", reason: error.to_string() })?,
        None => Namespace::own()?,
    };
    let idle = (!settings.idle_timeout.is_zero())
        .then(|| Arc::new(Idle::new(settings.idle_timeout, process.shutdown.clone())) as Arc<dyn Element>);
    let own = match settings.pass_through {
        true => passing_on(settings, process, hub, &namespace),
        false => answering(settings, &namespace)?,
    };
    Ok(Chain::new(settings.name.clone(), |handle| {
        let mut elements: Vec<Arc<dyn Element>> = vec![
            Arc::new(UpdatePath::new(settings.name.clone())),
            Arc::new(settings.guards.begin()),
            Arc::new(UpdateToken::new(process.tokens.clone())),
            Arc::new(Authorize::new(policies)),
            Arc::new(Timeout::new(handle)),
            Arc::new(Monitor::new(Arc::clone(hub))),
            Arc::new(TrimPath),
        ];
        elements.extend(idle);
        elements.push(Arc::new(SendFd));
        elements.extend(own);
        elements
    }))
}

/// The end of a connection: addresses, and an interface that answers.
fn answering(settings: &Settings, namespace: &Namespace) -> Result<Vec<Arc<dyn Element>>, NseError> {
    let responder = Responder::start(settings.memif_threads)?;
    let routes = PolicyRoutes::open(settings.pbr_config_path.clone())
        .map_err(|reason| NseError::Setting { name: "NSM_PBR_CONFIG_PATH", reason })?;
    let make = |kind: &MechanismKind| -> Arc<dyn EndpointMechanism> {
        match kind {
            MechanismKind::Kernel => Arc::new(Kernel::new(namespace.clone())),
            MechanismKind::Memif => Arc::new(Memif::new(namespace.clone(), Arc::clone(&responder))),
            MechanismKind::Noop => Arc::new(Noop),
        }
    };
    let mechanisms = Mechanisms::new(settings.mechanisms.iter().map(make).collect());
    Ok(vec![
        Arc::new(Ipam::new(&settings.cidr_prefix, settings.ipam_policy)),
        Arc::new(ClientRoutes::new(settings.routes.iter().map(IpNet::trunc).collect())),
        Arc::new(DnsContext::new(settings.dns_configs.0.clone())),
        Arc::new(routes),
        Arc::new(mechanisms),
    ])
}

/// The middle of a connection: an interface toward the client, and another toward the next endpoint.
fn passing_on(
    settings: &Settings,
    process: &Process,
    hub: &Arc<Hub>,
    namespace: &Namespace,
) -> Vec<Arc<dyn Element>> {
    let follow = Follow::new(settings.name.clone(), Arc::clone(hub), Arc::clone(&process.pool));
    let onward = PassThrough {
        next_hop: settings.connect_to.clone(),
        labels: settings.labels.0.clone(),
        service: (!settings.pass_through_service.is_empty()).then(|| settings.pass_through_service.clone()),
        preferences: vec![Mechanism {
            cls: mechanism::LOCAL.to_owned(),
            r#type: mechanism::KERNEL.to_owned(),
            parameters: Default::default(),
        }],
        namespace: namespace.clone(),
    };
    vec![
        Arc::new(Mechanisms::new(vec![Arc::new(Kernel::new(namespace.clone()))])),
        Arc::new(onward),
        Arc::new(Connect::new(Arc::clone(&process.pool)).following(follow)),
    ]
}

fn registration(settings: &Settings, url: String) -> Registration {
    Registration {
        name: settings.name.clone(),
        services: settings.service_names.0.clone(),
        labels: settings.labels.0.clone(),
        payload: settings.payload.clone(),
        url,
        with_services: settings.register_service,
        token_life: settings.common.max_token_lifetime,
    }
}

/// What `vwire status` and `vwire path` show.
struct Report(Arc<Hub>);

#[async_trait]
impl Reporter for Report {
    async fn connections(&self) -> Vec<ConnectionView> {
        self.0.connections().iter().map(|connection| ConnectionView::of(connection)).collect()
    }

    async fn report(&self) -> Map<String, Value> {
        Map::from_iter([("watches".to_owned(), self.0.watchers().into())])
    }
}
