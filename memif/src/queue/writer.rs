//! Writing one frame piece by piece into one or several slots.

use super::MAX_SEGMENTS;
use super::tx::Start;
use crate::bytes::{Lent, Slot};
use crate::ring::Descriptor;

/// The buffer of one slot, as it was checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub start: Start,
    pub room: u32,
    pub descriptor: Descriptor,
}

/// The slots that a long frame will fill.
pub(super) struct Plan {
    pieces: [Piece; MAX_SEGMENTS],
    count: usize,
    room: usize,
}

impl Plan {
    pub(super) fn new() -> Self {
        let none = Piece { start: Start::dangling(), room: 0, descriptor: Descriptor::default() };
        Self { pieces: [none; MAX_SEGMENTS], count: 0, room: 0 }
    }

    pub(super) fn add(&mut self, piece: Piece) {
        self.pieces[self.count] = piece;
        self.count += 1;
        self.room += piece.room as usize;
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn room(&self) -> usize {
        self.room
    }

    pub(super) fn pieces(&self) -> &[Piece] {
        &self.pieces[..self.count]
    }
}

/// Appends bytes to the frame that [`TxQueue::push_with`](super::TxQueue::push_with) reserved.
#[derive(Debug)]
pub struct FrameWriter<'a> {
    pieces: &'a [Piece],
    /// Piece that is being filled, and how far it is.
    current: usize,
    filled: u32,
    written: usize,
}

impl<'a> FrameWriter<'a> {
    pub(super) fn new(pieces: &'a [Piece]) -> Self {
        Self { pieces, current: 0, filled: 0, written: 0 }
    }

    /// Appends bytes. Those beyond what was reserved are left out.
    #[inline]
    pub fn append(&mut self, mut bytes: Lent<'_>) {
        while !bytes.is_empty() {
            let Some(piece) = self.pieces.get(self.current) else { return };
            let wrote = self.append_to(piece, bytes);
            bytes = bytes.skip(wrote);
            self.written += wrote;
            self.filled += wrote as u32;
            if self.filled == piece.room {
                self.current += 1;
                self.filled = 0;
            }
        }
    }

    /// Appends private bytes: a header, say.
    #[inline]
    pub fn append_bytes(&mut self, bytes: &[u8]) {
        self.append(Lent::from(bytes));
    }

    #[inline(always)]
    fn append_to(&self, piece: &Piece, bytes: Lent<'_>) -> usize {
        // SAFETY: pieces are ranges that `TxQueue::piece` has checked, and `push_with` borrows the queue while we write.
        let mut slot = unsafe { Slot::new(piece.start, piece.room) };
        slot.write(self.filled as usize, bytes)
    }

    /// Bytes so far.
    #[inline]
    pub fn written(&self) -> usize {
        self.written
    }
}
