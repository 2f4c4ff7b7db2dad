//! DPDK's memif driver against our memif port, in both roles, inside one engine: what enters by a pipe on one side leaves by the
//! pipe on the other as it was; and two kernels, one on each side, reach each other.
#![cfg(feature = "dpdk")]

mod dpdk_support;
mod kernel_support;
mod support;

use dpdk_support::{PLAIN, Process, dpdk_port, pair};
use kernel_support::Netns;
use kernel_support::hosts::{above, kernel, traffic};
use support::{Rig, collect, join, memif, pipe, remove, run, set};
use vwire_proto::dataplane::v1 as pb;

/// pipe p - memif m … DPDK's memif d - pipe q
async fn chain(rig: &mut Rig, number: usize, ours: pb::memif::Role, bsize: usize) {
    let socket = rig.path("m.sock").display().to_string();
    let theirs = if ours == pb::memif::Role::Server { "client" } else { "server" };
    let device =
        format!("net_memif{number},role={theirs},socket={socket},socket-abstract=no,id=0,bsize={bsize}");
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
        // A ring's buffers are the client's; a frame may lie in several.
        use pb::memif::Role::{Client, Server};
        for (number, (role, bsize)) in [(Server, 2048), (Client, 2048), (Server, 256)].into_iter().enumerate()
        {
            let mut rig = Rig::with(PLAIN).await;
            chain(&mut rig, number, role, bsize).await;
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
                    // Counters are the slot's: a port set anew begins at nothing. It goes before its peer is back: the driver
                    // does not bear one that connects meanwhile.
                    let ports = rig.snapshot().await.state.unwrap().ports;
                    let theirs = ports.into_iter().find(|port| port.name == "d").unwrap();
                    rig.apply(vec![support::part("q", "d"), remove("d")]).await.unwrap();
                    rig.apply(vec![set(ours), join("p", "m")]).await.unwrap();
                    rig.apply(vec![set(theirs), join("q", "d")]).await.unwrap();
                }
            }
            rig.dataplane.stop().await;
        }
    });
}

/// Kernel of host 1 - DPDK's memif d … our memif m - kernel of host 2.
fn kernels(theirs: &str) -> (Process, Netns, Netns) {
    let (one, two) = (Netns::new(), Netns::new());
    let ours = if theirs == "server" { "client" } else { "server" };
    let memif = format!("kind = \"memif\"\nrole = \"{ours}\"\nsocket = \"$DIR/m.sock\"");
    let first = format!("[[port]]\nname = \"k1\"\n{}\n", kernel(&one, 1, 1500));
    let config = [PLAIN, &first, &pair("m", &memif, "k2", &kernel(&two, 2, 1500))];
    let mut process = Process::started(None, &config.concat());
    // DPDK's client can't be started if nobody listens.
    let socket = process.path("m.sock").display().to_string();
    let device = format!("net_memif0,role={theirs},socket={socket},socket-abstract=no,id=0,bsize=2048");
    process.apply(vec![set(dpdk_port("d", &device)), join("k1", "d")]).unwrap();
    (process, one, two)
}

#[test]
fn two_kernels_reach_each_other_whichever_side_listens() {
    for theirs in ["client", "server"] {
        let (mut process, one, two) = kernels(theirs);
        traffic(&one, &two, 1500, false);
        let (kernel, device) = (process.stats("k1"), process.stats("d"));
        assert!(kernel.rx_bytes / kernel.rx_packets > 2000, "uncut frames came: {kernel:?}");
        assert!(device.tx_bytes / device.tx_packets <= 1514, "and were cut: {device:?}");
        let named: Vec<_> = device.drops.keys().filter(|reason| *reason != "egress_down").collect();
        assert!(named.is_empty(), "{device:?}");
        above(&one, "k0", 1500);
        process.wait_stats("d", |stats| stats.drops.get("too_big") == Some(&1));
    }
}

#[test]
fn an_mtu_that_the_driver_does_not_have_is_refused_with_its_limit() {
    let mut process = Process::started(None, PLAIN);
    let device = format!("net_memif0,role=server,socket={},socket-abstract=no", process.path("s").display());
    let mut port = dpdk_port("d", &device);
    if let Some(pb::port::Kind::Dpdk(dpdk)) = &mut port.kind {
        dpdk.mtu = 2000;
    }
    let refused = process.apply(vec![set(port)]).unwrap_err();
    assert!(refused.message().contains("device max frame size (1518)"), "{refused:?}");
    process.apply(vec![set(dpdk_port("d", &device))]).unwrap();
}
