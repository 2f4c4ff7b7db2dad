//! One node, all four pairs of kernel interface and memif: each component dies and comes back, and every vWire carries packets again.
//! Needs root.

mod lab_support;

use std::path::Path;
use std::time::{Duration, Instant};

use lab_support::Run;
use vwire_control::cli::AdminClient;
use vwire_control::lab::{Lab, Silent, Spec, check};

/// How long vWires may take to be whole after a component is back, on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why the lab's checks fail; none if they don't.
async fn complaint(lab: &Lab, spec: &Spec) -> Option<String> {
    for wanted in &spec.checks {
        match check(lab, wanted).await {
            Ok(outcomes) => {
                if let Some(bad) = outcomes.iter().find(|outcome| outcome.failed.is_some()) {
                    return Some(format!("{}: {:?}", bad.check, bad.failed));
                }
            }
            Err(error) => return Some(error.to_string()),
        }
    }
    None
}

async fn whole(lab: &Lab, spec: &Spec, after: &str) {
    let end = Instant::now() + PATIENCE;
    while let Some(complaint) = complaint(lab, spec).await {
        assert!(Instant::now() < end, "after {after}: {complaint}");
    }
}

#[tokio::test]
async fn every_component_may_die_and_come_back() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/lab/one-node.yaml");
    let mut spec = Spec::load(&file).unwrap();
    let run = Run::of(&mut spec, "heal");
    // Manager and forwarder as processes of their own, so that each can die alone.
    spec.domains[0].nodes[0].split = true;
    let mut lab = run.up(&spec).await;
    whole(&lab, &spec, "the start").await;
    // A memif endpoint's restart comes twice: what its clients have learned of the first is wrong for the second.
    for process in [
        "nse-nse-memif",
        "nse-nse-kernel",
        "forwarder-node-1",
        "nsmgr-node-1",
        "nse-nse-memif",
        "nsc-nsc-memif",
    ] {
        lab.kill(process).await.unwrap();
        lab.restart(process).await.unwrap();
        whole(&lab, &spec, process).await;
    }
    assert_counted(&lab).await;
    lab.down(&Silent).await.unwrap();
}

/// What the processes have counted of all that, as Prometheus reads it.
async fn assert_counted(lab: &Lab) {
    const REQUESTS: &str = r#"calls_total operation="request" outcome="ok""#;
    const CHECKS: &str = r#"policy_checks_total outcome="ok""#;
    const DIALS: &str = r#"dials_total outcome="ok""#;
    for (process, counters) in [
        ("nsmgr-node-1", &[REQUESTS, r#"calls_total operation="find" outcome="ok""#, CHECKS, DIALS][..]),
        ("forwarder-node-1", &[REQUESTS, CHECKS, DIALS]),
        ("nse-nse-kernel", &[REQUESTS, CHECKS, DIALS]),
        ("nsc-nsc-kernel", &[r#"heals_total outcome="ok""#, CHECKS, DIALS]),
    ] {
        let text = AdminClient(lab.layout().admin(process)).text("/metrics").await.unwrap();
        for counter in counters {
            assert!(text.lines().any(|line| counts(line, counter)), "{process}: no {counter} in\n{text}");
        }
    }
}

/// Whether a line is of this counter, with these labels among others, and above 0.
fn counts(line: &str, counter: &str) -> bool {
    let count = line.rsplit(' ').next().and_then(|count| count.parse::<f64>().ok());
    let mut words = counter.split(' ');
    let name = words.next().unwrap_or_default();
    line.strip_prefix("vwire_").and_then(|line| line.strip_prefix(name)).is_some_and(|rest| {
        rest.starts_with('{') && words.all(|label| rest.contains(label)) && count > Some(0.0)
    })
}
