//! The kernel-UDP underlay: VXLAN over ordinary sockets. The kernel does ARP, neighbour discovery, routes, path MTU and
//! checksums; segmentation and receive offload carry up to 128 datagrams per system call.
//!
//! One socket receives, bound to the local address and port. Several others send, each from a source port of its own in the
//! range that RFC 7348 §5 names for entropy, so that networks spread flows over their paths. All IPv4 and IPv6 alike.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};

use super::udp_rx::UdpRx;
use super::udp_sys as sys;
use super::udp_tx::{Sockets as SendingSockets, UdpTx};
use crate::netns::{NetnsError, in_netns};
use crate::port::{PortIndex, PortParts};
use crate::wire::vxlan;

/// Where source ports for sending are looked for.
const SOURCE_PORTS: std::ops::RangeInclusive<u16> = 49_152..=65_535;
/// `IP_PMTUDISC_DO` and `IPV6_PMTUDISC_DO`: set "don't fragment", and refuse what is longer than the path's MTU.
const PMTU_DISCOVERY_DO: libc::c_int = 2;

/// What an underlay is to be.
#[derive(Debug, Clone, Copy)]
pub struct UdpSpec<'a> {
    /// The underlay's own port: where datagrams without a tunnel are counted.
    pub port: PortIndex,
    /// The local address, and the UDP port that is listened on.
    pub local: SocketAddr,
    /// The network namespace for the sockets; the engine's own if `None`.
    pub netns: Option<BorrowedFd<'a>>,
    /// Sockets to send from, each with its own source port.
    pub sockets: u16,
    /// How many of those sockets one tunnel's flows are spread over; a power of two. More paths through the network, but fewer
    /// frames per system call.
    pub spread: u16,
    /// Bytes that the kernel may hold for the worker to come round: 1 ms of 64-byte frames at 10 Mpps is some 10 MB here.
    pub receive_buffer: usize,
    /// Buffers of 64 KiB for frames on their way out; used only as far as traffic fills them.
    pub send_buffers: usize,
}

impl UdpSpec<'static> {
    /// An underlay of the usual shape for `port`, listening on `local`.
    pub const fn new(port: PortIndex, local: SocketAddr) -> Self {
        Self { port, local, netns: None, sockets: 16, spread: 4, receive_buffer: 8 << 20, send_buffers: 256 }
    }
}

/// Why an underlay could not be opened, or a path not be measured.
#[derive(Debug, thiserror::Error)]
pub enum UdpError {
    /// The address is one that no single host has.
    #[error(
        "underlay {local}: give one address of this host, not a wildcard, multicast or broadcast address"
    )]
    NotUnicast {
        /// As asked for.
        local: SocketAddr,
    },
    /// No interface in the namespace has the address.
    #[error(
        "underlay {local}: no interface here has this address (EADDRNOTAVAIL); assign it, or give the right namespace"
    )]
    NoSuchAddress {
        /// As asked for.
        local: SocketAddr,
    },
    /// Somebody listens there already.
    #[error(
        "underlay {local}: UDP port {port} is taken (EADDRINUSE); a kernel vxlan device or another process has it: remove \
         that, or choose another port on both nodes",
        port = .local.port()
    )]
    PortTaken {
        /// As asked for.
        local: SocketAddr,
    },
    /// Fewer source ports are free than sockets were asked for.
    #[error(
        "underlay {local}: no free UDP source port in 49152..65535 for a sending socket; end what holds them"
    )]
    NoSourcePort {
        /// As asked for.
        local: SocketAddr,
    },
    /// The namespace could not be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// There is no way from the local address to the remote one.
    #[error("underlay {local}: no route to {remote}: {error}")]
    NoRoute {
        /// The underlay's address.
        local: SocketAddr,
        /// The tunnel's peer.
        remote: IpAddr,
        /// The kernel's answer.
        error: io::Error,
    },
    /// The path is too narrow for any frame.
    #[error("underlay {local}: the path to {remote} carries packets of {mtu} bytes, too few for VXLAN")]
    PathTooNarrow {
        /// The underlay's address.
        local: SocketAddr,
        /// The tunnel's peer.
        remote: IpAddr,
        /// The path's MTU.
        mtu: usize,
    },
    /// Anything else.
    #[error("underlay {local}: {what}: {error}")]
    Socket {
        /// As asked for.
        local: SocketAddr,
        /// What was being done.
        what: &'static str,
        /// The kernel's answer.
        error: io::Error,
    },
}

/// What the kernel offers to this underlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offers {
    /// One call sends many datagrams (`UDP_SEGMENT`, Linux 4.18).
    pub segmentation: bool,
    /// One receive brings many datagrams (`UDP_GRO`, Linux 5.0).
    pub receive_offload: bool,
    /// Bytes the kernel grants for received datagrams; less than asked for without CAP_NET_ADMIN.
    pub receive_buffer: usize,
}

/// An open underlay: its two halves for a worker, and a probe that stays with the agent.
pub struct UdpUnderlay {
    /// The receiving half.
    pub rx: UdpRx,
    /// The sending half.
    pub tx: UdpTx,
    /// Asks the kernel for path MTUs.
    pub mtu: MtuProbe,
    /// What the kernel offers.
    pub offers: Offers,
}

impl UdpUnderlay {
    /// Makes the sockets. All of them exist, bound, or none.
    ///
    /// # Errors
    /// [`UdpError`], which names the address, the port and what to change.
    pub fn open(spec: &UdpSpec<'_>) -> Result<Self, UdpError> {
        let ip = spec.local.ip();
        let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
        if ip.is_unspecified() || ip.is_multicast() || broadcast {
            return Err(UdpError::NotUnicast { local: spec.local });
        }
        let sockets = in_netns(spec.netns, || Sockets::open(spec))??;
        let Sockets { receiving, sending, probing, offers } = sockets;
        Ok(Self {
            rx: UdpRx::new(spec.port, ip, receiving),
            tx: UdpTx::new(
                SendingSockets::new(sending, offers.segmentation),
                spec.sockets.max(1),
                spec.spread,
                spec.send_buffers,
            ),
            mtu: MtuProbe { socket: probing, local: spec.local },
            offers,
        })
    }

    /// The parts for a worker, and the probe.
    pub fn into_parts(self) -> (PortParts, MtuProbe) {
        let parts = PortParts { rx: vec![Box::new(self.rx)], tx: None, underlay: Some(Box::new(self.tx)) };
        (parts, self.mtu)
    }
}

/// Asks the kernel how long packets to a peer may be.
#[derive(Debug)]
pub struct MtuProbe {
    socket: OwnedFd,
    local: SocketAddr,
}

impl MtuProbe {
    /// The MTU of the path to `remote` as the kernel knows it now: the route's, or less where a router said so.
    ///
    /// # Errors
    /// [`UdpError::NoRoute`].
    pub fn path_mtu(&self, remote: IpAddr) -> Result<usize, UdpError> {
        let no_route = |error: io::Error| UdpError::NoRoute { local: self.local, remote, error };
        // Connecting a UDP socket sends nothing; it only looks the route up. It may be done again and again.
        let target = match (SocketAddr::new(remote, self.local.port()), self.local) {
            (SocketAddr::V6(mut to), SocketAddr::V6(local)) if to.ip().is_unicast_link_local() => {
                to.set_scope_id(local.scope_id());
                SocketAddr::V6(to)
            }
            (to, _) => to,
        };
        connect(&self.socket, &target).map_err(|errno| no_route(errno.into()))?;
        let (level, name) = match self.local {
            SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MTU),
            SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MTU),
        };
        let mtu = sys::option(self.socket.as_fd(), level, name).map_err(no_route)?;
        Ok(usize::try_from(mtu).unwrap_or(0))
    }

    /// The longest inner Ethernet frame for `remote`, for [`Tunnel::max_frame`](crate::tables::Tunnel::max_frame).
    ///
    /// The outer IP packet is 36 bytes longer than the frame (IPv4: 20 + 8 + 8) or 56 (IPv6: 40 + 8 + 8), so the inner *IP*
    /// packet has 50 or 70 bytes less than the path. NSM subtracts 54 and 74 from the interface's MTU and thereby leaves room
    /// for an inner 802.1Q tag; a frame of such a client always fits.
    ///
    /// # Errors
    /// [`UdpError::NoRoute`], [`UdpError::PathTooNarrow`].
    pub fn max_frame(&self, remote: IpAddr) -> Result<usize, UdpError> {
        let mtu = self.path_mtu(remote)?;
        max_frame(mtu, remote).ok_or(UdpError::PathTooNarrow { local: self.local, remote, mtu })
    }
}

/// The longest inner frame on a path of this MTU; see [`MtuProbe::max_frame`].
fn max_frame(mtu: usize, remote: IpAddr) -> Option<usize> {
    let ip_header = if remote.is_ipv4() { 20 } else { 40 };
    mtu.checked_sub(ip_header + 8 + vxlan::HEADER_LEN).filter(|len| *len >= vxlan::MIN_INNER)
}

/// The sockets of an underlay, made inside its namespace.
struct Sockets {
    receiving: OwnedFd,
    sending: Vec<OwnedFd>,
    probing: OwnedFd,
    offers: Offers,
}

impl Sockets {
    fn open(spec: &UdpSpec<'_>) -> Result<Self, UdpError> {
        let local = spec.local;
        let receiving = udp_socket(local)?;
        bind(&receiving, &local).map_err(|errno| bind_error(local, errno))?;
        let (receive_offload, receive_buffer) = prepare_receiving(&receiving, spec)?;
        let sending = sending_sockets(spec)?;
        // The kernel without the option says so whatever the value; 0 means no segments until a call asks for them.
        let segmentation = sending.first().is_some_and(|socket| {
            sys::set_option(socket.as_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, 0).is_ok()
        });
        let probing = udp_socket(local)?;
        bind(&probing, &SocketAddr::new(local.ip(), 0)).map_err(|errno| bind_error(local, errno))?;
        refuse_input(&probing, local)?;
        Ok(Self {
            receiving,
            sending,
            probing,
            offers: Offers { segmentation, receive_offload, receive_buffer },
        })
    }
}

fn udp_socket(local: SocketAddr) -> Result<OwnedFd, UdpError> {
    let family = if local.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::DGRAM, flags, None).map_err(|errno| UdpError::Socket {
        local,
        what: "making a UDP socket",
        error: errno.into(),
    })?;
    if local.is_ipv6() {
        sys::set_option(socket.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)
            .map_err(|error| UdpError::Socket { local, what: "setting IPV6_V6ONLY", error })?;
    }
    Ok(socket)
}

fn bind_error(local: SocketAddr, errno: rustix::io::Errno) -> UdpError {
    match errno {
        rustix::io::Errno::ADDRNOTAVAIL => UdpError::NoSuchAddress { local },
        rustix::io::Errno::ADDRINUSE => UdpError::PortTaken { local },
        errno => UdpError::Socket { local, what: "binding", error: errno.into() },
    }
}

/// Sets the receiving socket up. Returns whether it has receive offload, and the bytes the kernel granted.
fn prepare_receiving(socket: &OwnedFd, spec: &UdpSpec<'_>) -> Result<(bool, usize), UdpError> {
    let fd = socket.as_fd();
    let set = |level, name, value| sys::set_option(fd, level, name, value);
    let failed = |what| move |error| UdpError::Socket { local: spec.local, what, error };
    let offload = set(libc::SOL_UDP, libc::UDP_GRO, 1).is_ok();
    set(libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 1).map_err(failed("setting SO_RXQ_OVFL"))?;
    let wanted = libc::c_int::try_from(spec.receive_buffer).unwrap_or(libc::c_int::MAX);
    // Beyond the system's limit with CAP_NET_ADMIN, else as much as it allows.
    set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, wanted)
        .or_else(|_| set(libc::SOL_SOCKET, libc::SO_RCVBUF, wanted))
        .map_err(failed("setting SO_RCVBUF"))?;
    let granted = sys::option(fd, libc::SOL_SOCKET, libc::SO_RCVBUF).map_err(failed("reading SO_RCVBUF"))?;
    Ok((offload, usize::try_from(granted).unwrap_or(0)))
}

fn refuse_input(socket: &OwnedFd, local: SocketAddr) -> Result<(), UdpError> {
    sys::refuse_all_input(socket.as_fd()).map_err(|error| UdpError::Socket {
        local,
        what: "attaching a filter",
        error,
    })
}

fn sending_sockets(spec: &UdpSpec<'_>) -> Result<Vec<OwnedFd>, UdpError> {
    // Start somewhere else in each process, so that several on one address do not search through each other's ports.
    let first = SOURCE_PORTS.start() + (std::process::id().wrapping_mul(4099) & 0x3fff) as u16;
    let around = (first..=*SOURCE_PORTS.end()).chain(*SOURCE_PORTS.start()..first);
    let mut ports = around.filter(|port| *port != spec.local.port());
    let mut sockets = Vec::new();
    while sockets.len() < usize::from(spec.sockets.max(1)) {
        let port = ports.next().ok_or(UdpError::NoSourcePort { local: spec.local })?;
        let socket = udp_socket(spec.local)?;
        let mut from = spec.local;
        from.set_port(port);
        match bind(&socket, &from) {
            Ok(()) => {}
            Err(rustix::io::Errno::ADDRINUSE) => continue,
            Err(errno) => return Err(bind_error(spec.local, errno)),
        }
        prepare_sending(&socket, spec.local)?;
        sockets.push(socket);
    }
    Ok(sockets)
}

fn prepare_sending(socket: &OwnedFd, local: SocketAddr) -> Result<(), UdpError> {
    let (level, discover, errors) = match local {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_RECVERR),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_RECVERR),
    };
    let failed = |what| move |error| UdpError::Socket { local, what, error };
    refuse_input(socket, local)?;
    sys::set_option(socket.as_fd(), level, discover, PMTU_DISCOVERY_DO)
        .map_err(failed("setting \"don't fragment\""))?;
    // Without this the kernel says "sent" of a packet that a full device queue dropped.
    sys::set_option(socket.as_fd(), level, errors, 1).map_err(failed("asking for send errors"))?;
    // Best effort: a small send buffer only means more frames counted as tx_full on a slow device.
    let send_buffer = 4 << 20;
    let _ = sys::set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, send_buffer)
        .or_else(|_| sys::set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUF, send_buffer));
    Ok(())
}

#[cfg(test)]
mod tests;
