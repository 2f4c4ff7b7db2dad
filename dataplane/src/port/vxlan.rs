//! VXLAN tunnels: a port whose frames leave by an underlay, inside UDP datagrams to the tunnel's peer (RFC 7348).
//!
//! A tunnel has no receiver of its own. Its underlay receives for all of its tunnels and names the tunnel's port as the
//! frames' ingress, see [`decap`](crate::underlay::decap).

use super::{PortParts, Tx, TxContext, Underlays};
use crate::DropReason;
use crate::burst::Frames;
use crate::tables::Tunnel;

/// The sending half of a tunnel.
pub struct VxlanTx {
    tunnel: Tunnel,
}

impl VxlanTx {
    /// The tunnel's; frames go by the underlay that it names, which must belong to the same worker.
    pub const fn new(tunnel: Tunnel) -> Self {
        Self { tunnel }
    }

    /// Makes a port of it.
    pub fn into_parts(self) -> PortParts {
        PortParts { rx: Vec::new(), tx: Some(Box::new(self)), underlay: None }
    }
}

impl Tx for VxlanTx {
    fn send(&mut self, frames: Frames<'_, '_>, context: &mut TxContext<'_>) {
        let TxContext { port, counters, tables, underlays, refused } = context;
        let Some(underlay) = underlays.get(self.tunnel.underlay) else {
            context.refuse_from(0, frames.len(), DropReason::EgressDown);
            return;
        };
        // The underlay counts where this tunnel counts, but finds no underlays: it is the last port on the way out.
        let mut none = Underlays::default();
        let mut context = TxContext { port: *port, counters, tables, underlays: &mut none, refused };
        underlay.send(&self.tunnel, frames, &mut context);
    }
}
