//! What is said about an interface of the kernel whose frames the engine takes past the kernel's stack.

use serde::Deserialize;

use super::check_workers;
use crate::model::value::{IfName, Invalid, Netns, QueueIndex, Workers, XdpFrameSize, XdpRingSize};

/// How frames pass between an interface's driver and the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum CopyMode {
    /// Without copies if the driver can, else with.
    #[default]
    Auto,
    /// Without copies, or not at all.
    ZeroCopy,
    /// With copies.
    Copy,
    /// With copies, and past the driver's own XDP.
    Generic,
}

/// An existing interface of the kernel, by AF_XDP sockets.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "RawAfXdp")]
pub struct AfXdpSpec {
    /// Its name.
    pub ifname: IfName,
    /// Where it is; the engine's own namespace if `None`.
    pub netns: Option<Netns>,
    /// Which of its receive queues; all if empty.
    pub queues: Vec<QueueIndex>,
    /// Workers that share these.
    pub workers: Workers,
    /// Bytes of each buffer.
    pub frame_size: XdpFrameSize,
    /// Entries of the rings of each queue.
    pub ring_size: XdpRingSize,
    /// With or without copies.
    pub mode: CopyMode,
    /// The worker drives the device's interrupts where the system allows it.
    pub busy_poll: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAfXdp {
    ifname: IfName,
    netns: Option<Netns>,
    #[serde(default)]
    queues: Vec<QueueIndex>,
    #[serde(default)]
    workers: Workers,
    #[serde(default)]
    frame_size: XdpFrameSize,
    #[serde(default)]
    ring_size: XdpRingSize,
    #[serde(default)]
    mode: CopyMode,
    #[serde(default)]
    busy_poll: bool,
}

impl TryFrom<RawAfXdp> for AfXdpSpec {
    type Error = Invalid;
    fn try_from(raw: RawAfXdp) -> Result<Self, Invalid> {
        let RawAfXdp { ifname, netns, queues, workers, frame_size, ring_size, mode, busy_poll } = raw;
        Self { ifname, netns, queues, workers, frame_size, ring_size, mode, busy_poll }.checked()
    }
}

impl AfXdpSpec {
    /// Most queues of one port.
    pub const MAX_QUEUES: usize = 64;

    /// The port, if its parts fit together.
    ///
    /// # Errors
    /// Which parts don't.
    pub fn checked(self) -> Result<Self, Invalid> {
        let count = self.queues.len();
        if count > Self::MAX_QUEUES {
            return Err(Invalid(format!("queues: at most 64 are possible, not {count}")));
        }
        for (i, queue) in self.queues.iter().enumerate() {
            if self.queues[..i].contains(queue) {
                return Err(Invalid(format!("queues: {} is there twice", queue.get())));
            }
        }
        // Of all queues it is not known here how many they are.
        if count > 0 {
            check_workers(self.workers, count)?;
        }
        Ok(self)
    }
}
