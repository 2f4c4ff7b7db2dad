//! Tunnels whose underlay is a DPDK port, on a veth pair by net_af_packet, against the kernel's vxlan device at the other end. The
//! engine does ARP and neighbour discovery; the node's own kernel is behind the exception port.
#![cfg(feature = "dpdk")]

mod adversity_support;
mod lab;
mod underlay_support;

use adversity_support::{Engine, wait_until};
use lab::{Family, Netns, must, tcp_echo};
use underlay_support::{OURS, THEIRS, VNI, WORKER, inner_mtu, kernel_vxlan, prefix, tap, tunnel, underlay};
use vwire_dataplane::DropReason;

const DPDK: &str = "[dpdk]\nhuge_pages = false\nmemory = 256\n";

struct Rig {
    engine: Engine,
    host: Netns,
    /// The node's own kernel, behind the exception port.
    own: Netns,
    peer: Netns,
    _card: Netns,
}

impl Rig {
    fn new(family: Family) -> Self {
        let [card, peer, host, own] = ["c", "p", "h", "o"].map(Netns::new);
        must(std::process::Command::new("ip").args([
            "link", "add", "u0", "netns", &card.name, "type", "veth", "peer", "name", "u0", "netns",
            &peer.name,
        ]));
        // The card is DPDK's: the kernel that it is plugged into has no address there.
        card.run("sysctl -qw net.ipv6.conf.u0.disable_ipv6=1");
        for space in [&card, &peer] {
            space.ip("link set u0 up");
            // As behind a real wire: checksums are complete and frames are cut.
            space.run("ethtool -K u0 tx off");
        }
        family.assign(&peer, 2);
        let config = [
            WORKER.to_owned(),
            DPDK.to_owned(),
            "[[port]]\nname = \"nic\"\nkind = \"dpdk\"\ndevice = \"net_af_packet0,iface=u0\"\n".to_owned(),
            underlay("nic", family, "exception = \"kernel\""),
            tap("kernel", "e0", &own, &[format!("{}/{}", family.local(), prefix(family))], 1500),
            tap("host", "t0", &host, &[format!("{OURS}/24")], inner_mtu(family)),
            tunnel("tun", VNI, family, "host"),
        ];
        let engine = Engine::start_with(&config.concat(), Some(&card.name));
        kernel_vxlan(&peer, "u0", family, VNI, THEIRS);
        let rig = Self { engine, host, own, peer, _card: card };
        rig.wait_for_peer();
        rig
    }

    fn wait_for_peer(&self) {
        let ping = format!("ping -c 1 -W 1 {THEIRS}");
        wait_until("the peer to answer", || self.host.command(&ping).output().unwrap().status.success());
    }
}

fn ping_tcp_and_lengths(family: Family) {
    let rig = Rig::new(family);
    let mtu = inner_mtu(family);
    rig.host.run(&format!("ping -c 3 -i 0.05 -W 5 -M do -s {} {THEIRS}", mtu - 28));
    rig.peer.run(&format!("ping -c 3 -i 0.05 -W 5 -M do -s {} {OURS}", mtu - 28));
    tcp_echo(&rig.host, &rig.peer, THEIRS, 1_000_000);
    tcp_echo(&rig.peer, &rig.host, OURS, 1_000_000);
    let (tunnel, nic) = (rig.engine.stats("tun"), rig.engine.stats("nic"));
    assert!(tunnel.tx.1 > 2_000_000 && tunnel.rx.1 > 2_000_000, "{tunnel:?}");
    assert_eq!(tunnel.dropped(DropReason::TooBig), 0, "{tunnel:?}");
    assert_eq!(nic.dropped(DropReason::BadUdp) + nic.dropped(DropReason::NotTunnel), 0, "{nic:?}");
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

#[test]
fn the_nodes_own_connections_share_the_card_with_tunnels() {
    let rig = Rig::new(Family::V4);
    std::thread::scope(|scope| {
        scope.spawn(|| tcp_echo(&rig.peer, &rig.own, "10.9.0.1", 500_000));
        scope.spawn(|| tcp_echo(&rig.host, &rig.peer, THEIRS, 500_000));
    });
    tcp_echo(&rig.own, &rig.peer, "10.9.0.2", 500_000);
    let kernel = rig.engine.stats("kernel");
    assert!(kernel.rx.1 > 500_000 && kernel.tx.1 > 500_000, "{kernel:?}");
}
