//! What a connection is made of.

use crate::mesh::Side;

/// Between a client and its endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Plane {
    /// Nothing: mechanisms are agreed on, and no more. What is measured is the control plane.
    None,
    /// A kernel interface at either end.
    Kernel,
    /// A kernel interface at the client, a memif at the endpoint.
    KernelMemif,
    /// A memif at either end, joined in the engine; the client has shaken hands before it counts.
    Memif,
    /// A memif that the two have with each other, as is vwire's default; the client has shaken hands before it counts.
    MemifDirect,
}

impl Plane {
    /// In a table.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "no data plane",
            Self::Kernel => "kernel - kernel",
            Self::KernelMemif => "kernel - memif",
            Self::Memif => "memif - memif",
            Self::MemifDirect => "memif handed through",
        }
    }

    /// Go's forwarder has memif only with VPP.
    pub fn is_measured_of(self, side: Side) -> bool {
        side == Side::Vwire || matches!(self, Self::None | Self::Kernel)
    }

    /// Whether clients ask for memif.
    pub fn is_memif_at_client(self) -> bool {
        matches!(self, Self::Memif | Self::MemifDirect)
    }

    /// The forwarder's settings.
    pub fn settings(self) -> [(&'static str, String); 2] {
        let endpoint = if self == Self::Kernel { "KERNEL" } else { "MEMIF" };
        let direct = self == Self::MemifDirect;
        [("NSM_MECHANISM_PRIORITY", endpoint.to_owned()), ("VWIRE_MEMIF_DIRECT", direct.to_string())]
    }

    /// Most connections that are made: descriptors and the engine's ports are finite.
    pub fn most(self) -> usize {
        if self == Self::None { 100_000 } else { 1000 }
    }
}
