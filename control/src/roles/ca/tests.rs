//! The role as a process starts it.

use clap::Parser;

use super::*;
use crate::identity::Identity;
use crate::identity::issuer::{Authority, read_bundle};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
}

fn settings(args: &[String]) -> Settings {
    let args = ["ca"].into_iter().chain(args.iter().map(String::as_str));
    Cli::try_parse_from(args).unwrap().settings
}

async fn refused(args: &[&str]) -> String {
    let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
    run(settings(&args), Admin::new("ca", "test"), CancellationToken::new()).await.unwrap_err().to_string()
}

#[tokio::test]
async fn workloads_get_their_names_by_their_sockets_and_believe_federated_domains() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let other = Authority::new(TrustDomain::new("other.test").unwrap()).unwrap();
    other.export(&folder.path().join("other.pem")).unwrap();
    let arguments = [
        "--trust-domain=example.org".to_owned(),
        format!("--state={}", path("state")),
        format!("--workload=ns/a/nsmgr={}", path("nsmgr.sock")),
        format!("--workload=nsc=unix://{}", path("nsc.sock")),
        format!("--bundle={}", path("bundle.pem")),
        format!("--federate=other.test={}", path("other.pem")),
    ];
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(run(settings(&arguments), Admin::new("ca", "test"), shutdown.clone()));
    for (socket, id) in
        [("nsmgr.sock", "spiffe://example.org/ns/a/nsmgr"), ("nsc.sock", "spiffe://example.org/nsc")]
    {
        let identity = Identity::from_workload_api(&Target::Unix(path(socket).into())).await.unwrap();
        let svid = identity.current().unwrap();
        assert_eq!(svid.id.to_string(), id);
        assert_eq!(svid.bundles[other.domain()], [other.certificate().clone()]);
        assert_eq!(
            svid.bundles[&svid.id.trust_domain().clone()],
            read_bundle(&folder.path().join("bundle.pem")).unwrap()
        );
    }
    shutdown.cancel();
    running.await.unwrap().unwrap();
    assert!(!folder.path().join("nsmgr.sock").exists());
}

#[tokio::test]
async fn settings_that_make_no_sense_end_the_start_with_their_names() {
    for (args, part) in [
        (&[][..], "VWIRE_CA_WORKLOADS"),
        (&["--listen-on=tcp://127.0.0.1:0"], "VWIRE_CA_LISTEN_ON"),
        (&["--workload=a=/tmp/a", "--svid-lifetime=1s"], "VWIRE_CA_SVID_LIFETIME"),
        (&["--workload=a=/tmp/a", "--bundle-endpoint=unix:///x"], "VWIRE_CA_BUNDLE_ENDPOINT: "),
        (&["--workload=a=/tmp/a", "--bundle-endpoint=:0"], "how others reach it"),
        (&["--workload=a=/tmp/a", "--refresh-hint=10ms"], "VWIRE_CA_REFRESH_HINT"),
        (&["--workload=a=/tmp/a", "--rotate-every=1m"], "VWIRE_CA_ROTATE_EVERY"),
        (&["--workload=a=/tmp/a", "--federate=vwire.local=/x"], "VWIRE_CA_FEDERATE"),
        (&["--workload=a=/tmp/a", "--federate=b.test=/nowhere.pem"], "/nowhere.pem"),
    ] {
        let error = refused(args).await;
        assert!(error.contains(part), "{args:?}: {error}");
    }
    for (text, part) in [
        ("nsc", "NAME=SOCKET"),
        ("a/../b=/s", "SPIFFE ID"),
        ("a=tcp://x:1", "is a path"),
        ("a=", "is a path"),
    ] {
        let error = text.parse::<Workload>().unwrap_err();
        assert!(error.contains(part), "{text}: {error}");
    }
}
