//! The sending half: each frame, or several TCP segments joined to one, in one gathering write.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use memif::Lent;

use super::sys::{self, Piece};
use super::vnet;
use crate::DropReason;
use crate::burst::{CHAIN_VIEWS, Frame, Frames, MAX_FRAME, Offload};
use crate::offload::coalesce::{Coalescer, Link, Members, Output};
use crate::port::{Tx, TxContext};

/// The most pieces that a frame can have: the vnet header, joined headers, and every view of a burst (below `IOV_MAX`, 1024).
const PIECES: usize = 2 + crate::burst::BURST + CHAIN_VIEWS;

/// Sends through one queue; the kernel does not care which.
pub struct KernelTx {
    coalescer: Coalescer,
    writer: Writer,
}

struct Writer {
    queue: Arc<OwnedFd>,
    link: Link,
    pieces: Vec<Piece>,
}

impl KernelTx {
    pub(super) fn new(queue: Arc<OwnedFd>, link: Link, udp: bool) -> Self {
        let writer = Writer { queue, link, pieces: Vec::with_capacity(PIECES) };
        Self { coalescer: Coalescer::new(link, udp), writer }
    }
}

impl Tx for KernelTx {
    fn send(&mut self, frames: Frames<'_, '_>, context: &mut TxContext<'_>) {
        let (mut packets, mut bytes) = (0, 0);
        let Self { coalescer, writer } = self;
        coalescer.run(&frames, |output| match output {
            Output::Frame(i) => match writer.write_frame(&frames, i) {
                Ok(()) => {
                    packets += 1;
                    bytes += frames.as_slice()[i].len() as u64;
                }
                Err(reason) => context.refuse(i, reason),
            },
            Output::Joined { header, offload, members } => {
                match writer.write_joined(&frames, header, &offload, members.clone()) {
                    Ok(()) => {
                        packets += members.clone().count() as u64;
                        bytes += members.map(|i| frames.as_slice()[i].len() as u64).sum::<u64>();
                    }
                    Err(reason) => members.for_each(|i| context.refuse(i, reason)),
                }
            }
        });
        context.sent(packets, bytes);
    }
}

impl Writer {
    #[inline]
    fn write_frame(&mut self, frames: &Frames<'_, '_>, i: usize) -> Result<(), DropReason> {
        let frame = &frames.as_slice()[i];
        if frame.len() > MAX_FRAME {
            return Err(DropReason::TooBig);
        }
        if self.link == Link::Ip {
            check_ip(frame)?;
        }
        let header = vnet::emit(frames.offload(frame).as_ref());
        self.pieces.clear();
        self.pieces.push(Lent::from(&header[..]).into());
        self.pieces.extend(frames.views(frame).map(Piece::from));
        self.write()
    }

    fn write_joined(
        &mut self,
        frames: &Frames<'_, '_>,
        headers: &[u8],
        offload: &Offload,
        members: Members<'_>,
    ) -> Result<(), DropReason> {
        let vnet = vnet::emit(Some(offload));
        self.pieces.clear();
        self.pieces.push(Lent::from(&vnet[..]).into());
        self.pieces.push(Lent::from(headers).into());
        for member in members {
            let mut skip = headers.len();
            for view in frames.views(&frames.as_slice()[member]) {
                self.pieces.push(view.skip(skip).into());
                skip = skip.saturating_sub(view.len());
            }
        }
        self.write()
    }

    #[inline]
    fn write(&mut self) -> Result<(), DropReason> {
        // SAFETY: `write_frame` and `write_joined` filled the pieces from views and headers that outlive this call.
        let written = unsafe { sys::write_vectored(self.queue.as_fd(), &self.pieces) };
        written.map(drop).map_err(|error| reason(&error))
    }
}

/// Without a link header the kernel tells IPv4 from IPv6 by the first four bits.
fn check_ip(frame: &Frame<'_>) -> Result<(), DropReason> {
    match frame.first().head::<1>() {
        Some([first]) if matches!(first >> 4, 4 | 6) => Ok(()),
        _ => Err(DropReason::NotIp),
    }
}

fn reason(error: &io::Error) -> DropReason {
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::ENOBUFS) => DropReason::TxFull,
        // The link is down, or the interface is gone; in that case the receiving half reports the fault.
        Some(libc::EIO | libc::EBADFD) => DropReason::EgressDown,
        _ => DropReason::KernelRefused,
    }
}
