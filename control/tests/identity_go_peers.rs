//! SVIDs between us and go-spiffe: it consumes our issuer, we consume its messages. And tools that speak gRPC by reflection.

mod peers;

use std::sync::Arc;
use std::time::Duration;

use peers::build;
use peers::mesh::set;
use peers::netns::Netns;
use peers::process::Process;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use vwire_control::identity::issuer::{self, Authority, Issuer, Keys, Name};
use vwire_control::identity::{Bundles, Identity, TrustDomain};
use vwire_control::transport::{Limits, Target};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[test]
fn go_spiffe_verifies_our_svids_and_follows_their_rotation() {
    let space = Netns::new("svid");
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("ca.sock");
    let runtime = runtime();
    let shutdown = CancellationToken::new();
    let authority = Authority::new(TrustDomain::new("example.org").unwrap()).unwrap();
    let (_federated, others) = watch::channel(Bundles::new());
    // Renewed after two seconds.
    let issuer = Arc::new(Issuer::new(Keys::fixed(authority), Duration::from_secs(4), Vec::new(), others));
    let name: Name = "/ns/lab/workload".parse().unwrap();
    let target = Target::Unix(socket.clone());
    let ending = shutdown.clone();
    let serving = runtime
        .spawn(async move { issuer::serve(issuer, &target, Some(name), Limits::default(), ending).await });
    peers::until("the issuer's socket", || socket.exists().then_some(()));
    let settings = [set("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", socket.display()))];
    let mut workload =
        Process::start("svid", &space.name, directory.path(), &[], &build::gopeers(), &["svid"], &settings);
    let first = workload.told("svid", 0);
    assert_eq!(first["id"], "spiffe://example.org/ns/lab/workload");
    assert_eq!((&first["chains"], &first["count"]), (&1.into(), &1.into()), "{first}");
    let mark = workload.mark();
    let second = workload.told("svid", mark);
    assert_eq!(second["id"], first["id"]);
    assert_ne!(second["serial"], first["serial"], "not another SVID");
    assert!(workload.events(0, |event| event["event"] == "svid-refused").is_empty());
    shutdown.cancel();
    runtime.block_on(serving).unwrap().unwrap();
}

#[test]
fn our_client_takes_svids_from_a_go_server_and_follows_its_rotation() {
    let space = Netns::new("wlapi");
    let directory = tempfile::tempdir().unwrap();
    let settings =
        [set("GOPEERS_DIR", directory.path().display().to_string()), set("GOPEERS_NAMES", "nsmgr")];
    let mut server = Process::start(
        "workload",
        &space.name,
        directory.path(),
        &[],
        &build::gopeers(),
        &["workload"],
        &settings,
    );
    server.told("ready", 0);
    let runtime = runtime();
    let endpoint = Target::Unix(directory.path().join("nsmgr.sock"));
    let patience = peers::PATIENCE;
    runtime.block_on(async {
        let identity =
            tokio::time::timeout(patience, Identity::from_workload_api(&endpoint)).await.unwrap().unwrap();
        let mut changes = identity.changes();
        let first = changes.borrow_and_update().clone().expect("an SVID");
        assert_eq!(first.id.to_string(), "spiffe://example.org/nsmgr");
        assert_eq!(first.bundles.len(), 1);
        server.tell("rotate");
        tokio::time::timeout(patience, changes.changed()).await.expect("a new SVID in time").unwrap();
        let second = identity.current().expect("an SVID");
        assert_eq!(second.id, first.id);
        assert_ne!(second.chain, first.chain, "not another SVID");
    });
}
