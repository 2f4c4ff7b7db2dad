//! Endpoints that are kept registered, and finds that are remembered.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tonic::Status;
use vwire_proto::nsm::registry::{NetworkService, NetworkServiceEndpoint};

use super::support::*;
use crate::registry::cache::Cached;
use crate::registry::keeper::Keeper;
use crate::registry::memory::{Settings, Store};
use crate::registry::{EndpointEvent, Found, Registry, RegistryCall, ServiceEvent, find, layer};

#[tokio::test]
async fn a_kept_endpoint_outlives_its_expiry_and_others_go() {
    let mesh = Mesh::new();
    let store = Store::new(Settings { expire: Duration::from_secs(1), ..Settings::default() });
    let registry = mesh.over(store).await;
    let kept: Vec<Keeper> = (0..10)
        .map(|n| {
            let client = Arc::new(mesh.member(&format!("nse-{n}")).client(&registry.tcp));
            Keeper::start(client, vec![], endpoint(&format!("nse-{n}"), "icmp"))
        })
        .collect();
    let watcher = mesh.member("nsc").client(&registry.tcp);
    let mut once = watch(&watcher, named("once")).await;
    watcher.register_endpoint(&mut call(), endpoint("once", "icmp")).await.unwrap();
    for keeper in &kept {
        assert_eq!(keeper.registered().await.network_service_names, ["icmp"]);
    }
    assert_eq!(next(&mut once).await, ("once".into(), false));
    assert_eq!(next(&mut once).await, ("once".into(), true), "not kept");
    let found = find::endpoints(&watcher, &mut call(), of_service("icmp")).await.unwrap();
    assert_eq!(found.len(), 10, "all that are kept");
    for keeper in kept {
        keeper.unregister().await.unwrap();
    }
    assert!(find::endpoints(&watcher, &mut call(), named("")).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_kept_endpoint_comes_back_when_it_is_removed_and_when_the_registry_starts_anew() {
    let mesh = Mesh::new();
    let folder = tempfile::tempdir().unwrap();
    let member = mesh.member("registry");
    let start = |store: Store, tcp| {
        let unix = crate::transport::Target::Unix(folder.path().join("registry.sock"));
        let here = tempfile::tempdir().unwrap();
        member.serve_at(member.chain(store), tcp, unix, here)
    };
    let any = crate::transport::Target::parse("tcp://127.0.0.1:0").unwrap();
    let registry = start(Store::new(Settings::default()), any).await;
    let client = Arc::new(mesh.member("nse").client(&registry.tcp));
    let keeper = Keeper::start(Arc::clone(&client) as _, vec![service("icmp")], endpoint("nse-1", "icmp"));
    let first = keeper.registered().await;
    let mut events = watch(&*client, named("nse-1")).await;
    assert_eq!(next(&mut events).await, ("nse-1".into(), false));
    client.unregister_endpoint(&mut call(), named("nse-1")).await.unwrap();
    assert_eq!(next(&mut events).await, ("nse-1".into(), true));
    assert_eq!(next(&mut events).await, ("nse-1".into(), false), "back at once");
    let tcp = registry.tcp.clone();
    drop(registry);
    // The port is free again when the former registry's sockets are closed.
    let address = tcp.to_string().trim_start_matches("tcp://").to_owned();
    while tokio::net::TcpListener::bind(&address).await.is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let registry = start(Store::new(Settings::default()), tcp).await;
    let asking = mesh.member("nsc").client(&registry.tcp);
    until("registered with the new registry", || async {
        find::endpoint(&asking, &mut call(), "nse-1").await.is_ok()
    })
    .await;
    let found = find::endpoint(&asking, &mut call(), "nse-1").await.unwrap();
    assert_eq!(
        found.endpoint.initial_registration_time, first.initial_registration_time,
        "who was first stays known"
    );
    assert!(find::service(&asking, &mut call(), "icmp").await.is_ok(), "with its service");
    keeper.unregister().await.unwrap();
    assert!(find::endpoint(&asking, &mut call(), "nse-1").await.is_err());
}

/// Counts the finds that reach a registry.
struct Counting<R>(R, Arc<AtomicUsize>);

#[async_trait]
impl<R: Registry> layer::Layer for Counting<R> {
    type Inner = R;

    fn inner(&self) -> &R {
        &self.0
    }

    async fn find_services(
        &self,
        call: &mut RegistryCall,
        query: NetworkService,
        watch: bool,
    ) -> Result<Found<ServiceEvent>, Status> {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.find_services(call, query, watch).await
    }

    async fn find_endpoints(
        &self,
        call: &mut RegistryCall,
        query: NetworkServiceEndpoint,
        watch: bool,
    ) -> Result<Found<EndpointEvent>, Status> {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.find_endpoints(call, query, watch).await
    }
}

async fn names(registry: &dyn Registry, query: NetworkServiceEndpoint) -> Vec<String> {
    let found = find::endpoints(registry, &mut call(), query).await.unwrap();
    let mut names: Vec<String> = found.into_iter().map(|found| found.endpoint.name.clone()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_remembered_find_asks_nobody_and_follows_every_change() {
    let mesh = Mesh::new();
    let registry = mesh.memory().await;
    let asked = Arc::new(AtomicUsize::new(0));
    let cached = Cached::new(Counting(mesh.member("nsmgr").client(&registry.tcp), Arc::clone(&asked)));
    let nse = mesh.member("nse").client(&registry.tcp);
    assert!(names(&cached, of_service("icmp")).await.is_empty());
    nse.register_endpoint(&mut call(), endpoint("a", "icmp")).await.unwrap();
    assert_eq!(names(&cached, of_service("icmp")).await, ["a"], "that nothing was found is not remembered");
    let remembered = || async {
        let before = asked.load(Ordering::SeqCst);
        names(&cached, of_service("icmp")).await;
        asked.load(Ordering::SeqCst) == before
    };
    until("it is remembered", remembered).await;
    nse.register_endpoint(&mut call(), endpoint("b", "icmp")).await.unwrap();
    until("b is seen", || async { names(&cached, of_service("icmp")).await == ["a", "b"] }).await;
    nse.unregister_endpoint(&mut call(), named("a")).await.unwrap();
    until("a is gone", || async { names(&cached, of_service("icmp")).await == ["b"] }).await;
    cached.unregister_endpoint(&mut call(), named("b")).await.unwrap_err();
    let owner = Cached::new(nse);
    assert_eq!(names(&owner, of_service("icmp")).await, ["b"]);
    owner.unregister_endpoint(&mut call(), named("b")).await.unwrap();
    assert!(names(&owner, of_service("icmp")).await.is_empty(), "what we end ourselves is gone at once");
    until("b is gone", || async { names(&cached, of_service("icmp")).await.is_empty() }).await;
    nse_services(&cached, &owner).await;
}

async fn nse_services(cached: &dyn Registry, owner: &dyn Registry) {
    owner.register_service(&mut call(), service("icmp")).await.unwrap();
    let payload = || async { find::service(cached, &mut call(), "icmp").await.map(|s| s.payload.clone()) };
    assert_eq!(payload().await.unwrap(), "IP");
    let changed = NetworkService { payload: "ETHERNET".into(), ..service("icmp") };
    owner.register_service(&mut call(), changed).await.unwrap();
    until("the change is seen", || async { payload().await.is_ok_and(|payload| payload == "ETHERNET") })
        .await;
}

#[tokio::test]
async fn a_remembered_find_goes_with_its_registry() {
    let mesh = Mesh::new();
    let registry = mesh.memory().await;
    let cached = Cached::new(mesh.member("nsmgr").client(&registry.tcp));
    let nse = mesh.member("nse").client(&registry.tcp);
    nse.register_endpoint(&mut call(), endpoint("a", "icmp")).await.unwrap();
    assert_eq!(names(&cached, named("a")).await, ["a"]);
    drop(registry);
    until("the registry's end is told", || async {
        find::endpoints(&cached, &mut call(), named("a")).await.is_err()
    })
    .await;
}
