//! The whole manager, as a process starts it, with its registry; everything else registers and finds by way of it.

use std::time::Duration;

use clap::Parser;
use tokio_util::sync::CancellationToken;

use super::mesh::*;
use crate::api::path;
use crate::obs::Admin;
use crate::roles::{Process, nsmgr};
use crate::transport::Target;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    settings: nsmgr::Settings,
}

struct Role {
    process: Process,
    unix: Target,
    task: tokio::task::JoinHandle<Result<(), nsmgr::NsmgrError>>,
    _folder: tempfile::TempDir,
}

impl Role {
    /// Starts a manager that is its own registry.
    async fn start(mesh: &Mesh, args: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let unix = Target::Unix(folder.path().join("nsm.io.sock"));
        let identity = mesh.identity("nsmgr");
        let process = Process {
            tokens: crate::identity::TokenSource::new(identity.clone(), TOKEN_LIFE),
            pool: mesh.pool(&identity, TOKEN_LIFE),
            admin: Admin::new("nsmgr", "nsmgr-1"),
            shutdown: CancellationToken::new(),
            identity,
        };
        let listen = format!("--listen-on={unix}");
        let own = ["nsmgr", "--name=nsmgr-1", "--registry-url=", &listen];
        let settings = Cli::parse_from(own.iter().chain(args)).settings;
        let task = tokio::spawn(nsmgr::run(settings, process.clone()));
        let role = Self { process, unix, task, _folder: folder };
        while role.process.pool.hop(&role.unix).await.is_err() {
            assert!(!role.task.is_finished(), "the role did not start");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        role
    }
}

#[tokio::test]
async fn a_manager_registers_and_connects_over_unix_sockets_alone_and_ends_when_told() {
    let mesh = Mesh::new();
    let role = Role::start(&mesh, &[]).await;
    let mesh = mesh.behind(&role.unix);
    mesh.register_service(service("icmp-responder")).await;
    let forwarder = mesh.forwarder("forwarder-1").await;
    let endpoint = mesh.endpoint("responder-1", "icmp-responder", &[]).await;
    let client = mesh.client("nsc");
    let first = client.first(0, "icmp-responder");
    let preferences = vec![Client::preference()];
    let made =
        client.request_at(&role.unix, first, preferences.clone(), Duration::from_secs(10)).await.unwrap();
    let names: Vec<_> = path::of(&made).path_segments.iter().map(|segment| segment.name.as_str()).collect();
    assert_eq!(names, ["nsc", "nsmgr-1", "forwarder-1", "responder-1"]);
    let again =
        client.request_at(&role.unix, made.clone(), preferences, Duration::from_secs(10)).await.unwrap();
    assert_eq!(again.id, made.id);
    let views = role.process.admin.connections().await;
    assert_eq!((views.len(), views[0].root.as_str(), views[0].hops.len()), (1, "nsc-0", 4));
    assert_eq!(views[0].hops[3].spiffe_id.as_deref(), Some("spiffe://example.org/nse"));
    client.close_at(&role.unix, made).await.unwrap();
    assert_eq!(endpoint.probe.counts(), (2, 1));
    assert!(forwarder.hub.is_empty() && role.process.admin.connections().await.is_empty());

    role.process.shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(5), role.task).await.expect("within 5 s").unwrap().unwrap();
}

#[tokio::test]
async fn wrong_settings_end_the_start_with_their_names() {
    let mesh = Mesh::new();
    let identity = mesh.identity("nsmgr");
    let process = Process {
        tokens: crate::identity::TokenSource::new(identity.clone(), TOKEN_LIFE),
        pool: mesh.pool(&identity, TOKEN_LIFE),
        admin: Admin::new("nsmgr", "x"),
        shutdown: CancellationToken::new(),
        identity,
    };
    let folder = tempfile::tempdir().unwrap();
    let listen = format!("--listen-on=unix://{}/s", folder.path().display());
    for (args, variable) in [
        (vec!["nsmgr", "--name=", &listen], "NSM_NAME"),
        (vec!["nsmgr", "--registry-server-policies=nonsense", &listen], "NSM_REGISTRY_SERVER_POLICIES"),
        (vec!["nsmgr", "--listen-on=unix:///proc/no/such/socket"], "NSM_LISTEN_ON"),
    ] {
        let settings = Cli::parse_from(args).settings;
        let error = nsmgr::run(settings, process.clone()).await.unwrap_err().to_string();
        assert!(error.starts_with(variable), "{error}");
    }
}
