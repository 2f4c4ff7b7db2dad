//! smoltcp's view of a link: frames in, frames out.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;

use memif::queue::{FrameSink, RingFault};
use memif::{Lent, Link, Mode};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

/// Frames copied out of the rings at a time.
const BURST: usize = 64;

/// A network device that has a peer or not.
pub struct LinkDevice {
    link: Option<Link>,
    mode: Mode,
    mtu: usize,
    inbox: VecDeque<Vec<u8>>,
}

impl LinkDevice {
    pub fn new(mode: Mode, mtu: usize) -> Self {
        Self { link: None, mode, mtu, inbox: VecDeque::new() }
    }

    pub fn plug(&mut self, link: Link) {
        link.rx.iter().for_each(memif::queue::RxQueue::unmask);
        self.link = Some(link);
    }

    pub fn unplug(&mut self) {
        self.link = None;
        self.inbox.clear();
    }

    pub fn is_plugged(&self) -> bool {
        self.link.is_some()
    }

    pub fn has_frames(&self) -> bool {
        !self.inbox.is_empty()
    }

    /// Copies waiting frames out of the rings: smoltcp parses in place, which shared memory is no place for.
    pub fn take_in(&mut self) -> Result<(), RingFault> {
        let Some(link) = &mut self.link else { return Ok(()) };
        for queue in &mut link.rx {
            let mut sink = Copies { frames: &mut self.inbox, room: BURST };
            queue.receive(&mut sink)?;
            queue.release();
        }
        link.tx.iter().find_map(memif::queue::TxQueue::fault).map_or(Ok(()), Err)
    }

    /// True if no frame waits, here or in the rings.
    pub fn may_sleep(&self) -> bool {
        self.inbox.is_empty() && self.queues().all(|queue| queue.backlog() == 0)
    }

    pub fn event_fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.queues().map(memif::queue::RxQueue::event_fd)
    }

    pub fn drain_events(&self) {
        self.queues().for_each(memif::queue::RxQueue::drain_event);
    }

    fn queues(&self) -> impl Iterator<Item = &memif::queue::RxQueue> {
        self.link.iter().flat_map(|link| &link.rx)
    }
}

struct Copies<'q> {
    frames: &'q mut VecDeque<Vec<u8>>,
    room: usize,
}

impl<'a> FrameSink<'a> for Copies<'_> {
    fn room(&self) -> usize {
        self.room
    }

    fn frame(&mut self, frame: Lent<'a>) {
        self.frames.push_back(frame.to_vec());
    }

    fn chain(&mut self, segments: &[Lent<'a>], total: usize) {
        let mut frame = vec![0; total];
        let mut at = 0;
        for segment in segments {
            at += segment.copy_to(&mut frame[at..]);
        }
        self.frames.push_back(frame);
    }
}

impl Device for LinkDevice {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sender<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sender<'_>)> {
        let frame = self.inbox.pop_front()?;
        let link = self.link.as_mut()?;
        Some((Received(frame), Sender(link)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sender<'_>> {
        self.link.as_mut().map(Sender)
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = match self.mode {
            Mode::Ethernet => Medium::Ethernet,
            Mode::Ip => Medium::Ip,
        };
        // smoltcp counts the ethernet header in.
        capabilities.max_transmission_unit = match self.mode {
            Mode::Ethernet => self.mtu + 14,
            Mode::Ip => self.mtu,
        };
        capabilities
    }
}

/// A frame of our own copy.
pub struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

/// Room for one frame.
pub struct Sender<'a>(&'a mut Link);

impl TxToken for Sender<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let mut frame = vec![0; len];
        let result = write(&mut frame);
        if let Some(queue) = self.0.tx.first_mut() {
            // A full ring loses the frame, as a wire would.
            let _ = queue.push(Lent::from(&frame[..]));
            queue.publish();
        }
        result
    }
}
