//! What a control process leaves with a port to find it again. The engine does not read it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::value::Invalid;
use super::{PortName, StateError};

/// A port's note: any bytes. Copies share them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Note(Arc<[u8]>);

impl Note {
    /// Most bytes of one note.
    pub const MAX: usize = 16 << 10;

    /// The bytes; none if there is no note.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<&[u8]> for Note {
    type Error = Invalid;
    fn try_from(bytes: &[u8]) -> Result<Self, Invalid> {
        if bytes.len() > Self::MAX {
            return Err(Invalid(format!(
                "a note has at most {} bytes; this one has {}",
                Self::MAX,
                bytes.len()
            )));
        }
        Ok(Self(bytes.into()))
    }
}

/// The notes of all ports that have one, and how long they are together.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Notes {
    by_port: BTreeMap<PortName, Note>,
    bytes: usize,
}

impl Notes {
    /// Most bytes of all notes together.
    pub const MAX_BYTES: usize = 32 << 20;

    /// A port's note; an empty one if it has none.
    pub fn get(&self, port: &PortName) -> Note {
        self.by_port.get(port).cloned().unwrap_or_default()
    }

    /// Gives a port a note, or none. Returns the one that it had.
    pub(super) fn set(&mut self, port: &PortName, note: Note) -> Note {
        self.bytes += note.bytes().len();
        let before = match note.bytes() {
            [] => self.by_port.remove(port),
            _ => self.by_port.insert(port.clone(), note),
        };
        let before = before.unwrap_or_default();
        self.bytes -= before.bytes().len();
        before
    }

    pub(super) fn check(&self) -> Result<(), StateError> {
        if self.bytes > Self::MAX_BYTES { Err(StateError::Notes(self.bytes)) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(len: usize) -> Note {
        Note::try_from(&vec![7; len][..]).unwrap()
    }

    #[test]
    fn notes_are_bounded_one_by_one_and_together() {
        let error = Note::try_from(&[0; Note::MAX + 1][..]).unwrap_err();
        assert_eq!(error.0, "a note has at most 16384 bytes; this one has 16385");
        let mut notes = Notes::default();
        let port = |i: usize| format!("p{i}").parse::<PortName>().unwrap();
        for i in 0..Notes::MAX_BYTES / Note::MAX {
            notes.set(&port(i), note(Note::MAX));
        }
        assert_eq!(notes.check(), Ok(()));
        notes.set(&port(5000), note(1));
        let error = notes.check().unwrap_err().to_string();
        assert_eq!(
            error,
            "33554433 bytes of notes are too many; the limit is 33554432 for all ports together"
        );
        assert_eq!(
            notes.set(&port(5000), Note::default()).bytes(),
            [7],
            "the note that was there is given back"
        );
        assert_eq!(notes.check(), Ok(()));
    }

    #[test]
    fn a_note_that_replaces_another_takes_its_room() {
        let port: PortName = "p".parse().unwrap();
        let mut notes = Notes::default();
        for len in [5, 9, 3] {
            notes.set(&port, note(len));
            assert_eq!((notes.bytes, notes.get(&port).bytes().len()), (len, len));
        }
        notes.set(&port, Note::default());
        assert_eq!(notes, Notes::default());
    }
}
