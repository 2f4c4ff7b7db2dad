//! Endpoints: what a network service's end is made of. Elements for a chain, and what answers pings behind them.

pub mod ipam;
pub mod responder;
