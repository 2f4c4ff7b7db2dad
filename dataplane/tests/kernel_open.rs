//! Making, adopting and losing kernel interfaces. Needs root.

use std::fs::File;

use vwire_dataplane::port::kernel::{self, KernelOpenError, KernelSpec, Kind};
use vwire_dataplane::port::{PortFault, PortIndex};
use vwire_dataplane::worker::command::Event;

mod kernel_support;
use kernel_support::{Bench, Netns, spec, udp_both_ways};

const PORT: PortIndex = PortIndex(0);

#[test]
fn an_interface_has_the_name_addresses_mtu_and_mac_asked_for() {
    let netns = Netns::new();
    let wanted = KernelSpec {
        mtu: 1450,
        mac: Some([2, 0xaa, 0, 0, 0, 7]),
        ..spec(&netns, "nsm-1", &["10.60.1.2/30", "fd60::2/126"])
    };
    let (_parts, device) = kernel::open(PORT, &wanted).unwrap();
    let shown = netns.ip(&["-j", "addr", "show", "dev", "nsm-1"]);
    for part in [
        "\"mtu\":1450",
        "\"address\":\"02:aa:00:00:00:07\"",
        "\"local\":\"10.60.1.2\",\"prefixlen\":30",
        "\"local\":\"fd60::2\",\"prefixlen\":126",
        "\"UP\"",
    ] {
        assert!(shown.contains(part), "{part} is missing in {shown}");
    }
    let shown_v6 = netns.ip(&["addr", "show", "to", "fd60::2"]);
    assert!(!shown_v6.contains("tentative"), "addresses are usable at once: {shown_v6}");
    assert!(shown.contains(&format!("\"ifindex\":{}", device.index())));
}

#[test]
fn an_interface_goes_when_its_device_and_halves_are_dropped() {
    let netns = Netns::new();
    let (parts, device) = kernel::open(PORT, &spec(&netns, "nsm-1", &[])).unwrap();
    drop(device);
    assert_eq!(netns.interfaces(), ["nsm-1"], "the worker's halves still use it");
    drop(parts);
    assert!(netns.interfaces().is_empty());
}

#[test]
fn an_existing_interface_is_left_alone_and_named() {
    let netns = Netns::new();
    netns.ip(&["link", "add", "nsm-v", "type", "veth", "peer", "name", "nsm-w"]);
    netns.ip(&["tuntap", "add", "dev", "nsm-t", "mode", "tap", "vnet_hdr"]);
    for name in ["nsm-v", "nsm-t", "lo"] {
        let error = kernel::open(PORT, &spec(&netns, name, &[])).map(|_| ()).unwrap_err();
        assert!(matches!(&error, KernelOpenError::Exists { ifname } if ifname == name), "{error}");
    }
    assert_eq!(netns.interfaces().len(), 3, "nothing was taken or deleted");
}

#[test]
fn what_the_kernel_refuses_is_named_and_leaves_nothing_behind() {
    let netns = Netns::new();
    let refused = [
        (spec(&netns, "nsm-1", &["10.0.0.1/24", "10.0.0.1/24"]), "adding the address 10.0.0.1/24"),
        (KernelSpec { mtu: 1279, ..spec(&netns, "nsm-1", &["fd60::2/64"]) }, "adding the address fd60::2/64"),
        (KernelSpec { mtu: 65_535, ..spec(&netns, "nsm-1", &[]) }, "setting its MTU 65535"),
    ];
    for (spec, what) in refused {
        let error = kernel::open(PORT, &spec).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("interface nsm-1") && error.contains(what), "{error}");
        assert!(netns.interfaces().is_empty(), "after {what}");
    }
}

#[test]
fn a_descriptor_that_is_no_namespace_is_refused() {
    let file = File::open("/dev/null").unwrap();
    let spec = KernelSpec { netns: Some(file.into()), ..KernelSpec::new("nsm-1") };
    let error = kernel::open(PORT, &spec).map(|_| ()).unwrap_err();
    assert!(matches!(error, KernelOpenError::Netns { .. }), "{error}");
}

#[test]
fn a_tap_of_another_owner_is_adopted_by_its_descriptor() {
    let netns = Netns::new();
    let (parts, theirs) = kernel::open(PORT, &spec(&netns, "nsm-1", &[])).unwrap();
    let queue = theirs.queue().try_clone_to_owned().unwrap();
    let (_parts, ours) = kernel::adopt(PORT, queue).unwrap();
    assert_eq!((ours.ifname(), ours.kind()), ("nsm-1", Kind::Tap));
    drop((parts, theirs));
    assert_eq!(netns.interfaces(), ["nsm-1"], "it lives on with us");
}

#[test]
fn descriptors_that_can_not_be_adopted_are_refused() {
    let error = kernel::adopt(PORT, File::open("/dev/null").unwrap().into()).map(|_| ()).unwrap_err();
    assert!(matches!(error, KernelOpenError::NotTap(_)), "{error}");
    let unbound = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    let error = kernel::adopt(PORT, unbound.into()).map(|_| ()).unwrap_err();
    assert!(matches!(error, KernelOpenError::NotTap(_)), "{error}");
}

/// Opens the ports 0 and 1, in namespaces of their own, joined; and 2 and 3, likewise.
fn two_pairs(bench: &mut Bench, netns: &[Netns; 4]) -> Vec<kernel::KernelDevice> {
    let devices = (0..4u16).map(|i| {
        let address = format!("10.61.{}.{}/24", i / 2, i % 2 + 1);
        bench.kernel(i, &spec(&netns[usize::from(i)], "nsm-1", &[&address]))
    });
    let devices = devices.collect();
    bench.xconnect(&[(0, 1), (2, 3)]);
    devices
}

fn assert_only_port_0_dies(bench: &Bench, netns: &[Netns; 4]) {
    let event = bench.engine.events().recv_timeout(kernel_support::PATIENCE).unwrap();
    match event {
        Event::Faulted { port, fault: PortFault::Device { what, error }, .. } => {
            assert_eq!((port, what), (PORT, "reading from the kernel interface"));
            assert_eq!(error, "the interface was deleted");
        }
        _ => panic!("another event than the fault of port 0"),
    }
    let (a, b) = (netns[2].udp("10.61.1.1:7000"), netns[3].udp("10.61.1.2:7000"));
    udp_both_ways(&a, &b, &[1, 1472]);
    assert!(bench.engine.events().is_empty(), "no other port is touched");
}

#[test]
fn an_interface_deleted_by_hand_ends_its_port_only() {
    let netns = [Netns::new(), Netns::new(), Netns::new(), Netns::new()];
    let mut bench = Bench::new();
    let _devices = two_pairs(&mut bench, &netns);
    netns[0].ip(&["link", "del", "nsm-1"]);
    assert_only_port_0_dies(&bench, &netns);
}

#[test]
fn a_namespace_deleted_under_an_interface_ends_its_port_only() {
    let netns = [Netns::new(), Netns::new(), Netns::new(), Netns::new()];
    let mut bench = Bench::new();
    let _devices = two_pairs(&mut bench, &netns);
    netns[0].delete();
    assert_only_port_0_dies(&bench, &netns);
}
