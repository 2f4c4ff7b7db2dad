//! Request, refresh, Close; which sockets; descriptors.

use std::os::unix::fs::MetadataExt;

use super::{SERVICE, far_address, names, path_length};
use crate::peers::mesh::{Mesh, Plan, set};
use crate::peers::process::Process;
use crate::peers::{Kind, until};

/// 4 segments both times; the endpoint sees 2 Requests and 1 Close; pings; nothing is left.
pub fn c01_request_refresh_close(plan: Plan) {
    one_life(Mesh::start("c01", plan));
}

/// The same between nodes: 6 segments. Go's kernel forwarder joins one node only.
pub fn c02_between_nodes(plan: Plan) {
    if plan.forwarder == Kind::Vwire {
        one_life(Mesh::start("c02", plan.nodes(2)));
    }
}

/// Nobody listens on TCP but the registry.
pub fn c15_unix_sockets_only(plan: Plan) {
    one_life(Mesh::start("c15", Plan { tcp: false, ..plan }));
}

/// One connection's life: the endpoint is on the first node, the client on the last.
fn one_life(mut mesh: Mesh) {
    let endpoint = mesh.endpoint(0, "nse-1", &[]);
    let mark = mesh.observer.mark();
    let last = mesh.nodes.len() - 1;
    // Short tokens make `vwire nsc` refresh soon: after 6 s. A Go server ends a connection 15 s before its token.
    let mut client = mesh.client(last, "nsc", SERVICE, &[set("NSM_MAX_TOKEN_LIFETIME", "30s")]);
    let connection = client.connected(&mut mesh, mark);
    let path = names(&connection);
    assert_eq!(path.len(), path_length(&mesh), "{path:?}");
    assert_eq!((path[0].as_str(), path.last().unwrap().as_str()), ("nsc", "nse-1"));
    assert!(client.space.pings(&far_address(&connection)), "no ping to {}", far_address(&connection));
    let (requests, closes) = mesh.observer.counts(mark, "nse-1", "nsc");
    assert_eq!((requests, closes), (1, 0));
    let refreshed = client.refresh(&mut mesh);
    assert_eq!(names(&refreshed), path);
    assert_eq!(mesh.observer.counts(mark, "nse-1", "nsc"), (2, 0));
    assert!(client.space.pings(&far_address(&refreshed)));
    let space = client.close();
    mesh.observer.wait("the Close", mark, "nse-1", "nsc", |event| event.kind == "DELETE");
    until("the interfaces are gone", || {
        (space.interfaces().is_empty() && endpoint.space.interfaces().is_empty()).then_some(())
    });
    assert_eq!(mesh.observer.counts(mark, "nse-1", "nsc").1, 1);
    for node in &mesh.nodes {
        assert_eq!(node.space.interfaces(), ["u0"], "left on node {}", node.number);
    }
}

/// The client asks before there is an endpoint, or even its service: it gets it as soon as there is, and asks it once.
pub fn c03_request_before_the_endpoint(plan: Plan) {
    let mut mesh = Mesh::start("c03", plan);
    let mark = mesh.observer.mark();
    let mut client = mesh.client(0, "nsc", SERVICE, &[set("NSM_REQUEST_TIMEOUT", "3s")]);
    if client.kind == Kind::Go {
        client.process.told("request-failed", 0);
    }
    let _endpoint = mesh.endpoint(0, "nse-1", &[]);
    let connection = client.connected(&mut mesh, mark);
    assert_eq!(names(&connection).len(), 4);
    assert!(client.space.pings(&far_address(&connection)));
    // The client may be quicker than the watch of the new endpoint, whose first event has the connection then.
    assert!(mesh.observer.counts(mark, "nse-1", "nsc").0 <= 1, "asked more than once");
}

/// The endpoint is registered, its socket is there, and nobody answers for a second.
pub fn c04_endpoint_that_answers_late(plan: Plan) {
    let mut mesh = Mesh::start("c04", plan);
    let mut endpoint = mesh.endpoint_of(Kind::Go, 0, "nse-1", &[set("NSM_LISTEN_DELAY", "1s")]);
    endpoint.process.told("registered", 0);
    let mark = mesh.observer.mark();
    let mut client = mesh.client(0, "nsc", SERVICE, &[]);
    let connection = client.connected(&mut mesh, mark);
    assert!(client.space.pings(&far_address(&connection)));
    assert_eq!(endpoint.process.events(0, |event| event["event"] == "request").len(), 1);
}

/// A forwarder refuses, then one that works comes: the namespace's descriptor is sent to each, and neither nsmgr nor forwarder keeps
/// one after the Close. (A Go peer keeps what it was sent as long as the connection that it came over.)
pub fn c16_descriptors_after_a_refusal(plan: Plan) {
    let mut mesh = Mesh::start("c16", Plan { forwarders: 0, ..plan });
    let mut refusing = mesh.add_forwarder_of(Kind::Go, 0, "refusing", &[set("NSM_REFUSE", "true")]);
    let _endpoint = mesh.endpoint(0, "nse-1", &[]);
    let mark = mesh.observer.mark();
    let mut client = mesh.client(0, "nsc", SERVICE, &[]);
    refusing.told("refused", 0);
    mesh.add_forwarder(0, "good", &[]);
    let connection = client.connected(&mut mesh, mark);
    assert_eq!(names(&connection)[2], "good");
    assert!(client.space.pings(&far_address(&connection)));
    let space = client.close();
    let inode = std::fs::metadata(format!("/run/netns/{}", space.name)).unwrap().ino();
    let link = format!("net:[{inode}]");
    let nsmgr = (mesh.plan.nsmgr, mesh.nodes[0].nsmgr.as_ref().unwrap());
    let forwarder = (mesh.plan.forwarder, &mesh.nodes[0].forwarders[0].process);
    for (_, process) in [nsmgr, forwarder].into_iter().filter(|(kind, _)| *kind == Kind::Vwire) {
        let what = format!("{} holds no descriptor of the client's namespace", process.name);
        until(&what, || (!holds(process, &link)).then_some(()));
    }
}

/// True if a process holds a descriptor of this file.
fn holds(process: &Process, link: &str) -> bool {
    let listed = std::fs::read_dir(format!("/proc/{}/fd", process.pid())).unwrap();
    listed.flatten().any(|entry| std::fs::read_link(entry.path()).is_ok_and(|to| to.as_os_str() == link))
}
