//! VXLAN tunnels against Open vSwitch's userspace datapath: a second peer, with no line of the kernel's vxlan code in it.

mod lab;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lab::{Family, Netns, Node, Running, UNDERLAY, must, tap, two_nodes, wait_until};
use vwire_dataplane::port::PortIndex;

const TUNNEL: PortIndex = PortIndex(1);
const VNI: u32 = 4242;
/// Where Debian's package has the database's schema.
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";

/// A private Open vSwitch inside a namespace, with its own database and sockets; its two processes end with it.
struct Ovs<'n> {
    space: &'n Netns,
    dir: tempfile::TempDir,
    _processes: [Running; 2],
}

impl<'n> Ovs<'n> {
    fn start(space: &'n Netns) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join(name).display().to_string();
        must(Command::new("ovsdb-tool").args(["create", &file("conf.db"), SCHEMA]));
        let database = start(
            space,
            dir.path(),
            &format!(
                "ovsdb-server {} --remote=punix:{} --unixctl={}",
                file("conf.db"),
                file("db.sock"),
                file("db.ctl")
            ),
        );
        wait_until("the database", || Path::new(&file("db.sock")).exists());
        let ovs_socket = format!("unix:{}", file("db.sock"));
        must(Command::new("ovs-vsctl").args([&format!("--db={ovs_socket}"), "--no-wait", "init"]));
        let switch =
            start(space, dir.path(), &format!("ovs-vswitchd {ovs_socket} --unixctl={}", file("switch.ctl")));
        wait_until("the switch", || Path::new(&file("switch.ctl")).exists());
        Self { space, dir, _processes: [database, switch] }
    }

    fn file(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn configure(&self, line: &str) {
        let database = format!("--db=unix:{}", self.file("db.sock"));
        must(Command::new("ovs-vsctl").args([&database, "--timeout=20"]).args(line.split_whitespace()));
    }

    fn control(&self, line: &str) -> String {
        let target = self.file("switch.ctl");
        must(Command::new("ovs-appctl").args(["-t", &target]).args(line.split_whitespace()))
    }
}

fn start(space: &Netns, dir: &Path, line: &str) -> Running {
    let log = std::fs::File::create(dir.join("log")).unwrap();
    let mut command = space.command(line);
    command.env("OVS_RUNDIR", dir).env("OVS_LOGDIR", dir).env("OVS_DBDIR", dir);
    Running(command.stdout(Stdio::null()).stderr(log).spawn().unwrap())
}

/// The address that OVS's userspace stack uses on the underlay is its bridge's own; the veth's end is one of its ports.
fn underlay_bridge(ovs: &Ovs<'_>, family: Family) {
    ovs.space.ip("addr flush dev u0");
    ovs.configure("add-br phy -- set bridge phy datapath_type=netdev");
    ovs.configure("add-port phy u0");
    ovs.space.ip("link set phy up");
    let address = family.remote();
    let (prefix, options) = if family == Family::V4 { (24, "") } else { (64, "nodad") };
    ovs.space.ip(&format!("addr add {address}/{prefix} dev phy {options}"));
}

fn ping_and_load(family: Family) {
    assert!(PathBuf::from(SCHEMA).exists(), "openvswitch-switch is not installed");
    let (ours, theirs) = two_nodes(family);
    // The switch takes frames from a packet socket and would pass unfinished checksums on: have the kernel finish them.
    for space in [&ours, &theirs] {
        space.run("ethtool -K u0 tx off");
    }
    let ovs = Ovs::start(&theirs);
    underlay_bridge(&ovs, family);
    ovs.configure("add-br overlay -- set bridge overlay datapath_type=netdev");
    ovs.configure(&format!(
        "add-port overlay vx -- set interface vx type=vxlan options:remote_ip={} options:key={VNI} \
         options:dst_port=4789",
        family.local()
    ));
    theirs.ip("link set overlay up mtu 1400");
    theirs.ip("addr add 10.60.0.2/24 dev overlay");

    let mut node = Node::new(&ours, family.local());
    node.tunnel(TUNNEL.0, VNI, family.remote(), tap(&ours, "t0", "10.60.0.1/24", 1400));
    let ping = "ping -c 3 -i 0.05 -W 5";
    let tunnels = ovs.control("tnl/ports/show");
    // The first packets wait for the switch's own neighbour discovery.
    wait_until(&format!("an answer through {tunnels}"), || ours.succeeds("ping -c 1 -W 1 10.60.0.2"));
    ours.run(&format!("{ping} 10.60.0.2"));
    ours.run(&format!("{ping} -M do -s 1372 10.60.0.2"));
    theirs.run(&format!("{ping} 10.60.0.1"));
    theirs.run(&format!("{ping} -M do -s 1372 10.60.0.1"));

    lab::tcp_echo(&ours, &theirs, "10.60.0.2", 500_000);
    lab::tcp_echo(&theirs, &ours, "10.60.0.1", 500_000);
    assert_eq!(node.stats(TUNNEL).dropped_in_all(), 0, "{:?}", node.stats(TUNNEL));
    assert_eq!(node.stats(UNDERLAY).dropped_in_all(), 0, "{:?}", node.stats(UNDERLAY));
}

#[test]
fn ping_and_tcp_go_both_ways_with_open_vswitch_over_ipv4() {
    ping_and_load(Family::V4);
}

#[test]
fn ping_and_tcp_go_both_ways_with_open_vswitch_over_ipv6() {
    ping_and_load(Family::V6);
}
