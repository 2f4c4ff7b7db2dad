//! Tunnels whose underlay is an Ethernet port, against the kernel's vxlan device: the port is a tap, and the kernel behind it is the
//! other node. The engine writes every header itself, and does ARP and neighbour discovery.

mod adversity_support;
mod lab;
mod underlay_support;

use adversity_support::wait_until;
use lab::{Family, tcp_echo};
use underlay_support::{OURS, Rig, THEIRS, inner_mtu, literal, tap};
use vwire_dataplane::DropReason;

fn ping_both_ways(family: Family) {
    let rig = Rig::new(family);
    rig.host.run(&format!("ping -c 3 -i 0.05 -W 5 {THEIRS}"));
    rig.peer.run(&format!("ping -c 3 -i 0.05 -W 5 {OURS}"));
    let (tunnel, nic) = (rig.engine.stats("tun"), rig.engine.stats("nic"));
    assert!(tunnel.tx.0 >= 6 && tunnel.rx.0 >= 6, "{tunnel:?}");
    assert!(nic.tx.0 >= tunnel.tx.0 && nic.rx.0 >= tunnel.rx.0, "{nic:?}");
    assert_eq!(nic.dropped(DropReason::BadUdp) + nic.dropped(DropReason::BadIpHeader), 0, "{nic:?}");
}

#[test]
fn ping_goes_both_ways_over_ipv4() {
    ping_both_ways(Family::V4);
}

#[test]
fn ping_goes_both_ways_over_ipv6() {
    ping_both_ways(Family::V6);
}

fn tcp_both_ways(family: Family) {
    let rig = Rig::new(family);
    rig.wait_for_peer();
    rig.tcp_both_ways(3_000_000);
}

#[test]
fn tcp_goes_both_ways_over_ipv4() {
    tcp_both_ways(Family::V4);
}

#[test]
fn tcp_goes_both_ways_over_ipv6() {
    tcp_both_ways(Family::V6);
}

#[test]
fn frames_at_the_mtu_pass_and_one_byte_more_is_counted_over_ipv4() {
    Rig::new(Family::V4).lengths_at_the_limit();
}

#[test]
fn frames_at_the_mtu_pass_and_one_byte_more_is_counted_over_ipv6() {
    Rig::new(Family::V6).lengths_at_the_limit();
}

/// The node's only card carries tunnels, and everything else as before: its kernel has the address.
#[test]
fn a_connection_to_the_nodes_own_address_shares_the_card_with_tunnels() {
    for family in [Family::V4, Family::V6] {
        let own = lab::Netns::new("n");
        let address = format!("{}/{}", family.local(), underlay_support::prefix(family));
        let exception = tap("kernel", "e0", &own, &[address], 1500);
        let rig = Rig::with(family, "exception = \"kernel\"", &exception);
        rig.wait_for_peer();
        let (at, far) = (literal(family.local()), literal(family.remote()));
        // Both at once, both ways.
        std::thread::scope(|scope| {
            scope.spawn(|| tcp_echo(&rig.peer, &own, &at, 1_000_000));
            scope.spawn(|| tcp_echo(&rig.host, &rig.peer, THEIRS, 1_000_000));
        });
        tcp_echo(&own, &rig.peer, &far, 1_000_000);
        own.run(&format!("ping -c 2 -i 0.05 -W 5 {}", family.remote()));
        rig.peer.run(&format!("ping -c 2 -i 0.05 -W 5 {}", family.local()));
        let kernel = rig.engine.stats("kernel");
        assert!(kernel.rx.1 > 1_000_000 && kernel.tx.1 > 1_000_000, "{kernel:?}");
        assert!(rig.engine.stats("tun").rx.1 > 1_000_000);
        assert_eq!(rig.engine.dropped("nic", DropReason::NotTunnel), 0);
    }
}

/// The other node is behind a router, which is given. Where the router's far side is narrower, it says so, and it is heard.
#[test]
fn a_gateway_leads_to_nodes_that_are_not_on_link_and_a_narrow_path_is_followed() {
    for family in [Family::V4, Family::V6] {
        let (host, router, far) = (lab::Netns::new("h"), lab::Netns::new("r"), lab::Netns::new("f"));
        let (ours, near, remote, beyond, len) = match family {
            Family::V4 => ("10.8.0.1", "10.8.0.254", "10.9.9.2", "10.9.9.254", 24),
            Family::V6 => ("fd08::1", "fd08::fe", "fd99::2", "fd99::fe", 64),
        };
        let config = [
            underlay_support::WORKER.to_owned(),
            tap("nic", "u0", &router, &[format!("{near}/{len}")], 1500),
            format!(
                "[[underlay]]\nport = \"nic\"\naddresses = [\"{ours}/{len}\"]\ngateways = [\"{near}\"]\n"
            ),
            tap("host", "t0", &host, &[format!("{OURS}/24")], inner_mtu(family)),
            format!(
                "[[port]]\nname = \"tun\"\nkind = \"vxlan\"\nvni = 42\nlocal = \"{ours}\"\nremote = \"{remote}\"\n\
                 underlay = \"nic\"\n[[xconnect]]\nports = [\"tun\", \"host\"]\n"
            ),
        ];
        let engine = adversity_support::Engine::start_with(&config.concat(), None);
        lab::join("f0", &router, &far);
        router.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        for (space, address) in [(&router, beyond), (&far, remote)] {
            space.ip(&format!("addr add {address}/{len} dev f0 {}", if len == 64 { "nodad" } else { "" }));
        }
        far.ip(&format!("route add default via {beyond}"));
        let mtu = inner_mtu(family);
        far.ip(&format!(
            "link add vx42 mtu {mtu} type vxlan id 42 local {remote} remote {ours} dstport 4789 nolearning"
        ));
        far.ip(&format!("addr add {THEIRS}/24 dev vx42"));
        far.ip("link set vx42 up");
        let ping = |payload: usize| host.succeeds(&format!("ping -c 1 -W 1 -M do -s {payload} {THEIRS}"));
        wait_until("the far node to answer", || ping(56));
        assert!(ping(mtu - 28), "as long as may be");

        router.ip("link set f0 mtu 1400");
        assert!(!ping(mtu - 28));
        wait_until("the tunnel to be narrower", || {
            ping(mtu - 28);
            engine.dropped("tun", DropReason::TooBig) > 0
        });
        assert!(ping(mtu - 100 - 28), "what the path carries");
    }
}

/// The peer gets another hardware address, and says nothing of it but what it asks.
#[test]
fn a_neighbour_with_a_new_hardware_address_is_found_again() {
    for family in [Family::V4, Family::V6] {
        let rig = Rig::new(family);
        rig.wait_for_peer();
        rig.peer.ip("link set u0 address 02:aa:bb:cc:dd:ee");
        // What goes to the old address is for another station. The peer has forgotten who is who, and asks.
        let asks = format!("ping -c 1 -W 1 {OURS}");
        wait_until("the new address", || rig.peer.succeeds(&asks));
        rig.wait_for_peer();
    }
}

/// Sixteen tunnels to one node, each with its own VNI, and none gets another's frames.
#[test]
fn many_tunnels_share_an_underlay() {
    const TUNNELS: u32 = 16;
    let hosts: Vec<_> = (0..TUNNELS).map(|_| lab::Netns::new("h")).collect();
    let more: Vec<String> = hosts
        .iter()
        .enumerate()
        .map(|(i, host)| {
            let (i, vni) = (i as u32, 100 + i as u32);
            tap(&format!("host{i}"), "t0", host, &[format!("10.70.{i}.1/24")], 1450)
                + &underlay_support::tunnel(&format!("tun{i}"), vni, Family::V4, &format!("host{i}"))
        })
        .collect();
    let rig = Rig::with(Family::V4, "", &more.concat());
    for i in 0..TUNNELS {
        underlay_support::kernel_vxlan(&rig.peer, "u0", Family::V4, 100 + i, &format!("10.70.{i}.2"));
    }
    rig.wait_for_peer();
    for (i, host) in hosts.iter().enumerate() {
        host.run(&format!("ping -c 2 -i 0.05 -W 5 10.70.{i}.2"));
        let tunnel = rig.engine.stats(&format!("tun{i}"));
        assert!(tunnel.rx.0 >= 2 && tunnel.tx.0 >= 2, "{tunnel:?}");
    }
    assert_eq!(rig.engine.dropped("nic", DropReason::UnknownVni), 0);
}
