//! Prefixes for the endpoints of a virtual network (vL3), which one service hands out of a common one (sdk, pkg/ipam/vl3ipam).
//!
//! An endpoint opens a stream, asks for a prefix, and has it while the stream lasts ([`client`]). The service keeps it for its owner, the
//! caller's identity, for a grace time after that, also over its own restart: nobody else gets it meanwhile.
//!
//! | to find … | look in |
//! |---|---|
//! | what an endpoint was given | [`Grant`] |
//! | an endpoint's side of the stream | [`client`] |
//! | the service's side | [`service`] |
//! | which prefixes are whose | [`Store`]; by what rules: `table` |

mod blocks;
pub mod client;
mod file;
mod grant;
pub mod service;
mod store;
mod table;
#[cfg(test)]
mod tests;

pub use file::StateError;
pub use grant::{BadGrant, Grant};
pub use store::{BadSettings, Settings, Store};
pub use table::{Asker, Exhausted, Figures, Refusal, Rules};
