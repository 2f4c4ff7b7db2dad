//! What has to be known of an interface, and hearing when it changes or goes. All of it by netlink and ethtool's `ioctl` in the calling
//! thread's namespace: /sys shows only the one that it was mounted in.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_packet_core::{NetlinkBuffer, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::error::{AfXdpError, refused};
use super::{AfXdpSpec, sys};
use crate::netlink;
use crate::netns::in_netns;

/// `RTMGRP_LINK`.
const GROUP_LINK: u32 = 1;

/// An interface as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Longest IP packet, in bytes.
    pub mtu: u32,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// Set up by its operator, and with a carrier.
    pub up: bool,
    /// Ethernet.
    pub ethernet: bool,
    /// The loopback interface.
    pub loopback: bool,
    /// Frames come straight from a stack of this host, which may leave checksums open.
    pub local: bool,
    /// Receive queues that it was made with.
    queues: u32,
}

impl Interface {
    /// The interface that a port is to be on, if it is there.
    ///
    /// # Errors
    /// [`AfXdpError`], if its namespace can't be entered or the kernel does not answer.
    pub fn look(spec: &AfXdpSpec) -> Result<Option<Self>, AfXdpError> {
        let found = in_netns(spec.netns.as_ref().map(AsFd::as_fd), || Self::find(&spec.ifname));
        let ifname = spec.ifname.clone();
        found
            .map_err(|error| AfXdpError::Netns { ifname, error })?
            .map_err(refused(&spec.ifname, "asking the kernel for it"))
    }

    /// The interface of this name in the calling thread's namespace, if there is one.
    pub(super) fn find(name: &str) -> io::Result<Option<Self>> {
        let socket = netlink::connect()?;
        let mut link = LinkMessage::default();
        link.attributes.push(LinkAttribute::IfName(name.to_owned()));
        socket.send(&netlink::request(RouteNetlinkMessage::GetLink(link), 0, 0), 0)?;
        let (bytes, _) = socket.recv_from_full()?;
        match parse(&bytes)? {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => Ok(Some(Self::read(&link))),
            NetlinkPayload::Error(error) => match error.to_io() {
                error if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
                error => Err(error),
            },
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "an answer to another question")),
        }
    }

    fn read(link: &LinkMessage) -> Self {
        let flags = link.header.flags;
        let mut interface = Self {
            index: link.header.index,
            name: String::new(),
            mtu: 0,
            mac: [0; 6],
            up: flags.contains(LinkFlags::Up) && flags.contains(LinkFlags::LowerUp),
            ethernet: link.header.link_layer_type == LinkLayerType::Ether,
            loopback: flags.contains(LinkFlags::Loopback),
            local: false,
            queues: 1,
        };
        for attribute in &link.attributes {
            match attribute {
                LinkAttribute::IfName(name) => interface.name.clone_from(name),
                LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
                LinkAttribute::Address(mac) => interface.mac = mac.as_slice().try_into().unwrap_or_default(),
                LinkAttribute::NumRxQueues(queues) => interface.queues = (*queues).max(1),
                LinkAttribute::LinkInfo(infos) => {
                    interface.local = infos.contains(&LinkInfo::Kind(InfoKind::Veth));
                }
                _ => {}
            }
        }
        interface
    }

    /// How many receive queues are in use.
    pub(super) fn queues(&self) -> u32 {
        let asked = Socket::new(NETLINK_ROUTE).and_then(|socket| sys::channels(socket.as_fd(), &self.name));
        match asked {
            Ok(channels) => (channels.rx + channels.combined).max(1),
            // The driver has no such call.
            Err(_) => self.queues,
        }
    }
}

fn parse(bytes: &[u8]) -> io::Result<NetlinkPayload<RouteNetlinkMessage>> {
    NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes)
        .map(|message| message.payload)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))
}

/// What happened to an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkChange {
    /// It is there, like this.
    Is(Interface),
    /// It was deleted, or moved to another namespace.
    Gone,
    /// Something was missed: look.
    Unknown,
}

/// Hears of changes to the interfaces of a namespace, and picks those of one name.
pub struct LinkEvents {
    socket: Socket,
    name: String,
}

impl LinkEvents {
    /// For the interface that a port is to be on, there or not.
    ///
    /// # Errors
    /// [`AfXdpError`], if its namespace can't be entered or the kernel does not let us listen.
    pub fn open(spec: &AfXdpSpec) -> Result<Self, AfXdpError> {
        let listen = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind(&SocketAddr::new(0, GROUP_LINK))?;
            socket.set_non_blocking(true)?;
            Ok(socket)
        };
        let ifname = spec.ifname.clone();
        let socket = in_netns(spec.netns.as_ref().map(AsFd::as_fd), listen)
            .map_err(|error| AfXdpError::Netns { ifname, error })?
            .map_err(refused(&spec.ifname, "listening to the kernel's links"))?;
        Ok(Self { socket, name: spec.ifname.clone() })
    }

    /// What happened since the last call, in order.
    pub fn take(&mut self) -> Vec<LinkChange> {
        let mut changes = Vec::new();
        loop {
            match self.socket.recv_from_full() {
                Ok((bytes, _)) => self.pick(&bytes, &mut changes),
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                // More happened than the socket holds.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    changes.push(LinkChange::Unknown)
                }
                Err(_) => return changes,
            }
        }
    }

    /// A datagram may hold several messages.
    fn pick(&self, mut bytes: &[u8], changes: &mut Vec<LinkChange>) {
        while let Ok(frame) = NetlinkBuffer::new_checked(bytes) {
            let len = frame.length() as usize;
            match parse(bytes) {
                Ok(NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link))) => {
                    let interface = Interface::read(&link);
                    if interface.name == self.name {
                        changes.push(LinkChange::Is(interface));
                    }
                }
                Ok(NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)))
                    if Interface::read(&link).name == self.name =>
                {
                    changes.push(LinkChange::Gone);
                }
                _ => {}
            }
            bytes = bytes.get(len.next_multiple_of(4).max(16)..).unwrap_or_default();
        }
    }
}

/// Readable when something happened to some interface.
impl AsFd for LinkEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
