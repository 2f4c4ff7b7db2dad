//! The registry calls before v1, by their generated clients, at the role that serves them.

use std::time::Duration;

use clap::Parser;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use vwire_proto::nsm02 as old;
use vwire_proto::nsm02::network_service_discovery_client::NetworkServiceDiscoveryClient;
use vwire_proto::nsm02::network_service_registry_client::NetworkServiceRegistryClient;

use super::support::*;
use crate::obs::Admin;
use crate::registry::{Registry, find};
use crate::roles::{Process, nsmrs};
use crate::transport::{Hop, Target};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    settings: nsmrs::Settings,
}

fn settings(args: &[&str]) -> nsmrs::Settings {
    Cli::parse_from(std::iter::once("nsmrs").chain(args.iter().copied())).settings
}

/// The role, until it is dropped.
struct Nsmrs {
    target: Target,
    shutdown: CancellationToken,
    _folder: tempfile::TempDir,
}

impl Drop for Nsmrs {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Nsmrs {
    fn start(mesh: &Mesh, args: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("nsmrs.sock");
        let address = format!("--api-address=unix://{}", socket.display());
        let args: Vec<&str> = args.iter().copied().chain([address.as_str()]).collect();
        let Member { identity, tokens, pool } = mesh.member("nsmrs");
        let shutdown = CancellationToken::new();
        let process = Process {
            identity,
            tokens,
            pool,
            admin: Admin::new("nsmrs", "nsmrs"),
            shutdown: shutdown.clone(),
        };
        tokio::spawn(nsmrs::run(settings(&args), process));
        Self { target: Target::Unix(socket), shutdown, _folder: folder }
    }

    async fn hop(&self, member: &Member) -> Hop {
        loop {
            match member.pool.hop(&self.target).await {
                Ok(hop) => return hop,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    async fn clients(&self, member: &Member) -> Old {
        let hop = self.hop(member).await;
        Old {
            registry: NetworkServiceRegistryClient::new(hop.clone()),
            discovery: NetworkServiceDiscoveryClient::new(hop),
        }
    }
}

struct Old {
    registry: NetworkServiceRegistryClient<Hop>,
    discovery: NetworkServiceDiscoveryClient<Hop>,
}

impl Old {
    async fn register(&mut self, of: old::NseRegistration) -> Result<old::NseRegistration, tonic::Status> {
        self.registry.register_nse(of).await.map(tonic::Response::into_inner)
    }

    async fn find(&mut self, name: &str) -> Result<old::FindNetworkServiceResponse, tonic::Status> {
        let request = old::FindNetworkServiceRequest { network_service_name: name.into() };
        self.discovery.find_network_service(request).await.map(tonic::Response::into_inner)
    }

    async fn remove(&mut self, name: &str) -> Result<(), tonic::Status> {
        let request = old::RemoveNseRequest { network_service_endpoint_name: name.into() };
        self.registry.remove_nse(request).await.map(drop)
    }
}

fn registration(name: &str, service: &str) -> old::NseRegistration {
    old::NseRegistration {
        network_service: Some(old::NetworkService {
            name: service.into(),
            payload: "IP".into(),
            matches: Vec::new(),
        }),
        network_service_manager: Some(old::NetworkServiceManager {
            name: "node-1".into(),
            url: "192.0.2.1:5001".into(),
            ..Default::default()
        }),
        network_service_endpoint: Some(old::NetworkServiceEndpoint {
            name: name.into(),
            network_service_name: service.into(),
            labels: [("app".to_owned(), "a".to_owned())].into(),
            ..Default::default()
        }),
    }
}

fn names(found: &old::FindNetworkServiceResponse) -> Vec<&str> {
    let mut names: Vec<&str> = found.network_service_endpoints.iter().map(|of| of.name.as_str()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn old_and_new_calls_meet_in_one_store() {
    let mesh = Mesh::new();
    let nsmrs = Nsmrs::start(&mesh, &[]);
    let (cluster, other) = (mesh.member("cluster-1"), mesh.member("cluster-2"));
    let mut old = nsmrs.clients(&cluster).await;
    let registered = old.register(registration("nse-1", "icmp")).await.unwrap();
    let manager = registered.network_service_manager.unwrap();
    assert_eq!(manager.name, "node-1_192.0.2.1_5001");
    assert!(manager.expiration_time.is_some());

    // Today's calls find it, and register beside it.
    let new = other.client(&nsmrs.target);
    let found = find::endpoints(&new, &mut call(), of_service("icmp")).await.unwrap();
    assert_eq!(
        (found[0].endpoint.name.as_str(), found[0].endpoint.url.as_str()),
        ("nse-1", "tcp://192.0.2.1:5001")
    );
    assert_eq!(found[0].endpoint.path_ids, [id("cluster-1")]);
    assert_eq!(find::service(&new, &mut call(), "icmp").await.unwrap().payload, "IP");
    new.register_endpoint(&mut call(), endpoint("nse-2", "icmp")).await.unwrap();

    let found = old.find("icmp").await.unwrap();
    assert_eq!(names(&found), ["nse-1", "nse-2"]);
    assert_eq!(found.payload, "IP");
    let managers: Vec<(&str, &str)> =
        found.network_service_managers.iter().map(|(name, of)| (name.as_str(), of.url.as_str())).collect();
    assert_eq!(managers, [("10.0.0.1_5001", "10.0.0.1:5001"), ("node-1_192.0.2.1_5001", "192.0.2.1:5001")]);
    for of in &found.network_service_endpoints {
        assert!(found.network_service_managers.contains_key(&of.network_service_manager_name), "{of:?}");
    }

    let told = old.remove("nse-2").await.unwrap_err();
    assert_eq!(told.code(), Code::PermissionDenied, "{told}");
    old.remove("nse-1").await.unwrap();
    assert_eq!(old.remove("nse-1").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(names(&old.find("icmp").await.unwrap()), ["nse-2"]);
    let told = old.find("nothing").await.unwrap_err();
    assert!(told.code() == Code::NotFound && told.message().contains("`nothing`"), "{told}");
}

#[tokio::test]
async fn names_and_services_of_others_are_kept_from_newcomers() {
    let mesh = Mesh::new();
    let nsmrs = Nsmrs::start(&mesh, &[]);
    let mut one = nsmrs.clients(&mesh.member("cluster-1")).await;
    let mut two = nsmrs.clients(&mesh.member("cluster-2")).await;
    one.register(registration("nse-1", "icmp")).await.unwrap();
    // Its own registrant may register it again.
    one.register(registration("nse-1", "icmp")).await.unwrap();
    let told = two.register(registration("nse-1", "icmp")).await.unwrap_err();
    assert!(told.code() == Code::AlreadyExists && told.message().contains("`nse-1`"), "{told}");
    // The same service, offered by two domains; but not another one of that name.
    two.register(registration("nse-2", "icmp")).await.unwrap();
    let mut otherwise = registration("nse-3", "icmp");
    otherwise.network_service.as_mut().unwrap().payload = "ETHERNET".into();
    let told = two.register(otherwise.clone()).await.unwrap_err();
    assert!(told.code() == Code::AlreadyExists && told.message().contains("`icmp`"), "{told}");
    assert_eq!(names(&two.find("icmp").await.unwrap()), ["nse-1", "nse-2"]);
    // With the last endpoint the service is nobody's.
    one.remove("nse-1").await.unwrap();
    two.remove("nse-2").await.unwrap();
    two.register(otherwise).await.unwrap();
    assert_eq!(two.find("icmp").await.unwrap().payload, "ETHERNET");
    let told = two.register(old::NseRegistration::default()).await.unwrap_err();
    assert!(told.code() == Code::InvalidArgument && told.message().starts_with("network_service"), "{told}");
    let told = two.register(registration("nse@far.test", "icmp")).await.unwrap_err();
    assert_eq!(told.code(), Code::FailedPrecondition, "{told}");
}

#[tokio::test]
async fn bulk_registrations_keep_endpoints_alive_and_without_them_they_expire() {
    let mesh = Mesh::new();
    let nsmrs = Nsmrs::start(&mesh, &["--expiration-timeout=2"]);
    let cluster = mesh.member("cluster-1");
    let mut old = nsmrs.clients(&cluster).await;
    let mut events = watch(&cluster.client(&nsmrs.target), named("nse-1")).await;
    old.register(registration("nse-1", "icmp")).await.unwrap();

    let (send, receive) = tokio::sync::mpsc::channel(4);
    let sent = tokio_stream::wrappers::ReceiverStream::new(receive);
    let mut answers = old.registry.bulk_register_nse(sent).await.unwrap().into_inner();
    let first = next_event(&mut events).await.endpoint.expiration_time.unwrap();
    let mut last = first;
    // Beyond its first end, by keep-alives alone.
    while !crate::registry::expiry::left(&first, std::time::SystemTime::now()).is_zero() {
        send.send(registration("nse-1", "icmp")).await.unwrap();
        let answer = answers.message().await.unwrap().expect("an answer to each");
        last = answer.network_service_manager.unwrap().expiration_time.unwrap();
        let event = next_event(&mut events).await;
        assert!(!event.deleted);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!((last.seconds, last.nanos) > (first.seconds, first.nanos));
    // One that is not there is added.
    send.send(registration("nse-2", "icmp")).await.unwrap();
    answers.message().await.unwrap().expect("an answer");
    assert_eq!(names(&old.find("icmp").await.unwrap()), ["nse-1", "nse-2"]);
    // One of somebody else's ends the stream with the reason.
    let mut other = nsmrs.clients(&mesh.member("cluster-2")).await;
    other.register(registration("theirs", "icmp")).await.unwrap();
    send.send(registration("theirs", "icmp")).await.unwrap();
    assert_eq!(answers.message().await.unwrap_err().code(), Code::AlreadyExists);
    loop {
        let event = next_event(&mut events).await;
        if event.deleted {
            let end = event.endpoint.expiration_time.unwrap();
            assert!(
                crate::registry::expiry::left(&end, std::time::SystemTime::now()).is_zero(),
                "before its end"
            );
            break;
        }
    }
}

#[test]
fn its_settings_are_those_of_the_first_nsmrs() {
    let defaults = settings(&[]);
    assert_eq!(defaults.api_address.0, [Target::Tcp(":5010".into())]);
    assert_eq!(defaults.expiration_timeout, Duration::from_secs(300));
    assert_eq!(settings(&["--expiration-timeout=90"]).expiration_timeout, Duration::from_secs(90));
    assert_eq!(settings(&["--expiration-timeout=10s"]).expiration_timeout, Duration::from_secs(10));
    assert_eq!(settings(&["--api-address=0.0.0.0:80"]).api_address.0, [Target::Tcp("0.0.0.0:80".into())]);
    assert!(Cli::try_parse_from(["nsmrs", "--expiration-timeout=soon"]).is_err());
}
