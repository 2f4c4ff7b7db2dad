//! What is said about an interface of the kernel.

use serde::Deserialize;

use super::Mode;
use crate::model::value::{IfName, Inode, Invalid, Mtu, Netns, Prefix, Queues};

/// A network interface of the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "RawKernel")]
pub struct KernelSpec {
    /// Its name.
    pub ifname: IfName,
    /// Where it is made; the engine's own namespace if `None`.
    pub netns: Option<Netns>,
    /// Its addresses.
    pub addresses: Vec<Prefix>,
    /// Its MTU.
    pub mtu: Mtu,
    /// A tap (Ethernet) or a tun (IP).
    pub mode: Mode,
    /// Receive queues, over which the kernel spreads flows.
    pub queues: Queues,
    /// An existing tap or tun of this name, by its descriptor, instead of a new one. Its owner has set it up.
    pub device: Option<Inode>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawKernel {
    ifname: IfName,
    netns: Option<Netns>,
    #[serde(default)]
    addresses: Vec<Prefix>,
    #[serde(default)]
    mtu: Mtu,
    #[serde(default)]
    mode: Mode,
    #[serde(default)]
    queues: Queues,
}

impl TryFrom<RawKernel> for KernelSpec {
    type Error = Invalid;
    fn try_from(raw: RawKernel) -> Result<Self, Invalid> {
        let RawKernel { ifname, netns, addresses, mtu, mode, queues } = raw;
        Self { ifname, netns, addresses, mtu, mode, queues, device: None }.checked()
    }
}

impl KernelSpec {
    /// Most addresses of one interface.
    pub const MAX_ADDRESSES: usize = 64;
    /// RFC 8200 §5.
    const IPV6_MIN_MTU: u16 = 1280;

    /// The interface, if its parts fit together.
    ///
    /// # Errors
    /// Which parts don't.
    pub fn checked(self) -> Result<Self, Invalid> {
        let count = self.addresses.len();
        if count > Self::MAX_ADDRESSES {
            return Err(Invalid(format!("addresses: at most 64 are possible, not {count}")));
        }
        if self.device.is_some() && (self.netns.is_some() || count > 0) {
            return Err(Invalid(
                "device: an interface that is handed over keeps its own netns and addresses".into(),
            ));
        }
        let v6 = self.addresses.iter().find(|prefix| prefix.address.is_ipv6());
        if let (Some(v6), true) = (v6, self.mtu.get() < Self::IPV6_MIN_MTU) {
            let mtu = self.mtu.get();
            return Err(Invalid(format!(
                "addresses: {v6} needs an mtu of 1280 bytes or more, and mtu is {mtu}"
            )));
        }
        for (i, prefix) in self.addresses.iter().enumerate() {
            if self.addresses[..i].iter().any(|earlier| earlier.address == prefix.address) {
                return Err(Invalid(format!("addresses: {} is there twice", prefix.address)));
            }
        }
        Ok(self)
    }
}
