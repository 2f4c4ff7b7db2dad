//! Tunnels whose underlay is an AF_XDP port, on a veth pair in copy mode, against the kernel's vxlan device at the other end. The
//! interface stays the kernel's: it has the address, does ARP and neighbour discovery, and everything that is for no tunnel.
#![cfg(feature = "af_xdp")]

mod adversity_support;
mod lab;
mod underlay_support;

use adversity_support::{Engine, wait_until};
use lab::{Family, Netns, join_by_queues, join_with_addresses, tcp_echo, two_nodes};
use underlay_support::{OURS, Rig, THEIRS, VNI, WORKER, kernel_vxlan, literal, tap, underlay};
use vwire_dataplane::DropReason;

struct OnInterface {
    rig: Rig,
    /// Whose interface it is that the engine shares.
    node: Netns,
}

fn nic(node: &Netns) -> String {
    format!(
        "[[port]]\nname = \"nic\"\nkind = \"af_xdp\"\nifname = \"u0\"\nnetns = \"/run/netns/{}\"\nmode = \"copy\"\n",
        node.name
    )
}

impl OnInterface {
    fn new(family: Family) -> Self {
        let (node, peer) = two_nodes(family);
        let rig = Rig::on(&nic(&node), peer, family, "", "", None);
        rig.wait_for_peer();
        Self { rig, node }
    }
}

fn tcp_and_lengths(family: Family) {
    let OnInterface { rig, .. } = &OnInterface::new(family);
    rig.tcp_both_ways(2_000_000);
    // Nothing but tunnels' datagrams has come at all.
    let nic = rig.engine.stats("nic");
    assert_eq!(nic.dropped(DropReason::NotTunnel) + nic.dropped(DropReason::ForDomain), 0, "{nic:?}");
    rig.lengths_at_the_limit();
}

#[test]
fn ping_and_tcp_go_both_ways_up_to_the_mtu_over_ipv4() {
    tcp_and_lengths(Family::V4);
}

#[test]
fn ping_and_tcp_go_both_ways_up_to_the_mtu_over_ipv6() {
    tcp_and_lengths(Family::V6);
}

/// The node's own connections by the same interface never meet the engine.
#[test]
fn the_nodes_own_connections_go_on_beside_tunnels() {
    for family in [Family::V4, Family::V6] {
        let OnInterface { rig, node } = &OnInterface::new(family);
        let (own, far) = (literal(family.local()), literal(family.remote()));
        std::thread::scope(|scope| {
            scope.spawn(|| tcp_echo(&rig.peer, node, &own, 1_000_000));
            scope.spawn(|| tcp_echo(&rig.host, &rig.peer, THEIRS, 1_000_000));
        });
        tcp_echo(node, &rig.peer, &far, 1_000_000);
        let nic = rig.engine.stats("nic");
        assert_eq!(nic.dropped_in_all(), 0, "{nic:?}");
    }
}

#[test]
fn two_workers_share_the_interface_and_its_tunnels() {
    for family in [Family::V4, Family::V6] {
        let (node, peer) = (Netns::new("a"), Netns::new("b"));
        join_by_queues("u0", 2, &node, &peer);
        family.assign(&node, 1);
        family.assign(&peer, 2);
        let mut rig = Rig::shared(&nic(&node), peer, family, None);
        rig.wait_for_peer();
        rig.tcp_both_ways(500_000);
        rig.many_flows();
        rig.engine.kill();
        rig.engine.restart();
        rig.wait_for_peer();
        rig.many_flows();
        rig.lengths_at_the_limit();
    }
}

/// The engine is killed in the middle: the interface is the kernel's again, and the next engine takes up where it was.
#[test]
fn a_killed_engine_leaves_the_interface_to_the_kernel_and_the_next_one_goes_on() {
    for family in [Family::V4, Family::V6] {
        let OnInterface { rig, node } = &mut OnInterface::new(family);
        let mut traffic = rig.peer.start(&format!("ping -q -i 0.005 {OURS}"));
        let before = rig.engine.stats("tun").rx.0;
        wait_until("traffic", || rig.engine.stats("tun").rx.0 > before + 20);
        rig.engine.kill();
        node.run(&format!("ping -c 2 -i 0.05 -W 5 {}", family.remote()));
        wait_until("no program on the interface", || !node.run("ip link show u0").contains("xdp"));
        // What was the engine's went with it, the host's tap too.
        rig.engine.restart();
        rig.wait_for_peer();
        tcp_echo(&rig.host, &rig.peer, THEIRS, 500_000);
        wait_until("the traffic from before to come through", || rig.engine.stats("tun").rx.0 > 20);
        let _ = traffic.0.kill();
    }
}

/// Routes and neighbours are the kernel's, as they are now: first the peer is behind one router, then behind another, which has another
/// hardware address, then it has none.
#[test]
fn the_kernels_routes_and_neighbours_are_followed() {
    for family in [Family::V4, Family::V6] {
        let ((node, router), host) = (two_nodes(family), Netns::new("h"));
        let (remote, len) = if family == Family::V4 { ("10.99.0.2", 32) } else { ("fd99::2", 128) };
        let local = family.local();
        let (first, second) = (family.address(2), family.address(3));
        let more = if family == Family::V4 { 24 } else { 64 };
        router.ip(&format!("addr add {remote}/{len} dev lo"));
        router.ip(&format!(
            "link add vx42 mtu 1400 type vxlan id 42 local {remote} remote {local} dstport 4789 nolearning"
        ));
        router.ip(&format!("addr add {THEIRS}/24 dev vx42"));
        router.ip("link set vx42 up");
        let config = [
            WORKER.to_owned(),
            nic(&node),
            underlay("nic", family, ""),
            tap("host", "t0", &host, &[format!("{OURS}/24")], 1400),
            format!(
                "[[port]]\nname = \"tun\"\nkind = \"vxlan\"\nvni = 42\nlocal = \"{local}\"\nremote = \"{remote}\"\n\
                 underlay = \"nic\"\n[[xconnect]]\nports = [\"tun\", \"host\"]\n"
            ),
        ];
        let engine = Engine::start_with(&config.concat(), None);
        let ping = || host.succeeds(&format!("ping -c 1 -W 1 {THEIRS}"));
        assert!(!ping(), "there is no route");
        wait_until("the drop", || engine.dropped("tun", DropReason::NoNeighbour) > 0);
        node.ip(&format!("route add {remote}/{len} via {first}"));
        wait_until("the route to be followed", ping);

        router.ip("link set u0 address 02:aa:bb:cc:dd:ee");
        // It has forgotten who is who, and asks, and so the node's kernel hears of it.
        let asks = format!("ping -c 1 -W 1 {local}");
        wait_until("the router's new hardware address", || router.succeeds(&asks) && ping());

        router.ip(&format!("addr add {second}/{more} dev u0 {}", if more == 64 { "nodad" } else { "" }));
        node.ip(&format!("route replace {remote}/{len} via {second}"));
        wait_until("the other router", ping);

        node.ip(&format!("route del {remote}/{len}"));
        let before = engine.dropped("tun", DropReason::NoNeighbour);
        wait_until("no way any more", || {
            ping();
            engine.dropped("tun", DropReason::NoNeighbour) > before
        });
    }
}

/// The interface goes and comes back, as another with the same name: the tunnel waits, and goes on.
#[test]
fn a_tunnel_waits_for_its_interface() {
    let OnInterface { rig, node } = &mut OnInterface::new(Family::V4);
    node.ip("link set u0 down");
    rig.engine.wait_reason("tun", "its underlay, port nic, is down");
    node.ip("link set u0 up");
    rig.engine.wait_up("tun", true);
    rig.wait_for_peer();

    node.ip("link del u0");
    rig.engine.wait_reason("tun", "its underlay, port nic, is down");
    join_with_addresses(Family::V4, node, &rig.peer);
    // The vxlan device went with the interface that it was on.
    kernel_vxlan(&rig.peer, "u0", Family::V4, VNI, THEIRS);
    // It has another hardware address inside the tunnel now.
    rig.host.ip("neigh flush dev t0");
    rig.engine.wait_up("tun", true);
    rig.wait_for_peer();
}
