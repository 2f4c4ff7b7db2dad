//! A prefix cut into blocks of one length, counted from 0: which of them are taken, and the lowest that is not.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::prefixes::{Span, merged, number, span};

/// How far the length of a block may be behind that of the prefix: blocks are counted.
pub(super) const MAX_BITS: u8 = 64;

/// How a prefix is cut.
#[derive(Debug, Clone, Copy)]
pub(super) struct Blocks {
    prefix: IpNet,
    len: u8,
}

impl Blocks {
    /// Blocks of `/len` in `prefix`; none if there are no such, or more than 2⁶⁴ ([`MAX_BITS`]).
    pub fn new(prefix: IpNet, len: u8) -> Option<Self> {
        let prefix = prefix.trunc();
        let fits = len > 0
            && prefix.prefix_len() <= len
            && len <= prefix.max_prefix_len()
            && len - prefix.prefix_len() <= MAX_BITS;
        fits.then_some(Self { prefix, len })
    }

    pub fn prefix(&self) -> IpNet {
        self.prefix
    }

    /// The blocks' length.
    pub fn len(&self) -> u8 {
        self.len
    }

    /// How many there are.
    pub fn count(&self) -> u128 {
        1 << (self.len - self.prefix.prefix_len())
    }

    /// The block of this number.
    pub fn block(&self, number: u128) -> Option<IpNet> {
        let first = self.first() + (number << self.bits());
        let address: IpAddr = match self.prefix {
            // The prefix's numbers are of its own family, so the cut loses nothing.
            IpNet::V4(_) => Ipv4Addr::from(first as u32).into(),
            IpNet::V6(_) => Ipv6Addr::from(first).into(),
        };
        IpNet::new(address, self.len).ok()
    }

    /// The blocks that have an address in common with `prefix`.
    pub fn touched(&self, prefix: &IpNet) -> Option<Span> {
        if self.prefix.contains(prefix) {
            let (start, end) = self.offsets(prefix);
            Some((start >> self.bits(), end >> self.bits()))
        } else {
            prefix.contains(&self.prefix).then(|| (0, self.count() - 1))
        }
    }

    /// The blocks of which `prefixes` together leave no address.
    pub fn covered(&self, prefixes: &[IpNet]) -> Vec<Span> {
        let ranges = prefixes.iter().filter_map(|prefix| {
            if self.prefix.contains(prefix) {
                Some(self.offsets(prefix))
            } else {
                prefix.contains(&self.prefix).then(|| self.offsets(&self.prefix))
            }
        });
        let whole = |(start, end): Span| {
            let within = (1_u128 << self.bits()) - 1;
            let first = (start >> self.bits()) + u128::from(start & within != 0);
            // None is behind the end of the address space.
            let behind = end.checked_add(1).map_or(self.count(), |behind| behind >> self.bits());
            (first < behind).then(|| (first, behind - 1))
        };
        merged(ranges.collect()).into_iter().filter_map(whole).collect()
    }

    /// The lowest block that is in none of the spans.
    pub fn lowest_beside(&self, taken: Vec<Span>) -> Option<IpNet> {
        let mut lowest = 0;
        for (first, last) in merged(taken) {
            if first > lowest {
                break;
            }
            lowest = last + 1;
        }
        (lowest < self.count()).then(|| self.block(lowest)).flatten()
    }

    /// How many blocks are in none of the spans.
    pub fn count_beside(&self, taken: Vec<Span>) -> u128 {
        let taken: u128 = merged(taken).into_iter().map(|(first, last)| last - first + 1).sum();
        self.count() - taken
    }

    /// Bits of an address in its block: fewer than 128.
    fn bits(&self) -> u32 {
        u32::from(self.prefix.max_prefix_len() - self.len)
    }

    fn first(&self) -> u128 {
        number(self.prefix.network())
    }

    /// The first and the last address of a prefix in ours, counted from our first.
    fn offsets(&self, prefix: &IpNet) -> Span {
        let (first, last) = span(prefix);
        (first - self.first(), last - self.first())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn a_prefix_is_cut_into_blocks_of_one_length() {
        for (prefix, len, count, second) in [
            ("172.16.0.0/16", 24, 256, "172.16.1.0/24"),
            ("0.0.0.0/0", 32, 1 << 32, "0.0.0.1/32"),
            ("fd00::/48", 64, 1 << 16, "fd00:0:0:1::/64"),
            ("::/0", 64, 1 << 64, "0:0:0:1::/64"),
            ("ffff::/16", 80, 1 << 64, "ffff:0:0:0:1::/80"),
        ] {
            let blocks = Blocks::new(net(prefix), len).unwrap();
            assert_eq!(blocks.count(), count, "{prefix}");
            assert_eq!(blocks.lowest_beside(vec![(0, 0)]), Some(net(second)), "{prefix}");
            assert_eq!(blocks.lowest_beside(vec![(0, count - 1)]), None, "{prefix}");
            let last = blocks.block(count - 1).unwrap();
            assert_eq!(blocks.touched(&last), Some((count - 1, count - 1)), "{prefix}: {last}");
            assert_eq!(blocks.covered(&[last]), [(count - 1, count - 1)], "{prefix}");
            assert_eq!(blocks.covered(&[net(prefix)]), [(0, count - 1)], "{prefix}");
        }
        for (prefix, len) in [("10.0.0.0/24", 23), ("10.0.0.0/24", 33), ("fd00::/48", 113), ("::/0", 0)] {
            assert!(Blocks::new(net(prefix), len).is_none(), "{prefix} /{len}");
        }
    }

    #[test]
    fn a_block_is_covered_only_as_a_whole() {
        let blocks = Blocks::new(net("10.0.0.0/22"), 24).unwrap();
        assert_eq!(blocks.covered(&[net("10.0.1.0/25"), net("10.0.1.128/25")]), [(1, 1)]);
        assert_eq!(blocks.covered(&[net("10.0.0.128/25"), net("10.0.1.0/25"), net("fd00::/8")]), []);
        assert_eq!(blocks.touched(&net("10.0.1.128/25")), Some((1, 1)));
        assert_eq!(blocks.touched(&net("10.0.0.0/8")), Some((0, 3)));
        assert_eq!(blocks.touched(&net("10.0.4.0/24")), None);
    }

    proptest! {
        /// Against a look at each address.
        #[test]
        fn spans_are_what_a_look_at_each_address_says(
            prefixes in prop::collection::vec((0_u8..=255, 22_u8..=32), 0..6),
        ) {
            let blocks = Blocks::new(net("10.0.0.0/24"), 28).unwrap();
            let prefixes: Vec<IpNet> =
                prefixes.into_iter().map(|(n, len)| IpNet::new([10, 0, 0, n].into(), len).unwrap().trunc()).collect();
            let addresses = |number| blocks.block(number).unwrap().hosts().collect::<Vec<_>>();
            let hit = |address: &IpAddr| prefixes.iter().any(|prefix| prefix.contains(address));
            let covered = blocks.covered(&prefixes);
            let touched: Vec<Span> = prefixes.iter().filter_map(|prefix| blocks.touched(prefix)).collect();
            let mut free = Vec::new();
            for number in 0..blocks.count() {
                let block = blocks.block(number).unwrap();
                let all: Vec<IpAddr> = addresses(number).into_iter().chain([block.network(), block.broadcast()]).collect();
                let is_in = |spans: &[Span]| spans.iter().any(|(first, last)| (*first..=*last).contains(&number));
                prop_assert_eq!(is_in(&covered), all.iter().all(hit), "{}", block);
                prop_assert_eq!(is_in(&touched), all.iter().any(hit), "{}", block);
                if !is_in(&touched) {
                    free.push(block);
                }
            }
            prop_assert_eq!(blocks.count_beside(touched.clone()), free.len() as u128);
            prop_assert_eq!(blocks.lowest_beside(touched), free.first().copied());
        }
    }
}
