//! Links between the endpoints of a vL3 service: each has one with every other.
//!
//! | module | has |
//! |---|---|
//! | `order` | who of two dials |
//! | `pairing` | which links there should be: all decisions, and no doing |
//! | `announced` | what a peer says of itself, and whether it may |

pub mod announced;
mod order;
mod pairing;

#[cfg(test)]
mod simulation;
