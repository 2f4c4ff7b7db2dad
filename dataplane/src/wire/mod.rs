//! Wire formats: pure functions from bytes to values and back. No sockets, no state, no panics on foreign input.

pub mod flow;
pub mod inner;
pub mod local;
pub mod vxlan;
