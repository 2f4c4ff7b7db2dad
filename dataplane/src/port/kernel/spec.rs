//! What a kernel interface is to be, and what can be wrong with it.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::str::FromStr;

use super::KernelOpenError;
use crate::offload::coalesce::Link;

/// Longest interface name (`IFNAMSIZ` less its terminator).
const NAME_MAX: usize = 15;
/// Most queues that a tap can have (`MAX_TAP_QUEUES`).
const QUEUES_MAX: u16 = 256;
/// The smallest MTU that IPv4 allows (RFC 791).
const MTU_MIN: u32 = 68;
const MTU_MAX: u32 = 65_535;

/// What the interface's frames are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// Ethernet frames.
    #[default]
    Tap,
    /// IPv4 and IPv6 packets without a link header.
    Tun,
}

impl Kind {
    pub(super) fn link(self) -> Link {
        match self {
            Self::Tap => Link::Ethernet,
            Self::Tun => Link::Ip,
        }
    }
}

/// An address and the length of its network's prefix: `10.60.1.2/30`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct InterfaceAddress {
    /// The interface's own address.
    pub address: IpAddr,
    /// Bits of the prefix.
    pub prefix: u8,
}

/// Not an address with a prefix length.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an address with its prefix length, such as 10.60.1.2/30 or fd00::2/64")]
pub struct BadAddress(String);

impl FromStr for InterfaceAddress {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        let bad = || BadAddress(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(bad)?;
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.parse().ok().filter(|prefix| *prefix <= most).ok_or_else(bad)?;
        Ok(Self { address, prefix })
    }
}

impl std::fmt::Display for InterfaceAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// A kernel interface to be made.
#[derive(Debug)]
pub struct KernelSpec {
    /// Its name, unique in its namespace.
    pub ifname: String,
    /// Ethernet or IP.
    pub kind: Kind,
    /// The namespace it is made in; `None` is the calling thread's.
    pub netns: Option<OwnedFd>,
    /// Its addresses.
    pub addresses: Vec<InterfaceAddress>,
    /// Its MTU in bytes, 68 to 65535 (the kernel's own limit for a tap is 14 less).
    pub mtu: u32,
    /// Its hardware address; `None` lets the kernel draw one. A tun has none.
    pub mac: Option<[u8; 6]>,
    /// Receive queues, 1 to 256; the kernel spreads flows over them.
    pub queues: u16,
}

impl KernelSpec {
    /// A tap with one queue and the MTU 1500, in the calling thread's namespace.
    pub fn new(ifname: impl Into<String>) -> Self {
        Self {
            ifname: ifname.into(),
            kind: Kind::Tap,
            netns: None,
            addresses: Vec::new(),
            mtu: 1500,
            mac: None,
            queues: 1,
        }
    }

    /// Checks what can be checked without the kernel.
    ///
    /// # Errors
    /// [`KernelOpenError`] names the value and its limit.
    pub fn check(&self) -> Result<(), KernelOpenError> {
        check_name(&self.ifname)?;
        if !(MTU_MIN..=MTU_MAX).contains(&self.mtu) {
            return Err(KernelOpenError::Mtu { ifname: self.ifname.clone(), mtu: self.mtu });
        }
        if !(1..=QUEUES_MAX).contains(&self.queues) {
            return Err(KernelOpenError::Queues { ifname: self.ifname.clone(), queues: self.queues });
        }
        if let Some(mac) = self.mac.filter(|mac| self.kind == Kind::Tun || mac[0] & 1 == 1 || *mac == [0; 6])
        {
            return Err(KernelOpenError::Mac { ifname: self.ifname.clone(), mac });
        }
        Ok(())
    }
}

/// The names that Linux takes, less those that mean something else in /proc/sys/net, and `%`, which makes a name a pattern.
fn check_name(name: &str) -> Result<(), KernelOpenError> {
    let bad = |reason| Err(KernelOpenError::Name { ifname: name.to_owned(), reason });
    if name.is_empty() || name.len() > NAME_MAX {
        return bad("it must have 1 to 15 bytes");
    }
    if matches!(name, "." | ".." | "all" | "default") {
        return bad("the kernel uses this word for other things");
    }
    if name.chars().any(|c| matches!(c, '/' | ':' | '%') || c.is_whitespace() || c.is_control()) {
        return bad("it must not contain '/', ':', '%', white space or control characters");
    }
    Ok(())
}

/// Adds what was being done to an error of the kernel.
pub(super) fn configuring<'s>(
    ifname: &'s str,
    what: impl FnOnce() -> String + 's,
) -> impl FnOnce(io::Error) -> KernelOpenError + 's {
    move |error| KernelOpenError::Configure { ifname: ifname.to_owned(), what: what(), error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_mean_something_else_are_refused() {
        for name in
            ["", "0123456789abcdef", ".", "..", "all", "default", "a/b", "../x", "tap%d", "a b", "a:1", "a\n"]
        {
            assert!(
                matches!(KernelSpec::new(name).check(), Err(KernelOpenError::Name { .. })),
                "{name:?} must be refused"
            );
        }
        for name in ["a", "nsm-1", "0123456789abcde", "default1"] {
            assert!(KernelSpec::new(name).check().is_ok(), "{name:?} must be taken");
        }
    }

    #[test]
    fn sizes_outside_the_kernels_limits_are_refused() {
        for mtu in [0, 67, 65_536, u32::MAX] {
            let spec = KernelSpec { mtu, ..KernelSpec::new("a") };
            assert!(matches!(spec.check(), Err(KernelOpenError::Mtu { .. })), "{mtu}");
        }
        for queues in [0, 257] {
            let spec = KernelSpec { queues, ..KernelSpec::new("a") };
            assert!(matches!(spec.check(), Err(KernelOpenError::Queues { .. })), "{queues}");
        }
        for mac in [[0; 6], [1, 0, 0, 0, 0, 0], [0xff; 6]] {
            let spec = KernelSpec { mac: Some(mac), ..KernelSpec::new("a") };
            assert!(matches!(spec.check(), Err(KernelOpenError::Mac { .. })), "{mac:?}");
        }
    }

    #[test]
    fn addresses_are_read_with_their_prefix() {
        let parse = |text: &str| text.parse::<InterfaceAddress>();
        assert_eq!(parse("10.60.1.2/30").map(|address| address.prefix), Ok(30));
        assert_eq!(parse("fd00::2/128").map(|address| address.to_string()), Ok("fd00::2/128".to_owned()));
        for bad in
            ["", "10.60.1.2", "10.60.1.2/33", "fd00::/129", "10.60.1/8", "10.60.1.2/-1", "10.60.1.2/30/1"]
        {
            assert_eq!(parse(bad), Err(BadAddress(bad.to_owned())));
        }
    }
}
