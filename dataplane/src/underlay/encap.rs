//! The sending half of an underlay: frames are copied behind their VXLAN headers into groups, which a carrier sends.

use std::time::Instant;

use super::group::{Carrier, Destination, GROUP_BYTES, Groups};
use super::spread::Spread;
use crate::DropReason;
use crate::burst::{Frame, Frames, Offload};
use crate::offload::segment::Segmenter;
use crate::port::{TxContext, UnderlayTx};
use crate::stats::Counters;
use crate::tables::Tunnel;
use crate::wire::{flow, vxlan};

/// Frames ahead whose first bytes are asked for while one is copied.
const PREFETCH: usize = 8;

/// Sends the frames of an underlay's tunnels by a [`Carrier`].
pub struct Encap<C> {
    groups: Groups<C>,
    spread: Spread,
}

impl<C: Carrier> Encap<C> {
    /// Sends by `carrier`, which has `sockets` source ports; a tunnel's flows use at most `spread` of them. Frames wait in at
    /// most `buffers` groups of 64 KiB.
    pub fn new(carrier: C, sockets: u16, spread: u16, buffers: usize) -> Self {
        Self { groups: Groups::new(carrier, buffers), spread: Spread::new(sockets, spread) }
    }
}

impl<C: Carrier + Send> UnderlayTx for Encap<C> {
    fn send(&mut self, tunnel: &Tunnel, frames: Frames<'_, '_>, context: &mut TxContext<'_>) {
        let header = vxlan::header(tunnel.vni);
        let ports = self.spread.of(tunnel);
        let mut to = Destination { port: context.port, socket: 0, remote: tunnel.remote };
        let longest = tunnel.max_frame.min(GROUP_BYTES - vxlan::HEADER_LEN);
        let slice = frames.as_slice();
        for (i, frame) in slice.iter().enumerate() {
            if let Some(later) = slice.get(i + PREFETCH) {
                later.first().prefetch();
            }
            let flow = flow_of(frame);
            to.socket = ports.of(flow);
            let offload = if frame.is_plain() { None } else { frames.offload(frame) };
            if let Some(offload) = offload {
                if let Err(reason) =
                    self.send_owing(&to, flow, header, longest, &frames, frame, &offload, context)
                {
                    context.refuse(i, reason);
                }
                continue;
            }
            if frame.len() > longest {
                context.refuse(i, DropReason::TooBig);
                continue;
            }
            let len = vxlan::HEADER_LEN + frame.len();
            self.groups
                .append(&to, flow, len, context.counters, |place| write(place, header, &frames, frame));
        }
    }

    fn flush(&mut self, more: bool, counters: &Counters) -> bool {
        if self.spread.turn_is_over() {
            // Flows change their source ports now: what waits at the old ones goes first.
            self.groups.flush(None, counters);
        }
        self.groups.flush(more.then(Instant::now), counters)
    }
}

impl<C: Carrier> Encap<C> {
    /// Sends the plain frames that a frame with an [`Offload`] stands for, each cut straight into its place in a group. They
    /// count as they leave: one each.
    #[allow(clippy::too_many_arguments)]
    fn send_owing(
        &mut self,
        to: &Destination,
        flow: u32,
        header: [u8; vxlan::HEADER_LEN],
        longest: usize,
        frames: &Frames<'_, '_>,
        frame: &Frame<'_>,
        offload: &Offload,
        context: &TxContext<'_>,
    ) -> Result<(), DropReason> {
        let mut segmenter =
            Segmenter::new(frame.first(), frames.rest(frame), offload).map_err(|_| DropReason::BadOffload)?;
        if segmenter.segment_len() > longest {
            return Err(DropReason::TooBig);
        }
        while let Some(len) = segmenter.next_len() {
            self.groups.append(to, flow, vxlan::HEADER_LEN + len, context.counters, |place| {
                let (front, rest) = place.split_at_mut(vxlan::HEADER_LEN);
                front.copy_from_slice(&header);
                segmenter.write_next(rest);
            });
        }
        Ok(())
    }
}

/// The flow's hash, from a private copy: the peer may change its bytes while they are being looked at.
#[inline]
fn flow_of(frame: &Frame<'_>) -> u32 {
    let mut head = [0; flow::HEAD_LEN];
    let len = frame.first().copy_to(&mut head);
    flow::hash(&head[..len])
}

/// The one copy: header and frame, to where the kernel reads them.
#[inline]
fn write(place: &mut [u8], header: [u8; vxlan::HEADER_LEN], frames: &Frames<'_, '_>, frame: &Frame<'_>) {
    let (front, mut rest) = place.split_at_mut(vxlan::HEADER_LEN);
    front.copy_from_slice(&header);
    if !frame.is_chained() {
        frame.first().copy_to(rest);
        return;
    }
    for view in frames.views(frame) {
        let written = view.copy_to(rest);
        rest = rest.split_at_mut(written).1;
    }
}
