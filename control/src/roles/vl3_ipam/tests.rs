//! The service as endpoints meet it: over TLS, by streams that break, and after it was away.

use std::path::Path;

use clap::Parser;
use futures::{StreamExt, stream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use vwire_proto::nsm::ipam::ipam_client::IpamClient;
use vwire_proto::nsm::ipam::{PrefixRequest, PrefixResponse, Type};

use super::*;
use crate::identity::issuer::Authority;
use crate::identity::{Identity, TokenSource, TrustDomain};
use crate::ipam::{Grant, client};
use crate::obs::Admin;
use crate::transport::{Dialling, Hop, Pool};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
}

fn settings(args: &[&str]) -> Settings {
    Cli::parse_from(std::iter::once("vl3-ipam").chain(args.iter().copied())).settings
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn process(authority: &Authority, name: &str) -> Process {
    let day = Duration::from_secs(86400);
    let identity = Identity::fixed(authority.issue(&format!("/{name}"), day).unwrap());
    let tokens = TokenSource::new(identity.clone(), Duration::from_secs(600));
    let dialling = Dialling { timeout: Duration::from_secs(10), ..Dialling::default() };
    let pool = Arc::new(Pool::new(identity.clone(), tokens.clone(), dialling));
    let admin = Admin::new("vl3-ipam", name);
    Process { identity, tokens, pool, admin, shutdown: CancellationToken::new() }
}

/// A running service.
struct Service {
    authority: Authority,
    target: Target,
    args: Vec<String>,
    process: Process,
    running: JoinHandle<Result<(), Vl3IpamError>>,
    _folder: tempfile::TempDir,
}

impl Service {
    async fn start(args: &[&str]) -> Self {
        let authority = Authority::new(TrustDomain::new("example.org").unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let (socket, state) = (path("ipam.sock"), path("ipam.redb"));
        let mut all: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        all.extend(["--listen-on".to_owned(), format!("unix://{socket}"), "--state".to_owned(), state]);
        let process = process(&authority, "ipam");
        let running = begin(&all, &process);
        let service = Self {
            target: Target::Unix(Path::new(&socket).to_owned()),
            authority,
            args: all,
            process,
            running,
            _folder: folder,
        };
        service.hop("probe").await;
        service
    }

    /// Ends it as a signal would, and starts it again.
    async fn restart(&mut self, args: &[&str]) {
        self.process.shutdown.cancel();
        (&mut self.running).await.unwrap().unwrap();
        self.process = process(&self.authority, "ipam");
        for pair in args.chunks(2) {
            let at = self.args.iter().position(|arg| arg == pair[0]).expect("a setting of the first start");
            pair[1].clone_into(&mut self.args[at + 1]);
        }
        self.running = begin(&self.args, &self.process);
    }

    /// A connection of its own for each caller.
    async fn hop(&self, name: &str) -> Hop {
        let caller = process(&self.authority, name);
        loop {
            match caller.pool.hop(&self.target).await {
                Ok(hop) => return hop,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    async fn stream(&self, name: &str) -> Stream {
        let (requests, sent) = mpsc::channel(8);
        let mut client = IpamClient::new(self.hop(name).await);
        let answers = client.manage_prefixes(ReceiverStream::new(sent)).await.unwrap().into_inner();
        Stream { requests, answers }
    }
}

fn begin(args: &[String], process: &Process) -> JoinHandle<Result<(), Vl3IpamError>> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    tokio::spawn(run(settings(&args), process.clone()))
}

/// One caller's stream, by hand.
struct Stream {
    requests: mpsc::Sender<PrefixRequest>,
    answers: Streaming<PrefixResponse>,
}

impl Stream {
    async fn send(&self, kind: i32, prefix: &str, excluded: &[&str]) {
        let exclude_prefixes = excluded.iter().map(|&text| text.to_owned()).collect();
        let request = PrefixRequest { r#type: kind, prefix: prefix.to_owned(), exclude_prefixes };
        self.requests.send(request).await.unwrap();
    }

    async fn ask(&mut self, prefix: &str, excluded: &[&str]) -> Result<PrefixResponse, Status> {
        self.send(Type::Allocate.into(), prefix, excluded).await;
        Ok(self.answers.message().await?.expect("an answer"))
    }
}

/// Waits for a grant that is `wanted`.
async fn until(grants: &mut watch::Receiver<Option<Grant>>, wanted: &str) {
    let wanted = Some(Grant::of(net(wanted)));
    let waited =
        tokio::time::timeout(Duration::from_secs(60), grants.wait_for(|grant| *grant == wanted)).await;
    waited.unwrap_or_else(|_| panic!("not {wanted:?}")).unwrap();
}

#[test]
fn its_defaults_are_gos() {
    let settings = settings(&[]);
    assert_eq!(settings.listen_on.0, [Target::Unix("/listen.on.socket".into())]);
    assert_eq!((settings.prefix, settings.client_prefix_len), (net("169.254.0.0/16"), 24));
    assert!(settings.state.is_none() && settings.excluded.is_empty());
}

#[tokio::test]
async fn streams_get_prefixes_and_answers_to_what_is_wrong() {
    let service = Service::start(&["--prefix", "10.0.0.0/23", "--excluded", "10.0.0.9/32"]).await;
    let mut one = service.stream("one").await;
    let answer = one.ask("", &["192.168.0.0/16"]).await.unwrap();
    assert_eq!(answer.prefix, "10.0.0.0/24");
    assert_eq!(answer.exclude_prefixes, ["192.168.0.0/16", "10.0.0.9/32"]);
    let mut two = service.stream("two").await;
    assert_eq!(two.ask("10.0.0.0/24", &[]).await.unwrap().prefix, "10.0.1.0/24");
    let refused = service.stream("three").await.ask("", &[]).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("2 /24 prefixes in 10.0.0.0/23: 2 are held, 0 are kept"), "{refused}");
    for (kind, prefix, excluded, told) in [
        (Type::Undefined as i32, "", &[][..], "type: UNDEFINED"),
        (7, "", &[], "type: 7 is none"),
        (Type::Allocate as i32, "10.0.0.0", &[], "prefix: \"10.0.0.0\" is no prefix"),
        (Type::Delete as i32, "", &[], "prefix: \"\" is no prefix"),
        (Type::Allocate as i32, "", &["10.0.0.0/33"], "exclude_prefixes: \"10.0.0.0/33\" is no prefix"),
        (Type::Allocate as i32, "", &["::/0"; 1025], "exclude_prefixes: 1025 prefixes"),
    ] {
        let mut bad = service.stream("bad").await;
        bad.send(kind, prefix, excluded).await;
        let status = bad.answers.message().await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().starts_with(told), "{status}");
    }
    // Nobody else was disturbed, and what is given back is anybody's.
    two.send(Type::Delete.into(), "10.0.0.0/24", &[]).await;
    two.send(Type::Delete.into(), "10.0.1.0/24", &[]).await;
    assert_eq!(two.ask("", &["10.0.1.0/28"]).await.unwrap_err().code(), Code::ResourceExhausted);
    assert_eq!(service.stream("four").await.ask("", &[]).await.unwrap().prefix, "10.0.1.0/24");
    assert_eq!(one.ask("10.0.0.0/24", &[]).await.unwrap().prefix, "10.0.0.0/24");
}

#[tokio::test]
async fn health_knows_it_and_reflection_describes_it() {
    let service = Service::start(&[]).await;
    let hop = service.hop("probe").await;
    for name in ["", "ipam.IPAM"] {
        let request = HealthCheckRequest { service: name.into() };
        let answer = HealthClient::new(hop.clone()).check(request).await.unwrap();
        assert_eq!(answer.get_ref().status(), ServingStatus::Serving, "{name}");
    }
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::{ServerReflectionRequest, server_reflection_response::MessageResponse};
    let asked = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::FileContainingSymbol("ipam.IPAM".into())),
    };
    let told = ServerReflectionClient::new(hop).server_reflection_info(stream::iter([asked])).await.unwrap();
    let told = told.into_inner().next().await.unwrap().unwrap();
    assert!(matches!(told.message_response, Some(MessageResponse::FileDescriptorResponse(_))), "{told:?}");
    let figures = Figures(Arc::new(
        Store::open(&ipam::Settings {
            prefix: net("fd00::/48"),
            client_prefix_len: 64,
            excluded: Vec::new(),
            grace: Duration::ZERO,
            per_identity: 1,
            state: None,
        })
        .unwrap(),
    ));
    assert_eq!(Value::Object(figures.report().await)["prefixes_free"], 65536);
}

#[tokio::test]
async fn a_client_keeps_its_prefix_over_the_services_restart() {
    let mut service = Service::start(&["--prefix", "fd00::/48", "--client-prefix-len", "64"]).await;
    let end = CancellationToken::new();
    let lease = |name: &str, previous| {
        let pool = process(&service.authority, name).pool;
        client::lease(pool, service.target.clone(), previous, end.clone())
    };
    let mut one = lease("one", None);
    until(&mut one, "fd00::/64").await;
    let mut two = lease("two", Some(net("fd00:0:0:77::/64")));
    until(&mut two, "fd00:0:0:77::/64").await;
    let (mut told_one, mut told_two) = (one.clone(), two.clone());
    told_one.mark_unchanged();
    told_two.mark_unchanged();
    service.restart(&[]).await;
    // A newcomer is there first, and does not get what the others had.
    let mut newcomer = service.stream("newcomer").await;
    assert_eq!(newcomer.ask("", &[]).await.unwrap().prefix, "fd00:0:0:1::/64");
    assert_eq!(newcomer.ask("fd00:0:0:77::/64", &[]).await.unwrap().prefix, "fd00:0:0:2::/64");
    while figure(&service, "held").await < 4 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!told_one.has_changed().unwrap() && !told_two.has_changed().unwrap(), "nothing is new to them");
    // Another network: everybody is told.
    service.restart(&["--prefix", "fd10::/48"]).await;
    told_one
        .wait_for(|grant| grant.as_ref().is_some_and(|grant| net("fd10::/48").contains(&grant.prefix)))
        .await
        .unwrap();
    told_two
        .wait_for(|grant| grant.as_ref().is_some_and(|grant| net("fd10::/48").contains(&grant.prefix)))
        .await
        .unwrap();
    end.cancel();
}

/// What the role counts.
async fn figure(service: &Service, state: &str) -> u64 {
    let text = service.process.admin.metrics_text();
    let line = text.lines().find(|line| line.starts_with("vwire_ipam_prefixes{") && line.contains(state));
    line.and_then(|line| line.rsplit(' ').next()).map_or(0, |count| count.parse().unwrap())
}

#[tokio::test]
async fn an_exhausted_service_is_asked_until_it_has_one() {
    let service = Service::start(&["--prefix", "10.0.0.0/24"]).await;
    let mut one = service.stream("one").await;
    assert_eq!(one.ask("", &[]).await.unwrap().prefix, "10.0.0.0/24");
    let end = CancellationToken::new();
    let pool = process(&service.authority, "two").pool;
    let mut two = client::lease(pool, service.target.clone(), None, end.clone());
    assert!(
        tokio::time::timeout(Duration::from_millis(300), two.changed()).await.is_err(),
        "nothing to tell"
    );
    one.send(Type::Delete.into(), "10.0.0.0/24", &[]).await;
    until(&mut two, "10.0.0.0/24").await;
    end.cancel();
    let mut fixed = client::fixed(net("10.9.9.9/24"), CancellationToken::new());
    until(&mut fixed, "10.9.9.0/24").await;
}

#[tokio::test]
async fn wrong_settings_end_the_start() {
    let authority = Authority::new(TrustDomain::new("example.org").unwrap()).unwrap();
    for (args, told) in [
        (&["--client-prefix-len", "12"][..], "NSM_CLIENT_PREFIX_LEN: 12"),
        (&["--excluded", "169.0.0.0/8"], "VWIRE_IPAM_EXCLUDED"),
        (&["--state", "/nonexistent/ipam.redb"], "VWIRE_IPAM_STATE"),
        (&["--listen-on", ""], "NSM_LISTEN_ON"),
    ] {
        let error = run(settings(args), process(&authority, "ipam")).await.unwrap_err().to_string();
        assert!(error.contains(told), "{told}: {error}");
    }
}
