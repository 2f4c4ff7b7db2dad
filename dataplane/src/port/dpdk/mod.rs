//! Ports on DPDK's drivers: physical NICs that are bound to vfio-pci (or have a bifurcated driver), and DPDK's virtual devices. Only
//! in a build with the feature `dpdk`; without it, opening such a port is refused with [`DpdkError::NotBuilt`].
//!
//! Choose it for the highest packet rate on a NIC that can be taken away from the kernel. A NIC that the kernel is to keep (for ssh,
//! for other processes) is better used by an AF_XDP or a kernel port.
//!
//! # How it fits
//! * One EAL in a process ([`Settings`]), started with the first port. Our workers stay our own threads, where they are; DPDK only
//!   gets to know them, for its caches.
//! * A receiver lends mbufs as they are. What no sender takes is freed in bulk when the turn ends.
//! * A sender whose port shares the receiver's pool takes the mbuf itself: no byte is copied. Anything else is copied into an mbuf,
//!   once. A capture on any port of the worker makes it copy, since the frames are then looked at after they were sent.
//! * Checksums and TCP segmentation that a frame owes are left to the device where it can, and are paid by [`crate::offload`] where
//!   it can't. Frames that arrive are not checked.
//! * A worker sleeps on the interrupts of devices that have them (NICs behind vfio-pci; net_tap). It polls others once in
//!   each bounded sleep: 1 to 10 ms of latency after a pause, as long as the mode is adaptive.
//! * Links are looked at every 50 ms, and when a driver calls. Frames for a port whose link is down are dropped as `egress_down`.
//!   A device that is gone (the driver says so, or the kernel interface it stands on was deleted) is a fault: the port is
//!   detached and says so until it is set anew.
//!
//! | file | its part | unsafe |
//! |---|---|---|
//! | here | a port's halves and its handle | |
//! | `spec`, `error` | what may be asked for, and why it can't be had | |
//! | `eal` | start, log, threads | calls, log callback |
//! | `pool` | packet buffers, and which ports they are promised to | a pool's life |
//! | `plug` | devices come and go | calls |
//! | `setup` | configuring and asking a device | calls |
//! | `device` | a started device and its link | calls |
//! | `cut` | drivers that cut frames and don't say so | |
//! | `watch` | links and removals | callback |
//! | `lending` | mbufs that are lent, where senders find them | mbuf pointers |
//! | `rx`, `tx` | the two halves | views into mbufs |
//! | `batch` | empty mbufs, filled ones, and their way to the device | mbuf pointers |
//! | `debt` | checksums and segmentation in DPDK's terms | one call |

mod error;
mod spec;

#[cfg(feature = "dpdk")]
mod batch;
#[cfg(any(feature = "dpdk", test))]
mod cut;
#[cfg(feature = "dpdk")]
mod debt;
#[cfg(feature = "dpdk")]
mod device;
#[cfg(feature = "dpdk")]
mod eal;
#[cfg(feature = "dpdk")]
mod lending;
#[cfg(feature = "dpdk")]
mod plug;
#[cfg(feature = "dpdk")]
mod pool;
#[cfg(feature = "dpdk")]
mod present;
#[cfg(feature = "dpdk")]
mod rx;
#[cfg(feature = "dpdk")]
mod setup;
#[cfg(feature = "dpdk")]
mod tx;
#[cfg(feature = "dpdk")]
mod watch;

#[cfg(not(feature = "dpdk"))]
mod absent;

#[cfg(not(feature = "dpdk"))]
pub use absent::{DpdkDevice, configure, open};
#[cfg(feature = "dpdk")]
pub use present::{DpdkDevice, configure, open};

pub use error::DpdkError;
pub use spec::{DeviceSpec, Settings};

/// Whether this build has such ports.
pub const BUILT: bool = cfg!(feature = "dpdk");

/// How a device's link is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkState {
    /// Frames can pass; the speed in Mb/s, if the driver says.
    Up(Option<u32>),
    /// There is no carrier, or no peer.
    Down,
    /// The device was removed.
    Gone,
}
