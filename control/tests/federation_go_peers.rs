//! Two trust domains, ours by `vwire ca` and one of go-spiffe's: their bundles are exchanged as SPIFFE bundles, then each is the other's
//! peer, both ways; and no more when a bundle is taken away. And the registry calls before v1, by the module that was published then.

mod peers;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use peers::mesh::{Setting, set};
use peers::netns::Netns;
use peers::process::Process;
use peers::registry::RegistryClient;
use peers::{PATIENCE, build, must, until};
use serde_json::{Value, json};
use vwire_control::identity::policy::Policies;
use vwire_control::identity::{Identity, TokenSource};
use vwire_control::registry::remote::Remote;
use vwire_control::registry::{Registry, RegistryCall};
use vwire_control::transport::{Dialling, Pool, Target};
use vwire_proto::nsm::registry::NetworkServiceEndpoint;

/// A namespace, a folder and the processes in them.
struct Place {
    space: Netns,
    folder: tempfile::TempDir,
}

impl Place {
    fn new(tag: &str) -> Self {
        Self { space: Netns::new(tag), folder: tempfile::tempdir().unwrap() }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn socket(&self, name: &str) -> String {
        format!("unix://{}", self.at(name).display())
    }

    fn start(&self, name: &str, program: &Path, role: &[&str], settings: &[Setting]) -> Process {
        Process::start(name, &self.space.name, self.folder.path(), &[], program, role, settings)
    }

    /// `vwire ca` of a domain, with a socket `<domain>-<name>` for each workload. Its bundle is published at a port of its choice.
    fn ca(&self, domain: &str, workloads: &[&str]) -> Process {
        let sockets: Vec<String> = workloads
            .iter()
            .map(|name| format!("{name}={}", self.at(&format!("{domain}-{name}")).display()))
            .collect();
        let settings = [
            set("VWIRE_CA_TRUST_DOMAIN", domain),
            set("VWIRE_CA_WORKLOADS", sockets.join(",")),
            set("VWIRE_CA_FEDERATION", self.at("links").display().to_string()),
            set("VWIRE_CA_BUNDLE_ENDPOINT", "127.0.0.1:0"),
            set("VWIRE_CA_REFRESH_HINT", "1s"),
            set("VWIRE_CA_SVID_LIFETIME", "10s"),
            set("VWIRE_CA_WEB_ROOTS", self.at("web.pem").display().to_string()),
            set("VWIRE_ADMIN", self.socket("ca-admin")),
        ];
        let ca = self.start("ca", &build::vwire(), &["ca"], &settings);
        until("the issuer's sockets", || {
            workloads.iter().all(|name| self.at(&format!("{domain}-{name}")).exists()).then_some(())
        });
        ca
    }

    fn vwire(&self, role: &str, identity: &str, listens: (&str, &str)) -> Process {
        let settings = [
            set("SPIFFE_ENDPOINT_SOCKET", self.socket(identity)),
            set(listens.0, self.socket(listens.1)),
            set("VWIRE_ADMIN", self.socket(&format!("{role}-admin"))),
        ];
        let process = self.start(role, &build::vwire(), &[role], &settings);
        until("its socket", || self.at(listens.1).exists().then_some(()));
        process
    }

    /// `vwire link`, asked of our issuer.
    fn link(&self, arguments: &[&str]) -> String {
        must(
            Command::new(build::vwire())
                .arg("link")
                .args(arguments)
                .args(["--admin", &self.socket("ca-admin")]),
        )
    }
}

fn endpoint(name: &str) -> Value {
    json!({
        "name": name, "networkServiceNames": ["icmp"], "networkServiceLabels": {"icmp": {"labels": {}}},
        "url": "tcp://192.0.2.1:5001",
    })
}

/// go.test's issuer and client, and a registry of each side; our issuer runs.
struct Sides {
    workload: Process,
    client: RegistryClient,
    _registries: [Process; 2],
}

impl Sides {
    fn start(place: &Place) -> Self {
        let settings = [
            set("GOPEERS_DIR", place.folder.path().display().to_string()),
            set("GOPEERS_NAMES", "registry,client"),
            set("GOPEERS_TRUST_DOMAIN", "go.test"),
        ];
        let mut workload = place.start("workload", &build::gopeers(), &["workload"], &settings);
        workload.told("ready", 0);
        let ours = place.vwire("registry", "a.test-registry", ("NSM_LISTEN_ON", "ours.sock"));
        let settings = [
            set("SPIFFE_ENDPOINT_SOCKET", place.socket("registry.sock")),
            set("NSM_LISTEN_ON", place.socket("gos.sock")),
        ];
        let mut gos = place.start("go-registry", &build::gopeers(), &["registry"], &settings);
        gos.told("ready", 0);
        let settings = [
            set("SPIFFE_ENDPOINT_SOCKET", place.socket("client.sock")),
            set("NSM_CONNECT_TO", place.socket("ours.sock")),
            set("NSM_REQUEST_TIMEOUT", "4s"),
        ];
        let mut client =
            RegistryClient(place.start("go-client", &build::gopeers(), &["regclient"], &settings));
        client.0.told("ready", 0);
        Self { workload, client, _registries: [ours, gos] }
    }
}

fn done(process: &mut Process, command: &str) {
    let answer = process.ask(command, &["done", "failed"]);
    assert_eq!(answer["event"], "done", "{command}: {answer}");
}

/// What our client gets when it registers at `target`: the identities of the path.
fn register_ours(place: &Place, target: &str) -> Result<Vec<String>, tonic::Status> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let api = Target::Unix(place.at("a.test-client"));
        let identity =
            tokio::time::timeout(PATIENCE, Identity::from_workload_api(&api)).await.unwrap().unwrap();
        let tokens = TokenSource::new(identity.clone(), PATIENCE * 20);
        let dialling = Dialling { timeout: PATIENCE, ..Dialling::default() };
        let pool = Arc::new(Pool::new(identity, tokens, dialling));
        let remote = Remote::new(pool, Target::Unix(place.at(target)))
            .with_rules(Some(Arc::new(Policies::standard())));
        let nse = NetworkServiceEndpoint {
            name: "ours".into(),
            network_service_names: vec!["icmp-of-ours".into()],
            url: "tcp://192.0.2.1:5001".into(),
            ..Default::default()
        };
        let mut call = RegistryCall::internal("test", PATIENCE);
        remote.register_endpoint(&mut call, nse).await.map(|registered| registered.path_ids)
    })
}

#[test]
fn go_spiffe_and_we_are_peers_across_trust_domains_for_as_long_as_bundles_are_exchanged() {
    let place = Place::new("fed");
    let _ca = place.ca("a.test", &["registry", "client", "go"]);
    let Sides { mut workload, mut client, _registries } = Sides::start(&place);
    // A Go workload of our own domain: it tells which bundles our issuer gave it.
    let settings = [set("SPIFFE_ENDPOINT_SOCKET", place.socket("a.test-go"))];
    let mut ours_in_go = place.start("svid", &build::gopeers(), &["svid"], &settings);
    assert_eq!(ours_in_go.told("svid", 0)["bundles"], json!(["a.test"]));

    let strangers = |client: &mut RegistryClient| {
        client.call("find", "nse", &json!({})).expect_err("a stranger's call at our registry");
        let told = register_ours(&place, "gos.sock").expect_err("our call at a stranger's registry");
        assert_eq!(told.code(), tonic::Code::Unavailable, "{told}");
        told.message().to_owned()
    };
    let told = strangers(&mut client);
    assert!(told.contains("no bundle of trust domain go.test"), "{told}");

    let (theirs, our_bundle) = (place.at("go.json"), place.at("a.json"));
    done(&mut workload, &format!("bundle {}", theirs.display()));
    let mark = ours_in_go.mark();
    place.link(&["import", theirs.to_str().unwrap()]);
    assert_eq!(ours_in_go.told("svid", mark)["bundles"], json!(["a.test", "go.test"]));
    std::fs::write(&our_bundle, place.link(&["export"])).unwrap();
    done(&mut workload, &format!("federate a.test {}", our_bundle.display()));

    // Go's SVID sources take the new bundles up in their own time.
    let friends = |client: &mut RegistryClient| {
        let answer =
            until("Go's client at our registry", || client.call("register", "nse", &endpoint("theirs")).ok());
        assert_eq!(answer[0]["pathIds"], json!(["spiffe://go.test/client", "spiffe://a.test/registry"]));
        let ids = until("our client at Go's registry", || register_ours(&place, "gos.sock").ok());
        assert_eq!(ids, ["spiffe://a.test/client", "spiffe://go.test/registry"]);
    };
    friends(&mut client);

    place.link(&["remove", "go.test"]);
    let told = strangers(&mut client);
    assert!(told.contains("no bundle of trust domain go.test"), "{told}");
    place.link(&["import", theirs.to_str().unwrap()]);
    friends(&mut client);

    // The other side ends it.
    done(&mut workload, "forget a.test");
    until("Go's registry refuses us", || register_ours(&place, "gos.sock").err());
    until("Go's client refuses our registry", || client.call("find", "nse", &json!({})).err());
}

/// Our issuer's row of `vwire link list`.
fn row(place: &Place) -> Value {
    let rows: Value = serde_json::from_str(&place.link(&["list", "-o", "json"])).unwrap();
    rows[0].clone()
}

/// Whom our issuer believes of go.test: fingerprints.
fn believed(place: &Place) -> Vec<Value> {
    row(place)["believes"]["go.test"].as_array().cloned().unwrap_or_default()
}

#[test]
fn authorities_are_rotated_on_either_side_and_bundle_endpoints_carry_it_to_the_other() {
    let place = Place::new("follow");
    let _ca = place.ca("a.test", &["registry", "client"]);
    let Sides { mut workload, mut client, _registries } = Sides::start(&place);

    // The link is made once: each side's bundle as a file, and where it is published.
    let (theirs, ours) = (place.at("go.json"), place.at("a.json"));
    done(&mut workload, &format!("bundle {}", theirs.display()));
    let mark = workload.mark();
    done(&mut workload, &format!("publish https_spiffe {}", place.at("none").display()));
    let url = workload.told("published", mark)["url"].as_str().unwrap().to_owned();
    let id = ["--endpoint-id", "spiffe://go.test/server"];
    place.link(&[&["import", theirs.to_str().unwrap(), "--endpoint", &url][..], &id].concat());
    std::fs::write(&ours, place.link(&["export"])).unwrap();
    done(&mut workload, &format!("federate a.test {}", ours.display()));
    let published = row(&place)["publishes"].clone();
    let (our_url, our_id) = (published["url"].as_str().unwrap(), published["spiffe_id"].as_str().unwrap());
    assert_eq!(our_id, "spiffe://a.test/vwire/ca");
    let mark = workload.mark();
    done(&mut workload, &format!("follow a.test {our_url} {our_id}"));
    let followed = workload.told("followed", mark);
    assert_eq!((&followed["authorities"], &followed["hint"]), (&json!(1), &json!(1)));

    let friends = |client: &mut RegistryClient| {
        until("Go's client at our registry", || client.call("register", "nse", &endpoint("theirs")).ok());
        until("our client at Go's registry", || register_ours(&place, "gos.sock").ok());
    };
    friends(&mut client);

    // Theirs: we believe the new authority when it signs, and the old one no more when it left.
    let first = believed(&place);
    done(&mut workload, "announce");
    until("both of theirs are believed", || (believed(&place).len() == 2).then_some(()));
    done(&mut workload, "activate");
    friends(&mut client);
    done(&mut workload, "retire");
    until("the old one of theirs is forgotten", || (believed(&place).len() == 1).then_some(()));
    assert_ne!(believed(&place), first);
    friends(&mut client);

    // Ours, the same: go-spiffe follows.
    let mark = workload.mark();
    place.link(&["rotate"]);
    let step = |workload: &mut Process, mark: usize, authorities: u64| {
        workload.event("a bundle of ours", mark, |told| {
            told["event"] == "followed" && told["authorities"] == authorities
        });
        workload.mark()
    };
    let mark = step(&mut workload, mark, 2);
    friends(&mut client);
    step(&mut workload, mark, 1);
    friends(&mut client);

    // By a web certificate: who serves it is known by the web's authorities, and by them alone.
    let mark = workload.mark();
    done(&mut workload, &format!("publish https_web {}", place.at("web.pem").display()));
    let url = workload.told("published", mark)["url"].as_str().unwrap().to_owned();
    done(&mut workload, &format!("bundle {}", theirs.display()));
    place.link(&["import", theirs.to_str().unwrap(), "--endpoint", &url]);
    done(&mut workload, "announce");
    until("theirs is followed by https_web", || (believed(&place).len() == 2).then_some(()));
    // One that another serves changes nothing, and says why.
    place.link(&[
        "import",
        theirs.to_str().unwrap(),
        "--endpoint",
        &url,
        "--endpoint-id",
        "spiffe://go.test/other",
    ]);
    let log = || std::fs::read_to_string(place.at("ca.log")).unwrap_or_default();
    until("the issuer's log says why", || log().contains("can't be followed").then_some(()));
    assert_eq!(believed(&place).len(), 1, "what the file said stays in force");

    place.link(&["remove", "go.test"]);
    client.call("find", "nse", &json!({})).expect_err("a removed domain's call");
    assert!(believed(&place).is_empty());
}

/// What the client of v0.2.0 answers to one call.
fn old_call(client: &mut Process, call: &str, message: &Value) -> Result<Value, String> {
    let mark = client.mark();
    client.tell(&format!("{call} {message}"));
    let told = client.event("an answer", mark, |_| true);
    match told["error"].as_str() {
        Some(error) => Err(error.to_owned()),
        None => Ok(told["answer"].clone()),
    }
}

#[test]
fn a_go_client_of_v0_2_registers_finds_and_removes_at_our_nsmrs() {
    let place = Place::new("nsmrs");
    let _ca = place.ca("example.org", &["nsmrs", "cluster-1", "cluster-2"]);
    let _nsmrs = place.vwire("nsmrs", "example.org-nsmrs", ("NSMRS_API_ADDRESS", "nsmrs.sock"));
    let client = |name: &str| {
        let settings = [
            set("SPIFFE_ENDPOINT_SOCKET", place.socket(&format!("example.org-{name}"))),
            set("NSMRS_ADDRESS", place.socket("nsmrs.sock")),
        ];
        place.start(name, &build::go02(), &[], &settings)
    };
    let (mut one, mut two) = (client("cluster-1"), client("cluster-2"));
    let registration = |name: &str, labels: Value| {
        json!({
            "network_service": {"name": "icmp", "payload": "IP", "matches": [
                {"source_selector": {"app": "a"}, "routes": [{"destination_selector": {"app": "b"}, "weight": 2}]}
            ]},
            "network_service_manager": {"name": "node-1", "url": "192.0.2.1:5001"},
            "network_service_endpoint": {"name": name, "network_service_name": "icmp", "labels": labels},
        })
    };
    let registered = old_call(&mut one, "register", &registration("nse-1", json!({"app": "b"}))).unwrap();
    assert_eq!(registered["network_service_manager"]["name"], "node-1_192.0.2.1_5001");
    assert_eq!(registered["network_service"], registration("nse-1", json!({}))["network_service"]);
    let told = old_call(&mut two, "register", &registration("nse-1", json!({}))).unwrap_err();
    assert!(told.contains("AlreadyExists"), "{told}");
    old_call(&mut two, "register", &registration("nse-2", json!({}))).unwrap();

    let found = old_call(&mut two, "find", &json!({"network_service_name": "icmp"})).unwrap();
    assert_eq!(found["payload"], "IP");
    let endpoints = found["network_service_endpoints"].as_array().unwrap();
    let names: Vec<&str> = endpoints.iter().map(|each| each["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["nse-1", "nse-2"]);
    assert_eq!(endpoints[0]["labels"], json!({"app": "b"}));
    let manager = endpoints[0]["network_service_manager_name"].as_str().unwrap();
    assert_eq!(found["network_service_managers"][manager]["url"], "192.0.2.1:5001");
    assert!(found["network_service_managers"][manager]["last_seen"]["seconds"].is_i64(), "{found}");

    let remove = json!({"network_service_endpoint_name": "nse-1"});
    assert!(old_call(&mut two, "remove", &remove).unwrap_err().contains("PermissionDenied"));
    old_call(&mut one, "remove", &remove).unwrap();
    let found = old_call(&mut one, "find", &json!({"network_service_name": "icmp"})).unwrap();
    assert_eq!(found["network_service_endpoints"].as_array().unwrap().len(), 1);
    let told = old_call(&mut one, "find", &json!({"network_service_name": "nothing"})).unwrap_err();
    assert!(told.contains("NotFound"), "{told}");
}
