//! A client's connection at an endpoint of a virtual network, with a real packet engine: what a prefix that changes does to whom, what a
//! Close leaves, and that a peer can't take what is another's. Needs root.

mod engine_support;
mod netns_support;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine_support::*;
use netns_support::Netns;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use vwire_control::api::connection::{Connection, State};
use vwire_control::api::connectioncontext::{ConnectionContext, IpContext, Route};
use vwire_control::api::networkservice::NetworkServiceRequest;
use vwire_control::chain::{Call, Chain, Element};
use vwire_control::client::{ClientSettings, Manager, Namespace};
use vwire_control::dataplane::client::Client;
use vwire_control::dataplane::ends::Payload;
use vwire_control::elements::monitor::Strictness;
use vwire_control::elements::{Begin, Binding, Hub, Monitor};
use vwire_control::identity::policy::Policies;
use vwire_control::identity::{Identity, TokenSource};
use vwire_control::ipam::Grant;
use vwire_control::registry::remote::Remote;
use vwire_control::transport::{Dialling, Pool, Target};
use vwire_control::vl3::peers::{Own, Peers, RouterPorts, Setup};
use vwire_control::vl3::router::Router;
use vwire_control::vl3::{Network, server};

/// An endpoint without its process around it.
struct Endpoint {
    home: Home,
    netns: Netns,
    network: Arc<Network>,
    chain: Arc<Chain>,
    peers: Arc<Peers>,
    prefix: watch::Sender<Option<Grant>>,
    shutdown: CancellationToken,
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Endpoint {
    async fn start() -> Self {
        let (home, netns, shutdown) = (Home::new(), Netns::new("vl3"), CancellationToken::new());
        // Not by the client: it would start another one when the test has ended this one.
        home.launcher.ensure().await.unwrap();
        let (client, events) = Client::new(&home.launcher.socket(), None);
        let (router, _) = Router::start(client, events, "vl3", shutdown.clone()).await.unwrap();
        let hub = Hub::new(Strictness::Open);
        let network = Arc::new(Network::new(router, 1, netns.namespace(), Arc::clone(&hub)));
        let namespace = Namespace::open(Path::new(&netns.path())).unwrap();
        let peers = peers(&network, &namespace);
        let chain = Chain::new("vl3", |_| {
            let mut elements: Vec<Arc<dyn Element>> =
                vec![Arc::new(Begin::new(Binding::Off)), Arc::new(Monitor::new(hub)), peers.gate()];
            elements.extend(server::elements(&network, &namespace));
            elements
        });
        let (prefix, told) = watch::channel(None);
        let beside = |work: futures::future::BoxFuture<'static, ()>| {
            tokio::spawn(shutdown.clone().run_until_cancelled_owned(work));
        };
        beside(Box::pin(Arc::clone(&network).follow_prefix(0, told)));
        beside(Box::pin(Arc::clone(&network).follow_mtu()));
        beside(Box::pin(Arc::clone(&network).ask_the_late()));
        Self { home, netns, network, chain, peers, prefix, shutdown }
    }

    async fn ask(&self, request: NetworkServiceRequest) -> Result<Connection, Status> {
        self.chain.request(&mut Call::internal("test", PATIENCE), request).await
    }

    /// A first Request of a client with memif.
    async fn client(&self, id: &str) -> Result<Connection, Status> {
        self.ask(asking(id, "IP", vec![memif(&self.netns)])).await
    }

    async fn again(&self, connection: &Connection) -> Result<Connection, Status> {
        let connection = Some(connection.clone());
        self.ask(NetworkServiceRequest { connection, mechanism_preferences: vec![] }).await
    }

    async fn close(&self, connection: &Connection) {
        self.chain.close(&mut Call::internal("test", PATIENCE), connection.clone()).await.unwrap();
    }

    fn grant(&self, prefix: &str) {
        let grant = Grant::of(prefix.parse().unwrap());
        self.peers.set_own(Own::of([grant.prefix]));
        self.prefix.send_replace(Some(grant));
    }

    async fn gateways(&self) -> Vec<String> {
        let state = self.network.router.client().snapshot().await.unwrap().state.unwrap();
        state.domains[0].gateways.clone()
    }

    /// Every prefix at the engine, and its port.
    async fn routes(&self) -> Vec<(String, String)> {
        let state = self.network.router.client().snapshot().await.unwrap().state.unwrap();
        state.domains[0].routes.iter().map(|route| (route.prefix.clone(), route.port.clone())).collect()
    }

    async fn state_of(&self, id: &str) -> State {
        self.network.hub.get(id).unwrap().state()
    }

    /// A host that answers pings, attached to a connection.
    fn host(&self, connection: &Connection) -> Process {
        let (socket, address) = (socket(connection), ip(connection).src_ip_addrs[0].clone());
        let args = ["--role", "client", "--socket", &socket, "--mode", "ip", "--address", &address];
        let gateway = gateway(connection);
        let args = [&args[..], &["--gateway", &gateway]].concat();
        Process::inside(&self.netns, &program("examples/icmp_responder"), &args)
    }

    /// Five pings from a connection's memif.
    fn ping(&self, connection: &Connection, to: &str) -> Result<String, String> {
        let (socket, address) = (socket(connection), ip(connection).src_ip_addrs[0].clone());
        let gateway = gateway(connection);
        let mut args = vec!["--role", "client", "--socket", &socket, "--mode", "ip", "--address", &address];
        args.extend(["--gateway", &gateway, "--count", "5", "--interval", "0.01", to]);
        Process::inside(&self.netns, &program("examples/ping"), &args).success()
    }
}

/// The links of an endpoint that nobody is told of: it asks nobody, and others may ask it.
fn peers(network: &Network, namespace: &Namespace) -> Arc<Peers> {
    let identity = Identity::insecure();
    let tokens = TokenSource::new(identity.clone(), Duration::from_secs(600));
    let pool = Arc::new(Pool::new(identity, tokens, Dialling::default()));
    let nobody: Target = "unix:///nobody/is/here.sock".parse().unwrap();
    Peers::new(Setup {
        name: "vl3".to_owned(),
        identity: None,
        services: vec!["net".to_owned()],
        labels: Default::default(),
        payload: "IP".to_owned(),
        namespace: namespace.clone(),
        upstream: Arc::new(Manager::new(Arc::clone(&pool), nobody.clone(), Arc::new(Policies::off()))),
        registry: Arc::new(Remote::new(pool, nobody)),
        ports: Box::new(RouterPorts {
            router: Arc::clone(&network.router),
            namespace: network.namespace.clone(),
            payload: Payload::Ip,
        }),
        port_name: server::port_name,
        mtu: Arc::clone(&network.mtu),
        own_interface: false,
        client: ClientSettings::default(),
    })
}

fn socket(connection: &Connection) -> String {
    connection.mechanism.as_ref().unwrap().parameters["socketfile"].clone()
}

fn ip(connection: &Connection) -> IpContext {
    connection.context.clone().unwrap().ip_context.unwrap()
}

fn gateway(connection: &Connection) -> String {
    ip(connection).dst_ip_addrs[0].split('/').next().unwrap().to_owned()
}

async fn eventually(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so().await {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_prefix_comes_to_each_client_with_its_next_request() {
    let endpoint = Endpoint::start().await;
    let early = endpoint.client("a").await.unwrap_err();
    assert_eq!(
        (early.code(), early.message().starts_with("prefix pool is initializing")),
        (Code::Unavailable, true)
    );
    endpoint.grant("172.16.1.0/30");
    eventually("the prefix is there", async || endpoint.client("a").await.is_ok()).await;
    let a = endpoint.again(&endpoint.network.hub.get("a").unwrap()).await.unwrap();
    let b = endpoint.client("b").await.unwrap();
    endpoint.client("c").await.unwrap();
    let full = endpoint.client("d").await.unwrap_err();
    assert_eq!(full.code(), Code::ResourceExhausted, "{full}");
    assert_eq!(endpoint.network.router.ports().len(), 3, "nothing of the fourth is left");
    endpoint.close(&endpoint.network.hub.get("c").unwrap()).await;
    let host = endpoint.host(&b);
    endpoint.ping(&a, "172.16.1.0").unwrap();
    endpoint.ping(&a, "172.16.1.2").unwrap();

    endpoint.grant("172.17.0.0/24");
    for id in ["a", "b"] {
        eventually("asked to refresh", async || endpoint.state_of(id).await == State::RefreshRequested).await;
    }
    // Nothing has changed for those who have not asked yet.
    assert_eq!(endpoint.gateways().await, ["172.17.0.0", "172.16.1.0"]);
    endpoint.ping(&a, "172.16.1.0").unwrap();
    endpoint.ping(&a, "172.16.1.2").unwrap();

    let again = endpoint.again(&b).await.unwrap();
    assert_eq!(
        (&ip(&again).src_ip_addrs[..], socket(&again)),
        (&["172.17.0.1/32".to_owned()][..], socket(&b))
    );
    assert_eq!(endpoint.gateways().await, ["172.17.0.0", "172.16.1.0"]);
    drop(host);
    let _host = endpoint.host(&again);
    // The engine may not have noticed yet that the former host has gone.
    eventually("the new host answers", async || endpoint.ping(&a, "172.17.0.1").is_ok()).await;
    let a = endpoint.again(&a).await.unwrap();
    assert_eq!(ip(&a).src_ip_addrs, ["172.17.0.2/32"]);
    assert!(ip(&a).src_routes.iter().all(|route| route.prefix.starts_with("172.17.")), "{:?}", ip(&a));
    assert_eq!(endpoint.gateways().await, ["172.17.0.0"], "nobody has the old one");
    assert_eq!(
        endpoint.routes().await,
        [("172.17.0.1/32".to_owned(), "vl3.b".to_owned()), ("172.17.0.2/32".to_owned(), "vl3.a".to_owned())]
    );
    endpoint.ping(&a, "172.17.0.1").unwrap();

    // A smaller link, and what the engine holds afterwards: nothing.
    let mut small = asking("small", "IP", vec![memif(&endpoint.netns)]);
    small.connection.as_mut().unwrap().context = Some(ConnectionContext { mtu: 1400, ..Default::default() });
    let small = endpoint.ask(small).await.unwrap();
    eventually("asked for the MTU", async || {
        let told = endpoint.network.hub.get("a").unwrap();
        (told.state(), told.context.as_ref().unwrap().mtu) == (State::RefreshRequested, 1400)
    })
    .await;
    let mtus = async || {
        let state = endpoint.network.router.client().snapshot().await.unwrap().state.unwrap();
        state.domains[0].ports.iter().map(|port| port.mtu).collect::<Vec<_>>()
    };
    eventually("no port sends more", async || mtus().await == [1400; 3]).await;
    assert_eq!(endpoint.again(&a).await.unwrap().context.unwrap().mtu, 1400);
    for one in [&a, &again, &small] {
        endpoint.close(one).await;
    }
    let state = endpoint.network.router.client().snapshot().await.unwrap().state.unwrap();
    assert_eq!((state.ports.len(), state.domains[0].routes.len(), state.domains[0].ports.len()), (0, 0, 0));
    assert_eq!(endpoint.network.addresses.figures(), [("172.17.0.0/24".parse().unwrap(), 0, 255)]);
    assert!(endpoint.home.dir.path().join("fwd/dataplane.sock").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_endpoint_has_what_it_says_unless_that_is_anothers() {
    let endpoint = Endpoint::start().await;
    endpoint.grant("172.16.1.0/24");
    eventually("the prefix is there", async || endpoint.client("a").await.is_ok()).await;
    let peer = |id: &str, own: &str, prefixes: &[&str]| {
        let mut request = asking(id, "IP", vec![memif(&endpoint.netns)]);
        let route = |prefix: &str| Route { prefix: prefix.into(), next_hop: own.into() };
        let context = IpContext {
            src_ip_addrs: vec![format!("{own}/32")],
            dst_routes: prefixes.iter().map(|prefix| route(prefix)).collect(),
            ..Default::default()
        };
        let context = ConnectionContext { ip_context: Some(context), ..Default::default() };
        let connection = request.connection.as_mut().unwrap();
        connection.context = Some(context);
        connection.path.as_mut().unwrap().path_segments[0].name = id.into();
        endpoint.ask(request)
    };
    let second = peer("second", "172.16.2.0", &["172.16.2.0/32", "172.16.2.0/24"]).await.unwrap();
    assert_eq!(ip(&second).src_ip_addrs, ["172.16.2.0/32"]);
    let before = endpoint.routes().await;
    let routed = |prefix: &str, port: &str| (prefix.to_owned(), format!("vl3.{port}"));
    assert_eq!(
        before,
        [routed("172.16.1.1/32", "a"), routed("172.16.2.0/24", "second"), routed("172.16.2.0/32", "second")]
    );
    for (id, own, prefixes, why) in [
        ("third", "172.16.2.0", &["172.16.2.0/24"][..], "overlaps 172.16.2.0/24 of peer second"),
        ("third", "172.16.0.0", &["172.16.0.0/16"], "overlaps 172.16.1.0/24, our own prefix"),
        (
            "third",
            "172.16.3.0",
            &["172.16.3.0/24", "10.0.0.0/8"],
            "10.0.0.0/8, which is outside the network's 172.16.0.0/16",
        ),
        (
            "third",
            "172.16.3.0",
            &["172.16.3.0/24", "172.16.4.0/24"],
            "172.16.4.0/24, which is not of its own",
        ),
        (
            "third",
            "172.16.3.0",
            &["172.16.3.0/24", "172.16.1.1/32"],
            "172.16.1.1/32, which is not of its own",
        ),
        ("third", "172.16.1.1", &["172.16.1.1/32"], "172.16.1.1/32: only to another endpoint of the network"),
    ] {
        let refused = peer(id, own, prefixes).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        assert!(refused.message().contains(why), "{refused}");
        assert_eq!(endpoint.routes().await, before, "nothing else is disturbed");
    }
    assert_eq!(endpoint.network.router.ports(), ["vl3.a", "vl3.second"]);
    // Who looks at the endpoint sees why one is no peer.
    let report = endpoint.peers.report();
    let line = report.as_array().unwrap().iter().find(|line| line["name"] == "third").unwrap();
    assert_eq!(line["state"], "refused", "{report}");
    let error = line["error"].as_str().unwrap();
    assert!(error.contains("172.16.1.1/32, which is not of its own"), "{error}");
    let third = peer("third", "172.16.3.0", &["172.16.3.0/32", "172.16.3.0/24"]).await.unwrap();
    assert_eq!(ip(&third).src_ip_addrs, ["172.16.3.0/32"]);
    assert!(!endpoint.peers.report().to_string().contains("not of its own"), "it is a peer now");
}
