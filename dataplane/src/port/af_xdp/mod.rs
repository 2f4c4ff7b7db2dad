//! Ports on interfaces of the kernel by AF_XDP sockets: frames pass between the interface's driver and memory that both share, past
//! the kernel's stack.
//!
//! A small XDP program on the interface says which frames are the port's ([`Steering`]); all others go on to the kernel untouched. The
//! program hangs on a link that ends with its descriptor: however the process ends, the interface is the kernel's again and nothing is
//! left attached. That takes Linux 5.9; an older kernel is refused rather than left with a program that nobody removes.
//!
//! Each queue of the interface has a socket of its own, and each socket its own frames: `2 × ring_size` to receive into and `ring_size`
//! to send from. Two AF_XDP ports share no memory, so a frame between them is copied once, as between any two kinds of ports.
//!
//! # How the frames come and go
//! | mode | receive | send |
//! |---|---|---|
//! | zero copy (the driver knows how) | the device writes our frame | the device reads our frame |
//! | copy, native program | the driver's buffer is copied into our frame | our frame is copied into a new socket buffer |
//! | copy, generic program (the driver knows no XDP) | the kernel's socket buffer is copied into our frame | as above |
//!
//! # Checksums that are open
//! A stack of this host leaves TCP's and UDP's checksums open in what it sends by a veth pair, and AF_XDP has no field that says so.
//! Such frames are recognised where the interface is a veth (see `unfinished`). Behind any other interface that a local stack sends
//! to directly, its sender has to complete them: `ethtool -K eth0 tx off`. Nor are frames whole that a stack sends uncut
//! (`tso off`), but for a veth with the native program, whose peer cuts them itself.
//!
//! # Limits
//! * Frames carry no offloads: what a frame owes is paid in software before it is sent.
//! * A frame with a VLAN tag that the device has taken out of the frame comes without it: switch that off
//!   (`ethtool -K nic0 rxvlan off`).
//!
//! | file | its part |
//! |---|---|
//! | here | opening and closing |
//! | [`steering`](Steering) | whose frames are whose |
//! | `asm`, `program`, `object` | the XDP program: its assembler, its instructions, its container |
//! | `load` | loading and attaching it |
//! | `netdev` | what is known of the interface, and hearing that it changes |
//! | `socket`, `sys` | sockets and system calls |
//! | `umem`, `ring` | memory shared with the kernel |
//! | [`ledger`] | whether what the kernel says of it can be |
//! | `unfinished` | checksums that were left open |
//! | [`rx`](AfXdpRx), [`tx`](AfXdpTx) | the two halves |
//! | [`error`](AfXdpError) | why there is no port |

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{PortIndex, PortParts, Rx};
use crate::netns;

mod asm;
mod error;
pub mod ledger;
mod load;
mod netdev;
mod object;
mod program;
mod ring;
mod rx;
mod socket;
mod steering;
mod sys;
mod tx;
mod umem;
pub mod unfinished;

pub use error::AfXdpError;
pub use netdev::{Interface, LinkChange, LinkEvents};
pub use rx::AfXdpRx;
pub use steering::{STEERING_MAX, Steerer, Steering, SteeringError};
pub use tx::AfXdpTx;

/// Bytes that the kernel keeps free at the beginning of each frame (`XDP_PACKET_HEADROOM`).
const HEADROOM: u32 = 256;
/// Ethernet's header with one VLAN tag, in bytes.
const HEADER: u32 = 18;

/// Which of an interface's queues a port gets.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum QueueChoice {
    /// All that are in use when the port is opened.
    #[default]
    All,
    /// These, counted from 0. Frames of the others stay the kernel's.
    These(Vec<u32>),
}

/// How frames pass between the kernel and the UMEM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CopyMode {
    /// Without copies if the driver can, else with.
    #[default]
    Auto,
    /// Without copies, or not at all.
    ZeroCopy,
    /// With copies.
    Copy,
    /// With copies, and the program is not given to the driver: for drivers whose own XDP is broken.
    Generic,
}

/// A port to be opened on an interface.
#[derive(Debug)]
pub struct AfXdpSpec {
    /// The interface.
    pub ifname: String,
    /// Where it is; the calling thread's namespace if `None`.
    pub netns: Option<OwnedFd>,
    /// Which of its queues.
    pub queues: QueueChoice,
    /// Workers that share the port, each with queues of its own, as evenly as can be; at most as many as it has queues.
    pub workers: u16,
    /// Bytes of a frame of the UMEM: 2048 or 4096. 256 of them are the kernel's; longer frames are spread over several (Linux 6.6).
    pub frame_size: u32,
    /// Entries of the rings, a power of two from 64 to 32768.
    pub ring_size: u32,
    /// With or without copies.
    pub mode: CopyMode,
    /// Drive the device's interrupts from the worker where the system allows it (`SO_PREFER_BUSY_POLL`, Linux 5.11): for a worker
    /// in poll mode whose core also has the device's interrupts. Costs a system call per turn.
    pub busy_poll: bool,
    /// Which frames.
    pub steering: Steering,
}

impl AfXdpSpec {
    /// Frames of 2048 bytes and rings of 1024 on all queues of an interface in the calling thread's namespace, which is the port's
    /// alone.
    pub fn new(ifname: impl Into<String>) -> Self {
        Self {
            ifname: ifname.into(),
            netns: None,
            queues: QueueChoice::All,
            workers: 1,
            frame_size: 2048,
            ring_size: 1024,
            mode: CopyMode::Auto,
            busy_poll: false,
            steering: Steering::All,
        }
    }

    /// Checks what can be checked without the kernel.
    ///
    /// # Errors
    /// [`AfXdpError::Setting`] names the value and its limit.
    pub fn check(&self) -> Result<(), AfXdpError> {
        let bad = |what: String| Err(AfXdpError::Setting(what));
        if !matches!(self.frame_size, 2048 | 4096) {
            return bad(format!("frame_size is 2048 or 4096 bytes, not {}", self.frame_size));
        }
        if !self.ring_size.is_power_of_two() || !(64..=32_768).contains(&self.ring_size) {
            return bad(format!("ring_size is a power of two from 64 to 32768, not {}", self.ring_size));
        }
        if let QueueChoice::These(queues) = &self.queues {
            if queues.is_empty() || queues.len() > 64 {
                return bad(format!("a port has 1 to 64 queues, not {}", queues.len()));
            }
            if let Some(twice) = queues.iter().enumerate().find(|(i, queue)| queues[..*i].contains(queue)) {
                return bad(format!("queue {} is there twice", twice.1));
            }
        }
        Ok(())
    }
}

/// The longest MTU whose frames fit into one frame of the UMEM.
fn fits(frame_size: u32) -> u32 {
    frame_size - HEADROOM - HEADER
}

/// What keeps an open port's interface ours. Dropped, the interface is the kernel's again.
pub struct AfXdpDevice {
    attached: load::Attached,
    interface: Interface,
    longest: Arc<AtomicU32>,
    zero_copy: bool,
}

impl AfXdpDevice {
    /// Says which datagrams come to the port; `None` if all frames do.
    pub fn steerer(&self) -> Option<Steerer> {
        self.attached.steerer.clone()
    }

    /// The interface as it was when last heard of.
    pub fn interface(&self) -> &Interface {
        &self.interface
    }

    /// Frames pass without copies.
    pub fn is_zero_copy(&self) -> bool {
        self.zero_copy
    }

    /// The driver runs the XDP program; else the kernel's generic hook does.
    pub fn is_native(&self) -> bool {
        self.attached.native
    }

    /// The interface is now like this: its MTU, and whether it is up, are in force for sending at once.
    pub fn note(&mut self, interface: &Interface) {
        self.longest.store(longest(interface), Ordering::Relaxed);
        self.interface.clone_from(interface);
    }
}

/// The longest frame that the interface takes now, in bytes; nothing while it is down.
fn longest(interface: &Interface) -> u32 {
    if interface.up { interface.mtu + HEADER } else { 0 }
}

/// Opens the port `port`: a share of it for each worker; frames come from now on.
///
/// # Errors
/// [`AfXdpError`] says why not, and what to do. Nothing is left on the interface then.
pub fn open(spec: &AfXdpSpec, port: PortIndex) -> Result<(AfXdpDevice, Vec<PortParts>), AfXdpError> {
    spec.check()?;
    let netns = spec.netns.as_ref().map(AsFd::as_fd);
    netns::in_netns(netns, || open_here(spec, port))
        .map_err(|error| AfXdpError::Netns { ifname: spec.ifname.clone(), error })?
}

fn open_here(spec: &AfXdpSpec, port: PortIndex) -> Result<(AfXdpDevice, Vec<PortParts>), AfXdpError> {
    let ifname = spec.ifname.as_str();
    let interface = find(ifname)?;
    let queues = choose(spec, &interface)?;
    let fragments = interface.mtu > fits(spec.frame_size);
    let wanted = load::Wanted {
        ifname,
        index: interface.index,
        queues: queues.iter().max().map_or(1, |highest| highest + 1),
        steering: &spec.steering,
        fragments,
        generic: spec.mode == CopyMode::Generic,
    };
    let mut attached = wanted.attach()?;
    let (index, mtu, native) = (interface.index, interface.mtu, attached.native);
    let opened = queues
        .iter()
        .map(|queue| socket::Plan { spec, index, queue: *queue, fragments, native, mtu }.open())
        .collect::<Result<Vec<_>, _>>()?;
    for (queue, opened) in queues.iter().zip(&opened) {
        attached.connect(*queue, &*opened.socket)?;
    }
    let zero_copy = opened.iter().all(|queue| queue.zero_copy);
    let longest = Arc::new(AtomicU32::new(longest(&interface)));
    let mut shares: Vec<Vec<_>> = (0..spec.workers.max(1)).map(|_| Vec::new()).collect();
    let count = shares.len();
    opened.into_iter().enumerate().for_each(|(nth, queue)| shares[nth % count].push(queue));
    let share = |queues| share(spec, port, queues, fragments, &interface, &longest);
    let shares = shares.into_iter().map(share).collect();
    Ok((AfXdpDevice { attached, interface, longest, zero_copy }, shares))
}

fn find(ifname: &str) -> Result<Interface, AfXdpError> {
    let interface = Interface::find(ifname).map_err(error::refused(ifname, "asking the kernel for it"))?;
    let interface = interface.ok_or_else(|| AfXdpError::NoInterface { ifname: ifname.to_owned() })?;
    let unsuitable = |why| Err(AfXdpError::Unsuitable { ifname: ifname.to_owned(), why });
    match &interface {
        Interface { loopback: true, .. } => unsuitable("the loopback interface has no other end"),
        Interface { ethernet: false, .. } => unsuitable("its frames are not Ethernet's"),
        _ => Ok(interface),
    }
}

fn choose(spec: &AfXdpSpec, interface: &Interface) -> Result<Vec<u32>, AfXdpError> {
    let (queues, ifname) = (interface.queues(), || spec.ifname.clone());
    let chosen = match &spec.queues {
        QueueChoice::All => (0..queues).collect(),
        QueueChoice::These(chosen) => match chosen.iter().find(|queue| **queue >= queues) {
            Some(queue) => return Err(AfXdpError::NoQueue { ifname: ifname(), queue: *queue, queues }),
            None => chosen.clone(),
        },
    };
    if usize::from(spec.workers) > chosen.len() {
        let (workers, queues) = (spec.workers, chosen.len());
        return Err(AfXdpError::TooFewQueues { ifname: ifname(), workers, queues });
    }
    Ok(chosen)
}

fn share(
    spec: &AfXdpSpec,
    port: PortIndex,
    queues: Vec<socket::Queue>,
    fragments: bool,
    interface: &Interface,
    longest: &Arc<AtomicU32>,
) -> PortParts {
    let (mut receivers, mut senders) = (Vec::<Box<dyn Rx>>::new(), Vec::new());
    for queue in queues {
        let socket::Queue { socket, umem, rx, fill, tx, completion, receiving, sending, .. } = queue;
        let (rings, shared) = ((rx, fill), (Arc::clone(&socket), umem.clone()));
        let habits = rx::Habits { busy_poll: spec.busy_poll, open_checksums: interface.local };
        receivers.push(Box::new(AfXdpRx::new(port, shared.0, shared.1, rings, receiving, habits)));
        senders.push(tx::TxQueue::new(socket, umem, (tx, completion), sending, fragments));
    }
    let tx = AfXdpTx::new(senders, Arc::clone(longest));
    PortParts { rx: receivers, tx: Some(Box::new(tx)), underlay: None }
}
