//! One AF_XDP socket: its frames, its rings, and the queue it is bound to.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::sockopt;
use rustix::net::xdp::{
    SocketAddrXdp, SocketAddrXdpFlags, XDP_PGOFF_RX_RING, XDP_PGOFF_TX_RING, XDP_UMEM_PGOFF_COMPLETION_RING,
    XDP_UMEM_PGOFF_FILL_RING, XdpOptionsFlags, XdpRingOffset, XdpStatistics, XdpUmemReg, XdpUmemRegFlags,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::error::{AfXdpError, refused};
use super::ledger::{Descriptor, Ledger};
use super::ring::{Consumer, Offsets, Producer};
use super::sys;
use super::umem::{Mapping, Umem};
use super::{AfXdpSpec, CopyMode};

/// A queue's frames for receiving, in multiples of its rings' size. A driver that receives without copies keeps a ring of its own
/// full of them, beside ours.
const RECEIVE_SHARE: u32 = 2;
/// How long a queue may stay taken after its last socket was closed: the kernel lets go of it in the background, mostly within a
/// millisecond, but it needs the lock of all interfaces for that. 1.5 s were too short once in 10,000 times, on a busy machine.
const BUSY_FOR: Duration = Duration::from_secs(5);
/// Pauses between attempts to get such a queue.
const BUSY_PAUSE: Duration = Duration::from_millis(1);
/// Bytes that the kernel may hold in frames that are being sent with a copy.
const SEND_BUFFER: i32 = 8 << 20;
/// `XDP_MAX_TX_SKB_BUDGET` (Linux 6.17): frames sent with a copy in one call.
const MAX_TX_SKB_BUDGET: i32 = 9;
/// Linux's `SOL_XDP`.
const SOL_XDP: i32 = libc::SOL_XDP;

/// The descriptor, shared by both halves.
pub struct Xsk(OwnedFd);

impl AsFd for Xsk {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Xsk {
    /// What the kernel counted.
    pub fn statistics(&self) -> io::Result<XdpStatistics> {
        Ok(sockopt::xdp_statistics(&self.0)?)
    }

    /// Why the socket no longer works, once: the interface is gone.
    pub fn error(&self) -> Option<io::Error> {
        match sockopt::socket_error(&self.0) {
            Ok(Ok(())) => None,
            Ok(Err(error)) | Err(error) => Some(error.into()),
        }
    }
}

/// A bound socket, taken apart into what the two halves of a port need.
pub struct Queue {
    /// The descriptor.
    pub socket: Arc<Xsk>,
    /// All frames.
    pub umem: Umem,
    /// What was received.
    pub rx: Consumer<Descriptor>,
    /// Where to receive.
    pub fill: Producer<u64>,
    /// What is to be sent.
    pub tx: Producer<Descriptor>,
    /// What has been sent.
    pub completion: Consumer<u64>,
    /// The frames for receiving.
    pub receiving: Ledger,
    /// The frames for sending.
    pub sending: Ledger,
    /// The driver receives into our frames and sends from them; nobody copies.
    pub zero_copy: bool,
}

/// What a socket is opened with.
pub struct Plan<'s> {
    /// What was asked for.
    pub spec: &'s AfXdpSpec,
    /// The interface's number.
    pub index: u32,
    /// Its queue.
    pub queue: u32,
    /// Packets may be spread over several frames.
    pub fragments: bool,
    /// The driver runs our program, so it may also know how to do without copies.
    pub native: bool,
    /// The interface's MTU, for errors.
    pub mtu: u32,
}

impl Plan<'_> {
    /// Opens a socket in the calling thread's namespace and binds it. It gets nothing before the XDP program is told of it.
    pub fn open(&self) -> Result<Queue, AfXdpError> {
        let socket = self.socket()?;
        let ring = self.spec.ring_size;
        let receiving = ring * RECEIVE_SHARE;
        let umem = Umem::new(receiving + ring, self.spec.frame_size).map_err(|error| {
            self.memory(u64::from(receiving + ring) * u64::from(self.spec.frame_size), error)
        })?;
        self.register(&socket, &umem)?;
        let mut queue = self.rings(socket, umem, receiving)?;
        // What a driver without zero copy never needs stays out of the ring: fewer frames stay in the cache.
        let addresses: Vec<u64> = queue.receiving.addresses().collect();
        let (first, rest) = addresses.split_at(ring as usize);
        queue.offer(first);
        queue.zero_copy = self.bind(&queue.socket)?;
        if queue.zero_copy {
            queue.offer(rest);
        }
        Ok(queue)
    }

    fn socket(&self) -> Result<OwnedFd, AfXdpError> {
        let flags = SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::XDP, SocketType::RAW, flags, None);
        let socket = socket.map_err(io::Error::from).map_err(|error| match error.raw_os_error() {
            Some(libc::EAFNOSUPPORT) => {
                AfXdpError::TooOld { ifname: self.spec.ifname.clone(), what: "AF_XDP sockets" }
            }
            _ => refused(&self.spec.ifname, "opening an AF_XDP socket")(error),
        })?;
        self.tune(&socket);
        Ok(socket)
    }

    /// What only makes it faster.
    fn tune(&self, socket: &OwnedFd) {
        let set = |level, option, value| sys::set_option(socket.as_fd(), level, option, value);
        // Needs CAP_NET_ADMIN; without, what the system allows.
        let _ = set(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, SEND_BUFFER)
            .or_else(|_| set(libc::SOL_SOCKET, libc::SO_SNDBUF, SEND_BUFFER));
        let _ = set(SOL_XDP, MAX_TX_SKB_BUDGET, self.spec.ring_size as i32);
        if self.spec.busy_poll {
            let _ = set(libc::SOL_SOCKET, libc::SO_PREFER_BUSY_POLL, 1);
            let _ = set(libc::SOL_SOCKET, libc::SO_BUSY_POLL, 20);
            let _ = set(libc::SOL_SOCKET, libc::SO_BUSY_POLL_BUDGET, crate::burst::BURST as i32);
        }
    }

    fn register(&self, socket: &OwnedFd, umem: &Umem) -> Result<(), AfXdpError> {
        let registration = XdpUmemReg {
            addr: umem.address(),
            len: umem.len(),
            chunk_size: umem.frame_size(),
            headroom: 0,
            flags: XdpUmemRegFlags::empty(),
            tx_metadata_len: 0,
        };
        sockopt::set_xdp_umem_reg(socket, registration).map_err(|error| match error.raw_os_error() {
            libc::ENOBUFS | libc::ENOMEM => self.memory(umem.len(), error.into()),
            _ => refused(&self.spec.ifname, "registering the frames' memory")(error.into()),
        })
    }

    fn memory(&self, bytes: u64, error: io::Error) -> AfXdpError {
        AfXdpError::Memory { ifname: self.spec.ifname.clone(), queue: self.queue, bytes, error }
    }

    fn rings(&self, socket: OwnedFd, umem: Umem, receiving: u32) -> Result<Queue, AfXdpError> {
        let ring = self.spec.ring_size;
        let failed = |doing| move |error: io::Error| refused(&self.spec.ifname, doing)(error);
        let sizes = || -> io::Result<_> {
            sockopt::set_xdp_umem_fill_ring_size(&socket, receiving)?;
            sockopt::set_xdp_umem_completion_ring_size(&socket, ring)?;
            sockopt::set_xdp_rx_ring_size(&socket, ring)?;
            sockopt::set_xdp_tx_ring_size(&socket, ring)?;
            Ok(sockopt::xdp_mmap_offsets(&socket)?)
        };
        let at = sizes().map_err(failed("setting the sizes of the rings"))?;
        let wrong =
            || io::Error::new(io::ErrorKind::InvalidData, "the kernel's ring offsets are outside the ring");
        let map = |offsets: XdpRingOffset, size: u32, entry: usize, page| -> io::Result<_> {
            // Linux 5.4 and later have flags.
            let flags = offsets.flags.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOSYS))?;
            let len = offsets.desc as usize + size as usize * entry;
            let memory = Arc::new(Mapping::ring(socket.as_fd(), len, page)?);
            let (producer, consumer, entries) = (offsets.producer, offsets.consumer, offsets.desc);
            Ok((memory, Offsets { producer, consumer, flags, entries }))
        };
        let all = || -> io::Result<_> {
            let (memory, offsets) = map(at.rx, ring, size_of::<Descriptor>(), XDP_PGOFF_RX_RING)?;
            let rx = Consumer::new(memory, offsets, ring).map_err(|_| wrong())?;
            let (memory, offsets) = map(at.tx, ring, size_of::<Descriptor>(), XDP_PGOFF_TX_RING)?;
            let tx = Producer::new(memory, offsets, ring).map_err(|_| wrong())?;
            let (memory, offsets) = map(at.fr, receiving, size_of::<u64>(), XDP_UMEM_PGOFF_FILL_RING)?;
            let fill = Producer::new(memory, offsets, receiving).map_err(|_| wrong())?;
            let (memory, offsets) = map(at.cr, ring, size_of::<u64>(), XDP_UMEM_PGOFF_COMPLETION_RING)?;
            let completion = Consumer::new(memory, offsets, ring).map_err(|_| wrong())?;
            Ok((rx, tx, fill, completion))
        };
        let (rx, tx, fill, completion) = all().map_err(failed("mapping the rings"))?;
        let size = umem.frame_size();
        let (receive, send) = (Ledger::new(0, receiving, size), Ledger::new(receiving, ring, size));
        let socket = Arc::new(Xsk(socket));
        Ok(Queue {
            socket,
            umem,
            rx,
            fill,
            tx,
            completion,
            receiving: receive,
            sending: send,
            zero_copy: false,
        })
    }

    /// Binds; true if the driver does without copies.
    fn bind(&self, socket: &Xsk) -> Result<bool, AfXdpError> {
        let mut flags = SocketAddrXdpFlags::XDP_USE_NEED_WAKEUP;
        if self.fragments {
            flags |= SocketAddrXdpFlags::XDP_USE_SG;
        }
        match self.spec.mode {
            CopyMode::ZeroCopy => flags |= SocketAddrXdpFlags::XDP_ZEROCOPY,
            CopyMode::Auto if self.native => {}
            CopyMode::Auto | CopyMode::Copy | CopyMode::Generic => flags |= SocketAddrXdpFlags::XDP_COPY,
        }
        let address = SocketAddrXdp::new(flags, self.index, self.queue);
        let give_up = Instant::now() + BUSY_FOR;
        loop {
            match rustix::net::bind(&socket.0, &address) {
                Ok(()) => break,
                Err(rustix::io::Errno::BUSY) if Instant::now() < give_up => std::thread::sleep(BUSY_PAUSE),
                Err(error) => return Err(self.not_bound(error.into())),
            }
        }
        let options = sockopt::xdp_options(&socket.0).map_err(io::Error::from);
        let options = options.map_err(refused(&self.spec.ifname, "asking how frames are received"))?;
        Ok(options.contains(XdpOptionsFlags::XDP_OPTIONS_ZEROCOPY))
    }

    fn not_bound(&self, error: io::Error) -> AfXdpError {
        let ifname = self.spec.ifname.clone();
        match error.raw_os_error() {
            Some(libc::EBUSY) => AfXdpError::QueueTaken { ifname, queue: self.queue },
            Some(libc::EOPNOTSUPP | libc::EINVAL) if self.spec.mode == CopyMode::ZeroCopy => {
                AfXdpError::NoZeroCopy { ifname, error }
            }
            Some(libc::EOPNOTSUPP | libc::EINVAL) if self.fragments => {
                let (mtu, frame_size) = (self.mtu, self.spec.frame_size);
                AfXdpError::Mtu { ifname, mtu, frame_size, fits: super::fits(frame_size), error }
            }
            Some(libc::ENODEV) => AfXdpError::NoInterface { ifname },
            _ => refused(&ifname, "binding an AF_XDP socket")(error),
        }
    }
}

impl Queue {
    fn offer(&mut self, addresses: &[u64]) {
        for address in addresses {
            // They are ours, and given once.
            if self.receiving.give(*address).is_ok() {
                self.fill.push(*address);
            }
        }
        self.fill.publish();
    }
}
