//! What ends by time, and what ends while something else is dead.

use super::{SERVICE, far_address};
use crate::peers::mesh::{Mesh, Plan, Setting, set};
use crate::peers::registry::RegistryClient;
use crate::peers::{Kind, until};

/// The endpoint is killed: a refresh fails by its deadline, other calls go on, and it can be unregistered.
pub fn c06_endpoint_killed_refresh_fails(plan: Plan) {
    let mut mesh = Mesh::start("c06", plan);
    let endpoint = mesh.endpoint(0, "nse-1", &[]);
    let _other = mesh.endpoint(0, "nse-2", &[set("NSM_SERVICE_NAMES", "other")]);
    let mark = mesh.observer.mark();
    // This one's refresh is to be seen to fail: a Go client without healing tells it.
    let settings = [set("NSM_REQUEST_TIMEOUT", "5s"), set("NSM_HEAL", "false")];
    let mut client = mesh.client_of(Kind::Go, 0, "nsc", SERVICE, &settings);
    client.connected(&mut mesh, mark);
    let _space = endpoint.kill();
    let answer = client.process.ask("refresh 0", &["connected", "request-failed"]);
    assert_eq!(answer["event"], "request-failed", "{answer}");
    let mark = mesh.observer.mark();
    let mut second = mesh.client(0, "second", "kernel://other/nsm-1", &[]);
    let connection = second.connected(&mut mesh, mark);
    assert!(second.space.pings(&far_address(&connection)));
    let mut owner = mesh.registry_client_as("owner", "nse-1", Vec::new());
    owner.call("unregister", "nse", &serde_json::json!({"name": "nse-1"})).unwrap();
    mesh.wait_gone("nse-1");
    drop(client);
}

/// A client dies: when its token ends, each hop closes, and its interface is gone from the endpoint.
pub fn c17_client_dies_tokens_end(plan: Plan) {
    let mut mesh = Mesh::start("c17", plan);
    let endpoint = mesh.endpoint(0, "nse-1", &[]);
    let mark = mesh.observer.mark();
    let settings = [set("NSM_MAX_TOKEN_LIFETIME", "6s"), set("NSM_REQUEST_TIMEOUT", "3s")];
    let mut client = mesh.client(0, "nsc", SERVICE, &settings);
    client.connected(&mut mesh, mark);
    client.process.kill();
    mesh.observer.wait("the Close", mark, "nse-1", "nsc", |event| event.kind == "DELETE");
    until("the interfaces are gone", || {
        (client.space.interfaces().is_empty() && endpoint.space.interfaces().is_empty()).then_some(())
    });
    assert_eq!(mesh.observer.counts(mark, "nse-1", "nsc").1, 1);
}

/// Tokens of a few seconds: a Go nsmgr closes a connection before its token's end, by the time that the last Request had. The client
/// gives its Requests less time, and refreshes before that: its connection lives through several tokens.
pub fn c17_short_tokens_are_refreshed_in_time(plan: Plan) {
    if plan.nsc == Kind::Go {
        return; // it loses its connection
    }
    let mut mesh = Mesh::start("c17s", plan);
    let _endpoint = mesh.endpoint(0, "nse-1", &[]);
    let mark = mesh.observer.mark();
    let mut client = mesh.client(0, "nsc", SERVICE, &[set("NSM_MAX_TOKEN_LIFETIME", "6s")]);
    client.connected(&mut mesh, mark);
    let start = std::time::Instant::now();
    while start.elapsed() < std::time::Duration::from_secs(8) {
        let connection = client.refresh(&mut mesh);
        assert!(client.space.pings(&far_address(&connection)));
    }
    assert_eq!(mesh.observer.counts(mark, "nse-1", "nsc").1, 0, "closed meanwhile");
}

/// Tokens of an endpoint whose registration shall end soon. A Go server ends it before its token, by the time that the call had (15 s
/// as a rule): with tokens of less, there would be no registration at all.
pub fn short_registration() -> [Setting; 2] {
    [set("NSM_MAX_TOKEN_LIFETIME", "20s"), set("NSM_TRY_TIMEOUT", "15s")]
}

/// An endpoint dies: its registration ends with its token.
pub fn c18_endpoint_dies_registration_ends(plan: Plan) {
    let mut mesh = Mesh::start("c18", plan);
    let endpoint = mesh.endpoint(0, "nse-1", &short_registration());
    let _space = endpoint.kill();
    mesh.wait_gone("nse-1");
}

/// Tokens of a few seconds: an endpoint and a forwarder renew their registrations in time, and nobody sees them gone meanwhile. (A Go
/// registry forgets them before their tokens' end, by the time that a registration had.)
pub fn c18_short_tokens_are_renewed_in_time(plan: Plan) {
    if plan.nse == Kind::Go || plan.forwarder == Kind::Go {
        return; // a Go one is registered for moments
    }
    let mut mesh = Mesh::start("c18s", plan);
    let brief = [set("NSM_MAX_TOKEN_LIFETIME", "6s")];
    let _endpoint = mesh.endpoint(0, "nse-1", &brief);
    mesh.add_forwarder(0, "brief", &brief);
    let mut watcher = mesh.registry_client("watcher", Vec::new());
    let names = ["nse-1", "brief"];
    for name in names {
        watcher.watch("nse", &serde_json::json!({"name": name}));
    }
    let seen = |watcher: &RegistryClient, name: &str| {
        watcher.0.events(0, |event| {
            event["event"] == "found" && event["message"]["networkServiceEndpoint"]["name"] == *name
        })
    };
    for name in names {
        // What there was, and two renewals and more: longer than a token lives.
        until(&format!("renewals of {name}"), || (seen(&watcher, name).len() >= 4).then_some(()));
        let gone = seen(&watcher, name).iter().filter(|event| event["message"]["deleted"] == true).count();
        assert_eq!(gone, 0, "{name} was gone meanwhile");
    }
}

/// The registry is dead: a Close still reaches the endpoint, once, and the interfaces go.
pub fn c33_registry_dead_close_arrives(plan: Plan) {
    let mut mesh = Mesh::start("c33", plan);
    let endpoint = mesh.endpoint(0, "nse-1", &[]);
    let mark = mesh.observer.mark();
    let mut client = mesh.client(0, "nsc", SERVICE, &[]);
    let connection = client.connected(&mut mesh, mark);
    mesh.registry.take().unwrap().kill();
    assert!(client.space.pings(&far_address(&connection)));
    let space = client.close();
    mesh.observer.wait("the Close", mark, "nse-1", "nsc", |event| event.kind == "DELETE");
    until("the interfaces are gone", || {
        (space.interfaces().is_empty() && endpoint.space.interfaces().is_empty()).then_some(())
    });
    assert_eq!(mesh.observer.counts(mark, "nse-1", "nsc").1, 1);
}
