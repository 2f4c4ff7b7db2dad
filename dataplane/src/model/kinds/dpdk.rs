//! What is said about a DPDK port.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

use super::check_workers;
use crate::model::value::{Buffers, Descriptors, Invalid, Mtu, Queues, Workers, shown};

/// A device as DPDK names it, with the arguments of its driver: `0000:03:00.0` or `net_af_packet0,iface=eth1`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct DpdkName(String);

impl DpdkName {
    /// All of it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The device without the arguments.
    pub fn device(&self) -> &str {
        self.0.split(',').next().unwrap_or_default()
    }
}

impl FromStr for DpdkName {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let device = text.split(',').next().unwrap_or_default();
        // RTE_ETH_NAME_MAX_LEN is 64 with the NUL. DPDK drops what it has no room for, silently.
        let fits = (1..=63).contains(&device.len()) && text.len() <= 1023;
        if !fits || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Invalid(format!(
                "a device is a PCI address or a virtual device's name of 1 to 63 printable bytes, and its driver's arguments behind commas, 1023 bytes in all; {} won't do",
                shown(text)
            )));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for DpdkName {
    type Error = Invalid;
    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl fmt::Display for DpdkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A port on a device of DPDK's.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "RawDpdk")]
pub struct DpdkSpec {
    /// The device.
    pub device: DpdkName,
    /// Receive queues, over which the device spreads flows.
    pub queues: Queues,
    /// Workers that share these, each with a transmit queue of its own.
    pub workers: Workers,
    /// Descriptors of each receive queue.
    pub rx_descriptors: Descriptors,
    /// Descriptors of each transmit queue.
    pub tx_descriptors: Descriptors,
    /// Bytes of a frame behind its Ethernet header.
    pub mtu: Mtu,
    /// Whether frames for other stations are received.
    pub promiscuous: bool,
    /// Buffers of a pool of its own; `None` shares the process's.
    pub buffers: Option<Buffers>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDpdk {
    device: DpdkName,
    #[serde(default)]
    queues: Queues,
    #[serde(default)]
    workers: Workers,
    #[serde(default)]
    rx_descriptors: Descriptors,
    #[serde(default)]
    tx_descriptors: Descriptors,
    #[serde(default)]
    mtu: Mtu,
    #[serde(default = "yes")]
    promiscuous: bool,
    buffers: Option<Buffers>,
}

fn yes() -> bool {
    true
}

impl TryFrom<RawDpdk> for DpdkSpec {
    type Error = Invalid;
    fn try_from(raw: RawDpdk) -> Result<Self, Invalid> {
        let RawDpdk { device, queues, workers, rx_descriptors, tx_descriptors, mtu, promiscuous, buffers } =
            raw;
        Self { device, queues, workers, rx_descriptors, tx_descriptors, mtu, promiscuous, buffers }.checked()
    }
}

impl DpdkSpec {
    /// The port, if its parts fit together.
    ///
    /// # Errors
    /// Which parts don't.
    pub fn checked(self) -> Result<Self, Invalid> {
        check_workers(self.workers, self.queues.get().into())?;
        Ok(self)
    }
}
