//! The underlay on an Ethernet port: VXLAN over AF_XDP, DPDK, or any other port that carries Ethernet frames.
//!
//! The port is the underlay's then: it writes all headers itself, from a [`template`] for each tunnel, and the port makes the one copy
//! ([`send`]). What the port receives is judged exactly ([`outer`]), and what is for a tunnel is lent as coming from the tunnel's port
//! ([`receive`]).
//!
//! | file | its part |
//! |---|---|
//! | [`outer`] | what a received frame is; pure |
//! | [`receive`] | received frames → lent inner frames |
//! | [`template`] | outer headers, made once, patched for each frame; pure |
//! | [`send`] | a tunnel's frames → datagrams; plain frames |
//! | [`neighbours`] | who has which hardware address, and when to ask; pure |
//! | `kernel` | the kernel's routes and neighbours of an interface |
//! | [`station`] | what is said to the underlay itself, and what it answers; pure |
//!
//! # Next hops
//! Workers know only what the tables say: a [`Hop`](crate::tables::Hop) for each tunnel whose next hop is known, and a
//! [`Line`](crate::tables::Line) for each underlay. Finding out is the agent's: workers hand ARP, neighbour discovery and ICMP to it,
//! and send what it says. Frames of a tunnel whose next hop is not known are dropped as `no_neighbour`.
//! * On an AF_XDP port the kernel keeps address, neighbours and routes of the interface, and the agent reads them there.
//! * On any other port the underlay is a station of its own: it asks by ARP and neighbour discovery, keeps asking (only the station
//!   that it knows, before that is forgotten), and answers.
//!
//! # The exception port
//! What is not for a tunnel goes where the port is cross-connected to, and what comes from there leaves by the port untouched; so a
//! node whose only network card is a DPDK port keeps its other traffic, behind a kernel interface. The kernel owns the addresses then:
//! it answers ARP, neighbour discovery and echo, and the underlay only listens to the answers that it asked for. The interface is
//! given the underlay's hardware address.
//!
//! # Limits
//! * No fragments, no IPv6 extension headers, no 802.1Q tags outside. One hardware address, one next hop for each tunnel.
//! * Path MTU: routers' errors are followed for ten minutes where the underlay hears them; an AF_XDP port's go to the kernel.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::port::{PortFault, PortIndex, PortParts, Rx};
use crate::worker::command::Events;

#[cfg(not(loom))]
pub mod kernel;
pub mod neighbours;
pub mod outer;
pub mod receive;
pub mod send;
pub mod station;
pub mod template;

/// Makes an underlay of a port's parts. What it is to hear itself goes to `events`.
pub fn wrap(port: PortIndex, parts: PortParts, events: &Events) -> PortParts {
    let fault = Arc::new(Fault::default());
    let receiver = |below: Box<dyn Rx>| -> Box<dyn Rx> {
        Box::new(receive::L2Rx::new(port, below, Arc::clone(&fault), events.clone()))
    };
    PortParts {
        rx: parts.rx.into_iter().map(receiver).collect(),
        tx: Some(Box::new(send::PlainTx::new(port))),
        underlay: parts.tx.map(|below| Box::new(send::L2Tx::new(port, below, fault.clone())) as _),
    }
}

/// Why the port can't send any more: found by its sending half, told by its receiving half, as a tunnel is not to blame.
#[derive(Default)]
pub struct Fault {
    is_there: AtomicBool,
    what: Mutex<Option<PortFault>>,
}

impl Fault {
    /// Notes a fault, if there is one. Not for the packet path: called when a frame was refused.
    #[cold]
    pub fn note(&self, fault: Option<PortFault>) {
        if let Some(fault) = fault {
            *self.what.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault);
            self.is_there.store(true, Ordering::Release);
        }
    }

    /// The fault, once.
    #[inline]
    pub fn take(&self) -> Option<PortFault> {
        if !self.is_there.load(Ordering::Relaxed) || !self.is_there.swap(false, Ordering::Acquire) {
            return None;
        }
        self.what.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
