//! The metadata `path`, as callers may write it.

use tonic::{Code, Request, Response, Status};
use vwire_proto::nsm::registry::NetworkServiceEndpoint;
use vwire_proto::nsm::registry::network_service_endpoint_registry_client::NetworkServiceEndpointRegistryClient as Client;

use super::support::*;
use crate::registry::RegistryPath;
use crate::transport::Hop;

async fn register(hop: &Hop, path: Option<&str>) -> Result<Response<NetworkServiceEndpoint>, Status> {
    let mut request = Request::new(endpoint("nse-1", "icmp"));
    if let Some(path) = path {
        request.metadata_mut().insert("path", path.parse().unwrap());
    }
    Client::new(hop.clone()).register(request).await
}

#[tokio::test]
async fn an_empty_path_comes_back_with_both_tokens_and_a_missing_one_not_at_all() {
    let mesh = Mesh::new();
    let registry = mesh.memory().await;
    let hop = mesh.member("nse").pool.hop(&registry.tcp).await.unwrap();
    for empty in [r#"{"Index":0,"PathSegments":null}"#, r#"{"index":0,"pathsegments":[]}"#, "{}"] {
        let response = register(&hop, Some(empty)).await.unwrap();
        let path = RegistryPath::parse(response.metadata().get("path").unwrap().as_bytes()).unwrap();
        assert_eq!((path.index, path.tokens.len()), (0, 2));
        // A refresh brings back what came.
        let again = register(&hop, Some(&path.to_json())).await.unwrap();
        let again = RegistryPath::parse(again.metadata().get("path").unwrap().as_bytes()).unwrap();
        assert_eq!((again.index, again.tokens.len()), (0, 2));
    }
    let response = register(&hop, None).await.unwrap();
    assert!(response.metadata().get("path").is_none());
    assert_eq!(response.get_ref().path_ids, [id("nse"), id("registry")]);
}

#[tokio::test]
async fn what_is_no_path_is_refused_and_the_registry_lives_on() {
    let mesh = Mesh::new();
    let registry = mesh.memory().await;
    let hop = mesh.member("nse").pool.hop(&registry.tcp).await.unwrap();
    let long = format!("{{\"PathSegments\":[{}]}}", vec![r#"{"token":"x"}"#; 100].join(","));
    let huge = format!("{{\"PathSegments\":[{{\"token\":\"{}\"}}]}}", "x".repeat(100_000));
    for bad in [
        r#"{"Index":0,"PathSegments":[null]}"#,
        "[",
        r#"{"Index":7,"PathSegments":[{"token":"x"}]}"#,
        r#"{"Index":4294967295,"PathSegments":[{"token":"x"}]}"#,
        &long,
        &huge,
    ] {
        let status = register(&hop, Some(bad)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{bad:.60}: {status}");
        assert!(status.message().starts_with("metadata `path`: "), "{status}");
    }
    register(&hop, Some("{}")).await.unwrap();
}

#[tokio::test]
async fn a_forged_registrant_is_refused() {
    let mesh = Mesh::new();
    let registry = mesh.memory().await;
    let victim = mesh.member("victim");
    let hop = victim.pool.hop(&registry.tcp).await.unwrap();
    // A path whose first token was made for somebody else than the one that shows it.
    let stolen = victim.tokens.for_peer(hop.peer()).unwrap().jwt;
    let path = RegistryPath { index: 1, tokens: vec![stolen, "x".into()] };
    let thief = mesh.member("thief").pool.hop(&registry.tcp).await.unwrap();
    let status = register(&thief, Some(&path.to_json())).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
}
