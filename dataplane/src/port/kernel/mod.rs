//! Kernel interfaces: a tap (Ethernet) or tun (IP) device whose other end is a network namespace's own stack.
//!
//! Frames cross with virtio-net headers. The kernel gives TCP frames of up to 64 KiB with their checksums open, and takes such
//! frames: between two kernel interfaces they pass whole; a VXLAN or memif egress cuts them ([`crate::offload::segment`]); and
//! segments that come from there are joined again before the write ([`crate::offload::coalesce`]).
//!
//! # Why a tap, read and written frame by frame
//! Measured with a bare forwarding loop (one thread, no tables or counters) between two namespaces on a machine of two cores
//! with kernel 6.18, 3 s each, beside a veth pair without any process between. Client, loop and server share the two cores:
//!
//! | mechanism | UDP, 60-byte frames | CPU of the loop per frame | TCP, iperf3 | again, under other load |
//! |---|---|---|---|---|
//! | veth pair, no process | 0.267 Mpps | – | 22.7 Gb/s | 17.7 |
//! | **tap, `read` and `writev` each** | 0.145 | 2.3 µs | 18.3 | 16.5 |
//! | tap, io_uring, up to 64 operations a call | 0.160 | 2.1 µs | 17.6 | 18.5 |
//! | the same with registered buffers | 0.149 | 2.2 µs | – | – |
//! | tap with IFF_NAPI, `read` and `write` | – | 2.9 µs | – | 14.1 |
//! | AF_PACKET rings (TPACKET_V2, vnet headers) on a veth | 0.165 | 2.5 µs | 9.1 | – |
//!
//! Nearly all of those 2 µs is the kernel delivering the frame to the receiving stack inside the write; a system call of its own
//! costs a tenth of it. io_uring saves that tenth for small frames and nothing for large ones, and is forbidden in many
//! containers; AF_PACKET halves TCP, since its rings copy into linear buffers. AF_XDP was not measured: it carries no segmentation,
//! so every 64 KiB frame would cross as 44. What does help is fewer, larger frames, and that is where the work went: this port is
//! the one exception to "no system call per packet", and a TCP frame of 64 KiB is one call each way.
//!
//! With the whole engine (`scripts/bench_kernel.sh`, TCP): tap → tap 13.2 Gb/s beside 17.9 of a veth pair (0.74), and tap → VXLAN →
//! tap 8.5 beside 14.6 of the kernel's vxlan device (0.58), medians of three rounds while other work had the cores as well;
//! 0.89 and 0.72 in a quieter round. Two cores are what bounds it: client, two workers and server share them, and each byte is
//! copied twice more per engine. A write to the tap carries 30 segments (24 when PSH still ended a frame).
//!
//! | file | its part |
//! |---|---|
//! | here | making, adopting and closing |
//! | [`spec`](KernelSpec) | what may be asked for |
//! | `create` | in which namespace, and how it gets there |
//! | `configure` | addresses, MTU, link state by netlink |
//! | `vnet` | the virtio-net header |
//! | [`rx`](KernelRx), [`tx`](KernelTx) | the two halves |
//! | `sys` | the system calls |

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::{PortIndex, PortParts, Rx};
use crate::netns::NetnsError;

mod configure;
mod create;
mod rx;
mod spec;
mod sys;
mod tx;
mod vnet;

pub use rx::KernelRx;
use spec::configuring;
pub use spec::{BadAddress, InterfaceAddress, KernelSpec, Kind};
pub use tx::KernelTx;

/// Why a kernel interface could not be had.
#[derive(Debug, thiserror::Error)]
pub enum KernelOpenError {
    /// Not a name for an interface.
    #[error("{ifname:?} can't name an interface: {reason}")]
    Name {
        /// The name asked for.
        ifname: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The MTU is outside what IP and the kernel allow.
    #[error("interface {ifname}: an MTU of {mtu} is outside 68..=65535")]
    Mtu {
        /// The interface.
        ifname: String,
        /// The MTU asked for.
        mtu: u32,
    },
    /// The number of queues is outside what the kernel allows.
    #[error("interface {ifname}: {queues} queues are outside 1..=256")]
    Queues {
        /// The interface.
        ifname: String,
        /// The number asked for.
        queues: u16,
    },
    /// A hardware address that no interface may have: zero, a group's, or any at all on a tun.
    #[error("interface {ifname}: {mac:02x?} can't be its hardware address")]
    Mac {
        /// The interface.
        ifname: String,
        /// The address asked for.
        mac: [u8; 6],
    },
    /// The namespace could not be entered.
    #[error("interface {ifname}: {error}")]
    Netns {
        /// The interface.
        ifname: String,
        /// What went wrong.
        error: NetnsError,
    },
    /// There is an interface of this name in the namespace.
    #[error("interface {ifname} exists already in this network namespace; delete it or choose another name")]
    Exists {
        /// The interface.
        ifname: String,
    },
    /// The kernel refused to make it.
    #[error(
        "creating interface {ifname} through /dev/net/tun: {error}; this needs CAP_NET_ADMIN in the namespace"
    )]
    Create {
        /// The interface.
        ifname: String,
        /// The kernel's answer.
        error: io::Error,
    },
    /// The kernel refused an address, the MTU or another setting. The interface is gone again.
    #[error("interface {ifname}: {what}: {error}")]
    Configure {
        /// The interface.
        ifname: String,
        /// What was being set, with the value.
        what: String,
        /// The kernel's answer.
        error: io::Error,
    },
    /// The descriptor to adopt is not a tap's or tun's.
    #[error("the descriptor is not one of /dev/net/tun with an interface: {0}")]
    NotTap(io::Error),
    /// The device was made without flags that the engine needs.
    #[error(
        "interface {ifname} must be made with IFF_NO_PI and IFF_VNET_HDR to be adopted; its flags are {flags:#06x}"
    )]
    Flags {
        /// The interface.
        ifname: String,
        /// The flags it has.
        flags: i32,
    },
}

/// The interface itself, as its owner outside the packet path sees it. The kernel deletes an interface that was made here when
/// this and the port's halves are all dropped. If somebody else deletes it, or its whole namespace, the receiving half reports a
/// [`PortFault`](super::PortFault).
#[derive(Debug)]
pub struct KernelDevice {
    ifname: String,
    index: u32,
    kind: Kind,
    /// The kernel cuts and takes large UDP frames, too.
    udp: bool,
    queues: Vec<Arc<OwnedFd>>,
}

impl KernelDevice {
    /// Its name.
    pub fn ifname(&self) -> &str {
        &self.ifname
    }

    /// Its number in its namespace; 0 if it was adopted, since the namespace is then not known.
    pub const fn index(&self) -> u32 {
        self.index
    }

    /// Ethernet or IP.
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// The descriptor of its first queue, which another process can [`adopt`].
    pub fn queue(&self) -> BorrowedFd<'_> {
        self.queues[0].as_fd()
    }

    /// Has the kernel cut large UDP frames itself from now on: each frame that it gives is one datagram at most.
    ///
    /// # Errors
    /// The kernel's.
    pub fn without_udp_segments(&self) -> io::Result<()> {
        sys::offer_tcp_offloads(self.queue())
    }

    /// Gives it another hardware address.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_mac(&self, mac: [u8; 6]) -> io::Result<()> {
        sys::set_mac(self.queue(), mac)
    }

    /// What a port with this interface is made of.
    pub fn parts(&self, port: PortIndex) -> PortParts {
        let rx =
            self.queues.iter().map(|queue| Box::new(KernelRx::new(port, Arc::clone(queue))) as Box<dyn Rx>);
        let tx = KernelTx::new(Arc::clone(&self.queues[0]), self.kind.link(), self.udp);
        PortParts { rx: rx.collect(), tx: Some(Box::new(tx)), underlay: None }
    }
}

/// Makes the interface, sets it up, and makes a port of it.
///
/// # Errors
/// [`KernelOpenError`] names the interface and what is wrong; nothing is left behind then.
pub fn open(port: PortIndex, spec: &KernelSpec) -> Result<(PortParts, KernelDevice), KernelOpenError> {
    let device = create(spec)?;
    Ok((device.parts(port), device))
}

/// Makes the interface and sets it up, for [`KernelDevice::parts`]. Blocks for as long as the kernel takes: tens of milliseconds.
///
/// # Errors
/// As [`open`].
pub fn create(spec: &KernelSpec) -> Result<KernelDevice, KernelOpenError> {
    spec.check()?;
    create::create(spec)
}

/// Makes a port of a tap or tun that somebody else made and set up, with IFF_NO_PI and IFF_VNET_HDR, from its descriptor.
///
/// # Errors
/// [`KernelOpenError::NotTap`] and [`KernelOpenError::Flags`] if it is something else, [`KernelOpenError::Configure`] if the
/// kernel refuses to change the descriptor's mode.
pub fn adopt(port: PortIndex, queue: OwnedFd) -> Result<(PortParts, KernelDevice), KernelOpenError> {
    let (ifname, flags) = sys::interface(queue.as_fd()).map_err(KernelOpenError::NotTap)?;
    if flags & sys::BASE_FLAGS != sys::BASE_FLAGS {
        return Err(KernelOpenError::Flags { ifname, flags });
    }
    let kind = if flags & libc::IFF_TUN != 0 { Kind::Tun } else { Kind::Tap };
    let udp = prepare_queue(&queue, &ifname)?;
    rustix::io::ioctl_fionbio(&queue, true)
        .map_err(|error| configuring(&ifname, || "making it nonblocking".into())(error.into()))?;
    let device = KernelDevice { ifname, index: 0, kind, udp, queues: vec![Arc::new(queue)] };
    Ok((device.parts(port), device))
}

/// Returns whether offloads include UDP.
fn prepare_queue(queue: &OwnedFd, ifname: &str) -> Result<bool, KernelOpenError> {
    sys::set_header_len(queue.as_fd(), vnet::HEADER)
        .map_err(configuring(ifname, || "setting the length of its vnet header".into()))?;
    sys::offer_offloads(queue.as_fd())
        .map_err(configuring(ifname, || "offering checksum and segmentation offload".into()))
}
