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

/// A number type with limits: `$doc` says what it counts, and is the beginning of its error.
macro_rules! bounded {
    ($(#[$doc:meta])* $name:ident($raw:ty), $what:literal, $range:expr, $unit:literal, default $default:expr, $also:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
        #[serde(try_from = "i64")]
        pub struct $name($raw);

        impl $name {
            /// The number.
            pub const fn get(self) -> $raw {
                self.0
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self($default)
            }
        }

        impl TryFrom<i64> for $name {
            type Error = Invalid;
            fn try_from(raw: i64) -> Result<Self, Invalid> {
                let also: Option<(fn(i64) -> bool, &str)> = $also;
                let fits = $range.contains(&raw) && also.is_none_or(|(holds, _)| holds(raw));
                match <$raw>::try_from(raw) {
                    Ok(value) if fits => Ok(Self(value)),
                    _ => invalid(format!(
                        concat!($what, " can be {}{} to {}", $unit, ", not {}"),
                        also.map_or("", |(_, words)| words), $range.start(), $range.end(), raw
                    )),
                }
            }
        }
    };
}

fn is_power_of_two(raw: i64) -> bool {
    raw.count_ones() == 1
}

bounded! {
    /// Ring pairs of a memif port. The upper limit is this engine's.
    Queues(u16), "queues", (1..=16), "", default 1, None
}
bounded! {
    /// Slots of each ring of a memif client; memif states sizes as powers of two, at most 2^15.
    RingSize(u32), "ring_size", (2..=32_768), " slots", default 1024, Some((is_power_of_two, "a power of two from "))
}
bounded! {
    /// Bytes of each buffer of a memif client; longer frames are chained over several.
    BufferSize(u32), "buffer_size", (128..=65_536), " bytes", default 2048,
    Some((|raw| raw % 64 == 0, "a multiple of 64 from "))
}
bounded! {
    /// Bytes of each buffer of an AF_XDP port, of which the kernel keeps 256; longer frames are spread over several.
    XdpFrameSize(u32), "frame_size", (2048..=4096), " bytes", default 2048, Some((is_power_of_two, "a power of two from "))
}
bounded! {
    /// Entries of an AF_XDP port's rings.
    XdpRingSize(u32), "ring_size", (64..=32_768), " entries", default 1024, Some((is_power_of_two, "a power of two from "))
}
bounded! {
    /// A receive queue of an interface, counted from 0.
    QueueIndex(u16), "a queue's number", (0..=1023), "", default 0, None
}
bounded! {
    /// MTU of a kernel interface in bytes: IPv4's minimum (RFC 791) to the most that a tap takes.
    Mtu(u16), "mtu", (68..=65_521), " bytes", default 1500, None
}
bounded! {
    /// Descriptors of a queue of a DPDK port; the driver has limits of its own.
    Descriptors(u16), "descriptors", (1..=32_768), "", default 512, None
}
bounded! {
    /// Packet buffers of a DPDK port's own pool.
    Buffers(u32), "buffers", (256..=16_777_216), "", default 4096, None
}
bounded! {
    /// MTU of a tunnel's underlay in bytes; an inner frame with its headers must fit into it.
    UnderlayMtu(u16), "underlay_mtu", (576..=65_535), " bytes", default 1500, None
}
bounded! {
    /// A UDP port; 4789 is VXLAN's (RFC 7348 §5).
    UdpPort(u16), "port", (1..=65_535), "", default 4789, None
}

impl TryFrom<i64> for Vni {
    type Error = Invalid;
    fn try_from(raw: i64) -> Result<Self, Invalid> {
        let vni = u32::try_from(raw).ok().and_then(Vni::new);
        vni.ok_or_else(|| Invalid(format!("a vni can be 0 to 16777215 (24 bits), not {raw}")))
    }
}

impl<'de> Deserialize<'de> for Vni {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Vni::try_from(i64::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}

/// The name of a port: 1 to 63 bytes of `A-Z a-z 0-9 . _ -`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct PortName(String);

impl PortName {
    /// Most bytes of a name; so many fit into the statistics segment with their end.
    pub const MAX: usize = 63;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PortName {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let fits = (1..=Self::MAX).contains(&text.len());
        if !fits || !text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
            let said = shown(text);
            return invalid(format!("a port's name has 1 to 63 bytes of A-Z a-z 0-9 . _ -; {said} does not"));
        }
        Ok(Self(text.to_owned()))
    }
}
from_text!(PortName);

impl fmt::Display for PortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a kernel interface, by the kernel's rules.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct IfName(String);

impl IfName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for IfName {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        // `all` and `default` are possible names, but their sysctls would be everyone's. A `%d` is the
        // kernel's to fill in.
        let special = [".", "..", "all", "default"].contains(&text);
        let plain = text.bytes().all(|b| b.is_ascii_graphic() && !b"/:%".contains(&b));
        if special || !plain || !(1..=15).contains(&text.len()) {
            let said = shown(text);
            return invalid(format!(
                "an interface name has 1 to 15 printable bytes without / : %, and is none of . .. all default; {said} won't do"
            ));
        }
        Ok(Self(text.to_owned()))
    }
}
from_text!(IfName);

/// A file that came as a descriptor beside a request, by the identity that `fstat` gives:
/// `inode://<st_dev>/<st_ino>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Inode {
    /// `st_dev`, the raw device number.
    pub dev: u64,
    /// `st_ino`.
    pub ino: u64,
}

impl FromStr for Inode {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let digits =
            |part: &str| part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse().ok()).flatten();
        let parts = text.strip_prefix("inode://").and_then(|rest| rest.split_once('/'));
        match parts.and_then(|(dev, ino)| Some((digits(dev)?, digits(ino)?))) {
            Some((dev, ino)) => Ok(Self { dev, ino }),
            None => invalid(format!("{} is not inode://<st_dev>/<st_ino> with decimal numbers", shown(text))),
        }
    }
}

impl fmt::Display for Inode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "inode://{}/{}", self.dev, self.ino)
    }
}

/// Where a memif control socket is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub enum ControlSocket {
    /// A socket file, by its absolute path.
    Path(String),
    /// A name in the abstract namespace, written `@name`.
    Abstract(String),
    /// A socket that comes beside the request.
    Sent(Inode),
    /// A descriptor that this process was started with, written `fd:3`.
    Inherited(i32),
}

impl ControlSocket {
    /// Bytes of a path or an abstract name that fit into `sockaddr_un`.
    pub const MAX: usize = 107;
}

impl FromStr for ControlSocket {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text.starts_with("inode://") {
            return text.parse().map(Self::Sent);
        }
        if let Some(number) = text.strip_prefix("fd:") {
            return match number.parse::<i32>() {
                Ok(fd) if fd > 2 => Ok(Self::Inherited(fd)),
                _ => invalid(format!("{} is not fd:<number> with a number above 2", shown(text))),
            };
        }
        let (name, path) = (text.strip_prefix('@'), text.strip_prefix('/'));
        let len = name.map_or(text.len(), str::len);
        match (name, path) {
            _ if len > Self::MAX => {
                invalid(format!("a socket's path or name has at most 107 bytes; {} has {len}", shown(text)))
            }
            _ if text.contains('\0') => invalid(format!("{} contains a NUL", shown(text))),
            (Some(name), _) if !name.is_empty() => Ok(Self::Abstract(name.to_owned())),
            (_, Some(path)) if !path.is_empty() && !has_dot_dot(text) => Ok(Self::Path(text.to_owned())),
            _ => invalid(format!(
                "a socket is an absolute path without \"..\", @name, fd:<number> or inode://<dev>/<ino>; {} is none of them",
                shown(text)
            )),
        }
    }
}
from_text!(ControlSocket);

impl fmt::Display for ControlSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => f.write_str(path),
            Self::Abstract(name) => write!(f, "@{name}"),
            Self::Sent(inode) => inode.fmt(f),
            Self::Inherited(fd) => write!(f, "fd:{fd}"),
        }
    }
}

fn has_dot_dot(path: &str) -> bool {
    path.split('/').any(|part| part == "..")
}

/// A network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub enum Netns {
    /// By an absolute path, as `ip netns` keeps them under /run/netns.
    Path(String),
    /// By a descriptor that comes beside the request.
    Sent(Inode),
}

impl FromStr for Netns {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text.starts_with("inode://") {
            return text.parse().map(Self::Sent);
        }
        if !text.starts_with('/') || has_dot_dot(text) || text.contains('\0') || text.len() > 4095 {
            let said = shown(text);
            return invalid(format!(
                "a netns is an absolute path without \"..\", or inode://<dev>/<ino>; {said} is neither"
            ));
        }
        Ok(Self::Path(text.to_owned()))
    }
}
from_text!(Netns);

impl fmt::Display for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => f.write_str(path),
            Self::Sent(inode) => inode.fmt(f),
        }
    }
}

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
mod tests {
    use super::*;

    #[test]
    fn names_are_what_their_keepers_accept() {
        for good in ["a", "uplink-1.v_4", &"n".repeat(63)] {
            assert_eq!(good.parse::<PortName>().unwrap().as_str(), good);
        }
        for bad in ["", "a b", "ä", "a/b", "a\0", &"n".repeat(64)] {
            assert!(bad.parse::<PortName>().unwrap_err().0.contains("1 to 63 bytes"), "{bad:?}");
        }
        for bad in ["", ".", "..", "all", "default", "a/b", "a b", "nsm%d", "a:1", "sixteen-bytes-ab", "ä"] {
            assert!(bad.parse::<IfName>().is_err(), "{bad:?}");
        }
        assert_eq!("fifteen-bytes-a".parse::<IfName>().unwrap().as_str(), "fifteen-bytes-a");
    }

    #[test]
    fn a_socket_is_a_path_an_abstract_name_or_a_descriptor() {
        let inode = Inode { dev: 4, ino: 4_026_532_711 };
        let cases = [
            ("/run/vwire/a.sock", ControlSocket::Path("/run/vwire/a.sock".into())),
            ("@vwire", ControlSocket::Abstract("vwire".into())),
            ("fd:3", ControlSocket::Inherited(3)),
            ("inode://4/4026532711", ControlSocket::Sent(inode)),
        ];
        for (text, socket) in cases {
            assert_eq!(text.parse(), Ok(socket.clone()));
            assert_eq!(socket.to_string(), text);
        }
        let long = format!("/{}", "p".repeat(107));
        for bad in [
            "",
            "@",
            "/",
            "run/a",
            "/run/../etc/a",
            "fd:2",
            "fd:",
            "fd:-1",
            "inode://4",
            "inode://+4/4",
            &long,
        ] {
            assert!(bad.parse::<ControlSocket>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn numbers_name_their_limits() {
        assert_eq!(Mtu::try_from(65_522).unwrap_err().0, "mtu can be 68 to 65521 bytes, not 65522");
        assert_eq!(
            RingSize::try_from(1000).unwrap_err().0,
            "ring_size can be a power of two from 2 to 32768 slots, not 1000"
        );
        assert_eq!(Queues::try_from(-1).unwrap_err().0, "queues can be 1 to 16, not -1");
        assert_eq!(
            Vni::try_from(1 << 24).unwrap_err().0,
            "a vni can be 0 to 16777215 (24 bits), not 16777216"
        );
        assert_eq!((Mtu::default().get(), UdpPort::default().get()), (1500, 4789));
        assert!(BufferSize::try_from(2049).is_err() && BufferSize::try_from(9216).is_ok());
    }

    #[test]
    fn prefixes_hold_addresses_that_a_host_can_have() {
        for good in ["10.60.1.2/30", "2001:db8::2/64", "10.0.0.1/0", "fe80::1/128"] {
            assert_eq!(good.parse::<Prefix>().unwrap().to_string(), good);
        }
        for bad in [
            "10.60.1.2",
            "10.60.1.2/33",
            "10.60.1.2/+3",
            "0.0.0.0/0",
            "224.0.0.1/4",
            "::/0",
            "x/1",
            "1.1.1.1/-1",
        ] {
            assert!(bad.parse::<Prefix>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_secret_is_never_printed() {
        let secret: Secret = "open sesame".parse().unwrap();
        assert_eq!(format!("{secret:?}"), "hidden");
        assert!(!"x".repeat(24).parse::<Secret>().unwrap_err().0.contains('x'));
    }
}
