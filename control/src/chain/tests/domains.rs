//! Domains against each other, all roles but the forwarders as processes start them.

use std::time::Duration;

use tonic::{Code, Status};

use super::domain::*;
use super::mesh::*;
use crate::api::connection::{Connection, State as ConnectionState};
use crate::api::path;
use crate::registry::{Registry, RegistryCall, find};
use crate::transport::Target;
use vwire_proto::nsm::registry::{NetworkService, NetworkServiceEndpoint};

pub(super) const TIME: Duration = Duration::from_secs(10);

/// `a.test` with a client, `b.test` with `icmp-responder` and an endpoint of it.
pub(super) struct Two {
    pub a: Domain,
    pub b: Domain,
    pub endpoint: Hop,
    _forwarders: [Hop; 2],
}

async fn two(map: impl Fn(&mut Plan, &mut Plan)) -> Two {
    let mesh = Mesh::new();
    let beside = mesh.beside();
    two_of([mesh, beside], map).await
}

/// Their meshes may be of one trust domain or of two.
pub(super) async fn two_of([mesh, beside]: [Mesh; 2], map: impl Fn(&mut Plan, &mut Plan)) -> Two {
    let (at_a, at_b) = (address(), address());
    let entries = vec![entry("a.test", at_a), entry("b.test", at_b)];
    let mut plans =
        [Plan { map: entries.clone(), ..Plan::default() }, Plan { map: entries, ..Plan::default() }];
    let [of_a, of_b] = &mut plans;
    map(of_a, of_b);
    let [of_a, of_b] = plans;
    let a = Domain::start(mesh, "a", at_a, of_a).await;
    let b = Domain::start(beside, "b", at_b, of_b).await;
    let forwarders = [a.mesh.forwarder("forwarder-a").await, b.mesh.forwarder("forwarder-b").await];
    b.mesh.register_service(service("icmp-responder")).await;
    let endpoint = b.mesh.endpoint("responder-b", "icmp-responder", &[]).await;
    Two { a, b, endpoint, _forwarders: forwarders }
}

impl Two {
    pub(super) async fn ask(&self, service: &str, name: &str) -> Result<Connection, Status> {
        let client = self.a.client();
        let mut first = client.first(0, service);
        first.network_service_endpoint_name = name.to_owned();
        client.request_at(&self.a.manager, first, vec![Client::preference()], TIME).await
    }
}

pub(super) fn hops(connection: &Connection) -> Vec<&str> {
    path::of(connection).path_segments.iter().map(|segment| segment.name.as_str()).collect()
}

pub(super) const EIGHT: [&str; 8] = [
    "nsc-a",
    "nsmgr-a",
    "forwarder-a",
    "nsmgr-proxy-a",
    "nsmgr-proxy-b",
    "nsmgr-b",
    "forwarder-b",
    "responder-b",
];

/// Endpoints as a domain's own clients find them.
async fn found(domain: &Domain, query: NetworkServiceEndpoint) -> Vec<NetworkServiceEndpoint> {
    let mut call = RegistryCall::internal("test", TIME);
    let found = find::endpoints(&*domain.mesh.registry, &mut call, query).await.unwrap();
    found.iter().map(|event| (*event.endpoint).clone()).collect()
}

#[tokio::test]
async fn a_client_reaches_a_service_of_another_domain_and_its_endpoint_knows_only_its_own_names() {
    let two = two(|_, _| {}).await;
    let made = two.ask("icmp-responder@b.test", "").await.unwrap();
    assert_eq!(hops(&made), EIGHT);
    assert_eq!(made.network_service, "icmp-responder@b.test");
    assert_eq!(made.network_service_endpoint_name, "responder-b@b.test");
    assert_eq!(made.payload, "ETHERNET");
    let client = two.a.client();
    let again =
        client.request_at(&two.a.manager, made.clone(), vec![Client::preference()], TIME).await.unwrap();
    let ids = |one: &Connection| -> Vec<String> {
        path::of(one).path_segments.iter().map(|segment| segment.id.clone()).collect()
    };
    assert_eq!(ids(&again), ids(&made), "a refresh goes the same way");
    client.close_at(&two.a.manager, again).await.unwrap();
    assert_eq!(two.endpoint.probe.counts(), (2, 1));
    for seen in two.endpoint.probe.requests.lock().unwrap().iter() {
        assert_eq!(seen.network_service, "icmp-responder");
        assert_eq!(seen.network_service_endpoint_name, "responder-b");
    }
    for domain in [&two.a, &two.b] {
        assert!(domain.proxy().admin.connections().await.is_empty());
    }
}

#[tokio::test]
async fn names_and_urls_are_rewritten_on_the_way() {
    let two = two(|_, _| {}).await;
    let by_service = NetworkServiceEndpoint {
        network_service_names: vec!["icmp-responder@b.test".into()],
        ..Default::default()
    };
    let by_name = NetworkServiceEndpoint { name: "responder-b@b.test".into(), ..Default::default() };
    for query in [by_service, by_name] {
        let all = found(&two.a, query).await;
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].name, "responder-b@b.test");
        assert_eq!(all[0].network_service_names, ["icmp-responder@b.test"]);
        assert!(all[0].network_service_labels.contains_key("icmp-responder@b.test"));
        assert_eq!(all[0].url, format!("tcp://{}:5004", two.a.address), "our own proxy's");
    }
    let mut call = RegistryCall::internal("test", TIME);
    let service = find::service(&*two.a.mesh.registry, &mut call, "icmp-responder@b.test").await.unwrap();
    assert_eq!(service.payload, "ETHERNET");
    // A domain finds itself, too.
    let own = NetworkServiceEndpoint { name: "responder-b@b.test".into(), ..Default::default() };
    assert_eq!(found(&two.b, own).await.len(), 1);
    // A service is registered there, and gone there.
    let there = NetworkService { name: "new@b.test".into(), payload: "IP".into(), ..Default::default() };
    two.a.mesh.registry.register_service(&mut call, there.clone()).await.unwrap();
    let at_b =
        find::service(&*two.b.mesh.registry, &mut RegistryCall::internal("test", TIME), "new").await.unwrap();
    assert_eq!(at_b.payload, "IP");
    two.a.mesh.registry.unregister_service(&mut call, there).await.unwrap();
    let gone = find::service(&*two.b.mesh.registry, &mut RegistryCall::internal("test", TIME), "new").await;
    assert_eq!(gone.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_domain_can_be_named_by_its_address_where_only_the_proxy_is_asked() {
    let two = two(|_, _| {}).await;
    // The proxy's port: it answers finds itself, with its own URL.
    for domain in [format!("{}:5004", two.b.address), two.b.address.to_string()] {
        let made = two.ask(&format!("icmp-responder@{domain}"), "").await.unwrap();
        assert_eq!(hops(&made), EIGHT, "{domain}");
        two.a.client().close_at(&two.a.manager, made).await.unwrap();
    }
}

#[tokio::test]
async fn what_dies_behind_the_proxies_is_seen_by_the_client() {
    let two = two(|_, _| {}).await;
    let made = two.ask("icmp-responder@b.test", "").await.unwrap();
    let client = two.a.client();
    let segment = path::of(&made).path_segments[0].clone();
    let segment = crate::api::connection::PathSegment { token: String::new(), ..segment };
    let selector =
        crate::api::connection::MonitorScopeSelector { path_segments: vec![segment], ..Default::default() };
    let hop = client.pool.hop(&two.a.manager).await.unwrap();
    let mut monitor = crate::api::connection::monitor_connection_client::MonitorConnectionClient::new(hop);
    let mut events = Events(monitor.monitor_connections(selector).await.unwrap().into_inner());
    assert_eq!(events.next().await.connections.len(), 1);
    // The endpoint says by itself that it is gone.
    let Two { a, b, endpoint, _forwarders } = two;
    drop(endpoint);
    events.until(ConnectionState::Down).await;
    drop((a, b));
}

#[tokio::test]
async fn proxies_that_were_restarted_know_the_way_of_refreshes_and_closes() {
    let mut two = two(|_, _| {}).await;
    let made = two.ask("icmp-responder@b.test", "").await.unwrap();
    let client = two.a.client();
    two.a.start_proxy().await;
    two.b.start_proxy().await;
    let again = loop {
        // A call may meet the end of the connection to a proxy that is gone; clients ask again.
        let asked = client.request_at(&two.a.manager, made.clone(), vec![Client::preference()], TIME).await;
        match asked {
            Err(status) if status.code() == Code::Unavailable => {}
            asked => break asked.unwrap(),
        }
    };
    assert_eq!(hops(&again), EIGHT);
    two.a.start_proxy().await;
    two.b.start_proxy().await;
    // As the forwarder closes it, over a connection that was made after all that.
    let mut closed = again;
    let path = closed.path.as_mut().unwrap();
    path.index = 2;
    closed.id.clone_from(&path.path_segments[2].id);
    let proxy = Target::Tcp(format!("{}:5004", two.a.address));
    two.a.mesh.client("forwarder").close_at(&proxy, closed).await.unwrap();
    assert_eq!(
        two.endpoint.probe.counts().1,
        1,
        "the Close came through proxies that did not know the connection"
    );
}

#[tokio::test]
async fn a_domain_that_leads_to_itself_is_refused_with_the_loop() {
    let two = two(|_, _| {}).await;
    two.a.mesh.register_service(service("local")).await;
    let _endpoint = two.a.mesh.endpoint("responder-a", "local", &[]).await;
    let told = two.ask("local@a.test", "").await.unwrap_err();
    assert_eq!(told.code(), Code::FailedPrecondition, "{told}");
    assert!(
        told.message().contains("loop: nsc-a → nsmgr-a → forwarder-a → nsmgr-proxy-a → nsmgr-proxy-a"),
        "{told}"
    );
}

#[tokio::test]
async fn a_domain_whose_proxy_is_ours_by_way_of_another_is_refused_with_the_loop() {
    // By the word of B's map, the proxy of c.test is A's; by that of A's map, B's.
    let (at_a, at_b) = (address(), address());
    let mesh = Mesh::new();
    let beside = mesh.beside();
    let plan = |proxy| Plan { map: vec![format!("c.test={at_b}:5002+{proxy}:5004")], ..Plan::default() };
    let a = Domain::start(mesh, "a", at_a, plan(at_b)).await;
    let b =
        Domain::start(beside, "b", at_b, Plan { proxy: vec!["--domains=b.test".into()], ..plan(at_a) }).await;
    let _forwarder = a.mesh.forwarder("forwarder-a").await;
    b.mesh.register_service(service("far")).await;
    let _endpoint = b.mesh.endpoint("responder", "far", &[]).await;
    let two =
        Two { _forwarders: [_forwarder, b.mesh.forwarder("forwarder-b").await], endpoint: _endpoint, a, b };
    let told = two.ask("far@c.test", "").await.unwrap_err();
    assert_eq!(told.code(), Code::FailedPrecondition, "{told}");
    assert!(told.message().contains("→ nsmgr-proxy-a → nsmgr-proxy-b → nsmgr-proxy-a: "), "{told}");
}

#[tokio::test]
async fn a_proxy_between_two_others_is_one_more_hop_there_and_back() {
    // The way to B's proxy is by that of C, which has nothing to do with either.
    let (at_b, at_c) = (address(), address());
    let mesh = Mesh::new();
    let plan = |proxy| Plan { map: vec![format!("b.test={at_b}:5002+{proxy}:5004")], ..Plan::default() };
    let c = Plan { proxy: vec!["--domains=c.test".into()], ..plan(at_b) };
    let c = Domain::start(mesh.beside(), "c", at_c, c).await;
    let b = Domain::start(mesh.beside(), "b", at_b, Plan::default()).await;
    let a = Domain::start(mesh.beside(), "a", address(), plan(at_c)).await;
    let forwarders = [a.mesh.forwarder("forwarder-a").await, b.mesh.forwarder("forwarder-b").await];
    b.mesh.register_service(service("icmp-responder")).await;
    let endpoint = b.mesh.endpoint("responder-b", "icmp-responder", &[]).await;
    let two = Two { a, b, endpoint, _forwarders: forwarders };
    let made = two.ask("icmp-responder@b.test", "").await.unwrap();
    let mut nine = EIGHT.to_vec();
    nine.insert(4, "nsmgr-proxy-c");
    assert_eq!(hops(&made), nine);
    assert_eq!(made.network_service_endpoint_name, "responder-b@b.test");
    assert_eq!(two.endpoint.probe.requests.lock().unwrap()[0].network_service, "icmp-responder");
    let client = two.a.client();
    let again =
        client.request_at(&two.a.manager, made.clone(), vec![Client::preference()], TIME).await.unwrap();
    assert_eq!(hops(&again), nine);
    client.close_at(&two.a.manager, again).await.unwrap();
    assert_eq!(two.endpoint.probe.counts(), (2, 1));
    for proxy in [two.a.proxy(), c.proxy(), two.b.proxy()] {
        assert!(proxy.admin.connections().await.is_empty());
    }
}

#[tokio::test]
async fn two_domains_whose_managers_and_forwarders_have_the_same_names_are_not_confused() {
    let (at_a, at_b) = (address(), address());
    let map = || vec![entry("a.test", at_a), entry("b.test", at_b)];
    let mesh = Mesh::new();
    let beside = mesh.beside();
    let a = Domain::start(mesh, "a", at_a, Plan { map: map(), ..Plan::default() }).await;
    // Only the proxies' names must differ: they stand beside each other in a path.
    let of_b = Plan { map: map(), proxy_name: Some("nsmgr-proxy-b".into()), ..Plan::default() };
    let b = Domain::start(beside, "a", at_b, of_b).await;
    let forwarders = [a.mesh.forwarder("forwarder").await, b.mesh.forwarder("forwarder").await];
    for domain in [&a, &b] {
        domain.mesh.register_service(service("icmp-responder")).await;
    }
    // Both have an endpoint of this service and name; A's own is not asked.
    let own = a.mesh.endpoint("responder", "icmp-responder", &[]).await;
    let endpoint = b.mesh.endpoint("responder", "icmp-responder", &[]).await;
    let two = Two { a, b, endpoint, _forwarders: forwarders };
    let made = two.ask("icmp-responder@b.test", "").await.unwrap();
    let expected = [
        "nsc-a",
        "nsmgr-a",
        "forwarder",
        "nsmgr-proxy-a",
        "nsmgr-proxy-b",
        "nsmgr-a",
        "forwarder",
        "responder",
    ];
    assert_eq!(hops(&made), expected);
    let client = two.a.client();
    let again =
        client.request_at(&two.a.manager, made.clone(), vec![Client::preference()], TIME).await.unwrap();
    assert_eq!(hops(&again), expected);
    let local = client.first(7, "icmp-responder");
    let local = client.request_at(&two.a.manager, local, vec![Client::preference()], TIME).await.unwrap();
    assert_eq!(hops(&local), ["nsc-a", "nsmgr-a", "forwarder", "responder"]);
    client.close_at(&two.a.manager, again).await.unwrap();
    assert_eq!((two.endpoint.probe.counts(), own.probe.counts()), ((2, 1), (1, 0)));
}

/// Each asks the next one, the last one the first: nothing is said of pairs.
#[tokio::test]
async fn fifty_domains_reach_each_other() {
    const DOMAINS: usize = 50;
    let addresses: Vec<_> = (0..DOMAINS).map(|_| address()).collect();
    let name = |number: usize| format!("d{number}.test");
    let map: Vec<String> =
        addresses.iter().enumerate().map(|(number, at)| entry(&name(number), *at)).collect();
    let root = Mesh::new();
    let mut domains = Vec::new();
    for (number, at) in addresses.into_iter().enumerate() {
        let plan = Plan { map: map.clone(), ..Plan::default() };
        let domain = Domain::start(root.beside(), &format!("d{number}"), at, plan).await;
        let forwarder = domain.mesh.forwarder("forwarder").await;
        domain.mesh.register_service(service("icmp-responder")).await;
        let endpoint = domain.mesh.endpoint("responder", "icmp-responder", &[]).await;
        domains.push((domain, forwarder, endpoint));
    }
    for (number, (domain, ..)) in domains.iter().enumerate() {
        let next = (number + 1) % DOMAINS;
        let client = domain.client();
        let first = client.first(0, &format!("icmp-responder@{}", name(next)));
        let made = client.request_at(&domain.manager, first, vec![Client::preference()], TIME).await;
        let made = made.unwrap_or_else(|told| panic!("{number} asks {next}: {told}"));
        assert_eq!(hops(&made).len(), 8);
        assert_eq!(hops(&made)[4], format!("nsmgr-proxy-d{next}"));
        client.close_at(&domain.manager, made).await.unwrap();
    }
    for (_, _, endpoint) in &domains {
        assert_eq!(endpoint.probe.counts(), (1, 1));
    }
}

#[tokio::test]
async fn requests_beyond_the_bound_are_refused_with_it() {
    let two = two(|_, b| b.proxy.push("--proxy-max-requests=1".into())).await;
    let gate = std::sync::Arc::new(tokio::sync::Notify::new());
    *two.endpoint.probe.gate.lock().unwrap() = Some(std::sync::Arc::clone(&gate));
    let client = two.a.client();
    let first = client.first(1, "icmp-responder@b.test");
    let held = client.request_at(&two.a.manager, first, vec![Client::preference()], TIME);
    let refused = async {
        eventually("the first is at the endpoint", || two.endpoint.probe.counts().0 == 1).await;
        let told = two.ask("icmp-responder@b.test", "").await.unwrap_err();
        *two.endpoint.probe.gate.lock().unwrap() = None;
        gate.notify_one();
        told
    };
    let (held, told) = tokio::join!(held, refused);
    held.unwrap();
    assert_eq!(told.code(), Code::ResourceExhausted, "{told}");
    assert!(told.message().contains("1 Requests of other domains are under way"), "{told}");
    assert!(told.message().contains("VWIRE_PROXY_MAX_REQUESTS"), "{told}");
    two.ask("icmp-responder@b.test", "").await.unwrap();
}

#[tokio::test]
async fn a_domain_that_nobody_knows_and_one_that_is_dead_are_named() {
    let dead = address();
    let two = two(|a, _| a.map.push(entry("dead.test", dead))).await;
    let told = two.ask("svc@dead.test", "").await.unwrap_err();
    assert!(told.message().contains("domain \"dead.test\": its registry does not answer"), "{told}");
    assert!(told.message().contains(&format!("tcp://{dead}:5002")), "{told}");
    let told = two.ask("svc@b@a", "").await.unwrap_err();
    assert!(told.message().contains("a second @"), "{told}");
}

/// A registry and no more, for floating endpoints; `a` and `b` map it without a proxy.
async fn floating(mesh: &Mesh) -> (Domain, String) {
    let at = address();
    let domain = Domain::start(mesh.beside(), "floating", at, Plan::default()).await;
    (domain, format!("floating.test={at}:5002"))
}

#[tokio::test]
async fn floating_endpoints_are_reached_from_another_domain_and_directly_from_their_own() {
    let root = Mesh::new();
    let (floating, map) = floating(&root).await;
    let plan = || Plan { map: vec![map.clone()], ..Plan::default() };
    let a = Domain::start(root.beside(), "a", address(), plan()).await;
    let b = Domain::start(root.beside(), "b", address(), plan()).await;
    let forwarders = [a.mesh.forwarder("forwarder-a").await, b.mesh.forwarder("forwarder-b").await];
    b.put("cluster.yaml", "clusterName: cluster-b\n");
    floating.mesh.register_service(service("svc")).await;
    let endpoint = b.mesh.endpoint("nse@floating.test", "svc@floating.test", &[("app", "x")]).await;
    // The floating registry knows it by its bare names, behind B's proxy; A's does not know it.
    let kept = found(&floating, NetworkServiceEndpoint { name: "nse".into(), ..Default::default() }).await;
    assert_eq!(kept.len(), 1);
    assert_eq!(kept[0].url, format!("tcp://{}:5004", b.address));
    assert_eq!(kept[0].network_service_labels["svc"].labels["clusterName"], "cluster-b");
    let at_a = found(&a, NetworkServiceEndpoint { name: "nse".into(), ..Default::default() }).await;
    assert!(at_a.is_empty());

    let two = Two { a, b, endpoint, _forwarders: forwarders };
    let made = two.ask("svc@floating.test", "").await.unwrap();
    let mut eight = EIGHT;
    eight[7] = "nse@floating.test";
    assert_eq!(hops(&made), eight);
    two.a.client().close_at(&two.a.manager, made).await.unwrap();
    assert_eq!(two.endpoint.probe.counts(), (1, 1));

    // From its own domain no proxy is in the path.
    let client = two.b.client();
    let first = client.first(0, "svc@floating.test");
    let made = client.request_at(&two.b.manager, first, vec![Client::preference()], TIME).await.unwrap();
    assert_eq!(hops(&made), ["nsc-b", "nsmgr-b", "forwarder-b", "nse@floating.test"]);
    // Seen from another node of B: the manager's URL, not the proxy's.
    let at = Target::Tcp(format!("{}:5002", two.b.address));
    let registry = crate::registry::remote::Remote::new(client.pool.clone(), at);
    let query = NetworkServiceEndpoint { name: "nse@floating.test".into(), ..Default::default() };
    let mut call = RegistryCall::internal("test", TIME);
    let seen = find::endpoints(&registry, &mut call, query).await.unwrap();
    assert_eq!(seen[0].endpoint.url, format!("tcp://{}:5001", two.b.address));
}
