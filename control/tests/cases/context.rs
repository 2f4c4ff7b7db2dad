//! What endpoints tell their clients beside addresses.

use serde_json::json;

use super::{SERVICE, far_address};
use crate::peers::endpoint::Endpoint;
use crate::peers::mesh::{Mesh, Plan, set};
use crate::peers::names::{NameServer, ResolvConf};
use crate::peers::{Kind, until};

/// An endpoint keeps all its connections at the least MTU that one of them has. A second client has a smaller one: the first is
/// asked to refresh, and its interface follows. (The second client and the endpoint are Go's: ours have no such setting.)
pub fn c19_another_client_lowers_the_mtu(plan: Plan) {
    let mut mesh = Mesh::start("c19", plan);
    let mut endpoint = mesh.endpoint_of(Kind::Go, 0, "nse-1", &[set("NSM_LEAST_MTU", "true")]);
    endpoint.process.told("ready", 0);
    mesh.wait_registered("nse-1");
    mesh.observer.wait_monitored("nse-1");
    let mark = mesh.observer.mark();
    let mut first = mesh.client(0, "first", SERVICE, &[]);
    let connection = first.connected(&mut mesh, mark);
    assert!(first.space.pings(&far_address(&connection)));
    let mark = mesh.observer.mark();
    let mut second = mesh.client_of(Kind::Go, 0, "second", SERVICE, &[set("NSM_MTU", "1300")]);
    second.connected(&mut mesh, mark);
    mesh.observer.wait("the wish", mark, "nsmgr-1", "first", |event| {
        event.connections[0]["state"] == "REFRESH_REQUESTED"
    });
    mesh.observer.wait("the refresh", mark, "nsmgr-1", "first", |event| {
        let connection = &event.connections[0];
        connection.get("state").is_none() && connection["context"]["MTU"] == 1300
    });
    let of = |name: &str| {
        let own = move |event: &serde_json::Value| {
            event["event"] == "request" && event["connection"]["path"]["pathSegments"][0]["name"] == *name
        };
        endpoint.process.events(0, own).len()
    };
    assert_eq!((of("first"), of("second")), (2, 1));
    if plan.forwarder == Kind::Vwire {
        for space in [&first.space, &second.space] {
            until("the interface's MTU", || {
                space.ip("-o link show nsm-1").contains("mtu 1300 ").then_some(())
            });
        }
    }
    assert!(first.space.pings(&far_address(&connection)));
}

/// An endpoint's name servers reach its client, by way of everybody in between.
pub fn c20_name_servers_of_the_endpoint(plan: Plan) {
    let mut mesh = Mesh::start("c20", plan);
    let configs = r#"[{"dns_server_ips": ["172.16.0.53"], "search_domains": ["mesh.test"]}]"#;
    let _endpoint = mesh.endpoint(0, "nse-1", &[set("NSM_DNS_CONFIGS", configs)]);
    let mark = mesh.observer.mark();
    let mut client = mesh.client(0, "nsc", SERVICE, &[]);
    let connection = client.connected(&mut mesh, mark);
    let expected = json!([{"dnsServerIps": ["172.16.0.53"], "searchDomains": ["mesh.test"]}]);
    assert_eq!(connection["context"]["dnsContext"]["configs"], expected, "{connection}");
    if client.kind == Kind::Go {
        let told = client.process.events(0, |event| event["event"] == "connected");
        assert_eq!(told[0]["connection"]["context"]["dnsContext"]["configs"], expected);
    } else {
        let servers = json!([{"servers": ["172.16.0.53"], "search": ["mesh.test"]}]);
        until("the client knows them", || {
            let status = mesh.admin("nsc", "/status")?;
            (status["reports"]["sessions"]["nsc-0"]["dns"] == servers).then_some(())
        });
    }
}

/// A workload's resolver (the C library's, by /etc/resolv.conf) finds names of two services and of the pod's own server, whole and by
/// search domains, through `vwire nsc`; what it has done to the file is undone by its end, also after a former life was killed.
pub fn c20_names_resolve_through_the_client(plan: Plan) {
    let mut mesh = Mesh::start("c20n", Plan { nsc: Kind::Vwire, ..plan });
    let services = [Named::start(&mut mesh, 1), Named::start(&mut mesh, 2)];
    let space = mesh.workload_space("nsc");
    // The pod's own network: without any address, the C library would not ask for addresses.
    space.ip("link add eth0 type veth peer name cni0");
    space.ip("addr add 10.244.0.5/24 dev eth0");
    space.ip("link set cni0 up");
    space.ip("link set eth0 up");
    let _own = NameServer::start(&mesh, &space, "own", "127.0.0.2", "cluster.test", &[("api", "10.96.0.1")]);
    let before = "# by the kubelet\nsearch cluster.test\nnameserver 127.0.0.2\noptions ndots:5\n";
    let file = ResolvConf::write(&space, before);
    let settings = [set("NSM_LOCAL_DNS_SERVER_ENABLED", "true")];
    let both = "kernel://one/nsm-1,kernel://two/nsm-2";
    let up = |mesh: &Mesh| {
        until("both connections", || {
            let status = mesh.admin("nsc", "/status")?;
            (status["up"] == 2 && status["not_ready"].as_array()?.is_empty()).then_some(())
        });
    };
    let client = mesh.client_in(0, "nsc", both, space, &settings);
    up(&mesh);
    assert!(file.read().contains("\nnameserver 127.0.0.1\noptions ndots:5\n"), "{}", file.read());
    let resolved = |name: &str| file.resolve(name);
    for (name, address) in [
        ("db.mesh-1.test", "172.16.1.99"),
        ("db.mesh-2.test", "172.16.2.99"),
        // By each connection's search domain, and by the pod's.
        ("only-1", "172.16.1.98"),
        ("only-2", "172.16.2.98"),
        ("api", "10.96.0.1"),
        ("api.cluster.test", "10.96.0.1"),
    ] {
        until(&format!("the address of {name}"), || (resolved(name) == [address]).then_some(()));
    }
    assert_eq!(resolved("nobody.mesh-1.test"), Vec::<String>::new());
    // A workload is killed and comes back: the file still says what was there first.
    let space = client.kill();
    assert_ne!(file.read(), before);
    let client = mesh.client_in(0, "nsc", both, space, &settings);
    up(&mesh);
    until("names again", || (resolved("only-1") == ["172.16.1.98"]).then_some(()));
    // One service ends, its server with it: names of the others are found.
    let [one, two] = services;
    two.end();
    for (name, address) in
        [("db.mesh-1.test", "172.16.1.99"), ("only-1", "172.16.1.98"), ("api", "10.96.0.1")]
    {
        assert_eq!(resolved(name), [address], "{name} after the end of another service");
    }
    let _space = client.end();
    assert_eq!(file.read(), before);
    assert_eq!(resolved("db.mesh-1.test"), Vec::<String>::new(), "after Close");
    assert_eq!(resolved("api"), ["10.96.0.1"]);
    one.end();
}

/// A service with a name server behind its endpoint.
struct Named {
    endpoint: Endpoint,
    server: NameServer,
}

impl Named {
    fn start(mesh: &mut Mesh, number: usize) -> Self {
        let (service, name) = (["one", "two"][number - 1], format!("nse-{number}"));
        // The address that the endpoint will have on its first vWire.
        let (zone, address) = (format!("mesh-{number}.test"), format!("172.16.{number}.0"));
        let configs = json!([{"dns_server_ips": [address], "search_domains": [zone]}]).to_string();
        let settings = [
            set("NSM_SERVICE_NAMES", service),
            set("NSM_CIDR_PREFIX", format!("172.16.{number}.0/24")),
            set("NSM_DNS_CONFIGS", configs),
            // Its kernel has the server's address, so that has to have the interface.
            set("VWIRE_MECHANISMS", "KERNEL"),
        ];
        let endpoint = mesh.endpoint(0, &name, &settings);
        let (db, only) = (format!("172.16.{number}.99"), format!("172.16.{number}.98"));
        let records = [("db", db.as_str()), (&format!("only-{number}"), only.as_str())];
        let server = NameServer::start(mesh, &endpoint.space, &name, &address, &zone, &records);
        Self { endpoint, server }
    }

    fn end(self) {
        self.server.0.stop();
        self.endpoint.process.stop();
    }
}
