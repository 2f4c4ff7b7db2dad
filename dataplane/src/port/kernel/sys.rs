//! The system calls of tap and tun devices that have no safe wrapper elsewhere.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use memif::Lent;
use rustix::fs::{Mode, OFlags};

/// Flags of `TUNSETIFF` that this engine uses.
pub const BASE_FLAGS: i32 = libc::IFF_NO_PI | libc::IFF_VNET_HDR;

const TUN_F_CSUM: u32 = 0x01;
const TUN_F_TSO4: u32 = 0x02;
const TUN_F_TSO6: u32 = 0x04;
const TUN_F_USO4: u32 = 0x20;
const TUN_F_USO6: u32 = 0x40;
const SEGMENTATION: u32 = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6;

/// A piece of a frame for [`write_vectored`].
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Piece(libc::iovec);

// SAFETY: the addresses in it are only used within `write_vectored`, whose caller filled it in the same call; between calls it is
// never read.
unsafe impl Send for Piece {}

impl From<Lent<'_>> for Piece {
    #[inline]
    fn from(view: Lent<'_>) -> Self {
        Self(libc::iovec { iov_base: view.as_ptr().cast_mut().cast(), iov_len: view.len() })
    }
}

/// Writes one frame, gathered from `pieces`.
///
/// # Safety
/// The views that the pieces were made of must still be valid.
#[inline]
pub unsafe fn write_vectored(fd: BorrowedFd<'_>, pieces: &[Piece]) -> io::Result<usize> {
    // SAFETY: `Piece` is an iovec; the caller vouches for the addresses, and the kernel only reads.
    let written = unsafe { libc::writev(fd.as_raw_fd(), pieces.as_ptr().cast(), pieces.len() as i32) };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}

/// Opens one queue of the interface `name`, which is created if it isn't there yet.
pub fn open_queue(name: &str, flags: i32) -> io::Result<OwnedFd> {
    let flags_rw = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = rustix::fs::open("/dev/net/tun", flags_rw, Mode::empty())?;
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = (BASE_FLAGS | flags) as i16;
    // SAFETY: TUNSETIFF reads and writes an ifreq.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) })?;
    Ok(fd)
}

/// Name and flags of the interface behind a tap or tun descriptor.
pub fn interface(fd: BorrowedFd<'_>) -> io::Result<(String, i32)> {
    let mut request = request("");
    // SAFETY: TUNGETIFF writes an ifreq.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF as _, &raw mut request) })?;
    let name = request.ifr_name.iter().map(|byte| *byte as u8).take_while(|byte| *byte != 0).collect();
    // SAFETY: TUNGETIFF filled the flags.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok((String::from_utf8(name).unwrap_or_default(), i32::from(flags) & 0xffff))
}

/// Lets the kernel leave checksums open and frames uncut, as far as it knows how. Returns whether that includes UDP.
pub fn offer_offloads(fd: BorrowedFd<'_>) -> io::Result<bool> {
    match set_offloads(fd, SEGMENTATION | TUN_F_USO4 | TUN_F_USO6) {
        Ok(()) => Ok(true),
        // A kernel before 6.2 knows no UDP segmentation here.
        Err(_) => set_offloads(fd, SEGMENTATION).map(|()| false),
    }
}

/// The same but for UDP segmentation.
pub fn offer_tcp_offloads(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_offloads(fd, SEGMENTATION)
}

fn set_offloads(fd: BorrowedFd<'_>, offloads: u32) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD as _, libc::c_ulong::from(offloads)) })
}

/// Sets the length of the header in front of each frame, in case another owner chose another.
pub fn set_header_len(fd: BorrowedFd<'_>, len: usize) -> io::Result<()> {
    let len = len as libc::c_int;
    // SAFETY: TUNSETVNETHDRSZ reads an int.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ as _, &raw const len) })
}

/// Gives the interface behind a tap's descriptor another hardware address.
pub fn set_mac(fd: BorrowedFd<'_>, mac: [u8; 6]) -> io::Result<()> {
    let mut request = request("");
    let mut address = [0 as libc::c_char; 14];
    for (to, from) in address.iter_mut().zip(mac) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_hwaddr = libc::sockaddr { sa_family: libc::ARPHRD_ETHER, sa_data: address };
    // SAFETY: SIOCSIFHWADDR on a tap's descriptor reads an ifreq with the address, and changes that tap, wherever it is.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCSIFHWADDR as _, &raw mut request) })
}

/// The number of the interface `name` in the calling thread's namespace.
pub fn interface_index(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    // SAFETY: a C string.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    (index > 0).then_some(index)
}

/// Moves the calling thread to a new, empty network namespace and returns that. Only for a thread that ends soon after.
pub fn enter_new_netns() -> io::Result<OwnedFd> {
    // SAFETY: unshare takes no pointers; a network namespace holds nothing that this thread's Rust code relies on.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::open("/proc/thread-self/ns/net", flags, Mode::empty())?)
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let most = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(most)) {
        *to = from as libc::c_char;
    }
    request
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
