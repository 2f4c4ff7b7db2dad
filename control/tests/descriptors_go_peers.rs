//! Go peers keep every descriptor that comes by a connection for as long as that connection lasts: they must not fill up behind a
//! manager of ours, which keeps its connections open. Needs root and Go.

mod peers;

use peers::Kind;
use peers::mesh::{Mesh, Plan};

/// More than a connection of ours carries three times.
const REFRESHES: usize = 100;
/// What one connection of ours may carry before it ends, and what Go frees only when its garbage is collected.
const SOME: usize = 64;

/// How many descriptors a process has open.
fn open(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

#[test]
fn a_go_forwarder_and_a_go_endpoint_do_not_fill_up_behind_our_manager() {
    let mut mesh = Mesh::start("gofds", Plan { nsmgr: Kind::Vwire, ..Plan::of(Kind::Go) });
    let endpoint = mesh.endpoint(0, "nse-1", &[]);
    let mark = mesh.observer.mark();
    let mut client = mesh.client(0, "nsc", "kernel://icmp-responder/nsm-1", &[]);
    client.connected(&mut mesh, mark);
    let forwarder = mesh.nodes[0].forwarders[0].process.pid();
    let pids = [forwarder, endpoint.process.pid()];
    let before = pids.map(open);
    for _ in 0..REFRESHES {
        // Each sends the descriptor of the client's namespace again.
        client.refresh(&mut mesh);
    }
    let after = pids.map(open);
    eprintln!(
        "descriptors of the Go forwarder and endpoint: {before:?}, after {REFRESHES} refreshes {after:?}"
    );
    for (before, after) in before.into_iter().zip(after) {
        assert!(after <= before + SOME, "{after} descriptors, and {before} before {REFRESHES} refreshes");
    }
    client.close();
}
