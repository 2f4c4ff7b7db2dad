//! VXLAN tunnels against the kernel's own vxlan device, over IPv4 and IPv6: ping and TCP both ways, lengths at the limit.

mod lab;

use lab::{Family, Netns, Node, tap, tcp_echo, two_nodes, wait_until};
use vwire_dataplane::DropReason;
use vwire_dataplane::port::PortIndex;

const VNI: u32 = 42;
const OURS: &str = "10.60.0.1";
const THEIRS: &str = "10.60.0.2";
const TUNNEL: PortIndex = PortIndex(1);
const HOST: PortIndex = PortIndex(2);

/// Our engine on one node, the kernel's vxlan device on the other.
struct Pair {
    node: Node,
    ours: Netns,
    theirs: Netns,
}

/// Inner MTU of a tunnel over an underlay with an MTU of 1500.
fn inner_mtu(family: Family) -> usize {
    1500 - if family == Family::V4 { 50 } else { 70 }
}

fn pair(family: Family) -> Pair {
    let (ours, theirs) = two_nodes(family);
    let mut node = Node::new(&ours, family.local());
    node.tunnel(TUNNEL.0, VNI, family.remote(), tap(&ours, "t0", &format!("{OURS}/24"), inner_mtu(family)));
    let (local, remote, mtu) = (family.remote(), family.local(), inner_mtu(family));
    theirs.ip(&format!(
        "link add vx0 mtu {mtu} type vxlan id {VNI} local {local} remote {remote} dstport 4789 nolearning dev u0"
    ));
    theirs.ip("link set vx0 up");
    theirs.ip(&format!("addr add {THEIRS}/24 dev vx0"));
    Pair { node, ours, theirs }
}

impl Pair {
    /// The underlay as a real wire: the kernel finishes checksums and cuts segments before its device.
    fn without_offloads(self) -> Self {
        self.theirs.run("ethtool -K u0 tx off");
        self
    }
}

fn ping_both_ways(family: Family) {
    let pair = pair(family);
    pair.ours.run(&format!("ping -c 3 -i 0.05 -W 5 {THEIRS}"));
    pair.theirs.run(&format!("ping -c 3 -i 0.05 -W 5 {OURS}"));
    let tunnel = pair.node.stats(TUNNEL);
    assert!(tunnel.tx.0 >= 6 && tunnel.rx.0 >= 6, "{tunnel:?}");
    assert_eq!(tunnel.dropped_in_all(), 0, "{tunnel:?}");
    assert_eq!(pair.node.stats(lab::UNDERLAY).dropped_in_all(), 0);
}

#[test]
fn ping_goes_both_ways_over_ipv4() {
    ping_both_ways(Family::V4);
}

#[test]
fn ping_goes_both_ways_over_ipv6() {
    ping_both_ways(Family::V6);
}

fn tcp_both_ways(pair: &Pair) {
    tcp_echo(&pair.ours, &pair.theirs, THEIRS, 3_000_000);
    tcp_echo(&pair.theirs, &pair.ours, OURS, 3_000_000);
    let (tunnel, host) = (pair.node.stats(TUNNEL), pair.node.stats(HOST));
    assert!(tunnel.tx.1 > 6_000_000 && tunnel.rx.1 > 6_000_000, "{tunnel:?}");
    assert_eq!(tunnel.dropped(DropReason::TooBig) + host.dropped(DropReason::BadOffload), 0);
}

#[test]
fn tcp_goes_both_ways_over_ipv4() {
    tcp_both_ways(&pair(Family::V4).without_offloads());
}

#[test]
fn tcp_goes_both_ways_over_ipv6() {
    tcp_both_ways(&pair(Family::V6).without_offloads());
}

/// With both nodes on one machine the kernel leaves inner checksums open and TCP uncut; nothing may be lost by that.
#[test]
fn tcp_from_a_kernel_on_the_same_machine_is_finished_by_us() {
    for family in [Family::V4, Family::V6] {
        let pair = pair(family);
        tcp_both_ways(&pair);
        let (frames, bytes) = pair.node.stats(TUNNEL).rx;
        assert!(
            bytes / frames > 2000,
            "{frames} frames of {bytes} bytes: none was left uncut, so this tested nothing"
        );
    }
}

fn lengths_at_the_limit(family: Family) {
    let pair = pair(family);
    let mtu = inner_mtu(family);
    assert_eq!(pair.node.mtu.path_mtu(family.remote()).unwrap(), 1500);
    assert_eq!(pair.node.mtu.max_frame(family.remote()).unwrap(), mtu + 14);
    // An echo request's packet is 28 bytes longer than its payload.
    pair.ours.run(&format!("ping -c 2 -i 0.05 -W 5 -M do -s {} {THEIRS}", mtu - 28));
    pair.theirs.run(&format!("ping -c 2 -i 0.05 -W 5 -M do -s {} {OURS}", mtu - 28));
    assert_eq!(pair.node.dropped(TUNNEL, DropReason::TooBig), 0);

    pair.ours.ip(&format!("link set t0 mtu {}", mtu + 1));
    let one_more = format!("ping -c 1 -W 1 -M do -s {} {THEIRS}", mtu - 27);
    assert!(!pair.ours.succeeds(&one_more), "one byte above the limit");
    wait_until("the drop to be counted", || pair.node.dropped(TUNNEL, DropReason::TooBig) == 1);
    assert_eq!(pair.node.stats(TUNNEL).dropped_in_all(), 1);
}

#[test]
fn frames_at_the_mtu_pass_and_one_byte_more_is_counted_over_ipv4() {
    lengths_at_the_limit(Family::V4);
}

#[test]
fn frames_at_the_mtu_pass_and_one_byte_more_is_counted_over_ipv6() {
    lengths_at_the_limit(Family::V6);
}

/// A path that shrinks under a running tunnel: the kernel says so, and the frames are counted as too big, not lost silently.
#[test]
fn a_path_that_shrinks_makes_long_frames_too_big() {
    let pair = pair(Family::V4);
    pair.ours.run(&format!("ping -c 1 -W 5 {THEIRS}"));
    pair.ours.ip("link set u0 mtu 1400");
    let long = format!("ping -c 3 -i 0.05 -W 1 -M do -s 1400 {THEIRS}");
    assert!(!pair.ours.succeeds(&long));
    wait_until("the drops to be counted", || pair.node.dropped(TUNNEL, DropReason::TooBig) == 3);
    pair.ours.run(&format!("ping -c 1 -W 5 -s 1300 {THEIRS}"));
    assert_eq!(pair.node.mtu.path_mtu(Family::V4.remote()).unwrap(), 1400);
}
