//! Two domains (config/lab/two-domains.yaml): a part dies while a Request of the other domain is on its way through it, and its
//! endpoint has not answered. What was begun is completed by the client's next attempt, taken back, or ends with its token; at the end
//! nobody holds more than before. Needs root.

mod lab_support;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use lab_support::Run;
use vwire_control::cli::AdminClient;
use vwire_control::dataplane::Client;
use vwire_control::lab::{Lab, Silent, Spec};
use vwire_control::obs::ConnectionView;

const CLIENT: &str = "nsc-by-address";
const ENDPOINT: &str = "nse-responder";
/// The last hop before the endpoint: what has come here is under way at all others.
const LAST: &str = "forwarder-node-1";
const PARTS: [&str; 6] = [
    "proxy-domain2",
    "proxy-domain1",
    "nsmgr-node-1",
    "forwarder-node-1",
    "nsmgr-node-2",
    "forwarder-node-2",
];
/// What nobody knows of any more is held for as long as a token lives: an endpoint that has read a Request, and whose caller is dead
/// before it answers, can't tell.
const TOKENS: &str = "40s";
const PATIENCE: Duration = Duration::from_secs(90);
const LOOK: Duration = Duration::from_millis(50);

/// What each part holds: connections of a role, ports of an engine, interfaces of a client or an endpoint.
type Holdings = BTreeMap<String, usize>;

async fn holdings(lab: &Lab, engines: &[(String, Client)]) -> Option<Holdings> {
    let mut all = Holdings::new();
    let roles = ["nsmgr-", "forwarder-", "proxy-", "nse-"];
    for (place, _) in lab.processes() {
        if roles.iter().any(|role| place.name.starts_with(role)) {
            let admin = AdminClient(lab.layout().admin(&place.name));
            let held: Vec<ConnectionView> = admin.get("/connections").await.ok()?;
            all.insert(place.name.clone(), held.len());
        }
    }
    for (name, engine) in engines {
        let ports = engine.snapshot().await.ok()?.state.map_or(0, |state| state.ports.len());
        all.insert(name.clone(), ports);
    }
    for part in ["by-address", "responder"] {
        let links = Command::new("ip").args(["-n", &lab.layout().namespace(part), "-o", "link"]).output();
        all.insert(format!("interfaces of {part}"), links.ok()?.stdout.split(|&byte| byte == b'\n').count());
    }
    Some(all)
}

/// Waits until exactly this is held.
async fn until_held(lab: &Lab, engines: &[(String, Client)], wanted: &Holdings, when: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let held = holdings(lab, engines).await;
        if held.as_ref() == Some(wanted) {
            return;
        }
        assert!(Instant::now() < deadline, "{when}: held {held:?}, wanted {wanted:?}");
        tokio::time::sleep(LOOK).await;
    }
}

fn pid(lab: &Lab, name: &str) -> String {
    let processes = lab.processes();
    let (place, _) = processes.iter().find(|(place, _)| place.name == name).expect(name);
    place.pid.to_string()
}

fn signal(signal: &str, pid: &str) {
    assert!(Command::new("kill").args([signal, pid]).status().unwrap().success(), "kill {signal} {pid}");
}

async fn ended(lab: &Lab, name: &str) {
    let deadline = Instant::now() + PATIENCE;
    while lab.processes().iter().any(|(place, alive)| place.name == name && *alive) {
        assert!(Instant::now() < deadline, "{name} does not end");
        tokio::time::sleep(LOOK).await;
    }
}

async fn leave(lab: &Lab) {
    signal("-TERM", &pid(lab, CLIENT));
    ended(lab, CLIENT).await;
}

/// How many calls a role has looked at.
async fn checks(admin: &AdminClient) -> u64 {
    let text = admin.text("/metrics").await.unwrap();
    let lines = text.lines().filter(|line| line.starts_with("vwire_policy_checks"));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

/// Stops a process until this is dropped.
struct Stopped(String);

impl Stopped {
    fn new(pid: String) -> Self {
        signal("-STOP", &pid);
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        signal("-CONT", &self.0);
    }
}

#[tokio::test]
async fn a_part_that_dies_in_the_middle_of_a_foreign_request_leaves_nothing_behind() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/lab/two-domains.yaml");
    let mut spec = Spec::load(&file).unwrap();
    spec.domains[1].nodes[0].split = true;
    spec.domains[1].nodes[0].clients.retain(|client| client.name == "by-address");
    spec.checks.clear();
    for node in spec.domains.iter_mut().flat_map(|domain| &mut domain.nodes) {
        node.env.insert("NSM_MAX_TOKEN_LIFETIME".to_owned(), TOKENS.to_owned());
    }
    let run = Run::of(&mut spec, "midway");
    let mut lab = run.up(&spec).await;
    let nodes = spec.domains.iter().flat_map(|domain| &domain.nodes);
    let engines: Vec<(String, Client)> = nodes
        .map(|node| {
            (format!("ports of {}", node.name), Client::new(&lab.layout().engine(&node.name), None).0)
        })
        .collect();
    let connected = holdings(&lab, &engines).await.unwrap();
    leave(&lab).await;
    let mut nothing = connected.clone();
    for name in
        ["proxy-domain1", "proxy-domain2", "nsmgr-node-1", "nsmgr-node-2", LAST, "forwarder-node-2", ENDPOINT]
    {
        nothing.insert(name.to_owned(), 0);
    }
    nothing.insert("interfaces of by-address".to_owned(), connected["interfaces of by-address"] - 1);
    // The far end of the leg, and the tunnel.
    for node in ["ports of node-1", "ports of node-2"] {
        nothing.insert(node.to_owned(), connected[node] - 2);
    }
    until_held(&lab, &engines, &nothing, "after the client has left").await;

    for part in PARTS {
        let last = AdminClient(lab.layout().admin(LAST));
        let seen = checks(&last).await;
        let stopped = Stopped::new(pid(&lab, ENDPOINT));
        let dies = pid(&lab, part);
        let die = async {
            let deadline = Instant::now() + PATIENCE;
            while checks(&last).await == seen {
                assert!(Instant::now() < deadline, "no Request came to {LAST}");
                tokio::time::sleep(LOOK).await;
            }
            signal("-KILL", &dies);
            drop(stopped);
        };
        // The client is there at once, and ready when the part is back: that is not waited for here.
        tokio::select! {
            begun = lab.restart(CLIENT) => panic!("{part} lives, and the client is {begun:?}"),
            () = die => {}
        }
        ended(&lab, part).await;
        lab.restart(part).await.unwrap_or_else(|error| panic!("{part}: {error}"));
        lab.connected(CLIENT, 1).await.unwrap_or_else(|error| panic!("{part} is back, but {error}"));
        until_held(&lab, &engines, &connected, &format!("{part} died and the client is connected")).await;
        leave(&lab).await;
        until_held(&lab, &engines, &nothing, &format!("{part} died and the client has left")).await;
    }
    lab.down(&Silent).await.unwrap();
}
