//! The free addresses of one prefix.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::prefixes::{Span, merged, number, span};

/// The addresses of a prefix that are free, as runs: a pool of 2⁶⁴ addresses is as cheap as one of two. The prefix's first
/// address (the network address) is an address like any other, as Go's endpoints have it.
#[derive(Debug, Clone)]
pub struct Pool {
    prefix: IpNet,
    /// Start → end of each free run; no two touch.
    free: BTreeMap<u128, u128>,
}

impl Pool {
    /// All addresses of `prefix` are free; bits behind its length count as 0.
    pub fn new(prefix: IpNet) -> Self {
        let prefix = prefix.trunc();
        let (start, end) = span(&prefix);
        Self { prefix, free: BTreeMap::from([(start, end)]) }
    }

    /// Whose addresses these are.
    pub fn prefix(&self) -> IpNet {
        self.prefix
    }

    /// Takes the two lowest free addresses that no prefix of `excluded` covers. None, and nothing is taken, if there are no two.
    pub fn take_pair(&mut self, excluded: &Excluded) -> Option<(IpAddr, IpAddr)> {
        let first = self.lowest(excluded)?;
        self.take(first);
        let Some(second) = self.lowest(excluded) else {
            self.give_back(first);
            return None;
        };
        self.take(second);
        Some((first, second))
    }

    /// Takes the lowest free address that no prefix of `excluded` covers.
    pub fn take_one(&mut self, excluded: &Excluded) -> Option<IpAddr> {
        self.lowest(excluded).inspect(|address| _ = self.take(*address))
    }

    /// Takes this address. False if it is not of this prefix, or not free.
    pub fn take(&mut self, address: IpAddr) -> bool {
        if !self.prefix.contains(&address) {
            return false;
        }
        let number = number(address);
        let Some((&start, &end)) = self.free.range(..=number).next_back() else { return false };
        if end < number {
            return false;
        }
        self.free.remove(&start);
        if start < number {
            self.free.insert(start, number - 1);
        }
        if number < end {
            self.free.insert(number + 1, end);
        }
        true
    }

    /// Makes an address free that was taken; one that is of another prefix or is free already changes nothing.
    pub fn give_back(&mut self, address: IpAddr) {
        if !self.prefix.contains(&address) {
            return;
        }
        let number = number(address);
        let (mut start, mut end) = (number, number);
        if let Some((&before, &last)) = self.free.range(..=number).next_back() {
            if last >= number {
                return;
            }
            if last + 1 == number {
                self.free.remove(&before);
                start = before;
            }
        }
        if let Some(after) = number.checked_add(1).and_then(|next| self.free.remove(&next)) {
            end = after;
        }
        self.free.insert(start, end);
    }

    /// How many addresses are free.
    pub fn free(&self) -> u128 {
        self.free.iter().map(|(start, end)| (end - start).saturating_add(1)).fold(0, u128::saturating_add)
    }

    fn lowest(&self, excluded: &Excluded) -> Option<IpAddr> {
        let ranges = excluded.of(self.prefix.addr());
        self.free.iter().find_map(|(&start, &end)| {
            let candidate = skip(start, ranges)?;
            (candidate <= end).then(|| self.address(candidate))
        })
    }

    fn address(&self, number: u128) -> IpAddr {
        match self.prefix {
            // The pool's numbers are of its own family, so the cut loses nothing.
            IpNet::V4(_) => Ipv4Addr::from(number as u32).into(),
            IpNet::V6(_) => Ipv6Addr::from(number).into(),
        }
    }
}

/// Prefixes that must not be assigned from, sorted and merged so that a look-up is one pass.
#[derive(Debug, Clone, Default)]
pub struct Excluded {
    v4: Vec<Span>,
    v6: Vec<Span>,
}

impl Excluded {
    /// These prefixes.
    pub fn new<'a>(prefixes: impl IntoIterator<Item = &'a IpNet>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for prefix in prefixes {
            match prefix {
                IpNet::V4(_) => v4.push(span(prefix)),
                IpNet::V6(_) => v6.push(span(prefix)),
            }
        }
        Self { v4: merged(v4), v6: merged(v6) }
    }

    /// True if one of the prefixes contains the address.
    pub fn covers(&self, address: IpAddr) -> bool {
        let number = number(address);
        let ranges = self.of(address);
        let after = ranges.partition_point(|&(start, _)| start <= number);
        after > 0 && ranges[after - 1].1 >= number
    }

    fn of(&self, family: IpAddr) -> &[Span] {
        match family {
            IpAddr::V4(_) => &self.v4,
            IpAddr::V6(_) => &self.v6,
        }
    }
}

/// The first number from `start` on that no range covers. None if there is none up to the last number.
fn skip(start: u128, ranges: &[Span]) -> Option<u128> {
    let mut candidate = start;
    for &(from, to) in &ranges[ranges.partition_point(|&(_, to)| to < start)..] {
        if from > candidate {
            break;
        }
        candidate = to.checked_add(1)?;
    }
    Some(candidate)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_network_address_comes_first() {
        let mut pool = Pool::new(net("172.16.0.0/30"));
        assert_eq!(pool.take_pair(&Excluded::default()), Some((ip("172.16.0.0"), ip("172.16.0.1"))));
        assert_eq!(pool.take_pair(&Excluded::default()), Some((ip("172.16.0.2"), ip("172.16.0.3"))));
        assert_eq!(pool.take_pair(&Excluded::default()), None);
        pool.give_back(ip("172.16.0.1"));
        assert_eq!((pool.take_pair(&Excluded::default()), pool.free()), (None, 1), "half a pair is no pair");
    }

    #[test]
    fn the_ends_of_the_address_space_are_ordinary() {
        for prefix in
            ["255.255.255.254/31", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe/127", "0.0.0.0/31", "::/127"]
        {
            let mut pool = Pool::new(net(prefix));
            let (one, two) = pool.take_pair(&Excluded::default()).unwrap();
            assert_eq!(pool.free(), 0, "{prefix}");
            pool.give_back(two);
            pool.give_back(one);
            assert_eq!((pool.free(), pool.free.len()), (2, 1), "{prefix}: the runs are joined again");
        }
        assert_eq!(Pool::new(net("::/0")).free(), u128::MAX, "counted as many as fit");
        let all = Excluded::new(&[net("0.0.0.0/0"), net("::/0")]);
        assert_eq!(Pool::new(net("10.0.0.0/8")).take_pair(&all), None);
        assert_eq!(Pool::new(net("ff00::/8")).take_pair(&all), None);
    }

    #[test]
    fn excluded_prefixes_are_skipped_and_those_of_the_other_family_ignored() {
        let excluded = Excluded::new(&[net("10.0.0.0/31"), net("10.0.0.3/32"), net("::/0")]);
        let mut pool = Pool::new(net("10.0.0.0/29"));
        assert_eq!(pool.take_pair(&excluded), Some((ip("10.0.0.2"), ip("10.0.0.4"))));
        assert!(excluded.covers(ip("10.0.0.1")) && !excluded.covers(ip("10.0.0.2")));
    }

    proptest! {
        /// Against a set of numbers as the model: what is taken is free, lowest, in the prefix and not excluded.
        #[test]
        fn a_pool_is_the_set_of_its_free_addresses(
            excluded in prop::collection::vec((0_u8..64, 26_u8..=32), 0..4),
            steps in prop::collection::vec((0_u8..3, 0_u8..64), 1..80),
        ) {
            let prefix = net("192.0.2.0/26");
            let at = |n: u8| IpAddr::from([192, 0, 2, n]);
            let excluded: Vec<IpNet> = excluded.into_iter().map(|(n, len)| IpNet::new(at(n), len).unwrap()).collect();
            let ranges = Excluded::new(&excluded);
            let mut pool = Pool::new(prefix);
            let mut model: BTreeSet<IpAddr> = (0..64).map(at).collect();
            for (step, n) in steps {
                match step {
                    0 => prop_assert_eq!(pool.take(at(n)), model.remove(&at(n))),
                    1 => {
                        pool.give_back(at(n));
                        model.insert(at(n));
                    }
                    _ => {
                        let allowed: Vec<_> = model.iter().copied()
                            .filter(|a| !excluded.iter().any(|e| e.contains(a))).take(2).collect();
                        let expected = (allowed.len() == 2).then(|| (allowed[0], allowed[1]));
                        prop_assert_eq!(pool.take_pair(&ranges), expected);
                        if let Some((one, two)) = expected {
                            model.remove(&one);
                            model.remove(&two);
                        }
                    }
                }
                prop_assert_eq!(pool.free(), model.len() as u128);
                for a in (0..64).map(at) {
                    prop_assert_eq!(ranges.covers(a), excluded.iter().any(|e| e.contains(&a)));
                }
            }
        }
    }
}
