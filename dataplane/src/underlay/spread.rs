//! Over how many source ports a tunnel's flows go.
//!
//! More source ports are more paths through the network and more receive queues at the peer, but they cut the frames of a turn
//! into more calls. With few busy tunnels each takes several ports; with many, the tunnels themselves are spread, and one port
//! for each fills the calls (4.6 times the rate for mixed sizes over 64 tunnels). Changing the number moves flows to other
//! paths, so it is lowered at once but raised only after a long time without need.

use crate::tables::Tunnel;

/// Bursts after which the busy tunnels are counted anew.
const EPOCH_BURSTS: u32 = 1024;
/// Epochs that must all allow more ports before they are used: a second or two under load.
const EPOCHS_TO_RAISE: u32 = 256;
const SLOTS: usize = 1024;

/// Chooses source ports for tunnels and flows.
pub struct Spread {
    sockets: u32,
    most: u32,
    now: u32,
    seen: [u64; SLOTS / 64],
    tunnels: u32,
    bursts: u32,
    calm: u32,
}

/// The source ports of one tunnel.
#[derive(Clone, Copy)]
pub struct Ports {
    first: u32,
    step: u32,
    count: u32,
    sockets: u32,
}

impl Ports {
    /// The one for a flow.
    #[inline]
    pub const fn of(self, flow: u32) -> u16 {
        // The hash's highest 12 bits; the groups' filters use the others.
        let among = ((flow >> 20) * self.count) >> 12;
        let socket = self.first + among * self.step;
        (if socket < self.sockets { socket } else { socket - self.sockets }) as u16
    }
}

impl Spread {
    /// Among `sockets` ports, at most `most` for each tunnel.
    pub fn new(sockets: u16, most: u16) -> Self {
        let sockets = u32::from(sockets.max(1));
        let most = u32::from(most).clamp(1, sockets);
        Self { sockets, most, now: most, seen: [0; SLOTS / 64], tunnels: 0, bursts: 0, calm: 0 }
    }

    /// The ports of a tunnel that is about to send.
    #[inline]
    pub fn of(&mut self, tunnel: &Tunnel) -> Ports {
        self.bursts += 1;
        let slot = tunnel.port.slot() % SLOTS;
        let (word, bit) = (&mut self.seen[slot / 64], 1 << (slot % 64));
        self.tunnels += u32::from(*word & bit == 0);
        *word |= bit;
        let mixed = (u32::from(tunnel.port.0) ^ tunnel.vni.get() << 8).wrapping_mul(0x9e37_79b1) >> 16;
        Ports {
            first: mixed % self.sockets,
            step: self.sockets / self.now,
            count: self.now,
            sockets: self.sockets,
        }
    }

    /// Ends a turn. True if tunnels have other ports from now on.
    #[inline]
    pub fn turn_is_over(&mut self) -> bool {
        self.bursts >= EPOCH_BURSTS && self.count_anew()
    }

    fn count_anew(&mut self) -> bool {
        let wanted = (self.sockets / self.tunnels.max(1)).clamp(1, self.most);
        (self.bursts, self.tunnels, self.seen) = (0, 0, [0; SLOTS / 64]);
        self.calm = if wanted > self.now { self.calm + 1 } else { 0 };
        let change = wanted < self.now || self.calm >= EPOCHS_TO_RAISE;
        if change {
            (self.now, self.calm) = (wanted, 0);
        }
        change
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offload::Link;
    use crate::port::PortIndex;
    use crate::tables::Vni;
    use std::collections::BTreeSet;

    fn tunnel(port: u16) -> Tunnel {
        Tunnel {
            port: PortIndex(port),
            underlay: PortIndex(0),
            remote: "10.9.0.2:4789".parse().unwrap(),
            vni: Vni::new(u32::from(port) + 100).unwrap(),
            max_frame: 1464,
            link: Link::Ethernet,
        }
    }

    fn ports_used(spread: &mut Spread, port: u16) -> BTreeSet<u16> {
        let ports = spread.of(&tunnel(port));
        (0..4096).map(|flow| ports.of(flow << 20)).collect()
    }

    /// Turns in which `tunnels` send, until the ports change or the epochs are over.
    fn turns(spread: &mut Spread, tunnels: u16, epochs: u32) -> bool {
        (0..epochs * EPOCH_BURSTS / u32::from(tunnels)).any(|_| {
            (0..tunnels).for_each(|port| {
                spread.of(&tunnel(port));
            });
            spread.turn_is_over()
        })
    }

    #[test]
    fn a_lone_tunnel_uses_as_many_ports_as_it_may() {
        for (sockets, most) in [(16, 4), (16, 16), (5, 3), (1, 4)] {
            let used = ports_used(&mut Spread::new(sockets, most), 9);
            assert_eq!(used.len(), usize::from(most.min(sockets)), "{used:?}");
            assert!(used.iter().all(|port| *port < sockets));
        }
    }

    #[test]
    fn many_tunnels_use_one_port_each_and_all_ports_together() {
        let mut spread = Spread::new(16, 4);
        assert!(turns(&mut spread, 64, 1));
        let used: Vec<_> = (0..64).map(|port| ports_used(&mut spread, port)).collect();
        assert!(used.iter().all(|ports| ports.len() == 1));
        let together: BTreeSet<_> = used.iter().flatten().collect();
        assert_eq!(together.len(), 16);
    }

    #[test]
    fn ports_are_given_back_only_after_a_long_calm() {
        let mut spread = Spread::new(16, 4);
        assert!(turns(&mut spread, 64, 1));
        assert!(!turns(&mut spread, 1, EPOCHS_TO_RAISE - 1), "too soon");
        assert!(!turns(&mut spread, 64, 1), "calm is over");
        assert!(!turns(&mut spread, 1, EPOCHS_TO_RAISE - 1), "too soon again");
        assert!(turns(&mut spread, 1, 1));
        assert_eq!(ports_used(&mut spread, 1).len(), 4);
    }
}
