//! An engine whose tunnels go by an Ethernet port, and a kernel with its own vxlan device at the other end of that port.
#![allow(dead_code, reason = "each test program uses its own part")]

use std::net::IpAddr;

use vwire_dataplane::DropReason;

use crate::adversity_support::{Engine, wait_until};
use crate::lab::{Family, Netns, tcp_echo};

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
/// Two, that may share a port.
const TWO_WORKERS: &str = "[workers]\ncores = [0, 1]\n";

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

/// An address as it is written before `:port`.
pub fn literal(address: IpAddr) -> String {
    if address.is_ipv6() { format!("[{address}]") } else { address.to_string() }
}

/// An engine whose underlay is its port `nic`, and the other node at the far end: the kernel of `peer`, with `u0` and a vxlan device.
pub struct Rig {
    pub engine: Engine,
    pub host: Netns,
    pub peer: Netns,
    pub family: Family,
}

impl Rig {
    /// The underlay is a tap, and the kernel behind the tap is the other node.
    pub fn new(family: Family) -> Self {
        Self::with(family, "", "")
    }

    /// With further keys of the underlay, and more configuration.
    pub fn with(family: Family, keys: &str, more: &str) -> Self {
        let peer = Netns::new("p");
        let address = format!("{}/{}", family.remote(), prefix(family));
        let nic = tap("nic", "u0", &peer, &[address], 1500);
        Self::on(&nic, peer, family, keys, more, None)
    }

    /// The underlay is port `nic`, as this configuration has it, whose other end is `u0` of `peer`. The engine runs inside the
    /// namespace of this name.
    pub fn on(nic: &str, peer: Netns, family: Family, keys: &str, more: &str, netns: Option<&str>) -> Self {
        Self::by(WORKER, nic, peer, family, keys, more, netns)
    }

    /// Two workers share the queues of port `nic`, and so each has the tunnel.
    pub fn shared(nic: &str, peer: Netns, family: Family, netns: Option<&str>) -> Self {
        let nic = format!("{nic}workers = 2\n");
        Self::by(TWO_WORKERS, &nic, peer, family, "", "", netns)
    }

    fn by(
        workers: &str,
        nic: &str,
        peer: Netns,
        family: Family,
        keys: &str,
        more: &str,
        netns: Option<&str>,
    ) -> Self {
        let host = Netns::new("h");
        let config = [
            workers.to_owned(),
            nic.to_owned(),
            underlay("nic", family, keys),
            tap("host", "t0", &host, &[format!("{OURS}/24")], inner_mtu(family)),
            tunnel("tun", VNI, family, "host"),
            more.to_owned(),
        ];
        let engine = Engine::start_with(&config.concat(), netns);
        kernel_vxlan(&peer, "u0", family, VNI, THEIRS);
        Self { engine, host, peer, family }
    }

    pub fn wait_for_peer(&self) {
        wait_until("the peer to answer", || self.host.succeeds(&format!("ping -c 1 -W 1 {THEIRS}")));
    }

    /// TCP both ways, `bytes` each way and back. Nothing may be too long, or not whole.
    pub fn tcp_both_ways(&self, bytes: usize) {
        tcp_echo(&self.host, &self.peer, THEIRS, bytes);
        tcp_echo(&self.peer, &self.host, OURS, bytes);
        let (tunnel, nic) = (self.engine.stats("tun"), self.engine.stats("nic"));
        let both = 2 * bytes as u64;
        assert!(tunnel.tx.1 > both && tunnel.rx.1 > both, "{tunnel:?}");
        assert_eq!(nic.dropped(DropReason::BadUdp) + nic.dropped(DropReason::BadOffload), 0, "{nic:?}");
        assert_eq!(tunnel.dropped(DropReason::TooBig), 0, "{tunnel:?}");
    }

    /// Flows enough that each of two queues has some: what one of the workers does not receive would not be answered.
    pub fn many_flows(&self) {
        for _ in 0..24 {
            tcp_echo(&self.host, &self.peer, THEIRS, 20_000);
            tcp_echo(&self.peer, &self.host, OURS, 20_000);
        }
        let (tunnel, nic) = (self.engine.stats("tun"), self.engine.stats("nic"));
        assert_eq!(nic.dropped(DropReason::BadUdp) + nic.dropped(DropReason::UnknownVni), 0, "{nic:?}");
        // All that the peer sent came in datagrams, whichever worker opened them.
        assert!(tunnel.rx.0 >= nic.rx.0 / 2 && tunnel.rx.0 > 24 * 10, "{tunnel:?}, {nic:?}");
    }

    /// Frames as long as may be pass both ways, and what is one byte longer is counted.
    pub fn lengths_at_the_limit(&self) {
        let mtu = inner_mtu(self.family);
        // An echo request's packet is 28 bytes longer than its payload.
        self.host.run(&format!("ping -c 3 -i 0.05 -W 5 -M do -s {} {THEIRS}", mtu - 28));
        self.peer.run(&format!("ping -c 3 -i 0.05 -W 5 -M do -s {} {OURS}", mtu - 28));
        assert_eq!(self.engine.dropped("tun", DropReason::TooBig), 0);
        self.host.ip(&format!("link set t0 mtu {}", mtu + 1));
        let one_more = format!("ping -c 1 -W 1 -M do -s {} {THEIRS}", mtu - 27);
        assert!(!self.host.succeeds(&one_more), "one byte above the limit");
        wait_until("the drop to be counted", || self.engine.dropped("tun", DropReason::TooBig) == 1);
    }
}
