//! The authorities of two linked domains (config/lab/two-domains.yaml) are rotated while packets cross the border: nothing is lost, nobody
//! links anew, and afterwards new connections are made as before. Needs root.

mod lab_support;

use std::path::Path;
use std::time::{Duration, Instant};

use lab_support::{Pings, Run};
use serde_json::Value;
use vwire_control::cli::AdminClient;
use vwire_control::lab::{Lab, Silent, Spec, check};
use vwire_control::obs::{ConnectionView, Status};

const SERVICE: &str = "icmp-responder@domain1.test";
const PATIENCE: Duration = Duration::from_secs(120);

fn issuer(lab: &Lab, domain: &str) -> AdminClient {
    AdminClient(lab.layout().admin(&format!("ca-{domain}")))
}

/// Fingerprints of the authorities that an issuer's workloads believe: its own, and those of the other domain.
async fn believed(lab: &Lab, domain: &str, other: &str) -> (Value, Value) {
    let status: Status = issuer(lab, domain).get("/status").await.unwrap();
    let link = &status.reports["link"];
    (link["authorities"].clone(), link["federated"][format!("{other}.lab")].clone())
}

async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_vwire_between_two_domains_outlives_the_rotation_of_both_authorities() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/lab/two-domains.yaml");
    let mut spec = Spec::load(&file).unwrap();
    for domain in &mut spec.domains {
        let settings = [("VWIRE_CA_SVID_LIFETIME", "30s"), ("VWIRE_CA_REFRESH_HINT", "2s")];
        domain.issuer_env.extend(settings.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
    let run = Run::of(&mut spec, "ca");
    let lab = run.up(&spec).await;
    let admin = AdminClient(lab.layout().admin("nsc-by-name"));
    let vwire = async || {
        let all: Vec<ConnectionView> = admin.get("/connections").await.unwrap();
        all.into_iter().find(|view| view.service == SERVICE && view.state == "UP")
    };
    let before = vwire().await.expect("a vWire that is up");
    let address = before.endpoint_addresses[0].split('/').next().unwrap().to_owned();
    let pings = Pings::on_and_on(&lab, "by-name", &address);
    let domains = [("domain1", "domain2"), ("domain2", "domain1")];
    let mut first = Vec::new();
    for (domain, other) in domains {
        first.push(believed(&lab, domain, other).await);
        issuer(&lab, domain).put("/do/rotate", String::new()).await.unwrap();
    }
    for ((domain, other), first) in domains.into_iter().zip(&first) {
        until("both sides of a rotation's end", async || {
            let now = believed(&lab, domain, other).await;
            let one = |authorities: &Value| authorities.as_array().is_some_and(|all| all.len() == 1);
            one(&now.0) && one(&now.1) && now.0 != first.0 && now.1 != first.1
        })
        .await;
    }
    let (answered, lost) = pings.interrupt().await;
    assert_eq!(lost, [0; 0]);
    // 20 a second, and the rotation takes longer than the SVIDs live, 30 s.
    assert!(answered > 100, "{answered} answers");
    println!("{answered} pings answered and none lost while both authorities were rotated");
    // Sessions that an old SVID began end with its authority, and what is watched by them is looked at anew: nothing is made anew.
    until("the vWire is seen again", async || vwire().await.is_some()).await;
    let after = vwire().await.unwrap();
    assert_eq!(after.endpoint, before.endpoint);
    assert_eq!(after.endpoint_addresses, before.endpoint_addresses);
    // A client that comes now goes through all hops, each of which has an SVID of the new authority.
    let mut lab = lab;
    lab.kill("nsc-by-name").await.unwrap();
    lab.restart("nsc-by-name").await.unwrap_or_else(|error| panic!("{error}"));
    until("the vWire of a new client", async || {
        let all: Result<Vec<ConnectionView>, _> = admin.get("/connections").await;
        all.is_ok_and(|all| all.iter().any(|view| view.service == SERVICE && view.state == "UP"))
    })
    .await;
    for wanted in &spec.checks {
        for outcome in check(&lab, wanted).await.unwrap() {
            assert_eq!(outcome.failed, None, "{}", outcome.check);
        }
    }
    lab.down(&Silent).await.unwrap();
}
