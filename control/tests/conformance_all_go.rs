//! The cases themselves, tried on the Go implementation: what it does not do is no case. Run with `--ignored`.

mod cases;
mod peers;

use cases::{SERVICE, far_address};
use peers::Kind;
use peers::mesh::{Mesh, Plan};
use peers::process::Process;

conformance!([#[ignore = "tries the cases, not vwire"]] Plan::of(Kind::Go));

/// How many descriptors of network namespaces a Go forwarder holds after clients that came and went, one after another, among Go peers
/// alone and among ours.
#[test]
#[ignore = "measures a Go forwarder, not vwire"]
fn namespaces_that_a_go_forwarder_keeps() {
    const CLIENTS: usize = 20;
    let go = Plan::of(Kind::Go);
    for (who, plan) in [
        ("all Go", go),
        ("our nsmgr", Plan { nsmgr: Kind::Vwire, ..go }),
        ("our workloads", Plan { nsc: Kind::Vwire, nse: Kind::Vwire, ..go }),
        ("ours but the forwarder", Plan { forwarder: Kind::Go, ..Plan::of(Kind::Vwire) }),
    ] {
        let mut mesh = Mesh::start("held", plan);
        let _endpoint = mesh.endpoint(0, "nse-1", &[]);
        let before = namespaces(&mesh.nodes[0].forwarders[0].process);
        for number in 0..CLIENTS {
            let mark = mesh.observer.mark();
            let name = format!("nsc-{number}");
            let mut client = mesh.client(0, &name, SERVICE, &[]);
            let connection = client.connected(&mut mesh, mark);
            assert!(client.space.pings(&far_address(&connection)));
            client.close();
            mesh.observer.wait("the Close", mark, "nse-1", &name, |event| event.kind == "DELETE");
        }
        let after = namespaces(&mesh.nodes[0].forwarders[0].process);
        let nsmgr = namespaces(mesh.nodes[0].nsmgr.as_ref().unwrap());
        eprintln!("{who}: {before} before, {after} after {CLIENTS} clients; its nsmgr {nsmgr}");
    }
}

fn namespaces(process: &Process) -> usize {
    let listed = std::fs::read_dir(format!("/proc/{}/fd", process.pid())).unwrap();
    let links = listed.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
    links.filter(|to| to.to_string_lossy().starts_with("net:[")).count()
}
