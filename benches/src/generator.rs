//! A memif client that makes traffic at the least cost of its own.
//!
//! It fills the buffers of its sending ring once and afterwards only publishes them again; of what comes back it reads the
//! descriptors and nothing else. So one core of it keeps a packet engine on another core busy, and what is measured is that
//! engine.

use memif::Lent;
use memif::queue::{FrameSink, RingFault, RxQueue, TxQueue, TxRefused};

/// What was received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Frames.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A sending and a receiving end of client connections: of one connection, or of two.
#[derive(Debug)]
pub struct Generator {
    tx: TxQueue,
    rx: RxQueue,
    sent: u64,
    received: Counts,
    batch: usize,
}

impl Generator {
    /// Takes the client's queues and fills the sending ring with `frames` in turn.
    ///
    /// # Errors
    /// A frame that does not fit a buffer, or a ring that is not empty.
    pub fn new(mut tx: TxQueue, rx: RxQueue, frames: &[Vec<u8>]) -> Result<Self, TxRefused> {
        let frames: Vec<Lent<'_>> = frames.iter().map(|frame| Lent::from(frame.as_slice())).collect();
        tx.prefill(&frames)?;
        Ok(Self { tx, rx, sent: 0, received: Counts::default(), batch: 256 })
    }

    /// Sends and receives at most `batch` frames a turn; 256 unless told.
    pub fn set_batch(&mut self, batch: usize) {
        self.batch = batch;
    }

    /// One turn: sends as much as there is room for, and counts what has come.
    ///
    /// # Errors
    /// The peer broke a ring.
    #[inline]
    pub fn turn(&mut self) -> Result<(), RingFault> {
        self.send(self.batch)?;
        self.receive()
    }

    /// Sends up to `max` frames.
    ///
    /// # Errors
    /// The peer broke the ring.
    #[inline]
    pub fn send(&mut self, max: usize) -> Result<usize, RingFault> {
        let count = self.tx.republish(max);
        self.sent += count as u64;
        self.tx.fault().map_or(Ok(count), Err)
    }

    /// Counts what has come, and posts the buffers again.
    ///
    /// # Errors
    /// The peer broke the ring.
    #[inline]
    pub fn receive(&mut self) -> Result<(), RingFault> {
        let mut tally = Tally { counts: &mut self.received, room: self.batch };
        self.rx.receive(&mut tally)?;
        self.rx.release();
        Ok(())
    }

    /// Frames sent so far.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// What was received so far.
    pub fn received(&self) -> Counts {
        self.received
    }

    /// The queues, to send and receive something else.
    pub fn into_queues(self) -> (TxQueue, RxQueue) {
        (self.tx, self.rx)
    }
}

struct Tally<'c> {
    counts: &'c mut Counts,
    room: usize,
}

impl<'a> FrameSink<'a> for Tally<'_> {
    #[inline]
    fn room(&self) -> usize {
        self.room
    }

    #[inline]
    fn frame(&mut self, frame: Lent<'a>) {
        self.counts.packets += 1;
        self.counts.bytes += frame.len() as u64;
    }

    #[inline]
    fn chain(&mut self, _: &[Lent<'a>], total: usize) {
        self.counts.packets += 1;
        self.counts.bytes += total as u64;
    }
}

/// Frames of one size: ethernet, IPv4, UDP, for `flows` different flows (source ports), with correct lengths and checksum 0.
///
/// # Panics
/// If `size` is too small for the headers (42 bytes).
pub fn udp_frames(size: usize, flows: u16) -> Vec<Vec<u8>> {
    assert!(size >= 42, "an ethernet, IPv4 and UDP header take 42 bytes");
    (0..flows.max(1)).map(|flow| udp_frame(size, flow)).collect()
}

/// The mixture "simple IMIX": of twelve frames, seven have 64 bytes, four have 594 and one has 1464, the longest that VXLAN carries
/// over an MTU of 1500. As traffic generators do it, each of the twelve is a stream of its own; `flows` times twelve in all.
pub fn imix_frames(flows: u16) -> Vec<Vec<u8>> {
    const SIZES: [usize; 12] = [64, 594, 64, 64, 594, 64, 1464, 64, 594, 64, 594, 64];
    let streams = (0..flows.max(1) * 12).zip(SIZES.iter().cycle());
    streams.map(|(stream, size)| udp_frame(*size, stream)).collect()
}

fn udp_frame(size: usize, flow: u16) -> Vec<u8> {
    let mut frame = vec![0; size];
    frame[..6].copy_from_slice(&[0x02, 0, 0, 0, 0, 0x02]);
    frame[6..12].copy_from_slice(&[0x02, 0, 0, 0, 0, 0x01]);
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    let ip = &mut frame[14..34];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&((size - 14) as u16).to_be_bytes());
    ip[8..10].copy_from_slice(&[64, 17]);
    ip[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    let sum = ip.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u32>();
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    frame[34..36].copy_from_slice(&(1024 + flow).to_be_bytes());
    frame[36..38].copy_from_slice(&9u16.to_be_bytes());
    frame[38..40].copy_from_slice(&((size - 34) as u16).to_be_bytes());
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_carry_a_correct_ip_header() {
        for frame in imix_frames(3) {
            let sum: u32 = frame[14..34].chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
            assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
            assert_eq!(usize::from(u16::from_be_bytes([frame[16], frame[17]])), frame.len() - 14);
        }
        assert_eq!(imix_frames(3).len(), 36);
        assert_ne!(udp_frames(64, 2)[0], udp_frames(64, 2)[1]);
    }
}
