//! What a frame owes, in DPDK's terms: checksums and segmentation that the device can do itself.
//!
//! Unsafe: one call that writes the flags into an mbuf of the caller's.

use dpdk_sys as sys;
use memif::Lent;

use crate::DropReason;
use crate::burst::{Frame, Frames, Gso, Offload};
use crate::offload::{Layout, MAX_HEADER, ethernet_len};

/// Where TCP's and UDP's checksum lie in their headers.
const TCP_CHECKSUM: u16 = 16;
const UDP_CHECKSUM: u16 = 6;

/// What the device is asked to do with a frame.
pub(super) struct Debt {
    raw: sys::vwire_debt,
    /// The frame's first bytes, as the device wants them.
    head: [u8; MAX_HEADER],
    /// How many of them are the frame's headers; the rest is taken from the frame.
    head_len: usize,
}

/// The debt of `frame`, if it is well formed and a device with these `offloads` (DPDK's bits) can pay it. Otherwise
/// `crate::offload` pays it, or finds out what is wrong with it.
pub(super) fn of(frames: &Frames<'_, '_>, frame: &Frame<'_>, owed: &Offload, offloads: u64) -> Option<Debt> {
    let mut head = [0; MAX_HEADER];
    let copied = copy_head(frames, frame, &mut head);
    let layout = Layout::check(&head[..copied], frame.len(), owed).ok()?;
    let l2 = ethernet_len(&head[..copied])?;
    let l3 = layout.l4.checked_sub(l2).filter(|l3| (20..512).contains(l3))?;
    let v6 = head[l2] >> 4 == 6;
    let tcp = match owed.csum_offset {
        TCP_CHECKSUM => true,
        UDP_CHECKSUM => false,
        _ => return None,
    };
    let (mut needed, flag) = if tcp {
        (sys::VWIRE_TX_TCP_CKSUM, sys::VWIRE_MBUF_TX_TCP_CKSUM)
    } else {
        (sys::VWIRE_TX_UDP_CKSUM, sys::VWIRE_MBUF_TX_UDP_CKSUM)
    };
    let mut raw = sys::vwire_debt {
        flags: flag | if v6 { sys::VWIRE_MBUF_TX_IPV6 } else { sys::VWIRE_MBUF_TX_IPV4 },
        l2_len: l2 as u16,
        l3_len: l3 as u16,
        ..Default::default()
    };
    match owed.gso {
        Gso::None if owed.needs_csum => {}
        Gso::Tcp4 | Gso::Tcp6 => {
            needed |= sys::VWIRE_TX_TCP_TSO | sys::VWIRE_TX_MULTI_SEGS;
            raw.flags |= sys::VWIRE_MBUF_TX_TCP_SEG;
            if !v6 {
                needed |= sys::VWIRE_TX_IPV4_CKSUM;
                raw.flags |= sys::VWIRE_MBUF_TX_IP_CKSUM;
            }
            raw.l4_len = (layout.header - layout.l4) as u16;
            raw.segment_size = owed.gso_size;
            for_segments(&mut head, &layout, frame.len(), v6);
        }
        _ => return None,
    }
    (offloads & needed == needed).then_some(Debt { raw, head, head_len: layout.header.min(copied) })
}

/// DPDK wants the pseudo header's sum without a length, since segments have another, and no IPv4 header checksum.
fn for_segments(head: &mut [u8; MAX_HEADER], layout: &Layout, len: usize, v6: bool) {
    let field = layout.field;
    let sum = u32::from(u16::from_be_bytes([head[field], head[field + 1]]));
    let less = sum + u32::from(!((len - layout.l4) as u16));
    let folded = (less & 0xffff) + (less >> 16);
    head[field..field + 2].copy_from_slice(&(folded as u16).to_be_bytes());
    if !v6 {
        head[layout.l3 + 10..layout.l3 + 12].fill(0);
    }
}

fn copy_head(frames: &Frames<'_, '_>, frame: &Frame<'_>, to: &mut [u8; MAX_HEADER]) -> usize {
    let mut at = 0;
    for view in frames.views(frame) {
        at += view.copy_to(&mut to[at..]);
    }
    at
}

impl Debt {
    /// The length of the longest frame that a frame of `len` bytes will be on the wire.
    pub fn longest(&self, len: usize) -> usize {
        match self.raw.segment_size {
            0 => len,
            size => len.min(self.head_len + usize::from(size)),
        }
    }

    /// Gives the frame's bytes to `append`: its headers as the device wants them, and the rest as it is.
    pub fn write<'a>(
        &'a self,
        frames: &Frames<'_, 'a>,
        frame: &Frame<'a>,
        mut append: impl FnMut(Lent<'_>) -> Result<(), DropReason>,
    ) -> Result<(), DropReason> {
        append(Lent::from(&self.head[..self.head_len]))?;
        let mut skip = self.head_len;
        for view in frames.views(frame) {
            let rest = view.skip(skip);
            skip = skip.saturating_sub(view.len());
            append(rest)?;
        }
        Ok(())
    }

    /// Writes it into the mbuf.
    pub fn mark(&self, mbuf: *mut sys::rte_mbuf) {
        // SAFETY: the caller has just filled this mbuf and nobody else knows of it.
        unsafe { sys::vwire_set_debt(mbuf, &raw const self.raw) }
    }
}
