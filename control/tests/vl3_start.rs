//! Endpoints of one virtual network (`vwire vl3`) that start at the same time, as processes: each pair is linked, and once. Who is first is
//! forced by stopping (SIGSTOP) the registry and endpoints where it matters. Needs root.

mod lab_support;

use std::time::{Duration, Instant};

use lab_support::{PATIENCE, Run, inside, pings_once, until};
use serde_json::Value;
use vwire_control::cli::AdminClient;
use vwire_control::dataplane::client::Client;
use vwire_control::lab::{Lab, Silent, Spec};
use vwire_control::obs::Status;

const LAB: &str = r#"
name: vl3start
domains:
  - name: cluster
    ipam: 172.16.0.0/16
    nodes:
      - name: node-1
        vl3:
          - {name: a, services: [net]}
          - {name: b, services: [net]}
      - name: node-2
        vl3:
          - {name: c, services: [net]}
checks: []
"#;

fn signal(lab: &Lab, process: &str, signal: &str) {
    let processes = lab.processes();
    let (place, _) = processes.iter().find(|(place, _)| place.name == process).expect("the lab has it");
    let pid = place.pid.to_string();
    assert!(std::process::Command::new("kill").args([signal, &pid]).status().unwrap().success());
}

/// A process that does not run until this is dropped.
struct Stopped(String);

impl Stopped {
    fn new(lab: &Lab, process: &str) -> Self {
        signal(lab, process, "-STOP");
        let processes = lab.processes();
        Self(processes.iter().find(|(place, _)| place.name == process).unwrap().0.pid.to_string())
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = std::process::Command::new("kill").args(["-CONT", &self.0]).status();
    }
}

async fn status(lab: &Lab, endpoint: &str) -> Result<Status, String> {
    let admin = AdminClient(lab.layout().admin(&format!("vl3-{endpoint}")));
    admin.get::<Status>("/status").await.map_err(|error| error.to_string())
}

/// What an endpoint says of its peers.
async fn peers(lab: &Lab, endpoint: &str) -> Result<Vec<Value>, String> {
    let status = status(lab, endpoint).await?;
    Ok(status.reports.get("peers").and_then(Value::as_array).cloned().unwrap_or_default())
}

/// Ends endpoints as an operator would, and waits until they have ended. Nothing of them is left in the registry.
async fn end(lab: &Lab, endpoints: &[&str]) {
    for endpoint in endpoints {
        signal(lab, &format!("vl3-{endpoint}"), "-TERM");
    }
    let runs =
        |name: &str| lab.processes().iter().any(|(place, runs)| *runs && place.name == format!("vl3-{name}"));
    until("they have ended", async || match endpoints.iter().find(|name| runs(name)) {
        Some(name) => Err(format!("{name} runs")),
        None => Ok(()),
    })
    .await;
}

/// Waits until each has all that comes before its registration, and waits for that.
async fn about_to_register(lab: &Lab, endpoints: &[&str]) {
    for endpoint in endpoints {
        until(&format!("{endpoint} registers"), async || {
            let waits = status(lab, endpoint).await?.not_ready;
            if waits == ["vl3 waits for its registration"] { Ok(()) } else { Err(format!("{waits:?}")) }
        })
        .await;
    }
}

/// The ports of an endpoint's routing domain: links that it dialled, and all others.
async fn ports(lab: &Lab, endpoint: &str) -> Result<(usize, usize), String> {
    let (client, _events) = Client::new(&lab.layout().engine(endpoint), None);
    let state = client.snapshot().await.map_err(|status| status.to_string())?.state.ok_or("no state")?;
    let dialled = state.ports.iter().filter(|port| port.name.starts_with("to.")).count();
    Ok((dialled, state.ports.len() - dialled))
}

/// Waits until every pair is linked by one link, which one of both has dialled, and no engine has a port for another.
async fn linked_once(lab: &Lab, endpoints: &[&str]) {
    let others = endpoints.len() - 1;
    until("each pair is linked once", async || {
        let mut dialled = 0;
        for endpoint in endpoints {
            let peers = peers(lab, endpoint).await?;
            let linked: Vec<&Value> = peers.iter().filter(|peer| peer["state"] == "linked").collect();
            if linked.len() != others || peers.len() != others {
                return Err(format!("{endpoint}: {peers:?}"));
            }
            let by_us = linked.iter().filter(|peer| peer["dialled_by"] == "us").count();
            let (to, rest) = ports(lab, endpoint).await?;
            // Beside the links by which others dialled it has the port of its own interface.
            if (to, rest) != (by_us, others - by_us + 1) {
                return Err(format!("{endpoint} has {to} and {rest} ports: {peers:?}"));
            }
            dialled += by_us;
        }
        match dialled == endpoints.len() * others / 2 {
            true => Ok(()),
            false => Err(format!("{dialled} links were dialled")),
        }
    })
    .await;
    // Packets go by them: from each endpoint's own interface to every other's address.
    for from in endpoints {
        for to in endpoints.iter().filter(|to| *to != from) {
            let prefixes = status(lab, to).await.unwrap().reports["prefixes"].clone();
            let address = prefixes[0].as_str().unwrap().split('/').next().unwrap().to_owned();
            until(&format!("{from} reaches {to} at {address}"), async || {
                if pings_once(lab, from, &address) {
                    Ok(())
                } else {
                    Err(inside(lab, from, &["ip", "route"]).1)
                }
            })
            .await;
        }
    }
}

#[tokio::test]
async fn endpoints_that_register_in_one_moment_are_linked_once() {
    let mut spec: Spec = LAB.parse().unwrap();
    let run = Run::of(&mut spec, "vl3moment");
    let mut lab = run.up(&spec).await;
    let all = ["a", "b", "c"];
    linked_once(&lab, &all).await;
    for round in 0..4 {
        end(&lab, &all).await;
        let starting = if round % 2 == 0 { &all[..2] } else { &all[..] };
        let registry = Stopped::new(&lab, "registry-cluster");
        for name in starting {
            lab.start_again(&format!("vl3-{name}")).unwrap();
        }
        about_to_register(&lab, starting).await;
        // Now all of them at once.
        drop(registry);
        linked_once(&lab, starting).await;
        for name in &all[starting.len()..] {
            lab.restart(&format!("vl3-{name}")).await.unwrap();
        }
        linked_once(&lab, &all).await;
    }
    lab.down(&Silent).await.unwrap();
}

/// Starts all, and stops those of `late` between their registration and what they make of it, until the others have dialled them: then both
/// ends of a pair dial. False if one of them was stopped so early that it was not registered: then that was a start like any other.
async fn dialled_while_stopped(lab: &mut Lab, all: &[&str], late: &[&str]) -> bool {
    let registry = Stopped::new(lab, "registry-cluster");
    for name in all {
        lab.start_again(&format!("vl3-{name}")).unwrap();
    }
    about_to_register(lab, all).await;
    let _stopped: Vec<Stopped> = late.iter().map(|name| Stopped::new(lab, &format!("vl3-{name}"))).collect();
    drop(registry);
    for name in all.iter().filter(|name| !late.contains(name)) {
        let began = Instant::now();
        loop {
            let peers = peers(lab, name).await.unwrap();
            let of = |late: &&&str| peers.iter().find(|peer| peer["name"] == ***late);
            if late.iter().all(|late| of(&late).is_some_and(|peer| peer["dialled_by"] == "us")) {
                break;
            }
            if began.elapsed() > PATIENCE / 10 && !late.iter().all(|late| of(&late).is_some()) {
                return false;
            }
            assert!(began.elapsed() < PATIENCE, "{name} has not dialled those that are stopped: {peers:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    true
}

#[tokio::test]
async fn endpoints_that_dial_each_other_at_once_are_linked_once() {
    let mut spec: Spec = LAB.parse().unwrap();
    let run = Run::of(&mut spec, "vl3both");
    let mut lab = run.up(&spec).await;
    let all = ["a", "b", "c"];
    linked_once(&lab, &all).await;
    for late in [&["a"][..], &["b"], &["b", "c"]] {
        let mut at_once = false;
        for _ in 0..8 {
            end(&lab, &all).await;
            at_once = dialled_while_stopped(&mut lab, &all, late).await;
            linked_once(&lab, &all).await;
            if at_once {
                break;
            }
        }
        assert!(at_once, "{late:?} were never stopped at the right moment");
    }
    lab.down(&Silent).await.unwrap();
}
