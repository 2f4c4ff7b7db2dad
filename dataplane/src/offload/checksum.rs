//! The Internet checksum (RFC 1071): the one's complement sum of 16-bit words, and a copy that sums what it copies.
//!
//! Words are added in the machine's own byte order, four bytes at a time into 64-bit lanes that can't overflow for any frame;
//! the order of bytes is put right once, at the end (RFC 1071 §2). The loops are plain Rust that the compiler turns into vector
//! code; on x86-64 they are compiled twice, and the AVX2 version runs where the processor has it.

use memif::Lent;

/// A running sum over bytes that may come in pieces of any length.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sum {
    words: u64,
    odd: bool,
}

impl Sum {
    /// A sum that begins with 16 bits taken from a packet (big-endian there): the pseudo header's sum that an open checksum
    /// field holds, for example.
    #[inline]
    pub fn starting_at(network_word: u16) -> Self {
        Self { words: u64::from(network_word.to_be()), odd: false }
    }

    /// Adds a number as a 16-bit big-endian word.
    #[inline]
    pub fn add_word(&mut self, word: u16) {
        self.words += u64::from(word.to_be());
    }

    /// Adds bytes.
    #[inline]
    pub fn add(&mut self, bytes: &[u8]) {
        self.add_view(Lent::from(bytes));
    }

    /// Adds the bytes of a view.
    #[inline]
    pub fn add_view(&mut self, view: Lent<'_>) {
        // SAFETY: a view is readable for its length.
        let words = unsafe { sum_raw(view.as_ptr(), view.len()) };
        self.append(words, view.len());
    }

    /// Copies as many bytes of `view` as fit to the start of `to`, adds them, and returns how many they were.
    #[inline]
    pub fn add_copy(&mut self, view: Lent<'_>, to: &mut [u8]) -> usize {
        let len = view.len().min(to.len());
        // SAFETY: `view` is readable and `to` writable for `len` bytes, and nothing else refers to `to`.
        let words = unsafe { copy_raw(view.as_ptr(), to.as_mut_ptr(), len) };
        self.append(words, len);
        len
    }

    /// Appends the sum of `len` more bytes. After an odd number of bytes all later ones stand in the other half of their word.
    #[inline]
    fn append(&mut self, words: u64, len: usize) {
        let words = u64::from(fold(words));
        self.words += if self.odd { u64::from((words as u16).swap_bytes()) } else { words };
        self.odd ^= len % 2 == 1;
    }

    /// Ends a piece of odd length with a zero byte (RFC 1071 §4.1), so that what is added next begins a word: the sum does not
    /// care that a payload is added before the header that stands in front of it.
    #[inline]
    #[must_use]
    pub fn padded(self) -> Self {
        Self { odd: false, ..self }
    }

    /// The sum as a big-endian 16-bit word: `0xffff` over bytes that include a right checksum.
    #[inline]
    pub fn folded(self) -> u16 {
        u16::from_be(fold(self.words))
    }

    /// What belongs in the checksum field: the sum's complement, with `0xffff` for zero, which in UDP means "none" (RFC 768).
    #[inline]
    pub fn checksum(self) -> u16 {
        match !self.folded() {
            0 => 0xffff,
            sum => sum,
        }
    }
}

/// The checksum of an IPv4 header whose checksum field is zero, or the sum's complement of a received one (zero if right).
#[inline]
pub fn header_checksum(header: &[u8]) -> u16 {
    let mut sum = Sum::default();
    sum.add(header);
    !sum.folded()
}

#[inline]
fn fold(mut words: u64) -> u16 {
    words = (words >> 32) + (words & 0xffff_ffff);
    words = (words >> 32) + (words & 0xffff_ffff);
    words = (words >> 16) + (words & 0xffff);
    words = (words >> 16) + (words & 0xffff);
    ((words >> 16) + (words & 0xffff)) as u16
}

/// Bytes per turn of the vector loops: eight 32-bit words, one AVX2 register.
const STEP: usize = 32;
/// Below this there is nothing for vectors to gain: headers are summed in the caller's own code.
const SHORT: usize = 64;

/// Sums `len` bytes at `from`, in native words. No frame is long enough to overflow a 64-bit lane of 32-bit words.
///
/// # Safety
/// `len` bytes must be readable at `from`.
#[inline]
unsafe fn sum_raw(from: *const u8, len: usize) -> u64 {
    // SAFETY: forwarded; AVX2 code runs only where the processor has it.
    unsafe {
        if len <= SHORT {
            return tail(from, len);
        }
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            return sum_avx2(from, len);
        }
        sum_lanes(from, len)
    }
}

/// Copies `len` bytes and sums them. Each byte is read once, so that what is summed is what is copied.
///
/// # Safety
/// `len` bytes must be readable at `from` and writable at `to`, and the ranges must not overlap.
#[inline]
unsafe fn copy_raw(from: *const u8, to: *mut u8, len: usize) -> u64 {
    // SAFETY: as in `sum_raw`.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            return copy_avx2(from, to, len);
        }
        copy_lanes(from, to, len)
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn sum_avx2(from: *const u8, len: usize) -> u64 {
    // SAFETY: forwarded.
    unsafe { sum_lanes(from, len) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn copy_avx2(from: *const u8, to: *mut u8, len: usize) -> u64 {
    // SAFETY: forwarded.
    unsafe { copy_lanes(from, to, len) }
}

/// One array of lanes: with two, the compiler keeps half of them in general registers and is four times slower.
#[inline(always)]
unsafe fn sum_lanes(from: *const u8, len: usize) -> u64 {
    let mut lanes = [0u64; 8];
    let steps = len / STEP;
    for i in 0..steps {
        // SAFETY: `i` is below the number of whole steps in the range.
        add_step(&mut lanes, unsafe { from.add(i * STEP).cast::<[u32; 8]>().read_unaligned() });
    }
    let done = steps * STEP;
    // SAFETY: `done` is at most `len`.
    lanes.iter().sum::<u64>() + unsafe { tail(from.add(done), len - done) }
}

#[inline(always)]
unsafe fn copy_lanes(from: *const u8, to: *mut u8, len: usize) -> u64 {
    let mut lanes = [0u64; 8];
    let steps = len / STEP;
    for i in 0..steps {
        // SAFETY: `i` is below the number of whole steps in both ranges.
        unsafe {
            let step = from.add(i * STEP).cast::<[u32; 8]>().read_unaligned();
            to.add(i * STEP).cast::<[u32; 8]>().write_unaligned(step);
            add_step(&mut lanes, step);
        }
    }
    let done = steps * STEP;
    let mut rest = [0u8; STEP];
    // SAFETY: `len - done` is less than a step, and both ranges hold as many bytes more.
    unsafe {
        from.add(done).copy_to_nonoverlapping(rest.as_mut_ptr(), len - done);
        rest.as_ptr().copy_to_nonoverlapping(to.add(done), len - done);
        lanes.iter().sum::<u64>() + tail(rest.as_ptr(), len - done)
    }
}

#[inline(always)]
fn add_step(lanes: &mut [u64; 8], words: [u32; 8]) {
    for (lane, word) in lanes.iter_mut().zip(words) {
        *lane += u64::from(word);
    }
}

/// Sums any number of bytes, the last odd one as the first half of a word whose other half is zero.
#[inline(always)]
unsafe fn tail(from: *const u8, len: usize) -> u64 {
    let mut sum = 0;
    let mut at = 0;
    // SAFETY: every read ends at or before `len`.
    unsafe {
        while at + 4 <= len {
            sum += u64::from(from.add(at).cast::<u32>().read_unaligned());
            at += 4;
        }
        if at + 2 <= len {
            sum += u64::from(from.add(at).cast::<u16>().read_unaligned());
            at += 2;
        }
        if at < len {
            sum += u64::from(u16::from_ne_bytes([*from.add(at), 0]));
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071's definition, byte by byte.
    fn by_definition(bytes: &[u8]) -> u16 {
        let words =
            bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
        words.fold(0u32, |sum, word| (sum + word) % 0xffff) as u16
    }

    /// Zero and 0xffff are the same number in one's complement.
    fn same(a: u16, b: u16) -> bool {
        a % 0xffff == b % 0xffff
    }

    proptest! {
        #[test]
        fn sums_as_rfc_1071_defines(bytes in prop::collection::vec(any::<u8>(), 0..4000)) {
            let mut sum = Sum::default();
            sum.add(&bytes);
            prop_assert!(same(sum.folded(), by_definition(&bytes)));
        }

        #[test]
        fn pieces_of_any_length_sum_as_the_whole(
            bytes in prop::collection::vec(any::<u8>(), 0..3000),
            cuts in prop::collection::vec(0usize..3000, 0..6),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let (mut summed, mut copied, mut copy) = (Sum::default(), Sum::default(), Vec::new());
            for pair in cuts.windows(2) {
                let piece = &bytes[pair[0]..pair[1]];
                summed.add(piece);
                let mut to = vec![0; piece.len()];
                prop_assert_eq!(copied.add_copy(Lent::from(piece), &mut to), piece.len());
                copy.extend(to);
            }
            prop_assert!(same(summed.folded(), by_definition(&bytes)));
            prop_assert!(same(copied.folded(), by_definition(&bytes)));
            prop_assert_eq!(copy, bytes);
        }
    }

    #[test]
    fn the_longest_frame_of_all_ones_does_not_overflow() {
        let mut sum = Sum::default();
        sum.add(&vec![0xff; crate::burst::MAX_FRAME]);
        assert_eq!(sum.folded(), 0xffff);
    }

    #[test]
    fn an_ipv4_header_agrees_with_etherparse() {
        let header =
            etherparse::Ipv4Header::new(100, 64, etherparse::IpNumber::TCP, [10, 0, 0, 1], [10, 0, 0, 2])
                .expect("a short payload");
        let mut bytes = Vec::new();
        header.write_raw(&mut bytes).expect("a vector takes all");
        bytes[10..12].fill(0);
        assert_eq!(header_checksum(&bytes), header.calc_header_checksum());
    }
}
