//! What was looked up lately. A worker's own, in front of the tables: one look instead of two or three walks down a trie, for as long as
//! the tables are the same. Whoever sends to many addresses at once pushes others out of it, and costs them no more than the walk.

use std::net::IpAddr;

use crate::route::domain::MemberIndex;
use crate::tables::Place;

/// Places; each address has one.
const PLACES: usize = 256;
/// A publication that there never is.
const NEVER: u64 = u64::MAX;

/// What is looked up, and in which version of the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Key {
    pub publication: u64,
    pub place: Place,
    pub address: IpAddr,
}

impl Key {
    /// The same for all ports of the domain.
    pub fn of_all_ports(self) -> Self {
        Self { place: Place { member: MemberIndex::SELF, ..self.place }, ..self }
    }

    #[inline]
    fn slot(&self) -> usize {
        let bits = match self.address {
            IpAddr::V4(v4) => u64::from(u32::from(v4)),
            IpAddr::V6(v6) => {
                let bits = u128::from(v6);
                (bits ^ bits >> 64) as u64
            }
        };
        (bits.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as usize % PLACES
    }
}

/// See the module.
pub(super) struct Recent<T>(Box<[(Key, T)]>);

impl<T: Copy> Recent<T> {
    /// Nothing; `filler` is never seen.
    pub fn new(filler: T) -> Self {
        let place = Place { domain: Default::default(), member: MemberIndex::SELF };
        let key = Key { publication: NEVER, place, address: IpAddr::from([0, 0, 0, 0]) };
        Self(vec![(key, filler); PLACES].into_boxed_slice())
    }

    /// What was found.
    #[inline]
    pub fn get(&self, key: &Key) -> Option<T> {
        let (held, found) = self.0.get(key.slot())?;
        (held == key).then_some(*found)
    }

    /// Remembers it.
    #[inline]
    pub fn put(&mut self, key: Key, found: T) {
        if let Some(slot) = self.0.get_mut(key.slot()) {
            *slot = (key, found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::domain::DomainIndex;

    fn key(publication: u64, domain: u16, member: u16, address: &str) -> Key {
        let place = Place { domain: DomainIndex(domain), member: MemberIndex(member) };
        Key { publication, place, address: address.parse().unwrap() }
    }

    #[test]
    fn what_was_found_holds_for_its_place_and_its_tables_only() {
        let mut recent = Recent::new(0);
        let one = key(1, 2, 3, "10.0.0.1");
        assert_eq!(recent.get(&one), None);
        recent.put(one, 7);
        assert_eq!(recent.get(&one), Some(7));
        for other in [
            key(2, 2, 3, "10.0.0.1"),
            key(1, 1, 3, "10.0.0.1"),
            key(1, 2, 4, "10.0.0.1"),
            key(1, 2, 3, "10.0.0.2"),
            key(1, 2, 3, "::a00:1"),
            one.of_all_ports(),
        ] {
            assert_eq!(recent.get(&other), None, "{other:?}");
        }
        recent.put(one.of_all_ports(), 8);
        assert_eq!(recent.get(&key(1, 2, 9, "10.0.0.1").of_all_ports()), Some(8));
    }

    #[test]
    fn neighbouring_addresses_have_places_of_their_own() {
        let mut recent = Recent::new(0);
        let all: Vec<Key> = (1..65).map(|i| key(1, 0, 0, &format!("10.1.{i}.1"))).collect();
        all.iter().zip(0..).for_each(|(key, i)| recent.put(*key, i));
        let kept = all.iter().zip(0..).filter(|(key, i)| recent.get(key) == Some(*i)).count();
        assert!(kept >= 40, "{kept} of 64");
    }
}
