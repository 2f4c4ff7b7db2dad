//! An in-process pipe: what is sent into one end is received at the other. For tests and benchmarks, where nothing but the
//! engine itself should be measured or watched.

use std::os::fd::{AsFd, BorrowedFd};

use super::{PortFault, PortIndex, PortParts, Rx, RxContext, Tx, TxContext};
use crate::DropReason;
use crate::burst::{Burst, Frames, Gso, Offload};
use crate::doorbell::Doorbell;
use crate::ring::{self, Consumer, Producer, Tag};

/// One end of a pipe: can be a port, or be held by a test that plays the peer.
pub struct PipeEnd {
    /// What the other end sent.
    pub rx: PipeRx,
    /// What the other end will receive.
    pub tx: PipeTx,
}

/// The receiving half.
pub struct PipeRx {
    consumer: Consumer,
    bell: Doorbell,
}

/// The sending half.
pub struct PipeTx {
    producer: Producer,
    bell: Doorbell,
}

/// Makes a pipe that holds about `bytes` bytes each way.
///
/// # Errors
/// The kernel's, if it has no descriptor left for a doorbell.
pub fn pipe(bytes: usize) -> std::io::Result<(PipeEnd, PipeEnd)> {
    let (a_to_b, from_a) = ring::ring(bytes);
    let (b_to_a, from_b) = ring::ring(bytes);
    let (wakes_a, wakes_b) = (Doorbell::new()?, Doorbell::new()?);
    let a = PipeEnd {
        rx: PipeRx { consumer: from_b, bell: wakes_a.clone() },
        tx: PipeTx { producer: a_to_b, bell: wakes_b.clone() },
    };
    let b = PipeEnd {
        rx: PipeRx { consumer: from_a, bell: wakes_b },
        tx: PipeTx { producer: b_to_a, bell: wakes_a },
    };
    Ok((a, b))
}

impl PipeEnd {
    /// Makes a port of this end.
    pub fn into_parts(self) -> PortParts {
        PortParts { rx: vec![Box::new(self.rx)], tx: Some(Box::new(self.tx)), underlay: None }
    }

    /// Sends one frame as a peer. False if the pipe is full.
    pub fn inject(&mut self, frame: &[u8]) -> bool {
        self.inject_with(frame, None)
    }

    /// Sends one frame that still owes something.
    pub fn inject_with(&mut self, frame: &[u8], offload: Option<Offload>) -> bool {
        let sent = self.tx.producer.push(to_tag(0, offload), frame.len(), std::iter::once(frame.into()));
        self.tx.producer.publish();
        self.tx.bell.ring();
        sent
    }

    /// Takes all frames that arrived, with what they still owe.
    pub fn collect(&mut self) -> Vec<(Vec<u8>, Option<Offload>)> {
        let mut frames = Vec::new();
        self.rx.consumer.drain(|tag, view| frames.push((view.to_vec(), from_tag(tag).1)));
        frames
    }
}

impl Rx for PipeRx {
    fn receive<'a>(&'a mut self, burst: &mut Burst<'a>, _: &RxContext<'_>) -> Result<(), PortFault> {
        while burst.room() > 0 {
            // SAFETY: the records go into `burst`, which borrows this receiver for `'a`; `release` needs it back.
            let Some((tag, view)) = (unsafe { self.consumer.lend() }) else { break };
            match from_tag(tag).1 {
                None => burst.push(view),
                offload => {
                    burst.push_with(&[view], offload);
                }
            }
        }
        Ok(())
    }

    fn release(&mut self, _: u64) {
        self.consumer.release();
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.bell.as_fd())
    }

    fn arm(&mut self) {
        self.bell.lie_down();
    }

    fn disarm(&mut self) {
        self.bell.get_up();
    }
}

impl Tx for PipeTx {
    fn send(&mut self, frames: Frames<'_, '_>, context: &mut TxContext<'_>) {
        let (mut packets, mut bytes) = (0, 0);
        for (i, frame) in frames.as_slice().iter().enumerate() {
            if push_frame(&mut self.producer, context.port, &frames, frame) {
                packets += 1;
                bytes += frame.len() as u64;
            } else {
                context.refuse(i, DropReason::TxFull);
            }
        }
        self.producer.publish();
        self.bell.ring();
        context.sent(packets, bytes);
    }
}

/// Copies a frame and what it owes into a ring, with `port` beside it. False if the ring is full.
#[inline]
pub(crate) fn push_frame(
    producer: &mut Producer,
    port: PortIndex,
    frames: &Frames<'_, '_>,
    frame: &crate::burst::Frame<'_>,
) -> bool {
    if frame.is_plain() {
        return producer.push(to_tag(port.0, None), frame.len(), std::iter::once(frame.first()));
    }
    producer.push(to_tag(port.0, frames.offload(frame)), frame.len(), frames.views(frame))
}

/// Packs a port and an [`Offload`] into a ring record's tag.
fn to_tag(port: u16, offload: Option<Offload>) -> Tag {
    let owed = offload.unwrap_or_default();
    let first = u64::from(port)
        | u64::from(owed.needs_csum) << 16
        | (owed.gso as u64) << 24
        | u64::from(owed.hdr_len) << 32;
    [first, u64::from(owed.gso_size) | u64::from(owed.csum_start) << 16 | u64::from(owed.csum_offset) << 32]
}

/// The opposite of [`to_tag`].
pub(crate) fn from_tag([first, second]: Tag) -> (PortIndex, Option<Offload>) {
    let gso = match (first >> 24) as u8 {
        1 => Gso::Tcp4,
        4 => Gso::Tcp6,
        5 => Gso::Udp,
        _ => Gso::None,
    };
    let owed = Offload {
        needs_csum: first >> 16 & 1 == 1,
        gso,
        hdr_len: (first >> 32) as u16,
        gso_size: second as u16,
        csum_start: (second >> 16) as u16,
        csum_offset: (second >> 32) as u16,
    };
    (PortIndex(first as u16), (owed != Offload::default()).then_some(owed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_keeps_port_and_offload() {
        let owed = Offload {
            needs_csum: true,
            gso: Gso::Tcp6,
            hdr_len: 86,
            gso_size: 1378,
            csum_start: 54,
            csum_offset: 16,
        };
        assert_eq!(from_tag(to_tag(4095, Some(owed))), (PortIndex(4095), Some(owed)));
        assert_eq!(from_tag(to_tag(3, None)), (PortIndex(3), None));
    }
}
