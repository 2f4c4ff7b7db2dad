//! `vwire nsmgr`: the manager of a node. Clients ask it for services, it passes Requests to a forwarder of its node; endpoints and
//! forwarders register with it, and it with the mesh's registry.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use futures::TryStreamExt;
use netlink_packet_route::address::{AddressAttribute, AddressScope};
use serde_json::{Map, Value};

use super::Process;
use super::guards::Guards;
use crate::chain::Chain;
use crate::chain::service::Service;
use crate::config::{self, List, Maybe};
use crate::elements::authorize::PathPolicy;
use crate::elements::{
    ClientInfo, Connect, DiscoverForwarder, ExcludedPrefixes, Follow, ForgetFds, Hub, NetSvcMonitor, RecvFd,
    SendFd, Standard, excluded_prefixes,
};
use crate::identity::policy::{BadPolicies, Policies};
use crate::obs::{ConnectionView, Reporter};
use crate::registry::authorize::{Strict, TokenRules};
use crate::registry::counted::Counted;
use crate::registry::{self, Registry, memory};
use crate::transport::{Limits, ServeError, Server, Services, Target};

/// The manager's settings.
#[derive(Debug, Clone, clap::Args)]
pub struct Settings {
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened")]
    pub common: config::Common,
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened")]
    pub managing: Managing,

    /// Our name in paths. No hop beside us may have the same.
    #[arg(long, env = "NSM_NAME", value_name = "NAME", default_value = "nmgr")]
    pub name: String,

    /// The mesh's registry; empty: we are one ourselves, in memory.
    #[arg(long, env = "NSM_REGISTRY_URL", value_name = "URL", default_value = "tcp://localhost:5001")]
    pub registry_url: Maybe<Target>,

    /// The service that forwarders are endpoints of.
    #[arg(
        long,
        env = "NSM_FORWARDER_NETWORK_SERVICE_NAME",
        value_name = "SERVICE",
        default_value = "forwarder"
    )]
    pub forwarder_network_service_name: String,

    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened")]
    pub guards: Guards,
}

/// How a node is managed: what `vwire node` has of a manager's settings.
#[derive(Debug, Clone, clap::Args)]
pub struct Managing {
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened")]
    pub limits: Limits,

    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened")]
    pub strict: Strict,
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened")]
    pub store: memory::Limits,

    /// Where the manager listens: at a unix socket for this machine. The first TCP address is where other nodes reach it.
    #[arg(
        long,
        env = "NSM_LISTEN_ON",
        value_name = "URLS",
        default_value = "unix:///var/lib/networkservicemesh/nsm.io.sock"
    )]
    pub listen_on: List<Target>,

    /// A YAML file of prefixes that no endpoint may give to clients of this node: `prefixes: [10.0.0.0/8]`. Followed as it changes.
    #[arg(long, env = "VWIRE_EXCLUDED_PREFIXES_FILE", value_name = "FILE", default_value = excluded_prefixes::FILE)]
    pub excluded_prefixes_file: PathBuf,
}

/// Why a manager does not run.
#[derive(Debug, thiserror::Error)]
pub enum NsmgrError {
    /// A policy that nobody knows.
    #[error("NSM_REGISTRY_SERVER_POLICIES, NSM_REGISTRY_CLIENT_POLICIES: {0}")]
    Policies(#[from] BadPolicies),
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
}

/// What health and reflection tell of.
const SERVICES: [&str; 4] = [
    "networkservice.NetworkService",
    "connection.MonitorConnection",
    "registry.NetworkServiceRegistry",
    "registry.NetworkServiceEndpointRegistry",
];

/// Manages the node until the process shall end.
///
/// # Errors
/// [`NsmgrError`].
pub async fn run(settings: Settings, process: Process) -> Result<(), NsmgrError> {
    let server = Server::bind(&settings.managing.listen_on, settings.managing.limits.clone()).await?;
    let manager = Manager::start(&settings, &process, &server.targets()).await?;
    tracing::info!(name = settings.name, url = manager.public_url, "manager");
    let service =
        Service::new(Arc::clone(&manager.chain), Arc::clone(&manager.hub), process.identity.clone())
            .counted_by(Arc::clone(process.admin.metrics()));
    let counted = Counted::in_front_of(Arc::clone(&manager.registry), process.admin.metrics());
    let services = SERVICES.iter().fold(Services::new(), |services, name| services.named(*name));
    let services = services
        .with(|routes| service.add_to(routes))
        .with(|routes| registry::server::add_to(routes, &counted, &process.shutdown));
    process.admin.report(Arc::new(manager));
    Ok(process.serve(server, services.routes().await).await?)
}

/// The parts of a manager that runs.
pub struct Manager {
    /// What Requests go through.
    pub chain: Arc<Chain>,
    /// Its connections.
    pub hub: Arc<Hub>,
    /// The registry that it serves.
    pub registry: Arc<dyn Registry>,
    /// Where other nodes reach it.
    pub public_url: String,
    follow: Arc<Follow>,
}

impl Manager {
    /// Puts a manager together that listens at `listens`.
    ///
    /// # Errors
    /// [`NsmgrError`] for settings that will not do.
    pub async fn start(
        settings: &Settings,
        process: &Process,
        listens: &[Target],
    ) -> Result<Self, NsmgrError> {
        check_name(&settings.name)?;
        let (calls, registrations) = policies(settings, process)?;
        let public_url = public_url(listens).await;
        let info = ClientInfo::from_env();
        let labels = info.clone();
        let registry = registry::nsmgr::Settings {
            registry: settings.registry_url.0.clone(),
            public_url: public_url.clone(),
            edit: Some(Arc::new(move |endpoint| labels.add_to_endpoint(endpoint))),
            server_rules: registrations.clone(),
            client_rules: registrations,
            strict: settings.managing.strict.clone(),
            store: settings.managing.store.clone(),
        };
        let registry =
            registry::nsmgr::Nsmgr::new(registry, Arc::clone(&process.pool), process.tokens.clone());
        let hub = settings.guards.hub();
        let follow = Follow::new(settings.name.as_str(), Arc::clone(&hub), Arc::clone(&process.pool));
        let chain = Chain::new(settings.name.as_str(), |chain| {
            let standard = Standard {
                name: settings.name.as_str().into(),
                tokens: process.tokens.clone(),
                policies: calls,
                binding: settings.guards.binding,
                hub: Arc::clone(&hub),
            };
            let found = &registry.internal;
            let forwarders = &settings.forwarder_network_service_name;
            let mut elements = standard.elements(&chain);
            elements.extend([
                Arc::new(info) as Arc<dyn crate::chain::Element>,
                // Ahead of the choice of a forwarder: descriptors come once, and each forwarder that is tried gets them.
                Arc::new(ForgetFds),
                Arc::new(SendFd),
                Arc::new(RecvFd),
                Arc::new(DiscoverForwarder::new(Arc::clone(found), forwarders, &public_url)),
                Arc::new(NetSvcMonitor::new(Arc::clone(found), chain)),
                Arc::new(ExcludedPrefixes::new(&settings.managing.excluded_prefixes_file)),
                Arc::new(Connect::new(Arc::clone(&process.pool)).following(Arc::clone(&follow))),
            ]);
            elements
        });
        Ok(Self { chain, hub, registry: registry.served, public_url, follow })
    }
}

#[async_trait]
impl Reporter for Manager {
    async fn connections(&self) -> Vec<ConnectionView> {
        self.hub.connections().iter().map(|one| ConnectionView::of(one)).collect()
    }

    async fn report(&self) -> Map<String, Value> {
        let figures = [
            ("connections", self.hub.len()),
            ("watches", self.hub.watchers()),
            ("next_hops", self.follow.len()),
        ];
        figures.into_iter().map(|(name, count)| (name.to_owned(), count.into())).collect()
    }
}

type Rules = (Arc<dyn PathPolicy>, Option<Arc<dyn TokenRules>>);

/// The policies of calls, and those of registrations.
fn policies(settings: &Settings, process: &Process) -> Result<Rules, NsmgrError> {
    let common = &settings.common;
    if common.insecure {
        return Ok((Arc::new(Policies::off()), None));
    }
    let registrations =
        Policies::of_masks(&common.registry_server_policies, &common.registry_client_policies)?;
    let registrations = registrations.with_transit(&common.transit).counted_by(process.admin.metrics());
    let calls = Policies::standard().with_transit(&common.transit).counted_by(process.admin.metrics());
    Ok((Arc::new(calls), Some(Arc::new(registrations))))
}

pub(super) fn check_name(name: &str) -> Result<(), NsmgrError> {
    let reason = match name {
        "" => "empty; paths need a name",
        name if name.len() > 253 => "longer than 253 bytes, which is the most that a path's segment has",
        name if name.chars().any(char::is_control) => "has control characters",
        _ => return Ok(()),
    };
    Err(NsmgrError::Setting { name: "NSM_NAME", reason: reason.to_owned() })
}

/// Where other nodes reach us: the first TCP address that we listen at, with an address of this host in place of "all of them"; the
/// first of the others if there is none.
pub(super) async fn public_url(listens: &[Target]) -> String {
    let tcp = listens.iter().find_map(|target| match target {
        Target::Tcp(address) => Some(address),
        _ => None,
    });
    let Some(address) = tcp else { return listens.first().map(ToString::to_string).unwrap_or_default() };
    let own = match unspecified(address) {
        Some(port) => own_address().await.map(|ip| match ip {
            IpAddr::V4(ip) => format!("{ip}:{port}"),
            IpAddr::V6(ip) => format!("[{ip}]:{port}"),
        }),
        None => None,
    };
    format!("tcp://{}", own.as_ref().unwrap_or(address))
}

/// The port of an address that stands for all addresses of a host.
fn unspecified(address: &str) -> Option<&str> {
    let (host, port) = address.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let all = host.is_empty() || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified());
    all.then_some(port)
}

/// The first IPv4 address that is not of the loopback; else the first global one of IPv6.
async fn own_address() -> Option<IpAddr> {
    let (connection, handle, _) = rtnetlink::new_connection().ok()?;
    let running = tokio::spawn(connection);
    let found: Result<Vec<_>, _> = handle.address().get().execute().try_collect().await;
    running.abort();
    let addresses: Vec<(AddressScope, IpAddr)> = found
        .ok()?
        .into_iter()
        .filter_map(|message| {
            let ip = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(ip) => Some(*ip),
                _ => None,
            });
            let any = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(ip) => Some(*ip),
                _ => None,
            });
            Some((message.header.scope, ip.or(any)?))
        })
        .collect();
    let v4 = addresses.iter().find(|(_, ip)| ip.is_ipv4() && !ip.is_loopback());
    let v6 = addresses.iter().find(|(scope, ip)| ip.is_ipv6() && *scope == AddressScope::Universe);
    v4.or(v6).map(|(_, ip)| *ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn other_nodes_reach_us_at_the_first_tcp_address() {
        let of = |urls: &[&str]| {
            let targets: Vec<Target> = urls.iter().map(|url| Target::parse(url).unwrap()).collect();
            async move { public_url(&targets).await }
        };
        assert_eq!(
            of(&["unix:///a", "tcp://10.0.0.1:5001", "tcp://10.0.0.2:5001"]).await,
            "tcp://10.0.0.1:5001"
        );
        assert_eq!(of(&["unix:///a", "unix:///b"]).await, "unix:///a");
        for all in ["tcp://:5001", "tcp://0.0.0.0:5001", "tcp://[::]:5001"] {
            let url = of(&[all]).await;
            assert!(url.ends_with(":5001"), "{url}");
            if own_address().await.is_some() {
                assert!(unspecified(url.trim_start_matches("tcp://")).is_none(), "{url}");
            }
        }
    }

    #[test]
    fn names_that_no_path_can_have_are_refused() {
        assert!(check_name("nsmgr-1").is_ok());
        for bad in ["", "a\nb", &"x".repeat(254)] {
            assert!(check_name(bad).unwrap_err().to_string().starts_with("NSM_NAME: "));
        }
    }
}
