//! The values that a port is described with. If one can be built, it is valid: the configuration file and the
//! API both come through these constructors, so a rule is stated once.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::Deserialize;

pub use crate::tables::Vni;

/// What is wrong with a value: which value it is, what the limit is, and whose.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub String);

fn invalid<T>(reason: impl Into<String>) -> Result<T, Invalid> {
    Err(Invalid(reason.into()))
}

/// `text` for an error message: quoted, without control characters, and no longer than a line.
pub(crate) fn shown(text: &str) -> String {
    let short: String = text.chars().take(80).collect();
    format!("\"{}\"{}", short.escape_debug(), if short.len() < text.len() { "…" } else { "" })
}

/// Gives a type that is made from a string both roads: `FromStr` for the API, `TryFrom<String>` for serde.
macro_rules! from_text {
    ($type:ty) => {
        impl TryFrom<String> for $type {
            type Error = Invalid;
            fn try_from(text: String) -> Result<Self, Invalid> {
                text.parse()
            }
        }
    };
}

mod name;
mod number;
mod outside;

pub use name::{IfName, PortName};
pub use number::{
    BufferSize, Buffers, Descriptors, Mtu, QueueIndex, Queues, RingSize, UdpPort, UnderlayMtu, Workers,
    XdpFrameSize, XdpRingSize,
};
pub use outside::{ControlSocket, Inode, Netns};

/// What both ends of a memif must know. Never printed.
#[derive(Clone, PartialEq, Eq, Deserialize, Default)]
#[serde(try_from = "String")]
pub struct Secret(String);

impl Secret {
    /// The secret itself; empty if there is none.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl FromStr for Secret {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text.len() > 23 || text.contains('\0') {
            return invalid(format!(
                "a memif secret has at most 23 bytes and no NUL; this one has {}",
                text.len()
            ));
        }
        Ok(Self(text.to_owned()))
    }
}
from_text!(Secret);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "none" } else { "hidden" })
    }
}

/// An interface's address with its prefix length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Prefix {
    /// The address.
    pub address: IpAddr,
    /// Bits of it that name the network: at most 32 or 128.
    pub len: u8,
}

impl FromStr for Prefix {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let parts = text.split_once('/').and_then(|(address, len)| {
            Some((address.parse::<IpAddr>().ok()?, len.parse::<u8>().ok().filter(|_| !len.starts_with('+'))?))
        });
        match parts {
            Some((address, len)) if len <= if address.is_ipv4() { 32 } else { 128 } => {
                usable(address).map(|address| Self { address, len })
            }
            _ => invalid(format!("{} is no address with a prefix length, like 10.60.1.2/30", shown(text))),
        }
    }
}
from_text!(Prefix);

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

/// The address, unless it is none that a host can have.
pub(crate) fn usable(address: IpAddr) -> Result<IpAddr, Invalid> {
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    if address.is_unspecified() || address.is_multicast() || broadcast {
        return invalid(format!("{address} is not an address that one host can have"));
    }
    Ok(address)
}

#[cfg(test)]
mod tests;
