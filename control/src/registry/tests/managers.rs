//! Registrations through a manager: tokens of three hops, local URLs, sockets beside the calls.

use std::os::unix::net::UnixListener;
use std::sync::Arc;

use tonic::Code;

use super::support::*;
use crate::registry::interdomain::Interdomain;
use crate::registry::memory::{Settings, Store};
use crate::registry::{Registry, find};
use vwire_proto::nsm::registry::NetworkServiceEndpoint;

#[tokio::test]
async fn the_world_calls_a_local_endpoint_by_its_managers_url_and_the_node_by_its_own() {
    let mesh = Mesh::new();
    let registry = mesh.memory().await;
    let manager = mesh.nsmgr("nsmgr", Some(&registry.tcp)).await;
    let nse = mesh.member("nse").client(&manager.unix);
    let mut tokens = call();
    let registered = nse.register_endpoint(&mut tokens, endpoint("nse-1", "icmp")).await.unwrap();
    assert_eq!(registered.url, "tcp://10.0.0.1:5001");
    assert_eq!(registered.path_ids, [id("nse"), id("nsmgr"), id("registry")]);
    assert_eq!(registered.network_service_labels["icmp"].labels["nodeName"], "node-1");
    assert_eq!((tokens.path.as_ref().unwrap().index, tokens.path.unwrap().tokens.len()), (0, 3));
    let forwarder = mesh.member("forwarder");
    let url = |target| {
        let client = forwarder.client(target);
        async move { find::endpoint(&client, &mut call(), "nse-1").await.unwrap().endpoint.url.clone() }
    };
    assert_eq!(url(&registry.tcp).await, "tcp://nsmgr:5001");
    assert_eq!(url(&manager.unix).await, "tcp://10.0.0.1:5001");
    assert_eq!(url(&manager.tcp).await, "tcp://nsmgr:5001", "who comes by TCP is not of this node");
    nse.unregister_endpoint(&mut call(), named("nse-1")).await.unwrap();
    let client = forwarder.client(&registry.tcp);
    assert!(find::endpoints(&client, &mut call(), named("")).await.unwrap().is_empty());
}

#[tokio::test]
async fn what_a_former_manager_left_is_not_shown() {
    let mesh = Mesh::new();
    let registry = mesh.memory().await;
    let manager = mesh.nsmgr("nsmgr", Some(&registry.tcp)).await;
    let stale = NetworkServiceEndpoint { url: "tcp://nsmgr:5001".into(), ..endpoint("stale", "icmp") };
    mesh.member("a").client(&registry.tcp).register_endpoint(&mut call(), stale).await.unwrap();
    mesh.member("b")
        .client(&registry.tcp)
        .register_endpoint(&mut call(), endpoint("far", "icmp"))
        .await
        .unwrap();
    let client = mesh.member("nsc").client(&manager.unix);
    let found = find::endpoints(&client, &mut call(), of_service("icmp")).await.unwrap();
    assert_eq!(found.iter().map(|e| e.endpoint.name.as_str()).collect::<Vec<_>>(), ["far"]);
    let nobodys = client.unregister_endpoint(&mut call(), named("far")).await;
    assert!(nobodys.is_ok(), "one that is not local is not ours to end");
    assert!(find::endpoint(&client, &mut call(), "far").await.is_ok());
}

#[tokio::test]
async fn sockets_come_and_go_as_descriptors() {
    let mesh = Mesh::new();
    let registry = mesh.memory().await;
    let manager = mesh.nsmgr("nsmgr", Some(&registry.tcp)).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nse.sock");
    let _listener = UnixListener::bind(&path).unwrap();
    let url = format!("unix://{}", path.display());
    let nse = mesh.member("nse").client(&manager.unix);
    let local = NetworkServiceEndpoint { url: url.clone(), ..endpoint("nse-1", "icmp") };
    for _ in 0..3 {
        let registered = nse.register_endpoint(&mut call(), local.clone()).await.unwrap();
        assert_eq!(registered.url, url, "mapped back");
    }
    let forwarder = mesh.member("forwarder").client(&manager.unix);
    let mut events = watch(&forwarder, of_service("icmp")).await;
    for found in [
        find::endpoint(&forwarder, &mut call(), "nse-1").await.unwrap(),
        find::endpoint(&forwarder, &mut call(), "nse-1").await.unwrap(),
        next_event(&mut events).await,
    ] {
        let socket = found.socket.expect("the descriptor comes along");
        let inode = vwire_dataplane::fdpass::identify(&*socket).unwrap();
        assert_eq!(found.endpoint.url, inode.to_string());
        let by_path = std::fs::metadata(&path).unwrap();
        assert_eq!(inode.ino, std::os::unix::fs::MetadataExt::ino(&by_path));
    }
    nse.unregister_endpoint(&mut call(), local).await.unwrap();
    let gone = next_event(&mut events).await;
    assert!(gone.deleted && gone.socket.is_none());
    assert_eq!(gone.endpoint.url, "tcp://nsmgr:5001");
}

#[tokio::test]
async fn a_descriptor_that_does_not_come_is_told_with_its_url() {
    let mesh = Mesh::new();
    let manager = mesh.nsmgr("nsmgr", None).await;
    let nse = mesh.member("nse");
    let bad = |url: &str| NetworkServiceEndpoint { url: url.into(), ..endpoint("nse-1", "icmp") };
    let mut short = crate::registry::RegistryCall::internal("test", std::time::Duration::from_millis(300));
    let told =
        nse.client(&manager.unix).register_endpoint(&mut short, bad("inode://4/99")).await.unwrap_err();
    assert_eq!(told.code(), Code::DeadlineExceeded, "{told}");
    for (url, client) in [
        ("inode://4/99", nse.client(&manager.tcp)),
        ("inode://x", nse.client(&manager.unix)),
        ("", nse.client(&manager.unix)),
    ] {
        let told = client.register_endpoint(&mut call(), bad(url)).await.unwrap_err();
        assert_eq!(told.code(), Code::InvalidArgument, "{url}: {told}");
        assert!(told.message().starts_with("url: "), "{told}");
    }
    assert!(find::endpoints(&nse.client(&manager.tcp), &mut call(), named("")).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_manager_without_a_registry_is_its_own() {
    let mesh = Mesh::new();
    let manager = mesh.nsmgr("nsmgr", None).await;
    let nse = mesh.member("nse").client(&manager.unix);
    nse.register_service(&mut call(), service("icmp")).await.unwrap();
    nse.register_endpoint(&mut call(), endpoint("nse-1", "icmp")).await.unwrap();
    assert_eq!(find::endpoint(&nse, &mut call(), "nse-1").await.unwrap().endpoint.url, "tcp://10.0.0.1:5001");
    let by_manager = NetworkServiceEndpoint { url: "tcp://nsmgr:5001".into(), ..of_service("icmp") };
    assert_eq!(
        find::endpoints(&nse, &mut call(), by_manager).await.unwrap().len(),
        1,
        "asked for by the manager's URL"
    );
}

#[tokio::test]
async fn a_local_endpoint_that_is_not_renewed_ends_everywhere() {
    let mut mesh = Mesh::new();
    let registry = mesh.memory().await;
    let manager = mesh.nsmgr("nsmgr", Some(&registry.tcp)).await;
    mesh.token_life = std::time::Duration::from_secs(2);
    let nse = mesh.member("nse").client(&manager.unix);
    let mut beyond = watch(&mesh.member("nsc").client(&registry.tcp), named("")).await;
    nse.register_endpoint(&mut call(), endpoint("nse-1", "icmp")).await.unwrap();
    assert_eq!(next(&mut beyond).await, ("nse-1".into(), false));
    assert_eq!(next(&mut beyond).await, ("nse-1".into(), true));
    until("the manager has forgotten it, too", || async {
        find::endpoints(&nse, &mut call(), named("nse-1")).await.unwrap().is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_panic_is_its_callers_error_and_nobody_elses() {
    let mesh = Mesh::new();
    let manager = mesh.nsmgr("nsmgr", None).await;
    let nse = mesh.member("nse").client(&manager.unix);
    let told = nse.register_endpoint(&mut call(), endpoint("panic", "icmp")).await.unwrap_err();
    assert_eq!(told.code(), Code::Internal, "{told}");
    nse.register_endpoint(&mut call(), endpoint("nse-1", "icmp")).await.unwrap();
    assert!(find::endpoint(&nse, &mut call(), "panic").await.is_err());
}

#[tokio::test]
async fn names_of_other_domains_go_to_the_proxy() {
    let (own, beyond) =
        (Arc::new(Store::new(Settings::default())), Arc::new(Store::new(Settings::default())));
    let domains = Interdomain::new(Arc::clone(&own), Some(Arc::clone(&beyond) as _));
    domains.register_service(&mut call(), service("icmp@far")).await.unwrap();
    domains.register_endpoint(&mut call(), endpoint("nse-1", "icmp@far")).await.unwrap();
    domains.register_endpoint(&mut call(), endpoint("nse-2@far", "icmp")).await.unwrap();
    domains.register_endpoint(&mut call(), endpoint("nse-3", "icmp")).await.unwrap();
    assert_eq!((own.counts(), beyond.counts()), ((0, 1), (1, 2)));
    assert_eq!(find::endpoints(&domains, &mut call(), of_service("icmp@far")).await.unwrap().len(), 1);
    domains.unregister_endpoint(&mut call(), named("nse-2@far")).await.unwrap();
    assert_eq!(beyond.counts(), (1, 1));
}
