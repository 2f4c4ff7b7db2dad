use super::*;
use crate::netns;
use std::fs::File;
use std::net::UdpSocket;
use std::path::Path;

/// A namespace of this test's own, with loopback up; it ends with its descriptor.
fn private_netns() -> File {
    let make = || {
        // SAFETY: unshare takes no memory; only this thread, which ends at once, changes its namespace.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "this test needs root");
        let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
        assert!(up.unwrap().success());
        netns::open(Path::new("/proc/thread-self/ns/net")).unwrap()
    };
    std::thread::spawn(make).join().unwrap()
}

fn open(netns: &File, local: &str) -> Result<UdpUnderlay, UdpError> {
    let local = local.parse().unwrap();
    UdpUnderlay::open(&UdpSpec { netns: Some(netns.as_fd()), ..UdpSpec::new(PortIndex(0), local) })
}

fn refusal(netns: &File, local: &str) -> String {
    open(netns, local).map(|_| ()).unwrap_err().to_string()
}

#[test]
fn an_underlay_opens_on_either_family_with_both_offloads() {
    let netns = private_netns();
    for local in ["127.0.0.1:4789", "[::1]:4789"] {
        let underlay = open(&netns, local).unwrap();
        assert!(underlay.offers.segmentation && underlay.offers.receive_offload, "{:?}", underlay.offers);
        assert!(underlay.offers.receive_buffer >= 8 << 20, "{:?}", underlay.offers);
    }
}

#[test]
fn an_address_that_no_interface_has_is_named() {
    let netns = private_netns();
    let text = refusal(&netns, "10.1.2.3:4789");
    assert!(
        text.contains("10.1.2.3:4789") && text.contains("EADDRNOTAVAIL") && text.contains("assign"),
        "{text}"
    );
}

#[test]
fn addresses_that_no_single_host_has_are_refused() {
    let netns = private_netns();
    for local in ["0.0.0.0:4789", "[::]:4789", "224.0.0.1:4789", "[ff02::1]:4789", "255.255.255.255:4789"] {
        assert!(matches!(open(&netns, local), Err(UdpError::NotUnicast { .. })), "{local}");
    }
}

#[test]
fn a_port_that_a_kernel_vxlan_device_has_is_named() {
    let netns = private_netns();
    netns::in_netns(Some(netns.as_fd()), || {
        for line in ["link add vx0 type vxlan id 1 dstport 4789", "link set vx0 up"] {
            assert!(std::process::Command::new("ip").args(line.split(' ')).status().unwrap().success());
        }
    })
    .unwrap();
    let text = refusal(&netns, "127.0.0.1:4789");
    assert!(text.contains("4789") && text.contains("EADDRINUSE") && text.contains("vxlan device"), "{text}");
    open(&netns, "127.0.0.1:4790").unwrap();
}

#[test]
fn taken_source_ports_are_passed_over() {
    let netns = private_netns();
    let first = open(&netns, "127.0.0.1:4789").unwrap();
    // The second one looks from the same port on and finds the first one's sockets there.
    let second = open(&netns, "127.0.0.1:4790").unwrap();
    let taken = netns::in_netns(Some(netns.as_fd()), || {
        SOURCE_PORTS.filter(|port| UdpSocket::bind(("127.0.0.1", *port)).is_err()).count()
    })
    .unwrap();
    // Two probes have ports that the kernel chose, perhaps from the same range.
    assert!((32..=34).contains(&taken), "{taken} ports are taken");
    drop((first, second));
}

#[test]
fn a_remote_without_a_route_is_named() {
    let netns = private_netns();
    let underlay = open(&netns, "127.0.0.1:4789").unwrap();
    let text = underlay.mtu.max_frame("10.1.2.3".parse().unwrap()).unwrap_err().to_string();
    assert!(text.contains("no route to 10.1.2.3"), "{text}");
    assert_eq!(
        underlay.mtu.path_mtu("127.0.0.1".parse().unwrap()).unwrap(),
        65_535,
        "loopback, less one: no IPv4 packet is longer"
    );
}

#[test]
fn overhead_is_50_bytes_over_ipv4_and_70_over_ipv6() {
    let (v4, v6) = ("10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap());
    assert_eq!(max_frame(1500, v4), Some(1500 - 50 + 14));
    assert_eq!(max_frame(1500, v6), Some(1500 - 70 + 14));
    assert_eq!(max_frame(49, v4), None);
    assert_eq!(max_frame(50, v4), Some(14));
}

#[test]
fn a_descriptor_that_is_no_namespace_is_refused() {
    let text = refusal(&File::open("/dev/null").unwrap(), "127.0.0.1:4789");
    assert!(text.contains("not a network namespace"), "{text}");
}
