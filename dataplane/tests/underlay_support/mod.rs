//! An engine whose tunnels go by an Ethernet port, and a kernel with its own vxlan device at the other end of that port.
#![allow(dead_code, reason = "each test program uses its own part")]

use crate::adversity_support::Engine;
use crate::lab::{Family, Netns};

pub const VNI: u32 = 42;
pub const OURS: &str = "10.60.0.1";
pub const THEIRS: &str = "10.60.0.2";

/// Prefix length of the underlay's addresses.
pub const fn prefix(family: Family) -> u8 {
    match family {
        Family::V4 => 24,
        Family::V6 => 64,
    }
}

/// Inner MTU of a tunnel over an underlay with an MTU of 1500.
pub const fn inner_mtu(family: Family) -> usize {
    match family {
        Family::V4 => 1450,
        Family::V6 => 1430,
    }
}

/// A tap named `ifname` in `space`, which the engine makes.
pub fn tap(port: &str, ifname: &str, space: &Netns, addresses: &[String], mtu: usize) -> String {
    format!(
        "[[port]]\nname = \"{port}\"\nkind = \"kernel\"\nifname = \"{ifname}\"\nnetns = \"/run/netns/{}\"\n\
         addresses = {addresses:?}\nmtu = {mtu}\n",
        space.name
    )
}

/// The port as an underlay with this family's local address; `more` are further keys.
pub fn underlay(port: &str, family: Family, more: &str) -> String {
    format!(
        "[[underlay]]\nport = \"{port}\"\naddresses = [\"{}/{}\"]\n{more}\n",
        family.local(),
        prefix(family)
    )
}

/// A tunnel on port `nic` to the family's remote address, cross-connected with `host`.
pub fn tunnel(name: &str, vni: u32, family: Family, host: &str) -> String {
    let (local, remote) = (family.local(), family.remote());
    format!(
        "[[port]]\nname = \"{name}\"\nkind = \"vxlan\"\nvni = {vni}\nlocal = \"{local}\"\nremote = \"{remote}\"\n\
         underlay = \"nic\"\n[[xconnect]]\nports = [\"{name}\", \"{host}\"]\n"
    )
}

/// One worker and no more than is needed.
pub const WORKER: &str = "[workers]\ncores = [0]\n";

/// Gives a namespace a vxlan device `vx<vni>` over `device` to the engine.
pub fn kernel_vxlan(space: &Netns, device: &str, family: Family, vni: u32, address: &str) {
    let (local, remote, mtu) = (family.remote(), family.local(), inner_mtu(family));
    let name = format!("vx{vni}");
    space.ip(&format!(
        "link add {name} mtu {mtu} type vxlan id {vni} local {local} remote {remote} dstport 4789 nolearning dev {device}"
    ));
    space.ip(&format!("addr add {address}/24 dev {name}"));
    space.ip(&format!("link set {name} up"));
}

/// An engine with the tap `u0` as its underlay. The kernel behind the tap is the other node.
pub struct Rig {
    pub engine: Engine,
    pub host: Netns,
    pub peer: Netns,
    pub family: Family,
}

impl Rig {
    pub fn new(family: Family) -> Self {
        Self::with(family, "", "")
    }

    /// With further keys of the underlay, and more configuration; `$PEER` and `$HOST` are the namespaces' names.
    pub fn with(family: Family, keys: &str, more: &str) -> Self {
        let (host, peer) = (Netns::new("h"), Netns::new("p"));
        let address = |host: u8| format!("{}/{}", family.address(host), prefix(family));
        let config = [
            WORKER.to_owned(),
            tap("nic", "u0", &peer, &[address(2)], 1500),
            underlay("nic", family, keys),
            tap("host", "t0", &host, &[format!("{OURS}/24")], inner_mtu(family)),
            tunnel("tun", VNI, family, "host"),
            more.replace("$PEER", &peer.name).replace("$HOST", &host.name),
        ];
        let engine = Engine::start_with(&config.concat(), None);
        kernel_vxlan(&peer, "u0", family, VNI, THEIRS);
        Self { engine, host, peer, family }
    }
}
