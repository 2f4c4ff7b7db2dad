//! Who has which frame of a UMEM: what the kernel says in its rings is held against this before a byte is touched.

/// One descriptor of the receive and transmit rings (`struct xdp_desc`).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Descriptor {
    /// The first byte, from the UMEM's first.
    pub address: u64,
    /// Bytes.
    pub len: u32,
    /// [`MORE`] or nothing.
    pub options: u32,
}

/// The packet goes on in the next descriptor (`XDP_PKT_CONTD`).
pub const MORE: u32 = 1;

/// What the kernel says can't be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadRing {
    /// More entries than the ring has, or fewer than none.
    #[error("a ring of {size} entries can't have {filled} filled")]
    Index {
        /// Entries of the ring.
        size: u32,
        /// Entries that are filled, if its indexes are to be believed.
        filled: u32,
    },
    /// An address outside the frames of this ring.
    #[error("address {address:#x} is outside the frames of this ring")]
    Outside {
        /// The address.
        address: u64,
    },
    /// A frame that the kernel did not have.
    #[error("frame {frame} was not the kernel's to return")]
    NotHeld {
        /// The frame's number.
        frame: u32,
    },
    /// A packet that leaves its frame.
    #[error("{len} bytes at {address:#x} do not fit into a frame of {frame_size}")]
    TooLong {
        /// The address.
        address: u64,
        /// Bytes.
        len: u32,
        /// Bytes of a frame.
        frame_size: u32,
    },
}

/// The entries that are filled, between a producer's and a consumer's index (`u32`, wrapping).
///
/// # Errors
/// If that is more than the ring has.
#[inline]
pub fn filled(size: u32, produced: u32, consumed: u32) -> Result<u32, BadRing> {
    let filled = produced.wrapping_sub(consumed);
    if filled > size { Err(BadRing::Index { size, filled }) } else { Ok(filled) }
}

/// A range of frames, and which of them the kernel has.
#[derive(Debug)]
pub struct Ledger {
    first: u32,
    frames: u32,
    shift: u32,
    held: Box<[u64]>,
}

impl Ledger {
    /// `frames` frames of `frame_size` bytes (a power of two), from the `first` one of the UMEM. The kernel has none.
    pub fn new(first: u32, frames: u32, frame_size: u32) -> Self {
        let words = frames.div_ceil(64) as usize;
        Self { first, frames, shift: frame_size.trailing_zeros(), held: vec![0; words].into_boxed_slice() }
    }

    /// The addresses of all frames.
    pub fn addresses(&self) -> impl Iterator<Item = u64> + use<> {
        let shift = self.shift;
        (self.first..self.first + self.frames).map(move |frame| u64::from(frame) << shift)
    }

    /// Bytes of a frame.
    pub fn frame_size(&self) -> u32 {
        1 << self.shift
    }

    /// The kernel gets the frame at `address`, which must be one of ours that it does not have.
    ///
    /// # Errors
    /// [`BadRing`]: a mistake of our own.
    #[inline]
    pub fn give(&mut self, address: u64) -> Result<(), BadRing> {
        let (word, bit, frame) = self.place(address)?;
        if self.held[word] & bit != 0 {
            return Err(BadRing::NotHeld { frame });
        }
        self.held[word] |= bit;
        Ok(())
    }

    /// The kernel gives a frame back, naming any byte of it. Returns the address of its first.
    ///
    /// # Errors
    /// [`BadRing`] if it is none of ours, or the kernel did not have it.
    #[inline]
    pub fn take_back(&mut self, address: u64) -> Result<u64, BadRing> {
        let (word, bit, frame) = self.place(address)?;
        if self.held[word] & bit == 0 {
            return Err(BadRing::NotHeld { frame });
        }
        self.held[word] &= !bit;
        Ok(u64::from(frame) << self.shift)
    }

    /// The kernel gives a frame back with a packet in it. Returns the address of the frame's first byte.
    ///
    /// # Errors
    /// As [`Ledger::take_back`], and if the packet leaves the frame.
    #[inline]
    pub fn receive(&mut self, packet: &Descriptor) -> Result<u64, BadRing> {
        let (address, len, frame_size) = (packet.address, packet.len, self.frame_size());
        let offset = (address & u64::from(frame_size - 1)) as u32;
        if len > frame_size - offset {
            return Err(BadRing::TooLong { address, len, frame_size });
        }
        self.take_back(address)
    }

    #[inline]
    fn place(&self, address: u64) -> Result<(usize, u64, u32), BadRing> {
        let outside = BadRing::Outside { address };
        let frame = u32::try_from(address >> self.shift).map_err(|_| outside)?;
        match frame.checked_sub(self.first) {
            Some(nth) if nth < self.frames => Ok(((nth / 64) as usize, 1 << (nth % 64), frame)),
            _ => Err(outside),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_frame_comes_back_once() {
        let mut ledger = Ledger::new(4, 4, 2048);
        assert_eq!(ledger.addresses().collect::<Vec<_>>(), [8192, 10_240, 12_288, 14_336]);
        assert_eq!(ledger.take_back(8192), Err(BadRing::NotHeld { frame: 4 }));
        assert_eq!(ledger.give(8192), Ok(()));
        assert_eq!(ledger.give(8192), Err(BadRing::NotHeld { frame: 4 }));
        assert_eq!(ledger.take_back(8192 + 256), Ok(8192));
        assert_eq!(ledger.take_back(8192), Err(BadRing::NotHeld { frame: 4 }));
    }

    #[test]
    fn a_packet_stays_in_its_frame() {
        let mut ledger = Ledger::new(0, 2, 2048);
        ledger.give(2048).unwrap();
        let packet = |address, len| Descriptor { address, len, options: 0 };
        assert!(matches!(ledger.receive(&packet(2048 + 256, 1793)), Err(BadRing::TooLong { .. })));
        assert!(matches!(ledger.receive(&packet(2048, u32::MAX)), Err(BadRing::TooLong { .. })));
        assert_eq!(ledger.receive(&packet(4096, 60)), Err(BadRing::Outside { address: 4096 }));
        assert!(matches!(ledger.receive(&packet(u64::MAX, 1)), Err(BadRing::Outside { .. })));
        assert_eq!(ledger.receive(&packet(2048 + 256, 1792)), Ok(2048));
    }

    #[test]
    fn indexes_may_wrap_but_not_overtake() {
        assert_eq!(filled(8, 3, u32::MAX - 1), Ok(5));
        assert_eq!(filled(8, 8, 0), Ok(8));
        assert_eq!(filled(8, 9, 0), Err(BadRing::Index { size: 8, filled: 9 }));
        assert_eq!(filled(8, 0, 1), Err(BadRing::Index { size: 8, filled: u32::MAX }));
    }

    proptest! {
        /// Whatever the kernel says: a frame that is accepted is ours, was the kernel's, and the packet lies inside it.
        #[test]
        fn what_is_accepted_is_inside(
            first in 0u32..8,
            given in proptest::collection::vec(0u32..16, 0..16),
            claims in proptest::collection::vec((any::<u64>(), any::<u32>(), 0u64..0x20_000, 0u32..4096), 0..32),
        ) {
            let mut ledger = Ledger::new(first, 16, 4096);
            let mut held = std::collections::BTreeSet::new();
            for nth in given {
                let address = u64::from(first + nth) * 4096;
                prop_assert_eq!(ledger.give(address).is_ok(), held.insert(address));
            }
            for (far, long, near, short) in claims {
                for packet in [(far, long), (near, short)] {
                    let packet = Descriptor { address: packet.0, len: packet.1, options: 0 };
                    if let Ok(frame) = ledger.receive(&packet) {
                        prop_assert!(held.remove(&frame));
                        prop_assert!(frame <= packet.address);
                        prop_assert!(packet.address + u64::from(packet.len) <= frame + 4096);
                    }
                }
            }
        }
    }
}
