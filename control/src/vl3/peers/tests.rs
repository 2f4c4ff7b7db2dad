//! Whole endpoints' links against each other, over one registry, with time that passes as fast as nothing happens. What stands for the
//! packet engine refuses a prefix that leads to two ports, as the real one does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use prost_types::Timestamp;
use tonic::Status;
use vwire_proto::nsm::connection::{
    Connection, ConnectionEvent, ConnectionEventType, Mechanism, MonitorScopeSelector, PathSegment,
};
use vwire_proto::nsm::connectioncontext::Route;
use vwire_proto::nsm::networkservice::NetworkServiceRequest;

use super::announced::Announced;
use super::links::Entry;
use super::pairing::Caller;
use super::testing::Book;
use super::*;
use crate::api::mechanism::{LOCAL, SOCKET_FILE};
use crate::chain::testing::call_by;
use crate::chain::{Call, Chain, Next};

const TIME: Duration = Duration::from_secs(120);

/// A routing domain: which port each prefix leads to.
#[derive(Clone, Default)]
struct Fib(Arc<Mutex<BTreeMap<IpNet, String>>>);

impl Fib {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<IpNet, String>> {
        self.0.lock().unwrap()
    }

    fn put(&self, port: &str, routes: &[IpNet]) -> Result<(), Status> {
        let mut fib = self.lock();
        if let Some((route, owner)) =
            routes.iter().find_map(|route| fib.get_key_value(route).filter(|(_, owner)| *owner != port))
        {
            return Err(Status::already_exists(format!("route {route}: it leads to port {owner} already")));
        }
        fib.retain(|_, owner| owner != port);
        fib.extend(routes.iter().map(|route| (*route, port.to_owned())));
        Ok(())
    }
}

#[async_trait]
impl Ports for Fib {
    async fn attach(&self, port: &str, leg: &Leg) -> Result<(), Status> {
        self.put(port, &leg.routes)
    }

    async fn detach(&self, port: &str) -> Result<(), Status> {
        self.lock().retain(|_, owner| owner != port);
        Ok(())
    }

    fn routes(&self) -> Vec<(IpNet, String)> {
        self.lock().iter().map(|(prefix, port)| (*prefix, port.clone())).collect()
    }
}

/// What stands for the rest of an endpoint: it says its prefix, and routes to the peers that come in.
struct Rest {
    own: Mutex<(IpAddr, IpNet)>,
    fib: Fib,
}

#[async_trait]
impl Element for Rest {
    async fn request(
        &self,
        call: &mut Call,
        mut request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        let connection = request.connection.as_mut().unwrap();
        let (address, prefix) = *self.own.lock().unwrap();
        if let Some(said) = Announced::in_request(connection) {
            self.fib.put(&connection.id, &said.prefixes)?;
        }
        let ip = connection.context.get_or_insert_default().ip_context.get_or_insert_default();
        ip.dst_ip_addrs = vec![IpNet::from(address).to_string()];
        let network = IpNet::new(address, 16).unwrap();
        ip.src_routes = [prefix, network]
            .iter()
            .map(|prefix| Route { prefix: prefix.to_string(), next_hop: address.to_string() })
            .collect();
        next.request(call, request).await
    }

    async fn close(&self, call: &mut Call, connection: Connection, next: Next<'_>) -> Result<(), Status> {
        self.fib.lock().retain(|_, owner| *owner != connection.id);
        next.close(call, connection).await
    }
}

/// All that there is.
#[derive(Clone)]
struct World {
    store: Arc<Book>,
    chains: Arc<Mutex<BTreeMap<String, Arc<Chain>>>>,
    /// How often each caller has lost what it knew of its connections: the hops behind it give new ids then.
    lives: Arc<Mutex<BTreeMap<String, u32>>>,
}

/// The managers between: a Request goes to the endpoint that it names.
struct Managers {
    world: World,
    caller: String,
}

impl Managers {
    fn chain(&self, endpoint: &str) -> Result<Arc<Chain>, Status> {
        let found = self.world.chains.lock().unwrap().get(endpoint).cloned();
        found.ok_or_else(|| Status::unavailable(format!("{endpoint} is away")))
    }

    /// In the endpoint's coordinates.
    fn there(&self, mut connection: Connection) -> Connection {
        let path = connection.path.get_or_insert_default();
        let life = self.world.lives.lock().unwrap().get(&self.caller).copied().unwrap_or_default();
        let first = &path.path_segments[0].id;
        let id = format!("at{life}-{}-{first}", connection.network_service_endpoint_name);
        let name = connection.network_service_endpoint_name.clone();
        path.path_segments.truncate(1);
        path.path_segments.push(PathSegment { name, id: id.clone(), ..Default::default() });
        path.index = 1;
        connection.id = id;
        connection
    }
}

#[async_trait]
impl Upstream for Managers {
    async fn request(
        &self,
        mut request: NetworkServiceRequest,
        _: Option<&Namespace>,
        _: Duration,
    ) -> Result<Connection, Status> {
        tokio::time::sleep(Duration::from_millis(rand::random_range(1..200))).await;
        let mut connection = request.connection.take().unwrap();
        let (id, preference) = (connection.id.clone(), request.mechanism_preferences.remove(0));
        let chain = self.chain(&connection.network_service_endpoint_name)?;
        connection = self.there(connection);
        let request = NetworkServiceRequest { connection: Some(connection), mechanism_preferences: vec![] };
        let mut answer = chain.request(&mut call_by(&self.caller), request).await?;
        tokio::time::sleep(Duration::from_millis(rand::random_range(1..200))).await;
        answer.path.as_mut().unwrap().index = 0;
        answer.mechanism = Some(Mechanism {
            cls: LOCAL.into(),
            r#type: preference.r#type,
            parameters: [(SOCKET_FILE.to_owned(), format!("@{id}"))].into(),
        });
        answer.id = id;
        Ok(answer)
    }

    async fn close(&self, connection: Connection, _: Option<&Namespace>, _: Duration) -> Result<(), Status> {
        let chain = self.chain(&connection.network_service_endpoint_name)?;
        chain.close(&mut call_by(&self.caller), self.there(connection)).await
    }

    async fn monitor(
        &self,
        _: MonitorScopeSelector,
    ) -> Result<BoxStream<'static, Result<ConnectionEvent, Status>>, Status> {
        let first = ConnectionEvent {
            r#type: ConnectionEventType::InitialStateTransfer.into(),
            ..Default::default()
        };
        Ok(futures::stream::once(async { Ok(first) }).chain(futures::stream::pending()).boxed())
    }
}

/// One endpoint.
struct Endpoint {
    name: String,
    fib: Fib,
    peers: Arc<Peers>,
    rest: Arc<Rest>,
    registered: tokio_watch::Sender<Kept>,
    shutdown: CancellationToken,
}

impl World {
    fn new() -> Self {
        Self { store: Arc::default(), chains: Arc::default(), lives: Arc::default() }
    }

    fn endpoint(&self, name: &str, number: u8) -> Endpoint {
        let fib = Fib::default();
        let own = (IpAddr::from([172, 16, number, 0]), format!("172.16.{number}.0/24").parse().unwrap());
        let rest = Arc::new(Rest { own: Mutex::new(own), fib: fib.clone() });
        let upstream = Managers { world: self.clone(), caller: name.to_owned() };
        let peers = Peers::new(Setup {
            name: name.to_owned(),
            identity: None,
            services: vec!["vl3".to_owned()],
            labels: BTreeMap::new(),
            payload: "IP".to_owned(),
            namespace: Namespace::own().unwrap(),
            upstream: Arc::new(upstream),
            registry: self.store.clone(),
            ports: Box::new(fib.clone()),
            port_name: str::to_owned,
            mtu: Arc::default(),
            own_interface: false,
            client: ClientSettings { liveness: None, ..Default::default() },
        });
        let (gate, served) = (peers.gate(), Arc::clone(&rest) as Arc<dyn Element>);
        let chain = Chain::new(name.to_owned(), |_| vec![gate, served]);
        self.chains.lock().unwrap().insert(name.to_owned(), chain);
        peers.set_own(Own::of([own.1]));
        let (registered, _) = tokio_watch::channel(Kept::Not(Status::unavailable("not yet")));
        Endpoint { name: name.to_owned(), fib, peers, rest, registered, shutdown: CancellationToken::new() }
    }

    fn record(&self, name: &str, seconds: i64) -> NetworkServiceEndpoint {
        NetworkServiceEndpoint {
            name: name.into(),
            network_service_names: vec!["vl3".into()],
            url: "tcp://127.0.0.1:1".into(),
            initial_registration_time: Some(Timestamp { seconds, nanos: 0 }),
            ..Default::default()
        }
    }

    /// Registers it, and lets it find its peers.
    fn start(&self, endpoint: &Endpoint, seconds: i64) {
        let record = self.record(&endpoint.name, seconds);
        self.store.put(record.clone());
        let running = Arc::clone(&endpoint.peers);
        tokio::spawn(running.run(endpoint.registered.subscribe(), endpoint.shutdown.clone()));
        endpoint.registered.send_replace(Kept::As(record));
    }

    fn leave(&self, endpoint: &Endpoint) {
        endpoint.shutdown.cancel();
        self.chains.lock().unwrap().remove(&endpoint.name);
        self.store.remove(&endpoint.name);
    }
}

/// The peers' names.
fn linked(endpoint: &Endpoint) -> BTreeSet<String> {
    endpoint.peers.peers().borrow().iter().map(|peer| peer.name.clone()).collect()
}

/// Waits until each is linked with exactly all others, and has exactly their routes.
async fn meshed(endpoints: &[&Endpoint]) {
    let all: BTreeSet<String> = endpoints.iter().map(|endpoint| endpoint.name.clone()).collect();
    let is_so = || {
        endpoints.iter().all(|endpoint| {
            let mut others = all.clone();
            others.remove(&endpoint.name);
            linked(endpoint) == others && endpoint.fib.lock().len() == others.len()
        })
    };
    let waits = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    if tokio::time::timeout(TIME, waits).await.is_err() {
        let seen: Vec<_> = endpoints
            .iter()
            .map(|one| format!("{}: {} {:?}", one.name, one.peers.report(), one.fib.lock()))
            .collect();
        panic!("{seen:#?}");
    }
}

/// Links that were dialled, of all these.
fn dialled(endpoints: &[&Endpoint]) -> usize {
    endpoints.iter().map(|endpoint| endpoint.peers.links.dialled().len()).sum()
}

#[tokio::test(start_paused = true)]
async fn all_endpoints_are_linked_once_and_one_that_leaves_is_removed() {
    let world = World::new();
    let [a, b, c, d] = [("a", 1), ("b", 2), ("c", 3), ("d", 4)].map(|(name, n)| world.endpoint(name, n));
    // Two at the same time, of which each may be first; one later; and one that claims to be older than it is.
    world.start(&a, 5);
    world.start(&b, 5);
    meshed(&[&a, &b]).await;
    world.start(&c, 9);
    world.start(&d, 1);
    meshed(&[&a, &b, &c, &d]).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    meshed(&[&a, &b, &c, &d]).await;
    assert_eq!(dialled(&[&a, &b, &c, &d]), 6);
    world.leave(&b);
    // Its own links to others end with its managers; here nobody does that for it.
    for endpoint in [&a, &c, &d] {
        let id = format!("b-peer-{}", endpoint.name);
        endpoint.peers.links.ended(&id, &format!("at0-{}-{id}", endpoint.name));
        endpoint.fib.lock().retain(|_, port| !port.ends_with(&format!("b-peer-{}", endpoint.name)));
    }
    meshed(&[&a, &c, &d]).await;
    assert_eq!(dialled(&[&a, &c, &d]), 3);
}

/// One that is killed together with its engine closes nothing, and comes back under its name with all it knew forgotten. The others
/// have its former links until their tokens end, with routes into nowhere; these give way.
#[tokio::test(start_paused = true)]
async fn one_that_comes_back_from_the_dead_is_linked_again() {
    let world = World::new();
    let [a, b, c] = [("a", 1), ("b", 2), ("c", 3)].map(|(name, n)| world.endpoint(name, n));
    for (endpoint, age) in [(&a, 1), (&b, 2), (&c, 3)] {
        world.start(endpoint, age);
    }
    meshed(&[&a, &b, &c]).await;
    for life in 1..4 {
        c.shutdown.cancel();
        world.lives.lock().unwrap().insert("c".to_owned(), life);
        let again = world.endpoint("c", 3);
        world.start(&again, 10 + i64::from(life));
        let ports = || -> Vec<String> { a.fib.lock().values().cloned().collect() };
        meshed(&[&a, &b, &again]).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        meshed(&[&a, &b, &again]).await;
        let new = format!("at{life}-a-c-peer-a");
        assert!(ports().iter().all(|port| !port.ends_with("-c-peer-a") || *port == new), "{:?}", ports());
        // The former connection's end comes late, and is nothing to the link that there is.
        a.peers.links.ended("c-peer-a", &format!("at{}-a-c-peer-a", life - 1));
        assert!(linked(&a).contains("c"));
        again.shutdown.cancel();
    }
}

#[tokio::test(start_paused = true)]
async fn the_id_of_anothers_link_is_of_no_use() {
    let world = World::new();
    let a = world.endpoint("a", 1);
    a.peers.set_own(Own::of(["172.16.1.0/24".parse().unwrap()]));
    let of = |identity: &str| Caller { name: "c".into(), identity: Some(identity.into()), yields: true };
    let said = || Announced {
        addresses: vec!["172.16.3.0".parse().unwrap()],
        prefixes: vec!["172.16.3.0/24".parse().unwrap()],
        ..Default::default()
    };
    let routes = vec!["172.16.3.0/24".parse().unwrap()];
    let links = &a.peers.links;
    let entry = Entry { routes, ..Default::default() };
    assert_eq!(links.admit("c-peer-a", "port-1", of("spiffe://d/c"), said()).unwrap(), entry);
    links.admitted("c-peer-a", true);
    let refused = links.admit("c-peer-a", "port-2", of("spiffe://d/x"), said()).unwrap_err();
    assert_eq!(refused.code(), tonic::Code::AlreadyExists);
    let former = Some("port-1".to_owned());
    let admitted = links.admit("c-peer-a", "port-2", of("spiffe://d/c"), said()).unwrap();
    assert_eq!(admitted, Entry { former, ..entry });
}

#[tokio::test(start_paused = true)]
async fn a_peer_whose_prefix_is_anothers_is_refused_by_name_and_the_others_stay() {
    let world = World::new();
    let [a, b, c] = [("a", 1), ("b", 2), ("c", 3)].map(|(name, n)| world.endpoint(name, n));
    world.start(&a, 1);
    world.start(&b, 2);
    meshed(&[&a, &b]).await;
    // The third one says, when it dials and when it is asked, that it has the second one's prefix.
    let stolen: (IpAddr, IpNet) = ("172.16.2.9".parse().unwrap(), "172.16.2.0/24".parse().unwrap());
    *c.rest.own.lock().unwrap() = stolen;
    c.peers.set_own(Own { addresses: vec![stolen], network: vec!["172.16.0.0/16".parse().unwrap()] });
    let before = (a.fib.lock().clone(), b.fib.lock().clone());
    world.start(&c, 3);
    tokio::time::sleep(Duration::from_secs(30)).await;
    let said = c.peers.report().to_string();
    assert!(
        said.contains("peer c: it announces 172.16.2.0/24, which overlaps 172.16.2.0/24 of peer b"),
        "{said}"
    );
    assert!(said.contains("which overlaps 172.16.2.0/24, our own prefix"), "{said}");
    assert_eq!((a.fib.lock().clone(), b.fib.lock().clone()), before);
    assert!(a.peers.links.refused() > 0 && b.peers.links.refused() > 0);
    // With a prefix of its own it is let in.
    let own: (IpAddr, IpNet) = ("172.16.3.0".parse().unwrap(), "172.16.3.0/24".parse().unwrap());
    *c.rest.own.lock().unwrap() = own;
    c.peers.set_own(Own::of([own.1]));
    meshed(&[&a, &b, &c]).await;
}

#[tokio::test(start_paused = true)]
async fn a_prefix_that_changes_is_said_to_all_peers() {
    let world = World::new();
    let [a, b] = [("a", 1), ("b", 2)].map(|(name, n)| world.endpoint(name, n));
    world.start(&a, 1);
    world.start(&b, 2);
    meshed(&[&a, &b]).await;
    // The dialler's.
    let own: (IpAddr, IpNet) = ("172.16.7.0".parse().unwrap(), "172.16.7.0/24".parse().unwrap());
    *b.rest.own.lock().unwrap() = own;
    b.peers.set_own(Own::of([own.1]));
    let waits = async {
        while a.fib.lock().keys().copied().collect::<Vec<_>>() != [own.1] {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(TIME, waits).await.unwrap_or_else(|_| panic!("{:?}", a.fib.lock()));
    meshed(&[&a, &b]).await;
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_is_no_peer_of_itself() {
    let world = World::new();
    let a = world.endpoint("a", 1);
    world.start(&a, 1);
    // The same endpoint by a name that it does not know as its own.
    world.store.put(world.record("alias", 0));
    let chain = world.chains.lock().unwrap()["a"].clone();
    world.chains.lock().unwrap().insert("alias".into(), chain);
    tokio::time::sleep(Duration::from_secs(20)).await;
    let said = a.peers.report().to_string();
    assert!(said.contains("an endpoint is no peer of itself"), "{said}");
    assert!(a.fib.lock().is_empty());
}
