//! The statistics segment: a file that the engine maps and writes, and that any process may map and read, also after a crash.
//!
//! ```text
//! offset 0      Header            one page; magic, sizes, the names of the drop reasons
//! offset 4096   PortEntry[w][n]   for each worker, one slot per port index; name, kind, state, counters
//! ```
//! All integers are in the machine's byte order. Every counter has one writer at a time and only grows while its slot's `epoch` stays
//! the same; a slot that is given to another port starts again at zero with a higher epoch.
//!
//! A port's slot is that of the first worker's table, whichever worker owns it. Where several share the port (`shared`), each counts in
//! its own worker's table, of whose slots nothing else is used, and the port's counters are the sums.

use core::sync::atomic::{AtomicU32, AtomicU64};

/// First eight bytes of a segment.
pub const MAGIC: u64 = u64::from_le_bytes(*b"vwirest1");
/// Raised with every incompatible change of the layout.
pub const LAYOUT: u32 = 2;
/// Where the port entries begin.
pub const PORTS_OFFSET: usize = 4096;
/// Bytes of a name field; names are UTF-8 and padded with zeros.
pub const NAME_LEN: usize = 64;
/// Slots for drop reasons in each entry; [`DropReason`] may grow up to this without a new layout.
pub const DROP_SLOTS: usize = 32;

/// Start of the segment.
#[repr(C)]
pub struct Header {
    /// [`MAGIC`], written last, so that a reader never sees half a header.
    pub magic: AtomicU64,
    /// [`LAYOUT`].
    pub layout: AtomicU32,
    /// Process id of the engine that writes.
    pub pid: AtomicU32,
    /// Slots in each worker's table.
    pub ports: AtomicU32,
    /// Bytes of one [`PortEntry`].
    pub port_size: AtomicU32,
    /// Seconds since the epoch at which the engine started.
    pub started: AtomicU64,
    /// The forwarding tables' generation that the workers use.
    pub generation: AtomicU64,
    /// Reason `i`'s name in `drop_names[i]`, so that a reader needs no list of its own.
    pub drop_names: [[u8; 24]; DROP_SLOTS],
    /// Tables of [`PortEntry`], one for each worker.
    pub workers: AtomicU32,
}

/// One port's slot: identity first, then what is written per burst, on lines of their own.
#[repr(C, align(64))]
pub struct PortEntry {
    /// 0 while the slot is free; raised each time a port takes it.
    pub epoch: AtomicU32,
    /// A [`PortState`].
    pub state: AtomicU32,
    /// What kind of port this is (`memif`, `kernel`, `vxlan`, …), zero-padded.
    pub kind: [AtomicU64; 2],
    /// The port's name, zero-padded.
    pub name: [AtomicU64; NAME_LEN / 8],
    /// 1 if several workers share the port, each with counters in its own table; 0 if this slot has all.
    pub shared: AtomicU32,
    _pad: [u32; 9],
    /// Frames that entered the engine here.
    pub rx: Traffic,
    /// Frames that left the engine here.
    pub tx: Traffic,
    /// Frames lost here, by [`DropReason`].
    pub drops: [AtomicU64; DROP_SLOTS],
}

/// A count of frames and of their bytes, alone on its cache line.
#[repr(C, align(64))]
pub struct Traffic {
    /// Frames. A segmentation-offload frame counts once where it enters, and where it leaves as what left: once if it was passed
    /// on whole, else once per segment.
    pub packets: AtomicU64,
    /// Bytes of those frames from the Ethernet (or, in IP mode, the IP) header on.
    pub bytes: AtomicU64,
}

/// Whether a port can move frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum PortState {
    /// The slot belongs to no port.
    Free = 0,
    /// Configured, but its peer or device is not there.
    Down = 1,
    /// Frames can flow.
    Up = 2,
}

impl PortState {
    /// The state with this number, if there is one.
    pub const fn from_raw(raw: u32) -> Option<Self> {
        match raw {
            0 => Some(Self::Free),
            1 => Some(Self::Down),
            2 => Some(Self::Up),
            _ => None,
        }
    }

    /// `free`, `down` or `up`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Down => "down",
            Self::Up => "up",
        }
    }
}

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal),* $(,)?) => {
        /// Why a frame was not forwarded. Every frame that enters the engine leaves it or is counted under one of these, at the
        /// port where it was lost.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum DropReason { $($(#[$doc])* $variant),* }

        impl DropReason {
            /// All reasons, in the order of their numbers.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$variant),*];

            /// The name used in metrics, captures and the segment: lower case, at most 23 bytes.
            pub const fn name(self) -> &'static str {
                match self { $(DropReason::$variant => $name),* }
            }
        }
    };
}

drop_reasons! {
    /// The peer's descriptor points outside its regions, is empty, or its chain does not end.
    BadDescriptor = "bad_descriptor",
    /// Longer than the engine or the egress port can carry.
    TooBig = "too_big",
    /// Shorter than the header it must begin with.
    TooShort = "too_short",
    /// The ingress port has no entry in the forwarding tables.
    NoEgress = "no_egress",
    /// The egress port is configured but down.
    EgressDown = "egress_down",
    /// The egress ring or queue had no room; the peer reads too slowly.
    TxFull = "tx_full",
    /// The ring to the worker that owns the egress port had no room.
    HandoffFull = "handoff_full",
    /// The kernel refused the frame or datagram with an error other than "try again".
    KernelRefused = "kernel_refused",
    /// A datagram on the underlay too short for its VXLAN header and an inner Ethernet header.
    VxlanShort = "vxlan_short",
    /// The VXLAN header's I flag is not set (RFC 7348 §5).
    VxlanFlags = "vxlan_flags",
    /// No tunnel has this VNI.
    UnknownVni = "unknown_vni",
    /// The VNI exists, but not from this sender.
    UnknownSender = "unknown_sender",
    /// The datagram came from the engine's own address.
    OwnAddress = "own_address",
    /// The request to segment or to complete a checksum does not fit the frame.
    BadOffload = "bad_offload",
    /// An IP-mode port was given something that is not IPv4 or IPv6.
    NotIp = "not_ip",
    /// The kernel dropped it before the underlay's socket: the worker came round too late. An aggregated run counts once.
    SocketFull = "socket_full",
    /// An IP header that contradicts itself or its frame: version, lengths, checksum.
    BadIpHeader = "bad_ip_header",
    /// The frame is for another station than the routing domain.
    WrongMac = "wrong_mac",
    /// The source address is not routed to the port that the packet came by, or is none that a host can have.
    SpoofedSource = "spoofed_source",
    /// No route leads to the destination.
    NoRoute = "no_route",
    /// The destination is not for routers: multicast, broadcast, link-local, loopback.
    NotRouted = "not_routed",
    /// The time to live, or hop limit, was over.
    TtlExceeded = "ttl_exceeded",
    /// Nobody said in time which hardware address the next hop has, though it was asked for.
    NoNeighbour = "no_neighbour",
    /// It was for the routing domain, or the underlay, itself: ARP, neighbour discovery, ICMP to its own address.
    ForDomain = "for_domain",
    /// An ARP, neighbour discovery or ICMP message for the routing domain that is malformed, or speaks for an address that
    /// belongs to another port.
    BadControl = "bad_control",
    /// It was for the routing domain, or the underlay, itself, which was asked too much of late.
    ControlLimit = "control_limit",
    /// The next hop's hardware address is being asked for, and too many packets wait for that already.
    NeighbourQueueFull = "neighbour_queue_full",
    /// The egress port has no buffer left to copy it into.
    NoBuffer = "no_buffer",
    /// It came by an underlay's port and is no datagram for a tunnel (nor is a fragment of one, RFC 7348 §4.3), and there is no
    /// exception port to take it.
    NotTunnel = "not_tunnel",
    /// A tunnel's datagram with a UDP header that contradicts its packet: length or checksum.
    BadUdp = "bad_udp",
}

const _: () = assert!(DropReason::ALL.len() <= DROP_SLOTS);
const _: () = assert!(size_of::<Header>() <= PORTS_OFFSET);
const _: () =
    assert!(size_of::<PortEntry>().is_multiple_of(64) && core::mem::offset_of!(PortEntry, rx) == 128);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drop_names_fit_their_field_and_are_distinct() {
        let names: std::collections::BTreeSet<_> =
            DropReason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), DropReason::ALL.len());
        assert!(names.iter().all(|name| name.len() < 24));
    }
}
