//! A peer that sends whatever it likes: a bare SEQPACKET socket.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use memif::Address;
use memif::message::{AddRegion, AddRing, Init, MESSAGE_SIZE, Message, Name, Secret, VERSION};
use memif::ring::{COOKIE, Direction};
use rustix::event::EventfdFlags;
use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    SocketAddrUnix, SocketFlags, SocketType,
};

pub struct Raw(pub OwnedFd);

/// What a raw peer heard.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    Nothing,
    Closed,
    Message(Message),
}

impl Raw {
    pub fn connect(address: &Address) -> Self {
        Self::try_connect(address).expect("connect")
    }

    pub fn try_connect(address: &Address) -> Result<Self, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let to = match address {
            Address::Path(path) => SocketAddrUnix::new(path.as_path())?,
            Address::Abstract(name) => SocketAddrUnix::new_abstract_name(name)?,
        };
        rustix::net::connect(&fd, &to)?;
        Ok(Self(fd))
    }

    pub fn bytes(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        rustix::net::sendmsg(&self.0, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).map(drop)
    }

    pub fn say(&self, message: &Message) {
        self.bytes(&message.encode(), &[]).expect("send");
    }

    pub fn say_with(&self, message: &Message, fd: impl AsFd) {
        self.bytes(&message.encode(), &[fd.as_fd()]).expect("send");
    }

    pub fn hear(&self) -> Heard {
        let mut bytes = [0; MESSAGE_SIZE];
        let mut control = RecvAncillaryBuffer::new(&mut []);
        let mut receive = || {
            rustix::net::recvmsg(
                &self.0,
                &mut [IoSliceMut::new(&mut bytes)],
                &mut control,
                RecvFlags::DONTWAIT,
            )
        };
        let got = match receive() {
            // Says that some of ours was never read; what the other side said before is still there.
            Err(Errno::CONNRESET) => receive(),
            other => other,
        };
        match got {
            Err(Errno::AGAIN) => Heard::Nothing,
            Err(Errno::CONNRESET | Errno::PIPE) => Heard::Closed,
            Ok(got) if got.bytes == 0 => Heard::Closed,
            Ok(got) => Heard::Message(Message::decode(&bytes[..got.bytes]).expect("our side speaks well")),
            Err(error) => panic!("recvmsg: {error}"),
        }
    }
}

impl AsFd for Raw {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

pub fn init() -> Init {
    Init { version: VERSION, id: 0, mode: 0, secret: Secret::none(), name: name("raw") }
}

pub fn name(text: &str) -> Name {
    text.parse().expect("short")
}

pub fn add_region(index: u16, size: u64) -> Message {
    Message::AddRegion(AddRegion { index, size })
}

/// A ring of 32 slots.
pub fn ring(direction: Direction, offset: u32) -> AddRing {
    AddRing { direction, index: 0, region: 0, offset, log2_size: 5, private_header: 0 }
}

/// Two rings of 32 slots one behind the other, with cookies, in 64 KiB.
pub const REGION: u64 = 65536;
pub const SECOND_RING: u32 = 128 + 16 * 32;

pub fn memory(size: u64) -> OwnedFd {
    let file =
        rustix::fs::memfd_create("raw", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).expect("memfd");
    rustix::fs::ftruncate(&file, size).expect("ftruncate");
    for offset in [0, u64::from(SECOND_RING)] {
        if offset + 4 <= size {
            rustix::io::pwrite(&file, &COOKIE.to_ne_bytes(), offset).expect("write");
        }
    }
    file
}

pub fn eventfd() -> OwnedFd {
    rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("eventfd")
}
