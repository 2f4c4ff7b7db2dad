//! What an AF_XDP port does while its interface changes, goes and comes back, and what is left when it ends. Needs root.
#![cfg(feature = "af_xdp")]

mod af_xdp_support;
mod support;

use std::process::{Child, Command, Stdio};

use af_xdp_support::{Netns, run as run_in, sysctl, tcp_both_ways, veth, wait_until};
use support::{Rig, collect, join, pipe, remove, set};
use tonic::Code;
use vwire_proto::dataplane::v1 as pb;

fn path(netns: &Netns) -> String {
    format!("/run/netns/{}", netns.name)
}

fn nic(name: &str, netns: &Netns, ifname: &str) -> pb::Port {
    let nic =
        pb::AfXdpPort { ifname: ifname.into(), netns: path(netns), ring_size: 64, ..Default::default() };
    pb::Port { name: name.into(), kind: Some(pb::port::Kind::AfXdp(nic)), ..Default::default() }
}

/// True if some XDP program is on the interface.
fn has_program(netns: &Netns, ifname: &str) -> bool {
    netns.ip(&["-d", "link", "show", ifname]).contains("prog/xdp")
}

/// Waits until a port says this about its link.
async fn wait_reason(rig: &mut Rig, port: &str, reason: &str) {
    loop {
        let link = rig.wait_link(port, false).await;
        if link.reason == reason {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

/// Broadcasts a frame from a host's interface until it is at the pipe's end.
async fn hears(host: &Netns, ifname: &str, far: &mut vwire_dataplane::port::pipe::PipeEnd) {
    sysctl(host, &format!("net.ipv4.neigh.{ifname}.retrans_time_ms=10"));
    let _ = far.collect();
    let socket = host.udp("0.0.0.0:0");
    socket.set_broadcast(true).unwrap();
    socket.send_to(b"hello", "10.70.0.255:7").unwrap();
    assert!(collect(far, 1).await.iter().all(|frame| frame.len() >= 14));
}

#[test]
fn an_interface_that_goes_takes_its_link_down_and_brings_it_up_when_it_is_back() {
    support::run(async {
        let (host, nics) = (Netns::new(), Netns::new());
        for i in 0..2 {
            let addresses = if i == 0 { &["10.70.0.1/24"][..] } else { &[] };
            veth((&host, &format!("eth{i}")), (&nics, &format!("nic{i}")), &[], addresses);
        }
        let mut rig = Rig::new().await;
        let ports = [nic("a", &nics, "nic0"), nic("b", &nics, "nic1"), pipe("p", "p")];
        let ops = ports.into_iter().map(set).chain([join("a", "p")]).collect();
        rig.apply(ops).await.unwrap();
        let mut far = rig.far_end("p");
        rig.wait_link("b", true).await;
        hears(&host, "eth0", &mut far).await;

        for _ in 0..3 {
            nics.ip(&["link", "set", "nic0", "down"]);
            wait_reason(&mut rig, "a", "interface nic0 is down, or has no carrier").await;
            assert!(far.inject(&[2; 60]));
            rig.wait_stats("a", |stats| stats.drops.get("egress_down").is_some_and(|drops| *drops > 0)).await;
            nics.ip(&["link", "set", "nic0", "up"]);
            rig.wait_link("a", true).await;
            hears(&host, "eth0", &mut far).await;
        }
        // Without a carrier.
        host.ip(&["link", "set", "eth0", "down"]);
        wait_reason(&mut rig, "a", "interface nic0 is down, or has no carrier").await;
        host.ip(&["link", "set", "eth0", "up"]);
        rig.wait_link("a", true).await;

        for _ in 0..3 {
            host.ip(&["link", "del", "eth0"]);
            wait_reason(&mut rig, "a", "interface nic0 is gone").await;
            assert!(rig.link("b").await.up, "nothing happened to the other");
            veth((&host, "eth0"), (&nics, "nic0"), &[], &["10.70.0.1/24"]);
            rig.wait_link("a", true).await;
            hears(&host, "eth0", &mut far).await;
        }
        // Another interface gets the name.
        nics.ip(&["link", "set", "nic0", "down"]);
        nics.ip(&["link", "set", "nic0", "name", "other"]);
        veth((&host, "eth9"), (&nics, "nic0"), &[], &[]);
        host.ip(&["address", "flush", "dev", "eth0"]);
        host.ip(&["address", "add", "10.70.0.1/24", "broadcast", "10.70.0.255", "dev", "eth9"]);
        rig.wait_link("a", true).await;
        hears(&host, "eth9", &mut far).await;

        rig.apply(vec![support::part("a", "p"), remove("a"), remove("b")]).await.unwrap();
        assert!(!has_program(&nics, "nic0") && !has_program(&nics, "nic1"));
    });
}

#[test]
fn a_new_mtu_is_in_force_at_once() {
    support::run(async {
        let (host, nics) = (Netns::new(), Netns::new());
        veth((&host, "eth0"), (&nics, "nic0"), &[], &[]);
        let mut rig = Rig::new().await;
        rig.apply(vec![set(nic("a", &nics, "nic0")), set(pipe("p", "p")), join("a", "p")]).await.unwrap();
        let far = &mut rig.far_end("p");
        rig.wait_link("a", true).await;
        assert!(far.inject(&[2; 1400]));
        rig.wait_stats("a", |stats| stats.tx_bytes == 1400).await;
        nics.ip(&["link", "set", "nic0", "mtu", "1000"]);
        loop {
            let before = rig.stats("a").await;
            assert!(far.inject(&[2; 1400]));
            let after = rig
                .wait_stats("a", |now| {
                    now.tx_packets + now.drops.values().sum::<u64>()
                        > before.tx_packets + before.drops.values().sum::<u64>()
                })
                .await;
            if after.drops.get("too_big").is_some_and(|drops| *drops > 0) {
                break;
            }
        }
    });
}

#[test]
fn what_cannot_be_is_refused_by_the_api_with_what_to_do() {
    support::run(async {
        let (host, nics) = (Netns::new(), Netns::new());
        veth((&host, "eth0"), (&nics, "nic0"), &[], &[]);
        let mut rig = Rig::new().await;
        let missing = rig.apply(vec![set(nic("a", &nics, "nic7"))]).await.unwrap_err();
        assert_eq!(missing.code(), Code::FailedPrecondition, "{missing}");
        assert!(missing.message().contains("there is no interface nic7"), "{missing}");
        assert!(missing.message().contains("make it first"), "{missing}");
        let twice =
            rig.apply(vec![set(nic("a", &nics, "nic0")), set(nic("b", &nics, "nic0"))]).await.unwrap_err();
        assert!(twice.message().contains("both want the XDP program of nic0"), "{twice}");
        let mut odd = nic("a", &nics, "nic0");
        if let Some(pb::port::Kind::AfXdp(odd)) = &mut odd.kind {
            odd.frame_size = 3000;
        }
        let odd = rig.apply(vec![set(odd)]).await.unwrap_err();
        assert_eq!(odd.code(), Code::InvalidArgument);
        assert!(
            odd.message().contains("af_xdp.frame_size: frame_size can be a power of two from 2048 to 4096"),
            "{odd}"
        );
        // A snapshot says what was asked for, so it can be given back.
        rig.apply(vec![set(nic("a", &nics, "nic0"))]).await.unwrap();
        let state = rig.snapshot().await.state.unwrap();
        let again = rig.replace(state).await.unwrap();
        assert!(again.changes.is_empty(), "{again:?}");
    });
}

struct Engine(Child);

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_engine_that_is_killed_leaves_nothing_attached_and_the_next_goes_on() {
    let (hosts, nics) = ([Netns::new(), Netns::new()], Netns::new());
    let dir = tempfile::tempdir().unwrap();
    let mut config = String::new();
    for (i, host) in hosts.iter().enumerate() {
        veth((host, "eth0"), (&nics, &format!("nic{i}")), &[], &[&format!("10.70.0.{}/24", i + 1)]);
        config += &format!(
            "[[port]]\nname = \"p{i}\"\nkind = \"af_xdp\"\nifname = \"nic{i}\"\nnetns = \"{}\"\nring_size = 256\n",
            path(&nics)
        );
    }
    config += "[[xconnect]]\nports = [\"p0\", \"p1\"]\n[stats]\npath = \"$DIR/stats\"\n[api]\nsocket = \"$DIR/api\"\n";
    let file = dir.path().join("vwire.toml");
    std::fs::write(&file, config.replace("$DIR", &dir.path().display().to_string())).unwrap();
    let start = || {
        let engine = Command::new(env!("CARGO_BIN_EXE_vwire-dataplane")).arg("--config").arg(&file).spawn();
        Engine(engine.unwrap())
    };
    let reaches = || {
        let ping = ["ip", "netns", "exec", &hosts[0].name, "ping", "-c", "1", "-w", "1", "10.70.0.2"];
        Command::new(ping[0]).args(&ping[1..]).stdout(Stdio::null()).status().unwrap().success()
    };
    for _ in 0..5 {
        let mut engine = start();
        wait_until("a ping's answer", reaches);
        assert!(has_program(&nics, "nic0") && has_program(&nics, "nic1"));
        tcp_both_ways(&hosts[0], &hosts[1], "10.70.0.2:7000", 1 << 18);
        // Floods are under way when it dies.
        let floods: Vec<_> = hosts
            .iter()
            .zip(["10.70.0.2", "10.70.0.1"])
            .map(|(host, to)| {
                let flood = ["ip", "netns", "exec", &host.name, "ping", "-q", "-f", to];
                Engine(Command::new(flood[0]).args(&flood[1..]).stdout(Stdio::null()).spawn().unwrap())
            })
            .collect();
        let packets = || run_in(&nics, &["cat", "/sys/class/net/nic0/statistics/rx_packets"]);
        let before = packets();
        wait_until("the floods have begun", || packets() != before);
        engine.0.kill().unwrap();
        engine.0.wait().unwrap();
        // The kernel closes a dead process's descriptors before its end is told.
        assert!(!has_program(&nics, "nic0") && !has_program(&nics, "nic1"));
        drop(floods);
    }
}
