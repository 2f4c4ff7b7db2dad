//! VXLAN tunnels as ports of a routing domain, against the kernel's own vxlan device: a host behind it, a host behind a tap and one
//! behind a memif are in one domain. Needs root.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use vwire_proto::dataplane::v1 as pb;

mod lab;
mod support;

use lab::{Family, Netns, tcp_echo, two_nodes};
use support::{Rig, kernel, memif, run};

/// The longest packet through the tunnel: the underlay's 1500 bytes less what VXLAN puts around it.
fn tunnel_mtu(family: Family) -> usize {
    1500 - if family == Family::V4 { 50 } else { 70 }
}

/// smoltcp on a memif: answers echo requests of both families. Ends with its owner.
struct Responder(Child);

impl Responder {
    fn start(socket: &Path) -> Self {
        let here = std::env::current_exe().unwrap();
        let program = here.parent().and_then(Path::parent).unwrap().join("examples/icmp_responder");
        assert!(program.exists(), "{} is missing: cargo build -p memif --examples", program.display());
        let mut command = Command::new(program);
        command.args(["--role", "client", "--mode", "ip", "--socket"]).arg(socket);
        command.args(["--address", "10.61.3.2/16", "--address", "fd61:0:3::2/32"]);
        Self(command.stdin(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn route(prefix: &str, port: &str) -> pb::Route {
    pb::Route { prefix: prefix.into(), port: port.into(), via: String::new() }
}

fn with_ports(rig: &Rig, host: &Netns, family: Family) -> pb::State {
    let mut tap = kernel("tap", "r0", format!("/run/netns/{}", host.name));
    if let Some(pb::port::Kind::Kernel(tap)) = &mut tap.kind {
        tap.addresses = ["10.61.1.2/32", "fd61:0:1::2/128"].map(str::to_owned).to_vec();
        tap.mtu = 1500;
    }
    let tunnel = pb::Vxlan {
        vni: 42,
        local: family.local().to_string(),
        remote: family.remote().to_string(),
        ..Default::default()
    };
    let tunnel =
        pb::Port { name: "tunnel".into(), kind: Some(pb::port::Kind::Vxlan(tunnel)), ..Default::default() };
    let mut client = memif("client", pb::memif::Role::Server, rig.path("client").display().to_string());
    if let Some(pb::port::Kind::Memif(client)) = &mut client.kind {
        client.mode = pb::Mode::Ip.into();
    }
    let member = |port: &str| pb::DomainPort { port: port.into(), ..Default::default() };
    pb::State {
        ports: vec![tap, tunnel, client],
        domains: vec![pb::Domain {
            name: "net".into(),
            gateways: vec!["10.61.0.1".into(), "fd61::1".into()],
            ports: ["tap", "tunnel", "client"].map(member).to_vec(),
            routes: vec![
                route("10.61.1.0/24", "tap"),
                route("fd61:0:1::/48", "tap"),
                route("10.61.2.0/24", "tunnel"),
                route("fd61:0:2::/48", "tunnel"),
                route("10.61.3.0/24", "client"),
                route("fd61:0:3::/48", "client"),
            ],
        }],
        ..Default::default()
    }
}

/// The kernel's end of the tunnel, with the host's address there and the way to the domain.
fn kernels_end(theirs: &Netns, family: Family) {
    let (local, remote, mtu) = (family.remote(), family.local(), tunnel_mtu(family));
    theirs.ip(&format!(
        "link add r0 mtu {mtu} type vxlan id 42 local {local} remote {remote} dstport 4789 nolearning dev u0"
    ));
    theirs.ip("link set r0 up");
    theirs.ip("addr add 10.61.2.2/32 dev r0");
    theirs.ip("addr add fd61:0:2::2/128 dev r0 nodad");
    // The underlay as a real wire: the kernel finishes checksums and cuts segments before its device.
    theirs.run("ethtool -K u0 tx off");
}

fn point_at_the_domain(host: &Netns) {
    host.ip("route add 10.61.0.1 dev r0");
    host.ip("route add 10.61.0.0/16 via 10.61.0.1");
    host.ip("-6 route add fd61::1 dev r0");
    host.ip("-6 route add fd61::/32 via fd61::1");
}

/// Runs `work`, which may wait, beside the engine's agent.
async fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

async fn routing(rig: &mut Rig) -> pb::GetRoutingResponse {
    let request = pb::GetRoutingRequest { domain: "net".into(), ..Default::default() };
    rig.client.get_routing(request).await.unwrap().into_inner()
}

/// A ping of one packet, the first that ever goes there: it must be answered.
fn first_ping(from: &Netns, to: &str) {
    from.run(&format!("ping -c 1 -W 10 {to}"));
}

async fn across(theirs: Netns, host: Netns, family: Family) {
    let mut rig = Rig::new().await;
    let state = with_ports(&rig, &host, family);
    rig.replace(state).await.unwrap();
    kernels_end(&theirs, family);
    point_at_the_domain(&theirs);
    point_at_the_domain(&host);
    let _responder = Responder::start(&rig.path("client"));
    rig.wait_link("client", true).await;

    let (theirs, host) = beside(move || {
        // No neighbour is known, and no packet is lost for it.
        for to in ["10.61.3.2", "10.61.1.2", "10.61.0.1", "fd61:0:3::2", "fd61:0:1::2", "fd61::1"] {
            first_ping(&theirs, to);
        }
        for to in ["10.61.2.2", "10.61.3.2", "fd61:0:2::2", "fd61:0:3::2"] {
            first_ping(&host, to);
        }
        // Packets as long as the tunnel takes pass; one byte more is too long, and the sender is told and remembers.
        let mtu = tunnel_mtu(family);
        host.run(&format!("ping -c 2 -i 0.1 -W 10 -M do -s {} 10.61.2.2", mtu - 28));
        host.run(&format!("ping -c 2 -i 0.1 -W 10 -M do -s {} fd61:0:2::2", mtu - 48));
        let said = |line: String| {
            let output = host.command(&line).output().unwrap();
            assert!(!output.status.success());
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
        };
        let four = said(format!("ping -c 1 -W 10 -M do -s {} 10.61.2.2", mtu - 27));
        assert!(four.contains(&format!("Frag needed and DF set (mtu = {mtu})")), "{four}");
        let six = said(format!("ping -c 1 -W 10 -M do -s {} fd61:0:2::2", mtu - 47));
        assert!(six.contains(&format!("Packet too big: mtu={mtu}")), "{six}");
        (theirs, host)
    })
    .await;
    let counted = routing(&mut rig).await;
    assert_eq!((counted.drops["too_big"], counted.drops.get("no_neighbour")), (2, None), "{counted:?}");
    assert!(counted.waited >= 2, "somebody had to be asked for: {counted:?}");

    let (theirs, host) = beside(move || {
        // TCP learns the same by itself, both ways and in both families.
        tcp_echo(&host, &theirs, "10.61.2.2", 2_000_000);
        tcp_echo(&theirs, &host, "10.61.1.2", 2_000_000);
        tcp_echo(&host, &theirs, "[fd61:0:2::2]", 2_000_000);
        tcp_echo(&theirs, &host, "[fd61:0:1::2]", 2_000_000);
        // What may be cut is, and the kernel puts it together again: a packet of the link's length, and fragments that the sender made.
        host.ip("route flush cache");
        host.run("ping -c 2 -i 0.1 -W 10 -M dont -s 1472 10.61.2.2");
        host.run("ping -c 2 -i 0.1 -W 10 -M dont -s 20000 10.61.2.2");
        (theirs, host)
    })
    .await;
    let counted = routing(&mut rig).await;
    assert!(counted.fragments >= 2 * 2 + 2 * 13 * 2, "{counted:?}");
    for unexpected in
        ["bad_ip_header", "bad_control", "wrong_mac", "egress_down", "bad_offload", "no_neighbour"]
    {
        assert!(!counted.drops.contains_key(unexpected), "{:?}", counted.drops);
    }
    drop((theirs, host));
}

fn tunnels_are_ports_of_a_domain(family: Family) {
    let ((ours, theirs), host) = (two_nodes(family), Netns::new("h"));
    // The engine's underlay is in the namespace of the thread that opens it.
    ours.within(|| run(across(theirs, host, family)));
}

#[test]
fn the_kernels_vxlan_device_is_in_a_domain_with_a_memif_and_a_tap_over_ipv4() {
    tunnels_are_ports_of_a_domain(Family::V4);
}

#[test]
fn the_kernels_vxlan_device_is_in_a_domain_with_a_memif_and_a_tap_over_ipv6() {
    tunnels_are_ports_of_a_domain(Family::V6);
}
