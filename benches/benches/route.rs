//! The routing table alone: lookups among 10, 10,000 and 1,000,000 prefixes, beside the crate `prefix-trie`; and what a change of a
//! table costs that workers are using, with the copy that goes to them.

use std::net::{Ipv4Addr, Ipv6Addr};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ipnet::{Ipv4Net, Ipv6Net};
use prefix_trie::{Prefix, PrefixMap};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use vwire_dataplane::route::trie::{Key, Trie};

/// Addresses that are looked up in turn: more than the processor can remember the way to.
const ADDRESSES: usize = 1 << 16;

/// Prefixes as the Internet's table has them: most /24, some shorter, some hosts.
fn v4(random: &mut SmallRng) -> (u32, u32) {
    let len = match random.random_range(0..10) {
        0..6 => 24,
        6 => 22,
        7 => 20,
        8 => random.random_range(16..24),
        _ => 32,
    };
    (random.random(), len)
}

/// The same for IPv6, in 2000::/7.
fn v6(random: &mut SmallRng) -> (u128, u32) {
    let len = match random.random_range(0..10) {
        0..6 => 48,
        6 => random.random_range(32..48),
        7..9 => 64,
        _ => 128,
    };
    (0x20 << 120 | random.random::<u128>() >> 7, len)
}

fn lookups<K: Key, P: Prefix>(
    c: &mut Criterion,
    family: &str,
    make: impl Fn(&mut SmallRng) -> (K, u32),
    prefix: impl Fn(K, u32) -> P,
) {
    let mut group = c.benchmark_group(format!("{family}: a lookup"));
    group.throughput(Throughput::Elements(1));
    for count in [10, 10_000, 1_000_000] {
        let mut random = SmallRng::seed_from_u64(7);
        let (mut own, mut other) = (Trie::default(), PrefixMap::new());
        let mut keys = Vec::new();
        while own.len() < count {
            let (key, len) = make(&mut random);
            own.insert(key, len, [0u32; 2]);
            other.insert(prefix(key.cut(len), len), [0u32; 2]);
            keys.push(key);
        }
        let asked: Vec<K> = (0..ADDRESSES).map(|_| keys[random.random_range(0..keys.len())]).collect();
        let mut turn = asked.iter().cycle();
        group.bench_function(BenchmarkId::new("route::trie", count), |b| {
            b.iter(|| own.lookup(*turn.next().expect("a cycle")).copied());
        });
        let hosts: Vec<P> = asked.iter().map(|key| prefix(*key, K::BITS)).collect();
        let mut turn = hosts.iter().cycle();
        group.bench_function(BenchmarkId::new("prefix-trie", count), |b| {
            b.iter(|| other.get_lpm(turn.next().expect("a cycle")).map(|(_, value)| *value));
        });
        let mut published = own.clone();
        group.bench_function(BenchmarkId::new("a route added, published, taken away", count), |b| {
            b.iter(|| {
                let (key, _) = make(&mut random);
                own.insert(key, K::BITS, [1; 2]);
                published = own.clone();
                own.remove(key, K::BITS);
            });
        });
        // Keeps it from being optimised away. A host route that was there before is taken away, too: it may have become less.
        std::hint::black_box(published.len());
    }
    group.finish();
}

fn route(c: &mut Criterion) {
    lookups(c, "IPv4", v4, |key, len| Ipv4Net::new_assert(Ipv4Addr::from(key), len as u8));
    lookups(c, "IPv6", v6, |key, len| Ipv6Net::new_assert(Ipv6Addr::from(key), len as u8));
}

criterion_group!(benches, route);
criterion_main!(benches);
