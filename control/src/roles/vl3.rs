//! `vwire vl3`: an endpoint of a virtual layer-3 network. It gives its clients addresses of a prefix that it is granted, and routes between
//! them, and to the other endpoints of the service, in a packet engine.
//!
//! It takes the settings of the Go components' `nse-vl3-vpp`. Killed, it takes nothing with it: packets flow on, and the next process of
//! the name finds its clients in the engine. Told to end, it removes them, unless `NSM_UNREGISTER_ITSELF` is false.

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::watch;

use super::Process;
use super::engine::{self, NoEngine};
use super::place::Place;
use super::registration::{self, Registration};
use crate::chain::service::Service;
use crate::chain::{Chain, Element};
use crate::client::{ClientSettings, LivenessSettings, Manager, Namespace};
use crate::dataplane::netns;
use crate::elements::authorize::PathPolicy;
use crate::elements::{Authorize, Begin, Monitor, SendFd, Timeout, TrimPath, UpdatePath, UpdateToken};
use crate::endpoint::Idle;
use crate::identity::policy::Policies;
use crate::ipam::{Grant, client as prefixes};
use crate::registry::Registry;
use crate::registry::remote::Remote;
use crate::transport::{ServeError, Server, Services};
use crate::vl3::dns::{self, Directory, Naming, Vl3Dns};
use crate::vl3::peers::announced::Announced;
use crate::vl3::peers::{NOTE, Own, Peers, RouterPorts, Setup, is_own};
use crate::vl3::router::{Restored, Router};
use crate::vl3::server::{payload_of, port_name};
use crate::vl3::{Network, metrics, server};

mod report;
mod settings;

use report::Report;
pub use settings::Settings;

/// Why an endpoint does not run.
#[derive(Debug, thiserror::Error)]
pub enum Vl3Error {
    /// A setting will not do.
    #[error("{name}: {reason}")]
    Setting {
        /// Its variable.
        name: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// There is no engine, or it refuses the domain.
    #[error("no packet engine: {0}")]
    Engine(String),
    /// A socket can't be opened.
    #[error("NSM_LISTEN_ON: {0}")]
    Serve(#[from] ServeError),
}

fn wrong(name: &'static str) -> impl Fn(String) -> Vl3Error {
    move |reason| Vl3Error::Setting { name, reason }
}

/// Serves until the process shall end, or nobody has used us for the idle timeout.
///
/// # Errors
/// [`Vl3Error`].
pub async fn run(settings: Settings, process: Process) -> Result<(), Vl3Error> {
    let place = Place::choose("vwire-vl3", &settings.listen_on).map_err(wrong("NSM_LISTEN_ON"))?;
    let listening = Server::bind(std::slice::from_ref(&place.target), settings.limits.clone()).await?;
    let policies = if settings.common.insecure { Policies::off() } else { Policies::standard() };
    let policies =
        Arc::new(policies.with_transit(&settings.common.transit).counted_by(process.admin.metrics()));
    let namespace = namespace(&settings)?;
    let slots =
        if settings.prefix.is_empty() { settings.prefix_server_url.len() } else { settings.prefix.len() };
    if slots == 0 {
        return Err(wrong("NSM_PREFIX_SERVER_URL")(
            "empty, and so is VWIRE_VL3_PREFIX; one of them has to say where prefixes come from".into(),
        ));
    }

    process.admin.wait("the packet engine");
    let (router, restored) = router(&settings, &process).await?;
    process.admin.ready("the packet engine");
    let sockets = netns::Namespace::even_ours(namespace.inode(), namespace.fd())
        .map_err(|status| wrong("VWIRE_NETNS")(status.message().to_owned()))?;
    let network = Arc::new(Network::new(router, slots, sockets, settings.guards.hub()));
    let begin = Arc::new(settings.guards.begin());
    let registry: Arc<dyn Registry> = Arc::new(
        Remote::new(Arc::clone(&process.pool), settings.connect_to.clone())
            .with_rules(Some(policies.clone())),
    );
    let peers = links(&settings, &process, &network, &namespace, policies.clone(), Arc::clone(&registry));
    take_over(&network, &peers, restored, (&begin, &settings.name)).await;
    let directory = directory(&settings, &network);
    let names = Vl3Dns::new(Arc::clone(&directory), peers.address(), settings.name.clone());
    let chain =
        chain(&settings, &process, policies, &network, [peers.gate(), Arc::new(names)], &namespace, begin);
    follow(&settings, &process, &network, &peers, &chain);
    let _names = name_server(&process, &network, &peers, &namespace, directory);
    process.admin.register(|registry| registry.register_collector(metrics::collector(&network)));
    process.admin.report(Arc::new(Report(Arc::clone(&network), Arc::clone(&peers))));

    let service = Service::new(chain, Arc::clone(&network.hub), process.identity.clone())
        .counted_by(Arc::clone(process.admin.metrics()));
    let routes = Services::new()
        .with(|routes| service.add_to(routes))
        .named("networkservice.NetworkService")
        .named("connection.MonitorConnection")
        .routes()
        .await;
    let url = listening.targets().first().map(ToString::to_string).unwrap_or_default();
    let registered = registration(&settings, url).keep(Arc::clone(&registry));
    tokio::spawn(Arc::clone(&peers).run(registered.state(), process.shutdown.clone()));
    let announced = registration::announce(&registered, &process);
    let served = tokio::select! {
        served = process.serve(listening, routes) => served,
        () = announced => Ok(()),
    };
    if settings.unregister_itself {
        peers.close().await;
        registration::farewell(registered).await;
        // Nothing of ours is left in the engine.
        if let Err(status) = network.router.clear().await {
            tracing::warn!(%status, "the network stays in the packet engine");
        }
    } else {
        peers.leave();
    }
    served.map_err(Vl3Error::from)
}

/// Our links with the other endpoints of the service, here and in the domains that we are told of.
fn links(
    settings: &Settings,
    process: &Process,
    network: &Network,
    namespace: &Namespace,
    policies: Arc<dyn PathPolicy>,
    registry: Arc<dyn Registry>,
) -> Arc<Peers> {
    let manager = Manager::new(Arc::clone(&process.pool), settings.connect_to.clone(), policies);
    let svid = process.identity.current();
    let liveness = settings.liveness_check_enabled.then_some(LivenessSettings {
        interval: settings.liveness_check_interval.max(Duration::from_millis(10)),
        timeout: settings.liveness_check_timeout.max(Duration::from_millis(10)),
    });
    let client = ClientSettings {
        request_timeout: settings.request_timeout,
        token_life: svid.as_ref().map(|_| settings.common.max_token_lifetime),
        liveness,
        metrics: Some(Arc::clone(process.admin.metrics())),
        ..Default::default()
    };
    // The first is the one that all endpoints of the network have.
    let mut services: Vec<String> = settings.service_names.iter().take(1).cloned().collect();
    services.extend(services.first().map(|name| settings.remotes.targets(name)).unwrap_or_default());
    let ports = RouterPorts {
        router: Arc::clone(&network.router),
        namespace: network.namespace.clone(),
        payload: payload_of(&settings.payload),
    };
    Peers::new(Setup {
        name: settings.name.clone(),
        identity: svid.map(|svid| svid.id.to_string()),
        services,
        labels: settings.request_labels.0.clone(),
        payload: settings.payload.clone(),
        namespace: namespace.clone(),
        upstream: Arc::new(manager),
        registry,
        ports: Box::new(ports),
        port_name,
        mtu: Arc::clone(&network.mtu),
        own_interface: settings.own_interface,
        client,
    })
}

/// What an earlier process of ours left: clients' connections, and links to other endpoints. Nothing may lead to where nobody is.
async fn take_over(
    network: &Network,
    peers: &Arc<Peers>,
    restored: Vec<Restored>,
    (begin, name): (&Begin, &str),
) {
    let mut links = Vec::new();
    for port in network.take_over(restored, begin).await {
        if port.note == NOTE {
            links.push(port.port);
            continue;
        }
        let removed = network.router.detach(&port.port).await;
        tracing::info!(port = port.port, ok = removed.is_ok(), "removing a port that nobody takes up");
    }
    let own = network.hub.connections().iter().any(|known| is_own(name, known));
    peers.adopt(links, own);
}

/// What a Request of a client goes through.
fn chain(
    settings: &Settings,
    process: &Process,
    policies: Arc<dyn PathPolicy>,
    network: &Arc<Network>,
    [gate, names]: [Arc<dyn Element>; 2],
    namespace: &Namespace,
    begin: Arc<Begin>,
) -> Arc<Chain> {
    let idle = (!settings.idle_timeout.is_zero())
        .then(|| {
            // Other endpoints and our own interface would keep each endpoint of a network that nobody uses.
            let name = settings.name.clone();
            let is_client = move |one: &_| !is_own(&name, one) && Announced::in_request(one).is_none();
            Idle::new(settings.idle_timeout, process.shutdown.clone()).of_those(is_client)
        })
        .inspect(|idle| network.hub.connections().iter().for_each(|known| idle.used_by(known)))
        .map(|idle| Arc::new(idle) as Arc<dyn Element>);
    Chain::new(settings.name.clone(), |handle| {
        let mut elements: Vec<Arc<dyn Element>> = vec![
            Arc::new(UpdatePath::new(settings.name.clone())),
            begin,
            Arc::new(UpdateToken::new(process.tokens.clone())),
            Arc::new(Authorize::new(policies)),
            Arc::new(Timeout::new(handle)),
            Arc::new(Monitor::new(Arc::clone(&network.hub))),
            Arc::new(TrimPath),
        ];
        elements.extend(idle);
        elements.push(Arc::new(SendFd));
        elements.extend([gate, names]);
        elements.extend(server::elements(network, namespace));
        elements
    })
}

/// The names of clients, those that are there already among them. There are none without an address to ask for them at.
fn directory(settings: &Settings, network: &Network) -> Arc<Directory> {
    let templates = if settings.own_interface { settings.dns_templates.0.clone() } else { Vec::new() };
    let directory = Directory::new(Naming {
        templates,
        services: settings.service_names.0.clone(),
        ttl: settings.dns_ttl,
    });
    network.hub.connections().iter().for_each(|connection| directory.take_over(connection));
    Arc::new(directory)
}

/// Our name server, and what it has to hear; none if there are no names.
fn name_server(
    process: &Process,
    network: &Network,
    peers: &Peers,
    namespace: &Namespace,
    directory: Arc<Directory>,
) -> Option<dns::Server> {
    if !directory.has_templates() {
        return None;
    }
    let beside = |work: futures::future::BoxFuture<'static, ()>| {
        tokio::spawn(process.shutdown.clone().run_until_cancelled_owned(work));
    };
    beside(Box::pin(dns::follow_peers(Arc::clone(&directory), peers.peers())));
    beside(Box::pin(dns::tell_clients(Arc::clone(&network.hub), peers.address())));
    Some(dns::Server::start(dns::Setup {
        directory,
        own: peers.address(),
        namespace: namespace.clone(),
        port: dns::PORT,
        metrics: Arc::clone(process.admin.metrics()),
    }))
}

fn namespace(settings: &Settings) -> Result<Namespace, Vl3Error> {
    let opened = match &settings.netns.0 {
        Some(file) => Namespace::open(file),
        None => Namespace::own(),
    };
    opened.map_err(|error| wrong("VWIRE_NETNS")(error.to_string()))
}

async fn router(settings: &Settings, process: &Process) -> Result<(Arc<Router>, Vec<Restored>), Vl3Error> {
    let found = engine::find(&settings.dataplane, &settings.run, &settings.name);
    let (client, events) = found.map_err(|error| match error {
        NoEngine::Setting(reason) => wrong("VWIRE_DATAPLANE")(reason),
        NoEngine::Program(reason) => Vl3Error::Engine(reason),
    })?;
    let started = Router::start(client, events, domain(&settings.name), process.shutdown.clone()).await;
    started.map_err(|status| Vl3Error::Engine(status.message().to_owned()))
}

/// The domain's name at the engine, which may have those of other endpoints, too.
fn domain(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_') { c } else { '_' };
    format!("vl3-{}", name.chars().take(58).map(plain).collect::<String>())
}

/// Begins what goes on beside Requests.
fn follow(
    settings: &Settings,
    process: &Process,
    network: &Arc<Network>,
    peers: &Arc<Peers>,
    chain: &Arc<Chain>,
) {
    let beside = |work: futures::future::BoxFuture<'static, ()>| {
        tokio::spawn(process.shutdown.clone().run_until_cancelled_owned(work));
    };
    let grants = grants(settings, process, network);
    beside(Box::pin(tell_peers(Arc::clone(peers), grants.clone())));
    for (slot, grants) in grants.into_iter().enumerate() {
        beside(Box::pin(Arc::clone(network).follow_prefix(slot, grants)));
    }
    beside(Box::pin(Arc::clone(network).follow_mtu()));
    beside(Box::pin(Arc::clone(network).ask_the_late()));
    beside(Box::pin(Arc::clone(network).expire(Arc::downgrade(chain))));
}

/// Says to the other endpoints what we have, for as long as it is polled.
async fn tell_peers(peers: Arc<Peers>, mut grants: Vec<watch::Receiver<Option<Grant>>>) {
    loop {
        let now = grants.iter_mut().filter_map(|grant| grant.borrow_and_update().clone());
        peers.set_own(Own::of(now.map(|grant| grant.prefix)));
        let changes = grants.iter_mut().map(|grant| Box::pin(grant.changed()));
        if let (Err(_), ..) = futures::future::select_all(changes).await {
            return;
        }
    }
}

/// Where each slot's prefix comes from.
fn grants(settings: &Settings, process: &Process, network: &Network) -> Vec<watch::Receiver<Option<Grant>>> {
    if !settings.prefix.is_empty() {
        let fixed = |prefix: &IpNet| prefixes::fixed(*prefix, process.shutdown.clone());
        return settings.prefix.iter().map(fixed).collect();
    }
    let before = network.addresses.prefixes();
    let servers = settings.prefix_server_url.iter().zip(before);
    servers
        .map(|(server, before)| {
            prefixes::lease(Arc::clone(&process.pool), server.clone(), before, process.shutdown.clone())
        })
        .collect()
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
