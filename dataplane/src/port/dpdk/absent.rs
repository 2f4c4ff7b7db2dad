//! A build without DPDK.

use super::{DeviceSpec, DpdkError, LinkState, Settings};
use crate::port::{PortIndex, PortParts};

/// A device of DPDK's. There is none.
#[derive(Debug)]
pub enum DpdkDevice {}

/// Nothing is to be configured.
pub fn configure(_: &Settings) -> bool {
    true
}

/// Refuses.
///
/// # Errors
/// [`DpdkError::NotBuilt`].
pub fn open(_: PortIndex, _: &DeviceSpec) -> Result<(Vec<PortParts>, DpdkDevice), DpdkError> {
    Err(DpdkError::NotBuilt)
}

impl DpdkDevice {
    /// Its link.
    pub fn link(&self) -> LinkState {
        match *self {}
    }

    /// What it is, in words.
    pub fn about(&self) -> String {
        match *self {}
    }

    /// Its hardware address.
    pub fn mac(&self) -> [u8; 6] {
        match *self {}
    }

    /// Its driver's own counters.
    pub fn statistics(&self) -> Vec<(String, u64)> {
        match *self {}
    }

    /// Nobody is ever told.
    pub fn on_link(&self, _: impl Fn(LinkState) + Send + 'static) {
        match *self {}
    }
}
