//! Forwarding to a registry of several domains, over mutual TLS.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio_util::sync::{CancellationToken, DropGuard};
use vwire_proto::nsm::registry::NetworkServiceEndpoint;

use super::support::*;
use crate::registry::memory::{Settings, Store};
use crate::registry::remote::Remote;
use crate::registry::{Registry, expiry, find, mirror};
use crate::transport::Target;

/// Our own registry, of which nobody but its clients knows whether the other one is there.
struct Home {
    served: Served,
    _mirror: DropGuard,
}

fn how(interval: Duration) -> mirror::Settings {
    let private = ["forwarder".to_owned()].into();
    let domain = Some(crate::identity::TrustDomain::new("example.org").unwrap());
    mirror::Settings { interval, grace: Duration::from_millis(500), outside: None, private, domain }
}

impl Home {
    /// Forwards to `target`.
    async fn new(mesh: &Mesh, target: &Target, how: mirror::Settings) -> Self {
        let store = Arc::new(Store::new(Settings::default()));
        let registry = mesh.member("home");
        let there = registry.client(target);
        let end = CancellationToken::new();
        tokio::spawn(mirror::run(Arc::clone(&store) as _, Arc::new(there), how, end.clone()));
        let served = registry.serve(registry.chain(store)).await;
        Self { served, _mirror: end.drop_guard() }
    }
}

async fn names(registry: &Remote) -> Vec<String> {
    let Ok(found) = find::endpoints(registry, &mut call(), NetworkServiceEndpoint::default()).await else {
        return vec!["not there".to_owned()];
    };
    let mut names: Vec<String> = found.iter().map(|event| event.endpoint.name.clone()).collect();
    names.sort();
    names
}

async fn becomes(registry: &Remote, wanted: &[&str]) {
    until(&format!("{wanted:?}"), || async { names(registry).await == wanted }).await;
}

/// A place where nobody listens yet.
async fn free_place() -> Target {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    Target::Tcp(listener.local_addr().unwrap().to_string())
}

/// The registry of several domains, at a place of the test's choice.
async fn far(mesh: &Mesh, tcp: &Target, expire: Duration) -> Served {
    let member = mesh.member("nsmrs");
    let folder = tempfile::tempdir().unwrap();
    let unix = Target::Unix(folder.path().join("nsmrs.sock"));
    let store = Store::new(Settings { expire, ..Settings::default() });
    member.serve_at(member.chain(store), tcp.clone(), unix, folder).await
}

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn registering_here_does_not_wait_for_a_registry_that_is_down_at_the_start_or_killed_in_between() {
    let mesh = Mesh::new();
    let place = free_place().await;
    // No keep-alive within the test: what comes back comes back because the other registry does.
    let home = Home::new(&mesh, &place, how(HOUR)).await;
    let nse = mesh.member("nse").client(&home.served.tcp);
    nse.register_service(&mut call(), service("icmp")).await.unwrap();
    nse.register_endpoint(&mut call(), endpoint("nse-1", "icmp")).await.unwrap();

    let asking = mesh.member("asking").client(&place);
    let first = far(&mesh, &place, HOUR).await;
    becomes(&asking, &["nse-1"]).await;
    let found = find::endpoint(&asking, &mut call(), "nse-1").await.unwrap().endpoint;
    assert_eq!(found.url, "tcp://10.0.0.1:5001");
    assert_eq!(found.path_ids[0], id("home"), "the domain's registry speaks for the domain");
    assert_eq!(find::service(&asking, &mut call(), "icmp").await.unwrap().name, "icmp");

    drop(first);
    until("the other registry is gone", || async { names(&asking).await == ["not there"] }).await;
    nse.register_endpoint(&mut call(), endpoint("nse-2", "icmp")).await.unwrap();
    nse.unregister_endpoint(&mut call(), named("nse-1")).await.unwrap();
    let _second = far(&mesh, &place, HOUR).await;
    becomes(&asking, &["nse-2"]).await;
    assert_eq!(find::service(&asking, &mut call(), "icmp").await.unwrap().name, "icmp");
    nse.unregister_endpoint(&mut call(), named("nse-2")).await.unwrap();
    becomes(&asking, &[]).await;
}

#[tokio::test]
async fn forwarders_sockets_and_endpoints_of_others_stay_here() {
    let mesh = Mesh::new();
    let place = free_place().await;
    let _far = far(&mesh, &place, HOUR).await;
    let home = Home::new(&mesh, &place, how(HOUR)).await;
    let nse = mesh.member("nse").client(&home.served.tcp);
    nse.register_endpoint(&mut call(), endpoint("fwd", "forwarder")).await.unwrap();
    let local = NetworkServiceEndpoint { url: "unix:///run/nse.sock".into(), ..endpoint("local", "icmp") };
    nse.register_endpoint(&mut call(), local).await.unwrap();
    nse.register_endpoint(&mut call(), endpoint("nse", "icmp")).await.unwrap();
    let asking = mesh.member("asking").client(&place);
    becomes(&asking, &["nse"]).await;
    // With the proxy's URL all can be reached from outside.
    let outside: mirror::Outside = Arc::new(|| "tcp://proxy.example.org:5004".to_owned());
    let settings = mirror::Settings { outside: Some(outside), ..how(HOUR) };
    let of_proxy = Home::new(&mesh, &place, settings).await;
    let other = mesh.member("nse").client(&of_proxy.served.tcp);
    let local = NetworkServiceEndpoint { url: "unix:///run/nse.sock".into(), ..endpoint("inside", "icmp") };
    other.register_endpoint(&mut call(), local).await.unwrap();
    becomes(&asking, &["inside", "nse"]).await;
    let inside = find::endpoint(&asking, &mut call(), "inside").await.unwrap().endpoint;
    assert_eq!(inside.url, "tcp://proxy.example.org:5004");
}

#[tokio::test]
async fn what_is_kept_alive_stays_and_what_is_not_goes_when_its_time_is_over() {
    let mesh = Mesh::new();
    let place = free_place().await;
    let expire = Duration::from_secs(2);
    let _far = far(&mesh, &place, expire).await;
    let home = Home::new(&mesh, &place, how(Duration::from_millis(300))).await;
    let asking = mesh.member("asking").client(&place);
    let mut events = watch(&asking, named("nse")).await;
    let nse = mesh.member("nse").client(&home.served.tcp);
    nse.register_endpoint(&mut call(), endpoint("nse", "icmp")).await.unwrap();
    let first = next_event(&mut events).await.endpoint.expiration_time.unwrap();
    // Kept alive beyond its first end.
    loop {
        let event = next_event(&mut events).await;
        assert!(!event.deleted, "it went while it was kept alive");
        let end = event.endpoint.expiration_time.unwrap();
        if !expiry::left(&end, SystemTime::now()).is_zero()
            && expiry::left(&first, SystemTime::now()).is_zero()
        {
            break;
        }
    }
    drop(home);
    let last = loop {
        let event = next_event(&mut events).await;
        if event.deleted {
            break event.endpoint.expiration_time.unwrap();
        }
    };
    // Not before its time; and not a sweep later, which the patience of the watch says.
    assert!(expiry::left(&last, SystemTime::now()).is_zero(), "it went before its end");
}

#[tokio::test]
async fn a_proxy_forwards_what_is_in_a_registry_that_comes_and_goes() {
    let mesh = Mesh::new();
    let (home, place) = (free_place().await, free_place().await);
    let _far = far(&mesh, &place, HOUR).await;
    let proxy = mesh.member("proxy");
    let end = CancellationToken::new();
    let _mirror = end.clone().drop_guard();
    let (ours, there) = (Arc::new(proxy.client(&home)), Arc::new(proxy.client(&place)));
    tokio::spawn(mirror::run(ours, there, how(HOUR), end));
    let (asking, nse) = (mesh.member("asking").client(&place), mesh.member("nse").client(&home));
    for names in [["nse-1", "nse-2"], ["nse-2", "nse-3"]] {
        let registry = far(&mesh, &home, HOUR).await;
        for name in names {
            nse.register_endpoint(&mut call(), endpoint(name, "icmp")).await.unwrap();
        }
        becomes(&asking, &names).await;
        let found = find::endpoint(&asking, &mut call(), "nse-2").await.unwrap().endpoint;
        assert_eq!(found.path_ids[0], id("proxy"));
        drop(registry);
        until("our registry is gone", || async { self::names(&nse).await == ["not there"] }).await;
    }
}
