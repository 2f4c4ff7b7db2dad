//! `vwire nsmgr-proxy`: a domain's door. Its own clients' Requests for endpoints of other domains go out here, others' come in; and
//! what its endpoints register elsewhere has this proxy's address.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Map, Value};

use super::Process;
use super::forwarding::Forwarding;
use super::guards::Guards;
use super::nsmgr::{check_name, public_url};
use super::registry_proxy_dns::Bounds;
use crate::chain::service::Service;
use crate::chain::{Chain, Element};
use crate::config::{self, List, Maybe, WatchedMap};
use crate::domain::{AddressMap, Ourselves, Places};
use crate::elements::authorize::PathPolicy;
use crate::elements::{
    Admission, Authorize, ClusterInfo, Connect, Discover, Follow, Hub, InterdomainBypass, Monitor,
    RefuseLoops, SwapIp, Timeout, TrimPath, UpdatePath, UpdateToken, cluster_info,
};
use crate::identity::policy::{BadPolicies, Policies, Transit};
use crate::obs::{ConnectionView, Reporter};
use crate::registry::authorize::{Authorize as AuthorizeRegistry, Strict, TokenRules};
use crate::registry::bypass::{self, Bypass};
use crate::registry::counted::Counted;
use crate::registry::hops::Hops;
use crate::registry::inbound::Inbound;
use crate::registry::remote::Remote;
use crate::registry::{self, Registry};
use crate::transport::{Gate, Limits, ServeError, Server, Services, Target};

/// The settings.
#[derive(Debug, Clone, clap::Args)]
pub struct Settings {
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened")]
    pub common: config::Common,
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened")]
    pub limits: Limits,
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened")]
    pub bounds: Bounds,
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened")]
    pub door: Door,

    /// Where it listens, separated by commas. The first TCP address is where others reach it.
    #[arg(long, env = "NSM_LISTEN_ON", value_name = "URLS", default_value = "unix:///listen.on.socket")]
    pub listen_on: List<Target>,

    /// What leads to other domains' registries: a registry-proxy-dns.
    #[arg(long, env = "NSM_REGISTRY_PROXY_URL", value_name = "URL", default_value = "registry-proxy:5005")]
    pub registry_proxy_url: Target,
}

/// What a proxy of Requests is told, alone and in one process with the registries' proxy.
#[derive(Debug, Clone, clap::Args)]
pub struct Door {
    /// Our name in paths. Proxies that stand in for each other have the same, and the same SPIFFE ID; those of other domains do not.
    #[arg(long, env = "NSM_NAME", value_name = "NAME", default_value = "nsmgr-proxy")]
    pub name: String,

    /// Where our domain's managers reach us, if not at the first TCP address of NSM_LISTEN_ON: the one name of several proxies, such as
    /// pnsmgr-svc:5006.
    #[arg(long, env = "VWIRE_PROXY_URL", value_name = "URL", default_value = "")]
    pub proxy_url: Maybe<Target>,

    /// Our domain's registry.
    #[arg(long, env = "NSM_REGISTRY_URL", value_name = "URL", default_value = "registry:5002")]
    pub registry_url: Target,

    /// A YAML file of addresses as other domains see them, `internal: external`. Followed as it changes.
    #[arg(long, env = "NSM_MAP_IP_FILE_PATH", value_name = "FILE", default_value = "map-ip.yaml")]
    pub map_ip_file_path: PathBuf,

    /// A YAML file of labels that our clients and endpoints have in other domains. Followed as it changes.
    #[arg(long, env = "VWIRE_CLUSTER_INFO_FILE", value_name = "FILE", default_value = cluster_info::FILE)]
    pub cluster_info_file: PathBuf,

    /// The names of our domain. Where they are told, what is of another is never looked for here; several proxies of one name need them.
    #[arg(long, env = "VWIRE_DOMAINS", value_name = "NAMES", default_value = "")]
    pub domains: List<String>,

    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened")]
    pub forwarding: Forwarding,

    /// Most Requests under way at one time.
    #[arg(long, env = "VWIRE_PROXY_MAX_REQUESTS", value_name = "COUNT", default_value_t = 256)]
    pub proxy_max_requests: usize,

    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened")]
    pub guards: Guards,
}

impl Door {
    fn ourselves(&self, url: &str, addresses: &Arc<AddressMap>) -> Ourselves {
        let us = Ourselves::new(url, Arc::clone(addresses));
        let told = self.forwarding.nsmrs_endpoint_url.0.as_ref().map(ToString::to_string);
        // With the URL alone it is our registry that forwards.
        match self.forwarding.nsmrs_address.is_some() || told.is_some() {
            true => us.forwarding(told, self.domains.0.clone()),
            false => us,
        }
    }
}

/// Why it does not run.
#[derive(Debug, thiserror::Error)]
pub enum NsmgrProxyError {
    /// A policy that nobody knows.
    #[error("NSM_REGISTRY_SERVER_POLICIES, NSM_REGISTRY_CLIENT_POLICIES: {0}")]
    Policies(#[from] BadPolicies),
    /// A setting will not do.
    #[error("{0}")]
    Setting(String),
    /// A socket.
    #[error("NSM_LISTEN_ON: {0}")]
    Serve(#[from] ServeError),
}

/// What health and reflection tell of.
const SERVICES: [&str; 4] = [
    "networkservice.NetworkService",
    "connection.MonitorConnection",
    "registry.NetworkServiceRegistry",
    "registry.NetworkServiceEndpointRegistry",
];

/// Serves until the process shall end.
///
/// # Errors
/// [`NsmgrProxyError`].
pub async fn run(settings: Settings, process: Process) -> Result<(), NsmgrProxyError> {
    let rules = process.token_rules(&settings.common)?;
    let target = settings.registry_proxy_url.clone();
    let beyond = Remote::new(Arc::clone(&process.pool), target).with_rules(rules.clone());
    let server = Server::bind(&settings.listen_on, settings.limits.clone()).await?;
    let transit = &settings.common.transit;
    let setup =
        Setup { door: &settings.door, bounds: &settings.bounds, rules, transit, beyond: Arc::new(beyond) };
    setup.serve(server, process).await
}

/// What a proxy is made of.
pub(super) struct Setup<'a> {
    pub door: &'a Door,
    pub bounds: &'a Bounds,
    pub rules: Option<Arc<dyn TokenRules>>,
    /// Which other trust domains may speak for others.
    pub transit: &'a [Transit],
    /// The registries of other domains.
    pub beyond: Arc<dyn Registry>,
}

impl Setup<'_> {
    /// Serves on these sockets.
    pub(super) async fn serve(self, server: Server, process: Process) -> Result<(), NsmgrProxyError> {
        let proxy = self.start(&server.targets(), &process).await?;
        tracing::info!(name = self.door.name, url = proxy.url, "the proxy of Requests is up");
        let service =
            Service::new(Arc::clone(&proxy.chain), Arc::clone(&proxy.hub), process.identity.clone())
                .counted_by(Arc::clone(process.admin.metrics()));
        let registry = Counted::in_front_of(Arc::clone(&proxy.registry), process.admin.metrics());
        let services = SERVICES.iter().fold(Services::new(), |services, name| services.named(*name));
        let services = services
            .with(|routes| service.add_to(routes))
            .with(|routes| registry::server::add_to(routes, &registry, &process.shutdown));
        process.admin.report(Arc::new(proxy));
        Ok(process.serve(server, services.routes().await).await?)
    }

    async fn start(&self, listens: &[Target], process: &Process) -> Result<Proxy, NsmgrProxyError> {
        let door = self.door;
        check_name(&door.name).map_err(|error| NsmgrProxyError::Setting(error.to_string()))?;
        let url = match &door.proxy_url.0 {
            Some(url) => url.to_string(),
            None => public_url(listens).await,
        };
        let addresses = Arc::new(AddressMap::new(&door.map_ip_file_path));
        let cluster = Arc::new(WatchedMap::new(&door.cluster_info_file));
        let places = Arc::new(Places::default());
        let own = Remote::new(Arc::clone(&process.pool), door.registry_url.clone());
        let own: Arc<dyn Registry> = Arc::new(own.with_rules(self.rules.clone()));
        door.forwarding.check().map_err(NsmgrProxyError::Setting)?;
        let us = door.ourselves(&url, &addresses);
        let known = us.clone();
        let outside = Arc::new(move || known.outside());
        door.forwarding.start(process, self.rules.clone(), Arc::clone(&own), Some(outside));
        let requests =
            Gate::new(door.proxy_max_requests, "Requests of other domains", "VWIRE_PROXY_MAX_REQUESTS");
        let hub = door.guards.hub();
        let follow = Follow::new(door.name.as_str(), Arc::clone(&hub), Arc::clone(&process.pool));
        let way = InterdomainBypass::new(
            Arc::clone(&places),
            Arc::clone(&own),
            Arc::clone(&self.beyond),
            door.domains.0.clone(),
            us.clone(),
        );
        let chain = Chain::new(door.name.as_str(), |chain| -> Vec<Arc<dyn Element>> {
            vec![
                Arc::new(Admission(requests.clone())),
                Arc::new(RefuseLoops::new(door.name.as_str(), process.identity.clone())),
                Arc::new(UpdatePath::new(door.name.as_str())),
                // What another proxy of our name has made is closed by us, too.
                Arc::new(door.guards.begin().passing_unknown()),
                Arc::new(UpdateToken::new(process.tokens.clone())),
                Arc::new(Authorize::new(path_policy(process, self.transit))),
                Arc::new(Timeout::new(chain)),
                Arc::new(Monitor::new(Arc::clone(&hub))),
                Arc::new(TrimPath),
                Arc::new(way),
                Arc::new(Discover::new(Arc::clone(&own))),
                Arc::new(SwapIp::new(Arc::clone(&addresses))),
                Arc::new(ClusterInfo(Arc::clone(&cluster))),
                Arc::new(Connect::new(Arc::clone(&process.pool)).following(Arc::clone(&follow))),
            ]
        });
        let seen = bypass::Settings { us, own: Arc::clone(&own), cluster };
        let out = Bypass::new(Arc::clone(&self.beyond), seen, Arc::clone(&places));
        let (bounded, gates) = self.bounds.before(Inbound::new(out, own, url.clone(), addresses));
        let authorized = AuthorizeRegistry::new(bounded, self.rules.clone(), Strict::default());
        let registry: Arc<dyn Registry> = Arc::new(Hops::new(authorized, process.tokens.clone()));
        Ok(Proxy { chain, hub, registry, url, follow, places, requests, gates })
    }
}

/// As everywhere: the caller has signed, and each hop was meant for the next.
fn path_policy(process: &Process, transit: &[Transit]) -> Arc<dyn PathPolicy> {
    match process.identity.current() {
        Some(_) => Arc::new(Policies::standard().with_transit(transit).counted_by(process.admin.metrics())),
        None => Arc::new(Policies::off()),
    }
}

/// A proxy that runs.
struct Proxy {
    chain: Arc<Chain>,
    hub: Arc<Hub>,
    registry: Arc<dyn Registry>,
    url: String,
    follow: Arc<Follow>,
    places: Arc<Places>,
    requests: Gate,
    gates: [Gate; 2],
}

#[async_trait]
impl Reporter for Proxy {
    async fn connections(&self) -> Vec<ConnectionView> {
        self.hub.connections().iter().map(|one| ConnectionView::of(one)).collect()
    }

    async fn report(&self) -> Map<String, Value> {
        let (ours, theirs) = self.places.counts();
        let [calls, watches] = &self.gates;
        let figures = [
            ("connections", self.hub.len()),
            ("requests", self.requests.inside()),
            ("registry_calls", calls.inside()),
            ("registry_watches", watches.inside()),
            ("endpoints_registered_elsewhere", ours),
            ("endpoints_of_other_domains", theirs),
            ("watches", self.hub.watchers()),
            ("next_hops", self.follow.len()),
        ];
        figures.into_iter().map(|(name, count)| (name.to_owned(), count.into())).collect()
    }
}
