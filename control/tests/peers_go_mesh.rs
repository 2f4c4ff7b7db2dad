//! The Go peers among themselves: what the tests against them rest on. And with our issuer.

mod peers;

use peers::mesh::{Mesh, Plan};
use peers::observer::segments;
use peers::{Kind, until};

#[test]
fn a_mesh_of_go_peers_carries_pings_and_leaves_nothing() {
    one_life(Plan::of(Kind::Go));
}

/// Nothing in the mesh is ours but who its members are.
#[test]
fn go_peers_live_by_the_svids_of_vwire_ca() {
    one_life(Plan { issuer: Kind::Vwire, ..Plan::of(Kind::Go) });
}

fn one_life(plan: Plan) {
    let mut mesh = Mesh::start("gomesh", plan);
    let endpoint = mesh.endpoint(0, "nse-1", &[]);
    let mark = mesh.observer.mark();
    let mut client = mesh.client(0, "nsc", "kernel://icmp-responder/nsm-1", &[]);
    let connection = client.connected(&mut mesh, mark);
    let names: Vec<String> = segments(&connection).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["nsc", "nsmgr-1", "forwarder-1-1", "nse-1"]);
    assert_eq!(client.space.addresses("nsm-1"), ["172.16.0.1/32"]);
    assert!(client.space.pings("172.16.0.0"));
    client.refresh(&mut mesh);
    let space = client.close();
    mesh.observer.wait("the Close", mark, "nse-1", "nsc", |event| event.kind == "DELETE");
    assert_eq!(mesh.observer.counts(mark, "nse-1", "nsc"), (2, 1));
    until("the interfaces are gone", || {
        (space.interfaces().is_empty() && endpoint.space.interfaces().is_empty()).then_some(())
    });
}
