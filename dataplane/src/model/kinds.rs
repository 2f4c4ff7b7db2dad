//! What is said about a port of each kind. The fields' names are the configuration's keys.

use std::net::{IpAddr, SocketAddr};

use serde::Deserialize;

use super::value::{
    BufferSize, ControlSocket, IfName, Inode, Invalid, Mtu, Netns, PortName, Prefix, Queues, RingSize,
    Secret, UdpPort, UnderlayMtu, Vni, shown, usable,
};

/// What a port's frames begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// An Ethernet header.
    #[default]
    Ethernet,
    /// An IPv4 or IPv6 header.
    Ip,
}

/// Which side of a memif this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Listens; memif calls it master.
    Server,
    /// Connects and provides the memory; memif calls it slave.
    Client,
}

/// A memif.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemifSpec {
    /// Which side.
    pub role: Role,
    /// The control socket.
    pub socket: ControlSocket,
    /// Which of the socket's interfaces.
    #[serde(default)]
    pub id: u32,
    /// What the frames are.
    #[serde(default)]
    pub mode: Mode,
    /// What both sides must know.
    #[serde(default)]
    pub secret: Secret,
    /// Ring pairs: a client makes them, a server takes at most so many.
    #[serde(default)]
    pub queues: Queues,
    /// Slots of a client's rings.
    #[serde(default)]
    pub ring_size: RingSize,
    /// Bytes of a client's buffers.
    #[serde(default)]
    pub buffer_size: BufferSize,
}

/// A network interface of the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "RawKernel")]
pub struct KernelSpec {
    /// Its name.
    pub ifname: IfName,
    /// Where it is made; the engine's own namespace if `None`.
    pub netns: Option<Netns>,
    /// Its addresses.
    pub addresses: Vec<Prefix>,
    /// Its MTU.
    pub mtu: Mtu,
    /// A tap (Ethernet) or a tun (IP).
    pub mode: Mode,
    /// Receive queues, over which the kernel spreads flows.
    pub queues: Queues,
    /// An existing tap or tun of this name, by its descriptor, instead of a new one. Its owner has set it up.
    pub device: Option<Inode>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawKernel {
    ifname: IfName,
    netns: Option<Netns>,
    #[serde(default)]
    addresses: Vec<Prefix>,
    #[serde(default)]
    mtu: Mtu,
    #[serde(default)]
    mode: Mode,
    #[serde(default)]
    queues: Queues,
}

impl TryFrom<RawKernel> for KernelSpec {
    type Error = Invalid;
    fn try_from(raw: RawKernel) -> Result<Self, Invalid> {
        let RawKernel { ifname, netns, addresses, mtu, mode, queues } = raw;
        Self { ifname, netns, addresses, mtu, mode, queues, device: None }.checked()
    }
}

impl KernelSpec {
    /// Most addresses of one interface.
    pub const MAX_ADDRESSES: usize = 64;
    /// RFC 8200 §5.
    const IPV6_MIN_MTU: u16 = 1280;

    /// The interface, if its parts fit together.
    ///
    /// # Errors
    /// Which parts don't.
    pub fn checked(self) -> Result<Self, Invalid> {
        let count = self.addresses.len();
        if count > Self::MAX_ADDRESSES {
            return Err(Invalid(format!("addresses: at most 64 are possible, not {count}")));
        }
        if self.device.is_some() && (self.netns.is_some() || count > 0) {
            return Err(Invalid(
                "device: an interface that is handed over keeps its own netns and addresses".into(),
            ));
        }
        let v6 = self.addresses.iter().find(|prefix| prefix.address.is_ipv6());
        if let (Some(v6), true) = (v6, self.mtu.get() < Self::IPV6_MIN_MTU) {
            let mtu = self.mtu.get();
            return Err(Invalid(format!(
                "addresses: {v6} needs an mtu of 1280 bytes or more, and mtu is {mtu}"
            )));
        }
        for (i, prefix) in self.addresses.iter().enumerate() {
            if self.addresses[..i].iter().any(|earlier| earlier.address == prefix.address) {
                return Err(Invalid(format!("addresses: {} is there twice", prefix.address)));
            }
        }
        Ok(self)
    }
}

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
}

impl TryFrom<RawVxlan> for VxlanSpec {
    type Error = Invalid;
    fn try_from(raw: RawVxlan) -> Result<Self, Invalid> {
        let RawVxlan { vni, local, remote, port, underlay_mtu, mode } = raw;
        Self { vni, local, remote, port, underlay_mtu, mode }.checked()
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

    /// The UDP socket that carries this tunnel, and others with the same.
    pub fn underlay(&self) -> SocketAddr {
        SocketAddr::new(self.local, self.port.get())
    }

    /// The longest inner Ethernet frame on an underlay of this MTU, in bytes: what is left after the outer
    /// IP, UDP and VXLAN headers, 36 bytes (IPv4) or 56 (IPv6).
    pub fn max_frame(&self, underlay_mtu: usize) -> usize {
        underlay_mtu.saturating_sub(if self.local.is_ipv4() { 36 } else { 56 })
    }
}

/// A memif that is handed through: control messages are passed on between a client and a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelaySpec {
    /// The listening socket that the client connects to.
    pub listen: Inode,
    /// Where the server's socket is; the engine's own namespace if `None`.
    pub netns: Option<Netns>,
    /// The server's abstract socket, without the leading `@`.
    pub socket: String,
}

impl RelaySpec {
    /// The relay to a socket that is written `@name`.
    ///
    /// # Errors
    /// If it is no such name.
    pub fn new(listen: Inode, netns: Option<Netns>, socket: &str) -> Result<Self, Invalid> {
        match socket.parse()? {
            ControlSocket::Abstract(socket) => Ok(Self { listen, netns, socket }),
            _ => Err(Invalid(format!("{} is no abstract socket; write @name", shown(socket)))),
        }
    }
}

/// One end of an in-process pipe.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PipeSpec {
    /// Two ports that name the same pipe are its two ends.
    pub pipe: PortName,
}
