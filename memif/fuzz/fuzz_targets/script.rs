//! Scripts of messages out of a fuzzer's bytes.

use memif::handshake::Attached;
use memif::message::{MESSAGE_SIZE, Message};

/// A reader of the fuzzer's bytes; zeros when they are used up.
pub struct Script<'a>(pub &'a [u8]);

impl Script<'_> {
    pub fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    /// The next message that decodes, and what comes with it; `None` at the end. A message takes 16 bytes:
    /// its type, and what lies at offset 2; INIT gets a version and terminated strings, which the fuzzer need
    /// not find.
    pub fn message(&mut self) -> Option<(Message, Attached<usize>)> {
        while !self.0.is_empty() {
            let (kind, fds) = (self.byte(), self.byte());
            let mut bytes = [0; MESSAGE_SIZE];
            bytes[0] = kind & 15;
            for at in 2..16 {
                bytes[at] = self.byte();
            }
            if bytes[0] == 3 && kind & 16 == 0 {
                bytes[2..4].copy_from_slice(&0x0200u16.to_ne_bytes());
            }
            let attached = match fds & 3 {
                0 => Attached::None,
                1 => Attached::One(self.0.len()),
                2 => Attached::TooMany,
                // As it should be.
                _ if matches!(bytes[0], 4 | 5) => Attached::One(self.0.len()),
                _ => Attached::None,
            };
            if let Ok(message) = Message::decode(&bytes) {
                return Some((message, attached));
            }
        }
        None
    }
}
