//! What is said about a VXLAN tunnel.

use std::net::{IpAddr, SocketAddr};

use serde::Deserialize;

use super::Mode;
use crate::model::value::{Invalid, PortName, UdpPort, UnderlayMtu, Vni, usable};

/// A VXLAN tunnel to one peer.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "RawVxlan")]
pub struct VxlanSpec {
    /// The network identifier, both ways.
    pub vni: Vni,
    /// This end's address.
    pub local: IpAddr,
    /// The peer's, of the same family.
    pub remote: IpAddr,
    /// The UDP port of both ends.
    pub port: UdpPort,
    /// MTU of what carries the tunnel; if `None`, what the kernel knows of the path when the tunnel is made.
    pub underlay_mtu: Option<UnderlayMtu>,
    /// What the port's frames are. Both ends must say the same.
    pub mode: Mode,
    /// The port that is its underlay; a UDP socket of the kernel if `None`.
    pub underlay: Option<PortName>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawVxlan {
    vni: Vni,
    local: IpAddr,
    remote: IpAddr,
    #[serde(default)]
    port: UdpPort,
    underlay_mtu: Option<UnderlayMtu>,
    #[serde(default)]
    mode: Mode,
    underlay: Option<PortName>,
}

impl TryFrom<RawVxlan> for VxlanSpec {
    type Error = Invalid;
    fn try_from(raw: RawVxlan) -> Result<Self, Invalid> {
        let RawVxlan { vni, local, remote, port, underlay_mtu, mode, underlay } = raw;
        Self { vni, local, remote, port, underlay_mtu, mode, underlay }.checked()
    }
}

impl VxlanSpec {
    /// The tunnel, if its ends fit together.
    ///
    /// # Errors
    /// Why they don't.
    pub fn checked(self) -> Result<Self, Invalid> {
        let (local, remote) = (self.local, self.remote);
        usable(local).map_err(|why| Invalid(format!("local: {why}")))?;
        usable(remote).map_err(|why| Invalid(format!("remote: {why}")))?;
        if local.is_ipv4() != remote.is_ipv4() {
            return Err(Invalid(format!("remote: {remote} is not of the same family as local, {local}")));
        }
        if local == remote {
            return Err(Invalid(format!("remote: {remote} is this end's own address")));
        }
        Ok(self)
    }

    /// What its peer sends to. Without [`Self::underlay`], a UDP socket there carries this tunnel, and others with the same.
    pub fn endpoint(&self) -> SocketAddr {
        SocketAddr::new(self.local, self.port.get())
    }

    /// The longest inner Ethernet frame on an underlay of this MTU, in bytes: what is left after the outer
    /// IP, UDP and VXLAN headers, 36 bytes (IPv4) or 56 (IPv6).
    pub fn max_frame(&self, underlay_mtu: usize) -> usize {
        underlay_mtu.saturating_sub(if self.local.is_ipv4() { 36 } else { 56 })
    }
}
