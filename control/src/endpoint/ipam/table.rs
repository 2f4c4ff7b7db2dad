//! Who has which addresses.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Excluded, Groups, Pool};

/// What happens to addresses that a request brings and that are not the connection's: after the endpoint was replaced, say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Policy {
    /// They stay, and those that are free in a pool here become the connection's own.
    #[default]
    Polite,
    /// Those outside this endpoint's prefixes are removed, with their routes.
    Strict,
}

/// The two ends' addresses from one group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    /// The endpoint's.
    pub dst: IpAddr,
    /// The client's.
    pub src: IpAddr,
}

/// No two addresses are left in a group.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "no two addresses are left in {prefixes} outside the {excluded} excluded prefixes of the request; add a prefix to the \
         endpoint's group or close connections"
)]
pub struct Exhausted {
    /// The group's prefixes.
    pub prefixes: String,
    /// How many prefixes the request excluded.
    pub excluded: usize,
}

/// The pools of an endpoint, and the addresses of its connections.
#[derive(Debug)]
pub struct Table {
    groups: Vec<Vec<Pool>>,
    taken: HashMap<String, Vec<Pair>>,
}

impl Table {
    /// All addresses of these groups are free.
    pub fn new(groups: &Groups) -> Self {
        let pools = |group: &Vec<IpNet>| group.iter().copied().map(Pool::new).collect();
        Self { groups: groups.0.iter().map(pools).collect(), taken: HashMap::new() }
    }

    /// The addresses of a connection, one pair for each group; none if it has none yet.
    pub fn get(&self, connection: &str) -> Option<&[Pair]> {
        self.taken.get(connection).map(Vec::as_slice)
    }

    /// The connection's addresses: those it has, but for pairs that `excluded` covers, which are replaced; if it has none, the
    /// `wished` ones that are free, else the lowest.
    ///
    /// # Errors
    /// [`Exhausted`]; the connection then has what it had.
    pub fn assign(
        &mut self,
        connection: &str,
        wished: &[Pair],
        excluded: &Excluded,
        excluded_count: usize,
    ) -> Result<&[Pair], Exhausted> {
        let before = self.taken.get(connection).cloned();
        let mut pairs = Vec::with_capacity(self.groups.len());
        for group in 0..self.groups.len() {
            let kept = before.as_ref().map(|pairs| pairs[group]).filter(|pair| usable(pair, excluded));
            let wish = || if before.is_none() { self.grant(group, wished, excluded) } else { None };
            // One closure borrows the pools at a time, so no `or_else` chain.
            let pair = match kept {
                Some(pair) => Some(pair),
                None => match { wish }() {
                    Some(pair) => Some(pair),
                    None => self.lowest(group, excluded),
                },
            };
            let Some(pair) = pair else {
                let exhausted = self.exhausted(group, excluded_count);
                let fresh = pairs.iter().filter(|pair| !before.iter().flatten().any(|old| old == *pair));
                for pair in fresh.copied().collect::<Vec<_>>() {
                    self.give_back(pair);
                }
                return Err(exhausted);
            };
            pairs.push(pair);
        }
        for old in before.into_iter().flatten().filter(|old| !pairs.contains(old)) {
            self.give_back(old);
        }
        Ok(self.taken.entry(connection.to_owned()).insert_entry(pairs).into_mut())
    }

    /// Frees the addresses of a connection; one that has none changes nothing.
    pub fn free(&mut self, connection: &str) {
        for pair in self.taken.remove(connection).into_iter().flatten() {
            self.give_back(pair);
        }
    }

    /// True if the address is of one of the prefixes.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.groups.iter().flatten().any(|pool| pool.prefix().contains(&address))
    }

    /// Takes the first wished pair whose both ends are free in one pool of the group.
    fn grant(&mut self, group: usize, wished: &[Pair], excluded: &Excluded) -> Option<Pair> {
        wished.iter().copied().filter(|pair| pair.dst != pair.src && usable(pair, excluded)).find(|pair| {
            self.groups[group].iter_mut().any(|pool| {
                if !pool.take(pair.dst) {
                    return false;
                }
                let both = pool.take(pair.src);
                if !both {
                    pool.give_back(pair.dst);
                }
                both
            })
        })
    }

    fn lowest(&mut self, group: usize, excluded: &Excluded) -> Option<Pair> {
        let pair = self.groups[group].iter_mut().find_map(|pool| pool.take_pair(excluded));
        pair.map(|(dst, src)| Pair { dst, src })
    }

    fn give_back(&mut self, pair: Pair) {
        for pool in self.groups.iter_mut().flatten() {
            pool.give_back(pair.dst);
            pool.give_back(pair.src);
        }
    }

    fn exhausted(&self, group: usize, excluded: usize) -> Exhausted {
        let prefixes: Vec<String> = self.groups[group].iter().map(|pool| pool.prefix().to_string()).collect();
        Exhausted { prefixes: prefixes.join(", "), excluded }
    }
}

fn usable(pair: &Pair, excluded: &Excluded) -> bool {
    !excluded.covers(pair.dst) && !excluded.covers(pair.src)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn table(groups: &str) -> Table {
        Table::new(&groups.parse().unwrap())
    }

    fn pair(dst: &str, src: &str) -> Pair {
        Pair { dst: dst.parse().unwrap(), src: src.parse().unwrap() }
    }

    fn assign(table: &mut Table, id: &str, excluded: &[&str]) -> Result<Vec<Pair>, Exhausted> {
        let nets: Vec<IpNet> = excluded.iter().map(|e| e.parse().unwrap()).collect();
        table.assign(id, &[], &Excluded::new(&nets), nets.len()).map(<[_]>::to_vec)
    }

    #[test]
    fn pairs_are_kept_replaced_and_freed() {
        let mut table = table("169.254.0.0/16");
        assert_eq!(assign(&mut table, "a", &[]).unwrap(), [pair("169.254.0.0", "169.254.0.1")]);
        assert_eq!(assign(&mut table, "b", &[]).unwrap(), [pair("169.254.0.2", "169.254.0.3")]);
        assert_eq!(assign(&mut table, "a", &[]).unwrap(), [pair("169.254.0.0", "169.254.0.1")], "a refresh");
        let moved = assign(&mut table, "a", &["169.254.0.0/31"]).unwrap();
        assert_eq!(moved, [pair("169.254.0.4", "169.254.0.5")], "its own were excluded");
        assert_eq!(assign(&mut table, "c", &[]).unwrap(), [pair("169.254.0.0", "169.254.0.1")], "and freed");
        table.free("b");
        table.free("never there");
        assert_eq!(assign(&mut table, "d", &[]).unwrap(), [pair("169.254.0.2", "169.254.0.3")]);
    }

    #[test]
    fn a_group_goes_on_with_its_next_prefix_and_each_group_gives_a_pair() {
        let mut table = table("[10.0.0.0/31,10.0.1.0/31],fd00::/64");
        assert_eq!(
            assign(&mut table, "a", &[]).unwrap(),
            [pair("10.0.0.0", "10.0.0.1"), pair("fd00::", "fd00::1")]
        );
        assert_eq!(
            assign(&mut table, "b", &[]).unwrap(),
            [pair("10.0.1.0", "10.0.1.1"), pair("fd00::2", "fd00::3")]
        );
        let full = assign(&mut table, "c", &["192.0.2.0/24"]).unwrap_err().to_string();
        assert!(full.contains("10.0.0.0/31, 10.0.1.0/31") && full.contains("1 excluded"), "{full}");
    }

    #[test]
    fn a_failure_changes_nothing() {
        let mut table = table("fd00::/64,10.0.0.0/31");
        assign(&mut table, "a", &[]).unwrap();
        assert!(assign(&mut table, "b", &[]).is_err());
        assert!(table.get("b").is_none());
        assert!(assign(&mut table, "a", &["10.0.0.0/8", "fd00::/127"]).is_err());
        assert_eq!(table.get("a").unwrap(), [pair("fd00::", "fd00::1"), pair("10.0.0.0", "10.0.0.1")]);
        table.free("a");
        let again = assign(&mut table, "b", &[]).unwrap();
        assert_eq!(again, [pair("fd00::", "fd00::1"), pair("10.0.0.0", "10.0.0.1")], "nothing leaked");
    }

    #[test]
    fn a_wish_is_granted_if_both_ends_are_free() {
        let mut table = table("10.0.0.0/24");
        let wish = [pair("192.0.2.1", "192.0.2.2"), pair("10.0.0.8", "10.0.0.9")];
        let got = table.assign("a", &wish, &Excluded::default(), 0).unwrap().to_vec();
        assert_eq!(got, [pair("10.0.0.8", "10.0.0.9")]);
        let half = [pair("10.0.0.20", "10.0.0.9")];
        let got = table.assign("b", &half, &Excluded::default(), 0).unwrap().to_vec();
        assert_eq!(got, [pair("10.0.0.0", "10.0.0.1")], "the client's end is another's");
        let same = [pair("10.0.0.20", "10.0.0.20")];
        assert_eq!(
            table.assign("c", &same, &Excluded::default(), 0).unwrap(),
            [pair("10.0.0.2", "10.0.0.3")]
        );
        assert_eq!(assign(&mut table, "d", &[]).unwrap(), [pair("10.0.0.4", "10.0.0.5")]);
        table.free("b");
        assert_eq!(
            table.assign("e", &[pair("10.0.0.20", "10.0.0.0")], &Excluded::default(), 0).unwrap(),
            [pair("10.0.0.20", "10.0.0.0")],
            "the half grant before took nothing"
        );
    }

    proptest! {
        /// No two connections ever share an address, all are inside the prefixes and outside what was excluded, and when all are
        /// closed all addresses are free.
        #[test]
        fn addresses_are_never_shared_and_never_lost(
            steps in prop::collection::vec((0_u8..8, any::<bool>(), prop::collection::vec((0_u8..32, 27_u8..=32), 0..2),
                prop::collection::vec((0_u8..32, 0_u8..32), 0..2)), 1..60),
        ) {
            let mut table = table("[192.0.2.0/28,192.0.2.16/29],fd00::/124");
            let free = |t: &Table| t.groups.iter().flatten().map(Pool::free).sum::<u128>();
            let whole = free(&table);
            let at = |n: u8| IpAddr::from([192, 0, 2, n]);
            for (id, close, excluded, wished) in steps {
                let id = format!("c{id}");
                if close {
                    table.free(&id);
                } else {
                    let nets: Vec<IpNet> = excluded.into_iter().map(|(n, len)| IpNet::new(at(n), len).unwrap()).collect();
                    let wished: Vec<Pair> = wished.into_iter().map(|(a, b)| Pair { dst: at(a), src: at(b) }).collect();
                    let before = table.get(&id).map(<[_]>::to_vec);
                    match table.assign(&id, &wished, &Excluded::new(&nets), nets.len()).map(<[_]>::to_vec) {
                        Ok(pairs) => for pair in pairs {
                            prop_assert!(table.contains(pair.dst) && table.contains(pair.src));
                            prop_assert!(!nets.iter().any(|n| n.contains(&pair.dst) || n.contains(&pair.src)));
                        },
                        Err(_) => prop_assert_eq!(table.get(&id).map(<[_]>::to_vec), before),
                    }
                }
                let mut seen = HashSet::new();
                for pair in table.taken.values().flatten() {
                    prop_assert!(seen.insert(pair.dst) && seen.insert(pair.src), "{:?} shared", pair);
                }
                prop_assert_eq!(free(&table) + seen.len() as u128, whole);
            }
            for id in 0..8 {
                table.free(&format!("c{id}"));
            }
            prop_assert_eq!(free(&table), whole);
            prop_assert!(table.taken.is_empty());
        }
    }
}
