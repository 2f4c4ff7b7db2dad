//! The sending half of an underlay: frames are copied behind their VXLAN headers into groups, which a carrier sends.

use std::time::Instant;

use super::group::{Carrier, Destination, GROUP_BYTES, Groups};
use super::spread::Spread;
use crate::DropReason;
use crate::burst::{Frame, Frames, Offload};
use crate::offload::Link;
use crate::offload::segment::Segmenter;
use crate::port::{TxContext, UnderlayTx};
use crate::stats::Counters;
use crate::tables::Tunnel;
use crate::wire::{flow, inner, vxlan};

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

/// What stands before a frame in its datagram. Chosen once for a burst, so that neither kind pays for the other.
trait Front {
    /// The bytes.
    type Bytes: AsRef<[u8]> + Copy;
    /// How many they are: the VXLAN header, and perhaps more.
    const LEN: usize;

    /// For a frame in a tunnel with this header.
    fn of(header: [u8; vxlan::HEADER_LEN], frame: &Frame<'_>) -> Result<Self::Bytes, DropReason>;

    /// The flow of a frame that begins so.
    fn flow(head: &[u8]) -> u32;
}

/// Before Ethernet frames.
struct BeforeFrames;

impl Front for BeforeFrames {
    type Bytes = [u8; vxlan::HEADER_LEN];
    const LEN: usize = vxlan::HEADER_LEN;

    #[inline]
    fn of(header: [u8; vxlan::HEADER_LEN], _: &Frame<'_>) -> Result<Self::Bytes, DropReason> {
        Ok(header)
    }

    #[inline]
    fn flow(head: &[u8]) -> u32 {
        flow::hash(head)
    }
}

/// Before IP packets.
struct BeforePackets;

impl Front for BeforePackets {
    type Bytes = [u8; vxlan::HEADER_LEN + inner::HEADER_LEN];
    const LEN: usize = vxlan::HEADER_LEN + inner::HEADER_LEN;

    #[inline]
    fn of(header: [u8; vxlan::HEADER_LEN], frame: &Frame<'_>) -> Result<Self::Bytes, DropReason> {
        let first = frame.first().head::<1>();
        let ethernet = first.and_then(|[first]| inner::header(first)).ok_or(DropReason::NotIp)?;
        let mut bytes = [0; Self::LEN];
        bytes[..vxlan::HEADER_LEN].copy_from_slice(&header);
        bytes[vxlan::HEADER_LEN..].copy_from_slice(&ethernet);
        Ok(bytes)
    }

    #[inline]
    fn flow(head: &[u8]) -> u32 {
        flow::hash_packet(head)
    }
}

impl<C: Carrier + Send> UnderlayTx for Encap<C> {
    fn send(&mut self, tunnel: &Tunnel, frames: Frames<'_, '_>, context: &mut TxContext<'_>) {
        match tunnel.link {
            Link::Ethernet => self.send_behind::<BeforeFrames>(tunnel, frames, context),
            Link::Ip => self.send_behind::<BeforePackets>(tunnel, frames, context),
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
    #[inline]
    fn send_behind<F: Front>(
        &mut self,
        tunnel: &Tunnel,
        frames: Frames<'_, '_>,
        context: &mut TxContext<'_>,
    ) {
        let header = vxlan::header(tunnel.vni);
        let ports = self.spread.of(tunnel);
        let mut to = Destination { port: context.port, socket: 0, remote: tunnel.remote };
        let longest = tunnel.max_frame.min(GROUP_BYTES - vxlan::HEADER_LEN);
        let longest = longest.saturating_sub(F::LEN - vxlan::HEADER_LEN);
        let slice = frames.as_slice();
        for (i, frame) in slice.iter().enumerate() {
            if let Some(later) = slice.get(i + PREFETCH) {
                later.first().prefetch();
            }
            let front = match F::of(header, frame) {
                Ok(front) => front,
                Err(reason) => {
                    context.refuse(i, reason);
                    continue;
                }
            };
            let flow = flow_of::<F>(frame);
            to.socket = ports.of(flow);
            let offload = if frame.is_plain() { None } else { frames.offload(frame) };
            if let Some(offload) = offload {
                let sent = self.send_owing::<F>(&to, flow, front, longest, &frames, frame, &offload, context);
                if let Err(reason) = sent {
                    context.refuse(i, reason);
                }
                continue;
            }
            if frame.len() > longest {
                context.refuse(i, DropReason::TooBig);
                continue;
            }
            self.groups.append(&to, flow, F::LEN + frame.len(), context.counters, |place| {
                write::<F>(place, front, &frames, frame);
            });
        }
    }

    /// Sends the plain frames that a frame with an [`Offload`] stands for, each cut straight into its place in a group. They
    /// count as they leave: one each.
    #[allow(clippy::too_many_arguments)]
    fn send_owing<F: Front>(
        &mut self,
        to: &Destination,
        flow: u32,
        front: F::Bytes,
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
            self.groups.append(to, flow, F::LEN + len, context.counters, |place| {
                let (before, rest) = place.split_at_mut(F::LEN);
                before.copy_from_slice(front.as_ref());
                segmenter.write_next(rest);
            });
        }
        Ok(())
    }
}

/// The flow's hash, from a private copy: the peer may change its bytes while they are being looked at.
#[inline]
fn flow_of<F: Front>(frame: &Frame<'_>) -> u32 {
    let mut head = [0; flow::HEAD_LEN];
    let len = frame.first().copy_to(&mut head);
    F::flow(&head[..len])
}

/// The one copy: what stands before the frame, and the frame, to where the kernel reads them.
#[inline]
fn write<F: Front>(place: &mut [u8], front: F::Bytes, frames: &Frames<'_, '_>, frame: &Frame<'_>) {
    let (before, mut rest) = place.split_at_mut(F::LEN);
    before.copy_from_slice(front.as_ref());
    if !frame.is_chained() {
        frame.first().copy_to(rest);
        return;
    }
    for view in frames.views(frame) {
        let written = view.copy_to(rest);
        rest = rest.split_at_mut(written).1;
    }
}
