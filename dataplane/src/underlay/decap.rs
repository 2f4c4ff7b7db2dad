//! From a received run of datagrams to frames in a burst.
//!
//! The kernel hands over runs of equal datagrams from one sender ("generic receive offload"): one buffer, one length. Each is
//! checked and looked up on its own, since only its first eight bytes say which tunnel it belongs to, but a run of equal
//! headers pays for one lookup.

use std::net::IpAddr;

use memif::Lent;

use crate::DropReason;
use crate::burst::{Burst, Offload};
use crate::offload::Link;
use crate::port::{PortIndex, RxContext};
use crate::tables::TunnelLookup;
use crate::wire::inner;
use crate::wire::local;
use crate::wire::vxlan::{self, HeaderKey, Malformed};

/// No path is expected to carry less than an inner frame of this length (an MTU of 1280 below IPv6).
const USUAL_FRAME: usize = 1280 - 56;

/// A buffer of datagrams from one sender, of which some may have been lent already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Who sent them; the UDP port does not matter.
    pub sender: IpAddr,
    /// Bytes of each datagram but the last, which may be shorter. At least 1.
    pub datagram_len: usize,
    /// Where the next datagram begins.
    pub next: usize,
    /// Bytes in the buffer.
    pub len: usize,
}

impl Run {
    /// True if all datagrams were dealt with.
    #[inline]
    pub const fn is_done(&self) -> bool {
        self.next >= self.len
    }
}

/// The last header's way, to be used again for an equal one.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Hit {
    publication: u64,
    sender: IpAddr,
    key: HeaderKey,
    way: Result<Way, DropReason>,
}

/// Where a tunnel's frames enter, and as what.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Way {
    port: PortIndex,
    link: Link,
}

/// Checks and sorts the datagrams of one underlay.
pub struct Decap {
    underlay: PortIndex,
    own: Option<IpAddr>,
    last: Option<Hit>,
}

impl Decap {
    /// For the underlay at port `underlay`, whose own address is `own`.
    pub const fn new(underlay: PortIndex, own: IpAddr) -> Self {
        Self { underlay, own: Some(own), last: None }
    }

    /// For an underlay that looks for its own addresses among the senders itself.
    pub const fn anywhere(underlay: PortIndex) -> Self {
        Self { underlay, own: None, last: None }
    }

    /// Lends the inner frames of `run` to `burst` until either is used up. `buffer` is the one that the run lies in. What is not
    /// for a tunnel is counted at the underlay's port.
    #[inline]
    pub fn lend<'a>(
        &mut self,
        buffer: &'a [u8],
        run: &mut Run,
        burst: &mut Burst<'a>,
        context: &RxContext<'_>,
    ) {
        let buffer = &buffer[..run.len.min(buffer.len())];
        while burst.room() > 0 && run.next < buffer.len() {
            let end = (run.next + run.datagram_len.max(1)).min(buffer.len());
            let datagram = &buffer[run.next..end];
            run.next = end;
            match self.way(datagram, run.sender, context) {
                Ok((way, frame)) => {
                    let alone = datagram.len() == buffer.len();
                    if alone || way.link == Link::Ip {
                        self.lend_other(way, frame, alone.then_some(run.sender), burst, context);
                    } else {
                        burst.from_port(way.port);
                        burst.push(Lent::from(frame));
                    }
                }
                Err(reason) => context.counters.port(self.underlay).dropped(reason, 1),
            }
        }
        if run.next >= buffer.len() {
            run.next = run.len;
        }
    }

    /// What is not simply lent: packets, and a frame that came `alone` from this sender. Datagrams that came together have been
    /// whole when they were put together.
    fn lend_other<'a>(
        &self,
        way: Way,
        frame: &'a [u8],
        alone: Option<IpAddr>,
        burst: &mut Burst<'a>,
        context: &RxContext<'_>,
    ) {
        let offload = alone.and_then(|sender| self.owed(frame, sender, context));
        if way.link == Link::Ip {
            return lend_packet(way.port, frame, offload, burst, context);
        }
        burst.from_port(way.port);
        burst.push_with(&[Lent::from(frame)], offload);
    }

    /// A frame that came alone may be one that a kernel on this very machine left unfinished.
    fn owed(&self, frame: &[u8], sender: IpAddr, context: &RxContext<'_>) -> Option<Offload> {
        let max_frame = || {
            let vni = self.last.and_then(|hit| hit.key.vni().ok())?;
            context.tables.tunnels.max_frame(self.underlay, vni, sender)
        };
        // Only a frame longer than the usual path needs to know what this one carries.
        local::owed(frame, if frame.len() > USUAL_FRAME { max_frame() } else { None })
    }

    #[inline]
    fn way<'a>(
        &mut self,
        datagram: &'a [u8],
        sender: IpAddr,
        context: &RxContext<'_>,
    ) -> Result<(Way, &'a [u8]), DropReason> {
        let (key, frame) = vxlan::split(datagram).map_err(reason_for)?;
        self.find(key, sender, context).map(|way| (way, frame))
    }

    /// The tunnel that a datagram with this header from `sender` belongs to: its port, and what its frames begin with.
    #[inline]
    pub fn tunnel(
        &mut self,
        key: HeaderKey,
        sender: IpAddr,
        context: &RxContext<'_>,
    ) -> Result<(PortIndex, Link), DropReason> {
        self.find(key, sender, context).map(|way| (way.port, way.link))
    }

    #[inline]
    fn find(&mut self, key: HeaderKey, sender: IpAddr, context: &RxContext<'_>) -> Result<Way, DropReason> {
        let publication = context.tables.publication;
        match self.last {
            Some(hit) if hit.publication == publication && hit.key == key && hit.sender == sender => hit.way,
            _ => {
                let way = self.look_up(key, sender, context);
                self.last = Some(Hit { publication, sender, key, way });
                way
            }
        }
    }

    fn look_up(&self, key: HeaderKey, sender: IpAddr, context: &RxContext<'_>) -> Result<Way, DropReason> {
        if self.own == Some(sender) {
            return Err(DropReason::OwnAddress);
        }
        let vni = key.vni().map_err(reason_for)?;
        match context.tables.tunnels.lookup(self.underlay, vni, sender) {
            TunnelLookup::Found(port, link) => Ok(Way { port, link }),
            TunnelLookup::UnknownVni => Err(DropReason::UnknownVni),
            TunnelLookup::UnknownSender => Err(DropReason::UnknownSender),
        }
    }
}

/// Lends the packet in a frame that came for a port of IP packets.
fn lend_packet<'a>(
    port: PortIndex,
    frame: &'a [u8],
    offload: Option<Offload>,
    burst: &mut Burst<'a>,
    context: &RxContext<'_>,
) {
    let Some(packet) = inner::packet(frame) else {
        return context.counters.port(port).dropped(DropReason::NotIp, 1);
    };
    // What it owes is told from the frame's first byte, and never lies in the header that is taken off.
    let offload = offload.map(|owed| Offload {
        csum_start: owed.csum_start.saturating_sub(inner::HEADER_LEN as u16),
        hdr_len: owed.hdr_len.saturating_sub(inner::HEADER_LEN as u16),
        ..owed
    });
    burst.from_port(port);
    burst.push_with(&[Lent::from(packet)], offload);
}

const fn reason_for(malformed: Malformed) -> DropReason {
    match malformed {
        Malformed::Short => DropReason::VxlanShort,
        Malformed::NoVni => DropReason::VxlanFlags,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Counters;
    use crate::tables::{Tables, Tunnel, Vni};

    /// A change that is undone, or that has an interim state, puts other tables in force without being another generation.
    #[test]
    fn a_tunnel_is_remembered_for_one_publication_of_the_tables() {
        let tunnel = Tunnel {
            port: PortIndex(1),
            underlay: PortIndex(0),
            remote: "10.9.0.2:4789".parse().unwrap(),
            vni: Vni::new(42).unwrap(),
            max_frame: 1464,
            link: Link::Ethernet,
        };
        let mut tables = Tables { generation: 7, publication: 1, ..Tables::default() };
        assert!(tables.tunnels.insert(&tunnel));
        let counters = Counters::anonymous(4).unwrap();
        let mut decap = Decap::new(PortIndex(0), "10.9.0.1".parse().unwrap());
        let mut datagram = [0; 8 + 60];
        (datagram[0], datagram[6]) = (0x08, 42);
        let mut lent = |tables: &Tables| {
            let context = RxContext { tables, counters: &counters };
            let sender = tunnel.remote.ip();
            let mut run = Run { sender, datagram_len: datagram.len(), next: 0, len: datagram.len() };
            let mut burst = Burst::new(PortIndex(0));
            decap.lend(&datagram, &mut run, &mut burst, &context);
            burst.runs().map(|(port, frames)| (port, frames.as_slice().len())).collect::<Vec<_>>()
        };
        assert_eq!(lent(&tables), [(PortIndex(1), 1)]);
        tables.tunnels.remove(&tunnel);
        tables.publication = 2;
        assert_eq!(lent(&tables), []);
        assert_eq!(counters.port(PortIndex(0)).snapshot().drops, [(DropReason::UnknownVni, 1)]);
    }
}
