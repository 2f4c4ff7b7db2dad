//! Two domains of real processes: in one of them the registry, both proxies and the manager are Go's, in the other ours, both ways
//! round; and ours on both sides. Domains find each other by a real name server. The forwarders are ours everywhere, so that packets
//! cross the border: Go's own can't leave their node. And three such domains with a registry that is none of theirs.

mod peers;

use std::process::{Child, Command, Stdio};

use peers::mesh::{Mesh, Plan, Setting, set};
use peers::observer::segments;
use peers::process::Process;
use peers::{Kind, until};
use serde_json::{Value, json};

/// Where the name server is.
const DNS: &str = "10.77.0.254";
/// A domain that is a registry and no more, beside it.
const FLOATING: &str = "tcp://10.77.0.254:5002";

/// Which records a domain has.
#[derive(Clone, Copy)]
enum Records {
    Ours,
    Gos,
    Address,
}

impl Records {
    fn zone(self, name: &str, at: &str) -> String {
        let own = match self {
            Self::Ours => format!(
                // The first is dead: nobody listens there.
                "_nsm-registry._tcp SRV 0 0 4999 registry\n_nsm-registry._tcp SRV 1 0 5002 registry\nregistry A {at}\n\
                 _nsm-nsmgr._tcp SRV 0 0 5004 proxy\nproxy A {at}\n"
            ),
            Self::Gos => format!(
                "registry.nsm-system SRV 0 0 5002 registry.nsm-system\nregistry.nsm-system A {at}\n\
                 nsmgr-proxy.nsm-system SRV 0 0 5004 nsmgr-proxy.nsm-system\nnsmgr-proxy.nsm-system A {at}\n"
            ),
            Self::Address => format!("@ A {at}\n"),
        };
        format!("{}{own}", Self::head(name))
    }

    fn head(name: &str) -> String {
        format!("$ORIGIN {name}.\n$TTL 2\n@ SOA ns hostmaster 1 60 60 60 2\n@ NS ns\nns A {DNS}\n")
    }
}

/// A name server. Killed when dropped.
struct NameServer(Child);

impl NameServer {
    fn start(mesh: &Mesh, zones: &[(&str, String)]) -> Self {
        let directory = mesh.directory().join("nsd");
        std::fs::create_dir(&directory).unwrap();
        let shown = directory.display();
        let mut config = format!(
            "server:\n  username: \"\"\n  ip-address: {DNS}@53\n  zonesdir: \"{shown}\"\n  zonelistfile: \"{shown}/zones\"\n  \
             xfrdfile: \"{shown}/xfrd\"\n  xfrdir: \"{shown}\"\n  database: \"\"\n  pidfile: \"{shown}/pid\"\n  server-count: 1\n\
             remote-control:\n  control-enable: no\n"
        );
        for (name, zone) in zones {
            config += &format!("zone:\n  name: {name}\n  zonefile: {name}.zone\n");
            std::fs::write(directory.join(format!("{name}.zone")), zone).unwrap();
        }
        let file = directory.join("nsd.conf");
        std::fs::write(&file, config).unwrap();
        let log = std::fs::File::create(directory.join("log")).unwrap();
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "SIGKILL", "ip", "netns", "exec", &mesh.fabric().name, "nsd", "-d", "-c"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("nsd (Debian: apt-get install nsd)");
        let server = Self(child);
        until("the name server's socket", || {
            let sockets = std::fs::read_to_string(format!("/proc/{}/net/udp", server.0.id())).ok()?;
            sockets.contains("FE004D0A:0035").then_some(())
        });
        server
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        // It ends its children itself, if it is asked to.
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

/// A client's domain, a.test on node 1, and endpoints' domains, b.test on node 2 and so on.
struct Domains {
    processes: Vec<Process>,
    mesh: Mesh,
    _dns: NameServer,
}

/// Where the registry of several domains is, in `nsmrs.test`.
const NSMRS: &str = "10.77.0.1:5010";

impl Domains {
    fn start(tag: &str, kinds: [Kind; 2], records: [Records; 2]) -> Self {
        Self::with(tag, &kinds, &records, &[], None)
    }

    /// `of_proxies` are further settings of the nsmgr-proxies; `floating` is whose registry `float.test` has, if there is one.
    fn with(
        tag: &str,
        kinds: &[Kind],
        records: &[Records],
        of_proxies: &[Setting],
        floating: Option<Kind>,
    ) -> Self {
        let plan =
            Plan { nsc: Kind::Go, forwarder: Kind::Vwire, nodes: kinds.len(), ..Plan::of(Kind::Vwire) };
        let mut mesh = Mesh::bare(tag, plan);
        let zones = ["a.test", "b.test", "c.test"].into_iter().zip(records).enumerate();
        let mut zones: Vec<_> = zones
            .map(|(node, (name, records))| (name, records.zone(name, &format!("10.77.0.{}", node + 1))))
            .collect();
        let nsmrs = "_nsm-registry._tcp SRV 0 0 5010 registry\nregistry A 10.77.0.1\n";
        zones.push(("nsmrs.test", format!("{}{nsmrs}", Records::head("nsmrs.test"))));
        let float =
            format!("registry.nsm-system SRV 0 0 5002 registry.nsm-system\nregistry.nsm-system A {DNS}\n");
        zones.push(("float.test", format!("{}{float}", Records::head("float.test"))));
        let dns = NameServer::start(&mesh, &zones);
        // Go makes nothing of an address that the map does not name.
        let map = mesh.directory().join("map-ip.yaml");
        std::fs::write(&map, "10.77.0.1: 10.77.0.1\n10.77.0.2: 10.77.0.2\n10.77.0.3: 10.77.0.3\n").unwrap();
        let mut processes = Vec::new();
        if let Some(kind) = floating {
            mesh.plan.registry = kind;
            mesh.start_registry(&[]);
        }
        for (node, kind) in kinds.iter().copied().enumerate() {
            let letter = ["a", "b", "c"][node];
            // Go reads /etc/clusterinfo; there its endpoints say themselves where they are.
            let cluster = mesh.directory().join(format!("cluster-{letter}.yaml"));
            std::fs::write(&cluster, format!("clusterName: {letter}\n")).unwrap();
            let at = |port: u16| format!("tcp://10.77.0.{}:{port}", node + 1);
            let part = |role: &str| format!("{role}-{letter}");
            let roles = [
                ("registry", vec![set("NSM_LISTEN_ON", at(5002)), set("NSM_PROXY_REGISTRY_URL", at(5004))]),
                (
                    "registry-proxy-dns",
                    vec![set("NSM_LISTEN_ON", at(5005)), set("NSM_DNS_SERVER", format!("{DNS}:53"))],
                ),
                (
                    "nsmgr-proxy",
                    vec![
                        set("NSM_NAME", part("nsmgr-proxy")),
                        set("NSM_LISTEN_ON", at(5004)),
                        set("NSM_REGISTRY_URL", at(5002)),
                        set("NSM_REGISTRY_PROXY_URL", at(5005)),
                        set("NSM_MAP_IP_FILE_PATH", map.display().to_string()),
                        set("VWIRE_CLUSTER_INFO_FILE", cluster.display().to_string()),
                    ],
                ),
            ];
            for (role, mut settings) in roles {
                if role == "nsmgr-proxy" {
                    settings.extend_from_slice(of_proxies);
                }
                let listen = settings.iter().find(|(key, _)| key == "NSM_LISTEN_ON").unwrap().1.clone();
                processes.push(mesh.role_on(kind, role, &part(role), node, settings));
                mesh.observer.wait_healthy(&part(role), &listen);
            }
            mesh.look_at(&at(5002));
            mesh.plan.nsmgr = kind;
            mesh.start_nsmgr(node, &[set("NSM_REGISTRY_URL", at(5002))]);
            let name = mesh.forwarder_name(node, 0);
            mesh.add_forwarder(node, &name, &[]);
        }
        mesh.plan.nse = kinds[1];
        Self { processes, mesh, _dns: dns }
    }
}

fn names(connection: &Value) -> Vec<String> {
    segments(connection).into_iter().map(|(name, _)| name).collect()
}

const EIGHT: [&str; 8] = [
    "nsc",
    "nsmgr-1",
    "forwarder-1-1",
    "nsmgr-proxy-a",
    "nsmgr-proxy-b",
    "nsmgr-2",
    "forwarder-2-1",
    "nse-1",
];

/// Request, packets, refresh, Close, Request, the endpoint's death as the client's side sees it.
fn one_life(tag: &str, kinds: [Kind; 2], records: [Records; 2], domain: &str) {
    let mut domains = Domains::start(tag, kinds, records);
    let mesh = &mut domains.mesh;
    let endpoint = mesh.endpoint(1, "nse-1", &[]);
    let mark = mesh.observer.mark();
    let mut client = mesh.client(0, "nsc", &format!("kernel://icmp-responder@{domain}/nsm-1"), &[]);
    let connection = client.connected(mesh, mark);
    assert_eq!(names(&connection), EIGHT);
    assert_eq!(connection["networkService"], format!("icmp-responder@{domain}"));
    assert_eq!(connection["networkServiceEndpointName"], format!("nse-1@{domain}"));
    assert_eq!(connection["payload"], "ETHERNET");
    let at_endpoint = mesh.observer.wait("the Request", mark, "nse-1", "nsc", |event| event.kind == "UPDATE");
    assert_eq!(at_endpoint.connections[0]["networkService"], "icmp-responder");
    assert_eq!(at_endpoint.connections[0]["networkServiceEndpointName"], "nse-1");
    let server = connection.pointer("/context/ipContext/dstIpAddrs/0").and_then(Value::as_str).unwrap();
    let server = server.split('/').next().unwrap();
    until("a ping across the border", || client.space.pings(server).then_some(()));

    let refreshed = client.refresh(mesh);
    assert_eq!(segments(&refreshed), segments(&connection), "a refresh goes the same way");
    let closed = mesh.observer.mark();
    let space = client.close();
    mesh.observer.wait("the Close", closed, "nse-1", "nsc", |event| event.kind == "DELETE");
    until("the interfaces are gone", || {
        (space.interfaces().is_empty() && endpoint.space.interfaces().is_empty()).then_some(())
    });

    let mark = mesh.observer.mark();
    let mut client = mesh.client(0, "nsc-2", &format!("kernel://icmp-responder@{domain}/nsm-1"), &[]);
    client.connected(mesh, mark);
    let dead = mesh.observer.mark();
    let _space = endpoint.kill();
    mesh.observer.wait("the endpoint's death", dead, "nsmgr-1", "nsc-2", |event| {
        event.kind == "DELETE" || event.connections.iter().any(|each| each["state"] == "DOWN")
    });
    assert!(domains.processes.iter_mut().all(Process::runs));
}

#[test]
fn a_client_in_a_domain_of_ours_and_an_endpoint_in_one_of_gos() {
    one_life("xvg", [Kind::Vwire, Kind::Go], [Records::Gos; 2], "b.test");
}

#[test]
fn a_client_in_a_domain_of_gos_and_an_endpoint_in_one_of_ours() {
    one_life("xgv", [Kind::Go, Kind::Vwire], [Records::Gos; 2], "b.test");
}

/// The first of the registry's records leads nowhere.
#[test]
fn both_domains_are_ours_with_srv_records_of_which_one_is_dead() {
    one_life("xvv", [Kind::Vwire; 2], [Records::Ours; 2], "b.test");
}

#[test]
fn both_domains_are_ours_without_srv_records() {
    one_life("xva", [Kind::Vwire; 2], [Records::Address; 2], "b.test");
}

#[test]
fn a_domain_is_named_by_its_address() {
    one_life("xvl", [Kind::Vwire; 2], [Records::Address; 2], "10.77.0.2");
}

/// Both domains' proxies forward what is registered to NSMRS, which is in neither of them.
#[test]
fn a_service_at_nsmrs_is_reached_through_both_proxies_and_directly_in_its_own_domain() {
    let forwarding = [set("NSMRS_ADDRESS", NSMRS), set("NSE_TRACKING_INTERVAL", "2")];
    let mut domains = Domains::with("xns", &[Kind::Vwire; 2], &[Records::Ours; 2], &forwarding, None);
    let mesh = &mut domains.mesh;
    // It comes last: until then the proxies forward to nobody, and nobody waits for it.
    let endpoint = mesh.endpoint(1, "nse-1", &[]);
    let listen = format!("tcp://{NSMRS}");
    let settings = vec![set("NSMRS_API_ADDRESS", listen.as_str())];
    let nsmrs = mesh.role_on(Kind::Vwire, "nsmrs", "nsmrs", 0, settings);
    mesh.observer.wait_healthy("nsmrs", &listen);
    domains.processes.push(nsmrs);

    let mut paths = Vec::new();
    for (node, name) in [(0, "nsc"), (1, "near")] {
        let mark = mesh.observer.mark();
        let service = "kernel://icmp-responder@nsmrs.test/nsm-1";
        let mut client = mesh.client_of(Kind::Vwire, node, name, service, &[]);
        let connection = client.connected(mesh, mark);
        assert_eq!(connection["networkService"], "icmp-responder@nsmrs.test");
        let server = connection.pointer("/context/ipContext/dstIpAddrs/0").and_then(Value::as_str).unwrap();
        let server = server.split('/').next().unwrap();
        until("a ping of the service at NSMRS", || client.space.pings(server).then_some(()));
        paths.push(names(&connection));
        client.close();
    }
    assert_eq!(paths[0], EIGHT);
    assert_eq!(paths[1], ["near", "nsmgr-2", "forwarder-2-1", "nse-1"], "not by way of its own proxy");
    until("the interfaces are gone", || endpoint.space.interfaces().is_empty().then_some(()));
    assert!(domains.processes.iter_mut().all(Process::runs));
}

/// In domain B an endpoint is registered whose manager's URL leads to a proxy again; a client of domain A asks for it. What its log says of
/// the loop, from the first hop on.
fn loop_of(tag: &str, kinds: [Kind; 2], leads_to: &str) -> String {
    let mut domains = Domains::start(tag, kinds, [Records::Gos; 2]);
    let mesh = &mut domains.mesh;
    let mut registry = mesh.registry_client("fool", vec![set("NSM_CONNECT_TO", "tcp://10.77.0.2:5002")]);
    registry.call("register", "ns", &json!({"name": "round", "payload": "ETHERNET"})).unwrap();
    let endpoint = json!({
        "name": "nse-round", "networkServiceNames": ["round"], "url": leads_to,
        "networkServiceLabels": {"round": {"labels": {}}},
    });
    registry.call("register", "nse", &endpoint).unwrap();
    let _client = mesh.client_of(Kind::Vwire, 0, "nsc", "kernel://round@b.test/nsm-1", &[]);
    let log = mesh.directory().join("nsc.log");
    let told = until("the client is told of the loop", || {
        let text = std::fs::read_to_string(&log).ok()?;
        let (_, told) = text.split_once("loop: ")?;
        Some(told.split(": ").next()?.to_owned())
    });
    assert!(domains.processes.iter_mut().all(Process::runs));
    told
}

#[test]
fn a_loop_by_way_of_a_proxy_of_gos_is_refused_with_its_hops() {
    let told = loop_of("lvg", [Kind::Vwire, Kind::Go], "tcp://10.77.0.1:5004");
    assert_eq!(told, "nsc → nsmgr-1 → forwarder-1-1 → nsmgr-proxy-a → nsmgr-proxy-b → nsmgr-proxy-a");
}

#[test]
fn a_domain_that_leads_to_itself_is_refused_when_a_domain_of_gos_asks_for_it() {
    let told = loop_of("lgv", [Kind::Go, Kind::Vwire], "tcp://10.77.0.2:5004");
    assert_eq!(told, "nsc → nsmgr-1 → forwarder-1-1 → nsmgr-proxy-a → nsmgr-proxy-b → nsmgr-proxy-b");
}

/// Endpoints of two domains register in a registry that is of neither; a client of a third domain finds them there, each by the label of
/// its cluster, and reaches them by both domains' proxies.
fn float(tag: &str, floating: Kind, kinds: [Kind; 3]) {
    let mut domains = Domains::with(tag, &kinds, &[Records::Gos; 3], &[], Some(floating));
    let mesh = &mut domains.mesh;
    mesh.look_at(FLOATING);
    let mut owner = mesh.registry_client("owner", Vec::new());
    let to = |cluster: &str| json!({"sourceSelector": {"want": cluster}, "routes": [{"destinationSelector": {"clusterName": cluster}}]});
    let service = json!({"name": "icmp-responder", "payload": "ETHERNET", "matches": [to("b"), to("c")]});
    owner.call("register", "ns", &service).unwrap();
    let endpoints: Vec<_> = ["b", "c"]
        .into_iter()
        .zip(1..)
        .map(|(letter, node)| {
            let name = format!("nse-{letter}");
            let mut settings = vec![
                set("NSM_NAME", format!("{name}@float.test")),
                set("NSM_SERVICE_NAMES", "icmp-responder@float.test"),
                set("NSM_REGISTER_SERVICE", "false"),
            ];
            if kinds[node] == Kind::Go {
                settings.push(set("NSM_LABELS", format!("clusterName:{letter}")));
            }
            let endpoint = mesh.endpoint_of(kinds[node], node, &name, &settings);
            mesh.wait_registered(&name);
            endpoint
        })
        .collect();
    for (letter, node) in ["b", "c"].into_iter().zip(2..) {
        let name = format!("nsc-{letter}");
        let mark = mesh.observer.mark();
        let asked = format!("kernel://icmp-responder@float.test/nsm-1?want={letter}");
        let mut client = mesh.client(0, &name, &asked, &[]);
        let connection = client.connected(mesh, mark);
        assert_eq!(connection["networkServiceEndpointName"], format!("nse-{letter}@float.test"));
        let far = [
            format!("nsmgr-proxy-{letter}"),
            format!("nsmgr-{node}"),
            format!("forwarder-{node}-1"),
            format!("nse-{letter}@float.test"),
        ];
        let near = [&name[..], "nsmgr-1", "forwarder-1-1", "nsmgr-proxy-a"].map(str::to_owned);
        assert_eq!(names(&connection), [near, far].concat());
        let server = connection.pointer("/context/ipContext/dstIpAddrs/0").and_then(Value::as_str).unwrap();
        let server = server.split('/').next().unwrap();
        until("a ping across the border", || client.space.pings(server).then_some(()));
        assert_eq!(names(&client.refresh(mesh)), names(&connection), "a refresh goes the same way");
        let space = client.close();
        until("the interfaces are gone", || space.interfaces().is_empty().then_some(()));
    }
    until("the endpoints' interfaces are gone", || {
        endpoints.iter().all(|endpoint| endpoint.space.interfaces().is_empty()).then_some(())
    });
    assert!(domains.processes.iter_mut().all(Process::runs));
}

#[test]
fn endpoints_of_go_and_ours_float_in_a_registry_of_ours() {
    float("xfv", Kind::Vwire, [Kind::Vwire, Kind::Go, Kind::Vwire]);
}

#[test]
fn endpoints_of_go_and_ours_float_in_a_registry_of_gos() {
    float("xfg", Kind::Go, [Kind::Go, Kind::Vwire, Kind::Go]);
}
