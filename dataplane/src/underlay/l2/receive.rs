//! The receiving half: wraps a receiver of the port, and lends the inner frames of what is for tunnels as coming from the tunnels'
//! ports. What is somebody else's is lent as the port's own, for the exception port; without one it is counted.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use arrayvec::ArrayVec;
use memif::Lent;

use super::Fault;
use super::outer::{self, Datagram, HEAD, Verdict};
use crate::DropReason;
use crate::burst::{BURST, Burst, Frame, Frames, Gso, Offload};
use crate::offload::checksum::Sum;
use crate::offload::{Link, MAX_VIEWS};
use crate::port::{PortFault, PortIndex, Rx, RxContext};
use crate::route::limit::Limits;
use crate::tables::{Forward, Line};
use crate::underlay::decap::Decap;
use crate::wire::{inner, local};
use crate::worker::command::{Event, Events};

/// Longest message to the underlay itself that is looked at: what one frame of the usual MTU holds.
const LONGEST_CONTROL: usize = 1518;

/// See the module.
pub struct L2Rx {
    port: PortIndex,
    below: Box<dyn Rx>,
    decap: Decap,
    fault: Arc<Fault>,
    events: Events,
    limits: Limits,
    /// Which of the frames that the receiver below lent each frame of the burst is.
    origins: ArrayVec<u8, BURST>,
}

impl L2Rx {
    /// Around `below`, a receiver of `port`. What the underlay itself is to hear goes to `events`.
    pub fn new(port: PortIndex, below: Box<dyn Rx>, fault: Arc<Fault>, events: Events) -> Self {
        Self {
            port,
            below,
            decap: Decap::anywhere(port),
            fault,
            events,
            limits: Limits::default(),
            origins: ArrayVec::new(),
        }
    }

    /// Which of the frames below those of the burst with these bits are.
    #[cold]
    fn below_taken(&self, taken: u64) -> u64 {
        let is_taken = |(i, _): &(usize, &u8)| taken >> i & 1 == 1;
        self.origins.iter().enumerate().filter(is_taken).fold(0, |all, (_, at)| all | 1 << at)
    }
}

impl Rx for L2Rx {
    fn receive<'a>(&'a mut self, burst: &mut Burst<'a>, context: &RxContext<'_>) -> Result<(), PortFault> {
        if let Some(fault) = self.fault.take() {
            return Err(fault);
        }
        let Self { port, below, decap, events, limits, origins, .. } = self;
        origins.clear();
        let mut lent = Burst::new(*port);
        let received = below.receive(&mut lent, context);
        if lent.is_empty() {
            return received;
        }
        let Some(line) = context.tables.line(*port) else {
            // The tables that say what is whose are on their way.
            let frames = lent.len() as u64;
            context.counters.port(*port).dropped(DropReason::NoEgress, frames);
            return received;
        };
        let exception = context.tables.entry(*port).forward != Forward::Nowhere;
        let mut sorter = Sorter { port: *port, line, exception, decap, events, limits, context };
        for (_, frames) in lent.runs() {
            for (i, frame) in frames.as_slice().iter().enumerate() {
                if sorter.sort(&frames, frame, burst) {
                    origins.push(i as u8);
                }
            }
        }
        received
    }

    fn release(&mut self, taken: u64) {
        let taken = if taken == 0 { 0 } else { self.below_taken(taken) };
        self.below.release(taken);
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        self.below.wake_fd()
    }

    fn arm(&mut self) {
        self.below.arm();
    }

    fn disarm(&mut self) {
        self.below.disarm();
    }
}

/// What frames of one burst are sorted with.
struct Sorter<'s, 'c> {
    port: PortIndex,
    line: &'s Line,
    /// Whether somebody takes what is not ours.
    exception: bool,
    decap: &'s mut Decap,
    events: &'s Events,
    limits: &'s mut Limits,
    context: &'s RxContext<'c>,
}

impl Sorter<'_, '_> {
    /// Lends what is to be lent of a frame. False if that is nothing.
    #[inline]
    fn sort<'a>(&mut self, frames: &Frames<'_, 'a>, frame: &Frame<'a>, burst: &mut Burst<'a>) -> bool {
        let mut head = [0; HEAD];
        let head = read_head(frames, frame, &mut head);
        match outer::judge(head, frame.len(), self.line) {
            Ok(Verdict::Datagram(datagram)) => {
                let lent = self.tunnelled(frames, frame, head, &datagram, burst);
                let counters = &self.context.counters;
                counters.port(self.port).received(1, frame.len() as u64);
                lent.inspect_err(|(port, reason)| counters.port(*port).dropped(*reason, 1)).is_ok()
            }
            Ok(Verdict::Control) => {
                let heard = self.hear(frames, frame);
                self.pass(frames, frame, heard, burst)
            }
            Ok(Verdict::Other) => self.pass(frames, frame, DropReason::NotTunnel, burst),
            Ok(Verdict::Elsewhere) => self.pass(frames, frame, DropReason::WrongMac, burst),
            Err(reason) => self.drop(frame, reason),
        }
    }

    fn drop(&self, frame: &Frame<'_>, reason: DropReason) -> bool {
        let counters = self.context.counters.port(self.port);
        counters.received(1, frame.len() as u64);
        counters.dropped(reason, 1);
        false
    }

    /// For the exception port, or counted if there is none. The worker counts what is lent as the port's own.
    fn pass<'a>(
        &self,
        frames: &Frames<'_, 'a>,
        frame: &Frame<'a>,
        reason: DropReason,
        burst: &mut Burst<'a>,
    ) -> bool {
        if !self.exception {
            return self.drop(frame, reason);
        }
        burst.from_port(self.port);
        if frame.is_plain() {
            burst.push(frame.first());
            return true;
        }
        let views: ArrayVec<Lent<'a>, MAX_VIEWS> = frames.views(frame).take(MAX_VIEWS).collect();
        let whole = views.len() > frames.rest(frame).len();
        (whole && burst.push_with(&views, frames.offload(frame)))
            || self.drop(frame, DropReason::BadDescriptor)
    }

    /// Tells the agent, unless the port has said too much lately.
    #[cold]
    fn hear(&mut self, frames: &Frames<'_, '_>, frame: &Frame<'_>) -> DropReason {
        if frame.len() > LONGEST_CONTROL || !self.limits.take(self.port, Instant::now()) {
            return DropReason::ControlLimit;
        }
        self.events.send(Event::Heard { port: self.port, frame: frames.to_vec(frame) });
        DropReason::ForDomain
    }

    /// Lends the inner frame of a datagram. If not, says at which port that counts.
    #[inline]
    fn tunnelled<'a>(
        &mut self,
        frames: &Frames<'_, 'a>,
        frame: &Frame<'a>,
        head: &[u8],
        datagram: &Datagram,
        burst: &mut Burst<'a>,
    ) -> Result<(), (PortIndex, DropReason)> {
        let here = |reason| (self.port, reason);
        let owed = owed(frames.offload(frame).as_ref(), head, datagram).map_err(here)?;
        if datagram.checksum != 0 && !is_sound(frames, frame, datagram, owed.as_ref()) {
            return Err(here(DropReason::BadUdp));
        }
        if self.line.addresses.contains(&datagram.sender) {
            return Err(here(DropReason::OwnAddress));
        }
        let tunnel = self.decap.tunnel(datagram.key, datagram.sender, self.context);
        let (port, link) = tunnel.map_err(here)?;
        let (mut start, mut len) = (datagram.frame(), datagram.frame_len());
        if link == Link::Ip {
            if inner::packet(&head[start..head.len().min(start + len)]).is_none() {
                return Err((port, DropReason::NotIp));
            }
            (start, len) = (start + inner::HEADER_LEN, len - inner::HEADER_LEN);
        }
        let owed = owed.map(|owed| Offload { csum_start: owed.csum_start - start as u16, ..owed });
        lend(frames, frame, (start, len), owed, port, burst).map_err(here)
    }
}

/// The frame's first bytes, read once.
#[inline]
fn read_head<'h>(frames: &Frames<'_, '_>, frame: &Frame<'_>, head: &'h mut [u8; HEAD]) -> &'h [u8] {
    let mut end = frame.first().copy_to(head);
    if frame.is_chained() {
        for view in frames.rest(frame) {
            end += view.copy_to(&mut head[end..]);
        }
    }
    &head[..end]
}

/// What the inner frame owes, told from the outer frame's first byte: what the port says, or what the frame itself looks like, if the
/// port says nothing. See [`local`].
#[inline]
fn owed(said: Option<&Offload>, head: &[u8], datagram: &Datagram) -> Result<Option<Offload>, DropReason> {
    let frame = datagram.frame();
    match said {
        Some(said) if said.gso != Gso::None => Err(DropReason::BadOffload),
        // The outer checksum was left to a device that was never there.
        Some(said) if usize::from(said.csum_start) == datagram.udp => Ok(None),
        Some(said) if usize::from(said.csum_start) >= frame + inner::HEADER_LEN => Ok(Some(*said)),
        Some(said) if said.needs_csum => Err(DropReason::BadOffload),
        _ => {
            let end = head.len().min(frame + datagram.frame_len());
            let owed = local::owed(&head[frame..end], None);
            Ok(owed.map(|owed| Offload { csum_start: owed.csum_start + frame as u16, ..owed }))
        }
    }
}

/// Whether the UDP checksum is right, or left open on this machine.
///
/// A sender that leaves the inner checksum open has made the outer one as if it were not: the part from the inner checksum's start on
/// then sums to the complement of what the inner field holds, whatever it covers (what Linux calls local checksum offload).
#[cold]
fn is_sound(frames: &Frames<'_, '_>, frame: &Frame<'_>, datagram: &Datagram, owed: Option<&Offload>) -> bool {
    if datagram.is_open() {
        return true;
    }
    let mut sum = datagram.pseudo;
    let whole = (datagram.udp, datagram.udp_len);
    add_range(frames, frame, whole, &mut sum);
    if sum.folded() == 0xffff {
        return true;
    }
    let Some(owed) = owed else { return false };
    let start = usize::from(owed.csum_start);
    let mut field = [0; 2];
    let at = start + usize::from(owed.csum_offset);
    if at + 2 > datagram.udp + datagram.udp_len || !read_at(frames, frame, at, &mut field) {
        return false;
    }
    let mut sum = datagram.pseudo;
    add_range(frames, frame, (datagram.udp, start - datagram.udp), &mut sum);
    let mut sum = sum.padded();
    sum.add_word(!u16::from_be_bytes(field));
    sum.folded() == 0xffff
}

fn add_range(frames: &Frames<'_, '_>, frame: &Frame<'_>, (start, len): (usize, usize), sum: &mut Sum) {
    each_view(frames, frame, (start, len), |view| sum.add_view(view));
}

fn read_at(frames: &Frames<'_, '_>, frame: &Frame<'_>, at: usize, to: &mut [u8; 2]) -> bool {
    let mut read = 0;
    each_view(frames, frame, (at, 2), |view| read += view.copy_to(&mut to[read..]));
    read == 2
}

/// The views of `len` bytes of a frame from `start` on.
#[inline]
fn each_view<'a>(
    frames: &Frames<'_, 'a>,
    frame: &Frame<'a>,
    (start, len): (usize, usize),
    mut each: impl FnMut(Lent<'a>),
) {
    let (mut skip, mut left) = (start, len);
    for view in frames.views(frame) {
        let piece = view.skip(skip).take(left);
        skip = skip.saturating_sub(view.len());
        left -= piece.len();
        if !piece.is_empty() {
            each(piece);
        }
        if left == 0 {
            return;
        }
    }
}

/// Lends the inner frame where it lies.
#[inline]
fn lend<'a>(
    frames: &Frames<'_, 'a>,
    frame: &Frame<'a>,
    (start, len): (usize, usize),
    owed: Option<Offload>,
    port: PortIndex,
    burst: &mut Burst<'a>,
) -> Result<(), DropReason> {
    burst.from_port(port);
    if !frame.is_chained() && owed.is_none() {
        burst.push(frame.first().skip(start).take(len));
        return Ok(());
    }
    let mut views: ArrayVec<Lent<'a>, MAX_VIEWS> = ArrayVec::new();
    let mut full = false;
    each_view(frames, frame, (start, len), |view| full |= views.try_push(view).is_err());
    if full || !burst.push_with(&views, owed) { Err(DropReason::BadDescriptor) } else { Ok(()) }
}

#[cfg(test)]
#[path = "receive_tests.rs"]
mod tests;
