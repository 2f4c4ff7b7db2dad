//! `vwire nsc`: asks for network services and keeps them until the process ends. With `--once` it is `nsc-init`: it ends as soon as
//! all are there, and leaves them to a later `vwire nsc` of the same name.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::future::{join_all, select_all};
use serde_json::{Map, Value, json};
use vwire_proto::nsm::connection::Connection;

use super::Process;
use crate::api::mechanism::{KERNEL, MEMIF, SOCKET_FILE};
use crate::client::dns::{Choice, Dns};
use crate::client::nsurl::{AwarenessGroups, ServiceUrl, ServiceUrls};
use crate::client::{
    Alive, Client, ClientSettings, DataPath, Elsewhere, KernelPath, LivenessSettings, Manager, MemifPath,
    Namespace, Phase, Session, SessionStatus, Wanted,
};
use crate::config::{self, Labels, Maybe};
use crate::elements::ClientInfo;
use crate::endpoint::responder::Responder;
use crate::identity::policy::Policies;
use crate::obs::{ConnectionView, Heal, MechanismView, Reporter};
use crate::transport::Target;

/// How long the Closes at the end may take; the process as a whole has 5 s.
const CLOSE_TIME: Duration = Duration::from_secs(4);

/// The client's settings.
#[derive(Debug, Clone, clap::Args)]
pub struct Settings {
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened")]
    pub common: config::Common,

    /// Our name in paths; connections are `NAME-0`, `NAME-1`, … in the order of the services.
    #[arg(long, env = "NSM_NAME", value_name = "NAME", default_value = "nsc")]
    pub name: String,

    /// The node's manager.
    #[arg(
        long,
        env = "NSM_CONNECT_TO",
        value_name = "URL",
        default_value = "unix:///var/lib/networkservicemesh/nsm.io.sock"
    )]
    pub connect_to: Target,

    /// What to ask for: kernel://service/interface?label=value, memif://service; with commas between.
    #[arg(long, env = "NSM_NETWORK_SERVICES", value_name = "URLS", default_value = "")]
    pub network_services: ServiceUrls,

    /// Services whose connections may get overlapping addresses: `[url,url],[url]`.
    #[arg(long, env = "NSM_AWARENESS_GROUPS", value_name = "GROUPS", default_value = "")]
    pub awareness_groups: AwarenessGroups,

    /// How long a Request may take.
    #[arg(long, env = "NSM_REQUEST_TIMEOUT", value_name = "DURATION", default_value = "15s", value_parser = config::duration)]
    pub request_timeout: Duration,

    /// Labels for all services; a URL's own go before them.
    #[arg(long, env = "NSM_LABELS", value_name = "LABELS", default_value = "")]
    pub labels: Labels,

    /// Pings endpoints, and chooses another one if none of the pings is answered.
    #[arg(long, env = "NSM_LIVENESS_CHECK_ENABLED", value_name = "BOOL", default_value = "true", value_parser = config::boolean,
          action = clap::ArgAction::Set)]
    pub liveness_check_enabled: bool,

    /// How often.
    #[arg(long, env = "NSM_LIVENESS_CHECK_INTERVAL", value_name = "DURATION", default_value = "200ms", value_parser = config::duration)]
    pub liveness_check_interval: Duration,

    /// Without an answer for this long an endpoint counts as dead.
    #[arg(long, env = "NSM_LIVENESS_CHECK_TIMEOUT", value_name = "DURATION", default_value = "1s", value_parser = config::duration)]
    pub liveness_check_timeout: Duration,

    /// A name server in our namespace, for names of the services and all others: true, false, or auto, which is true in a Kubernetes
    /// pod. /etc/resolv.conf names it while we run.
    #[arg(long, env = "NSM_LOCAL_DNS_SERVER_ENABLED", value_name = "BOOL", default_value = "auto")]
    pub local_dns_server_enabled: Choice,

    /// Where the name server listens, UDP and TCP. With a port other than 53, resolv.conf, which has no ports, is left as it is.
    #[arg(long, env = "NSM_LOCAL_DNS_SERVER_ADDRESS", value_name = "IP:PORT", default_value = "127.0.0.1:53", value_parser = name_server_address)]
    pub local_dns_server_address: SocketAddr,

    /// The file that names the workload's name server.
    #[arg(long, env = "VWIRE_RESOLV_CONF", value_name = "FILE", default_value = "/etc/resolv.conf")]
    pub resolv_conf: PathBuf,

    /// Accepted for the sake of manifests; a URL's scheme says it.
    #[arg(long, env = "NSM_MECHANISM", hide = true, default_value = "kernel")]
    pub mechanism: String,

    /// Ends as soon as all services are there, without closing them.
    #[arg(long, env = "VWIRE_ONCE", value_name = "BOOL", default_value = "false", value_parser = config::boolean,
          action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub once: bool,

    /// Leaves memifs to an application of yours (DPDK, VPP, libmemif): prints the socket to connect to, and does not connect itself.
    /// The application may leave, or die, and come back to the same socket: the vWire stays.
    #[arg(long, env = "VWIRE_MEMIF_EXPORT", value_name = "BOOL", default_value = "false", value_parser = config::boolean,
          action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub memif_export: bool,

    /// Pings each endpoint so often, closes, and ends; with an error unless all were answered.
    #[arg(long, value_name = "COUNT")]
    pub ping: Option<u64>,

    /// Pings each endpoint all the time, this often; `vwire status -o json` has the counts.
    #[arg(long, env = "VWIRE_PING_INTERVAL", value_name = "DURATION", value_parser = config::duration)]
    pub ping_interval: Option<Duration>,

    /// The network namespace of our kernel interfaces; our own if left out. For memifs it must be our own.
    #[arg(long, env = "VWIRE_NETNS", value_name = "FILE", default_value = "")]
    pub netns: Maybe<PathBuf>,
}

/// Why a client does not run, or ended badly.
#[derive(Debug, thiserror::Error)]
pub enum NscError {
    /// A setting will not do.
    #[error("{name}: {reason}")]
    Setting {
        /// Its variable.
        name: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The kernel gave no descriptor or thread.
    #[error("{0}")]
    Kernel(#[from] std::io::Error),
    /// `--ping` was not answered.
    #[error("{lost} of {sent} pings were not answered")]
    Pings {
        /// How many were sent.
        sent: u64,
        /// How many had no answer.
        lost: u64,
    },
    /// `--once` was ended before all services were there.
    #[error("ended before all services were there; {0}")]
    Incomplete(String),
}

/// Asks for the services and keeps them until the process shall end; then closes them.
///
/// # Errors
/// [`NscError`].
pub async fn run(settings: Settings, process: Process) -> Result<(), NscError> {
    check(&settings)?;
    let services = open_all(&settings, &process)?;
    process.admin.wait("its connections");
    process.admin.report(Arc::new(Report(Arc::clone(&services))));
    let dns = name_server(&settings, &services).await?;
    let work = async {
        join_all(services.iter().map(|service| service.announce(&settings))).await;
        process.admin.ready("its connections");
        if settings.once {
            return Ok(true);
        }
        work(&settings, &services).await.map(|()| false)
    };
    let done = tokio::select! {
        done = work => done,
        () = process.shutdown.cancelled() => match settings.once {
            true => Err(NscError::Incomplete(missing(&services))),
            false => Ok(false),
        },
    };
    if matches!(done, Ok(true)) {
        services.iter().for_each(|service| service.take().into_iter().for_each(Session::leave));
        return Ok(());
    }
    close_all(&services).await;
    // Puts resolv.conf back.
    drop(dns);
    done.map(|_| ())
}

fn check(settings: &Settings) -> Result<(), NscError> {
    let bad = |name, reason: &str| Err(NscError::Setting { name, reason: reason.to_owned() });
    if settings.network_services.0.is_empty() {
        return bad(
            "NSM_NETWORK_SERVICES",
            "nothing to ask for; write kernel://service/interface or memif://service",
        );
    }
    let memif = settings.network_services.0.iter().any(|url| url.mechanism == MEMIF);
    if settings.netns.0.is_some() && memif && !settings.memif_export {
        return bad(
            "VWIRE_NETNS",
            "a memif is connected to from our own namespace; start us in that one, or use --memif-export",
        );
    }
    if settings.request_timeout.is_zero() {
        return bad("NSM_REQUEST_TIMEOUT", "0 leaves no time for a Request");
    }
    if settings.liveness_check_enabled && settings.liveness_check_timeout.is_zero() {
        return bad("NSM_LIVENESS_CHECK_TIMEOUT", "0 leaves no time for an answer");
    }
    Ok(())
}

/// `:53` is every address, as Go has it.
fn name_server_address(text: &str) -> Result<SocketAddr, String> {
    let whole = if text.starts_with(':') { format!("0.0.0.0{text}") } else { text.to_owned() };
    whole.parse().map_err(|_| "not an address; write IP:PORT".to_owned())
}

/// Starts the name server, if there is to be one. It hears of each service, and puts resolv.conf back when it is dropped.
async fn name_server(settings: &Settings, services: &[Kept]) -> Result<Option<Dns>, NscError> {
    if settings.once || !settings.local_dns_server_enabled.is_on() {
        return Ok(None);
    }
    let Some(first) = services.first() else { return Ok(None) };
    let address = settings.local_dns_server_address;
    let file = (address.port() == 53).then_some(settings.resolv_conf.as_path());
    let started = Dns::start(address, first.namespace.clone(), file).await;
    let dns = started.map_err(|error| NscError::Setting {
        name: "NSM_LOCAL_DNS_SERVER_ADDRESS, VWIRE_RESOLV_CONF",
        reason: format!("{address}, {}: {error}", settings.resolv_conf.display()),
    })?;
    tracing::info!(address = %dns.address(), "name server");
    services.iter().for_each(|service| dns.follow(&service.id, service.status.clone()));
    Ok(Some(dns))
}

/// One service of ours.
struct Kept {
    url: ServiceUrl,
    id: String,
    namespace: Namespace,
    datapath: Arc<dyn DataPath>,
    status: tokio::sync::watch::Receiver<SessionStatus>,
    session: std::sync::Mutex<Option<Session>>,
    pings: Pings,
    /// Keeps the shared monitor stream.
    _client: Arc<Client>,
}

#[derive(Default)]
struct Pings {
    sent: AtomicU64,
    answered: AtomicU64,
    /// Of the last that was answered, microseconds.
    last: AtomicU64,
}

fn open_all(settings: &Settings, process: &Process) -> Result<Arc<[Kept]>, NscError> {
    let policies = if settings.common.insecure { Policies::off() } else { Policies::standard() };
    let policies =
        Arc::new(policies.with_transit(&settings.common.transit).counted_by(process.admin.metrics()));
    let manager = Manager::new(Arc::clone(&process.pool), settings.connect_to.clone(), policies);
    let liveness = settings.liveness_check_enabled.then_some(LivenessSettings {
        interval: settings.liveness_check_interval.max(Duration::from_millis(10)),
        timeout: settings.liveness_check_timeout,
    });
    let client = Arc::new(Client::new(
        settings.name.clone(),
        Arc::new(manager),
        ClientSettings {
            request_timeout: settings.request_timeout,
            token_life: process.identity.current().map(|_| settings.common.max_token_lifetime),
            liveness,
            metrics: Some(Arc::clone(process.admin.metrics())),
            ..Default::default()
        },
    ));
    let namespace = match &settings.netns.0 {
        Some(file) => Namespace::open(file)
            .map_err(|error| NscError::Setting { name: "VWIRE_NETNS", reason: error.to_string() })?,
        None => Namespace::own()?,
    };
    let attaches = !settings.memif_export && !settings.once;
    let memif = settings.network_services.0.iter().any(|url| url.mechanism == MEMIF);
    let responder = if attaches && memif { Some(Responder::start(1)?) } else { None };
    let info = ClientInfo::from_env();
    let open = |(i, url): (usize, &ServiceUrl)| {
        let datapath: Arc<dyn DataPath> = match (url.mechanism.as_str(), &responder) {
            (KERNEL, _) => Arc::new(KernelPath::new(namespace.clone(), settings.liveness_check_timeout)),
            (_, Some(responder)) => Arc::new(MemifPath::new(Arc::clone(responder))),
            (_, None) => Arc::new(Elsewhere),
        };
        let mut labels = settings.labels.0.clone();
        labels.extend(url.labels.clone());
        info.add_to(&mut labels);
        let id = format!("{}-{i}", settings.name);
        let connection =
            Connection { id: id.clone(), network_service: url.service.clone(), labels, ..Default::default() };
        let awareness_group = settings.awareness_groups.0.iter().position(|group| group.contains(url));
        let wanted = Wanted {
            connection,
            preferences: vec![url.preference()],
            namespace: Some(namespace.clone()),
            awareness_group,
        };
        let session = client.open(wanted, Arc::clone(&datapath));
        let status = session.status();
        let (url, namespace) = (url.clone(), namespace.clone());
        let session = std::sync::Mutex::new(Some(session));
        Kept {
            url,
            id,
            namespace,
            datapath,
            status,
            session,
            pings: Pings::default(),
            _client: Arc::clone(&client),
        }
    };
    Ok(settings.network_services.0.iter().enumerate().map(open).collect())
}

impl Kept {
    fn take(&self) -> Option<Session> {
        self.session.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()
    }

    /// Waits for the connection, and says that it is there.
    async fn announce(&self, settings: &Settings) {
        let mut status = self.status.clone();
        let Ok(up) =
            status.wait_for(|status| status.phase == Phase::Up).await.map(|up| up.connection.clone())
        else {
            return;
        };
        let Some(connection) = up else { return };
        let addresses = connection.context.as_ref().and_then(|context| context.ip_context.as_ref());
        tracing::info!(
            connection = self.id,
            endpoint = connection.network_service_endpoint_name,
            src = ?addresses.map(|ip| &ip.src_ip_addrs),
            dst = ?addresses.map(|ip| &ip.dst_ip_addrs),
            "{} is there", self.url
        );
        if let Some(dns) = connection.context.as_ref().and_then(|context| context.dns_context.as_ref()) {
            tracing::info!(connection = self.id, configs = ?dns.configs, "name servers of the endpoint");
        }
        if settings.memif_export && self.url.mechanism == MEMIF {
            let parameters = connection.mechanism.map(|mechanism| mechanism.parameters).unwrap_or_default();
            let socket = parameters.get(SOCKET_FILE).cloned().unwrap_or_default();
            println!("{}: memif socket {socket} in network namespace {}", self.id, self.namespace.inode());
        }
    }

    /// Pings once; the time, if it was answered.
    async fn ping(&self, timeout: Duration) -> Option<Duration> {
        let connection = self.status.borrow().connection.clone()?;
        self.pings.sent.fetch_add(1, Ordering::Relaxed);
        let began = Instant::now();
        let answer = tokio::time::timeout(timeout, self.datapath.alive(&connection)).await;
        let took = began.elapsed();
        if answer != Ok(Alive::Yes) {
            return None;
        }
        self.pings.answered.fetch_add(1, Ordering::Relaxed);
        self.pings.last.store(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        Some(took)
    }

    fn addresses(&self) -> Vec<IpAddr> {
        let status = self.status.borrow();
        let context = status.connection.as_ref().and_then(|connection| connection.context.as_ref());
        context
            .and_then(|c| c.ip_context.as_ref())
            .map(|ip| crate::endpoint::hosts(&ip.dst_ip_addrs))
            .unwrap_or_default()
    }
}

/// What is to be done once all services are there: nothing, for ever, or pings.
async fn work(settings: &Settings, services: &[Kept]) -> Result<(), NscError> {
    if let Some(count) = settings.ping {
        return ping_and_tell(settings, services, count).await;
    }
    let Some(interval) = settings.ping_interval else { return std::future::pending().await };
    let forever = services.iter().map(|service| {
        Box::pin(async move {
            let mut times = tokio::time::interval(interval.max(Duration::from_millis(1)));
            times.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                times.tick().await;
                service.ping(settings.liveness_check_timeout).await;
            }
        })
    });
    select_all(forever).await.0
}

async fn ping_and_tell(settings: &Settings, services: &[Kept], count: u64) -> Result<(), NscError> {
    let mut times = tokio::time::interval(
        settings.ping_interval.unwrap_or(Duration::from_secs(1)).max(Duration::from_millis(1)),
    );
    for sequence in 1..=count {
        times.tick().await;
        for service in services {
            let addresses: Vec<String> = service.addresses().iter().map(ToString::to_string).collect();
            let to = addresses.join(", ");
            match service.ping(settings.liveness_check_timeout).await {
                Some(took) => println!(
                    "{} from {to}: seq={sequence} time={:.3} ms",
                    service.id,
                    took.as_secs_f64() * 1000.0
                ),
                None => println!("{} from {to}: seq={sequence} no answer", service.id),
            }
        }
    }
    let sum = |of: fn(&Pings) -> &AtomicU64| {
        services.iter().map(|s| of(&s.pings).load(Ordering::Relaxed)).sum::<u64>()
    };
    let (sent, answered) = (sum(|pings| &pings.sent), sum(|pings| &pings.answered));
    println!("{sent} pings sent, {answered} answered");
    if sent == answered { Ok(()) } else { Err(NscError::Pings { sent, lost: sent - answered }) }
}

async fn close_all(services: &[Kept]) {
    let sessions = services.iter().filter_map(Kept::take);
    let closed = join_all(sessions.map(|session| session.close(CLOSE_TIME))).await;
    let failed = closed.iter().filter(|closed| closed.is_err()).count();
    if failed > 0 {
        tracing::warn!("{failed} of {} connections could not be closed; they expire", closed.len());
    }
}

/// What is not there, and why.
fn missing(services: &[Kept]) -> String {
    let missing =
        services.iter().filter(|service| service.status.borrow().phase != Phase::Up).map(|service| {
            let why =
                service.status.borrow().last_error.as_ref().map(|(_, status)| status.message().to_owned());
            format!("{}: {}", service.url, why.unwrap_or_else(|| "no answer yet".to_owned()))
        });
    missing.collect::<Vec<_>>().join("; ")
}

/// What `vwire status` and `vwire path` show.
struct Report(Arc<[Kept]>);

impl Report {
    fn view(service: &Kept) -> ConnectionView {
        let status = service.status.borrow().clone();
        let mut view = status.connection.as_ref().map(ConnectionView::of).unwrap_or_default();
        view.id.clone_from(&service.id);
        view.root.clone_from(&service.id);
        view.service.clone_from(&service.url.service);
        if status.phase != Phase::Up {
            view.state = format!("{:?}", status.phase).to_uppercase();
        }
        let mechanism = status.connection.as_ref().and_then(|connection| connection.mechanism.as_ref());
        view.mechanisms = mechanism.map(|leg| MechanismView::of("endpoint", leg)).into_iter().collect();
        view.last_heal = status.last_heal.map(|heal| Heal {
            at: crate::obs::seconds(heal.at),
            reason: heal.reason.to_string(),
            seconds: heal.took.as_secs_f64(),
        });
        view
    }

    fn figures(service: &Kept) -> Value {
        let status = service.status.borrow().clone();
        let context = status.connection.as_ref().and_then(|connection| connection.context.as_ref());
        let dns = context.and_then(|context| context.dns_context.as_ref());
        let dns: Vec<Value> = dns
            .map(|dns| dns.configs.as_slice())
            .unwrap_or_default()
            .iter()
            .map(|config| json!({"servers": config.dns_server_ips, "search": config.search_domains}))
            .collect();
        let pings = &service.pings;
        json!({
            "phase": format!("{:?}", status.phase),
            "requests": status.requests,
            "heals": status.heals,
            "healing": status.healing.map(|reason| reason.to_string()),
            "last_error": status.last_error.map(|(at, status)| json!({
                "at": crate::obs::seconds(at), "code": format!("{:?}", status.code()), "message": status.message(),
            })),
            "dns": dns,
            "pings": {
                "sent": pings.sent.load(Ordering::Relaxed),
                "answered": pings.answered.load(Ordering::Relaxed),
                "last_microseconds": pings.last.load(Ordering::Relaxed),
            },
        })
    }
}

#[async_trait]
impl Reporter for Report {
    async fn connections(&self) -> Vec<ConnectionView> {
        self.0.iter().map(Self::view).collect()
    }

    async fn report(&self) -> Map<String, Value> {
        let sessions: Map<String, Value> =
            self.0.iter().map(|service| (service.id.clone(), Self::figures(service))).collect();
        Map::from_iter([("sessions".to_owned(), Value::Object(sessions))])
    }
}
