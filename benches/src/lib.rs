//! Benchmarks of the packet path, and the traffic generator they share.

pub mod ends;
pub mod generator;
