//! The carrier of the kernel-UDP underlay: each group is one system call, or a few where the kernel can't take it whole.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use arrayvec::ArrayVec;

use super::encap::Encap;
use super::group::{Batch, Carrier};
use super::udp_sys::{self as sys, RawAddress};
use crate::DropReason;
use crate::stats::{Counters, PortCounters};
use crate::wire::vxlan;

/// Most datagrams per call on newer kernels (`UDP_MAX_SEGMENTS` since Linux 6.9).
const MANY_SEGMENTS: usize = 128;
/// The same before.
const FEW_SEGMENTS: usize = 64;
/// Peers remembered as reachable only without segmentation.
const WHOLE_PEERS: usize = 16;

/// The sending half of a kernel-UDP underlay.
pub type UdpTx = Encap<Sockets>;

/// The sockets that groups leave by.
pub struct Sockets {
    sockets: Vec<OwnedFd>,
    segmentation: bool,
    most_segments: usize,
    /// Peers on whose path the kernel can't cut datagrams apart (no checksum offload, or IPsec).
    whole: ArrayVec<IpAddr, WHOLE_PEERS>,
}

impl Carrier for Sockets {
    fn most_datagrams(&self) -> usize {
        MANY_SEGMENTS
    }

    fn carry(&mut self, batch: &Batch<'_>, counters: &Counters) {
        let call = Call {
            to: RawAddress::new(&batch.to.remote),
            socket: usize::from(batch.to.socket),
            datagram_len: batch.datagram_len,
            counters: counters.port(batch.to.port),
        };
        if batch.datagrams() == 1 || !self.segmentation || self.whole.contains(&batch.to.remote.ip()) {
            call.one_by_one(self, batch.bytes);
            return;
        }
        let mut bytes = batch.bytes;
        while !bytes.is_empty() {
            let (part, rest) = bytes.split_at(bytes.len().min(self.most_segments * batch.datagram_len));
            if let Err(error) = call.segmented(self, part) {
                if self.learn(&error, call.datagrams(part), batch.to.remote.ip()) {
                    continue;
                }
                call.one_by_one(self, part);
            }
            bytes = rest;
        }
    }
}

impl Sockets {
    /// Sends from `sockets`, with `segmentation` if the kernel offers it.
    pub fn new(sockets: Vec<OwnedFd>, segmentation: bool) -> Self {
        Self { sockets, segmentation, most_segments: MANY_SEGMENTS, whole: ArrayVec::new() }
    }

    fn get(&self, socket: usize) -> BorrowedFd<'_> {
        self.sockets[socket].as_fd()
    }

    /// Draws the lesson from a refused call of many datagrams. True if the same bytes are worth another such call.
    fn learn(&mut self, error: &io::Error, datagrams: usize, peer: IpAddr) -> bool {
        match error.raw_os_error() {
            Some(libc::EINVAL) if datagrams > FEW_SEGMENTS => {
                self.most_segments = FEW_SEGMENTS;
                true
            }
            Some(libc::EIO) => {
                let _ = self.whole.try_push(peer);
                false
            }
            _ => false,
        }
    }
}

/// One group on its way into the kernel.
struct Call<'c> {
    to: RawAddress,
    socket: usize,
    datagram_len: usize,
    counters: PortCounters<'c>,
}

impl Call<'_> {
    const fn datagrams(&self, bytes: &[u8]) -> usize {
        bytes.len().div_ceil(self.datagram_len)
    }

    /// Sends all of `bytes` in one call, or nothing.
    ///
    /// # Errors
    /// One that may concern only some of the datagrams, or calls of this kind; sending them one by one finds out. All other
    /// outcomes are counted here.
    fn segmented(&self, sockets: &Sockets, bytes: &[u8]) -> io::Result<()> {
        let segment = u16::try_from(self.datagram_len).ok();
        let socket = sockets.get(self.socket);
        match with_retry(socket, || sys::send(socket, &self.to, bytes, segment)) {
            Ok(()) => self.sent(bytes),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EIO | libc::EMSGSIZE)) => {
                return Err(error);
            }
            Err(error) => self.counters.dropped(reason_for(&error), self.datagrams(bytes) as u64),
        }
        Ok(())
    }

    /// Sends each datagram on its own, 64 to a call.
    fn one_by_one(&self, sockets: &Sockets, mut bytes: &[u8]) {
        let socket = sockets.get(self.socket);
        while !bytes.is_empty() {
            let taken =
                match with_retry(socket, || sys::send_many(socket, &self.to, bytes, self.datagram_len)) {
                    Ok(taken) => taken,
                    Err(error) => {
                        let reason = reason_for(&error);
                        // A full queue refuses the others as well; any other error is about the first one only.
                        let lost = if reason == DropReason::TxFull { self.datagrams(bytes) } else { 1 };
                        self.counters.dropped(reason, lost as u64);
                        bytes = &bytes[bytes.len().min(lost * self.datagram_len)..];
                        continue;
                    }
                };
            let (sent, rest) = bytes.split_at(bytes.len().min(taken * self.datagram_len));
            self.sent(sent);
            bytes = rest;
        }
    }

    fn sent(&self, bytes: &[u8]) {
        let frames = self.datagrams(bytes);
        self.counters.sent(frames as u64, (bytes.len() - frames * vxlan::HEADER_LEN) as u64);
    }
}

/// Tries once more after an error that may be about an earlier datagram: an ICMP answer is reported to whoever sends next.
fn with_retry<T>(socket: BorrowedFd<'_>, mut send: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    match send() {
        Err(error) if may_be_about_an_earlier_one(&error) => {
            sys::drain_errors(socket);
            send()
        }
        result => result,
    }
}

fn may_be_about_an_earlier_one(error: &io::Error) -> bool {
    !matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EIO)) && reason_for(error) != DropReason::TxFull
}

fn reason_for(error: &io::Error) -> DropReason {
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => DropReason::TxFull,
        Some(libc::EMSGSIZE) => DropReason::TooBig,
        _ => DropReason::KernelRefused,
    }
}
