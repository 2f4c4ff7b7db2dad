//! memif in IP mode between two tuns: what a kernel leaves open or uncut is finished before a memif peer sees it.

mod kernel_support;
mod support;

use kernel_support::{Netns, tcp_both_ways, udp_both_ways};
use support::{Rig, join, kernel, memif, run, set};
use vwire_proto::dataplane::v1 as pb;

/// tun - memif client - memif server - tun, all of one engine, between two namespaces.
async fn chain(rig: &mut Rig, [one, two]: [&Netns; 2], queues: u32) {
    let socket = rig.path("m.sock").display().to_string();
    let mut ops = Vec::new();
    for (host, netns, role) in [(1, one, pb::memif::Role::Server), (2, two, pb::memif::Role::Client)] {
        let (port, end) = (format!("k{host}"), format!("m{host}"));
        let mut tun = kernel(&port, "i0", format!("/run/netns/{}", netns.name));
        if let Some(pb::port::Kind::Kernel(tun)) = &mut tun.kind {
            tun.mode = pb::Mode::Ip.into();
            tun.addresses = vec![format!("10.61.0.{host}/24"), format!("fd61::{host}/64")];
        }
        let mut memif = memif(&end, role, socket.clone());
        if let Some(pb::port::Kind::Memif(memif)) = &mut memif.kind {
            (memif.mode, memif.queues) = (pb::Mode::Ip.into(), queues);
        }
        ops.extend([set(tun), set(memif), join(&port, &end)]);
    }
    rig.apply(ops).await.unwrap();
    rig.wait_link("m1", true).await;
    rig.wait_link("m2", true).await;
}

const PORTS: [&str; 4] = ["k1", "m1", "m2", "k2"];

/// What each port has lost, by reason. (A new tun speaks at once, when its memif may not be connected yet.)
async fn drops(rig: &mut Rig) -> Vec<std::collections::HashMap<String, u64>> {
    let mut drops = Vec::new();
    for port in PORTS {
        drops.push(rig.stats(port).await.drops);
    }
    drops
}

#[test]
fn tcp_and_datagrams_pass_both_ways_between_tuns() {
    run(async {
        let netns = [Netns::new(), Netns::new()];
        for queues in [1, 4] {
            let mut rig = Rig::new().await;
            chain(&mut rig, [&netns[0], &netns[1]], queues).await;
            let before = drops(&mut rig).await;
            // The engine's agent runs on this very thread; the sockets wait elsewhere.
            let [one, two] = netns.each_ref();
            std::thread::scope(|scope| {
                let traffic = scope.spawn(|| {
                    tcp_both_ways(one, two, "10.61.0.2:5001", 2_000_000);
                    tcp_both_ways(two, one, "[fd61::1]:5002", 2_000_000);
                    let (a, b) = (one.udp("10.61.0.1:7001"), two.udp("10.61.0.2:7002"));
                    udp_both_ways(&a, &b, &[1, 100, 1472, 1473, 9000]);
                });
                traffic.join().unwrap();
            });
            let (kernel, memif) = (rig.stats("k1").await, rig.stats("m1").await);
            assert!(kernel.rx_bytes / kernel.rx_packets > 2000, "uncut frames came: {kernel:?}");
            assert!(memif.tx_bytes / memif.tx_packets <= 1500, "and were cut: {memif:?}");
            assert_eq!(drops(&mut rig).await, before);
            rig.replace(pb::State::default()).await.unwrap();
        }
    });
}
