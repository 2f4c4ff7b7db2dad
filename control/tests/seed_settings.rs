//! Two domains that are told what they are by nothing but the variables and ports of the first NSM: PROXY_NSMD_*, NSMRS_ADDRESS, 5005,
//! 5006 and 80. Tests are named after the places where the old documents contradict themselves.

mod plain_roles;

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

use plain_roles::{PATIENCE, Role, listening, own_address, pool};
use tonic::{Code, Request, Status};
use vwire_control::api::connection::{Connection, Path as Way, PathSegment};
use vwire_control::api::networkservice::NetworkServiceRequest;
use vwire_control::api::networkservice::network_service_client::NetworkServiceClient;
use vwire_control::cli::AdminClient;
use vwire_control::registry::remote::Remote;
use vwire_control::registry::{Registry, RegistryCall, find};
use vwire_control::transport::{Pool, Target};
use vwire_proto::nsm::registry::{NetworkService, NetworkServiceEndpoint};

fn at(host: Ipv4Addr, port: u16) -> Target {
    Target::Tcp(format!("{host}:{port}"))
}

/// A domain: its registry at 5002 of one address, its proxy at another one, where there is nothing else.
struct Domain {
    name: &'static str,
    inside: Ipv4Addr,
    outside: Ipv4Addr,
    _roles: [Role; 2],
}

impl Domain {
    /// The proxy listens at `ports`; both get the old variables that they know.
    async fn start(
        name: &'static str,
        hosts: [Ipv4Addr; 2],
        directory: &Path,
        ports: &[u16],
        of_registry: &[(&str, String)],
        of_proxy: &[(&str, String)],
    ) -> Self {
        let [inside, outside] = hosts;
        let listens: Vec<String> = ports.iter().map(|port| at(outside, *port).to_string()).collect();
        let registry = [&[("NSM_LISTEN_ON", at(inside, 5002).to_string())], of_registry].concat();
        let own = [
            ("NSM_NAME", format!("proxy-{name}")),
            ("NSM_LISTEN_ON", listens.join(",")),
            ("NSM_REGISTRY_URL", at(inside, 5002).to_string()),
            ("NSM_DIAL_TIMEOUT", "10s".to_owned()),
        ];
        let proxy = [&own[..], of_proxy].concat();
        let roles = [
            Role::named(&format!("registry-{name}"), "registry", directory, &registry),
            Role::named(&format!("proxy-{name}"), "proxy", directory, &proxy),
        ];
        let pool = pool();
        listening(&pool, &at(inside, 5002)).await;
        listening(&pool, &at(outside, ports[0])).await;
        Self { name, inside, outside, _roles: roles }
    }

    fn registry(&self, pool: &Arc<Pool>) -> Remote {
        Remote::new(Arc::clone(pool), at(self.inside, 5002))
    }

    /// Registers a service and one who offers it, behind a manager that is not there.
    async fn offers(&self, pool: &Arc<Pool>, service: &str, endpoint: &str) {
        let registry = self.registry(pool);
        let of = NetworkService { name: service.into(), payload: "IP".into(), ..Default::default() };
        registry.register_service(&mut call(), of).await.unwrap();
        let endpoint = NetworkServiceEndpoint {
            name: endpoint.into(),
            network_service_names: vec![service.into()],
            url: at(self.inside, 5001).to_string(),
            ..Default::default()
        };
        registry.register_endpoint(&mut call(), endpoint).await.unwrap();
    }
}

fn call() -> RegistryCall {
    RegistryCall::internal("test", PATIENCE)
}

async fn found(pool: &Arc<Pool>, asker: &Domain, service: &str) -> Result<NetworkServiceEndpoint, Status> {
    let query =
        NetworkServiceEndpoint { network_service_names: vec![service.to_owned()], ..Default::default() };
    let events = find::endpoints(&asker.registry(pool), &mut call(), query).await?;
    let [one] = &events[..] else { panic!("one endpoint: {events:?}") };
    Ok((*one.endpoint).clone())
}

/// What a manager sends to where an endpoint of another domain is.
async fn request(pool: &Pool, endpoint: &NetworkServiceEndpoint) -> Result<(), Status> {
    let segment =
        |name: &str| PathSegment { name: name.into(), id: format!("at-{name}"), ..Default::default() };
    let request = NetworkServiceRequest {
        connection: Some(Connection {
            id: "at-nsmgr".into(),
            network_service: endpoint.network_service_names[0].clone(),
            network_service_endpoint_name: endpoint.name.clone(),
            payload: "IP".into(),
            path: Some(Way { index: 1, path_segments: vec![segment("nsc"), segment("nsmgr")] }),
            ..Default::default()
        }),
        mechanism_preferences: Vec::new(),
    };
    let mut request = Request::new(request);
    request.set_timeout(PATIENCE);
    let hop = pool.hop(&Target::parse(&endpoint.url).unwrap()).await?;
    NetworkServiceClient::new(hop).request(request).await.map(drop)
}

/// One domain asks the other by its proxy's address. Its registries' side is at the first port, Requests' at the second, as both are told.
async fn walk(test: u8, registries: u16, requests: u16) {
    let directory = tempfile::tempdir().unwrap();
    let hosts = |first: u8| [own_address(test, first), own_address(test, first + 1)];
    let (b, a) = (hosts(1), hosts(3));
    let b = Domain::start("b", b, directory.path(), &[5005, 5006], &[], &[]).await;
    let of_registry = [("PROXY_NSMD_K8S_ADDRESS", format!("{}:{registries}", a[1]))];
    let of_proxy = [
        ("PROXY_NSMD_API_ADDRESS", format!("{}:5006", a[1])),
        ("PROXY_NSMD_ADDRESS", format!("{}:{requests}", a[1])),
        ("PROXY_NSMD_K8S_REMOTE_PORT", registries.to_string()),
        ("NODE_NAME", "node-1".to_owned()),
    ];
    let a = Domain::start("a", a, directory.path(), &[5005], &of_registry, &of_proxy).await;
    let pool = pool();
    b.offers(&pool, "icmp-responder", "nse-1").await;
    let endpoint = found(&pool, &a, &format!("icmp-responder@{}", b.outside)).await.unwrap();
    assert_eq!(endpoint.name, format!("nse-1@{}", b.outside));
    assert_eq!(endpoint.url, at(a.outside, requests).to_string(), "PROXY_NSMD_ADDRESS of {}", a.name);
    // Through both proxies to the manager, which is not there.
    let told = request(&pool, &endpoint).await.unwrap_err();
    assert_eq!(told.code(), Code::Unavailable, "{told}");
    assert!(told.message().contains(&format!("{}:5001", b.inside)), "{told}");
}

#[tokio::test]
async fn the_first_nsms_variables_alone_make_two_domains() {
    walk(1, 5005, 5006).await;
}

#[tokio::test]
async fn t5_ports_that_are_labelled_the_wrong_way_round_serve_all_the_same() {
    walk(2, 5006, 5005).await;
}

#[tokio::test]
async fn t6_a_registry_proxy_at_5005_or_at_80_is_found_without_being_told() {
    for (test, port) in [(3, 5005), (4, 80)] {
        let directory = tempfile::tempdir().unwrap();
        let hosts = |first: u8| [own_address(test, first), own_address(test, first + 1)];
        let (b, a) = (hosts(1), hosts(3));
        let b = Domain::start("b", b, directory.path(), &[port], &[], &[]).await;
        let of_registry = [("NSM_PROXY_REGISTRY_URL", format!("{}:5005", a[1]))];
        let a = Domain::start("a", a, directory.path(), &[5005, 5006], &of_registry, &[]).await;
        let pool = pool();
        b.offers(&pool, "icmp-responder", "nse-1").await;
        let endpoint = found(&pool, &a, &format!("icmp-responder@{}", b.outside)).await.unwrap();
        assert_eq!(endpoint.name, format!("nse-1@{}", b.outside), "port {port}");
    }
}

/// A setting as it is in effect, and who said so.
async fn setting(directory: &Path, process: &str, name: &str) -> (String, String) {
    let admin = AdminClient(Target::Unix(directory.join(format!("{process}.admin"))));
    let all: serde_json::Value = admin.get("/config").await.unwrap();
    let one = all.as_array().unwrap().iter().find(|one| one["name"] == name);
    let text = |key: &str| one.unwrap_or_else(|| panic!("no {name}"))[key].as_str().unwrap().to_owned();
    (text("value"), text("origin"))
}

#[tokio::test]
async fn t12_both_the_registry_and_the_proxy_forward_to_nsmrs_and_both_forms_of_a_duration_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let nsmrs_at = own_address(5, 5);
    let expiry =
        [("NSMRS_API_ADDRESS", format!("{nsmrs_at}:5010")), ("NSE_EXPIRATION_TIMEOUT", "300".to_owned())];
    let _nsmrs = Role::start("nsmrs", directory.path(), &expiry);
    let pool = pool();
    listening(&pool, &at(nsmrs_at, 5010)).await;
    let to = |interval: &str| {
        [("NSMRS_ADDRESS", format!("{nsmrs_at}:5010")), ("NSE_TRACKING_INTERVAL", interval.to_owned())]
    };
    let hosts = |first: u8| [own_address(5, first), own_address(5, first + 1)];
    // Here the registry forwards what is registered, there the proxy.
    let a = Domain::start("a", hosts(1), directory.path(), &[5005], &to("10"), &[]).await;
    let b = Domain::start("b", hosts(3), directory.path(), &[5005], &[], &to("1m30s")).await;
    a.offers(&pool, "icmp", "nse-a").await;
    b.offers(&pool, "icmp", "nse-b").await;
    let there = Remote::new(Arc::clone(&pool), at(nsmrs_at, 5010));
    let deadline = std::time::Instant::now() + PATIENCE;
    let urls = loop {
        let all = find::endpoints(&there, &mut call(), NetworkServiceEndpoint::default()).await.unwrap();
        let mut urls: Vec<_> =
            all.iter().map(|event| (event.endpoint.name.clone(), event.endpoint.url.clone())).collect();
        urls.sort();
        if urls.len() == 2 {
            break urls;
        }
        assert!(std::time::Instant::now() < deadline, "only {urls:?} came to NSMRS");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    };
    // A proxy says its own address, a registry leaves what is there.
    let expected = [
        ("nse-a".to_owned(), at(a.inside, 5001).to_string()),
        ("nse-b".to_owned(), at(b.outside, 5005).to_string()),
    ];
    assert_eq!(urls, expected);
    for (process, name, value) in [
        ("nsmrs", "NSE_EXPIRATION_TIMEOUT", "300"),
        ("registry-a", "NSE_TRACKING_INTERVAL", "10"),
        ("proxy-b", "NSE_TRACKING_INTERVAL", "1m30s"),
    ] {
        assert_eq!(setting(directory.path(), process, name).await, (value.to_owned(), name.to_owned()));
    }
}
