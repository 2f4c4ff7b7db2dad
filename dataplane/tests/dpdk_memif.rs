//! DPDK's memif driver against our memif port, in both roles, inside one engine: what enters by a pipe on one side leaves by the
//! pipe on the other as it was.
#![cfg(feature = "dpdk")]

mod dpdk_support;
mod support;

use dpdk_support::{PLAIN, dpdk_port};
use support::{Rig, collect, join, memif, pipe, remove, run, set};
use vwire_proto::dataplane::v1 as pb;

/// pipe p - memif m … DPDK's memif d - pipe q
async fn chain(rig: &mut Rig, number: usize, ours: pb::memif::Role) {
    let socket = rig.path("m.sock").display().to_string();
    let theirs = if ours == pb::memif::Role::Server { "client" } else { "server" };
    let device =
        format!("net_memif{number},role={theirs},socket={socket},socket-abstract=no,id=0,bsize=2048");
    // DPDK's client connects when it is started, and can't be started if nobody listens; ours tries again.
    rig.apply(vec![set(memif("m", ours, socket)), set(pipe("p", "p")), join("p", "m")]).await.unwrap();
    rig.apply(vec![set(dpdk_port("d", &device)), set(pipe("q", "q")), join("q", "d")]).await.unwrap();
}

fn frames() -> Vec<Vec<u8>> {
    let frame = |len: usize| (0..len).map(|i| (i ^ (i / 251) ^ len) as u8).collect();
    [60, 64, 65, 128, 129, 590, 1514, 1518].into_iter().chain(60..160).map(frame).collect()
}

#[test]
fn frames_pass_both_ways_whichever_side_listens_and_again_after_the_peer_came_back() {
    run(async {
        let roles = [pb::memif::Role::Server, pb::memif::Role::Client];
        for (number, role) in roles.into_iter().enumerate() {
            let mut rig = Rig::with(PLAIN).await;
            chain(&mut rig, number, role).await;
            let (mut p, mut q) = (rig.far_end("p"), rig.far_end("q"));
            for round in 0..2 {
                rig.wait_link("m", true).await;
                rig.wait_link("d", true).await;
                for (i, frame) in frames().into_iter().enumerate() {
                    assert!(p.inject(&frame) && q.inject(&frame));
                    for end in [&mut p, &mut q] {
                        assert!(collect(end, 1).await[0] == frame, "{role:?} {round} {i}");
                    }
                }
                // One copy on the way to the driver, once the worker's own counters are up to date.
                let copied = |stats: &pb::PortStats| stats.device["vwire_tx_copied_bytes"];
                let stats =
                    rig.wait_stats("d", |stats| stats.tx_bytes > 0 && copied(stats) == stats.tx_bytes).await;
                assert!(stats.drops.is_empty(), "{stats:?}");
                if round == 0 {
                    // The peer goes: the driver's link is down, and frames are dropped as that says.
                    let port = rig.snapshot().await.state.unwrap().ports;
                    let ours = port.into_iter().find(|port| port.name == "m").unwrap();
                    rig.apply(vec![support::part("p", "m"), remove("m")]).await.unwrap();
                    let link = rig.wait_link("d", false).await;
                    assert!(link.reason.contains("no link"), "{link:?}");
                    assert!(q.inject(&frames()[0]));
                    rig.wait_stats("d", |stats| stats.drops == [("egress_down".to_owned(), 1)].into()).await;
                    rig.apply(vec![set(ours), join("p", "m")]).await.unwrap();
                    rig.apply(vec![support::part("q", "d")]).await.unwrap();
                    // Counters are the slot's: a port set anew begins at nothing.
                    let again = rig.snapshot().await.state.unwrap().ports;
                    let theirs = again.into_iter().find(|port| port.name == "d").unwrap();
                    rig.apply(vec![remove("d")]).await.unwrap();
                    rig.apply(vec![set(theirs), join("q", "d")]).await.unwrap();
                }
            }
            rig.dataplane.stop().await;
        }
    });
}
