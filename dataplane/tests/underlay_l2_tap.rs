//! Tunnels whose underlay is an Ethernet port, against the kernel's vxlan device: the port is a tap, and the kernel behind it is the
//! other node. The engine writes every header itself, and does ARP and neighbour discovery.

mod adversity_support;
mod lab;
mod underlay_support;

use adversity_support::wait_until;
use lab::{Family, tcp_echo};
use underlay_support::{OURS, Rig, THEIRS, inner_mtu};
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
    wait_until("the peer to be known", || {
        rig.host.command(&format!("ping -c 1 -W 1 {THEIRS}")).output().unwrap().status.success()
    });
    tcp_echo(&rig.host, &rig.peer, THEIRS, 3_000_000);
    tcp_echo(&rig.peer, &rig.host, OURS, 3_000_000);
    let (tunnel, nic) = (rig.engine.stats("tun"), rig.engine.stats("nic"));
    assert!(tunnel.tx.1 > 6_000_000 && tunnel.rx.1 > 6_000_000, "{tunnel:?}");
    assert_eq!(nic.dropped(DropReason::BadUdp) + nic.dropped(DropReason::BadOffload), 0, "{nic:?}");
    assert_eq!(tunnel.dropped(DropReason::TooBig), 0, "{tunnel:?}");
}

#[test]
fn tcp_goes_both_ways_over_ipv4() {
    tcp_both_ways(Family::V4);
}

#[test]
fn tcp_goes_both_ways_over_ipv6() {
    tcp_both_ways(Family::V6);
}

fn lengths_at_the_limit(family: Family) {
    let rig = Rig::new(family);
    let mtu = inner_mtu(family);
    // An echo request's packet is 28 bytes longer than its payload.
    rig.host.run(&format!("ping -c 3 -i 0.05 -W 5 -M do -s {} {THEIRS}", mtu - 28));
    rig.peer.run(&format!("ping -c 3 -i 0.05 -W 5 -M do -s {} {OURS}", mtu - 28));
    assert_eq!(rig.engine.dropped("tun", DropReason::TooBig), 0);
    rig.host.ip(&format!("link set t0 mtu {}", mtu + 1));
    let one_more = format!("ping -c 1 -W 1 -M do -s {} {THEIRS}", mtu - 27);
    assert!(!rig.host.command(&one_more).output().unwrap().status.success(), "one byte above the limit");
    wait_until("the drop to be counted", || rig.engine.dropped("tun", DropReason::TooBig) == 1);
}

#[test]
fn frames_at_the_mtu_pass_and_one_byte_more_is_counted_over_ipv4() {
    lengths_at_the_limit(Family::V4);
}

#[test]
fn frames_at_the_mtu_pass_and_one_byte_more_is_counted_over_ipv6() {
    lengths_at_the_limit(Family::V6);
}
