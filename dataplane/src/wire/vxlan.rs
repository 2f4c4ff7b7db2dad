//! The VXLAN header (RFC 7348 §5): eight bytes between UDP and the inner Ethernet frame.
//!
//! ```text
//! byte 0      flags: R R R R I R R R      I = the VNI is valid, always set
//! bytes 1–3   reserved, sent as 0, ignored on receipt
//! bytes 4–6   VNI, big-endian
//! byte 7      reserved, sent as 0, ignored on receipt
//! ```
//! Linux and VPP drop a header with a reserved bit set; the RFC says to ignore those bits, so senders that use them (group
//! policy, GPE) are still understood here, and what is sent from here is understood by all.

use crate::tables::Vni;

/// Bytes of the header.
pub const HEADER_LEN: usize = 8;
/// Bytes of an Ethernet header without a tag: the least that an inner frame has.
pub const MIN_INNER: usize = 14;
/// IANA's UDP port for VXLAN. (The Linux device's own default is another, 8472.)
pub const PORT: u16 = 4789;

/// The I flag in the header read as one big-endian word.
const VALID_VNI: u64 = 0x08 << 56;
/// The bits that say which tunnel: the I flag and the VNI.
const KEY_BITS: u64 = VALID_VNI | 0xff_ffff << 8;

/// Why a datagram is not VXLAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// No room for the header and an inner Ethernet header.
    Short,
    /// The I flag is not set.
    NoVni,
}

/// The part of a header that names a tunnel, with the reserved bits masked out: equal words, equal tunnels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeaderKey(u64);

impl HeaderKey {
    /// The VNI, if the I flag says that there is one.
    #[inline]
    pub const fn vni(self) -> Result<Vni, Malformed> {
        match Vni::new((self.0 >> 8) as u32 & 0xff_ffff) {
            Some(vni) if self.0 & VALID_VNI != 0 => Ok(vni),
            _ => Err(Malformed::NoVni),
        }
    }
}

/// Splits a UDP payload into its header's key and the inner frame.
///
/// # Errors
/// [`Malformed::Short`]. The flags are looked at by [`HeaderKey::vni`], once for a run of equal headers.
#[inline]
pub fn split(datagram: &[u8]) -> Result<(HeaderKey, &[u8]), Malformed> {
    match datagram.split_first_chunk::<HEADER_LEN>() {
        Some((header, inner)) if inner.len() >= MIN_INNER => {
            Ok((HeaderKey(u64::from_be_bytes(*header) & KEY_BITS), inner))
        }
        _ => Err(Malformed::Short),
    }
}

/// The header for `vni`.
#[inline]
pub const fn header(vni: Vni) -> [u8; HEADER_LEN] {
    (VALID_VNI | (vni.get() as u64) << 8).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_the_one_of_the_rfc_and_comes_back() {
        let vni = Vni::new(0x12_3456).unwrap();
        assert_eq!(header(vni), [0x08, 0, 0, 0, 0x12, 0x34, 0x56, 0]);
        let datagram = [&header(vni)[..], &[9; 14]].concat();
        let (key, inner) = split(&datagram).unwrap();
        assert_eq!((key.vni(), inner), (Ok(vni), &[9; 14][..]));
    }

    #[test]
    fn every_length_without_an_inner_header_is_short() {
        for len in 0..HEADER_LEN + MIN_INNER {
            assert_eq!(split(&vec![8; len]), Err(Malformed::Short), "{len} bytes");
        }
    }

    #[test]
    fn reserved_bits_change_nothing_but_the_i_flag_must_be_set() {
        let plain = [0x08, 0, 0, 0, 0, 0, 42, 0];
        let noisy = [0xff, 0xff, 0xff, 0xff, 0, 0, 42, 0xff];
        let key = |header: [u8; 8]| split(&[&header[..], &[0; 14]].concat()).unwrap().0;
        assert_eq!(key(plain), key(noisy));
        for flags in 0..=255u8 {
            let vni = key([flags, 0, 0, 0, 0, 0, 42, 0]).vni();
            assert_eq!(vni.is_ok(), flags & 0x08 != 0, "flags {flags:#x}");
        }
    }
}
