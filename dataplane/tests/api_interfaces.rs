//! Kernel interfaces are made and deleted beside everything else: what is asked for at the same time is done, in order for each port,
//! and an answer means that it is so in the kernel. Needs root, for namespaces.

mod kernel_support;
mod support;

use std::sync::{Mutex, PoisonError};

use futures::future::join_all;
use kernel_support::Netns;
use support::*;
use tonic::Status;
use vwire_proto::dataplane::v1 as pb;

/// One test at a time: they count the process's descriptors, and a child that one of them starts holds those of all until it runs its
/// own program, interfaces included.
static TURN: Mutex<()> = Mutex::new(());

const AT_ONCE: usize = 16;

fn path(netns: &Netns) -> String {
    format!("/run/netns/{}", netns.name)
}

async fn apply(rig: &Rig, ops: Vec<pb::Op>) -> Result<(), Status> {
    let request = pb::ApplyRequest { base_generation: None, ops };
    rig.client.clone().apply(request).await.map(drop)
}

/// An interface `i…`, joined to a pipe.
fn vwire(i: usize, netns: &Netns) -> Vec<pb::Op> {
    let (k, p) = (format!("k{i}"), format!("p{i}"));
    vec![set(kernel(&k, &format!("i{i}"), path(netns))), set(pipe(&p, &p)), join(&k, &p)]
}

fn removal(i: usize) -> Vec<pb::Op> {
    let (k, p) = (format!("k{i}"), format!("p{i}"));
    vec![part(&k, &p), remove(&k), remove(&p)]
}

#[test]
fn many_at_the_same_time_are_there_when_answered_and_gone_when_answered() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    run(async {
        let mut rig = Rig::new().await;
        let netns = Netns::new();
        let mut held = None;
        for _ in 0..3 {
            join_all((0..AT_ONCE).map(|i| {
                let (rig, netns) = (&rig, &netns);
                async move {
                    apply(rig, vwire(i, netns)).await.unwrap();
                    assert!(netns.interfaces().contains(&format!("i{i}")), "it is answered, so it is there");
                }
            }))
            .await;
            let snapshot = rig.snapshot().await;
            assert_eq!(snapshot.links.iter().filter(|link| link.up).count(), 2 * AT_ONCE);
            join_all((0..AT_ONCE).map(|i| {
                let (rig, netns) = (&rig, &netns);
                async move {
                    apply(rig, removal(i)).await.unwrap();
                    assert!(!netns.interfaces().contains(&format!("i{i}")), "it is answered, so it is gone");
                }
            }))
            .await;
            assert!(netns.interfaces().is_empty());
            assert!(rig.snapshot().await.links.is_empty());
            let now = open_descriptors();
            assert_eq!(now, *held.get_or_insert(now));
        }
    });
}

#[test]
fn changes_of_one_port_and_of_one_interface_keep_their_order() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    run(async {
        let rig = Rig::new().await;
        let netns = Netns::new();
        let interface = |port: &str| vec![set(kernel(port, "nsm-1", path(&netns)))];
        let gone = |port: &str| vec![remove(port)];
        // None waits for the answer of the one before it.
        let steps = [
            interface("a"),
            gone("a"),
            interface("a"),
            gone("a"),
            interface("a"),
            vec![remove("a"), set(kernel("b", "nsm-1", path(&netns)))],
        ];
        for done in join_all(steps.map(|ops| apply(&rig, ops))).await {
            done.unwrap();
        }
        assert_eq!(netns.interfaces(), ["nsm-1"]);
        // The kernel is still deleting the one when the other is asked for.
        for done in join_all([gone("b"), interface("c")].map(|ops| apply(&rig, ops))).await {
            done.unwrap();
        }
        assert_eq!(netns.interfaces(), ["nsm-1"]);
        apply(&rig, gone("c")).await.unwrap();
        assert!(netns.interfaces().is_empty());
    });
}

#[test]
fn one_that_is_refused_leaves_the_others_and_nothing_of_itself() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    run(async {
        let mut rig = Rig::new().await;
        let netns = Netns::new();
        netns.ip(&["tuntap", "add", "i3", "mode", "tap"]);
        let before = rig.snapshot().await.generation;
        // Two in one transaction, of which the second cannot be.
        let both = [set(kernel("k", "other", path(&netns))), vwire(3, &netns).remove(0)].to_vec();
        let refused = apply(&rig, both).await.unwrap_err();
        assert!(refused.message().contains("port k3: interface i3 exists already"), "{refused}");
        assert_eq!(netns.interfaces(), ["i3"]);
        assert_eq!(rig.snapshot().await.generation, before, "nothing was changed and changed back");

        let done = join_all((0..8).map(|i| apply(&rig, vwire(i, &netns)))).await;
        let refused: Vec<usize> = (0..8).filter(|i| done[*i].is_err()).collect();
        assert_eq!(refused, [3]);
        assert_eq!(rig.snapshot().await.links.len(), 14);
        assert_eq!(netns.interfaces().len(), 8);
        rig.replace(pb::State::default()).await.unwrap();
        assert_eq!(netns.interfaces(), ["i3"], "it is somebody else's");
    });
}

#[test]
fn a_caller_that_gives_up_leaves_a_whole_change_or_none() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    run(async {
        let mut rig = Rig::new().await;
        let netns = Netns::new();
        for _ in 0..5 {
            let mut asking = Box::pin(apply(&rig, vwire(1, &netns)));
            // Long enough to be sent, and too short for the kernel.
            let _ = tokio::time::timeout(std::time::Duration::from_millis(2), &mut asking).await;
            drop(asking);
            // It waits for its turn at the same ports.
            let again = apply(&rig, vwire(1, &netns)).await;
            again.unwrap();
            assert_eq!(netns.interfaces(), ["i1"]);
            assert_eq!(rig.snapshot().await.links.len(), 2);
            apply(&rig, removal(1)).await.unwrap();
            assert!(netns.interfaces().is_empty());
        }
    });
}
