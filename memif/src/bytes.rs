//! Views of bytes that somebody else may be rewriting, and the one copy that is made of them.
//!
//! Rust's references promise that nobody else writes; memory shared with a memif peer breaks that promise. So peer memory is
//! never a `&[u8]` here: it is a [`Lent`] (to read from) or a [`Slot`] (to write to), which can only be copied. What was copied
//! may be torn if the peer wrote meanwhile; parse the copy and never look back.
//!
//! Private memory can be lent too (`Lent::from(&[u8])`), so that one burst type serves ports of every kind.

use core::marker::PhantomData;
use core::ptr::NonNull;

/// A readable view of `len` bytes, borrowed for `'a`, whose content may change under the reader.
#[derive(Clone, Copy)]
pub struct Lent<'a> {
    start: NonNull<u8>,
    len: u32,
    borrow: PhantomData<&'a [u8]>,
}

/// A writable view of `len` bytes, borrowed for `'a`, that another process may read or write at any time.
pub struct Slot<'a> {
    start: NonNull<u8>,
    len: u32,
    borrow: PhantomData<&'a mut [u8]>,
}

// SAFETY: a view is a borrowed range of mapped memory; nothing in it is tied to the thread that made it, and every access
// through it is a plain copy that tolerates concurrent writers.
unsafe impl Send for Lent<'_> {}
// SAFETY: as for Lent; a Slot is not Clone, so two threads never write through the same one.
unsafe impl Send for Slot<'_> {}

impl<'a> Lent<'a> {
    /// Lends the `len` bytes at `start`.
    ///
    /// # Safety
    /// The range must stay mapped and readable for `'a`. It may be written by others meanwhile.
    #[inline]
    pub const unsafe fn new(start: NonNull<u8>, len: u32) -> Self {
        Self { start, len, borrow: PhantomData }
    }

    /// Bytes in view.
    #[inline]
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// True if there are no bytes in view.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The view without its first `n` bytes; empty if it has no more than `n`.
    #[inline]
    #[must_use]
    pub fn skip(self, n: usize) -> Self {
        let n = n.min(self.len());
        // SAFETY: n is at most len, so the start stays within, or one past, the borrowed range.
        unsafe { Self::new(self.start.add(n), self.len - n as u32) }
    }

    /// The first `n` bytes of the view, or all of it if it is shorter.
    #[inline]
    #[must_use]
    pub fn take(self, n: usize) -> Self {
        Self { len: n.min(self.len()) as u32, ..self }
    }

    /// Copies the first bytes into `to`, as many as both hold, and returns how many.
    #[inline]
    pub fn copy_to(&self, to: &mut [u8]) -> usize {
        let n = to.len().min(self.len());
        if let Some(start) = NonNull::new(to.as_mut_ptr()) {
            // SAFETY: both ranges hold n bytes; `to` is exclusively ours, so they do not overlap.
            unsafe { copy(self.start, start, n) }
        }
        n
    }

    /// Copies the first `N` bytes, or `None` if the view is shorter.
    #[inline]
    pub fn head<const N: usize>(&self) -> Option<[u8; N]> {
        if self.len() < N {
            return None;
        }
        let mut head = [0; N];
        self.copy_to(&mut head);
        Some(head)
    }

    /// Copies all bytes into a new vector: for slow paths and tests.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut copy = vec![0; self.len()];
        self.copy_to(&mut copy);
        copy
    }

    /// Tells the processor that the first two cache lines are about to be read.
    #[inline]
    pub fn prefetch(&self) {
        prefetch_read(self.start);
        if self.len > 64 {
            // SAFETY: len is over 64, so the address is inside the view.
            prefetch_read(unsafe { self.start.add(64) });
        }
    }

    /// Where the view begins, for system calls that take addresses (`iovec`).
    #[inline]
    pub const fn as_ptr(&self) -> *const u8 {
        self.start.as_ptr()
    }
}

impl<'a> From<&'a [u8]> for Lent<'a> {
    /// # Panics
    /// If the slice is longer than `u32::MAX` bytes, which no frame is.
    #[inline]
    fn from(bytes: &'a [u8]) -> Self {
        let len = u32::try_from(bytes.len()).expect("a frame is shorter than 4 GiB");
        // SAFETY: a slice is non-null, mapped and readable for its lifetime.
        unsafe { Self::new(NonNull::new_unchecked(bytes.as_ptr().cast_mut()), len) }
    }
}

impl<'a> Slot<'a> {
    /// Lends the `len` writable bytes at `start`.
    ///
    /// # Safety
    /// The range must stay mapped and writable for `'a`, and no other `Slot` of this process may cover it meanwhile.
    #[inline]
    pub const unsafe fn new(start: NonNull<u8>, len: u32) -> Self {
        Self { start, len, borrow: PhantomData }
    }

    /// Bytes that fit.
    #[inline]
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// True if nothing fits.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies as much of `from` as fits to offset `at`, and returns how many bytes that was.
    #[inline]
    pub fn write(&mut self, at: usize, from: Lent<'_>) -> usize {
        let room = self.len().saturating_sub(at);
        let n = room.min(from.len());
        if n > 0 {
            // SAFETY: at + n is at most len and from holds n bytes. The views come from different owners' buffers; a hostile
            // peer may make them overlap, in which case its own bytes come out garbled (`copy` reads and writes whole words,
            // in order, and never outside the two ranges).
            unsafe { copy(from.start, self.start.add(at), n) }
        }
        n
    }
}

impl<'a> From<&'a mut [u8]> for Slot<'a> {
    /// # Panics
    /// If the slice is longer than `u32::MAX` bytes.
    #[inline]
    fn from(bytes: &'a mut [u8]) -> Self {
        let len = u32::try_from(bytes.len()).expect("a frame is shorter than 4 GiB");
        // SAFETY: a mutable slice is non-null, mapped, writable and ours alone for its lifetime.
        unsafe { Self::new(NonNull::new_unchecked(bytes.as_mut_ptr()), len) }
    }
}

/// Copies `n` bytes between ranges that other processes may be touching.
///
/// # Safety
/// `n` bytes must be readable at `from` and writable at `to`.
#[inline(always)]
unsafe fn copy(from: NonNull<u8>, to: NonNull<u8>, n: usize) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if n.wrapping_sub(16) <= 112 {
        // SAFETY: forwarded from the caller; 16 <= n <= 128.
        return unsafe { copy_small(from.as_ptr(), to.as_ptr(), n) };
    }
    // SAFETY: forwarded from the caller. `ptr::copy` (memmove) and not `copy_nonoverlapping`: a peer chooses where its
    // descriptors point, so the two ranges may overlap in memory that it owns.
    unsafe { core::ptr::copy(from.as_ptr(), to.as_ptr(), n) }
}

/// 16 to 128 bytes, in line: from the front and from the back, overlapping in the middle where `n` is no power of two. In
/// assembly, so that the compiler neither reads twice nor assumes anything about what it read. Everything is read before
/// anything is written, so overlapping ranges are as good as any.
///
/// # Safety
/// As for `copy`, and `n` from 16 to 128.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline(always)]
unsafe fn copy_small(from: *const u8, to: *mut u8, n: usize) {
    use core::arch::asm;
    // SAFETY: each block reads and writes between the first and the last of n bytes; SSE2 is part of the architecture.
    unsafe {
        match n {
            ..=32 => asm!(
                "movdqu {a}, [{from}]",
                "movdqu {b}, [{from} + {n} - 16]",
                "movdqu [{to}], {a}",
                "movdqu [{to} + {n} - 16], {b}",
                from = in(reg) from, to = in(reg) to, n = in(reg) n,
                a = out(xmm_reg) _, b = out(xmm_reg) _,
                options(nostack, preserves_flags),
            ),
            33..=64 => asm!(
                "movdqu {a}, [{from}]",
                "movdqu {b}, [{from} + 16]",
                "movdqu {c}, [{from} + {n} - 32]",
                "movdqu {d}, [{from} + {n} - 16]",
                "movdqu [{to}], {a}",
                "movdqu [{to} + 16], {b}",
                "movdqu [{to} + {n} - 32], {c}",
                "movdqu [{to} + {n} - 16], {d}",
                from = in(reg) from, to = in(reg) to, n = in(reg) n,
                a = out(xmm_reg) _, b = out(xmm_reg) _, c = out(xmm_reg) _, d = out(xmm_reg) _,
                options(nostack, preserves_flags),
            ),
            _ => asm!(
                "movdqu {a}, [{from}]",
                "movdqu {b}, [{from} + 16]",
                "movdqu {c}, [{from} + 32]",
                "movdqu {d}, [{from} + 48]",
                "movdqu {e}, [{from} + {n} - 64]",
                "movdqu {f}, [{from} + {n} - 48]",
                "movdqu {g}, [{from} + {n} - 32]",
                "movdqu {h}, [{from} + {n} - 16]",
                "movdqu [{to}], {a}",
                "movdqu [{to} + 16], {b}",
                "movdqu [{to} + 32], {c}",
                "movdqu [{to} + 48], {d}",
                "movdqu [{to} + {n} - 64], {e}",
                "movdqu [{to} + {n} - 48], {f}",
                "movdqu [{to} + {n} - 32], {g}",
                "movdqu [{to} + {n} - 16], {h}",
                from = in(reg) from, to = in(reg) to, n = in(reg) n,
                a = out(xmm_reg) _, b = out(xmm_reg) _, c = out(xmm_reg) _, d = out(xmm_reg) _, e = out(xmm_reg) _, f = out(xmm_reg) _, g = out(xmm_reg) _, h = out(xmm_reg) _,
                options(nostack, preserves_flags),
            ),
        }
    }
}

/// Asks for the cache line at `address`, to be read soon. Never faults.
#[inline(always)]
pub fn prefetch_read(address: NonNull<u8>) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch is a hint; it does not access memory architecturally and cannot fault.
    unsafe {
        core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(address.as_ptr().cast())
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
