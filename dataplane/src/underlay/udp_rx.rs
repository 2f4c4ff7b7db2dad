//! The receiving half: a few messages per system call, each a run of datagrams, lent where the kernel put them.

use std::io::ErrorKind;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use arrayvec::ArrayVec;

use super::decap::{Decap, Run};
use super::udp_sys::{Arena, Received};
use crate::DropReason;
use crate::burst::{BURST, Burst};
use crate::port::{PortFault, PortIndex, Rx, RxContext};

/// Buffers, and so messages per call at most. Only as many are written to as messages wait, so few frames stay in cache.
const BUFFERS: usize = 32;
/// As long as the longest UDP payload and a little more.
const BUFFER_LEN: usize = 65_536;
/// Datagrams that one call should bring: two bursts.
const WANTED: usize = 2 * BURST;
/// Fewest messages to ask for in a call, so that small ones after a long run do not wait for another turn.
const FEWEST: usize = 2;

/// Receives an underlay's datagrams and lends their inner frames.
pub struct UdpRx {
    port: PortIndex,
    socket: OwnedFd,
    arena: Arena,
    /// What is still to be lent: buffer number and run, the next one last.
    waiting: ArrayVec<(u8, Run), BUFFERS>,
    decap: Decap,
    messages_wanted: usize,
    overflow: u32,
}

impl UdpRx {
    pub(super) fn new(port: PortIndex, own: IpAddr, socket: OwnedFd) -> Self {
        Self {
            port,
            socket,
            arena: Arena::new(BUFFERS, BUFFER_LEN),
            waiting: ArrayVec::new(),
            decap: Decap::new(port, own),
            messages_wanted: BUFFERS,
            overflow: 0,
        }
    }

    /// Receives what is there, if all of the last call's has been lent.
    fn fill(&mut self, context: &RxContext<'_>) -> Result<(), PortFault> {
        let messages = match self.arena.receive(self.socket.as_fd(), self.messages_wanted) {
            Ok(messages) => messages,
            Err(error) => return judge(&error),
        };
        let mut datagrams = 0;
        for i in (0..messages).rev() {
            let received = self.arena.received(i);
            datagrams += received.segment.map_or(1, |len| received.len.div_ceil(len));
            self.admit(i, &received, context);
        }
        // As many messages as make WANTED datagrams at the present number in each.
        self.messages_wanted = (WANTED * messages.max(1)).div_ceil(datagrams.max(1)).clamp(FEWEST, BUFFERS);
        Ok(())
    }

    fn admit(&mut self, i: usize, received: &Received, context: &RxContext<'_>) {
        let counters = context.counters.port(self.port);
        if let Some(overflow) = received.overflow {
            // Messages come here last one first, so an older count must not be taken for a step back.
            let more = overflow.wrapping_sub(self.overflow);
            if more != 0 && more < u32::MAX / 2 {
                counters.dropped(DropReason::SocketFull, u64::from(more));
                self.overflow = overflow;
            }
        }
        match received.sender {
            Some(sender) if !received.truncated => {
                let datagram_len = received.segment.unwrap_or(received.len).max(1);
                // A datagram without any bytes is one that is too short, too.
                if received.len == 0 {
                    counters.dropped(DropReason::VxlanShort, 1);
                } else {
                    self.waiting.push((i as u8, Run { sender, datagram_len, next: 0, len: received.len }));
                }
            }
            _ => counters.dropped(DropReason::TooBig, 1),
        }
    }
}

impl Rx for UdpRx {
    #[inline]
    fn receive<'a>(&'a mut self, burst: &mut Burst<'a>, context: &RxContext<'_>) -> Result<(), PortFault> {
        if self.waiting.is_empty() {
            self.fill(context)?;
        }
        while burst.room() > 0
            && let Some((buffer, run)) = self.waiting.last_mut()
        {
            self.decap.lend(self.arena.buffer(usize::from(*buffer)), run, burst, context);
            if run.is_done() {
                self.waiting.pop();
            }
        }
        Ok(())
    }

    // The buffers are written to again only by the next call that finds nothing waiting.
    fn release(&mut self, _: u64) {}

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }
}

/// Most errors are about one packet or one moment; only a socket that is none any more ends the port.
fn judge(error: &std::io::Error) -> Result<(), PortFault> {
    match (error.kind(), error.raw_os_error()) {
        (ErrorKind::WouldBlock, _) => Ok(()),
        (_, Some(libc::EBADF | libc::ENOTSOCK | libc::EFAULT | libc::EINVAL)) => {
            Err(PortFault::Device { what: "receiving from the underlay", error: error.to_string() })
        }
        _ => Ok(()),
    }
}
