//! What is said about a port of each kind, a file for each. The fields' names are the configuration's keys.

use serde::Deserialize;

use crate::model::value::{Invalid, Workers};

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

/// Each of the workers that share a port has a queue at least.
fn check_workers(workers: Workers, queues: usize) -> Result<(), Invalid> {
    match usize::from(workers.get()) {
        asked if asked <= queues => Ok(()),
        asked => Err(Invalid(format!(
            "workers: {asked} can't share {queues} queues; ask for more queues, or fewer workers"
        ))),
    }
}

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
