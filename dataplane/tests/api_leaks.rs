//! Nothing is left open or mapped behind ports that come and go, or that could not be made. Each test counts
//! what its process holds, so they take turns.

mod support;

use std::sync::{Mutex, PoisonError};

use support::*;
use tonic::Code;
use vwire_proto::dataplane::v1 as pb;

static TURN: Mutex<()> = Mutex::new(());

fn mappings() -> usize {
    std::fs::read_to_string("/proc/self/maps").unwrap().lines().count()
}

#[test]
fn what_fails_is_undone_and_named_and_leaves_no_descriptor_open() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    run(async {
        let mut rig = Rig::new().await;
        rig.replace(two_pipes()).await.unwrap();
        let server = memif("m", pb::memif::Role::Server, rig.path("m.sock").display().to_string());
        rig.apply(vec![set(server.clone())]).await.unwrap();
        let (mut a, mut b) = (rig.far_end("pa"), rig.far_end("pb"));
        let before = rig.snapshot().await;
        let mut descriptors = open_descriptors();
        for round in 0..3 {
            let mut changed = server.clone();
            if let Some(pb::port::Kind::Memif(memif)) = &mut changed.kind {
                memif.queues = 4;
            }
            // New ports first, then one that has to make room for its successor, then one that can't be made.
            let bad = kernel("z", "nsm-1", "/run/netns/vwire-no-such");
            let ops = vec![set(pipe("c", "pc")), set(pipe("a", "other")), set(changed), set(bad)];
            let status = rig.apply(ops).await.unwrap_err();
            assert_eq!(status.code(), Code::FailedPrecondition);
            let begin = "port z: network namespace /run/netns/vwire-no-such: No such file or directory";
            assert!(status.message().starts_with(begin), "{}", status.message());
            assert_eq!(rig.snapshot().await, before, "round {round}");
            if round == 0 {
                descriptors = open_descriptors();
            }
            assert_eq!(open_descriptors(), descriptors, "round {round}");
        }
        passes(&mut a, &mut b, 10).await;
        assert!(rig.path("m.sock").exists());
    });
}

#[test]
fn ports_that_come_and_go_a_thousand_times_leave_nothing() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    run(async {
        let mut rig = Rig::new().await;
        let socket = rig.path("m.sock").display().to_string();
        let mut held = None;
        for round in 0..1000 {
            let server = memif("m", pb::memif::Role::Server, socket.clone());
            let client = memif("c", pb::memif::Role::Client, socket.clone());
            let ports = vec![set(server), set(client), set(pipe("a", "pa")), join("a", "m")];
            rig.apply(ports).await.unwrap();
            rig.wait_link("m", true).await;
            rig.wait_link("c", true).await;
            rig.replace(pb::State::default()).await.unwrap();
            // The first rounds fill allocators' and the runtime's own pools.
            if round == 20 {
                held = Some((open_descriptors(), mappings()));
            }
        }
        let (descriptors, mapped) = held.unwrap();
        assert_eq!(open_descriptors(), descriptors);
        assert!(mappings() <= mapped + 4, "{} mappings, and {mapped} at the beginning", mappings());
        assert!(!rig.path("m.sock").exists());
    });
}
