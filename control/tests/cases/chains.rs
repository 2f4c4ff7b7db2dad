//! Chains of endpoints: each asks for the service again, and the service's matches lead to the next.

use serde_json::{Value, json};

use super::selection::foreign_service;
use super::{SERVICE, far_address, names, register_service};
use crate::peers::endpoint::Endpoint;
use crate::peers::mesh::{Mesh, Plan, set};
use crate::peers::netns::Netns;
use crate::peers::{Kind, until};

/// Endpoints of a chain; the last one answers.
const LENGTH: usize = 7;

/// Seven endpoints in a row on one node. The path has each of them with the node's nsmgr and forwarder, in order: 22 segments. (The
/// list has 28: there an endpoint's client has a segment of its own, which the default policies refuse, Go's as well as ours.)
pub fn c08_chain_of_seven_on_one_node(plan: Plan) {
    chain(Mesh::start("c08", plan));
}

/// The same with a node for each: 34 segments.
pub fn c09_chain_of_seven_over_seven_nodes(plan: Plan) {
    chain(Mesh::start("c09", plan.nodes(LENGTH)));
}

fn chain(mut mesh: Mesh) {
    let mut owner = mesh.registry_client("owner", Vec::new());
    register_service(&mut owner, one_after_another());
    let mut endpoints = Vec::new();
    for number in 1..=LENGTH {
        let mut settings = foreign_service(&[set("NSM_LABELS", format!("place:{number}"))]);
        if number < LENGTH {
            settings.extend([set("NSM_PASS_THROUGH", "true"), set("VWIRE_PASS_THROUGH", "true")]);
        }
        let node = (number - 1) % mesh.nodes.len();
        endpoints.push(mesh.late_endpoint(node, &name(number), &settings));
    }
    for number in 1..=LENGTH {
        mesh.wait_registered(&name(number));
        mesh.observer.wait_monitored(&name(number));
    }
    let mark = mesh.observer.mark();
    // Tokens as long as a Go server needs: it ends a connection 15 s before its token. Nobody but us looks whether packets flow:
    // until the endpoints have joined their interfaces, they don't.
    let settings = [set("NSM_MAX_TOKEN_LIFETIME", "30s"), set("NSM_LIVENESS_CHECK_ENABLED", "false")];
    let mut client = mesh.client(0, "nsc", SERVICE, &settings);
    let connection = client.connected(&mut mesh, mark);
    let path = names(&connection);
    assert_eq!(path, expected(&mesh));
    assert_eq!(path.len(), if mesh.nodes.len() > 1 { 34 } else { 22 });
    for endpoint in &endpoints[..LENGTH - 1] {
        bridge(&endpoint.space);
    }
    let far = far_address(&connection);
    until("a ping through all of the chain", || client.space.pings(&far).then_some(()));
    // A Go client is told to; ours refreshes by itself, after 6 s.
    for _ in 0..if client.kind == Kind::Go { 5 } else { 1 } {
        assert_eq!(names(&client.refresh(&mut mesh)), path);
    }
    let closing = mesh.observer.mark();
    let space = client.close();
    for number in 1..=LENGTH {
        let name = name(number);
        mesh.observer.wait("the Close", closing, &name, "nsc", |event| event.kind == "DELETE");
    }
    until("the interfaces are gone", || {
        let gone = |endpoint: &Endpoint| endpoint.space.interfaces().iter().all(|name| name == "br0");
        (space.interfaces().is_empty() && endpoints.iter().all(gone)).then_some(())
    });
    for number in 1..=LENGTH {
        assert_eq!(mesh.observer.counts(mark, &name(number), "nsc").1, 1, "Closes of {}", name(number));
    }
    for node in &mesh.nodes {
        assert_eq!(node.space.interfaces(), ["u0"], "left on node {}", node.number);
    }
}

fn name(number: usize) -> String {
    format!("nse-{number}")
}

/// From each place to the next; who is at none begins at the first.
fn one_after_another() -> Value {
    let to = |place: usize| json!([{"destinationSelector": {"place": place.to_string()}}]);
    let mut matches: Vec<Value> = (1..LENGTH)
        .map(|place| json!({"sourceSelector": {"place": place.to_string()}, "routes": to(place + 1)}))
        .collect();
    matches.push(json!({"routes": to(1)}));
    matches.into()
}

/// The names of the whole path.
fn expected(mesh: &Mesh) -> Vec<String> {
    let mut all = vec!["nsc".to_owned()];
    let mut at = 0;
    for number in 1..=LENGTH {
        let to = (number - 1) % mesh.nodes.len();
        let mut node =
            |node: usize| all.extend([format!("nsmgr-{}", node + 1), mesh.forwarder_name(node, 0)]);
        node(at);
        if to != at {
            node(to);
        }
        all.push(name(number));
        at = to;
    }
    all
}

/// What an endpoint in the middle does with its two interfaces is its own matter: this one joins them.
fn bridge(space: &Netns) {
    let both = space.interfaces();
    assert_eq!(both.len(), 2, "{}: {both:?}", space.name);
    space.ip("link add br0 type bridge");
    space.ip("link set br0 up");
    for interface in both {
        space.ip(&format!("addr flush dev {interface}"));
        space.ip(&format!("link set {interface} master br0"));
    }
}
