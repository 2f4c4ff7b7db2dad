//! What the agent asks of a worker and what a worker tells the agent. The worker looks with one memory read per turn.

use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender, unbounded};
use crossbeam::queue::ArrayQueue;

use super::capture::Tap;
use crate::doorbell::Doorbell;
use crate::port::{PortFault, PortIndex, PortParts};
use crate::route::domain::Mac;
use crate::tables::WorkerId;

/// Commands that may wait for a worker. The agent waits for answers, so there are hardly ever more than a few.
const WAITING: usize = 256;

/// One stay of a port's halves at a worker. A port whose peer comes and goes has many, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Attachment(pub u64);

/// Something for a worker to do between two turns.
pub enum Command {
    /// Own these halves of a port from now on.
    Attach {
        /// Which port.
        port: PortIndex,
        /// Named in what is reported about it.
        attachment: Attachment,
        /// Its halves.
        parts: PortParts,
    },
    /// Give the halves of a port back.
    Detach {
        /// Which port.
        port: PortIndex,
        /// Where to. They are unmapped and closed on the other side, not on the packet path.
        reply: Sender<PortParts>,
    },
    /// Copy the port's frames to this tap, or to none.
    Capture {
        /// Which port.
        port: PortIndex,
        /// Where to.
        tap: Option<Tap>,
    },
    /// Send this frame by this port.
    Send {
        /// Which port.
        port: PortIndex,
        /// The whole frame.
        frame: Vec<u8>,
    },
    /// End the loop.
    Stop,
}

/// Something that happened to a worker.
pub enum Event {
    /// A port could not go on and was detached, by the worker that noticed.
    Faulted {
        /// Which port.
        port: PortIndex,
        /// Which of its attachments: it may have been detached and attached anew before this is read.
        attachment: Attachment,
        /// Why.
        fault: PortFault,
        /// Its halves, to be dropped off the packet path.
        parts: PortParts,
    },
    /// Somebody said which hardware address is theirs, and the address belongs to the port.
    Learnt {
        /// By which port.
        port: PortIndex,
        /// The address.
        address: std::net::IpAddr,
        /// Where it is.
        mac: Mac,
    },
    /// A device's link came or went. Whoever watches it says so.
    Link {
        /// Whose.
        port: PortIndex,
    },
    /// Somebody said something to the underlay on this port: ARP, neighbour discovery or ICMP.
    Heard {
        /// By which port.
        port: PortIndex,
        /// The whole frame.
        frame: Vec<u8>,
    },
    /// A worker's thread ended by a panic: a bug, and its ports stand still.
    Died {
        /// Which worker.
        worker: WorkerId,
        /// What the panic said.
        message: String,
    },
}

/// The worker's end of its command queue.
#[derive(Clone)]
pub struct Commands {
    queue: Arc<ArrayQueue<Command>>,
    bell: Doorbell,
}

impl Commands {
    /// An empty queue.
    ///
    /// # Errors
    /// The kernel's, if it has no descriptor left for the doorbell.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { queue: Arc::new(ArrayQueue::new(WAITING)), bell: Doorbell::new()? })
    }

    /// The oldest command that waits.
    #[inline]
    pub fn take(&self) -> Option<Command> {
        if self.queue.is_empty() {
            return None;
        }
        self.queue.pop()
    }

    /// Queues a command and wakes the worker.
    ///
    /// # Errors
    /// The command itself, if [`WAITING`](self) commands are waiting already.
    pub fn give(&self, command: Command) -> Result<(), Command> {
        self.queue.push(command)?;
        self.bell.ring();
        Ok(())
    }

    /// The doorbell that wakes the worker.
    pub fn bell(&self) -> Doorbell {
        self.bell.clone()
    }
}

/// Where workers report events; clones report to the same agent.
#[derive(Clone)]
pub struct Events {
    sender: Sender<Event>,
    bell: Doorbell,
}

impl Events {
    /// A channel of events, and the doorbell that rings for each.
    ///
    /// # Errors
    /// The kernel's, if it has no descriptor left for the doorbell.
    pub fn new() -> std::io::Result<(Self, Receiver<Event>)> {
        let (sender, receiver) = unbounded();
        Ok((Self { sender, bell: Doorbell::new()? }, receiver))
    }

    /// Reports an event. Rare: this allocates.
    pub fn send(&self, event: Event) {
        // Without an agent nobody is left to be told.
        let _ = self.sender.send(event);
        self.bell.ring_always();
    }

    /// Readable after each event.
    pub fn bell(&self) -> &Doorbell {
        &self.bell
    }
}
