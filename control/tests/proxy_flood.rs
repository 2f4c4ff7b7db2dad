//! An nsmgr-proxy under a thousand foreign Requests at one time: it stays small, and says to those that it refuses why.

mod plain_roles;

use std::net::TcpListener;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use plain_roles::{PATIENCE, Role, listening, own_address, pool};
use tonic::{Code, Request, Status};
use vwire_control::api::connection::{Connection, Path, PathSegment};
use vwire_control::api::networkservice::NetworkServiceRequest;
use vwire_control::api::networkservice::network_service_client::NetworkServiceClient;
use vwire_control::registry::remote::Remote;
use vwire_control::registry::{Registry, RegistryCall};
use vwire_control::transport::{Pool, Target};
use vwire_proto::nsm::registry::NetworkServiceEndpoint;

/// Requests at one time, and how many of them the proxy takes (VWIRE_PROXY_MAX_REQUESTS by default).
const ALL: usize = 1000;
const TAKEN: usize = 256;
/// The most memory that the proxy may ever have had, in KiB: what a debug build needs to start is a third of it.
const MOST_KIB: u64 = 128 * 1024;
/// As a proxy of another domain asks, for its client number `i`.
fn foreign(i: usize) -> NetworkServiceRequest {
    let segment = |name: &str, id: String| PathSegment { name: name.into(), id, ..Default::default() };
    let path_segments =
        vec![segment("nsc", format!("nsc-{i}")), segment("nsmgr-proxy-a", format!("at-proxy-{i}"))];
    NetworkServiceRequest {
        connection: Some(Connection {
            id: format!("at-proxy-{i}"),
            network_service: "svc@b.test".into(),
            network_service_endpoint_name: "nse@b.test".into(),
            payload: "ETHERNET".into(),
            path: Some(Path { index: 1, path_segments }),
            ..Default::default()
        }),
        mechanism_preferences: Vec::new(),
    }
}

async fn ask(pool: Arc<Pool>, proxy: Target, i: usize) -> Result<Connection, Status> {
    let mut request = Request::new(foreign(i));
    request.set_timeout(PATIENCE);
    let hop = pool.hop(&proxy).await?;
    NetworkServiceClient::new(hop).request(request).await.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn a_thousand_foreign_requests_stay_within_the_bound_and_the_rest_hears_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let own = own_address(0, 1);
    let at = |port: u16| Target::Tcp(format!("{own}:{port}"));
    // A manager that takes connections and never says a word.
    let _silent = TcpListener::bind((own, 5001)).unwrap();
    let _registry = Role::start("registry", directory.path(), &[("NSM_LISTEN_ON", at(5002).to_string())]);
    let settings = [
        ("NSM_NAME", "nsmgr-proxy-b".to_owned()),
        ("NSM_LISTEN_ON", at(5004).to_string()),
        ("NSM_REGISTRY_URL", at(5002).to_string()),
        ("NSM_REGISTRY_PROXY_URL", at(5005).to_string()),
        ("NSM_DIAL_TIMEOUT", "60s".to_owned()),
    ];
    let proxy = Role::start("nsmgr-proxy", directory.path(), &settings);
    let pool = pool();
    listening(&pool, &at(5002)).await;
    listening(&pool, &at(5004)).await;
    let registry = Remote::new(Arc::clone(&pool), at(5002));
    let endpoint = NetworkServiceEndpoint {
        name: "nse".into(),
        network_service_names: vec!["svc".into()],
        url: at(5001).to_string(),
        ..Default::default()
    };
    registry.register_endpoint(&mut RegistryCall::internal("test", PATIENCE), endpoint).await.unwrap();

    let mut asking: FuturesUnordered<_> =
        (0..ALL).map(|i| tokio::spawn(ask(Arc::clone(&pool), at(5004), i))).collect();
    for _ in 0..ALL - TAKEN {
        let refused = tokio::time::timeout(PATIENCE, asking.next()).await.expect("an answer in time");
        let refused = refused.unwrap().unwrap().unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
        assert!(refused.message().contains("256 Requests of other domains are under way"), "{refused}");
        assert!(refused.message().contains("VWIRE_PROXY_MAX_REQUESTS"), "{refused}");
    }
    let peak = proxy.peak();
    println!("nsmgr-proxy with {TAKEN} Requests under way and {} refused: at most {peak} KiB", ALL - TAKEN);
    assert!(peak < MOST_KIB, "{peak} KiB");
}
