//! What the engine is asked to be: ports by name, which of them are cross-connected, and which are routed between. A [`State`]
//! that exists is consistent.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

mod edit;
mod kinds;
mod note;
mod proto;
mod routing;
pub(crate) mod routing_proto;
mod underlay;
mod underlay_proto;
mod value;

pub use edit::Edit;
pub use kinds::{
    AfXdpSpec, CopyMode, DpdkName, DpdkSpec, KernelSpec, MemifSpec, Mode, PipeSpec, RelaySpec, Role,
    VxlanSpec,
};
pub use note::{Note, Notes};
pub use proto::{FieldError, op_from_proto, state_from_proto, state_to_proto};
pub use routing::{DomainState, Mac, MemberSpec, Network, RouteMtu, RouteSpec, Routing, TouchedRouting};
pub use underlay::UnderlaySpec;
pub(crate) use value::shown;
pub use value::{
    BufferSize, Buffers, ControlSocket, Descriptors, IfName, Inode, Invalid, Mtu, Netns, PortName, Prefix,
    QueueIndex, Queues, RingSize, Secret, UdpPort, UnderlayMtu, Vni, XdpFrameSize, XdpRingSize,
};

/// What a port is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortSpec {
    /// Shared memory with another process.
    Memif(MemifSpec),
    /// A network interface.
    Kernel(KernelSpec),
    /// An interface that is there already, by AF_XDP sockets.
    AfXdp(AfXdpSpec),
    /// A tunnel.
    Vxlan(VxlanSpec),
    /// One end of an in-process pipe.
    Pipe(PipeSpec),
    /// A device of DPDK's.
    Dpdk(DpdkSpec),
    /// No port that frames come by, but otherwise kept like one: a memif that is handed through.
    Relay(RelaySpec),
}

/// Two ports joined: frames that enter one leave by the other. The same two in any order are the same
/// cross-connect.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Xconnect(PortName, PortName);

impl Xconnect {
    /// Joins two ports.
    ///
    /// # Errors
    /// If both are the same.
    pub fn new(a: PortName, b: PortName) -> Result<Self, Invalid> {
        match a.cmp(&b) {
            std::cmp::Ordering::Less => Ok(Self(a, b)),
            std::cmp::Ordering::Greater => Ok(Self(b, a)),
            std::cmp::Ordering::Equal => {
                Err(Invalid(format!("port {a} can't be cross-connected with itself")))
            }
        }
    }

    /// The two ports.
    pub fn ends(&self) -> [&PortName; 2] {
        [&self.0, &self.1]
    }

    /// The port at the other end, if `port` is at one.
    pub fn peer(&self, port: &PortName) -> Option<&PortName> {
        match port {
            _ if *port == self.0 => Some(&self.1),
            _ if *port == self.1 => Some(&self.0),
            _ => None,
        }
    }
}

impl fmt::Display for Xconnect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} - {}", self.0, self.1)
    }
}

/// Something outside the engine that only one port can have.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Claim {
    /// A memif interface, as server or as client.
    Memif(bool, ControlSocket, u32),
    /// A network interface.
    Kernel(Option<Netns>, IfName),
    /// The XDP program of an interface.
    AfXdp(Option<Netns>, IfName),
    /// What a tunnel's datagrams are known by.
    Vxlan(SocketAddr, u32, IpAddr),
    /// A pipe, which has two ends.
    Pipe(PortName),
    /// A device of DPDK's.
    Dpdk(String),
    /// A relay's listening socket.
    Relay(Inode),
    /// What a tunnel's datagrams are known by on an underlay's port.
    Carried(PortName, u32, IpAddr),
}

impl Claim {
    /// How many ports may have it.
    pub fn shares(&self) -> usize {
        if matches!(self, Claim::Pipe(_)) { 2 } else { 1 }
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Claim::Memif(_, socket, id) => write!(f, "memif {socket} id {id}"),
            Claim::Kernel(Some(netns), name) => write!(f, "interface {} in {netns}", name.as_str()),
            Claim::Kernel(None, name) => write!(f, "interface {}", name.as_str()),
            Claim::AfXdp(Some(netns), name) => write!(f, "the XDP program of {} in {netns}", name.as_str()),
            Claim::AfXdp(None, name) => write!(f, "the XDP program of {}", name.as_str()),
            Claim::Vxlan(local, vni, remote) => write!(f, "vni {vni} from {local} to {remote}"),
            Claim::Pipe(pipe) => write!(f, "pipe {pipe}"),
            Claim::Dpdk(device) => write!(f, "DPDK device {device}"),
            Claim::Carried(port, vni, remote) => write!(f, "vni {vni} to {remote} on underlay {port}"),
            Claim::Relay(listen) => write!(f, "the clients of {listen}"),
        }
    }
}

impl PortSpec {
    /// The kind's name, as in configuration and metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Memif(_) => "memif",
            Self::Kernel(_) => "kernel",
            Self::AfXdp(_) => "af_xdp",
            Self::Vxlan(_) => "vxlan",
            Self::Pipe(_) => "pipe",
            Self::Dpdk(_) => "dpdk",
            Self::Relay(_) => "relay",
        }
    }

    /// What only this port can have.
    pub fn claim(&self) -> Option<Claim> {
        Some(match self {
            Self::Memif(memif) => Claim::Memif(memif.role == Role::Server, memif.socket.clone(), memif.id),
            // Where the interface lives is its owner's matter, and names are unique only there.
            Self::Kernel(KernelSpec { device: Some(_), .. }) => return None,
            Self::Kernel(kernel) => Claim::Kernel(kernel.netns.clone(), kernel.ifname.clone()),
            Self::AfXdp(nic) => Claim::AfXdp(nic.netns.clone(), nic.ifname.clone()),
            Self::Vxlan(VxlanSpec { underlay: Some(port), vni, remote, .. }) => {
                Claim::Carried(port.clone(), vni.get(), *remote)
            }
            Self::Vxlan(vxlan) => Claim::Vxlan(vxlan.endpoint(), vxlan.vni.get(), vxlan.remote),
            Self::Pipe(pipe) => Claim::Pipe(pipe.pipe.clone()),
            Self::Dpdk(dpdk) => Claim::Dpdk(dpdk.device.device().to_owned()),
            Self::Relay(relay) => Claim::Relay(relay.listen),
        })
    }

    /// What the port's frames begin with. A pipe carries either.
    pub fn mode(&self) -> Option<Mode> {
        match self {
            Self::Memif(memif) => Some(memif.mode),
            Self::Kernel(kernel) => Some(kernel.mode),
            Self::AfXdp(_) => Some(Mode::Ethernet),
            Self::Vxlan(vxlan) => Some(vxlan.mode),
            Self::Dpdk(_) => Some(Mode::Ethernet),
            Self::Pipe(_) | Self::Relay(_) => None,
        }
    }

    /// The descriptors that must come with a request that makes this port.
    pub fn needs(&self) -> impl Iterator<Item = Inode> + use<> {
        let (first, second) = match self {
            Self::Memif(MemifSpec { socket: ControlSocket::Sent(inode), .. })
            | Self::Kernel(KernelSpec { netns: Some(Netns::Sent(inode)), .. })
            | Self::AfXdp(AfXdpSpec { netns: Some(Netns::Sent(inode)), .. })
            | Self::Kernel(KernelSpec { device: Some(inode), .. }) => (Some(*inode), None),
            Self::Relay(RelaySpec { listen, netns: Some(Netns::Sent(netns)), .. }) => {
                (Some(*listen), Some(*netns))
            }
            Self::Relay(RelaySpec { listen, .. }) => (Some(*listen), None),
            _ => (None, None),
        };
        first.into_iter().chain(second)
    }

    /// The port that carries a tunnel, if one does.
    pub fn carrier(&self) -> Option<&PortName> {
        match self {
            Self::Vxlan(vxlan) => vxlan.underlay.as_ref(),
            _ => None,
        }
    }

    /// How many workers share the port's queues.
    pub const fn workers(&self) -> u16 {
        match self {
            Self::Dpdk(dpdk) => dpdk.workers.get(),
            Self::AfXdp(nic) => nic.workers.get(),
            _ => 1,
        }
    }

    /// Whether the port's frames are those of a kernel interface that keeps its addresses, routes and neighbours.
    pub const fn has_kernel_routes(&self) -> bool {
        matches!(self, Self::AfXdp(_))
    }

    /// True for what is no port: a [`RelaySpec`].
    pub fn is_relay(&self) -> bool {
        matches!(self, Self::Relay(_))
    }
}

/// Why a state is not consistent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// More than the engine has room for.
    #[error("{0} ports are too many; the limit is {max}", max = State::MAX_PORTS)]
    TooMany(usize),
    /// Two ports of one name.
    #[error("port {0} is there twice")]
    Twice(PortName),
    /// Two ports that want what only one can have.
    #[error("ports {first} and {second} both want {claim}")]
    Contested {
        /// The one.
        first: PortName,
        /// The other.
        second: PortName,
        /// What they want.
        claim: Claim,
    },
    /// A cross-connect that names a port that is not there.
    #[error("xconnect {xconnect}: there is no port {missing}")]
    NoSuchPort {
        /// The cross-connect.
        xconnect: Xconnect,
        /// What is missing.
        missing: PortName,
    },
    /// A port in two cross-connects.
    #[error("port {port} can be in one xconnect, not in both {first} and {second}")]
    Joined {
        /// The port.
        port: PortName,
        /// The one.
        first: Xconnect,
        /// The other.
        second: Xconnect,
    },
    /// Frames with and without an Ethernet header can't be exchanged.
    #[error(
        "xconnect {0}: one port's frames begin with an Ethernet header (mode = \"ethernet\"), the other's with IP (mode = \"ip\")"
    )]
    Modes(Xconnect),
    /// More than the engine keeps.
    #[error("{0} bytes of notes are too many; the limit is {max} for all ports together", max = Notes::MAX_BYTES)]
    Notes(usize),
    /// A domain, a port's place in it, or a route that does not fit.
    #[error("{subject}: {reason}")]
    Routing {
        /// What does not fit, like `domain blue: route 10.0.0.0/8`.
        subject: String,
        /// Why.
        reason: String,
    },
    /// An underlay, or a tunnel on it, that does not fit.
    #[error("{}{reason}", if subject.starts_with("underlay") { format!("{subject}: ") } else { String::new() })]
    Underlay {
        /// What does not fit: `underlay nic0`, or the tunnel's name.
        subject: String,
        /// Why, with the field.
        reason: String,
    },
    /// More domains or routes than the engine has room for.
    #[error("too many: {0}")]
    TooManyRoutes(String),
    /// Relays have no frames to exchange.
    #[error("xconnect {0}: port {1} is a relay, which has no frames")]
    Relay(Xconnect, PortName),
    /// Something to be removed is not there.
    #[error("there is no {0}")]
    NotFound(String),
}

/// A change to a [`State`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Adds or replaces a port, and its note.
    SetPort(PortName, PortSpec, Note),
    /// Removes a port.
    RemovePort(PortName),
    /// Removes a relay.
    RemoveRelay(PortName),
    /// Joins two ports.
    AddXconnect(Xconnect),
    /// Separates them.
    RemoveXconnect(Xconnect),
    /// Changes a port's note.
    SetNote(PortName, Note),
    /// Adds a domain, or gives it other gateway addresses.
    SetDomain(PortName, Vec<IpAddr>),
    /// Removes a domain with its routes; its ports are in none then.
    RemoveDomain(PortName),
    /// Puts a port into a domain, or says anew how it is in it.
    SetMember(PortName, MemberSpec),
    /// Takes a port out of its domain.
    RemoveMember(PortName),
    /// Adds or replaces a route of a domain.
    SetRoute(PortName, Network, RouteSpec),
    /// Removes it.
    RemoveRoute(PortName, Network),
    /// Makes a port an underlay, or another than before.
    SetUnderlay(PortName, UnderlaySpec),
    /// It is none any more.
    RemoveUnderlay(PortName),
}

/// All that the engine is asked to be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct State {
    ports: BTreeMap<PortName, PortSpec>,
    xconnects: BTreeSet<Xconnect>,
    notes: Notes,
    routing: Routing,
    underlays: BTreeMap<PortName, UnderlaySpec>,
    index: edit::Index,
}

impl State {
    /// Most ports of one engine; the statistics segment has a slot for each, and for their underlays.
    pub const MAX_PORTS: usize = 4000;

    /// The state of these ports and cross-connects.
    ///
    /// # Errors
    /// [`StateError`] if they don't fit together.
    pub fn new(
        ports: impl IntoIterator<Item = (PortName, PortSpec)>,
        xconnects: impl IntoIterator<Item = Xconnect>,
    ) -> Result<Self, StateError> {
        Self::with_underlays(ports, [], xconnects)
    }

    /// As [`State::new`], where some of the ports are underlays.
    ///
    /// # Errors
    /// As [`State::new`].
    pub fn with_underlays(
        ports: impl IntoIterator<Item = (PortName, PortSpec)>,
        underlays: impl IntoIterator<Item = (PortName, UnderlaySpec)>,
        xconnects: impl IntoIterator<Item = Xconnect>,
    ) -> Result<Self, StateError> {
        let (mut names, mut ops) = (BTreeSet::new(), Vec::new());
        for (name, spec) in ports {
            if !names.insert(name.clone()) {
                return Err(StateError::Twice(name));
            }
            ops.push(Op::SetPort(name, spec, Note::default()));
        }
        ops.extend(underlays.into_iter().map(|(port, spec)| Op::SetUnderlay(port, spec)));
        ops.extend(xconnects.into_iter().map(Op::AddXconnect));
        let mut state = Self::default();
        let _ = state.edit(ops)?;
        Ok(state)
    }

    /// The same state with these notes.
    ///
    /// # Errors
    /// [`StateError::NotFound`] if there is no such port, [`StateError::Notes`] if they are too long together.
    pub fn with_notes(
        mut self,
        notes: impl IntoIterator<Item = (PortName, Note)>,
    ) -> Result<Self, StateError> {
        let _ = self.edit(notes.into_iter().map(|(port, note)| Op::SetNote(port, note)))?;
        Ok(self)
    }

    /// What was left with the ports.
    pub fn notes(&self) -> &Notes {
        &self.notes
    }

    /// The ports by name.
    pub fn ports(&self) -> &BTreeMap<PortName, PortSpec> {
        &self.ports
    }

    /// The ports that are underlays.
    pub fn underlays(&self) -> &BTreeMap<PortName, UnderlaySpec> {
        &self.underlays
    }

    /// The routing domains.
    pub fn routing(&self) -> &Routing {
        &self.routing
    }

    /// The cross-connects.
    pub fn xconnects(&self) -> &BTreeSet<Xconnect> {
        &self.xconnects
    }

    /// The state after `ops`.
    ///
    /// # Errors
    /// [`StateError`] if an operation removes what is not there, or the result is not consistent.
    pub fn after(&self, ops: impl IntoIterator<Item = Op>) -> Result<Self, StateError> {
        let mut state = self.clone();
        let _ = state.edit(ops)?;
        Ok(state)
    }
}

#[cfg(test)]
mod tests;
