//! What is said about a port of each kind, a file for each. The fields' names are the configuration's keys.

use serde::Deserialize;

mod af_xdp;
mod dpdk;
mod kernel;
mod memif;
mod pipe;
mod relay;
mod vxlan;

pub use af_xdp::{AfXdpSpec, CopyMode};
pub use dpdk::{DpdkName, DpdkSpec};
pub use kernel::KernelSpec;
pub use memif::{MemifSpec, Role};
pub use pipe::PipeSpec;
pub use relay::RelaySpec;
pub use vxlan::VxlanSpec;

/// What a port's frames begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// An Ethernet header.
    #[default]
    Ethernet,
    /// An IPv4 or IPv6 header.
    Ip,
}
