//! The system calls of AF_XDP and ethtool that have no safe wrapper elsewhere.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `struct ethtool_channels`: how many queues an interface has of each kind.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub struct Channels {
    command: u32,
    max: [u32; 4],
    /// Receive queues with an interrupt of their own.
    pub rx: u32,
    tx: u32,
    other: u32,
    /// Pairs of a receive and a transmit queue.
    pub combined: u32,
}

const ETHTOOL_GCHANNELS: u32 = 0x3c;

/// Asks how many queues the interface `name` of the socket's namespace has.
pub fn channels(socket: BorrowedFd<'_>, name: &str) -> io::Result<Channels> {
    let mut channels = Channels { command: ETHTOOL_GCHANNELS, ..Channels::default() };
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let most = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(most)) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut channels).cast();
    // SAFETY: SIOCETHTOOL reads an ifreq, and with ETHTOOL_GCHANNELS writes the structure that its data points to.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(channels) }
}

/// Tells the kernel that there is something in the transmit ring.
#[inline]
pub fn kick_send(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no bytes and no address are passed.
    let result = unsafe {
        libc::sendto(socket.as_raw_fd(), std::ptr::null(), 0, libc::MSG_DONTWAIT, std::ptr::null(), 0)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Tells the kernel that there is something in the fill ring.
#[inline]
pub fn kick_receive(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no bytes are asked for, and no address.
    let result = unsafe {
        libc::recvfrom(
            socket.as_raw_fd(),
            std::ptr::null_mut(),
            0,
            libc::MSG_DONTWAIT,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sets an option of the socket that holds an `int`.
pub fn set_option(socket: BorrowedFd<'_>, level: i32, option: i32, value: i32) -> io::Result<()> {
    // SAFETY: the kernel reads one int.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
