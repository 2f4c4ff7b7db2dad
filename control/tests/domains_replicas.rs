//! Two domains with two proxies each (config/lab/replicas.yaml), of one name and behind one DNS name: what one of them has begun the other
//! carries on. Needs root.

mod lab_support;

use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lab_support::Run;
use tonic::Request;
use vwire_control::api::connection::{Connection, Mechanism, Path as Hops, PathSegment};
use vwire_control::api::mechanism::{REMOTE, SRC_IP, VXLAN};
use vwire_control::api::networkservice::NetworkServiceRequest;
use vwire_control::api::networkservice::network_service_client::NetworkServiceClient;
use vwire_control::cli::AdminClient;
use vwire_control::identity::{Identity, TokenSource};
use vwire_control::lab::{Lab, Silent, Spec, check, pings};
use vwire_control::obs::ConnectionView;
use vwire_control::transport::{Dialling, Pool, Target};

const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);
const PINGS: u32 = 100;
const CLIENT: &str = "client-0";
/// Both domains' proxies.
const PROXIES: [[&str; 2]; 2] = [["proxy-domain1", "proxy-domain1.2"], ["proxy-domain2", "proxy-domain2.2"]];

async fn up(tag: &str) -> (Run, Lab) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/lab/replicas.yaml");
    let mut spec = Spec::load(&file).unwrap();
    let run = Run::of(&mut spec, tag);
    let lab = run.up(&spec).await;
    (run, lab)
}

/// What a process of the lab has of a client's connection.
async fn has(lab: &Lab, process: &str, root: &str) -> Vec<ConnectionView> {
    let admin = AdminClient(lab.layout().admin(process));
    let mut all: Vec<ConnectionView> = admin.get("/connections").await.unwrap_or_default();
    all.retain(|view| view.root == root);
    all
}

/// Waits for something to become so.
async fn until(what: &str, is_so: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(Instant::now() < deadline, "waited in vain for: {what}");
        tokio::time::sleep(LOOK).await;
    }
}

/// Packets of the client, on their way.
fn start_pings(lab: &Lab, to: &str, log: &Path) -> Child {
    let out = std::fs::File::create(log).unwrap();
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &lab.layout().namespace("client"), "ping"]);
    command.args(pings::arguments(PINGS)).arg(to).stdin(Stdio::null()).stdout(out).spawn().unwrap()
}

/// The client's vWire, if it is up.
async fn vwire(lab: &Lab) -> Option<ConnectionView> {
    has(lab, "nsc-client", CLIENT).await.into_iter().find(|view| view.state == "UP")
}

#[tokio::test]
async fn either_proxy_of_a_domain_dies_and_the_other_takes_its_connections() {
    let (_run, mut lab) = up("twins").await;
    let log = lab.layout().directory().join("ping.log");
    for both in PROXIES.into_iter().chain(PROXIES) {
        until("the vWire is up", async || vwire(&lab).await.is_some()).await;
        let view = vwire(&lab).await.unwrap();
        let to = view.endpoint_addresses[0].split('/').next().unwrap().to_owned();
        let carries_first = !has(&lab, both[0], CLIENT).await.is_empty();
        let [dies, lives] = if carries_first { both } else { [both[1], both[0]] };
        let mut running = start_pings(&lab, &to, &log);
        lab.kill(dies).await.unwrap();
        until(&format!("{lives} has the connection of {dies}"), async || {
            !has(&lab, lives, CLIENT).await.is_empty() && vwire(&lab).await.is_some()
        })
        .await;
        running.wait().unwrap();
        let said = std::fs::read_to_string(&log).unwrap();
        assert_eq!(pings::lost(&said, PINGS), [0; 0], "{dies} died: {said}");
        lab.restart(dies).await.unwrap_or_else(|error| panic!("{error}"));
    }
    for wanted in &lab.spec().checks.clone() {
        for outcome in check(&lab, wanted).await.unwrap() {
            assert_eq!(outcome.failed, None, "{}", outcome.check);
        }
    }
    lab.down(&Silent).await.unwrap();
}

/// A caller such as a forwarder of domain 2.
struct Caller(Arc<Pool>);

impl Caller {
    async fn new(lab: &Lab) -> Self {
        let identity = Identity::from_workload_api(&lab.layout().workload_api("node-node-2")).await.unwrap();
        let tokens = TokenSource::new(identity.clone(), Duration::from_secs(600));
        Self(Arc::new(Pool::new(identity, tokens, Dialling::default())))
    }

    async fn proxy(&self, at: &str) -> NetworkServiceClient<vwire_control::transport::Hop> {
        NetworkServiceClient::new(self.0.hop(&Target::parse(at).unwrap()).await.unwrap())
    }
}

fn timed<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(Duration::from_secs(15));
    request
}

fn asking(connection: Connection) -> Request<NetworkServiceRequest> {
    let parameters = [(SRC_IP.to_owned(), "10.200.2.10".to_owned())];
    let tunnel = Mechanism { cls: REMOTE.into(), r#type: VXLAN.into(), parameters: parameters.into() };
    timed(NetworkServiceRequest { connection: Some(connection), mechanism_preferences: vec![tunnel] })
}

/// Nobody has told the second proxy of the endpoint, nor of the connection.
#[test]
fn a_request_at_one_proxy_is_refreshed_and_closed_at_the_other() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let outside = runtime();
    let (_run, lab) = outside.block_on(up("swap"));
    // The proxies listen in the lab's own namespaces.
    let space = vwire_dataplane::netns::open(&lab.layout().namespace_file("node-2")).unwrap();
    let inside = || runtime().block_on(swap(&lab));
    vwire_dataplane::netns::in_netns(Some(space.as_fd()), inside).unwrap();
    outside.block_on(lab.down(&Silent)).unwrap();
}

async fn swap(lab: &Lab) {
    let caller = Caller::new(lab).await;
    let [first, second] = ["tcp://10.200.2.1:5004", "tcp://10.200.2.2:5004"];
    let segment = PathSegment { name: "caller".into(), id: "caller-0".into(), ..Default::default() };
    let connection = Connection {
        id: "caller-0".into(),
        network_service: "icmp-responder@domain1.test".into(),
        network_service_endpoint_name: "responder@domain1.test".into(),
        path: Some(Hops { index: 0, path_segments: vec![segment] }),
        ..Default::default()
    };
    let hops = |connection: &Connection| -> Vec<(String, String)> {
        let path = connection.path.clone().unwrap_or_default();
        path.path_segments.into_iter().map(|hop| (hop.name, hop.id)).collect()
    };
    let made = caller.proxy(first).await.request(asking(connection)).await.unwrap().into_inner();
    let names: Vec<String> = hops(&made).into_iter().map(|(name, _)| name).collect();
    let expected = ["caller", "proxy-domain2", "proxy-domain1", "node-1", "node-1-forwarder", "responder"];
    assert_eq!(names, expected);
    assert_eq!(has(lab, "nse-responder", "caller-0").await.len(), 1);
    let refreshed = caller.proxy(second).await.request(asking(made.clone())).await.unwrap().into_inner();
    assert_eq!(hops(&refreshed), hops(&made), "it is the same connection at every hop");
    let addresses =
        |connection: &Connection| connection.context.clone().and_then(|context| context.ip_context);
    assert_eq!(addresses(&refreshed), addresses(&made));
    assert_eq!(has(lab, "nse-responder", "caller-0").await.len(), 1);
    caller.proxy(second).await.close(timed(refreshed)).await.unwrap();
    assert!(has(lab, "nse-responder", "caller-0").await.is_empty(), "closed to its end");
}
