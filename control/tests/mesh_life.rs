//! A mesh of `vwire` seen from outside: what tools find at each role, older TLS, logs without secrets, SVIDs that rotate.

mod peers;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Child;

use peers::mesh::{Mesh, Plan, set};
use peers::netns::Netns;
use peers::process::Process;
use peers::{Kind, until};
use serde_json::Value;
use vwire_control::lab::pings;

const SERVICE: &str = "kernel://icmp-responder/nsm-1";

const NETWORK_SERVICE: [&str; 3] = [
    "connection.MonitorConnection/MonitorConnections",
    "networkservice.NetworkService/Close",
    "networkservice.NetworkService/Request",
];
const REGISTRY: [&str; 6] = [
    "registry.NetworkServiceEndpointRegistry/Find",
    "registry.NetworkServiceEndpointRegistry/Register",
    "registry.NetworkServiceEndpointRegistry/Unregister",
    "registry.NetworkServiceRegistry/Find",
    "registry.NetworkServiceRegistry/Register",
    "registry.NetworkServiceRegistry/Unregister",
];

fn far_address(connection: &Value) -> String {
    let address = connection.pointer("/context/ipContext/dstIpAddrs/0").and_then(Value::as_str).unwrap();
    address.split('/').next().unwrap().to_owned()
}

/// The Workload API, in no package.
const WORKLOAD: [&str; 5] = [
    "SpiffeWorkloadAPI/FetchJWTBundles",
    "SpiffeWorkloadAPI/FetchJWTSVID",
    "SpiffeWorkloadAPI/FetchX509Bundles",
    "SpiffeWorkloadAPI/FetchX509SVID",
    "SpiffeWorkloadAPI/ValidateJWTSVID",
];

/// Each role says by reflection (both versions of it) what it serves, with the methods, and that each service is well.
#[test]
fn tools_find_the_services_of_each_role_and_that_they_are_well() {
    let mut mesh = Mesh::start("refl", Plan::of(Kind::Vwire));
    let endpoint = mesh.endpoint(0, "nse-1", &[]);
    let node = start_node(&mut mesh);
    let of_forwarder =
        |process: &Process, socket: &Path| format!("unix://{}", process.path(socket).display());
    let socket = mesh.directory().join("p-forwarder-1-1/s");
    let forwarder = of_forwarder(&mesh.nodes[0].forwarders[0].process, &socket);
    let manager: Vec<&str> = NETWORK_SERVICE.into_iter().chain(REGISTRY).collect();
    let ca = start_issuer(&mut mesh);
    let between_domains = start_between_domains(&mut mesh);
    // v0.2's other calls are in a service whose name is v1's, too: it is described as v1's.
    let discovery = "registry.NetworkServiceDiscovery/FindNetworkService";
    let with_discovery: Vec<&str> = std::iter::once(discovery).chain(REGISTRY).collect();
    let between = |role: &str| format!("unix://{}/{role}.sock", mesh.directory().display());
    for (role, url, methods) in [
        ("ca", format!("unix://{}/ca.sock", mesh.directory().display()), WORKLOAD.to_vec()),
        ("registry", mesh.registry_url().to_owned(), REGISTRY.to_vec()),
        ("nsmgr", mesh.nsmgr_url(0), manager.clone()),
        ("forwarder", forwarder, NETWORK_SERVICE.to_vec()),
        ("nse", endpoint.url(), NETWORK_SERVICE.to_vec()),
        ("node", format!("unix://{}/node.sock", mesh.directory().display()), manager),
        ("nsmgr-proxy", between("nsmgr-proxy"), NETWORK_SERVICE.into_iter().chain(REGISTRY).collect()),
        ("registry-proxy-dns", between("registry-proxy-dns"), REGISTRY.to_vec()),
        ("proxy", between("proxy"), NETWORK_SERVICE.into_iter().chain(REGISTRY).collect()),
        ("nsmrs", between("nsmrs"), with_discovery),
        ("node's forwarder", format!("unix://{}", node_forwarder(&mesh).display()), NETWORK_SERVICE.to_vec()),
    ] {
        let services: BTreeSet<&str> =
            methods.iter().map(|method| method.split_once('/').unwrap().0).collect();
        let services: Vec<&str> = services.into_iter().collect();
        let name = format!("prober-{}", role.replace([' ', '\''], "-"));
        let plain = [set("GOPEERS_PLAIN", (role == "ca").to_string())];
        let probed = mesh.probe(&name, &url, &services.join(","), &plain).told("probed", 0);
        let nsm = |names: &Value| -> Vec<String> {
            let names = names.as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned());
            names.filter(|name| !name.starts_with("grpc.")).collect()
        };
        assert_eq!(nsm(&probed["methods"]), methods, "{role}");
        assert_eq!(nsm(&probed["services_v1alpha"]), services, "{role}");
        let health = probed["methods"].as_array().unwrap().contains(&"grpc.health.v1.Health/Check".into());
        assert!(health, "{role}: {probed}");
        for service in services.into_iter().chain([""]) {
            assert_eq!(probed["health"][service], "SERVING", "{role} {service}: {probed}");
        }
    }
    drop((node, ca, between_domains));
}

/// `vwire ca` beside the mesh's own issuer.
fn start_issuer(mesh: &mut Mesh) -> Process {
    let socket = mesh.directory().join("ca.sock");
    let settings = vec![
        set("VWIRE_CA_TRUST_DOMAIN", "example.org"),
        set("VWIRE_CA_LISTEN_ON", format!("unix://{}", socket.display())),
    ];
    let issuer = mesh.role_on(Kind::Vwire, "ca", "ca", 0, settings);
    until("the issuer's socket", || socket.exists().then_some(()));
    issuer
}

/// What stands between domains, beside the mesh: each listens at a socket of its name.
fn start_between_domains(mesh: &mut Mesh) -> Vec<Process> {
    let directory = mesh.directory().to_owned();
    let at = |role: &str| format!("unix://{}/{role}.sock", directory.display());
    let registry = mesh.registry_url().to_owned();
    let roles = ["registry-proxy-dns", "nsmgr-proxy", "proxy", "nsmrs"].map(|role| {
        let listen = if role == "nsmrs" { "NSMRS_API_ADDRESS" } else { "NSM_LISTEN_ON" };
        let mut settings = vec![set(listen, at(role))];
        match role {
            "nsmgr-proxy" => settings.push(set("NSM_REGISTRY_PROXY_URL", at("registry-proxy-dns"))),
            "nsmrs" => {}
            _ => settings.push(set("NSM_DNS_SERVER", "127.0.0.1:53")),
        }
        if matches!(role, "nsmgr-proxy" | "proxy") {
            settings.push(set("NSM_NAME", role));
            settings.push(set("NSM_REGISTRY_URL", registry.as_str()));
        }
        mesh.role_on(Kind::Vwire, role, role, 0, settings)
    });
    for role in ["registry-proxy-dns", "nsmgr-proxy", "proxy", "nsmrs"] {
        until(role, || directory.join(format!("{role}.sock")).exists().then_some(()));
    }
    roles.into()
}

/// `vwire node` on the mesh's first node, beside what is there.
fn start_node(mesh: &mut Mesh) -> Process {
    let directory = mesh.directory().display().to_string();
    let settings = vec![
        set("NSM_NAME", "node-x"),
        set("NSM_LISTEN_ON", format!("unix://{directory}/node.sock")),
        set("NSM_REGISTRY_URL", mesh.registry_url()),
        set("VWIRE_DATAPLANE", format!("unix://{directory}/engine-forwarder-1-1.sock")),
    ];
    let node = mesh.role_on(Kind::Vwire, "node", "node", 0, settings);
    mesh.wait_registered("node-x-forwarder");
    node
}

fn node_forwarder(mesh: &Mesh) -> std::path::PathBuf {
    mesh.directory().join("node.run/node-x-forwarder/listen.on.sock")
}

/// Go peers that speak TLS 1.2 and nothing newer: as workloads around our roles, and as registry and nsmgr between our workloads.
/// Descriptors travel by it, too.
#[test]
fn tls_1_2_alone_both_ways() {
    let old = set("GOPEERS_TLS", "1.2");
    let ours = Plan { nsc: Kind::Go, nse: Kind::Go, ..Plan::of(Kind::Vwire) };
    let theirs = Plan { registry: Kind::Go, nsmgr: Kind::Go, ..Plan::of(Kind::Vwire) };
    for plan in [ours, theirs] {
        let mut mesh = Mesh::start_with("tls12", plan, std::slice::from_ref(&old));
        let _endpoint = mesh.endpoint(0, "nse-1", std::slice::from_ref(&old));
        let mark = mesh.observer.mark();
        let mut client = mesh.client(0, "nsc", SERVICE, std::slice::from_ref(&old));
        let connection = client.connected(&mut mesh, mark);
        assert!(client.space.pings(&far_address(&connection)));
        client.close();
        mesh.observer.wait("the Close", mark, "nse-1", "nsc", |event| event.kind == "DELETE");
    }
}

/// What tokens and private keys look like: JWTs and their stand-in, PEM, and PKCS #8 of P-256 in base64, hexadecimal and as Rust
/// shows bytes.
const SECRETS: [&str; 7] = [
    "eyJ",
    "[token]",
    "PRIVATE KEY",
    "MIGHAgEAMBMGByqGSM49",
    "308187020100",
    "48, 129, 135, 2, 1, 0",
    r"0\x81\x87\x02\x01",
];

/// Everybody logs all there is, the second time with what the libraries say: no token and no key is in it, and what is about a
/// connection names it.
#[test]
fn nothing_secret_in_logs_at_trace() {
    logs_of_a_life("TRACE", &SECRETS);
    // Here tokens are in the libraries' text, and stand-ins take their place.
    let but_stand_ins: Vec<&str> = SECRETS.into_iter().filter(|secret| *secret != "[token]").collect();
    logs_of_a_life("trace,vwire_control=trace", &but_stand_ins);
}

fn logs_of_a_life(level: &'static str, secrets: &[&str]) {
    let plan = Plan { issuer: Kind::Vwire, log_level: level, ..Plan::of(Kind::Vwire) };
    let mut mesh = Mesh::start("trace", plan);
    let _endpoint = mesh.endpoint(0, "nse-1", &[]);
    let mark = mesh.observer.mark();
    let settings = [set("NSM_MAX_TOKEN_LIFETIME", "10s"), set("NSM_REQUEST_TIMEOUT", "3s")];
    let mut client = mesh.client(0, "nsc", SERVICE, &settings);
    client.connected(&mut mesh, mark);
    client.refresh(&mut mesh);
    // One that asks for what there is not.
    let mut second = mesh.client(0, "second", "kernel://nothing/nsm-1", &[]);
    until("the refusal", || {
        let status = mesh.admin("second", "/status")?;
        status["reports"]["sessions"]["second-0"]["last_error"].is_object().then_some(())
    });
    assert!(second.process.runs());
    second.end();
    client.close();
    mesh.observer.wait("the Close", mark, "nse-1", "nsc", |event| event.kind == "DELETE");
    for role in ["ca", "registry", "nsmgr-1", "forwarder-1-1", "nse-1", "nsc", "second"] {
        let log = std::fs::read(mesh.directory().join(format!("{role}.log"))).unwrap();
        let log = String::from_utf8_lossy(&log);
        for secret in secrets {
            let line = log.lines().find(|line| line.contains(secret));
            assert_eq!(line.map(|line| line.chars().take(400).collect::<String>()), None, "{role}: {secret}");
        }
        if ["nsc", "second"].contains(&role) {
            continue;
        }
        assert!(log.contains("TRACE") || log.contains("DEBUG"), "{role} logs next to nothing:\n{log}");
        if ["nsmgr-1", "forwarder-1-1", "nse-1"].contains(&role) {
            let named = log.lines().filter(|line| line.contains(r#"connection="nsc-0""#)).count();
            assert!(named >= 3, "{role} names the connection in {named} lines: two Requests, a Close");
        }
    }
}

/// A ping twenty times a second into a file, which is stopped at the end.
struct Pinging(Child, File);

impl Pinging {
    fn start(space: &Netns, address: &str) -> Self {
        let log = tempfile::tempfile().unwrap();
        let mut command = space.command(&format!("ping -n -i 0.05 {address}"));
        Self(command.stdout(log.try_clone().unwrap()).spawn().unwrap(), log)
    }

    /// Ends it: how many came back, and the numbers of those that were lost on the way.
    fn end(mut self) -> (usize, Vec<u32>) {
        peers::must(std::process::Command::new("kill").args(["-INT", &self.0.id().to_string()]));
        self.0.wait().unwrap();
        let mut said = String::new();
        self.1.rewind().unwrap();
        self.1.read_to_string(&mut said).unwrap();
        pings::answered(&said)
    }
}

impl Drop for Pinging {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The SVID of each role is renewed twice and more while packets flow: none is lost, nobody heals, refreshes go on, and new
/// clients come in.
#[test]
fn svids_rotate_under_a_vwire() {
    let plan = Plan { issuer: Kind::Vwire, svid_life: "10s", ..Plan::of(Kind::Vwire) };
    let mut mesh = Mesh::start("rotate", plan);
    let _endpoint = mesh.endpoint(0, "nse-1", &[]);
    let mark = mesh.observer.mark();
    // A connection ends before its caller's token by the time that a Request may take; and a token lives no longer than its SVID.
    let brief = [set("NSM_REQUEST_TIMEOUT", "2s")];
    let mut client = mesh.client(0, "nsc", SERVICE, &brief);
    let connection = client.connected(&mut mesh, mark);
    let interface = client.space.ip("-o link show nsm-1");
    let pinging = Pinging::start(&client.space, &far_address(&connection));
    for role in ["registry", "nsmgr-1", "forwarder-1-1", "nse-1", "nsc"] {
        let mut ends = BTreeSet::new();
        until(&format!("three SVIDs of {role}"), || {
            ends.extend(mesh.admin(role, "/status")?["svid_expires"].as_i64());
            (ends.len() >= 3).then_some(())
        });
    }
    client.refresh(&mut mesh);
    let (back, lost) = pinging.end();
    assert!(back > 20, "{back} pings are no test");
    assert_eq!(lost, [0; 0]);
    let late = mesh.observer.mark();
    let mut second = mesh.client(0, "second", SERVICE, &brief);
    let connection = second.connected(&mut mesh, late);
    assert!(second.space.pings(&far_address(&connection)));
    assert_eq!(client.space.ip("-o link show nsm-1"), interface, "the interface was made anew");
    assert_eq!(mesh.observer.counts(mark, "nse-1", "nsc").1, 0, "Closes");
    let status = mesh.admin("nsc", "/status").unwrap();
    assert_eq!(status["reports"]["sessions"]["nsc-0"]["heals"], 0, "{status}");
}

/// One client with two services has an interface for each, and what ends one leaves the other alone. A client of one service does
/// not reach the other's endpoint, nor another client of its own. The forwarder offers endpoints what its priorities say, not memif,
/// which would come first.
#[test]
fn services_of_a_client_live_apart_and_clients_do_not_meet() {
    let priority = set("NSM_MECHANISM_PRIORITY", "KERNEL");
    let mut mesh = Mesh::start_with("apart", Plan::of(Kind::Vwire), &[priority]);
    let of =
        |service: &str, prefix: &str| [set("NSM_SERVICE_NAMES", service), set("NSM_CIDR_PREFIX", prefix)];
    let one = mesh.endpoint(0, "nse-1", &of("one", "172.16.1.0/24"));
    // What an endpoint's kernel forwards between its own interfaces is its owner's choice.
    peers::must(&mut one.space.command("sysctl -q -w net.ipv4.ip_forward=0"));
    let two = mesh.endpoint(0, "nse-2", &of("two", "172.16.2.0/24"));
    let mut both = mesh.client(0, "both", "kernel://one/nsm-1,kernel://two/nsm-2", &[]);
    let up = |mesh: &Mesh, name: &str, sessions: usize| {
        until(&format!("{name}'s connections"), || {
            let status = mesh.admin(name, "/status")?;
            (status["up"] == sessions && status["not_ready"].as_array()?.is_empty()).then_some(())
        });
    };
    up(&mesh, "both", 2);
    mesh.observer.wait("a kernel interface", 0, "nse-1", "both", |event| {
        event.connections[0]["mechanism"]["type"] == "KERNEL"
    });
    let alone = mesh.client(0, "alone", "kernel://one/nsm-1", &[]);
    up(&mesh, "alone", 1);
    assert!(both.space.pings("172.16.1.0") && both.space.pings("172.16.2.0"));
    assert!(alone.space.pings("172.16.1.2"));
    // The first pair of each endpoint is the client's of both, the second of `one` the other's. Everything may go out to nsm-1.
    alone.space.ip("route add 172.16.0.0/16 dev nsm-1");
    for (what, address) in [
        ("the other service", "172.16.2.0"),
        ("the other client", "172.16.1.1"),
        ("its other interface", "172.16.2.1"),
    ] {
        assert!(!alone.space.pings(address), "{what} answers at {address}");
    }
    let interface = both.space.ip("-o link show nsm-1");
    let pinging = Pinging::start(&both.space, "172.16.1.0");
    two.process.stop();
    drop(two.space);
    until("the loss of the other service", || (mesh.admin("both", "/status")?["down"] == 1).then_some(()));
    let (_, lost) = pinging.end();
    assert_eq!(lost, [0; 0]);
    assert_eq!(both.space.ip("-o link show nsm-1"), interface);
    assert!(both.process.runs());
}

/// A client that was killed is started again in its namespace and knows nothing of its former life (a Go one does not ask): it has
/// its interface at once, and the endpoint is rid of the former connection.
#[test]
fn a_client_that_begins_anew_has_its_interface_at_once() {
    let mut mesh = Mesh::start("anew", Plan { nsc: Kind::Go, ..Plan::of(Kind::Vwire) });
    let _endpoint = mesh.endpoint(0, "nse-1", &[]);
    let mark = mesh.observer.mark();
    let mut client = mesh.client(0, "nsc", SERVICE, &[]);
    client.connected(&mut mesh, mark);
    client.process.kill();
    let again = mesh.observer.mark();
    let settings = vec![
        set("NSM_NAME", "nsc"),
        set("NSM_CONNECT_TO", mesh.nsmgr_url(0)),
        set("NSM_NETWORK_SERVICES", SERVICE),
    ];
    let mut process = mesh.role(Kind::Go, "nsc", "nsc", &client.space, &[], settings);
    let connection = process.told("connected", 0)["connection"].clone();
    assert!(process.events(0, |event| event["event"] == "request-failed").is_empty());
    assert!(client.space.pings(&far_address(&connection)));
    mesh.observer.wait("the Close", again, "nse-1", "nsc", |event| event.kind == "DELETE");
    assert_eq!(client.space.interfaces(), ["nsm-1"]);
}

/// A workload dies with its network namespace, and the kernel gives the namespace's number to the next workload's.
#[test]
fn the_dead_keep_no_interface_from_others() {
    let mut mesh = Mesh::start("dead", Plan::of(Kind::Vwire));
    let _endpoint = mesh.endpoint(0, "nse-1", &[]);
    let mut seen = BTreeSet::new();
    for number in 0..50 {
        let mark = mesh.observer.mark();
        let mut client = mesh.client(0, &format!("nsc-{number}"), SERVICE, &[]);
        let inode = std::fs::metadata(Path::new("/run/netns").join(&client.space.name)).unwrap().ino();
        client.connected(&mut mesh, mark);
        if !seen.insert(inode) {
            return;
        }
    }
    panic!("no namespace had the number of one before: {seen:?}");
}
