//! Calls as Go components were heard to make them, and the answers that their registry gave: each field that comes and goes.

use tonic::Request;
use vwire_proto::nsm::registry::network_service_endpoint_registry_client::NetworkServiceEndpointRegistryClient;
use vwire_proto::nsm::registry::network_service_registry_client::NetworkServiceRegistryClient;
use vwire_proto::nsm::registry::{
    NetworkService, NetworkServiceEndpoint, NetworkServiceEndpointQuery, NetworkServiceLabels,
};

use super::support::*;
use crate::identity::jwt;
use crate::registry::RegistryPath;

/// sub and aud of each token.
fn claims(path: &RegistryPath) -> Vec<(String, Vec<String>)> {
    path.tokens.iter().map(|token| jwt::read(token).unwrap()).map(|claims| (claims.sub, claims.aud)).collect()
}

/// A manager registers its forwarder: the registry adds its hop and the time of the first registration, and changes nothing else.
#[tokio::test]
async fn a_manager_registers_a_forwarder() {
    let mesh = Mesh::new();
    let registry = mesh.memory().await;
    let (forwarder, manager) = (mesh.member("forwarder"), mesh.member("nsmgr"));
    let beyond = manager.pool.hop(&registry.tcp).await.unwrap();
    // What the forwarder and the manager said to each other before.
    let front = mesh.nsmgr("nsmgr", None).await;
    let to_manager = forwarder.pool.hop(&front.tcp).await.unwrap();
    let to_forwarder = {
        let mut peer = (**to_manager.peer()).clone();
        peer.leaf = forwarder.identity.current().map(|svid| svid.chain[0].clone());
        peer.id = forwarder.identity.current().map(|svid| svid.id.clone());
        peer
    };
    let path = RegistryPath {
        index: 1,
        tokens: vec![
            forwarder.tokens.for_peer(to_manager.peer()).unwrap().jwt,
            manager.tokens.for_peer(&to_forwarder).unwrap().jwt,
        ],
    };
    let labels = NetworkServiceLabels { labels: [("p2p".to_owned(), "true".to_owned())].into() };
    let sent = NetworkServiceEndpoint {
        name: "forwarder-1".into(),
        network_service_names: vec!["forwarder".into()],
        network_service_labels: [("forwarder".to_owned(), labels)].into(),
        url: "tcp://127.0.0.1:5001".into(),
        expiration_time: Some(prost_types::Timestamp::from(
            std::time::SystemTime::now() + std::time::Duration::from_secs(50),
        )),
        path_ids: vec![id("forwarder"), id("nsmgr")],
        ..Default::default()
    };
    let mut request = Request::new(sent.clone());
    request.metadata_mut().insert("path", path.to_json().parse().unwrap());
    let response = NetworkServiceEndpointRegistryClient::new(beyond.clone()).register(request).await.unwrap();
    let back = RegistryPath::parse(response.metadata().get("path").unwrap().as_bytes()).unwrap();
    assert_eq!(back.index, 1);
    assert_eq!(
        claims(&back),
        [
            (id("forwarder"), vec![id("nsmgr")]),
            (id("nsmgr"), vec![id("registry")]),
            (id("registry"), vec![id("nsmgr")]),
        ]
    );
    let answer = response.into_inner();
    let expected = NetworkServiceEndpoint {
        initial_registration_time: answer.initial_registration_time,
        path_ids: vec![id("forwarder"), id("nsmgr"), id("registry")],
        ..sent
    };
    assert!(answer.initial_registration_time.is_some());
    assert_eq!(answer, expected);
    // As a manager asks for its own forwarders.
    let query = NetworkServiceEndpoint { url: "tcp://127.0.0.1:5001".into(), ..of_service("forwarder") };
    let query = NetworkServiceEndpointQuery { network_service_endpoint: Some(query), watch: false };
    let mut found = NetworkServiceEndpointRegistryClient::new(beyond).find(query).await.unwrap().into_inner();
    let event = found.message().await.unwrap().unwrap();
    assert_eq!((event.network_service_endpoint, event.deleted), (Some(expected), false));
    assert!(found.message().await.unwrap().is_none());
}

#[tokio::test]
async fn an_endpoint_registers_its_service() {
    let mesh = Mesh::new();
    let registry = mesh.memory().await;
    let hop = mesh.member("nse").pool.hop(&registry.tcp).await.unwrap();
    let sent =
        NetworkService { name: "icmp-responder".into(), payload: "ETHERNET".into(), ..Default::default() };
    let mut request = Request::new(sent.clone());
    request.metadata_mut().insert("path", r#"{"Index":0,"PathSegments":null}"#.parse().unwrap());
    let response = NetworkServiceRegistryClient::new(hop).register(request).await.unwrap();
    let back = RegistryPath::parse(response.metadata().get("path").unwrap().as_bytes()).unwrap();
    let expected = [(id("nse"), vec![id("registry")]), (id("registry"), vec![id("nse")])];
    assert_eq!((back.index, claims(&back)), (0, expected.into()));
    assert_eq!(*response.get_ref(), NetworkService { path_ids: vec![id("nse"), id("registry")], ..sent });
}
