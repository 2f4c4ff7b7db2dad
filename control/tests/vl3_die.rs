//! Virtual networks (config/lab/vl3.yaml, vl3-domains.yaml) whose parts die one by one while packets cross them. What need not stop does
//! not: a role's death stops no packet, an engine's only those that it carries. Each test prints its times. Needs root.

mod lab_support;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use lab_support::{Pings, Run};
use serde_json::Value;
use vwire_control::cli::AdminClient;
use vwire_control::lab::{Lab, Silent, Spec, check, pings};
use vwire_control::obs::{ConnectionView, Status};

/// How often each part dies: `VWIRE_TEST_ROUNDS`, or twice. More make the times that are printed worth more.
fn rounds() -> usize {
    std::env::var("VWIRE_TEST_ROUNDS")
        .map_or(2, |rounds| rounds.parse().expect("VWIRE_TEST_ROUNDS: a number"))
}

/// Pings whose loss is counted, 20 ms apart.
const PINGS: u32 = 150;
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(10);

fn shipped(file: &str) -> Spec {
    Spec::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/lab").join(file)).unwrap()
}

/// A client's only connection, if it is up.
async fn connection(lab: &Lab, client: &str) -> Option<ConnectionView> {
    let admin = AdminClient(lab.layout().admin(&format!("nsc-{client}")));
    let all: Vec<ConnectionView> = admin.get("/connections").await.ok()?;
    all.into_iter().find(|view| view.state == "UP")
}

async fn address(lab: &Lab, client: &str) -> String {
    let view = connection(lab, client).await.unwrap_or_else(|| panic!("{client} has no connection"));
    view.client_addresses[0].split('/').next().unwrap().to_owned()
}

/// How many others an endpoint is linked with.
async fn linked(lab: &Lab, endpoint: &str) -> usize {
    let admin = AdminClient(lab.layout().admin(&format!("vl3-{endpoint}")));
    let Ok(status) = admin.get::<Status>("/status").await else { return 0 };
    let peers = status.reports.get("peers").and_then(Value::as_array).cloned().unwrap_or_default();
    peers.iter().filter(|peer| peer["state"] == "linked").count()
}

/// Waits until it is so, and says how long that took.
async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) -> Duration {
    let began = Instant::now();
    while !is_so().await {
        assert!(began.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(LOOK).await;
    }
    began.elapsed()
}

/// Waits until a ping of this client is answered.
async fn answers(lab: &Lab, from: &str, to: &str) -> Duration {
    let space = lab.layout().namespace(from);
    until(&format!("{from} reaches {to}"), async || {
        let words = ["netns", "exec", &space, "ping", "-n", "-c", "1", "-W", "1", to];
        let ping = tokio::process::Command::new("ip").args(words).output().await;
        ping.is_ok_and(|output| output.status.success())
    })
    .await
}

/// Milliseconds of each run of each case.
#[derive(Default)]
struct Times(BTreeMap<&'static str, Vec<u128>>);

impl Times {
    fn add(&mut self, case: &'static str, took: Duration) {
        self.0.entry(case).or_default().push(took.as_millis());
    }

    fn print(&self) {
        println!("| case | median ms | worst ms | runs |\n|---|---|---|---|");
        for (case, times) in &self.0 {
            let mut times = times.clone();
            times.sort_unstable();
            println!(
                "| {case} | {} | {} | {} |",
                times[times.len() / 2],
                times[times.len() - 1],
                times.len()
            );
        }
    }
}

/// Kills a part and starts it again while this client's pings lose nothing.
async fn dies_unnoticed(lab: &mut Lab, part: &str, from: &str, to: &str) {
    let pings = Pings::count(lab, from, to, PINGS);
    pings.answered(20).await;
    lab.kill(part).await.unwrap();
    pings.answered(60).await;
    lab.restart(part).await.unwrap_or_else(|error| panic!("{error}"));
    let said = pings.end().await;
    assert_eq!(pings::lost(&said, PINGS), [0; 0], "{part} died: {said}");
}

async fn all_checks(lab: &Lab) {
    for wanted in &lab.spec().checks {
        for outcome in check(lab, wanted).await.unwrap() {
            assert_eq!(outcome.failed, None, "{}", outcome.check);
        }
    }
}

#[tokio::test]
async fn the_parts_of_a_virtual_network_die_while_packets_cross_it() {
    let mut spec = shipped("vl3.yaml");
    let run = Run::of(&mut spec, "vl3die");
    let mut lab = run.up(&spec).await;
    all_checks(&lab).await;
    let mut times = Times::default();
    let to = address(&lab, "at-c").await;
    for _ in 0..rounds() {
        // The endpoint's role: routing goes on, and the links are taken up again.
        dies_unnoticed(&mut lab, "vl3-vl3-a", "at-a", &to).await;
        let again = until("vl3-a has its links again", async || linked(&lab, "vl3-a").await == 2).await;
        times.add("role of an endpoint, 0 packets lost: links known again after its start", again);
        // The service of prefixes.
        dies_unnoticed(&mut lab, "vl3-ipam-cluster", "at-a", &to).await;
        assert_eq!(address(&lab, "at-c").await, to, "no address has changed");
        // The endpoint's engine: what others carry goes on.
        let others = Pings::count(&lab, "at-b", &to, PINGS);
        others.answered(20).await;
        lab.kill("vl3-a.engine").await.unwrap();
        lab.restart("vl3-a.engine").await.unwrap_or_else(|error| panic!("{error}"));
        let took = answers(&lab, "at-a", &to).await;
        times.add("engine of an endpoint: its client's packets go again after its start", took);
        let said = others.end().await;
        assert_eq!(pings::lost(&said, PINGS), [0; 0], "another endpoint's packets: {said}");
        until("vl3-a is linked with both", async || linked(&lab, "vl3-a").await == 2).await;
    }
    all_checks(&lab).await;
    times.print();
    lab.down(&Silent).await.unwrap();
}

#[tokio::test]
async fn a_client_of_an_endpoint_that_is_gone_for_good_goes_on_with_another() {
    let mut spec = shipped("vl3.yaml");
    let run = Run::of(&mut spec, "vl3gone");
    let mut lab = run.up(&spec).await;
    all_checks(&lab).await;
    let mut times = Times::default();
    for _ in 0..rounds() {
        let before = connection(&lab, "anywhere").await.expect("a connection");
        let gone = before.endpoint.clone();
        let stays = ["a", "b", "c"].into_iter().find(|one| gone != format!("vl3-{one}")).unwrap();
        let to = address(&lab, &format!("at-{stays}")).await;
        answers(&lab, "anywhere", &to).await;
        let role = format!("vl3-{gone}");
        let engine = format!("{gone}.engine");
        lab.kill(&role).await.unwrap();
        lab.kill(&engine).await.unwrap();
        let moved = until("the client has another endpoint", async || {
            connection(&lab, "anywhere").await.is_some_and(|view| view.endpoint != gone)
        })
        .await;
        let reached = moved + answers(&lab, "anywhere", &to).await;
        times.add("endpoint gone for good: its client's packets go by another", reached);
        // It comes back, and is a peer again.
        lab.restart(&engine).await.unwrap_or_else(|error| panic!("{error}"));
        lab.restart(&role).await.unwrap_or_else(|error| panic!("{error}"));
        let back = until("it is linked again", async || linked(&lab, &gone).await == 2).await;
        times.add("endpoint comes back: linked with both others after its start", back);
        // The client that will have no other endpoint has its own again.
        let faithful = gone.replace("vl3-", "at-");
        until("it has its client again", async || connection(&lab, &faithful).await.is_some()).await;
    }
    all_checks(&lab).await;
    times.print();
    lab.down(&Silent).await.unwrap();
}

#[tokio::test]
async fn a_peer_in_the_other_domain_dies_and_is_linked_again() {
    let mut spec = shipped("vl3-domains.yaml");
    let run = Run::of(&mut spec, "vl3far");
    let mut lab = run.up(&spec).await;
    all_checks(&lab).await;
    let mut times = Times::default();
    let to = address(&lab, "two").await;
    for _ in 0..rounds() {
        dies_unnoticed(&mut lab, "vl3-vl3-2", "one", &to).await;
        let again = until("vl3-2 has its link again", async || linked(&lab, "vl3-2").await == 1).await;
        times.add(
            "role of the other domain's endpoint, 0 packets lost: link known again after its start",
            again,
        );
        lab.kill("vl3-2.engine").await.unwrap();
        lab.restart("vl3-2.engine").await.unwrap_or_else(|error| panic!("{error}"));
        times.add(
            "engine of the other domain's endpoint: packets go again after its start",
            answers(&lab, "one", &to).await,
        );
        // What joins the domains is needed to make links, and not to use them.
        for part in ["proxy-domain1", "registry-domain2"] {
            dies_unnoticed(&mut lab, part, "one", &to).await;
        }
    }
    all_checks(&lab).await;
    times.print();
    lab.down(&Silent).await.unwrap();
}
