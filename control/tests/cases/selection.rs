//! Which endpoint, which forwarder.

use serde_json::json;

use super::{SERVICE, far_address, names, path_length, register_service};
use crate::peers::mesh::{Mesh, Plan, Setting, set};
use crate::peers::observer::endpoint_of;
use crate::peers::{Kind, until};

/// Endpoints whose service somebody else has registered.
pub(super) fn foreign_service(more: &[Setting]) -> Vec<Setting> {
    let mut all = vec![set("NSM_REGISTER_SERVICE", "false")];
    all.extend_from_slice(more);
    all
}

/// Three endpoints refuse whatever is asked; a good one appears later: it is chosen, and asked once.
pub fn c05_endpoints_that_refuse(plan: Plan) {
    let nodes = if plan.forwarder == Kind::Vwire { 2 } else { 1 };
    let mut mesh = Mesh::start("c05", plan.nodes(nodes));
    let mut busy: Vec<_> = (1..=3)
        .map(|number| mesh.endpoint_of(Kind::Go, 0, &format!("busy-{number}"), &[set("NSM_REFUSE", "true")]))
        .collect();
    for endpoint in &mut busy {
        endpoint.process.told("ready", 0);
    }
    let mark = mesh.observer.mark();
    let mut client = mesh.client(nodes - 1, "nsc", SERVICE, &[]);
    until("the busy ones were asked", || {
        let asked = |endpoint: &crate::peers::endpoint::Endpoint| {
            !endpoint.process.events(0, |event| event["event"] == "refused").is_empty()
        };
        busy.iter().all(asked).then_some(())
    });
    let _good = mesh.endpoint(0, "good", &[]);
    let connection = client.connected(&mut mesh, mark);
    assert_eq!(endpoint_of(&connection), "good");
    assert_eq!(names(&connection).len(), path_length(&mesh));
    assert!(client.space.pings(&far_address(&connection)));
    assert_eq!(mesh.observer.counts(mark, "good", "nsc").0, 1);
}

/// The service's matches are edited to select another endpoint: the client moves there, and has no old address.
pub fn c07_matches_edited(plan: Plan) {
    let mut mesh = Mesh::start("c07", plan);
    let mut owner = mesh.registry_client("owner", Vec::new());
    let to = |app: &str| json!([{"routes": [{"destinationSelector": {"app": app}}]}]);
    register_service(&mut owner, to("one"));
    let one = foreign_service(&[set("NSM_LABELS", "app:one"), set("NSM_CIDR_PREFIX", "172.16.1.100/31")]);
    let two = foreign_service(&[set("NSM_LABELS", "app:two"), set("NSM_CIDR_PREFIX", "172.16.2.200/31")]);
    let first = mesh.endpoint(0, "nse-1", &one);
    let _second = mesh.endpoint(0, "nse-2", &two);
    let mark = mesh.observer.mark();
    let mut client = mesh.client(0, "nsc", SERVICE, &[]);
    let connection = client.connected(&mut mesh, mark);
    assert_eq!(endpoint_of(&connection), "nse-1");
    assert_eq!(far_address(&connection), "172.16.1.100");
    let mark = mesh.observer.mark();
    register_service(&mut owner, to("two"));
    let connection = client.connected(&mut mesh, mark);
    assert_eq!(endpoint_of(&connection), "nse-2");
    // A Go client asks for its old addresses, too, and a Go endpoint lets it have them.
    until("the client has the new address", || {
        let addresses = client.space.addresses("nsm-1");
        let alone = addresses.len() == 1 || client.kind == Kind::Go;
        (alone && addresses.contains(&"172.16.2.201/32".to_owned())).then_some(())
    });
    assert!(client.space.pings("172.16.2.200"));
    until("the first endpoint has no interface", || first.space.interfaces().is_empty().then_some(()));
}

/// `{{.nodeName}}` in a selector leads to the endpoint on the client's node; both are labelled by their nsmgr.
pub fn c11_node_name_template(plan: Plan) {
    let mut mesh = Mesh::start("c11", plan.nodes(2));
    let mut owner = mesh.registry_client("owner", Vec::new());
    register_service(
        &mut owner,
        json!([{"routes": [{"destinationSelector": {"nodeName": "{{.nodeName}}"}}]}]),
    );
    let _far = mesh.endpoint(0, "nse-1", &foreign_service(&[]));
    let _near = mesh.endpoint(1, "nse-2", &foreign_service(&[]));
    for number in 0..3 {
        let name = format!("nsc-{number}");
        let mark = mesh.observer.mark();
        let mut client = mesh.client(1, &name, SERVICE, &[]);
        let connection = client.connected(&mut mesh, mark);
        assert_eq!(endpoint_of(&connection), "nse-2");
        assert_eq!(names(&connection).len(), 4);
        assert_eq!(connection["labels"]["nodeName"], "node-2", "{connection}");
    }
    let found = owner.call("find", "nse", &json!({"name": "nse-2"})).unwrap();
    let label =
        found[0].pointer("/networkServiceEndpoint/networkServiceLabels/icmp-responder/labels/nodeName");
    assert_eq!(label, Some(&json!("node-2")), "{found:?}");
}

/// A client's own label leads to the endpoint of its zone, on whichever node; where its zone has none, to another's.
pub fn c11_zones_by_labels(plan: Plan) {
    let nodes = if plan.forwarder == Kind::Vwire { 2 } else { 1 };
    let mut mesh = Mesh::start("c11z", plan.nodes(nodes));
    let mut owner = mesh.registry_client("owner", Vec::new());
    register_service(
        &mut owner,
        json!([
            {"fallthrough": true, "routes": [{"destinationSelector": {"zone": "{{.zone}}"}}]},
            {"routes": [{"destinationSelector": {"default": "true"}}]},
        ]),
    );
    let _here = mesh.endpoint(0, "nse-a", &foreign_service(&[set("NSM_LABELS", "zone:a,default:true")]));
    let _there = mesh.endpoint(nodes - 1, "nse-b", &foreign_service(&[set("NSM_LABELS", "zone:b")]));
    for (zone, endpoint) in [("a", "nse-a"), ("b", "nse-b"), ("c", "nse-a")] {
        let mark = mesh.observer.mark();
        let mut client = mesh.client(0, &format!("nsc-{zone}"), &format!("{SERVICE}?zone={zone}"), &[]);
        let connection = client.connected(&mut mesh, mark);
        assert_eq!(endpoint_of(&connection), endpoint, "a client of zone {zone}");
        assert!(client.space.pings(&far_address(&connection)));
    }
}

/// A match's metadata chooses the forwarder by its labels; without it, one for point to point.
pub fn c12_forwarder_labels(plan: Plan) {
    let mut mesh = Mesh::start("c12", Plan { forwarders: 0, ..plan });
    for (name, labels) in
        [("fwd-p2mp", "p2mp:true"), ("fwd-p2p", "p2p:true"), ("fwd-special", "special:true")]
    {
        mesh.add_forwarder(0, name, &[set("NSM_LABELS", labels)]);
    }
    let mut owner = mesh.registry_client("owner", Vec::new());
    let _endpoint = mesh.endpoint(0, "nse-1", &foreign_service_after(&mut owner));
    for (matches, forwarder) in [
        (json!([{"metadata": {"labels": {"p2mp": "true"}}, "routes": [{}]}]), "fwd-p2mp"),
        (json!([{"routes": [{}]}]), "fwd-p2p"),
        (json!([{"metadata": {"labels": {"special": "true"}}, "routes": [{}]}]), "fwd-special"),
    ] {
        register_service(&mut owner, matches);
        let mark = mesh.observer.mark();
        let mut client = mesh.client(0, "nsc", SERVICE, &[]);
        let connection = client.connected(&mut mesh, mark);
        assert_eq!(names(&connection), ["nsc", "nsmgr-1", forwarder, "nse-1"]);
        client.close();
        mesh.observer.wait("the Close", mark, "nse-1", "nsc", |event| event.kind == "DELETE");
    }
}

fn foreign_service_after(owner: &mut crate::peers::registry::RegistryClient) -> Vec<Setting> {
    register_service(owner, json!([]));
    foreign_service(&[])
}

/// Only a maker matches at first: it refuses, and while it does an endpoint is made, where the client ends.
pub fn c14_endpoint_made_on_request(plan: Plan) {
    let mut mesh = Mesh::start("c14", plan);
    let mut owner = mesh.registry_client("owner", Vec::new());
    register_service(
        &mut owner,
        json!([
            {"fallthrough": true, "routes": [{"destinationSelector": {"made": "true"}}]},
            {"routes": [{"destinationSelector": {"maker": "true"}}]},
        ]),
    );
    let maker = foreign_service(&[set("NSM_LABELS", "maker:true"), set("NSM_REFUSE", "true")]);
    let mut maker = mesh.endpoint_of(Kind::Go, 0, "maker", &maker);
    let mark = mesh.observer.mark();
    let mut client = mesh.client(0, "nsc", SERVICE, &[]);
    maker.process.told("refused", 0);
    let _made = mesh.endpoint(0, "made", &foreign_service(&[set("NSM_LABELS", "made:true")]));
    let connection = client.connected(&mut mesh, mark);
    assert_eq!(endpoint_of(&connection), "made");
    assert!(client.space.pings(&far_address(&connection)));
    // The client is as quick as the watch of the new endpoint, whose first event may already have the connection in it.
    mesh.observer.wait("the Request", mark, "made", "nsc", |event| event.kind != "DELETE");
    assert!(mesh.observer.counts(mark, "made", "nsc").0 <= 1);
}
