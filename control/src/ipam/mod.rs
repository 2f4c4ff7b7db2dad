//! Prefixes for the endpoints of a virtual network (vL3), which one service hands out of a common one (sdk, pkg/ipam/vl3ipam).
//!
//! An endpoint opens a stream, asks for a prefix, and has it while the stream lasts ([`client`]). The service keeps it for its owner for
//! some time after that, also over its own restart.
//!
//! | to find … | look in |
//! |---|---|
//! | what an endpoint was given | [`Grant`] |
//! | an endpoint's side of the stream | [`client`] |

pub mod client;
mod grant;

pub use grant::{BadGrant, Grant, Overlap};
