//! What vwire uses of DPDK, and no more: functions and types of the installed headers (`pkg-config libdpdk`, 22.11 or later), bound
//! when this crate is built, and `shim/` for what DPDK has only as inline functions.
//!
//! Everything is named as in DPDK, whose own pages (doc.dpdk.org/api) say what it does; what begins with `vwire_` is the shim's
//! and is described in `shim/shim.h`. The library is linked dynamically; the EAL loads the drivers from DPDK's plugin folder.
//!
//! Without the feature `bind` the crate is empty: a machine without DPDK builds the workspace all the same.
#![cfg_attr(feature = "bind", allow(missing_docs, reason = "the headers are the documentation"))]

#[cfg(feature = "bind")]
#[allow(
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unused,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    rustdoc::all,
    unsafe_op_in_unsafe_fn,
    reason = "generated"
)]
mod bindings {
    include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
}

#[cfg(feature = "bind")]
pub use bindings::*;
