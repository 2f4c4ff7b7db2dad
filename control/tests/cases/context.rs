//! What endpoints tell their clients beside addresses.

use serde_json::json;

use super::{SERVICE, far_address};
use crate::peers::mesh::{Mesh, Plan, set};
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
