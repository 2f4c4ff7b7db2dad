//! A vL3 endpoint (`vwire vl3`) and Go: Go's clients of it, Go's vL3 elements as another endpoint of the network that asks it, and Go's
//! prefix service behind it, with traffic. Needs root and huge pages for the packet engines.

mod peers;

use std::path::PathBuf;

use peers::build;
use peers::client::Client;
use peers::mesh::{Mesh, Plan, Setting, set};
use peers::netns::Netns;
use peers::process::Process;
use peers::{Kind, until};
use serde_json::{Value, json};

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

/// The name servers and search domains that a connection was told.
fn name_servers(connection: &Value) -> Vec<(Vec<&str>, Vec<&str>)> {
    let configs = connection["context"]["dnsContext"]["configs"].as_array();
    configs
        .into_iter()
        .flatten()
        .map(|config| (texts(&config["dnsServerIps"]), texts(&config["searchDomains"])))
        .collect()
}

/// Waits until a name server says so, to a `dig` in this namespace.
#[track_caller]
fn resolves(space: &Netns, server: &str, question: &str, wanted: &str) {
    until(&format!("{server} says {wanted} of {question} in {}", space.name), || {
        let dig =
            space.command(&format!("dig @{server} +tries=1 +time=2 +short {question}")).output().unwrap();
        let said = String::from_utf8_lossy(&dig.stdout).trim().to_owned();
        (said == wanted).then_some(())
    });
}

/// Waits until a client that refreshes is told this MTU.
#[track_caller]
fn told_mtu(client: &mut Client, mtu: u32) {
    until(&format!("{} is told MTU {mtu}", client.name), || {
        let told = client.process.ask("refresh 0", &["connected", "request-failed"]);
        (told["connection"]["context"]["MTU"] == mtu).then_some(())
    });
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
    // Others that were given what is ours already, what is another peer's, and what is of no network of ours.
    for (name, prefix, why) in [
        ("go-other", "172.16.1.128/25", "172.16.1.128/25, which overlaps 172.16.1.0/24, our own prefix"),
        ("go-thief", "172.16.2.0/25", "172.16.2.0/25, which overlaps 172.16.2.0/24 of peer go-vl3"),
        ("go-stranger", "10.9.0.0/24", "10.9.0.0/24, which is outside the network's 172.16.0.0/16"),
    ] {
        let mut thief = GoEndpoint::start(&mut mesh, name, &[set("NSM_PREFIX", prefix)]);
        let refused = thief.process.ask("peer vl3-1 net", &["answered", "not-answered", "peer-failed"]);
        let told = refused["error"].as_str().unwrap_or_default();
        assert!(told.contains(why) && told.contains("it is not linked"), "{refused}");
        let status = mesh.admin("vl3-1", "/status").unwrap();
        let line = status["reports"]["peers"].as_array().unwrap().iter().find(|peer| peer["name"] == name);
        assert!(
            line.is_some_and(|line| line["error"].as_str().unwrap_or_default().contains(why)),
            "{status}"
        );
        pinged(&client.space, "172.16.2.0");
        pinged(&client.space, "172.16.1.0");
    }
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

/// Names that do not depend on the service: each endpoint here has one of its own.
const NAMES: &str = "{{ index .Labels \"podName\" }}.vl3.";

/// A Go client of an endpoint's own service.
fn client_of(mesh: &mut Mesh, service: &str, name: &str, settings: &[Setting]) -> Client {
    let mut client = mesh.client(0, name, &format!("kernel://{service}/nsm-1?podName={name}"), settings);
    client.process.told("connected", 0);
    client
}

/// Each client is told its own endpoint's name server, which begins so, and which knows the other endpoint's client as its own.
#[track_caller]
fn both_find_both(clients: &mut [Client; 2], servers: [&str; 2]) {
    let mut all = Vec::new();
    for (client, server) in clients.iter_mut().zip(servers) {
        let connection =
            client.process.ask("refresh 0", &["connected", "request-failed"])["connection"].clone();
        let told = name_servers(&connection);
        assert!(told.len() == 1 && told[0].1 == ["vl3"], "{connection}");
        assert!(told[0].0.len() == 1 && told[0].0[0].starts_with(server), "{connection}");
        let address = texts(&connection["context"]["ipContext"]["srcIpAddrs"]).concat();
        let address = address.split('/').next().unwrap().to_owned();
        all.push((client.name.clone(), address, told[0].0[0].to_owned()));
    }
    for (client, own) in clients.iter().zip(&all) {
        for (name, address, _) in &all {
            resolves(&client.space, &own.2, &format!("{name}.vl3 A"), address);
        }
    }
}

/// We have dialled Go's endpoint. Its elements tell their clients our network's values, and we tell ours theirs: the MTU of the smallest
/// link, whosever it is, and name servers that know both's clients.
#[test]
fn mtu_and_names_are_one_networks_where_we_dial_go() {
    let mut mesh = mesh("vl3g-v");
    // Whoever registers a service has it; both are endpoints of one.
    let mut registry = mesh.registry_client("services", Vec::new());
    for name in ["net", "ours", "theirs"] {
        registry.call("register", "ns", &json!({"name": name, "payload": "IP"})).unwrap();
    }
    let mut theirs = GoEndpoint::start(
        &mut mesh,
        "go-vl3",
        &[
            set("NSM_SERVICE_NAMES", "net,theirs"),
            set("NSM_PREFIX", "172.16.2.0/24"),
            set("NSM_DNS_TEMPLATES", NAMES),
        ],
    );
    let mark = theirs.process.mark();
    let ours = [
        set("NSM_REGISTER_SERVICE", "false"),
        set("NSM_SERVICE_NAMES", "net,ours"),
        set("VWIRE_VL3_PREFIX", "172.16.1.0/24"),
        set("NSM_DNS_TEMPLATES", NAMES),
    ];
    let _ours = Endpoint::start(&mut mesh, "vl3-1", &ours);
    theirs.process.told("request", mark);
    let mut clients = [client_of(&mut mesh, "ours", "near", &[]), client_of(&mut mesh, "theirs", "far", &[])];
    both_find_both(&mut clients, ["172.16.1.", "172.16.2.0"]);
    let [mut near, mut far] = clients;
    // A smaller link at Go's endpoint, and then one at ours.
    let _small = client_of(&mut mesh, "theirs", "small", &[set("NSM_MTU", "1400")]);
    told_mtu(&mut near, 1400);
    told_mtu(&mut far, 1400);
    assert_eq!(mesh.admin("vl3-1", "/status").unwrap()["reports"]["mtu"], 1400);
    let _smaller = client_of(&mut mesh, "ours", "smaller", &[set("NSM_MTU", "1300")]);
    told_mtu(&mut far, 1300);
    told_mtu(&mut near, 1300);
}

/// The same where Go's client elements have dialled ours. (Go's client and server elements do not tell each other what they hear of MTUs, so
/// Go's own clients are not told here.)
#[test]
fn mtu_and_names_are_one_networks_where_go_dials_us() {
    let mut mesh = mesh("vl3g-w");
    let ours = [
        set("NSM_SERVICE_NAMES", "net,ours"),
        set("VWIRE_VL3_PREFIX", "172.16.1.0/24"),
        set("NSM_DNS_TEMPLATES", NAMES),
    ];
    let _ours = Endpoint::start(&mut mesh, "vl3-1", &ours);
    let near = client_of(&mut mesh, "ours", "near", &[set("NSM_MTU", "1400")]);
    let mut theirs = GoEndpoint::start(
        &mut mesh,
        "go-vl3",
        &[
            set("NSM_SERVICE_NAMES", "theirs"),
            set("NSM_PREFIX", "172.16.2.0/24"),
            set("NSM_DNS_TEMPLATES", NAMES),
            set("NSM_REGISTER_SERVICE", "true"),
        ],
    );
    let mark = theirs.process.mark();
    let answer = theirs.process.ask("peer vl3-1 net", &["answered", "peer-failed"]);
    assert_eq!(answer["connection"]["context"]["MTU"], 1400, "{answer}");
    let told = name_servers(&answer["connection"]);
    let ours =
        |(servers, _): &(Vec<&str>, Vec<&str>)| servers.len() == 1 && servers[0].starts_with("172.16.1.");
    assert!(told.iter().any(ours), "{answer}");
    let far = client_of(&mut mesh, "theirs", "far", &[]);
    both_find_both(&mut [near, far], ["172.16.1.", "172.16.2.0"]);
    let _smaller = client_of(&mut mesh, "ours", "smaller", &[set("NSM_MTU", "1300")]);
    theirs.process.event("an answer with the smaller MTU", mark, |event| {
        event["event"] == "answered" && event["connection"]["context"]["MTU"] == 1300
    });
}
