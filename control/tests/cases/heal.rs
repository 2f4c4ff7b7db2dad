//! What dies, and what is whole again afterwards.

use std::process::Command;
use std::time::{Duration, Instant};

use super::{SERVICE, far_address, names};
use crate::peers::mesh::{Mesh, Plan, Setting, set};
use crate::peers::netns::Netns;
use crate::peers::observer::endpoint_of;
use crate::peers::{Kind, must, until};

/// The registry restarts, then the one of ten forwarders that carries the connection: the packets flow on, the same forwarder is
/// kept, and nothing was closed. Then it dies with its data plane: another carries on, and the endpoint hears of a Close.
pub fn c22_registry_and_forwarder_restart(plan: Plan) {
    let mut mesh = Mesh::start("c22", Plan { forwarders: 10, ..plan });
    let _endpoint = mesh.endpoint(0, "nse-1", &[]);
    let mark = mesh.observer.mark();
    let mut client = mesh.client(0, "nsc", SERVICE, &[set("NSM_MAX_TOKEN_LIFETIME", "30s")]);
    let connection = client.connected(&mut mesh, mark);
    let path = names(&connection);
    let interface = client.space.ip("-o link show nsm-1");
    mesh.registry.take().unwrap().kill();
    mesh.start_registry(&[]);
    for name in [path[2].as_str(), "nse-1"] {
        mesh.wait_registered(name);
    }
    let forwarder = path[2].clone();
    mesh.kill_forwarder(&forwarder);
    // A Go forwarder makes its interfaces anew when it comes back; ours touches nothing that agrees.
    let fail_static = plan.forwarder == Kind::Vwire;
    assert!(client.space.pings(&far_address(&connection)), "no packet while the forwarder is dead");
    let again = mesh.observer.mark();
    mesh.add_forwarder(0, &forwarder, &[]);
    let connection = client.connected(&mut mesh, again);
    assert_eq!(names(&connection), path, "another path");
    until("pings again", || client.space.pings(&far_address(&connection)).then_some(()));
    if fail_static {
        assert_eq!(client.space.ip("-o link show nsm-1"), interface, "the interface was made anew");
        assert_eq!(mesh.observer.counts(mark, "nse-1", "nsc").1, 0);
    }
    let broken = mesh.observer.mark();
    mesh.kill_forwarder(&forwarder);
    mesh.kill_engine(&forwarder);
    // A tap goes with its engine; a veth does not.
    let _ = Command::new("ip").args(["-n", &client.space.name, "link", "del", "nsm-1"]).output();
    let event = mesh.observer.wait("another forwarder", broken, "nsmgr-1", "nsc", |event| {
        let path = names(&event.connections[0]);
        event.kind == "UPDATE"
            && path.len() == 4
            && path[2] != forwarder
            && event.connections[0].get("state").is_none()
    });
    let connection = event.connections[0].clone();
    until("pings through another forwarder", || client.space.pings(&far_address(&connection)).then_some(()));
    mesh.observer.wait("the Close", broken, "nse-1", "nsc", |event| event.kind == "DELETE");
}

/// The endpoint dies, and its data plane with it; another registers: the client is there. One Close follows, at its end.
pub fn c24_endpoint_dies_another_takes_over(plan: Plan) {
    let mut mesh = Mesh::start("c24", plan);
    let endpoint = mesh.endpoint(0, "nse-1", &[set("NSM_CIDR_PREFIX", "172.16.1.0/24"), by_kernel()]);
    let mark = mesh.observer.mark();
    let mut client = mesh.client(0, "nsc", SERVICE, &[]);
    client.connected(&mut mesh, mark);
    // Its namespace lives on while a forwarder has its descriptor, and would answer.
    deafen(&endpoint.space);
    let _space = endpoint.kill();
    let mark = mesh.observer.mark();
    let _second = mesh.endpoint(0, "nse-2", &[set("NSM_CIDR_PREFIX", "172.16.2.0/24")]);
    let connection = client.connected_to(&mut mesh, mark, "nse-2");
    until("pings to the second endpoint", || client.space.pings(&far_address(&connection)).then_some(()));
    assert_eq!(mesh.observer.counts(mark, "nse-2", "nsc").1, 0);
    client.close();
    mesh.observer.wait("the Close", mark, "nse-2", "nsc", |event| event.kind == "DELETE");
    assert_eq!(mesh.observer.counts(mark, "nse-2", "nsc").1, 1);
}

/// Control is well, but nothing comes back from the endpoint: the client moves to another.
pub fn c25_data_plane_broken(plan: Plan) {
    let mut mesh = Mesh::start("c25", plan);
    let first = mesh.endpoint(0, "nse-1", &[set("NSM_CIDR_PREFIX", "172.16.1.0/24"), by_kernel()]);
    let mark = mesh.observer.mark();
    let mut client = mesh.client(0, "nsc", SERVICE, &[]);
    client.connected(&mut mesh, mark);
    let _second = mesh.endpoint(0, "nse-2", &[set("NSM_CIDR_PREFIX", "172.16.2.0/24")]);
    let mark = mesh.observer.mark();
    deafen(&first.space);
    let connection = client.connected_to(&mut mesh, mark, "nse-2");
    until("pings to the second endpoint", || client.space.pings(&far_address(&connection)).then_some(()));
}

/// The endpoint's kernel answers pings, not its process: by memif, `vwire nse` answers itself.
fn by_kernel() -> Setting {
    set("VWIRE_MECHANISMS", "KERNEL")
}

/// A namespace answers no ping any more.
fn deafen(space: &Netns) {
    must(&mut space.command("sysctl -q -w net.ipv4.icmp_echo_ignore_all=1"));
}

/// The endpoint's control process is dead, its packets flow, another endpoint exists: for two seconds and more nothing moves.
pub fn c26_control_of_endpoint_dead_data_healthy(plan: Plan) {
    let mut mesh = Mesh::start("c26", plan);
    let first = mesh.endpoint(0, "nse-1", &[by_kernel()]);
    let mark = mesh.observer.mark();
    let mut client = mesh.client(0, "nsc", SERVICE, &[]);
    let connection = client.connected(&mut mesh, mark);
    let _second = mesh.endpoint(0, "nse-2", &[]);
    let interface = client.space.ip("-o link show nsm-1");
    let mark = mesh.observer.mark();
    let _space = first.kill();
    // The one wait of a fixed length: what is asserted is that nothing happens in it.
    let end = Instant::now() + Duration::from_millis(2500);
    while Instant::now() < end {
        assert!(client.space.pings(&far_address(&connection)), "a packet was lost");
        assert_eq!(client.space.ip("-o link show nsm-1"), interface, "the interface was made anew");
    }
    assert_eq!(mesh.observer.counts(mark, "nse-2", "nsc"), (0, 0), "the client has moved");
}

/// The forwarder dies with its data plane, and one of another name registers: the endpoint is asked again, a refresh asks it once
/// more, and it sees one Close in the end.
pub fn c27_forwarder_dies_another_registers(plan: Plan) {
    let mut mesh = Mesh::start("c27", plan);
    let _endpoint = mesh.endpoint(0, "nse-1", &[]);
    let mark = mesh.observer.mark();
    let mut client = mesh.client(0, "nsc", SERVICE, &[set("NSM_MAX_TOKEN_LIFETIME", "30s")]);
    let connection = client.connected(&mut mesh, mark);
    let forwarder = names(&connection)[2].clone();
    mesh.kill_forwarder(&forwarder);
    mesh.kill_engine(&forwarder);
    // A tap goes with its engine; a veth does not.
    let _ = Command::new("ip").args(["-n", &client.space.name, "link", "del", "nsm-1"]).output();
    let again = mesh.observer.mark();
    mesh.add_forwarder(0, "forwarder-new", &[]);
    let connection = client.connected(&mut mesh, again);
    assert_eq!(names(&connection), ["nsc", "nsmgr-1", "forwarder-new", "nse-1"]);
    until("pings through the new forwarder", || client.space.pings(&far_address(&connection)).then_some(()));
    client.refresh(&mut mesh);
    let before = mesh.observer.mark();
    client.close();
    mesh.observer.wait("the Close", before, "nse-1", "nsc", |event| event.kind == "DELETE");
    assert_eq!(mesh.observer.counts(before, "nse-1", "nsc").1, 1);
}

/// The nsmgr is killed and comes back: packets flow all the time, the client is known to it again, and Close works.
pub fn c28_nsmgr_restarts(plan: Plan) {
    let mut mesh = Mesh::start("c28", plan);
    let endpoint = mesh.endpoint(0, "nse-1", &[]);
    let mark = mesh.observer.mark();
    let mut client = mesh.client(0, "nsc", SERVICE, &[]);
    let connection = client.connected(&mut mesh, mark);
    mesh.nodes[0].kill_nsmgr();
    assert!(client.space.pings(&far_address(&connection)), "no packet while the nsmgr is dead");
    let again = mesh.observer.mark();
    mesh.start_nsmgr(0, &[]);
    let connection = client.connected(&mut mesh, again);
    assert_eq!(endpoint_of(&connection), "nse-1");
    assert!(client.space.pings(&far_address(&connection)));
    let before = mesh.observer.mark();
    let space = client.close();
    mesh.observer.wait("the Close", before, "nse-1", "nsc", |event| event.kind == "DELETE");
    until("the interfaces are gone", || {
        (space.interfaces().is_empty() && endpoint.space.interfaces().is_empty()).then_some(())
    });
}

/// The client and its nsmgr are killed together and come back, the client in the same namespace: it gets its interface again, and the
/// endpoint has one connection of it.
pub fn c28_client_and_nsmgr_restart(plan: Plan) {
    client_dies_with(Mesh::start("c28c", plan), true, false);
}

/// Likewise the client, its nsmgr and its forwarder: nobody but the packet engine knows that there was a connection.
pub fn c28_client_nsmgr_and_forwarder_restart(plan: Plan) {
    client_dies_with(Mesh::start("c28f", plan), true, true);
}

/// Likewise the client and its forwarder. A client that does not ask its nsmgr what it had: Go's.
pub fn c28_client_and_forwarder_restart(plan: Plan) {
    client_dies_with(Mesh::start("c28w", Plan { nsc: Kind::Go, ..plan }), false, true);
}

fn client_dies_with(mut mesh: Mesh, nsmgr: bool, forwarder: bool) {
    if mesh.plan.forwarder == Kind::Go {
        return; // it keeps the interface of the former connection until that expires
    }
    let endpoint = mesh.endpoint(0, "nse-1", &[]);
    let mark = mesh.observer.mark();
    let mut client = mesh.client(0, "nsc", SERVICE, &[]);
    client.connected(&mut mesh, mark);
    if nsmgr {
        mesh.nodes[0].kill_nsmgr();
    }
    if forwarder {
        mesh.kill_forwarder("forwarder-1-1");
    }
    let space = client.kill();
    let again = mesh.observer.mark();
    if nsmgr {
        mesh.start_nsmgr(0, &[]);
    }
    if forwarder {
        mesh.add_forwarder(0, "forwarder-1-1", &[]);
    }
    let mut client = mesh.client_in(0, "nsc", SERVICE, space, &[]);
    let connection = client.connected(&mut mesh, again);
    assert!(client.space.pings(&far_address(&connection)));
    assert_eq!(client.space.interfaces(), ["nsm-1"]);
    mesh.observer.wait("the former's end", mark, "nse-1", "nsc", |event| event.kind == "DELETE");
    assert_eq!(mesh.observer.counts(mark, "nse-1", "nsc").1, 1, "the former connection is closed, once");
    let space = client.close();
    until("the interfaces are gone", || {
        (space.interfaces().is_empty() && endpoint.space.interfaces().is_empty()).then_some(())
    });
}

/// The endpoint's node loses its nsmgr: packets flow on and nothing moves. Then it loses the rest, but for the endpoint: the client
/// goes to another endpoint, on a third node.
pub fn c28_remote_node_dies(plan: Plan) {
    if plan.forwarder == Kind::Go {
        return; // it joins interfaces of one node only
    }
    let mut mesh = Mesh::start("c28r", plan.nodes(3));
    let _first = mesh.endpoint(1, "nse-1", &[set("NSM_CIDR_PREFIX", "172.16.1.0/24")]);
    let mark = mesh.observer.mark();
    let mut client = mesh.client(0, "nsc", SERVICE, &[]);
    let connection = client.connected(&mut mesh, mark);
    assert_eq!(names(&connection).len(), 6);
    let _second = mesh.endpoint(2, "nse-2", &[set("NSM_CIDR_PREFIX", "172.16.2.0/24")]);
    let mark = mesh.observer.mark();
    mesh.nodes[1].kill_nsmgr();
    mesh.observer.wait("the loss", mark, "nsmgr-1", "nsc", |event| event.connections[0]["state"] == "DOWN");
    for _ in 0..3 {
        assert!(client.space.pings(&far_address(&connection)), "no packet while the remote nsmgr is dead");
    }
    assert_eq!(mesh.observer.counts(mark, "nse-2", "nsc"), (0, 0), "the client has moved");
    let forwarder = mesh.forwarder_name(1, 0);
    mesh.kill_forwarder(&forwarder);
    mesh.kill_engine(&forwarder);
    let connection = client.connected_to(&mut mesh, mark, "nse-2");
    until("pings to the second endpoint", || client.space.pings(&far_address(&connection)).then_some(()));
    let before = mesh.observer.mark();
    let space = client.close();
    mesh.observer.wait("the Close", before, "nse-2", "nsc", |event| event.kind == "DELETE");
    until("the interface is gone", || space.interfaces().is_empty().then_some(()));
}

/// The registry comes back empty: endpoints and forwarders register again, an old client refreshes, a new one connects.
pub fn c29_registry_restarts_empty(plan: Plan) {
    let mut mesh = Mesh::start("c29", plan);
    let _endpoint = mesh.endpoint(0, "nse-1", &[]);
    let mark = mesh.observer.mark();
    let mut old = mesh.client(0, "old", SERVICE, &[set("NSM_MAX_TOKEN_LIFETIME", "30s")]);
    old.connected(&mut mesh, mark);
    mesh.registry.take().unwrap().kill();
    mesh.start_registry(&[]);
    for name in ["nse-1", "forwarder-1-1"] {
        mesh.wait_registered(name);
    }
    let connection = old.refresh(&mut mesh);
    assert!(old.space.pings(&far_address(&connection)));
    let mark = mesh.observer.mark();
    let mut new = mesh.client(0, "new", SERVICE, &[]);
    let connection = new.connected(&mut mesh, mark);
    assert!(new.space.pings(&far_address(&connection)));
}

/// The endpoint is gone for good and the client ends while it heals: nothing is left on the node, and the name is free after its
/// registration's end.
pub fn c30_endpoint_gone_close_while_healing(plan: Plan) {
    let mut mesh = Mesh::start("c30", plan);
    let endpoint = mesh.endpoint(0, "nse-1", &super::expiry::short_registration());
    let mark = mesh.observer.mark();
    let mut client = mesh.client(0, "nsc", SERVICE, &[set("NSM_REQUEST_TIMEOUT", "3s")]);
    client.connected(&mut mesh, mark);
    deafen(&endpoint.space);
    let _space = endpoint.kill();
    mesh.observer.wait("the loss", mark, "nsmgr-1", "nsc", |event| {
        event.kind == "DELETE" || event.connections[0]["state"] == "DOWN"
    });
    let space = client.end();
    until("the client's interface is gone", || space.interfaces().is_empty().then_some(()));
    mesh.wait_gone("nse-1");
    assert_eq!(mesh.nodes[0].space.interfaces(), ["u0"]);
}
