//! Endpoints of virtual networks (`vwire vl3`) as processes, by what may happen in their lives: they are not used any more, their clients
//! die while they are dead themselves, another prefix is granted, and another domain has the same. Needs root.

mod lab_support;

use std::path::Path;
use std::process::{Child, Command, Stdio};

use lab_support::{Pings, Run, inside, pings_once, until};
use serde_json::Value;
use vwire_control::cli::AdminClient;
use vwire_control::dataplane::client::Client;
use vwire_control::lab::{Lab, Silent, Spec};
use vwire_control::obs::{ConnectionView, Status};
use vwire_proto::dataplane::v1 as pb;

/// Two endpoints on two nodes, and a client at each.
const LAB: &str = r#"
name: vl3life
domains:
  - name: cluster
    ipam: 172.16.0.0/16
    nodes:
      - name: node-1
        vl3: [{name: a, services: [net, net-a]}]
        clients: [{name: one, services: ["kernel://net-a/nsm-1"]}]
      - name: node-2
        vl3: [{name: b, services: [net, net-b]}]
        clients: [{name: two, services: ["kernel://net-b/nsm-1"]}]
checks: []
"#;

fn so(is_so: bool, not: impl std::fmt::Debug) -> Result<(), String> {
    if is_so { Ok(()) } else { Err(format!("{not:?}")) }
}

async fn views(lab: &Lab, process: &str) -> Vec<ConnectionView> {
    AdminClient(lab.layout().admin(process)).get("/connections").await.unwrap_or_default()
}

/// A client's address, if its connection is up.
async fn address(lab: &Lab, client: &str) -> Option<String> {
    let views = views(lab, &format!("nsc-{client}")).await;
    let view = views.iter().find(|view| view.state == "UP")?;
    Some(view.client_addresses.first()?.split('/').next()?.to_owned())
}

async fn report(lab: &Lab, endpoint: &str) -> Value {
    let admin = AdminClient(lab.layout().admin(&format!("vl3-{endpoint}")));
    admin.get::<Status>("/status").await.map_or(Value::Null, |status| Value::Object(status.reports))
}

/// What an endpoint says of another.
async fn peer(lab: &Lab, endpoint: &str, name: &str) -> Value {
    let report = report(lab, endpoint).await;
    let peers = report["peers"].as_array().cloned().unwrap_or_default();
    let named = |peer: &Value| peer["name"].as_str().is_some_and(|one| one.split('@').next() == Some(name));
    peers.into_iter().find(named).unwrap_or_default()
}

async fn linked(lab: &Lab, endpoint: &str, name: &str) {
    until(&format!("{endpoint} is linked with {name}"), async || {
        let peer = peer(lab, endpoint, name).await;
        so(peer["state"] == "linked", peer)
    })
    .await;
}

async fn reaches(lab: &Lab, from: &str, to: &str) {
    until(&format!("{from} reaches {to}"), async || {
        so(pings_once(lab, from, to), inside(lab, from, &["ip", "route"]))
    })
    .await;
}

fn log(lab: &Lab, process: &str) -> String {
    std::fs::read_to_string(lab.layout().log(process)).unwrap()
}

fn runs(lab: &Lab, process: &str) -> bool {
    lab.processes().iter().any(|(place, runs)| *runs && place.name == process)
}

fn signal(lab: &Lab, process: &str, signal: &str) {
    let processes = lab.processes();
    let (place, _) = processes.iter().find(|(place, _)| place.name == process).expect("the lab has it");
    assert!(Command::new("kill").args([signal, &place.pid.to_string()]).status().unwrap().success());
}

/// Each port's frames, and its routes, by the engine of an endpoint.
async fn engine(lab: &Lab, endpoint: &str) -> pb::State {
    let (client, _events) = Client::new(&lab.layout().engine(endpoint), None);
    client.snapshot().await.unwrap().state.unwrap()
}

/// Payload ETHERNET, for clients such as DPDK's driver: the endpoints' links with each other carry frames, too, and each finds the other's
/// hardware address.
#[tokio::test]
async fn endpoints_with_ethernet_payload_are_linked_by_frames() {
    let mut spec: Spec = LAB.parse().unwrap();
    let run = Run::of(&mut spec, "vl3frames");
    for node in &mut spec.domains[0].nodes {
        node.vl3[0].env.insert("NSM_PAYLOAD".into(), "ETHERNET".into());
    }
    let lab = run.up(&spec).await;
    linked(&lab, "a", "b").await;
    linked(&lab, "b", "a").await;
    let mut links = 0;
    for endpoint in ["a", "b"] {
        for port in engine(&lab, endpoint).await.ports {
            let Some(pb::port::Kind::Memif(memif)) = port.kind else { panic!("{port:?}") };
            assert_eq!(memif.mode(), pb::Mode::Ethernet, "{endpoint}: {}", port.name);
            links += usize::from(port.name.starts_with("to."));
        }
    }
    assert_eq!(links, 1, "one of them has dialled");
    for (from, to) in [("one", "two"), ("two", "one")] {
        let to = address(&lab, to).await.unwrap();
        reaches(&lab, from, &to).await;
        let counted = Pings::count(&lab, from, &to, 50).end().await;
        assert_eq!(vwire_control::lab::pings::lost(&counted, 50), [0; 0], "{counted}");
    }
    lab.down(&Silent).await.unwrap();
}

/// An endpoint that nobody uses ends by itself, though it is linked with another and has an interface of its own. One with a client stays,
/// until that is gone.
#[tokio::test]
async fn an_endpoint_ends_when_it_has_no_client_whatever_links_it_has() {
    let mut spec: Spec = LAB.parse().unwrap();
    let run = Run::of(&mut spec, "vl3idle");
    let nodes = &mut spec.domains[0].nodes;
    nodes[1].clients.clear();
    for (node, time) in nodes.iter_mut().zip(["8s", "3s"]) {
        node.vl3[0].env.insert("NSM_IDLE_TIMEOUT".into(), time.into());
    }
    let lab = run.up(&spec).await;
    reaches(&lab, "one", "172.16.0.0").await;
    let pings = Pings::on_and_on(&lab, "one", "172.16.0.0");
    until("the endpoint without a client ends", async || {
        so(!runs(&lab, "vl3-b"), peer(&lab, "a", "b").await)
    })
    .await;
    let said = log(&lab, "vl3-b");
    assert!(said.contains("no connection for so long; ending"), "{said}");
    assert!(
        said.contains("links to a peer") || said.contains("a peer's link to us"),
        "it was linked: {said}"
    );
    assert!(said.contains("name server address="), "it had an interface of its own: {said}");
    until("the other one knows", async || {
        let peer = peer(&lab, "a", "b").await;
        so(peer.is_null(), peer)
    })
    .await;
    // Twenty a second: longer than the other's time.
    pings.answered(240).await;
    assert!(runs(&lab, "vl3-a"), "{}", log(&lab, "vl3-a"));
    let (answered, lost) = pings.interrupt().await;
    assert_eq!(lost, [0; 0], "of {answered}");
    signal(&lab, "nsc-one", "-TERM");
    until("it ends after its client has", async || so(!runs(&lab, "vl3-a"), ())).await;
    assert!(engine(&lab, "a").await.ports.is_empty());
    lab.down(&Silent).await.unwrap();
}

/// A client dies while its endpoint is dead, and its node gives its connection up meanwhile, so that nobody is left who would close it.
/// What the next process of the endpoint finds of it in the engine ends with the token that it was asked for with, and nothing else does.
#[tokio::test]
async fn what_is_found_again_of_a_client_that_died_meanwhile_ends_with_its_token() {
    let mut spec: Spec = LAB.parse().unwrap();
    let run = Run::of(&mut spec, "vl3expiry");
    spec.domains[0].nodes.truncate(1);
    let node = &mut spec.domains[0].nodes[0];
    node.vl3[0].env.insert("VWIRE_VL3_OWN_INTERFACE".into(), "false".into());
    let life = |life: &str| [("NSM_MAX_TOKEN_LIFETIME".to_owned(), life.to_owned())];
    // A hop gives up a Request's time (15 s) before the end: long enough for the endpoint to be back.
    node.env.extend(life("30s"));
    let mut short = node.clients[0].clone();
    short.name = "short".into();
    short.env.extend(life("8s"));
    node.clients.push(short);
    let mut lab = run.up(&spec).await;
    let (stays, goes) = (address(&lab, "one").await.unwrap(), address(&lab, "short").await.unwrap());
    assert_eq!(views(&lab, "vl3-a").await.len(), 2);
    reaches(&lab, "one", "172.16.0.0").await;
    let pings = Pings::on_and_on(&lab, "one", "172.16.0.0");
    lab.kill("vl3-a").await.unwrap();
    lab.kill("nsc-short").await.unwrap();
    until("its node gives it up", async || {
        let views = views(&lab, "node-node-1").await;
        so(
            !views.is_empty()
                && views.iter().all(|view| !view.client_addresses.contains(&format!("{goes}/32"))),
            views,
        )
    })
    .await;
    assert_eq!(engine(&lab, "a").await.ports.len(), 2, "the engine has both, dead or not");
    lab.restart("vl3-a").await.unwrap();
    assert_eq!(log(&lab, "vl3-a").matches("taken over").count(), 2);
    until("that of the dead one ends", async || {
        let views = views(&lab, "vl3-a").await;
        so(views.len() == 1, views)
    })
    .await;
    let said = log(&lab, "vl3-a");
    assert_eq!(said.matches("nobody has refreshed it since we started; it ends").count(), 1, "{said}");
    let left = engine(&lab, "a").await;
    assert_eq!(left.ports.len(), 1, "{:?}", left.ports);
    let routes: Vec<&String> = left.domains[0].routes.iter().map(|route| &route.prefix).collect();
    assert_eq!(routes, [&format!("{stays}/32")]);
    // Its address is another's to have, and the one that is left has noticed nothing.
    assert_eq!(report(&lab, "a").await["free_addresses"], 254);
    let (answered, lost) = pings.interrupt().await;
    assert_eq!(lost, [0; 0], "of {answered}");
    lab.restart("nsc-short").await.unwrap();
    lab.connected("nsc-short", 1).await.unwrap();
    reaches(&lab, "short", &stays).await;
    lab.down(&Silent).await.unwrap();
}

/// A prefix service of the test's, in the place of a lab's; killed when dropped.
struct Prefixes(Child);

impl Prefixes {
    /// As an operator would: the same place, the same file of leases, and another NSM_PREFIX.
    async fn instead(lab: &Lab, domain: &str, prefix: &str) -> Self {
        let process = format!("vl3-ipam-{domain}");
        lab.kill(&process).await.unwrap();
        let spec = lab.spec().domains.iter().find(|one| one.name == domain).unwrap();
        let layout = lab.layout();
        let out = std::fs::File::options().append(true).open(layout.log(&process)).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "SIGKILL", env!("CARGO_BIN_EXE_vwire"), "vl3-ipam"]).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("SPIFFE_ENDPOINT_SOCKET", layout.workload_api(&process).to_string());
        command.env("NSM_LISTEN_ON", layout.ipam(spec, 0).to_string());
        command.env("NSM_PREFIX", prefix).env("NSM_CLIENT_PREFIX_LEN", "24");
        command.env("VWIRE_IPAM_STATE", layout.scratch(&format!("ipam-{domain}")));
        command.env("VWIRE_ADMIN", layout.admin(&process).to_string());
        command.stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(out);
        Self(command.spawn().unwrap())
    }
}

impl Drop for Prefixes {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Two domains whose prefix services have the same: their endpoints refuse each other, both say why, and the clients of each notice
/// nothing. When one gets another prefix, its clients get other addresses, and the network is one.
#[tokio::test]
async fn two_domains_of_one_prefix_are_refused_until_one_has_another() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/lab/vl3-domains.yaml");
    let mut spec = Spec::load(&file).unwrap();
    let run = Run::of(&mut spec, "vl3same");
    for domain in &mut spec.domains {
        domain.ipam = vec!["172.16.0.0/17".parse().unwrap()];
        let node = &mut domain.nodes[0];
        let mut more = node.clients[0].clone();
        more.name += "-more";
        node.clients.push(more);
    }
    let lab = run.up(&spec).await;
    let prefixes = async |endpoint: &str| report(&lab, endpoint).await["prefixes"].to_string();
    assert_eq!([prefixes("vl3-1").await, prefixes("vl3-2").await], [r#"["172.16.0.0/24"]"#; 2]);
    let before = [engine(&lab, "vl3-1").await.domains, engine(&lab, "vl3-2").await.domains];
    let (one, two) = (address(&lab, "one-more").await.unwrap(), address(&lab, "two-more").await.unwrap());
    reaches(&lab, "one", &one).await;
    reaches(&lab, "two", &two).await;
    let pings = [Pings::on_and_on(&lab, "one", &one), Pings::on_and_on(&lab, "two", &two)];
    let why = "it announces 172.16.0.0/24, which overlaps 172.16.0.0/24, our own prefix: each domain's IPAM needs a prefix of its own";
    // One of them dials, and hears why it is refused; the other one has refused it. Which one: who was first.
    for (at, other) in [("vl3-1", "vl3-2"), ("vl3-2", "vl3-1")] {
        until(&format!("{at} says why it is not linked with {other}"), async || {
            let peer = peer(&lab, at, other).await;
            let told = peer["error"].as_str().or(peer["last_error"]["text"].as_str()).unwrap_or_default();
            so(told.contains(why) && told.contains("it is not linked") && peer["state"] != "linked", peer)
        })
        .await;
        let said = log(&lab, &format!("vl3-{at}"));
        assert!(said.lines().any(|line| line.contains("WARN") && line.contains(why)), "{said}");
        // As an operator sees it.
        let mut status = Command::new(env!("CARGO_BIN_EXE_vwire"));
        let status =
            status.args(["status", "--admin", &lab.layout().admin(&format!("vl3-{at}")).to_string()]);
        let table = String::from_utf8(status.output().unwrap().stdout).unwrap();
        assert!(table.contains(why), "{table}");
    }
    for pings in pings {
        pings.answered(40).await;
        let (answered, lost) = pings.interrupt().await;
        assert_eq!(lost, [0; 0], "of {answered}");
    }
    let routes = |domains: &[pb::Domain]| domains[0].routes.clone();
    for (endpoint, before) in ["vl3-1", "vl3-2"].iter().zip(&before) {
        let now = engine(&lab, endpoint).await.domains;
        assert_eq!(routes(&now), routes(before), "{endpoint}");
    }

    let _prefixes = Prefixes::instead(&lab, "domain2", "172.16.128.0/17").await;
    until("the clients of the other domain have other addresses", async || {
        let both = [address(&lab, "two").await, address(&lab, "two-more").await];
        so(both.iter().all(|one| one.as_ref().is_some_and(|one| one.starts_with("172.16.128."))), both)
    })
    .await;
    linked(&lab, "vl3-1", "vl3-2").await;
    linked(&lab, "vl3-2", "vl3-1").await;
    let two = address(&lab, "two").await.unwrap();
    reaches(&lab, "one", &two).await;
    reaches(&lab, "two-more", &one).await;
    assert_eq!(address(&lab, "one-more").await.unwrap(), one, "who need not change does not");
    for (at, other) in [("vl3-1", "vl3-2"), ("vl3-2", "vl3-1")] {
        let peer = peer(&lab, at, other).await;
        assert!(peer["error"].is_null(), "nothing is wrong any more: {peer}");
    }
    lab.down(&Silent).await.unwrap();
}
