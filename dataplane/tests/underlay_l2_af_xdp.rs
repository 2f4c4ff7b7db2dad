//! Tunnels whose underlay is an AF_XDP port, on a veth pair in copy mode, against the kernel's vxlan device at the other end. The
//! interface stays the kernel's: it has the address, does ARP and neighbour discovery, and everything that is for no tunnel.
#![cfg(feature = "af_xdp")]

mod adversity_support;
mod lab;
mod underlay_support;

use adversity_support::{Engine, wait_until};
use lab::{Family, Netns, must, tcp_echo, two_nodes};
use underlay_support::{OURS, THEIRS, VNI, WORKER, inner_mtu, kernel_vxlan, tap, tunnel, underlay};
use vwire_dataplane::DropReason;

struct Rig {
    engine: Engine,
    host: Netns,
    node: Netns,
    peer: Netns,
    family: Family,
}

fn nic(node: &Netns) -> String {
    format!(
        "[[port]]\nname = \"nic\"\nkind = \"af_xdp\"\nifname = \"u0\"\nnetns = \"/run/netns/{}\"\nmode = \"copy\"\n",
        node.name
    )
}

impl Rig {
    fn new(family: Family) -> Self {
        let ((node, peer), host) = (two_nodes(family), Netns::new("h"));
        let config = [
            WORKER.to_owned(),
            nic(&node),
            underlay("nic", family, ""),
            tap("host", "t0", &host, &[format!("{OURS}/24")], inner_mtu(family)),
            tunnel("tun", VNI, family, "host"),
        ];
        let engine = Engine::start_with(&config.concat(), None);
        kernel_vxlan(&peer, "u0", family, VNI, THEIRS);
        let rig = Self { engine, host, node, peer, family };
        rig.wait_for_peer();
        rig
    }

    fn wait_for_peer(&self) {
        let ping = format!("ping -c 1 -W 1 {THEIRS}");
        wait_until("the peer to answer", || self.host.command(&ping).output().unwrap().status.success());
    }

    /// An address as it is written before `:port`.
    fn literal(&self, host: u8) -> String {
        let address = self.family.address(host);
        if address.is_ipv6() { format!("[{address}]") } else { address.to_string() }
    }
}

fn ping_tcp_and_lengths(family: Family) {
    let rig = Rig::new(family);
    let mtu = inner_mtu(family);
    rig.host.run(&format!("ping -c 3 -i 0.05 -W 5 -M do -s {} {THEIRS}", mtu - 28));
    rig.peer.run(&format!("ping -c 3 -i 0.05 -W 5 -M do -s {} {OURS}", mtu - 28));
    tcp_echo(&rig.host, &rig.peer, THEIRS, 2_000_000);
    tcp_echo(&rig.peer, &rig.host, OURS, 2_000_000);
    let (tunnel, nic) = (rig.engine.stats("tun"), rig.engine.stats("nic"));
    assert!(tunnel.tx.1 > 4_000_000 && tunnel.rx.1 > 4_000_000, "{tunnel:?}");
    assert_eq!(tunnel.dropped(DropReason::TooBig), 0, "{tunnel:?}");
    // Nothing but tunnels' datagrams has come at all.
    assert_eq!(nic.dropped(DropReason::NotTunnel) + nic.dropped(DropReason::ForDomain), 0, "{nic:?}");
    assert_eq!(nic.dropped(DropReason::BadUdp), 0, "{nic:?}");

    rig.host.ip(&format!("link set t0 mtu {}", mtu + 1));
    let one_more = format!("ping -c 1 -W 1 -M do -s {} {THEIRS}", mtu - 27);
    assert!(!rig.host.command(&one_more).output().unwrap().status.success(), "one byte above the limit");
    wait_until("the drop to be counted", || rig.engine.dropped("tun", DropReason::TooBig) == 1);
}

#[test]
fn ping_and_tcp_go_both_ways_up_to_the_mtu_over_ipv4() {
    ping_tcp_and_lengths(Family::V4);
}

#[test]
fn ping_and_tcp_go_both_ways_up_to_the_mtu_over_ipv6() {
    ping_tcp_and_lengths(Family::V6);
}

/// The node's own connections by the same interface never meet the engine.
#[test]
fn the_nodes_own_connections_go_on_beside_tunnels() {
    for family in [Family::V4, Family::V6] {
        let rig = Rig::new(family);
        let (own, far) = (rig.literal(1), rig.literal(2));
        std::thread::scope(|scope| {
            scope.spawn(|| tcp_echo(&rig.peer, &rig.node, &own, 1_000_000));
            scope.spawn(|| tcp_echo(&rig.host, &rig.peer, THEIRS, 1_000_000));
        });
        tcp_echo(&rig.node, &rig.peer, &far, 1_000_000);
        let nic = rig.engine.stats("nic");
        assert_eq!(nic.dropped_in_all(), 0, "{nic:?}");
    }
}

/// The engine is killed in the middle: the interface is the kernel's again, and the next engine takes up where it was.
#[test]
fn a_killed_engine_leaves_the_interface_to_the_kernel_and_the_next_one_goes_on() {
    for family in [Family::V4, Family::V6] {
        let mut rig = Rig::new(family);
        let mut traffic = rig.peer.start(&format!("ping -q -i 0.005 {OURS}"));
        let before = rig.engine.stats("tun").rx.0;
        wait_until("traffic", || rig.engine.stats("tun").rx.0 > before + 20);
        rig.engine.kill();
        rig.node.run(&format!("ping -c 2 -i 0.05 -W 5 {}", family.remote()));
        wait_until("no program on the interface", || !rig.node.run("ip link show u0").contains("xdp"));
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
        let ping = || host.command(&format!("ping -c 1 -W 1 {THEIRS}")).output().unwrap().status.success();
        assert!(!ping(), "there is no route");
        wait_until("the drop", || engine.dropped("tun", DropReason::NoNeighbour) > 0);
        node.ip(&format!("route add {remote}/{len} via {first}"));
        wait_until("the route to be followed", ping);

        router.ip("link set u0 address 02:aa:bb:cc:dd:ee");
        // It has forgotten who is who, and asks, and so the node's kernel hears of it.
        let asks = format!("ping -c 1 -W 1 {local}");
        wait_until("the router's new hardware address", || {
            router.command(&asks).output().unwrap().status.success() && ping()
        });

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
    let mut rig = Rig::new(Family::V4);
    rig.node.ip("link set u0 down");
    rig.engine.wait_reason("tun", "its underlay, port nic, is down");
    rig.node.ip("link set u0 up");
    rig.engine.wait_up("tun", true);
    rig.wait_for_peer();

    rig.node.ip("link del u0");
    rig.engine.wait_reason("tun", "its underlay, port nic, is down");
    must(std::process::Command::new("ip").args([
        "link",
        "add",
        "u0",
        "netns",
        &rig.node.name,
        "type",
        "veth",
        "peer",
        "name",
        "u0",
        "netns",
        &rig.peer.name,
    ]));
    for (space, host) in [(&rig.node, 1), (&rig.peer, 2)] {
        space.ip("link set u0 up");
        Family::V4.assign(space, host);
    }
    // The vxlan device went with the interface that it was on.
    kernel_vxlan(&rig.peer, "u0", Family::V4, VNI, THEIRS);
    // It has another hardware address inside the tunnel now.
    rig.host.ip("neigh flush dev t0");
    rig.engine.wait_up("tun", true);
    rig.wait_for_peer();
}
