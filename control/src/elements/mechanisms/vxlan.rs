//! VXLAN: a tunnel to a forwarder on another machine.
//!
//! NSM carries payload ETHERNET this way and nothing else. Payload IP is an extension between vwire forwarders: the offer says
//! `inner=ip`, and the packets travel behind an Ethernet header with fixed addresses. A server that does not echo the parameter does
//! not know it, and is refused.
//!
//! UDP can be forged. The engine takes a packet only from the address and port of its tunnel's peer, with the tunnel's identifier; that
//! the address is the caller's can't be proven here, as the caller is its node's manager.

use std::net::IpAddr;

use tonic::Status;
use vwire_proto::dataplane::v1 as pb;

use super::{Ask, Kind};
use crate::api::connection::{Connection, Mechanism};
use crate::api::mechanism::{
    DST_IP, DST_PORT, MTU, ORIG_DST_IP, ORIG_SRC_IP, REMOTE, SRC_IP, SRC_PORT, VNI, VXLAN,
};
use crate::dataplane::ends::{EndSpec, Make, Payload};
use crate::dataplane::kernel::Side;
use crate::dataplane::wanted::Half;

/// Parameter: what a tunnel's packets are, if not Ethernet frames. An extension of vwire.
pub const INNER: &str = "inner";
/// Its only value.
const IP: &str = "ip";
/// The UDP port of RFC 7348.
const USUAL_PORT: u16 = 4789;
/// Outer headers and an inner Ethernet header with a VLAN tag, as networkservicemesh/sdk-vpp counts them, in bytes.
const OVERHEAD_V4: u32 = 54;
/// Likewise, IPv6.
const OVERHEAD_V6: u32 = 74;

/// This machine's end of all tunnels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tunnel {
    /// Our address.
    pub ip: IpAddr,
    /// The UDP port, ours and the peers'; 0 means 4789.
    pub port: u16,
    /// MTU of the interface that has the address, in bytes.
    pub interface_mtu: u32,
}

impl Tunnel {
    fn port(&self) -> u16 {
        if self.port == 0 { USUAL_PORT } else { self.port }
    }

    fn overhead(&self) -> u32 {
        if self.ip.is_ipv4() { OVERHEAD_V4 } else { OVERHEAD_V6 }
    }

    fn mtu(&self) -> u32 {
        self.interface_mtu.saturating_sub(self.overhead())
    }
}

/// The mechanism.
pub struct Vxlan(pub Tunnel);

fn parameter<'a>(mechanism: &'a Mechanism, key: &str) -> &'a str {
    mechanism.parameters.get(key).map_or("", String::as_str)
}

fn bad(key: &str, value: &str, why: impl std::fmt::Display) -> Status {
    let shown: String = value.chars().take(60).collect();
    Status::invalid_argument(format!("mechanism VXLAN: {key} {shown:?}: {why}"))
}

fn vni(mechanism: &Mechanism) -> Result<Option<u32>, Status> {
    let text = parameter(mechanism, VNI);
    if text.is_empty() {
        return Ok(None);
    }
    let vni = text.parse().ok().filter(|vni| *vni < 1 << 24);
    vni.map(Some).ok_or_else(|| bad(VNI, text, "is not a number from 0 to 16777215"))
}

impl Vxlan {
    /// The peer's address in a parameter.
    fn peer(&self, mechanism: &Mechanism, key: &str) -> Result<IpAddr, Status> {
        let text = parameter(mechanism, key);
        let address: IpAddr = text.parse().map_err(|_| bad(key, text, "is not an IP address"))?;
        let ours = self.0.ip;
        if address.is_ipv4() != ours.is_ipv4() {
            return Err(bad(
                key,
                text,
                format_args!("is not of the family of this forwarder's tunnel address {ours}"),
            ));
        }
        if address == ours {
            return Err(bad(key, text, "is this forwarder's own tunnel address"));
        }
        if address.is_unspecified()
            || address.is_multicast()
            || address.is_loopback()
            || is_broadcast(address)
        {
            return Err(bad(key, text, "is no machine's address"));
        }
        Ok(address)
    }

    /// Both ends use one port, as VPP has it.
    fn check_port(&self, mechanism: &Mechanism, key: &str) -> Result<(), Status> {
        match parameter(mechanism, key) {
            "" => Ok(()),
            text if text.parse() == Ok(self.0.port()) => Ok(()),
            text => Err(bad(
                key,
                text,
                format_args!(
                    "is not this forwarder's, {}; set NSM_VXLAN_PORT alike on all forwarders",
                    self.0.port()
                ),
            )),
        }
    }

    /// The smaller of both ends' limits.
    fn agreed_mtu(&self, mechanism: &Mechanism) -> u32 {
        match parameter(mechanism, MTU).parse() {
            Ok(mtu) if (68..self.0.mtu()).contains(&mtu) => mtu,
            _ => self.0.mtu(),
        }
    }

    /// The tunnel's number: the one that was agreed, or a new one from our half.
    fn number(&self, ask: &Ask<'_>, offered: &Mechanism, peer: IpAddr) -> Result<u32, Status> {
        let vnis = &ask.dataplane.wanted.vnis;
        if let Some(vni) = vni(offered)? {
            return match vnis.take(peer, vni, ask.id) {
                true => Ok(vni),
                false => Err(Status::already_exists(format!(
                    "mechanism VXLAN: vni {vni} of {peer} belongs to another connection"
                ))),
            };
        }
        let original = |key, plain: String| match offered.parameters.get(key) {
            Some(original) if !original.is_empty() => original.clone(),
            _ => plain,
        };
        let half =
            Half::of(&original(ORIG_SRC_IP, peer.to_string()), &original(ORIG_DST_IP, self.0.ip.to_string()));
        vnis.draw(peer, half, ask.id).ok_or_else(|| {
            Status::resource_exhausted(format!(
                "mechanism VXLAN: all network identifiers toward {peer} are taken"
            ))
        })
    }
}

fn is_broadcast(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(address) if address.is_broadcast())
}

fn check_inner(ask: &Ask<'_>, mechanism: &Mechanism, who: &str) -> Result<(), Status> {
    match (ask.payload, parameter(mechanism, INNER)) {
        (Payload::Ethernet, "") | (Payload::Ip, IP) => Ok(()),
        (Payload::Ip, "") => Err(Status::failed_precondition(format!(
            "mechanism VXLAN: {who} does not know inner=ip, without which VXLAN carries payload ETHERNET only; use a service of payload ETHERNET, or vwire forwarders on both machines"
        ))),
        (_, other) => Err(bad(INNER, other, "does not fit the payload")),
    }
}

impl Kind for Vxlan {
    fn name(&self) -> &'static str {
        VXLAN
    }

    fn class(&self) -> &'static str {
        REMOTE
    }

    fn accept(&self, ask: &Ask<'_>, offered: &Mechanism) -> Result<Mechanism, Status> {
        check_inner(ask, offered, "the client's forwarder")?;
        let peer = self.peer(offered, SRC_IP)?;
        self.check_port(offered, SRC_PORT)?;
        let mut accepted = Mechanism { cls: REMOTE.into(), r#type: VXLAN.into(), ..offered.clone() };
        let vni = self.number(ask, offered, peer)?;
        accepted.parameters.insert(VNI.into(), vni.to_string());
        accepted.parameters.insert(DST_IP.into(), self.0.ip.to_string());
        accepted.parameters.insert(DST_PORT.into(), self.0.port().to_string());
        accepted.parameters.insert(MTU.into(), self.agreed_mtu(offered).to_string());
        Ok(accepted)
    }

    fn offer(&self, ask: &Ask<'_>) -> Option<Mechanism> {
        let mut parameters: std::collections::HashMap<_, _> = [
            (SRC_IP.to_owned(), self.0.ip.to_string()),
            (SRC_PORT.to_owned(), self.0.port().to_string()),
            (MTU.to_owned(), self.0.mtu().to_string()),
        ]
        .into();
        if ask.payload == Payload::Ip {
            parameters.insert(INNER.to_owned(), IP.to_owned());
        }
        Some(Mechanism {
            cls: REMOTE.into(),
            r#type: VXLAN.into(),
            parameters: parameters.into_iter().collect(),
        })
    }

    fn end(&self, ask: &Ask<'_>, side: Side, agreed: &Mechanism, _: &Connection) -> Result<EndSpec, Status> {
        let (peer, port) = match side {
            Side::Server => (SRC_IP, SRC_PORT),
            Side::Client => (DST_IP, DST_PORT),
        };
        check_inner(ask, agreed, "the endpoint's forwarder")?;
        let remote = self.peer(agreed, peer)?;
        self.check_port(agreed, port)?;
        let vni = vni(agreed)?.ok_or_else(|| bad(VNI, "", "the endpoint's forwarder chose none"))?;
        if !ask.dataplane.wanted.vnis.take(remote, vni, ask.id) {
            return Err(Status::already_exists(format!(
                "mechanism VXLAN: vni {vni} of {remote} belongs to another connection"
            )));
        }
        let tunnel = pb::Vxlan {
            vni,
            local: self.0.ip.to_string(),
            remote: remote.to_string(),
            port: self.0.port().into(),
            underlay_mtu: self.agreed_mtu(agreed) + self.0.overhead(),
            ..Default::default()
        };
        Ok(EndSpec { payload: ask.payload, make: Make::Vxlan(tunnel), namespace: None, interface: None })
    }

    fn mtu(&self, mechanism: &Mechanism) -> u32 {
        self.agreed_mtu(mechanism)
    }
}
