//! Addresses, MTU, hardware address and link state, by rtnetlink. Called on a thread inside the interface's namespace.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::Socket;

use super::InterfaceAddress;
use crate::netlink;

/// A connection to the kernel of one network namespace, about one interface.
pub struct Configurator {
    socket: Socket,
    index: u32,
    sequence: u32,
}

impl Configurator {
    /// For the interface with this number in the calling thread's namespace.
    pub fn new(index: u32) -> io::Result<Self> {
        Ok(Self { socket: netlink::connect()?, index, sequence: 0 })
    }

    /// Sets the longest IP packet.
    pub fn set_mtu(&mut self, mtu: u32) -> io::Result<()> {
        self.set_link(|link| link.attributes.push(LinkAttribute::Mtu(mtu)))
    }

    /// Sets the hardware address.
    pub fn set_mac(&mut self, mac: [u8; 6]) -> io::Result<()> {
        self.set_link(|link| link.attributes.push(LinkAttribute::Address(mac.to_vec())))
    }

    /// Moves the interface to another namespace, where nobody may have its name.
    pub fn move_to(&mut self, netns: BorrowedFd<'_>) -> io::Result<()> {
        self.set_link(|link| link.attributes.push(LinkAttribute::NetNsFd(netns.as_raw_fd())))
    }

    /// Sets the link up.
    pub fn set_up(&mut self) -> io::Result<()> {
        self.set_link(|link| {
            link.header.flags = LinkFlags::Up;
            link.header.change_mask = LinkFlags::Up;
        })
    }

    /// Adds an address, usable at once: there is nobody on a point-to-point wire to detect a duplicate of.
    pub fn add_address(&mut self, address: &InterfaceAddress) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.index = self.index;
        message.header.prefix_len = address.prefix;
        message.header.flags = AddressHeaderFlags::Nodad;
        message.header.family = match address.address {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        };
        message.attributes.push(AddressAttribute::Local(address.address));
        message.attributes.push(AddressAttribute::Address(address.address));
        self.ask(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    fn set_link(&mut self, change: impl FnOnce(&mut LinkMessage)) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = self.index;
        change(&mut message);
        self.ask(RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Sends one request and waits for its acknowledgement.
    fn ask(&mut self, request: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.sequence += 1;
        self.socket.send(&netlink::request(request, NLM_F_ACK | flags, self.sequence), 0)?;
        self.answer()
    }

    fn answer(&self) -> io::Result<()> {
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
            if message.header.sequence_number != self.sequence {
                continue;
            }
            if let NetlinkPayload::Error(error) = message.payload {
                return if error.code.is_none() { Ok(()) } else { Err(error.to_io()) };
            }
        }
    }
}
