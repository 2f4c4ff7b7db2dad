use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;

fn v4(text: &str) -> u32 {
    text.parse::<Ipv4Addr>().unwrap().into()
}

fn v6(text: &str) -> u128 {
    text.parse::<Ipv6Addr>().unwrap().into()
}

#[test]
fn the_longest_prefix_wins_whatever_came_first() {
    let prefixes = [("0.0.0.0", 0), ("10.0.0.0", 8), ("10.60.0.0", 16), ("10.60.1.0", 24), ("10.60.1.2", 32)];
    for order in [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 4, 0, 3, 1]] {
        let mut trie = Trie::default();
        for i in order {
            assert_eq!(trie.insert(v4(prefixes[i].0), prefixes[i].1, i), None);
        }
        let found = |address| trie.lookup(v4(address)).copied();
        let expected =
            [("10.60.1.2", 4), ("10.60.1.3", 3), ("10.60.2.2", 2), ("10.61.0.1", 1), ("11.0.0.0", 0)];
        for (address, value) in expected {
            assert_eq!(found(address), Some(value), "{address} in order {order:?}");
        }
        assert_eq!(trie.len(), 5);
    }
}

#[test]
fn a_prefix_is_replaced_and_taken_away_alone() {
    let mut trie = Trie::default();
    trie.insert(v6("fd60::"), 64, 'a');
    assert_eq!(trie.insert(v6("fd60::"), 64, 'b'), Some('a'));
    trie.insert(v6("fd60::7"), 128, 'c');
    assert_eq!(trie.remove(v6("fd60::"), 63), None);
    assert_eq!(trie.remove(v6("fd60::"), 64), Some('b'));
    assert_eq!((trie.lookup(v6("fd60::7")), trie.lookup(v6("fd60::8"))), (Some(&'c'), None));
    assert_eq!(trie.remove(v6("fd60::7"), 128), Some('c'));
    assert!(trie.is_empty() && trie.root.is_none(), "no node is left behind");
}

#[test]
fn hosts_of_one_network_are_few_nodes_deep() {
    let mut trie = Trie::default();
    for host in 1..=10u32 {
        trie.insert(v6("fd60::") + u128::from(host), 128, host);
    }
    let root = trie.root.as_ref().unwrap();
    assert_eq!((root.level, root.nodes.len()), (21, 0), "ten /128 share one node");
}

#[test]
fn a_change_of_a_copy_leaves_the_original_and_copies_only_its_path() {
    let mut trie = Trie::default();
    for net in 0..4096u32 {
        trie.insert(net << 12, 24, net);
    }
    let before = trie.clone();
    trie.insert(v4("0.0.0.0"), 0, 9999);
    trie.remove(5 << 12, 24);
    assert_eq!((before.lookup(5 << 12), before.lookup(u32::MAX)), (Some(&5), None));
    assert_eq!((trie.lookup(5 << 12), trie.lookup(u32::MAX)), (Some(&9999), Some(&9999)));
    let shared = |a: &Trie<u32, u32>, b: &Trie<u32, u32>| {
        let all = |trie: &Trie<u32, u32>| {
            let (mut nodes, mut seen) = (vec![trie.root.clone().unwrap()], Vec::new());
            while let Some(node) = nodes.pop() {
                seen.push(Arc::as_ptr(&node.values).cast::<u32>() as usize);
                nodes.extend(node.nodes.iter().cloned());
            }
            seen
        };
        let known: std::collections::HashSet<_> = all(a).into_iter().collect();
        all(b).into_iter().filter(|values| !known.contains(values)).count()
    };
    assert!(shared(&before, &trie) <= 3, "{} nodes have new values", shared(&before, &trie));
}

/// The same by the definition: the longest of all prefixes that match.
struct Naive<K>(HashMap<(K, u32), u16>);

impl<K: Key + std::hash::Hash> Naive<K> {
    fn lookup(&self, key: K) -> Option<u16> {
        (0..=K::BITS).rev().find_map(|len| self.0.get(&(key.cut(len), len)).copied())
    }
}

#[derive(Debug, Clone)]
enum Step<K> {
    Insert(K, u32, u16),
    Remove(K, u32),
}

/// Prefixes that are near each other: few distinct bits, at all lengths.
fn steps<K: Key + 'static>(
    spread: impl Fn(u64) -> K + Copy + 'static,
) -> impl Strategy<Value = Vec<Step<K>>> {
    let key = prop_oneof![3 => 0u64..64, 1 => any::<u64>()].prop_map(spread);
    let step = (key, 0..=K::BITS, any::<u16>(), 0u8..4).prop_map(|(key, len, value, kind)| match kind {
        0 => Step::Remove(key, len),
        _ => Step::Insert(key, len, value),
    });
    prop::collection::vec(step, 0..200)
}

/// Runs the steps on the trie, the definition and `prefix-trie`, which have to agree after each.
fn agree<K: Key + std::hash::Hash, P: prefix_trie::Prefix>(
    steps: Vec<Step<K>>,
    prefix: impl Fn(K, u32) -> P,
) {
    let (mut trie, mut naive) = (Trie::default(), Naive(HashMap::new()));
    let mut oracle = prefix_trie::PrefixMap::<P, u16>::new();
    let mut versions = Vec::new();
    for step in &steps {
        match *step {
            Step::Insert(key, len, value) => {
                let before = naive.0.insert((key.cut(len), len), value);
                assert_eq!(trie.insert(key, len, value), before);
                oracle.insert(prefix(key.cut(len), len), value);
            }
            Step::Remove(key, len) => {
                let before = naive.0.remove(&(key.cut(len), len));
                assert_eq!(trie.remove(key, len), before);
                oracle.remove(&prefix(key.cut(len), len));
            }
        }
        assert_eq!(trie.len(), naive.0.len());
        versions.push((trie.clone(), naive.0.clone()));
    }
    let keys = || {
        steps.iter().map(|step| match step {
            Step::Insert(key, ..) | Step::Remove(key, _) => *key,
        })
    };
    for key in keys() {
        let by_oracle = oracle.get_lpm(&prefix(key, K::BITS)).map(|(_, value)| *value);
        assert_eq!(trie.lookup(key).copied(), by_oracle);
    }
    // Every version is still what it was, however many changes came after it.
    for (trie, prefixes) in versions.iter().step_by(17) {
        let naive = Naive(prefixes.clone());
        for key in keys() {
            assert_eq!(trie.lookup(key).copied(), naive.lookup(key));
        }
        for ((key, len), value) in prefixes {
            assert_eq!(trie.get(*key, *len), Some(value));
        }
    }
}

proptest! {
    #[test]
    fn ipv4_agrees_with_the_definition(steps in steps(|seed| (seed as u32).reverse_bits() ^ (seed >> 32) as u32)) {
        agree(steps, |key, len| ipnet::Ipv4Net::new(Ipv4Addr::from(key), len as u8).unwrap());
    }

    #[test]
    fn ipv6_agrees_with_the_definition(steps in steps(|seed| u128::from(seed).reverse_bits() ^ u128::from(seed >> 3))) {
        agree(steps, |key, len| ipnet::Ipv6Net::new(Ipv6Addr::from(key), len as u8).unwrap());
    }
}
