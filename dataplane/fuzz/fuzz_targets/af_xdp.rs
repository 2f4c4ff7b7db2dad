//! What the kernel says in the rings of an AF_XDP socket, and the heads of frames that are looked at for open checksums: whatever it is,
//! what is accepted lies inside.
#![no_main]

use std::collections::BTreeSet;

use libfuzzer_sys::fuzz_target;
use vwire_dataplane::port::af_xdp::ledger::{Descriptor, Ledger, filled};
use vwire_dataplane::port::af_xdp::unfinished::open_checksum;

const FRAME: u32 = 2048;
const FRAMES: u32 = 8;
const FIRST: u32 = 3;

fuzz_target!(|data: &[u8]| {
    if let Some(owed) = open_checksum(data) {
        assert!(owed.needs_csum && usize::from(owed.csum_start + owed.csum_offset) + 2 <= data.len());
    }
    let mut ledger = Ledger::new(FIRST, FRAMES, FRAME);
    let mut held = BTreeSet::new();
    for claim in data.chunks_exact(13) {
        let (what, rest) = claim.split_first().unwrap();
        let word = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
        let (address, len) = (u64::from(word(0)) | u64::from(word(4)) << 32, word(8));
        // Near the frames as often as anywhere.
        let address = if what & 4 == 0 { address % (16 * u64::from(FRAME)) } else { address };
        let len = if what & 8 == 0 { len % (2 * FRAME) } else { len };
        let inside = address / u64::from(FRAME);
        let ours = (u64::from(FIRST)..u64::from(FIRST + FRAMES)).contains(&inside);
        match what & 3 {
            0 => assert_eq!(ledger.give(address).is_ok(), ours && held.insert(inside)),
            1 => assert_eq!(ledger.take_back(address).is_ok(), held.remove(&inside)),
            2 => {
                if let Ok(start) = ledger.receive(&Descriptor { address, len, options: 0 }) {
                    assert!(held.remove(&inside) && start <= address);
                    assert!(address + u64::from(len) <= start + u64::from(FRAME));
                }
            }
            _ => {
                if let Ok(filled) = filled(64, word(0), word(4)) {
                    assert!(filled <= 64 && word(4).wrapping_add(filled) == word(0));
                }
            }
        }
    }
});
