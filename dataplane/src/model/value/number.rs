//! Numbers with limits.

use serde::Deserialize;

use super::{Invalid, invalid};
use crate::tables::Vni;

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
    /// Workers that share a port's queues.
    Workers(u16), "workers", (1..=64), "", default 1, None
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
