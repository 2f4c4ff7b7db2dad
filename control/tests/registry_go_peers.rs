//! Registries and Go's chains for their clients (with the default policies): ours, and Go's, which shows that the cases are right.

mod peers;

use std::collections::HashSet;

use peers::mesh::{Mesh, Plan, Setting, set};
use peers::registry::RegistryClient;
use peers::{Kind, until};
use serde_json::{Value, json};

/// A mesh that is a registry and no more.
fn registry(tag: &str, kind: Kind) -> Mesh {
    let mut mesh = Mesh::bare(tag, Plan { registry: kind, nodes: 0, ..Plan::of(Kind::Go) });
    mesh.start_registry(&[]);
    mesh
}

fn endpoint(name: &str, service: &str, labels: Value) -> Value {
    json!({
        "name": name,
        "networkServiceNames": [service],
        "networkServiceLabels": {service: {"labels": labels}},
        "url": "tcp://192.0.2.1:5001",
    })
}

/// A client without chains.
fn raw() -> Vec<Setting> {
    vec![set("GOPEERS_RAW", "true")]
}

/// The names of what was found.
fn found(client: &mut RegistryClient, kind: &str, query: &Value) -> Vec<String> {
    let messages = client.call("find", kind, query).unwrap();
    let mut names: Vec<String> = messages.iter().map(|message| name(kind, message)).collect();
    names.sort();
    names
}

fn name(kind: &str, message: &Value) -> String {
    let object = if kind == "ns" { "networkService" } else { "networkServiceEndpoint" };
    message[object]["name"].as_str().unwrap_or_default().to_owned()
}

/// A service registered without a payload has IP.
fn c34_payload_by_default(kind: Kind) {
    let mut mesh = registry("c34", kind);
    let mut client = mesh.registry_client("owner", Vec::new());
    client.call("register", "ns", &json!({"name": "plain"})).unwrap();
    client.call("register", "ns", &json!({"name": "ethernet", "payload": "ETHERNET"})).unwrap();
    let answer = client.call("find", "ns", &json!({"name": "plain"})).unwrap();
    assert_eq!(answer[0]["networkService"]["payload"], "IP", "{answer:?}");
    let answer = client.call("find", "ns", &json!({"payload": "ETHERNET"})).unwrap();
    assert_eq!(answer.iter().map(|each| name("ns", each)).collect::<Vec<_>>(), ["ethernet"]);
}

/// Services from the operator's file: Go's client finds them, as they are in the file now, and may not change them.
#[test]
fn services_of_a_file_are_found_and_are_the_operators() {
    let mut mesh = Mesh::bare("file", Plan { registry: Kind::Vwire, nodes: 0, ..Plan::of(Kind::Go) });
    let file = mesh.directory().join("services.yaml");
    let head = "apiVersion: networkservicemesh.io/v1\nkind: NetworkService\n";
    let one = format!(
        "{head}metadata: {{name: one}}\nspec:\n  payload: ETHERNET\n  matches:\n  - source_selector: {{app: web}}\n    \
         routes: [{{destination_selector: {{app: db}}}}]\n"
    );
    std::fs::write(&file, format!("{one}---\n{head}metadata: {{name: two}}\n")).unwrap();
    mesh.start_registry(&[set("VWIRE_REGISTRY_SERVICES", file.display().to_string())]);
    let mut client = mesh.registry_client("owner", raw());
    assert_eq!(found(&mut client, "ns", &json!({})), ["one", "two"]);
    let answer = client.call("find", "ns", &json!({"name": "one"})).unwrap();
    let service = &answer[0]["networkService"];
    assert_eq!(service["payload"], "ETHERNET", "{answer:?}");
    assert_eq!(service.pointer("/matches/0/routes/0/destinationSelector/app"), Some(&json!("db")));
    for verb in ["register", "unregister"] {
        let refused = client.call(verb, "ns", &json!({"name": "one"})).unwrap_err();
        assert_eq!(refused.0, "PermissionDenied", "{refused:?}");
    }
    client.watch("ns", &json!({"name": "two"}));
    client.0.told("found", 0);
    std::fs::write(&file, one).unwrap();
    client
        .0
        .event("the end of two", 0, |event| event["event"] == "found" && event["message"]["deleted"] == true);
    assert_eq!(found(&mut client, "ns", &json!({})), ["one"]);
}

/// Register, find, unregister over mutual TLS: one, then none. Who registered is in `path_ids`. Each service is healthy.
fn c35_register_find_unregister(kind: Kind) {
    let mut mesh = registry("c35", kind);
    let url = mesh.registry_url();
    let mut prober = mesh.probe(
        "prober",
        url,
        "registry.NetworkServiceRegistry,registry.NetworkServiceEndpointRegistry",
        &[],
    );
    let probed = prober.told("probed", 0);
    for service in ["", "registry.NetworkServiceRegistry", "registry.NetworkServiceEndpointRegistry"] {
        assert_eq!(probed["health"][service], "SERVING", "{probed}");
    }
    let mut client = mesh.registry_client("owner", Vec::new());
    client.call("register", "ns", &json!({"name": "icmp", "payload": "ETHERNET"})).unwrap();
    let answer = client.call("register", "nse", &endpoint("nse-1", "icmp", json!({}))).unwrap();
    assert_eq!(answer[0]["pathIds"], json!(["spiffe://example.org/owner", "spiffe://example.org/registry"]));
    assert!(
        answer[0]["expirationTime"].is_string() && answer[0]["initialRegistrationTime"].is_string(),
        "{answer:?}"
    );
    assert_eq!(found(&mut client, "ns", &json!({"name": "icmp"})), ["icmp"]);
    assert_eq!(found(&mut client, "nse", &json!({"networkServiceNames": ["icmp"]})), ["nse-1"]);
    client.call("unregister", "nse", &answer[0]).unwrap();
    // Go's chain fails its own check of what a server answers to this one, also among Go peers.
    let mut raw = mesh.registry_client_as("raw", "owner", raw());
    raw.call("unregister", "ns", &json!({"name": "icmp"})).unwrap();
    assert_eq!(found(&mut client, "ns", &json!({})), [""; 0]);
    assert_eq!(found(&mut client, "nse", &json!({})), [""; 0]);
}

/// Ten endpoints that are refreshed stay, one that is not goes.
fn c36_expiry_and_refresh(kind: Kind) {
    let mut mesh = registry("c36", kind);
    // A registration ends with its token, and a little before: the time that the call might take.
    let short =
        |lifetime: &str| vec![set("NSM_MAX_TOKEN_LIFETIME", lifetime), set("NSM_REQUEST_TIMEOUT", "1s")];
    let mut kept = mesh.registry_client("kept", short("5s"));
    let mut dying = mesh.registry_client("dying", short("5s"));
    for number in 0..10 {
        kept.call("register", "nse", &endpoint(&format!("kept-{number}"), "icmp", json!({}))).unwrap();
    }
    dying.call("register", "nse", &endpoint("dying", "icmp", json!({}))).unwrap();
    let mut client = mesh.registry_client("asking", Vec::new());
    assert_eq!(found(&mut client, "nse", &json!({})).len(), 11);
    dying.0.kill();
    mesh.wait_gone("dying");
    assert_eq!(found(&mut client, "nse", &json!({"networkServiceNames": ["icmp"]})).len(), 10);
}

/// Watches by name, by label and by service: what is there, each update, and the end.
fn c37_watches(kind: Kind) {
    let mut mesh = registry("c37", kind);
    let mut client = mesh.registry_client("owner", Vec::new());
    client.call("register", "nse", &endpoint("nse-1", "icmp", json!({"app": "a"}))).unwrap();
    client.call("register", "nse", &endpoint("nse-2", "icmp", json!({"app": "b"}))).unwrap();
    client.call("register", "nse", &endpoint("nse-3", "other", json!({"app": "a"}))).unwrap();
    let queries = [
        (json!({"name": "nse-1"}), HashSet::from(["nse-1"])),
        (json!({"networkServiceNames": ["icmp"]}), HashSet::from(["nse-1", "nse-2"])),
        (
            json!({"networkServiceNames": ["icmp"], "networkServiceLabels": {"icmp": {"labels": {"app": "a"}}}}),
            HashSet::from(["nse-1"]),
        ),
    ];
    let mut watchers = Vec::new();
    for (number, (query, expected)) in queries.iter().enumerate() {
        let mut watcher = mesh.registry_client(&format!("watcher-{number}"), Vec::new());
        watcher.watch("nse", query);
        until("what is there", || (seen(&watcher, false) == *expected).then_some(()));
        watchers.push(watcher);
    }
    let marks: Vec<usize> = watchers.iter().map(|watcher| watcher.0.mark()).collect();
    client.call("register", "nse", &endpoint("nse-1", "icmp", json!({"app": "a", "new": "label"}))).unwrap();
    for (watcher, mark) in watchers.iter_mut().zip(marks) {
        let update = watcher.0.told("found", mark);
        let label = update.pointer("/message/networkServiceEndpoint/networkServiceLabels/icmp/labels/new");
        assert_eq!(label, Some(&json!("label")), "{update}");
    }
    client.call("unregister", "nse", &json!({"name": "nse-1"})).unwrap();
    for watcher in &watchers {
        until("the end", || seen(watcher, true).contains("nse-1").then_some(()));
        assert!(!seen(watcher, true).contains("nse-2") && !seen(watcher, false).contains("nse-3"));
    }
}

/// The names that a watcher was told of, as there or as deleted.
fn seen(watcher: &RegistryClient, deleted: bool) -> HashSet<&'static str> {
    let told = watcher
        .0
        .events(0, |event| event["event"] == "found" && (event["message"]["deleted"] == true) == deleted);
    let known =
        |name: String| ["nse-1", "nse-2", "nse-3"].into_iter().find(|each| *each == name).unwrap_or("?");
    told.iter().map(|event| known(name("nse", &event["message"]))).collect()
}

/// Another identity may neither replace nor remove what somebody owns.
fn c38_names_have_owners(kind: Kind) {
    let mut mesh = registry("c38", kind);
    // A chain would keep back what it knows to be wrong.
    let mut owner = mesh.registry_client("owner", raw());
    let mut thief = mesh.registry_client("thief", raw());
    let service = json!({"name": "icmp", "payload": "ETHERNET"});
    let entry = endpoint("nse-1", "icmp", json!({}));
    owner.call("register", "ns", &service).unwrap();
    owner.call("register", "nse", &entry).unwrap();
    for (verb, what, message) in [
        ("register", "ns", &json!({"name": "icmp", "payload": "IP"})),
        ("unregister", "ns", &service),
        ("register", "nse", &endpoint("nse-1", "stolen", json!({}))),
        ("unregister", "nse", &entry),
    ] {
        let (code, text) = thief.call(verb, what, message).unwrap_err();
        assert_eq!(code, "PermissionDenied", "{verb} {what}: {text}");
    }
    let kept = owner.call("find", "nse", &json!({"name": "nse-1"})).unwrap();
    assert_eq!(kept[0]["networkServiceEndpoint"]["networkServiceNames"], json!(["icmp"]));
    let kept = owner.call("find", "ns", &json!({"name": "icmp"})).unwrap();
    assert_eq!(kept[0]["networkService"]["payload"], "ETHERNET");
    owner.call("register", "nse", &entry).unwrap();
    owner.call("unregister", "nse", &entry).unwrap();
    owner.call("unregister", "ns", &service).unwrap();
}

macro_rules! cases {
    ($module:ident, $kind:expr, $($case:ident),+) => {
        mod $module {
            $(#[test]
            fn $case() {
                super::$case($kind);
            })+
        }
    };
}

cases!(
    ours,
    super::Kind::Vwire,
    c34_payload_by_default,
    c35_register_find_unregister,
    c36_expiry_and_refresh,
    c37_watches,
    c38_names_have_owners
);
cases!(
    gos,
    super::Kind::Go,
    c34_payload_by_default,
    c35_register_find_unregister,
    c36_expiry_and_refresh,
    c37_watches,
    c38_names_have_owners
);
