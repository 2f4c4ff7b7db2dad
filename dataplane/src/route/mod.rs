//! Routing: many ports in one routing domain, and the longest prefix decides where a packet goes.

pub mod trie;
