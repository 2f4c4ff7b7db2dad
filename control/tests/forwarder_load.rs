//! Many connections at one time: all are made, all can be told apart, and nothing is left of any. Prints how fast it went, and asserts
//! nothing about that. Needs root.

mod engine_support;
mod netns_support;

use std::sync::Arc;
use std::time::Instant;

use engine_support::*;
use netns_support::Netns;
use tokio::sync::Semaphore;

const CONNECTIONS: usize = 128;

async fn many(rig: &Arc<Rig>, nsc: &Arc<Netns>, at_once: usize) {
    let places = Arc::new(Semaphore::new(at_once));
    let begun = Instant::now();
    let mut asking_all = tokio::task::JoinSet::new();
    for at in 0..CONNECTIONS {
        let (rig, nsc, places) = (Arc::clone(rig), Arc::clone(nsc), Arc::clone(&places));
        asking_all.spawn(async move {
            let _place = places.acquire().await.unwrap();
            let offer = mechanism(
                "REMOTE",
                "VXLAN",
                &[("src_ip", "10.9.0.2".into()), ("src_port", "4789".into()), ("MTU", "1446".into())],
            );
            let _ = &nsc;
            rig.request(asking(&format!("id-{at}"), "ETHERNET", vec![offer]), None).await.unwrap()
        });
    }
    let made = asking_all.join_all().await;
    let took = begun.elapsed();
    let numbers: std::collections::BTreeSet<_> =
        made.iter().map(|one| one.mechanism.clone().unwrap().parameters["vni"].clone()).collect();
    assert_eq!(numbers.len(), CONNECTIONS, "each has a number of its own");
    assert_eq!(rig.ports().await.len(), 3 * CONNECTIONS, "two ports and their cross-connect each");
    let closing = Instant::now();
    let mut ends = tokio::task::JoinSet::new();
    for one in made {
        let (rig, places) = (Arc::clone(rig), Arc::clone(&places));
        ends.spawn(async move {
            let _place = places.acquire().await.unwrap();
            rig.close(&one).await.unwrap();
        });
    }
    ends.join_all().await;
    let rate = |took: std::time::Duration| CONNECTIONS as f64 / took.as_secs_f64();
    eprintln!("{at_once:3} at once: {:5.0} Requests/s, {:5.0} Closes/s", rate(took), rate(closing.elapsed()));
    assert!(rig.ports().await.is_empty() && rig.dataplane.wanted.vnis.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn tunnels_to_interfaces() {
    let [one, _two] = Node::two(false);
    let rig = Arc::new(one.rig(Endpoint::default()).await);
    let nse = Arc::new(Netns::new("nse"));
    // An interface for each connection, named by the forwarder.
    *rig.endpoint.mechanism.lock().unwrap() =
        mechanism("LOCAL", "KERNEL", &[("inodeURL", nse.sent().0.to_string())]);
    *rig.endpoint.fd.lock().unwrap() = Some(nse.sent());
    for at_once in [1, 16, 64] {
        many(&rig, &nse, at_once).await;
    }
    assert_eq!(nse.ip("-o link").lines().count(), 1, "only lo is left");
}
