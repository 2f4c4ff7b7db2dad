//! What the kernel knows of an interface's routes and neighbours, by rtnetlink: for an underlay on an interface whose addresses stay the
//! kernel's. Asking it for a neighbour that it does not know has it find out.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NetlinkBuffer, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use crate::netlink;
use crate::netns::{NetnsError, in_netns};
use crate::route::domain::Mac;

/// `RTMGRP_LINK`, `RTMGRP_NEIGH`, `RTMGRP_IPV4_IFADDR`, `RTMGRP_IPV4_ROUTE`, `RTMGRP_IPV6_IFADDR`, `RTMGRP_IPV6_ROUTE`.
const GROUPS: u32 = 0x1 | 0x4 | 0x10 | 0x40 | 0x100 | 0x400;

/// Why the kernel's tables can't be read.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The namespace could not be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// No connection to the kernel.
    #[error("reading the kernel's routes: {0}")]
    Socket(#[from] io::Error),
}

/// Where packets for an address go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// To this neighbour on the interface.
    By(IpAddr),
    /// By another interface, or nowhere.
    Elsewhere,
}

/// What has changed in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Changes {
    /// Who is where.
    pub neighbours: bool,
    /// Which way is which.
    pub routes: bool,
}

/// See the module.
pub struct KernelTables {
    asking: Socket,
    events: Socket,
    index: u32,
    sequence: u32,
}

impl KernelTables {
    /// Of the interface with this number in a namespace; the calling thread's if `None`.
    ///
    /// # Errors
    /// [`KernelError`].
    pub fn new(netns: Option<BorrowedFd<'_>>, index: u32) -> Result<Self, KernelError> {
        let open = || -> io::Result<Self> {
            // Events first, so that no change after the first look is missed.
            let mut events = Socket::new(NETLINK_ROUTE)?;
            events.bind(&SocketAddr::new(0, GROUPS))?;
            events.set_non_blocking(true)?;
            let asking = netlink::connect()?;
            Ok(Self { asking, events, index, sequence: 0 })
        };
        Ok(in_netns(netns, open)??)
    }

    /// Which way packets from `local` to `remote` go.
    ///
    /// # Errors
    /// The kernel's, if it can't be asked.
    pub fn way(&mut self, local: IpAddr, remote: IpAddr) -> io::Result<Way> {
        let mut route = RouteMessage::default();
        let host = if remote.is_ipv4() { 32 } else { 128 };
        route.header.address_family = family(remote);
        (route.header.destination_prefix_length, route.header.source_prefix_length) = (host, host);
        route.attributes.push(RouteAttribute::Destination(remote.into()));
        route.attributes.push(RouteAttribute::Source(local.into()));
        let answer = match self.ask(RouteNetlinkMessage::GetRoute(route), 0) {
            Ok(Some(RouteNetlinkMessage::NewRoute(answer))) => answer,
            Ok(_) => return Ok(Way::Elsewhere),
            // ENETUNREACH, EHOSTUNREACH, EACCES (prohibited), EINVAL (blackhole, or not our address): there is no way now.
            Err(error) if matches!(error.raw_os_error(), Some(101 | 113 | 13 | 22)) => {
                return Ok(Way::Elsewhere);
            }
            Err(error) => return Err(error),
        };
        let here = answer.attributes.contains(&RouteAttribute::Oif(self.index));
        if !here || answer.header.kind != RouteType::Unicast {
            return Ok(Way::Elsewhere);
        }
        let gateway = answer.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
            RouteAttribute::Gateway(RouteAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
            RouteAttribute::Via(netlink_packet_route::route::RouteVia::Inet6(v6)) => Some(IpAddr::V6(*v6)),
            _ => None,
        });
        Ok(Way::By(gateway.unwrap_or(remote)))
    }

    /// Who has `address`, as far as the kernel knows.
    ///
    /// # Errors
    /// The kernel's, if it can't be asked.
    pub fn neighbour(&mut self, address: IpAddr) -> io::Result<Option<Mac>> {
        match self.ask(RouteNetlinkMessage::GetNeighbour(self.about(address)), 0) {
            Ok(Some(RouteNetlinkMessage::NewNeighbour(answer))) => Ok(mac_of(&answer)),
            Ok(_) => Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The interface's own hardware address.
    ///
    /// # Errors
    /// The kernel's; ENODEV if the interface is gone.
    pub fn mac(&mut self) -> io::Result<Option<Mac>> {
        let mut link = LinkMessage::default();
        link.header.index = self.index;
        let Some(RouteNetlinkMessage::NewLink(link)) = self.ask(RouteNetlinkMessage::GetLink(link), 0)?
        else {
            return Ok(None);
        };
        let mac = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Address(mac) => <[u8; 6]>::try_from(&mac[..]).ok().map(Mac),
            _ => None,
        });
        Ok(mac.filter(|mac| mac.is_station()))
    }

    /// Has the kernel find out who has `address`, or whether it still has it, as if it had something to send there itself.
    ///
    /// # Errors
    /// The kernel's; without CAP_NET_ADMIN, EPERM.
    pub fn resolve(&mut self, address: IpAddr) -> io::Result<()> {
        let mut message = self.about(address);
        message.header.flags = NeighbourFlags::Use;
        self.ask(RouteNetlinkMessage::NewNeighbour(message), NLM_F_ACK | NLM_F_CREATE).map(drop)
    }

    fn about(&self, address: IpAddr) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = family(address);
        message.header.ifindex = self.index;
        message.attributes.push(NeighbourAttribute::Destination(match address {
            IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
            IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
        }));
        message
    }

    /// Sends one request and waits for its answer; none if it was only acknowledged.
    fn ask(&mut self, request: RouteNetlinkMessage, flags: u16) -> io::Result<Option<RouteNetlinkMessage>> {
        self.sequence += 1;
        self.asking.send(&netlink::request(request, flags, self.sequence), 0)?;
        loop {
            let (bytes, _) = self.asking.recv_from_full()?;
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
            if message.header.sequence_number != self.sequence {
                continue;
            }
            match message.payload {
                NetlinkPayload::InnerMessage(answer) => return Ok(Some(answer)),
                NetlinkPayload::Error(error) if error.code.is_none() => return Ok(None),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => return Ok(None),
            }
        }
    }

    /// What has changed since the last call.
    pub fn take_changes(&mut self) -> Changes {
        let mut changes = Changes::default();
        loop {
            match self.events.recv_from_full() {
                Ok((bytes, _)) => self.note(&bytes, &mut changes),
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                // More happened than the socket holds.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    changes = Changes { neighbours: true, routes: true };
                }
                Err(_) => return changes,
            }
        }
    }

    /// A datagram may hold several messages.
    fn note(&self, mut bytes: &[u8], changes: &mut Changes) {
        while let Ok(frame) = NetlinkBuffer::new_checked(bytes) {
            let len = frame.length() as usize;
            let message =
                NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes).map(|message| message.payload);
            match message {
                Ok(NetlinkPayload::InnerMessage(
                    RouteNetlinkMessage::NewNeighbour(message) | RouteNetlinkMessage::DelNeighbour(message),
                )) => changes.neighbours |= message.header.ifindex == self.index,
                _ => changes.routes = true,
            }
            bytes = bytes.get(len.next_multiple_of(4).max(16)..).unwrap_or_default();
        }
    }
}

/// Readable when something has changed.
impl AsFd for KernelTables {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

const fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// The hardware address, unless the kernel would not send there either.
fn mac_of(message: &NeighbourMessage) -> Option<Mac> {
    if matches!(
        message.header.state,
        NeighbourState::Incomplete | NeighbourState::Failed | NeighbourState::None
    ) {
        return None;
    }
    let mac = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(mac) => <[u8; 6]>::try_from(&mac[..]).ok().map(Mac),
        _ => None,
    });
    mac.filter(|mac| mac.is_station())
}
