//! Two domains (config/lab/two-domains.yaml) whose parts die one by one while packets cross the border: what is connected goes on
//! without a loss, and what died is taken up again. Needs root.

mod lab_support;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use lab_support::{Pings, Run};
use vwire_control::cli::AdminClient;
use vwire_control::lab::{Lab, Silent, Spec, check, pings};
use vwire_control::obs::ConnectionView;

/// What is killed, and started again; the endpoint comes last and by itself.
const PARTS: [&str; 9] = [
    "proxy-domain1",
    "proxy-domain2",
    "registry-domain1",
    "registry-domain2",
    "dns",
    "nsmgr-node-1",
    "forwarder-node-1",
    "nsmgr-node-2",
    "forwarder-node-2",
];
/// What is needed to find a service, and not to use it.
const FINDERS: [&str; 3] = ["dns", "registry-domain1", "registry-domain2"];
/// A client whose death and return make a new Request.
const ASKER: &str = "nsc-by-address";
const SERVICE: &str = "icmp-responder@domain1.test";
const PINGS: u32 = 100;
const PATIENCE: Duration = Duration::from_secs(60);

/// The endpoint's address on the client's vWire, if that is up.
async fn address(lab: &Lab) -> Option<String> {
    let admin = AdminClient(lab.layout().admin("nsc-by-name"));
    let all: Vec<ConnectionView> = admin.get("/connections").await.ok()?;
    let up = all.into_iter().find(|view| view.service == SERVICE && view.state == "UP")?;
    Some(up.endpoint_addresses.first()?.split('/').next()?.to_owned())
}

/// When the client's vWire was last healed.
async fn heals(lab: &Lab) -> Option<i64> {
    let admin = AdminClient(lab.layout().admin("nsc-by-name"));
    let all: Vec<ConnectionView> = admin.get("/connections").await.unwrap();
    all.iter()
        .find(|view| view.service == SERVICE)
        .and_then(|view| view.last_heal.as_ref())
        .map(|heal| heal.at)
}

fn answers(lab: &Lab, address: &str) -> bool {
    let space = lab.layout().namespace("by-name");
    let words = ["netns", "exec", &space, "ping", "-n", "-c", "1", "-W", "1", address];
    Command::new("ip").args(words).output().is_ok_and(|output| output.status.success())
}

#[tokio::test]
async fn no_packet_is_lost_while_the_parts_of_both_domains_die_and_an_endpoint_is_asked_again() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/lab/two-domains.yaml");
    let mut spec = Spec::load(&file).unwrap();
    // Each part a process of its own, on either side.
    spec.domains[1].nodes[0].split = true;
    let run = Run::of(&mut spec, "die");
    let mut lab = run.up(&spec).await;
    for part in PARTS {
        let to = address(&lab).await.expect("a vWire that is up");
        let pings = Pings::count(&lab, "by-name", &to, PINGS);
        pings.answered(10).await;
        lab.kill(part).await.unwrap();
        let said = pings.end().await;
        assert_eq!(pings::lost(&said, PINGS), [0; 0], "{part} died: {said}");
        lab.restart(part).await.unwrap_or_else(|error| panic!("{error}"));
        // Whoever asked for something in between asks again; then all is as it was.
        let deadline = Instant::now() + PATIENCE;
        while address(&lab).await.is_none() {
            assert!(Instant::now() < deadline, "after {part}'s death the vWire did not come up again");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // And it does its work again: a new client's Request passes all of them.
        lab.kill(ASKER).await.unwrap();
        lab.restart(ASKER).await.unwrap_or_else(|error| panic!("{part} is back, but {error}"));
        lab.connected(ASKER, 1).await.unwrap_or_else(|error| panic!("{part} is back, but {error}"));
    }
    // All that finds services is away at once, and is not missed by what has been found.
    let before = heals(&lab).await;
    for part in FINDERS {
        lab.kill(part).await.unwrap();
    }
    let to = address(&lab).await.expect("a vWire that is up");
    let said = Pings::count(&lab, "by-name", &to, PINGS).end().await;
    assert_eq!(pings::lost(&said, PINGS), [0; 0], "without {FINDERS:?}: {said}");
    assert_eq!(address(&lab).await, Some(to));
    assert_eq!(heals(&lab).await, before, "nothing had to be healed");
    for part in FINDERS {
        lab.restart(part).await.unwrap_or_else(|error| panic!("{error}"));
    }
    lab.kill("nse-responder").await.unwrap();
    lab.restart("nse-responder").await.unwrap_or_else(|error| panic!("{error}"));
    let back = Instant::now();
    loop {
        if let Some(to) = address(&lab).await
            && answers(&lab, &to)
        {
            break;
        }
        assert!(back.elapsed() < PATIENCE, "the client did not ask again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!("the endpoint is pinged again {} ms after it was back", back.elapsed().as_millis());
    for wanted in &spec.checks {
        for outcome in check(&lab, wanted).await.unwrap() {
            assert_eq!(outcome.failed, None, "{}", outcome.check);
        }
    }
    lab.down(&Silent).await.unwrap();
}
