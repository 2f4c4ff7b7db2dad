//! The sending half: each frame of a tunnel goes to the port's own sender as a chained frame, whose first view is the outer header
//! and whose others are the inner frame where it lies. The port makes the one copy.

use std::sync::Arc;

use arrayvec::ArrayVec;
use memif::Lent;

use super::Fault;
use super::template::{LEN_V6, Template};
use crate::DropReason;
use crate::burst::{BURST, Burst, Frame, Frames};
use crate::offload::segment::Segmenter;
use crate::offload::{Link, MAX_HEADER, MAX_VIEWS};
use crate::port::{PortIndex, Refused, Tx, TxContext, UnderlayTx, Underlays};
use crate::stats::Counters;
use crate::tables::{Tables, Tunnel};
use crate::wire::{flow, inner};

/// Frames ahead whose first bytes are asked for while one is worked on.
const PREFETCH: usize = 8;
/// Most views of an inner frame: what ports take, less the front and one for what they put before it themselves.
const MOST_VIEWS: usize = MAX_VIEWS - 2;
/// What stands before a piece of an inner frame: outer headers, the fixed Ethernet header of IP packets, and the inner headers of a
/// segment.
const FRONT: usize = LEN_V6 + inner::HEADER_LEN + MAX_HEADER;

/// One front, on cache lines of its own.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Front([u8; FRONT]);

/// A tunnel's headers as the tables had them at one publication.
struct Known {
    publication: u64,
    tunnel: PortIndex,
    ready: Option<(Template, usize)>,
}

/// See the module.
pub struct L2Tx {
    port: PortIndex,
    below: Box<dyn Tx>,
    fault: Arc<Fault>,
    fronts: Box<[Front]>,
    /// By tunnel, as far as they were used.
    known: Vec<Option<Known>>,
    refused: Refused,
    /// For what the port below holds back: it looks at none of them.
    nothing: Tables,
    none: Underlays,
}

impl L2Tx {
    /// Around `below`, the sender of `port`.
    pub fn new(port: PortIndex, below: Box<dyn Tx>, fault: Arc<Fault>) -> Self {
        Self {
            port,
            below,
            fault,
            fronts: vec![Front([0; FRONT]); BURST].into_boxed_slice(),
            known: Vec::new(),
            refused: Refused::new(),
            nothing: Tables::default(),
            none: Underlays::default(),
        }
    }

    /// The tunnel's headers and its longest frame, if it is known where it goes.
    #[inline]
    fn template(&mut self, tunnel: &Tunnel, tables: &Tables) -> Option<(Template, usize)> {
        let slot = tunnel.port.slot();
        if let Some(Some(known)) = self.known.get(slot)
            && known.publication == tables.publication
            && known.tunnel == tunnel.port
        {
            return known.ready;
        }
        self.template_anew(tunnel, tables)
    }

    #[cold]
    fn template_anew(&mut self, tunnel: &Tunnel, tables: &Tables) -> Option<(Template, usize)> {
        let hop = tables.hop(tunnel.port);
        let ready = hop.map(|hop| (Template::new(tunnel, hop), hop.max_frame.min(tunnel.max_frame)));
        if self.known.len() <= tunnel.port.slot() {
            self.known.resize_with(tunnel.port.slot() + 1, || None);
        }
        self.known[tunnel.port.slot()] =
            Some(Known { publication: tables.publication, tunnel: tunnel.port, ready });
        ready
    }
}

impl UnderlayTx for L2Tx {
    fn send(&mut self, tunnel: &Tunnel, frames: Frames<'_, '_>, context: &mut TxContext<'_>) {
        let Some((template, longest)) = self.template(tunnel, context.tables) else {
            context.refuse_from(0, frames.len(), DropReason::NoNeighbour);
            return;
        };
        let Self { port, below, fault, fronts, refused, none, .. } = self;
        let mut queue = Queue { template: &template, longest, link: tunnel.link, frames, next: 0, cut: None };
        while !queue.is_empty() {
            let mut burst = Burst::new(*port);
            let mut origins: ArrayVec<Origin, BURST> = ArrayVec::new();
            for front in fronts.iter_mut() {
                match queue.put(front, &mut burst) {
                    Put::Frame(origin) => origins.push(origin),
                    Put::Refused(i, reason) => context.refuse(i, reason),
                    Put::Full | Put::Done => break,
                }
            }
            refused.clear();
            for (_, outer) in burst.runs() {
                let counters = context.counters;
                let mut below_context =
                    TxContext { port: *port, counters, tables: context.tables, underlays: none, refused };
                below.send(outer, &mut below_context);
            }
            if !refused.is_empty() {
                fault.note(below.fault());
            }
            account(&origins, refused, context);
        }
    }

    fn send_plain(&mut self, frames: Frames<'_, '_>, context: &mut TxContext<'_>) {
        let before = context.refused.len();
        self.below.send(frames, context);
        if context.refused.len() > before {
            self.fault.note(self.below.fault());
        }
    }

    fn flush(&mut self, more: bool, counters: &Counters) -> bool {
        let Self { port, below, nothing, none, refused, .. } = self;
        let mut context = TxContext { port: *port, counters, tables: nothing, underlays: none, refused };
        below.flush(more, &mut context)
    }
}

/// Which inner frame a datagram carries all or a part of, and its bytes.
#[derive(Clone, Copy)]
struct Origin {
    frame: usize,
    bytes: usize,
}

/// Counts at the tunnel's port, in inner frames: what the port below took, and what it refused. (It counts datagrams itself.)
#[inline]
fn account(origins: &[Origin], refused: &Refused, context: &mut TxContext<'_>) {
    let bytes: usize = origins.iter().map(|origin| origin.bytes).sum();
    let (mut packets, mut bytes) = (origins.len() as u64, bytes as u64);
    for (i, reason) in refused {
        let Some(origin) = origins.get(usize::from(*i)) else { continue };
        (packets, bytes) = (packets - 1, bytes - origin.bytes as u64);
        context.refuse(origin.frame, *reason);
    }
    context.sent(packets, bytes);
}

/// The frames of one call, on their way into bursts: one datagram each, but for those that are to be cut.
struct Queue<'q, 'b, 'a> {
    template: &'q Template,
    longest: usize,
    link: Link,
    frames: Frames<'b, 'a>,
    next: usize,
    /// The frame before `next` has segments left.
    cut: Option<(Segmenter<'b, 'a>, u32)>,
}

enum Put {
    /// A datagram is in the burst.
    Frame(Origin),
    /// This frame will not be sent.
    Refused(usize, DropReason),
    /// The burst has no room for the next.
    Full,
    /// There is no next.
    Done,
}

impl<'a> Queue<'_, '_, 'a> {
    fn is_empty(&self) -> bool {
        self.next >= self.frames.len() && self.cut.is_none()
    }

    /// Puts the next datagram into `burst`.
    #[inline]
    fn put<'x>(&mut self, front: &'x mut Front, burst: &mut Burst<'x>) -> Put
    where
        'a: 'x,
    {
        if self.cut.is_some() {
            return self.put_segment(front, burst);
        }
        let (i, slice) = (self.next, self.frames.as_slice());
        let Some(frame) = slice.get(i) else { return Put::Done };
        if let Some(later) = slice.get(i + PREFETCH) {
            later.first().prefetch();
        }
        if frame.is_plain() {
            return self.put_whole(front, frame, burst);
        }
        if let Some(offload) = self.frames.offload(frame) {
            self.next += 1;
            let flow = self.flow(frame);
            let segmenter = Segmenter::new(frame.first(), self.frames.rest(frame), &offload);
            let Ok(segmenter) = segmenter else { return Put::Refused(i, DropReason::BadOffload) };
            if segmenter.segment_len() + self.more() > self.longest {
                return Put::Refused(i, DropReason::TooBig);
            }
            self.cut = Some((segmenter, flow));
            return self.put_segment(front, burst);
        }
        self.put_whole(front, frame, burst)
    }

    /// A frame that owes nothing.
    #[inline]
    fn put_whole<'x>(&mut self, front: &'x mut Front, frame: &Frame<'a>, burst: &mut Burst<'x>) -> Put
    where
        'a: 'x,
    {
        let i = self.next;
        self.next += 1;
        let len = frame.len() + self.more();
        if len > self.longest {
            return Put::Refused(i, DropReason::TooBig);
        }
        let flow = self.flow(frame);
        let owed = self.template.write(&mut front.0, len, flow);
        let Some(end) = self.finish(front, frame.first().head::<1>()) else {
            return Put::Refused(i, DropReason::NotIp);
        };
        let front = Lent::from(&front.0[..end]);
        let pushed = if frame.is_chained() {
            let mut views: ArrayVec<Lent<'x>, MAX_VIEWS> = ArrayVec::new();
            views.push(front);
            for view in self.frames.views(frame) {
                if views.len() > MOST_VIEWS || views.try_push(view).is_err() {
                    return Put::Refused(i, DropReason::TooBig);
                }
            }
            burst.push_with(&views, owed)
        } else {
            burst.push_with(&[front, frame.first()], owed)
        };
        if !pushed {
            self.next = i;
            return Put::Full;
        }
        Put::Frame(Origin { frame: i, bytes: frame.len() })
    }

    /// The next segment of the frame that is being cut.
    #[cold]
    fn put_segment<'x>(&mut self, front: &'x mut Front, burst: &mut Burst<'x>) -> Put
    where
        'a: 'x,
    {
        let (i, more) = (self.next - 1, self.more());
        let Some((segmenter, flow)) = &mut self.cut else { return Put::Done };
        let flow = *flow;
        // A segment that does not fit would be lost, and its sum is made only once.
        if burst.chain_room() < MAX_VIEWS {
            return Put::Full;
        }
        let Some((header, payload)) = segmenter.next_views() else {
            self.cut = None;
            return self.put(front, burst);
        };
        let start = self.template.len() + more;
        let mut views: ArrayVec<Lent<'x>, MAX_VIEWS> = ArrayVec::new();
        let (header_len, mut len) = (header.len(), header.len());
        front.0[start..start + header_len].copy_from_slice(header);
        let first = header.first().map(|first| [*first]);
        let mut scattered = false;
        // The front goes before them all, when it is written.
        for view in payload {
            len += view.len();
            scattered |= views.len() >= MOST_VIEWS || views.try_push(view).is_err();
        }
        if scattered {
            self.cut = None;
            return Put::Refused(i, DropReason::BadOffload);
        }
        if segmenter.next_len().is_none() {
            self.cut = None;
        }
        let owed = self.template.write(&mut front.0, len + more, flow);
        let Some(end) = self.finish(front, first) else {
            self.cut = None;
            return Put::Refused(i, DropReason::NotIp);
        };
        views.insert(0, Lent::from(&front.0[..end + header_len]));
        burst.push_with(&views, owed);
        Put::Frame(Origin { frame: i, bytes: len })
    }

    /// Bytes of the Ethernet header that IP packets get in the tunnel.
    #[inline]
    const fn more(&self) -> usize {
        match self.link {
            Link::Ethernet => 0,
            Link::Ip => inner::HEADER_LEN,
        }
    }

    /// Puts the Ethernet header of an IP packet, whose first byte is given, behind the outer ones. Returns where the front ends.
    #[inline]
    fn finish(&self, front: &mut Front, first: Option<[u8; 1]>) -> Option<usize> {
        let end = self.template.len();
        if self.link == Link::Ethernet {
            return Some(end);
        }
        let header = inner::header(first?[0])?;
        front.0[end..end + inner::HEADER_LEN].copy_from_slice(&header);
        Some(end + inner::HEADER_LEN)
    }

    /// The flow's hash, from a private copy: the peer may change its bytes while they are being looked at.
    #[inline]
    fn flow(&self, frame: &Frame<'_>) -> u32 {
        let mut head = [0; flow::HEAD_LEN];
        let len = frame.first().copy_to(&mut head);
        match self.link {
            Link::Ethernet => flow::hash(&head[..len]),
            Link::Ip => flow::hash_packet(&head[..len]),
        }
    }
}

/// The port's sending half as others see it: what comes from the exception port, and what the underlay says itself.
pub struct PlainTx {
    port: PortIndex,
}

impl PlainTx {
    /// Of the underlay on `port`.
    pub const fn new(port: PortIndex) -> Self {
        Self { port }
    }
}

impl Tx for PlainTx {
    fn send(&mut self, frames: Frames<'_, '_>, context: &mut TxContext<'_>) {
        let TxContext { port, counters, tables, underlays, refused } = context;
        let Some(underlay) = underlays.get(self.port) else {
            context.refuse_from(0, frames.len(), DropReason::EgressDown);
            return;
        };
        let mut none = Underlays::default();
        let mut context = TxContext { port: *port, counters, tables, underlays: &mut none, refused };
        underlay.send_plain(frames, &mut context);
    }
}

#[cfg(test)]
#[path = "send_tests.rs"]
mod tests;
