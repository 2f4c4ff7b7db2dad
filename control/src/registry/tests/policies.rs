//! A registry in memory as its clients see it: conformance cases C18, C34–C38.

use std::time::Duration;

use futures::StreamExt;
use tonic::Code;

use super::support::*;
use crate::registry::authorize::{Authorize, Strict};
use crate::registry::hops::Hops;
use crate::registry::memory::{Settings, Store};
use crate::registry::{Registry, find};
use std::sync::Arc;

#[tokio::test]
async fn services_and_endpoints_are_registered_found_and_gone() {
    let mesh = Mesh::new();
    let registry = mesh.memory().await;
    let nse = mesh.member("nse").client(&registry.tcp);
    let registered = nse.register_service(&mut call(), service("icmp")).await.unwrap();
    assert_eq!((registered.payload.as_str(), registered.path_ids), ("IP", vec![id("nse"), id("registry")]));
    let mut call_of = call();
    let registered = nse.register_endpoint(&mut call_of, endpoint("nse-1", "icmp")).await.unwrap();
    assert_eq!(registered.path_ids, [id("nse"), id("registry")]);
    assert!(registered.initial_registration_time.is_some());
    let path = call_of.path.expect("a path comes back");
    assert_eq!((path.index, path.tokens.len()), (0, 2), "in the caller's coordinates");
    let client = mesh.member("nsc").client(&registry.tcp);
    assert_eq!(find::service(&client, &mut call(), "icmp").await.unwrap().payload, "IP");
    for query in [named("nse-1"), of_service("icmp"), named("")] {
        let found = find::endpoints(&client, &mut call(), query).await.unwrap();
        assert_eq!(
            found.iter().map(|e| e.endpoint.url.as_str()).collect::<Vec<_>>(),
            ["tcp://10.0.0.1:5001"]
        );
        assert_eq!(found[0].endpoint.expiration_time, registered.expiration_time);
    }
    nse.unregister_endpoint(&mut call(), named("nse-1")).await.unwrap();
    nse.unregister_endpoint(&mut call(), named("nse-1")).await.expect("gone already is fine");
    nse.unregister_service(&mut call(), service("icmp")).await.unwrap();
    assert_eq!(find::endpoint(&client, &mut call(), "nse-1").await.unwrap_err().code(), Code::NotFound);
    let told = find::service(&client, &mut call(), "icmp").await.unwrap_err();
    assert_eq!(told.message(), "network service `icmp` is not registered");
}

#[tokio::test]
async fn an_endpoint_lives_no_longer_than_its_token() {
    let mut mesh = Mesh::new();
    let registry = mesh.memory().await;
    mesh.token_life = Duration::from_secs(2);
    let nse = mesh.member("nse").client(&registry.tcp);
    let mut events = watch(&nse, named("nse-1")).await;
    nse.register_endpoint(&mut call(), endpoint("nse-1", "icmp")).await.unwrap();
    assert_eq!(next(&mut events).await, ("nse-1".into(), false));
    assert_eq!(next(&mut events).await, ("nse-1".into(), true));
    assert!(find::endpoints(&nse, &mut call(), named("nse-1")).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_name_is_its_owners_also_for_those_who_come_by_a_manager() {
    let mesh = Mesh::new();
    let store = Arc::new(Store::new(Settings::default()));
    let registry = mesh.over(Arc::clone(&store)).await;
    let manager = mesh.nsmgr("nsmgr", Some(&registry.tcp)).await;
    let a = mesh.member("a");
    let (a_direct, a_by_manager) = (a.client(&registry.tcp), a.client(&manager.tcp));
    a_by_manager.register_service(&mut call(), service("icmp")).await.unwrap();
    a_by_manager.register_endpoint(&mut call(), endpoint("nse-1", "icmp")).await.unwrap();
    let b = mesh.member("b");
    for client in [b.client(&registry.tcp), b.client(&manager.tcp)] {
        for told in [
            client.register_endpoint(&mut call(), endpoint("nse-1", "evil")).await.unwrap_err(),
            client.unregister_endpoint(&mut call(), named("nse-1")).await.unwrap_err(),
            client.register_service(&mut call(), service("icmp")).await.unwrap_err(),
            client.unregister_service(&mut call(), service("icmp")).await.unwrap_err(),
        ] {
            assert_eq!(told.code(), Code::PermissionDenied, "{told}");
        }
    }
    let found = find::endpoint(&a_direct, &mut call(), "nse-1").await.unwrap();
    assert_eq!(found.endpoint.network_service_names, ["icmp"], "as its owner left it");
    a_direct.register_service(&mut call(), service("icmp")).await.unwrap();
    a_by_manager.register_endpoint(&mut call(), endpoint("nse-1", "icmp")).await.unwrap();
    a_by_manager.unregister_endpoint(&mut call(), named("nse-1")).await.unwrap();
    assert_eq!(store.counts(), (1, 0));
}

#[tokio::test]
async fn strict_rules_keep_asserters_and_providers_out() {
    let mesh = Mesh::new();
    let member = mesh.member("registry");
    let strict = Strict {
        asserters: id("nsmgr").parse().unwrap(),
        providers: format!("forwarder={}", id("system/")).parse().unwrap(),
    };
    let authorized = Authorize::new(Store::new(Settings::default()), rules(), strict);
    let registry = member.serve(Arc::new(Hops::new(authorized, member.tokens.clone()))).await;
    let good = mesh.nsmgr("nsmgr", Some(&registry.tcp)).await;
    let other = mesh.nsmgr("other", Some(&registry.tcp)).await;
    let nse = mesh.member("nse");
    nse.client(&good.tcp).register_endpoint(&mut call(), endpoint("by-nsmgr", "icmp")).await.unwrap();
    nse.client(&registry.tcp).register_endpoint(&mut call(), endpoint("itself", "icmp")).await.unwrap();
    let told = nse
        .client(&other.tcp)
        .register_endpoint(&mut call(), endpoint("by-other", "icmp"))
        .await
        .unwrap_err();
    assert!(told.message().contains("may not register for others"), "{told}");
    let told = nse
        .client(&registry.tcp)
        .register_endpoint(&mut call(), endpoint("f", "forwarder"))
        .await
        .unwrap_err();
    assert_eq!(told.code(), Code::PermissionDenied);
    assert!(told.message().contains("may not provide `forwarder`"), "{told}");
    let forwarder = mesh.member("system/forwarder").client(&registry.tcp);
    forwarder.register_endpoint(&mut call(), endpoint("f", "forwarder")).await.unwrap();
}

#[tokio::test]
async fn a_stalled_watcher_delays_nobody() {
    let mesh = Mesh::new();
    let registry = mesh.memory().await;
    let nse = mesh.member("nse").client(&registry.tcp);
    let mut stalled = watch(&mesh.member("stalled").client(&registry.tcp), named("")).await;
    let mut reading = watch(&mesh.member("reading").client(&registry.tcp), of_service("icmp")).await;
    let mut by_name = watch(&mesh.member("name").client(&registry.unix), named("nse-299")).await;
    nse.register_endpoint(&mut call(), endpoint("nse-0", "icmp")).await.unwrap();
    assert_eq!(next(&mut stalled).await, ("nse-0".into(), false));
    assert_eq!(next(&mut reading).await, ("nse-0".into(), false));
    // Far more than fits into the windows of a stream that nobody reads.
    for n in 1..300 {
        let mut big = endpoint(&format!("nse-{n}"), "icmp");
        big.url = format!("tcp://{}:1", "x".repeat(20_000));
        nse.register_endpoint(&mut call(), big).await.unwrap();
        assert_eq!(next(&mut reading).await, (format!("nse-{n}"), false));
    }
    assert_eq!(next(&mut by_name).await, ("nse-299".into(), false));
    nse.unregister_endpoint(&mut call(), named("nse-299")).await.unwrap();
    let gone = next_event(&mut by_name).await;
    assert!(gone.deleted && gone.endpoint.url.len() > 20_000, "the last of it");
}

#[tokio::test]
async fn watches_end_with_the_registry() {
    let mesh = Mesh::new();
    let registry = mesh.memory().await;
    let client = mesh.member("nsc").client(&registry.tcp);
    let nse = mesh.member("nse").client(&registry.tcp);
    let mut events = watch(&client, named("nse-1")).await;
    nse.register_endpoint(&mut call(), endpoint("nse-1", "icmp")).await.unwrap();
    assert_eq!(next(&mut events).await, ("nse-1".into(), false));
    drop(registry);
    let end = tokio::time::timeout(TIME, events.next()).await.unwrap();
    assert_eq!(end.expect("an error, not an end").unwrap_err().code(), Code::Unavailable);
}
