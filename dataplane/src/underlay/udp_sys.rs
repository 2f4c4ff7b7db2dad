//! The system calls of the UDP underlay that neither std nor rustix offers: `sendmsg` with a segment size, `sendmmsg`,
//! `recvmmsg` with control messages, and a few socket options. The only unsafe part of the underlay.

use std::io;
use std::mem::{MaybeUninit, size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{c_int, c_void, cmsghdr, iovec, mmsghdr, msghdr, sockaddr_in6, sockaddr_storage};

/// Most messages in one `sendmmsg`.
const SEND_MANY: usize = 64;
/// Room for the control messages of one received message: the segment size and the overflow count, each one word.
const CONTROL_WORDS: usize = 16;

/// An option's value as the kernel's C interface wants it: a plain integer.
pub fn set_option(socket: BorrowedFd<'_>, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    set(socket, level, name, &value)
}

fn set<T>(socket: BorrowedFd<'_>, level: c_int, name: c_int, value: &T) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the pointer and the length describe `value`, which outlives the call and is only read.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Reads an integer option.
pub fn option(socket: BorrowedFd<'_>, level: c_int, name: c_int) -> io::Result<c_int> {
    let mut value: c_int = 0;
    let mut len = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, which is the size of `value`.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, name, std::ptr::from_mut(&mut value).cast(), &mut len)
    };
    if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

/// Has the kernel drop everything that arrives at a socket that only sends, before it takes memory.
pub fn refuse_all_input(socket: BorrowedFd<'_>) -> io::Result<()> {
    // "Return 0": keep no byte of any packet.
    let mut program = libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: 0 };
    let filter = libc::sock_fprog { len: 1, filter: &mut program };
    set(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &filter)
}

/// Throws away what the kernel reports about earlier sends (ICMP errors), at most 16 of them.
pub fn drain_errors(socket: BorrowedFd<'_>) {
    for _ in 0..16 {
        // SAFETY: an all-zero msghdr is valid: no buffers, no name, no control. The report is discarded.
        let mut message: msghdr = unsafe { zeroed() };
        // SAFETY: `message` is valid for the call and points nowhere.
        let result = unsafe {
            libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT)
        };
        if result < 0 {
            return;
        }
    }
}

/// A socket address in the kernel's layout.
pub struct RawAddress {
    storage: sockaddr_in6, // the larger of the two
    len: libc::socklen_t,
}

impl RawAddress {
    /// Converts.
    pub fn new(address: &SocketAddr) -> Self {
        // SAFETY: an all-zero sockaddr is valid.
        let mut storage: sockaddr_in6 = unsafe { zeroed() };
        match address {
            SocketAddr::V4(v4) => {
                // SAFETY: as above; sockaddr_in is plain integers too.
                let mut raw: libc::sockaddr_in = unsafe { zeroed() };
                raw.sin_family = libc::AF_INET as libc::sa_family_t;
                raw.sin_port = v4.port().to_be();
                raw.sin_addr.s_addr = u32::from_ne_bytes(v4.ip().octets());
                // SAFETY: sockaddr_in6 is larger and at least as aligned as sockaddr_in, and both are plain integers.
                unsafe { std::ptr::from_mut(&mut storage).cast::<libc::sockaddr_in>().write(raw) }
                Self { storage, len: size_of::<libc::sockaddr_in>() as libc::socklen_t }
            }
            SocketAddr::V6(v6) => {
                storage.sin6_family = libc::AF_INET6 as libc::sa_family_t;
                storage.sin6_port = v6.port().to_be();
                storage.sin6_addr.s6_addr = v6.ip().octets();
                storage.sin6_scope_id = v6.scope_id();
                Self { storage, len: size_of::<sockaddr_in6>() as libc::socklen_t }
            }
        }
    }

    fn name(&self) -> *mut c_void {
        std::ptr::from_ref(&self.storage).cast_mut().cast()
    }
}

fn part_of(bytes: &[u8]) -> iovec {
    iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
}

fn message_to(to: &RawAddress, part: &mut iovec) -> msghdr {
    // SAFETY: an all-zero msghdr is valid; some libcs have padding fields, so it can't be written as a literal.
    let mut message: msghdr = unsafe { zeroed() };
    message.msg_name = to.name();
    message.msg_namelen = to.len;
    message.msg_iov = part;
    message.msg_iovlen = 1;
    message
}

/// Sends `bytes` as one datagram, or as datagrams of `segment` bytes each. Never waits.
///
/// # Errors
/// The kernel's; nothing was sent then.
pub fn send(socket: BorrowedFd<'_>, to: &RawAddress, bytes: &[u8], segment: Option<u16>) -> io::Result<()> {
    let mut part = part_of(bytes);
    let mut message = message_to(to, &mut part);
    let mut control = [0u64; 4];
    if let Some(segment) = segment {
        message.msg_control = control.as_mut_ptr().cast();
        // SAFETY: pure arithmetic.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(2) } as _;
        // SAFETY: `control` is 32 zeroed bytes aligned for cmsghdr, of which CMSG_SPACE(2) = 24 are announced, so the first
        // header and its two bytes of data lie inside.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&message);
            (*header).cmsg_level = libc::SOL_UDP;
            (*header).cmsg_type = libc::UDP_SEGMENT;
            (*header).cmsg_len = libc::CMSG_LEN(2) as _;
            libc::CMSG_DATA(header).cast::<u16>().write_unaligned(segment);
        }
    }
    // SAFETY: `message` names `to`, `part` (which covers `bytes`) and `control`; all outlive the call, and it only reads them.
    let result = unsafe { libc::sendmsg(socket.as_raw_fd(), &message, libc::MSG_DONTWAIT) };
    if result >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sends up to 64 datagrams of `datagram_len` bytes (the last may be shorter) from the start of `bytes`, in one call. Returns
/// how many the kernel took.
///
/// # Errors
/// The kernel's, about the first datagram; none was sent then.
pub fn send_many(
    socket: BorrowedFd<'_>,
    to: &RawAddress,
    bytes: &[u8],
    datagram_len: usize,
) -> io::Result<usize> {
    let mut parts: [iovec; SEND_MANY] = [part_of(&[]); SEND_MANY];
    let mut messages: [MaybeUninit<mmsghdr>; SEND_MANY] = [const { MaybeUninit::uninit() }; SEND_MANY];
    let mut count = 0;
    for ((datagram, part), message) in bytes.chunks(datagram_len).zip(&mut parts).zip(&mut messages) {
        *part = part_of(datagram);
        message.write(mmsghdr { msg_hdr: message_to(to, part), msg_len: 0 });
        count += 1;
    }
    let first = messages.as_mut_ptr().cast::<mmsghdr>();
    // SAFETY: the first `count` messages are initialised; they name `to` and `parts`, which cover `bytes`. All outlive the call.
    let result = unsafe { libc::sendmmsg(socket.as_raw_fd(), first, count, libc::MSG_DONTWAIT as _) };
    if result >= 0 { Ok(result as usize) } else { Err(io::Error::last_os_error()) }
}

/// What was received into one buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Bytes in the buffer.
    pub len: usize,
    /// Who sent them, if the kernel said so.
    pub sender: Option<IpAddr>,
    /// Bytes of each datagram when the kernel put several together.
    pub segment: Option<usize>,
    /// How many messages the socket has dropped since it was made, because its receive buffer was full.
    pub overflow: Option<u32>,
    /// Part of the datagram, or of what the kernel says about it, was cut off.
    pub truncated: bool,
}

/// Buffers to receive into, made once.
pub struct Arena {
    bytes: Vec<u8>,
    buffer_len: usize,
    names: Vec<sockaddr_storage>,
    controls: Vec<[u64; CONTROL_WORDS]>,
    parts: Vec<iovec>,
    messages: Vec<mmsghdr>,
}

// SAFETY: the pointers in `parts` and `messages` lead into the arena's own vectors, and are written anew before each call.
unsafe impl Send for Arena {}

impl Arena {
    /// `buffers` buffers of `buffer_len` bytes.
    pub fn new(buffers: usize, buffer_len: usize) -> Self {
        // SAFETY: all-zero is valid for these plain structures of integers and null pointers.
        let (name, message): (sockaddr_storage, mmsghdr) = unsafe { (zeroed(), zeroed()) };
        Self {
            bytes: vec![0; buffers * buffer_len],
            buffer_len,
            names: vec![name; buffers],
            controls: vec![[0; CONTROL_WORDS]; buffers],
            parts: vec![part_of(&[]); buffers],
            messages: vec![message; buffers],
        }
    }

    /// How many buffers there are.
    pub const fn buffers(&self) -> usize {
        self.messages.len()
    }

    /// The `i`-th buffer.
    #[inline]
    pub fn buffer(&self, i: usize) -> &[u8] {
        &self.bytes[i * self.buffer_len..(i + 1) * self.buffer_len]
    }

    /// Receives into the first `wanted` buffers, as many as there are messages, and returns that number. Never waits.
    ///
    /// # Errors
    /// The kernel's; `WouldBlock` if nothing is there.
    pub fn receive(&mut self, socket: BorrowedFd<'_>, wanted: usize) -> io::Result<usize> {
        let wanted = wanted.min(self.buffers());
        for (i, buffer) in self.bytes.chunks_exact_mut(self.buffer_len).take(wanted).enumerate() {
            self.parts[i] = iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
            let header = &mut self.messages[i].msg_hdr;
            header.msg_name = std::ptr::from_mut(&mut self.names[i]).cast();
            header.msg_namelen = size_of::<sockaddr_storage>() as _;
            header.msg_iov = &mut self.parts[i];
            header.msg_iovlen = 1;
            header.msg_control = self.controls[i].as_mut_ptr().cast();
            header.msg_controllen = size_of::<[u64; CONTROL_WORDS]>() as _;
            header.msg_flags = 0;
        }
        let first = self.messages.as_mut_ptr();
        // SAFETY: the first `wanted` messages name buffers of this arena, each its own, with their true lengths; `self` is
        // borrowed exclusively, so nobody looks at them meanwhile.
        let result = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                first,
                wanted as _,
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        if result >= 0 { Ok(result as usize) } else { Err(io::Error::last_os_error()) }
    }

    /// What the last [`Arena::receive`] put into the `i`-th buffer.
    pub fn received(&self, i: usize) -> Received {
        let message = &self.messages[i];
        let (segment, overflow) = control_values(&message.msg_hdr);
        Received {
            len: (message.msg_len as usize).min(self.buffer_len),
            sender: sender(&self.names[i], message.msg_hdr.msg_namelen as usize),
            segment: segment.and_then(|len| usize::try_from(len).ok()).filter(|len| *len > 0),
            overflow,
            truncated: message.msg_hdr.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0,
        }
    }
}

fn sender(name: &sockaddr_storage, len: usize) -> Option<IpAddr> {
    let start = std::ptr::from_ref(name);
    match c_int::from(name.ss_family) {
        libc::AF_INET if len >= size_of::<libc::sockaddr_in>() => {
            // SAFETY: the kernel wrote a sockaddr_in (family and length say so); the storage is larger and aligned for all.
            let v4 = unsafe { &*start.cast::<libc::sockaddr_in>() };
            Some(IpAddr::V4(Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes())))
        }
        libc::AF_INET6 if len >= size_of::<sockaddr_in6>() => {
            // SAFETY: as above, with sockaddr_in6.
            let v6 = unsafe { &*start.cast::<sockaddr_in6>() };
            Some(IpAddr::V6(Ipv6Addr::from(v6.sin6_addr.s6_addr)))
        }
        _ => None,
    }
}

/// The segment size and the overflow count among a message's control messages.
fn control_values(message: &msghdr) -> (Option<c_int>, Option<u32>) {
    let (mut segment, mut overflow) = (None, None);
    // SAFETY: `message` is as the kernel left it: control and its length describe whole control messages in our own buffer, and
    // the CMSG functions stay inside of it. The values are read unaligned and only where the length covers them.
    unsafe {
        let mut header: *const cmsghdr = libc::CMSG_FIRSTHDR(message);
        while let Some(control) = header.as_ref() {
            if control.cmsg_len >= libc::CMSG_LEN(4) as usize {
                let value = libc::CMSG_DATA(header).cast::<c_int>().read_unaligned();
                match (control.cmsg_level, control.cmsg_type) {
                    (libc::SOL_UDP, libc::UDP_GRO) => segment = Some(value),
                    (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) => overflow = Some(value as u32),
                    _ => {}
                }
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    (segment, overflow)
}
