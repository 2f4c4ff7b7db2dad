//! A vL3 endpoint (`vwire vl3`) and Go: Go's clients of it, Go's vL3 elements as another endpoint of the network that asks it, and Go's
//! prefix service behind it, with traffic. Needs root and huge pages for the packet engines.

mod peers;

use std::path::PathBuf;

use peers::build;
use peers::mesh::{Mesh, Plan, Setting, set};
use peers::netns::Netns;
use peers::process::Process;
use peers::{Kind, until};
use serde_json::Value;

/// A mesh of ours, with Go's workloads.
fn mesh(tag: &str) -> Mesh {
    Mesh::start(tag, Plan { nsc: Kind::Go, nse: Kind::Vwire, ..Plan::of(Kind::Vwire) })
}

/// `vwire vl3` on the first node, with an engine of its own.
struct Endpoint {
    process: Process,
    /// The test's to end: one that the endpoint starts itself outlives it.
    _engine: Process,
    _space: Netns,
}

impl Endpoint {
    fn start(mesh: &mut Mesh, name: &str, settings: &[Setting]) -> Self {
        let space = mesh.workload_space(name);
        let own = mesh.directory().join(format!("p-{name}"));
        let mut all = vec![
            set("NSM_NAME", name),
            set("NSM_CONNECT_TO", mesh.nsmgr_url(0)),
            set("NSM_LISTEN_ON", format!("unix://{}/s", own.display())),
            set("NSM_SERVICE_NAMES", "net"),
        ];
        all.extend_from_slice(settings);
        let (engine, socket) = engine(mesh, name, &space);
        all.push(set("VWIRE_DATAPLANE", format!("unix://{}", socket.display())));
        let process = mesh.role(Kind::Vwire, "vl3", name, &space, &[&own], all);
        mesh.wait_registered(name);
        Self { process, _engine: engine, _space: space }
    }
}

fn engine(mesh: &Mesh, name: &str, space: &Netns) -> (Process, PathBuf) {
    let at = |ending: &str| mesh.directory().join(format!("engine-{name}.{ending}"));
    let (config, socket) = (at("toml"), at("sock"));
    let text = format!(
        "[workers]\ncores = [0]\n[api]\nsocket = \"{0}\"\n[stats]\npath = \"{0}.stats\"\n",
        socket.display()
    );
    std::fs::write(&config, text).unwrap();
    let arguments = ["--config", config.to_str().unwrap()];
    let none: [Setting; 0] = [];
    let program = build::dataplane();
    let engine = Process::start(
        &format!("engine-{name}"),
        &space.name,
        mesh.directory(),
        &[],
        &program,
        &arguments,
        &none,
    );
    until("the engine's socket", || socket.exists().then_some(()));
    (engine, socket)
}

/// Go's vL3 elements as an endpoint of the same service.
struct GoEndpoint {
    process: Process,
    space: Netns,
}

impl GoEndpoint {
    fn start(mesh: &mut Mesh, name: &str, settings: &[Setting]) -> Self {
        let space = mesh.workload_space(name);
        let own = mesh.directory().join(format!("p-{name}"));
        let mut all = vec![
            set("NSM_NAME", name),
            set("NSM_CONNECT_TO", mesh.nsmgr_url(0)),
            set("NSM_LISTEN_ON", format!("unix://{}/s", own.display())),
            set("NSM_SERVICE_NAMES", "net"),
            set("NSM_PAYLOAD", "IP"),
            set("NSM_REGISTER_SERVICE", "false"),
        ];
        all.extend_from_slice(settings);
        let mut process = mesh.role(Kind::Go, "vl3", name, &space, &[&own], all);
        process.told("ready", 0);
        Self { process, space }
    }
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Prefix and next hop.
fn routes(value: &Value) -> Vec<(&str, &str)> {
    let text = |route: &'_ Value, key: &str| route[key].as_str().unwrap_or_default().len();
    let all = value.as_array().into_iter().flatten();
    all.map(|route| {
        assert!(text(route, "prefix") > 0, "{route}");
        (route["prefix"].as_str().unwrap(), route["nextHop"].as_str().unwrap_or_default())
    })
    .collect()
}

#[track_caller]
fn pinged(space: &Netns, address: &str) {
    until(&format!("{address} answers in {}", space.name), || space.pings(address).then_some(()));
}

/// Go's clients get addresses and routes as from a Go endpoint, reach each other, keep them over refreshes, and take another prefix when
/// the (Go) prefix service gives one.
#[test]
fn go_clients_of_our_endpoint_with_gos_prefix_service() {
    let mut mesh = mesh("vl3g-c");
    let url = format!("unix://{}/ipam.sock", mesh.directory().display());
    let space = mesh.workload_space("ipam");
    let settings = |prefix: &str| vec![set("NSM_LISTEN_ON", &url), set("NSM_PREFIX", prefix)];
    let mut service = mesh.role(Kind::Go, "vl3-ipam", "ipam", &space, &[], settings("172.16.0.0/16"));
    service.told("ready", 0);
    let mut endpoint = Endpoint::start(&mut mesh, "vl3-1", &[set("NSM_PREFIX_SERVER_URL", &url)]);
    let mut clients = ["one", "two"].map(|name| mesh.client(0, name, "kernel://net/nsm-1", &[]));
    let mut addresses = Vec::new();
    for client in &mut clients {
        let told = client.process.told("connected", 0);
        let context = &told["connection"]["context"]["ipContext"];
        assert_eq!(texts(&context["dstIpAddrs"]), ["172.16.0.0/32"], "{told}");
        let wanted = [
            ("172.16.0.0/32", "172.16.0.0"),
            ("172.16.0.0/24", "172.16.0.0"),
            ("172.16.0.0/16", "172.16.0.0"),
        ];
        assert_eq!(routes(&context["srcRoutes"]), wanted, "{told}");
        let [address] = texts(&context["srcIpAddrs"])[..] else { panic!("{told}") };
        assert_eq!(routes(&context["dstRoutes"]), [(address, "")], "{told}");
        addresses.push(address.split('/').next().unwrap().to_owned());
    }
    // The endpoint has one for itself, too: its name server's.
    assert!(addresses.iter().all(|address| address.starts_with("172.16.0.") && address != "172.16.0.0"));
    assert_ne!(addresses[0], addresses[1]);
    for (client, other) in [(&clients[0], &addresses[1]), (&clients[1], &addresses[0])] {
        pinged(&client.space, "172.16.0.0");
        pinged(&client.space, other);
    }
    let again = clients[0].process.ask("refresh 0", &["connected", "request-failed"]);
    assert_eq!(
        texts(&again["connection"]["context"]["ipContext"]["srcIpAddrs"]),
        [format!("{}/32", addresses[0])]
    );
    // The prefix service gives others from now on.
    service.kill();
    let mut service = mesh.role(Kind::Go, "vl3-ipam", "ipam", &space, &[], settings("10.10.0.0/16"));
    service.told("ready", 0);
    for client in &mut clients {
        let moved = until("the client has an address of the new prefix", || {
            let told = client.process.ask("refresh 0", &["connected", "request-failed"]);
            let address = texts(&told["connection"]["context"]["ipContext"]["srcIpAddrs"]).join(",");
            address.starts_with("10.10.0.").then_some(told)
        });
        let context = &moved["connection"]["context"]["ipContext"];
        assert_eq!(texts(&context["dstIpAddrs"]), ["10.10.0.0/32"], "the old one is gone: {moved}");
        let wanted =
            [("10.10.0.0/32", "10.10.0.0"), ("10.10.0.0/24", "10.10.0.0"), ("10.10.0.0/16", "10.10.0.0")];
        assert_eq!(routes(&context["srcRoutes"]), wanted, "{moved}");
        pinged(&client.space, "10.10.0.0");
    }
    assert!(endpoint.process.runs());
}

/// Go's vL3 client elements ask our endpoint: as a peer, which has addresses of its own and says what is behind it. Traffic of our clients
/// reaches it. One whose prefix overlaps ours is refused with both prefixes, and nobody else is disturbed.
#[test]
fn a_go_endpoint_asks_ours() {
    let mut mesh = mesh("vl3g-p");
    let _ours = Endpoint::start(&mut mesh, "vl3-1", &[set("VWIRE_VL3_PREFIX", "172.16.1.0/24")]);
    let mut client = mesh.client(0, "one", "kernel://net/nsm-1", &[]);
    let told = client.process.told("connected", 0);
    let address = texts(&told["connection"]["context"]["ipContext"]["srcIpAddrs"]).concat();
    pinged(&client.space, "172.16.1.0");
    let mut theirs = GoEndpoint::start(&mut mesh, "go-vl3", &[set("NSM_PREFIX", "172.16.2.0/24")]);
    let answer = theirs.process.ask("peer vl3-1 net", &["answered", "peer-failed"]);
    assert_eq!(answer["event"], "answered", "{answer}");
    let context = &answer["connection"]["context"]["ipContext"];
    assert_eq!(texts(&context["srcIpAddrs"]), ["172.16.2.0/32"], "it gets none of ours: {answer}");
    assert_eq!(texts(&context["dstIpAddrs"]), ["172.16.1.0/32"], "{answer}");
    let wanted =
        [("172.16.1.0/32", "172.16.1.0"), ("172.16.1.0/24", "172.16.1.0"), ("172.16.1.0/16", "172.16.1.0")];
    assert_eq!(routes(&context["srcRoutes"]), wanted, "{answer}");
    let behind = routes(&context["dstRoutes"]);
    assert!(behind.contains(&("172.16.2.0/24", "172.16.2.0")), "{answer}");
    pinged(&client.space, "172.16.2.0");
    pinged(&theirs.space, address.split('/').next().unwrap());
    // Another domain's endpoint that was given what is ours already.
    let mut thief = GoEndpoint::start(&mut mesh, "go-other", &[set("NSM_PREFIX", "172.16.1.128/25")]);
    let refused = thief.process.ask("peer vl3-1 net", &["answered", "not-answered", "peer-failed"]);
    let told = refused["error"].as_str().unwrap_or_default();
    assert!(told.contains("172.16.1.128/25") && told.contains("overlaps 172.16.1.0/24"), "{refused}");
    pinged(&client.space, "172.16.2.0");
    pinged(&client.space, "172.16.1.0");
}

/// Our endpoint asks Go's, which was there before, as Go's endpoints ask each other: with an address of its own, what is behind it, and its
/// name server; Go's server gives it no address, and the way back.
#[test]
fn our_endpoint_asks_gos() {
    let mut mesh = mesh("vl3g-o");
    let settings = [set("NSM_PREFIX", "172.16.2.0/24"), set("NSM_REGISTER_SERVICE", "true")];
    let mut theirs = GoEndpoint::start(&mut mesh, "go-vl3", &settings);
    let mark = theirs.process.mark();
    let ours = [set("VWIRE_VL3_PREFIX", "172.16.1.0/24"), set("NSM_REGISTER_SERVICE", "false")];
    let _ours = Endpoint::start(&mut mesh, "vl3-1", &ours);
    let told = theirs.process.told("request", mark);
    let context = &told["connection"]["context"]["ipContext"];
    assert_eq!(texts(&context["srcIpAddrs"]), ["172.16.1.0/32"], "it gets none of theirs: {told}");
    assert_eq!(texts(&context["dstIpAddrs"]), ["172.16.2.0/32"], "{told}");
    assert!(routes(&context["dstRoutes"]).contains(&("172.16.1.0/24", "172.16.1.0")), "{told}");
    assert!(routes(&context["srcRoutes"]).contains(&("172.16.2.0/24", "172.16.2.0")), "{told}");
    pinged(&theirs.space, "172.16.1.0");
}
