//! Endpoints: what a network service's end is made of. Elements for a chain, and what answers pings behind them.

pub mod context;
mod idle;
pub mod ipam;
pub(crate) mod mechanisms;
mod memif_end;
mod pass_through;
pub mod responder;

pub use idle::Idle;
pub use mechanisms::{EndpointMechanism, Kernel, Mechanisms, Noop};
pub use memif_end::{Memif, hosts, made_up_mac, mode_of, parse_mac};
pub use pass_through::PassThrough;
