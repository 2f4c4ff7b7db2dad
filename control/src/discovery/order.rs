//! The order in which SRV records are tried (RFC 2782).

use std::collections::HashSet;

use rand::Rng;

use super::Srv;
use crate::transport::Target;

/// Lower priorities first; among equals at random, each as likely to be first as its weight says. Those of weight 0 have a very small
/// chance of coming before others.
pub(super) fn by_priority_and_weight(records: Vec<Srv>) -> Vec<Srv> {
    order(records, &mut rand::rng())
}

fn order(mut left: Vec<Srv>, random: &mut impl Rng) -> Vec<Srv> {
    // Weight 0 first, as the RFC wants it: it is chosen when the number that is drawn is 0.
    left.sort_by_key(|record| (record.priority, record.weight));
    let mut ordered = Vec::with_capacity(left.len());
    while let Some(priority) = left.first().map(|record| record.priority) {
        let equals = left.iter().take_while(|record| record.priority == priority).count();
        let total: u64 = left[..equals].iter().map(|record| u64::from(record.weight)).sum();
        let drawn = drawn(random, total);
        let mut sum = 0;
        let chosen = left[..equals].iter().position(|record| {
            sum += u64::from(record.weight);
            sum >= drawn
        });
        ordered.push(left.remove(chosen.unwrap_or(0)));
    }
    ordered
}

/// A number from 0 to `most`.
fn drawn(random: &mut impl Rng, most: u64) -> u64 {
    random.next_u64() % (most + 1)
}

/// The first of each.
pub(super) fn once_each(targets: Vec<Target>) -> Vec<Target> {
    let mut seen = HashSet::new();
    targets.into_iter().filter(|target| seen.insert(target.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    fn srv(priority: u16, weight: u16, host: &str) -> Srv {
        Srv { priority, weight, port: 5002, host: host.into() }
    }

    #[test]
    fn priorities_come_in_order_and_weights_as_often_as_they_say() {
        let mut random = StdRng::seed_from_u64(1);
        let records =
            vec![srv(20, 1, "last"), srv(10, 0, "zero"), srv(10, 90, "often"), srv(10, 10, "seldom")];
        let mut first = std::collections::HashMap::new();
        for _ in 0..10_000 {
            let ordered = order(records.clone(), &mut random);
            assert_eq!(ordered.len(), 4);
            assert_eq!(ordered[3].host, "last");
            *first.entry(ordered[0].host.clone()).or_insert(0_u32) += 1;
        }
        assert!((8_500..9_300).contains(&first["often"]), "{first:?}");
        assert!((700..1_300).contains(&first["seldom"]), "{first:?}");
        assert!(first.get("zero").copied().unwrap_or(0) < 250, "{first:?}");
    }
}
