//! Drivers that cut a frame which is longer than they have room for, and hand on the beginning as if it were all.
//!
//! * net_af_packet: the kernel puts a frame into a slot of the socket's ring, cuts it there, and says so (`tp_snaplen` below `tp_len`);
//!   the driver (22.11 and later) looks at `tp_snaplen` only.
//! * net_pcap on an interface: libpcap cuts at the snapshot length that the driver opens it with, and says so (`caplen` below `len`);
//!   the driver looks at `caplen` only. What a file holds is another matter: a frame that was cut before is what was kept of it.
//!
//! What is cut here has a known length. A whole frame may have it, too, but nobody can tell: both are taken for cut ones. Arguments of
//! a device that is among the EAL's own (`--vdev`) are not seen; such a one has the usual limits.

/// Bytes of a slot before the frame: `tpacket2_hdr` and `sockaddr_ll` (52) with the Ethernet header, as the kernel aligns them (80),
/// less that header. With a VLAN tag in the frame it is less.
const BEFORE: u32 = 66;
/// net_af_packet's `framesz` if nothing else is said: bytes of a slot.
const SLOT: u32 = 2048;
/// The snapshot length: DPDK's `RTE_ETHER_MAX_JUMBO_FRAME_LEN`. Later versions have a longer one, and `snaplen`.
const SNAPSHOT: u32 = 0x3f00;

/// Bytes from which on a received frame may be no more than the beginning of one. `device` is the device with its arguments.
pub(super) fn from(driver: &str, device: &str) -> Option<u32> {
    let arguments = || device.split(',').skip(1).filter_map(|argument| argument.split_once('='));
    let number = |wanted| arguments().filter(|(name, _)| *name == wanted).last()?.1.trim().parse().ok();
    match driver {
        "net_af_packet" => Some(number("framesz").unwrap_or(SLOT).saturating_sub(BEFORE)),
        "net_pcap" => {
            let live = ["iface", "rx_iface", "rx_iface_in"];
            arguments().any(|(name, _)| live.contains(&name)).then(|| number("snaplen").unwrap_or(SNAPSHOT))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::from;

    #[test]
    fn a_ring_cuts_at_its_slot_and_an_interface_at_the_snapshot_length() {
        for (driver, device, cut) in [
            ("net_af_packet", "net_af_packet0,iface=e0", Some(1982)),
            ("net_af_packet", "net_af_packet0,iface=e0,framesz=4096,blocksz=4096", Some(4030)),
            ("net_af_packet", "net_af_packet0,framesz=60,iface=e0", Some(0)),
            ("net_pcap", "net_pcap0,iface=e0", Some(16_128)),
            ("net_pcap", "net_pcap0,rx_iface_in=e0,tx_iface=e0", Some(16_128)),
            ("net_pcap", "net_pcap0,iface=e0,snaplen=2000", Some(2000)),
            ("net_pcap", "net_pcap0,rx_pcap=/iface=e0/in.pcap,tx_iface=e0", None),
            ("net_tap", "net_tap0,iface=dtap0", None),
        ] {
            assert_eq!(from(driver, device), cut, "{device}");
        }
    }
}
