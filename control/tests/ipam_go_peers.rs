//! Prefix services and their clients: Go's endpoint side against ours, ours against Go's service. Both over mutual TLS.

mod peers;

use std::time::Duration;

use ipnet::IpNet;
use peers::mesh::{Mesh, Plan, Setting, set};
use peers::netns::Netns;
use peers::process::Process;
use peers::{Kind, PATIENCE};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use vwire_control::identity::{Identity, TokenSource};
use vwire_control::ipam::{Grant, client};
use vwire_control::transport::{Dialling, Pool, Target};

/// A service and those who ask it.
struct Prefixes {
    mesh: Mesh,
    service: Option<Process>,
    kind: Kind,
    url: String,
    settings: Vec<Setting>,
    /// All of them listen on unix sockets and need none of it.
    space: Netns,
}

impl Prefixes {
    fn start(tag: &str, kind: Kind, settings: &[Setting]) -> Self {
        let mesh = Mesh::bare(tag, Plan { nodes: 0, ..Plan::of(Kind::Go) });
        let folder = mesh.directory().display().to_string();
        let url = format!("unix://{folder}/ipam.sock");
        let mut all =
            vec![set("NSM_LISTEN_ON", &url), set("VWIRE_IPAM_STATE", format!("{folder}/ipam.redb"))];
        all.extend_from_slice(settings);
        let space = Netns::new(tag);
        let mut prefixes = Self { mesh, service: None, kind, url, settings: all, space };
        prefixes.begin();
        prefixes
    }

    /// Starts the service, and waits until it answers.
    fn begin(&mut self) {
        let settings = self.settings.clone();
        let mut process = self.mesh.role(self.kind, "vl3-ipam", "ipam", &self.space, &[], settings);
        if self.kind == Kind::Go {
            process.told("ready", 0);
        } else {
            let mut probe = self.mesh.probe("prober", &self.url, "ipam.IPAM", &[]);
            let probed = probe.told("probed", 0);
            assert_eq!(probed["health"]["ipam.IPAM"], "SERVING", "{probed}");
            let methods = probed["methods"].as_array().unwrap();
            assert!(methods.contains(&json!("ipam.IPAM/ManagePrefixes")), "{probed}");
        }
        self.service = Some(process);
    }

    /// A Go endpoint's side of a stream.
    fn endpoint(&mut self, name: &str) -> Process {
        let settings = vec![set("NSM_PREFIX_SERVER_URL", &self.url)];
        self.mesh.go(name, "prefixes", &self.space.name, &[], settings)
    }

    /// Our endpoint's side, in this process.
    fn lease(
        &mut self,
        runtime: &tokio::runtime::Runtime,
        name: &str,
        previous: Option<&str>,
        end: &CancellationToken,
    ) -> watch::Receiver<Option<Grant>> {
        let socket = self.mesh.identity(name);
        let target = Target::parse(&self.url).unwrap();
        let previous = previous.map(|text| text.parse::<IpNet>().unwrap());
        runtime.block_on(async {
            let identity = Identity::from_workload_api(&Target::parse(&socket).unwrap()).await.unwrap();
            let tokens = TokenSource::new(identity.clone(), Duration::from_secs(600));
            let pool = Pool::new(identity, tokens, Dialling::default());
            client::lease(pool.into(), target, previous, end.clone())
        })
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[track_caller]
fn given(process: &mut Process, mark: usize) -> String {
    process.told("prefix", mark)["answer"]["prefix"].as_str().unwrap().to_owned()
}

#[track_caller]
fn granted(runtime: &tokio::runtime::Runtime, grants: &mut watch::Receiver<Option<Grant>>, wanted: &str) {
    let wanted = Some(Grant::of(wanted.parse().unwrap()));
    let waited = runtime.block_on(async {
        tokio::time::timeout(PATIENCE, grants.wait_for(|grant| *grant == wanted))
            .await
            .map(|told| told.is_ok())
    });
    assert_eq!(waited.ok(), Some(true), "waiting for {wanted:?}, there is {:?}", *grants.borrow());
}

/// Go's endpoints keep their prefixes over a crash of our service, and newcomers do not get them.
#[test]
fn a_go_endpoint_gets_its_prefix_again_after_our_service_was_killed() {
    let network = [set("NSM_PREFIX", "172.16.0.0/16"), set("VWIRE_IPAM_EXCLUDED", "172.16.1.9/32")];
    let mut prefixes = Prefixes::start("ipam-o", Kind::Vwire, &network);
    let mut one = prefixes.endpoint("one");
    assert_eq!(given(&mut one, 0), "172.16.0.0/24");
    let mut two = prefixes.endpoint("two");
    let answer = two.told("prefix", 0);
    assert_eq!(answer["answer"], json!({"prefix": "172.16.1.0/24", "excludePrefixes": ["172.16.1.9/32"]}));
    let marks = (one.mark(), two.mark());
    prefixes.service.take().unwrap().kill();
    one.told("stream-ended", marks.0);
    two.told("stream-ended", marks.1);
    // It is stopped from asking until a newcomer has been served.
    one.signal("STOP");
    prefixes.begin();
    let mut third = prefixes.endpoint("third");
    assert_eq!(given(&mut third, 0), "172.16.2.0/24");
    one.signal("CONT");
    peers::until("all are served again", || {
        let figures = prefixes.mesh.admin("ipam", "/status")?.to_string();
        figures.contains("\"prefixes\":3").then_some(())
    });
    for (process, mark) in [(&one, marks.0), (&two, marks.1)] {
        assert_eq!(
            process.events(mark, |event| event["event"] == "prefix").len(),
            0,
            "no difference to tell"
        );
    }
    // One that has forgotten what it had gets the same, too.
    one.kill();
    let mut again = prefixes.endpoint("one");
    assert_eq!(given(&mut again, 0), "172.16.0.0/24");
}

/// What a Go client is told when it is refused; and nobody else is disturbed.
#[test]
fn a_go_endpoint_is_refused_with_the_reason() {
    let network = [set("NSM_PREFIX", "fd00::/63"), set("NSM_CLIENT_PREFIX_LEN", "64")];
    let mut prefixes = Prefixes::start("ipam-r", Kind::Vwire, &network);
    let mut one = prefixes.endpoint("one");
    assert_eq!(given(&mut one, 0), "fd00::/64");
    let mark = one.mark();
    one.ask("allocate fd00:0:0:1::/64 10.0.0.0/8", &["done"]);
    let answer = one.told("prefix", mark);
    assert_eq!(answer["answer"], json!({"prefix": "fd00:0:0:1::/64", "excludePrefixes": ["10.0.0.0/8"]}));
    let mut two = prefixes.endpoint("two");
    let refused = two.told("stream-ended", 0);
    assert_eq!(refused["code"], "ResourceExhausted", "{refused}");
    let told = refused["error"].as_str().unwrap();
    assert!(told.contains("2 /64 prefixes in fd00::/63: 2 are held, 0 are kept"), "{told}");
    // Given back, it is the other's.
    one.ask("delete fd00:0:0:1::/64", &["done"]);
    assert_eq!(given(&mut two, 0), "fd00:0:0:1::/64");
    for (command, code, told) in [
        ("undefined", "InvalidArgument", "type: UNDEFINED"),
        ("allocate everything", "InvalidArgument", "prefix: \"everything\""),
        ("delete nothing", "InvalidArgument", "prefix: \"nothing\""),
    ] {
        let mark = one.mark();
        one.ask(command, &["done"]);
        let ended = one.told("stream-ended", mark);
        assert_eq!(ended["code"], code, "{ended}");
        assert!(ended["error"].as_str().unwrap().contains(told), "{ended}");
        one.told("stream-began", mark);
    }
    assert!(two.events(0, |event| event["event"] == "prefix").len() == 1, "the other one is not disturbed");
}

/// Our endpoint's side asks Go's service, which forgets all at its end and gives what is asked for where it can.
#[test]
fn our_endpoint_keeps_its_prefix_with_gos_service() {
    let network = [set("NSM_PREFIX", "172.16.0.0/16"), set("NSM_CLIENT_PREFIX_LEN", "24")];
    let mut prefixes = Prefixes::start("ipam-g", Kind::Go, &network);
    let (runtime, end) = (runtime(), CancellationToken::new());
    let mut one = prefixes.lease(&runtime, "one", None, &end);
    granted(&runtime, &mut one, "172.16.0.0/24");
    let mut two = prefixes.lease(&runtime, "two", Some("172.16.7.0/24"), &end);
    granted(&runtime, &mut two, "172.16.7.0/24");
    prefixes.service.take().unwrap().kill();
    assert!(!one.has_changed().unwrap() && !two.has_changed().unwrap(), "what was given remains");
    prefixes.begin();
    let service = prefixes.service.as_mut().unwrap();
    for prefix in ["172.16.0.0/24", "172.16.7.0/24"] {
        let what = format!("{prefix} is given again");
        service.event(&what, 0, |event| event["event"] == "given" && event["answer"]["prefix"] == prefix);
    }
    let mut third = prefixes.lease(&runtime, "third", None, &end);
    granted(&runtime, &mut third, "172.16.1.0/24");
    assert!(!one.has_changed().unwrap() && !two.has_changed().unwrap(), "nothing is new to them");
    // Another network is told to all.
    prefixes.service.take().unwrap().kill();
    prefixes.settings[2] = set("NSM_PREFIX", "10.10.0.0/16");
    prefixes.begin();
    for grants in [&mut one, &mut two, &mut third] {
        let inside: IpNet = "10.10.0.0/16".parse().unwrap();
        let another =
            |grant: &Option<Grant>| grant.as_ref().is_some_and(|grant| inside.contains(&grant.prefix));
        let changed = runtime.block_on(async {
            tokio::time::timeout(PATIENCE, grants.wait_for(another)).await.map(|told| told.is_ok())
        });
        assert_eq!(changed.ok(), Some(true), "there is {:?}", *grants.borrow());
    }
    end.cancel();
}
