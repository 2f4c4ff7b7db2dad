//! What an underlay leaves to the kernel whose interface it is on: addresses, routes, neighbours, and every datagram but its own.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

use super::super::memif_sockets::Source;
use super::super::open_error::OpenError;
use super::super::watched::Watched;
use crate::model::PortName;
use crate::underlay::l2::kernel::KernelTables;

/// Says which datagrams come to the port (`true`), and which stay the kernel's.
pub(in crate::agent) type Steer = Box<dyn Fn(SocketAddr, bool) -> Result<(), String> + Send>;

/// A port on an interface that goes on being the kernel's.
pub(in crate::agent) struct KernelSide<'b> {
    /// The interface's number.
    pub index: u32,
    /// Where it is.
    pub netns: Option<BorrowedFd<'b>>,
    /// What of it is the port's.
    pub steer: Steer,
}

/// What an underlay leaves to the kernel.
pub(super) struct Kernel {
    pub tables: KernelTables,
    steer: Steer,
    steered: BTreeSet<SocketAddr>,
}

impl Kernel {
    pub fn new(side: KernelSide<'_>, port: &PortName, watched: &mut Watched) -> Result<Self, OpenError> {
        let tables = KernelTables::new(side.netns, side.index).map_err(OpenError::system)?;
        watched.add(tables.as_fd(), Source::Kernel(port.clone()))?;
        Ok(Self { tables, steer: side.steer, steered: BTreeSet::new() })
    }

    /// Has the kernel send these datagrams to the port, and no others.
    pub fn steer(&mut self, endpoints: &[SocketAddr]) {
        let wanted: BTreeSet<SocketAddr> = endpoints.iter().copied().collect();
        let gone = self.steered.difference(&wanted).map(|to| (*to, false));
        let new = wanted.difference(&self.steered).map(|to| (*to, true));
        for (to, ours) in new.chain(gone) {
            if let Err(error) = (self.steer)(to, ours) {
                tracing::warn!("{error}");
            }
        }
        self.steered = wanted;
    }
}
