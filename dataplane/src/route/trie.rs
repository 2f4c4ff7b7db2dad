//! Longest prefix match: a tree bitmap (Eatherton, Varghese and Dittia, 2004) with paths compressed and nodes shared between
//! versions.
//!
//! * A node looks at six bits of the address: 62 bits for the prefixes that end within them, 64 for those that end with them, 64
//!   for the nodes below. What a bit stands for is found by counting the bits before it. The first node of the whole looks at two
//!   bits, as 32 and 128 are both two more than a multiple of six.
//! * Levels at which nothing branches or ends have no node. So what a lookup costs follows from how crowded the table is around
//!   the address, not from how long addresses are: ten /128 among each other are two nodes deep, not twenty-two.
//! * A prefix is in one place, whatever its length. So a change touches the nodes on one path: those that another version shares
//!   are copied (at most 64 neighbours a level), those of this version alone are changed in place.
//!
//! That last point is why this is our own: a table is published by swapping it whole (see [`crate::tables::swap`]), and to copy a
//! million routes for each change would take tens of milliseconds. Here a copy of the table costs nothing and a change
//! microseconds, also of a default route. `benches/route.rs` has the figures, beside those of the crate `prefix-trie`.

use std::sync::Arc;

/// Bits that a node looks at.
const STRIDE: u32 = 6;
/// Bits put before each address, so that what it has is a multiple of [`STRIDE`].
const LEAD: u32 = 4;

/// For each value of six bits: which of a node's inner prefixes (those of 1 to 5 bits) it begins with. Prefix `v` of `w` bits is
/// bit `2^w - 2 + v`, so that of two that match, the longer is the higher bit.
const MATCHES: [u64; 64] = {
    let mut masks = [0; 64];
    let mut slot = 0;
    while slot < 64 {
        let mut bits = 1;
        while bits < STRIDE {
            masks[slot] |= 1 << inner_bit(bits, slot as u64);
            bits += 1;
        }
        slot += 1;
    }
    masks
};

/// The bit of the inner prefix of `bits` bits that `slot` begins with.
const fn inner_bit(bits: u32, slot: u64) -> u32 {
    (1 << bits) - 2 + (slot >> (STRIDE - bits)) as u32
}

/// What is looked up: an IPv4 address as `u32`, an IPv6 address as `u128`; the first bit is the highest.
pub trait Key: Copy + Eq + std::fmt::Debug {
    /// How many bits it has.
    const BITS: u32;

    /// The six bits at `level`; the two highest at level 0.
    fn slot(self, level: u32) -> usize;

    /// The key with all bits from `len` on cleared.
    #[must_use]
    fn cut(self, len: u32) -> Self;

    /// How many bits two keys begin with in common.
    fn common(self, other: Self) -> u32;

    /// Whether the bits before `level`, which is not 0, differ.
    fn differs_before(self, other: Self, level: u32) -> bool;
}

macro_rules! key {
    ($type:ty) => {
        impl Key for $type {
            const BITS: u32 = <$type>::BITS;

            #[inline(always)]
            fn slot(self, level: u32) -> usize {
                (self >> (Self::BITS + LEAD - STRIDE - STRIDE * level)) as usize & 63
            }

            fn cut(self, len: u32) -> Self {
                if len == 0 { 0 } else { self & (<$type>::MAX << (Self::BITS - len.min(Self::BITS))) }
            }

            fn common(self, other: Self) -> u32 {
                (self ^ other).leading_zeros()
            }

            #[inline(always)]
            fn differs_before(self, other: Self, level: u32) -> bool {
                (self ^ other) >> (Self::BITS + LEAD - STRIDE * level) != 0
            }
        }
    };
}
key!(u32);
key!(u128);

/// Where a prefix of this length has its place: the level of its node, and how many of the node's bits it has, 1 to 6.
const fn place(len: u32) -> (u32, u32) {
    let level = (len + LEAD - 1) / STRIDE;
    (level, len + LEAD - STRIDE * level)
}

/// Which value of a node: an inner prefix's bit, or 64 and the slot of a prefix of all six bits.
type Code = u32;

#[derive(Clone, Debug)]
struct Node<K, V> {
    /// Prefixes of 1 to 5 of this node's bits.
    inner: u64,
    /// Prefixes of all six.
    full: u64,
    /// Slots with a node below.
    below: u64,
    /// The bits before this node's; the rest is 0.
    key: K,
    level: u32,
    /// Of the inner prefixes in order, then of the full ones.
    values: Arc<[V]>,
    /// In the order of their slots.
    nodes: Arc<[Node<K, V>]>,
}

impl<K: Key, V: Clone> Node<K, V> {
    fn new(key: K, level: u32) -> Self {
        let key = if level == 0 { key.cut(0) } else { key.cut(STRIDE * level - LEAD) };
        Self { inner: 0, full: 0, below: 0, key, level, values: Arc::default(), nodes: Arc::default() }
    }

    /// Where the value of `code` is, or would be.
    #[inline(always)]
    fn index(&self, code: Code) -> usize {
        let count = match code {
            0..64 => before(self.inner, code),
            _ => self.inner.count_ones() + before(self.full, code - 64),
        };
        count as usize
    }

    fn has(&self, code: Code) -> bool {
        if code < 64 { self.inner >> code & 1 == 1 } else { self.full >> (code - 64) & 1 == 1 }
    }

    fn flip(&mut self, code: Code) {
        if code < 64 { self.inner ^= 1 << code } else { self.full ^= 1 << (code - 64) }
    }

    fn code(key: K, level: u32, bits: u32) -> Code {
        let slot = key.slot(level) as u64;
        if bits == STRIDE { 64 + slot as u32 } else { inner_bit(bits, slot) }
    }

    /// The node below at the key's slot: its place, if there is one.
    #[inline(always)]
    fn child(&self, key: K) -> Option<usize> {
        let slot = key.slot(self.level) as u32;
        (self.below >> slot & 1 == 1).then(|| before(self.below, slot) as usize)
    }

    fn add_child(&mut self, child: Self) {
        let slot = child.key.slot(self.level) as u32;
        insert(&mut self.nodes, before(self.below, slot) as usize, child);
        self.below |= 1 << slot;
    }

    fn put(&mut self, code: Code, value: V) -> Option<V> {
        let at = self.index(code);
        if self.has(code) {
            return Some(std::mem::replace(&mut Arc::make_mut(&mut self.values)[at], value));
        }
        insert(&mut self.values, at, value);
        self.flip(code);
        None
    }

    fn take(&mut self, code: Code) -> Option<V> {
        if !self.has(code) {
            return None;
        }
        let at = self.index(code);
        self.flip(code);
        Some(remove(&mut self.values, at))
    }

    /// Adds a prefix to the tree below `self`; it belongs there.
    fn insert(&mut self, key: K, (level, bits): (u32, u32), value: V) -> Option<V> {
        if level == self.level {
            return self.put(Self::code(key, level, bits), value);
        }
        match self.child(key) {
            Some(at) => {
                let child = &mut Arc::make_mut(&mut self.nodes)[at];
                child.make_room(key, level);
                child.insert(key, (level, bits), value)
            }
            None => {
                let mut child = Self::new(key, level);
                child.put(Self::code(key, level, bits), value);
                self.add_child(child);
                None
            }
        }
    }

    /// Puts a node above this one if a prefix that ends at `level` does not belong below it.
    fn make_room(&mut self, key: K, level: u32) {
        let same = if self.level == 0 { K::BITS } else { key.common(self.key) };
        let parts = (same + LEAD) / STRIDE;
        let above = parts.min(level);
        if above < self.level {
            let old = std::mem::replace(self, Self::new(key, above));
            self.add_child(old);
        }
    }

    /// Takes a prefix away that is there.
    fn remove(&mut self, key: K, (level, bits): (u32, u32)) -> Option<V> {
        if level == self.level {
            return self.take(Self::code(key, level, bits));
        }
        let at = self.child(key)?;
        let child = &mut Arc::make_mut(&mut self.nodes)[at];
        let value = child.remove(key, (level, bits));
        if child.is_empty() {
            remove(&mut self.nodes, at);
            self.below &= !(1 << key.slot(self.level));
        } else {
            child.close_up();
        }
        value
    }

    fn is_empty(&self) -> bool {
        self.inner | self.full | self.below == 0
    }

    /// A node with one node below and nothing else need not be.
    fn close_up(&mut self) {
        if self.inner | self.full == 0
            && let [only] = &self.nodes[..]
        {
            *self = only.clone();
        }
    }
}

/// Bits that are set before bit `at`.
#[inline(always)]
const fn before(bits: u64, at: u32) -> u32 {
    (bits & ((1 << at) - 1)).count_ones()
}

fn insert<T: Clone>(items: &mut Arc<[T]>, at: usize, item: T) {
    *items = items[..at].iter().cloned().chain([item]).chain(items[at..].iter().cloned()).collect();
}

fn remove<T: Clone>(items: &mut Arc<[T]>, at: usize) -> T {
    let item = items[at].clone();
    *items = items[..at].iter().chain(&items[at + 1..]).cloned().collect();
    item
}

/// Prefixes of one address family, each with a value. A clone shares all nodes with its original.
#[derive(Clone, Debug)]
pub struct Trie<K, V> {
    root: Option<Node<K, V>>,
    len: usize,
}

impl<K, V> Default for Trie<K, V> {
    fn default() -> Self {
        Self { root: None, len: 0 }
    }
}

impl<K: Key, V: Clone> Trie<K, V> {
    /// How many prefixes there are.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// True if there are none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds or replaces the prefix of `len` bits (at most all; more means all) that `key` begins with. Returns the value that it
    /// had.
    pub fn insert(&mut self, key: K, len: u32, value: V) -> Option<V> {
        let len = len.min(K::BITS);
        let (key, (level, bits)) = (key.cut(len), place(len));
        let root = self.root.get_or_insert_with(|| Node::new(key, level));
        root.make_room(key, level);
        let before = root.insert(key, (level, bits), value);
        self.len += usize::from(before.is_none());
        before
    }

    /// Takes the prefix of `len` bits away. Returns the value that it had; `None`, and nothing is copied, if there was none.
    pub fn remove(&mut self, key: K, len: u32) -> Option<V> {
        self.get(key, len)?;
        let root = self.root.as_mut()?;
        let value = root.remove(key.cut(len), place(len));
        if root.is_empty() {
            self.root = None;
        } else {
            root.close_up();
        }
        self.len -= 1;
        value
    }

    /// The value of exactly this prefix.
    pub fn get(&self, key: K, len: u32) -> Option<&V> {
        if len > K::BITS {
            return None;
        }
        let (key, (level, bits)) = (key.cut(len), place(len));
        let mut node = self.root.as_ref()?;
        loop {
            let elsewhere = node.level > 0 && key.differs_before(node.key, node.level);
            if node.level > level || elsewhere {
                return None;
            }
            if node.level == level {
                let code = Node::<K, V>::code(key, level, bits);
                return node.has(code).then(|| &node.values[node.index(code)]);
            }
            node = &node.nodes[node.child(key)?];
        }
    }

    /// Calls `each` with every value; for looking around, not for packets.
    pub fn each(&self, mut each: impl FnMut(&V)) {
        let mut nodes: Vec<&Node<K, V>> = self.root.iter().collect();
        while let Some(node) = nodes.pop() {
            node.values.iter().for_each(&mut each);
            nodes.extend(node.nodes.iter());
        }
    }

    /// The value of the longest prefix that `key` begins with.
    #[inline]
    pub fn lookup(&self, key: K) -> Option<&V> {
        let mut node = self.root.as_ref()?;
        let mut best = None;
        loop {
            if node.level > 0 && key.differs_before(node.key, node.level) {
                break;
            }
            let slot = key.slot(node.level);
            let inner = node.inner & MATCHES[slot];
            if node.full >> slot & 1 == 1 {
                best = Some((node, 64 + slot as u32));
            } else if inner != 0 {
                best = Some((node, 63 - inner.leading_zeros()));
            }
            let Some(below) = node.child(key) else { break };
            let Some(next) = node.nodes.get(below) else { break };
            node = next;
        }
        let (node, code) = best?;
        node.values.get(node.index(code))
    }
}

#[cfg(test)]
mod tests;
