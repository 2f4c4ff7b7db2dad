//! Frames that say whose they are and which: every byte follows from tag and number, so nothing lost, doubled, swapped or changed
//! goes unseen.

/// Whose frame it is: a vWire and a direction of it, say.
pub type Tag = u32;

const HEAD: usize = 14 + 4 + 8;

/// The frame of this number; 60 to 1459 bytes.
pub fn frame(tag: Tag, number: u64) -> Vec<u8> {
    let mut bytes = vec![0xff; 6];
    bytes.extend_from_slice(&[2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
    bytes.extend_from_slice(&tag.to_be_bytes());
    bytes.extend_from_slice(&number.to_be_bytes());
    let seed = (u64::from(tag) << 32 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let len = 60 + (number.wrapping_mul(37) % 1400) as usize;
    bytes.extend((HEAD..len).map(|at| (seed.rotate_left(at as u32 % 61) as usize ^ at) as u8));
    bytes
}

/// Tag and number of a frame, every byte of which was checked.
pub fn check(bytes: &[u8]) -> (Tag, u64) {
    let field = |from: usize, len: usize| {
        bytes[from..from + len].iter().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte))
    };
    assert!(bytes.len() >= 60, "a frame of {} bytes was never sent", bytes.len());
    let (tag, number) = (field(14, 4) as Tag, field(18, 8));
    assert!(bytes == frame(tag, number), "frame {number} of {tag:#x} was changed on its way");
    (tag, number)
}
