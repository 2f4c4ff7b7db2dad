//! Tunnels whose underlay is a DPDK port, against the kernel's vxlan device at the other end: by net_af_packet on a veth pair, where
//! the node's own kernel is behind the exception port, and by net_tap, where the kernel that the engine runs on is the other node.
//! The engine does ARP and neighbour discovery.
#![cfg(feature = "dpdk")]

mod adversity_support;
mod lab;
mod underlay_support;

use adversity_support::wait_until;
use lab::{Family, Netns, join, tcp_echo};
use underlay_support::{OURS, Rig, THEIRS, VNI, kernel_vxlan, literal, prefix, tap};
use vwire_dataplane::DropReason;

/// A DPDK port as the underlay.
fn nic(device: &str) -> String {
    format!(
        "[dpdk]\nhuge_pages = false\nmemory = 256\n\
         [[port]]\nname = \"nic\"\nkind = \"dpdk\"\ndevice = \"{device},iface=u0\"\n"
    )
}

struct OnCard {
    rig: Rig,
    /// The node's own kernel, behind the exception port.
    own: Netns,
    /// Where the engine runs, and its card is.
    _card: Netns,
}

impl OnCard {
    fn new(family: Family) -> Self {
        let [card, peer, own] = ["c", "p", "o"].map(Netns::new);
        join("u0", &card, &peer);
        // The card is DPDK's: the kernel that it is plugged into has no address there.
        card.run("sysctl -qw net.ipv6.conf.u0.disable_ipv6=1");
        for space in [&card, &peer] {
            // As behind a real wire: checksums are complete and frames are cut.
            space.run("ethtool -K u0 tx off");
        }
        family.assign(&peer, 2);
        let kernel = tap("kernel", "e0", &own, &[format!("{}/{}", family.local(), prefix(family))], 1500);
        let (nic, exception) = (nic("net_af_packet0"), "exception = \"kernel\"");
        let rig = Rig::on(&nic, peer, family, exception, &kernel, Some(&card.name));
        rig.wait_for_peer();
        Self { rig, own, _card: card }
    }
}

#[test]
fn two_workers_share_the_device_and_its_tunnels() {
    for family in [Family::V4, Family::V6] {
        let (peer, engine) = (Netns::new("p"), format!("{}queues = 2\n", nic("net_tap0")));
        let name = peer.name.clone();
        let rig = Rig::shared(&engine, peer, family, Some(&name));
        tap_is_there(&rig);
        rig.tcp_both_ways(500_000);
        rig.many_flows();
        rig.lengths_at_the_limit();
    }
}

/// The tap's interface is the other node's. It comes and goes with the engine.
fn on_tap(family: Family) -> Rig {
    let (peer, engine) = (Netns::new("p"), nic("net_tap0"));
    let name = peer.name.clone();
    let rig = Rig::on(&engine, peer, family, "", "", Some(&name));
    tap_is_there(&rig);
    rig
}

fn tap_is_there(rig: &Rig) {
    // The driver gives the interface the hardware address that it has itself; two nodes have two.
    rig.peer.ip("link set u0 address 02:00:00:00:00:99");
    rig.family.assign(&rig.peer, 2);
    rig.wait_for_peer();
}

fn tcp_and_lengths(rig: &Rig) {
    rig.tcp_both_ways(1_000_000);
    rig.lengths_at_the_limit();
}

#[test]
fn ping_and_tcp_go_both_ways_up_to_the_mtu_over_ipv4() {
    let OnCard { rig, .. } = &OnCard::new(Family::V4);
    tcp_and_lengths(rig);
    assert_eq!(rig.engine.dropped("nic", DropReason::NotTunnel), 0);
}

#[test]
fn ping_and_tcp_go_both_ways_up_to_the_mtu_over_ipv6() {
    let OnCard { rig, .. } = &OnCard::new(Family::V6);
    tcp_and_lengths(rig);
    assert_eq!(rig.engine.dropped("nic", DropReason::NotTunnel), 0);
}

#[test]
fn ping_and_tcp_go_both_ways_up_to_the_mtu_by_a_tap_of_dpdks() {
    for family in [Family::V4, Family::V6] {
        tcp_and_lengths(&on_tap(family));
    }
}

/// Kills the engine in the middle of the peer's pings, and starts it again; the pings go on when it is `there`.
fn killed_in_the_middle(rig: &mut Rig, there: impl Fn(&Rig)) {
    let mut pings = rig.peer.start(&format!("ping -q -i 0.005 {OURS}"));
    for _ in 0..2 {
        let before = rig.engine.stats("tun").rx.0;
        wait_until("traffic", || rig.engine.stats("tun").rx.0 > before + 20);
        rig.engine.kill();
        rig.engine.restart();
        there(rig);
        tcp_echo(&rig.host, &rig.peer, THEIRS, 500_000);
    }
    let before = rig.engine.stats("tun").rx.0;
    wait_until("traffic, as before", || rig.engine.stats("tun").rx.0 > before + 20);
    let _ = pings.0.kill();
}

#[test]
fn after_a_kill_the_next_engine_has_the_card_and_tunnels_and_the_kernel_go_on() {
    for family in [Family::V4, Family::V6] {
        let OnCard { rig, own, .. } = &mut OnCard::new(family);
        killed_in_the_middle(rig, Rig::wait_for_peer);
        tcp_echo(own, &rig.peer, &literal(family.remote()), 100_000);
    }
}

#[test]
fn after_a_kill_the_next_engine_has_the_tap_and_tunnels_go_on() {
    for family in [Family::V4, Family::V6] {
        let rig = &mut on_tap(family);
        killed_in_the_middle(rig, |rig| {
            // The vxlan device went with the interface that it was on.
            kernel_vxlan(&rig.peer, "u0", family, VNI, THEIRS);
            tap_is_there(rig);
        });
    }
}

#[test]
fn the_nodes_own_connections_share_the_card_with_tunnels() {
    let OnCard { rig, own, .. } = &OnCard::new(Family::V4);
    std::thread::scope(|scope| {
        scope.spawn(|| tcp_echo(&rig.peer, own, "10.9.0.1", 500_000));
        scope.spawn(|| tcp_echo(&rig.host, &rig.peer, THEIRS, 500_000));
    });
    tcp_echo(own, &rig.peer, "10.9.0.2", 500_000);
    let kernel = rig.engine.stats("kernel");
    assert!(kernel.rx.1 > 500_000 && kernel.tx.1 > 500_000, "{kernel:?}");
}
