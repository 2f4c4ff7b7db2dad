//! Tunnels whose underlay is a DPDK port, on a veth pair by net_af_packet, against the kernel's vxlan device at the other end. The
//! engine does ARP and neighbour discovery; the node's own kernel is behind the exception port.
#![cfg(feature = "dpdk")]

mod adversity_support;
mod lab;
mod underlay_support;

use lab::{Family, Netns, join, tcp_echo};
use underlay_support::{Rig, THEIRS, prefix, tap};
use vwire_dataplane::DropReason;

const NIC: &str = "[dpdk]\nhuge_pages = false\nmemory = 256\n\
    [[port]]\nname = \"nic\"\nkind = \"dpdk\"\ndevice = \"net_af_packet0,iface=u0\"\n";

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
        let rig = Rig::on(NIC, peer, family, "exception = \"kernel\"", &kernel, Some(&card));
        rig.wait_for_peer();
        Self { rig, own, _card: card }
    }
}

fn tcp_and_lengths(family: Family) {
    let OnCard { rig, .. } = &OnCard::new(family);
    rig.tcp_both_ways(1_000_000);
    assert_eq!(rig.engine.dropped("nic", DropReason::NotTunnel), 0);
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
