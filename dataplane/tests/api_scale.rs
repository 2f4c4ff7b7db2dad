//! Many ports, several workers, slow readers.

mod support;

use std::time::{Duration, Instant};

use support::*;
use tonic::Code;
use vwire_proto::dataplane::v1 as pb;

fn server(name: String, socket: &str, id: u32) -> pb::Port {
    let memif =
        pb::Memif { role: pb::memif::Role::Server.into(), socket: socket.into(), id, ..Default::default() };
    pb::Port { name, kind: Some(pb::port::Kind::Memif(memif)), ..Default::default() }
}

#[test]
fn thousands_of_ports_come_and_go_in_seconds() {
    run(async {
        let mut rig = Rig::new().await;
        let socket = rig.path("m.sock").display().to_string();
        let ports: Vec<_> = (0..4000).map(|i| server(format!("p{i}"), &socket, i)).collect();
        let xconnects =
            (0..2000).map(|i| xconnect(&format!("p{}", 2 * i), &format!("p{}", 2 * i + 1))).collect();
        let state = pb::State { ports, xconnects, ..Default::default() };
        let begin = Instant::now();
        assert_eq!(rig.replace(state.clone()).await.unwrap().changes.len(), 4001);
        assert!(rig.replace(state).await.unwrap().changes.is_empty());
        assert_eq!(rig.snapshot().await.links.len(), 4000);
        rig.apply(vec![set(memif("c", pb::memif::Role::Client, socket))]).await.unwrap_err();
        rig.replace(pb::State::default()).await.unwrap();
        assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    });
}

#[test]
fn slots_are_used_again_but_the_longest_unused_first() {
    run(async {
        let mut rig = Rig::new().await;
        let socket = rig.path("m.sock").display().to_string();
        // More ports than there are slots, in turn.
        for i in 0..6 {
            let ports = (0..1000).map(|p| server(format!("p{i}-{p}"), &socket, p)).collect();
            rig.replace(pb::State { ports, ..Default::default() }).await.unwrap();
        }
        assert_eq!(rig.snapshot().await.links.len(), 1000);
    });
}

#[test]
fn both_ends_of_a_cross_connect_are_on_one_worker_and_pairs_spread_over_all() {
    run(async {
        let mut rig = Rig::with("[workers]\ncores = [0, 1]\n").await;
        let mut ops = Vec::new();
        for i in 0..6 {
            let (a, b) = (format!("a{i}"), format!("b{i}"));
            ops.extend([set(pipe(&a, &a)), set(pipe(&b, &b)), join(&a, &b)]);
        }
        rig.apply(ops).await.unwrap();
        let mut on_each = [0; 2];
        for i in 0..6 {
            let (a, b) = (rig.stats(&format!("a{i}")).await.worker, rig.stats(&format!("b{i}")).await.worker);
            assert_eq!(a, b, "pair {i}");
            on_each[a.unwrap() as usize] += 1;
        }
        assert_eq!(on_each, [3, 3]);
        // Two that are joined later, whichever workers they are on.
        rig.apply(vec![part("a0", "b0"), part("a1", "b1"), join("a0", "b1"), join("a1", "b0")])
            .await
            .unwrap();
        let (mut a, mut b) = (rig.far_end("a0"), rig.far_end("b1"));
        passes(&mut a, &mut b, 50).await;
        passes(&mut b, &mut a, 50).await;
    });
}

#[test]
fn tunnels_of_one_underlay_and_what_they_are_joined_with_share_a_worker() {
    run(async {
        let mut rig = Rig::with("[workers]\ncores = [0, 1]\n").await;
        let tunnel = |i: u32| {
            let vxlan = pb::Vxlan {
                vni: i,
                local: "127.0.0.1".into(),
                remote: "127.0.0.2".into(),
                port: 14_789,
                underlay_mtu: 1500,
                ..Default::default()
            };
            pb::Port { name: format!("t{i}"), kind: Some(pb::port::Kind::Vxlan(vxlan)), ..Default::default() }
        };
        let mut ops = vec![set(pipe("lone", "lone"))];
        for i in 0..4 {
            // The pipes come first in the order of names, and must know where the tunnels will be.
            let pipe_name = format!("p{i}");
            ops.extend([
                set(pipe(&pipe_name, &pipe_name)),
                set(tunnel(i)),
                join(&pipe_name, &format!("t{i}")),
            ]);
        }
        rig.apply(ops).await.unwrap();
        let carrier = rig.stats("udp:127.0.0.1:14789").await.worker;
        assert!(carrier.is_some());
        for i in 0..4 {
            assert_eq!(rig.stats(&format!("p{i}")).await.worker, carrier);
            assert_eq!(rig.stats(&format!("t{i}")).await.worker, carrier);
        }
        assert_ne!(rig.stats("lone").await.worker, None);
        rig.replace(pb::State::default()).await.unwrap();
        let all = rig.client.get_stats(pb::GetStatsRequest::default()).await.unwrap().into_inner().ports;
        assert_eq!(all, [], "the underlay goes with its last tunnel");
    });
}

#[test]
fn a_watcher_that_does_not_read_is_sent_away_and_can_come_back() {
    run(async {
        let mut rig = Rig::new().await;
        let socket = rig.path("m.sock").display().to_string();
        let mut links = rig.client.watch_links(pb::WatchLinksRequest {}).await.unwrap().into_inner();
        let ports: Vec<_> = (0..2000).map(|i| server(format!("port-{i}"), &socket, i)).collect();
        for _ in 0..4 {
            rig.replace(pb::State { ports: ports.clone(), ..Default::default() }).await.unwrap();
            rig.replace(pb::State::default()).await.unwrap();
        }
        let status = loop {
            match links.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream must end with a reason"),
                Err(status) => break status,
            }
        };
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert!(status.message().ends_with("changes came faster than they were read; watch again"));
        let mut again = rig.client.watch_links(pb::WatchLinksRequest {}).await.unwrap().into_inner();
        assert!(again.message().await.unwrap().is_some());
    });
}
