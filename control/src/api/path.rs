//! A connection's path: one segment a hop, and whose coordinates a message is in.

use super::connection::{Connection, Path, PathSegment};

/// Most hops of a path that is accepted; a chain through seven nodes and as many endpoints has 40.
pub const MAX_SEGMENTS: usize = 256;

/// Reading a [`Path`].
pub trait PathExt {
    /// The segment that `index` names.
    fn current(&self) -> Option<&PathSegment>;
    /// The segment before it: the caller's, seen from a server.
    fn previous(&self) -> Option<&PathSegment>;
    /// The segment after it: the next hop's.
    fn following(&self) -> Option<&PathSegment>;
    /// The client's connection id, by which people know the vWire.
    fn root_id(&self) -> &str;
}

impl PathExt for Path {
    fn current(&self) -> Option<&PathSegment> {
        self.path_segments.get(self.index as usize)
    }

    fn previous(&self) -> Option<&PathSegment> {
        self.path_segments.get((self.index as usize).checked_sub(1)?)
    }

    fn following(&self) -> Option<&PathSegment> {
        self.path_segments.get((self.index as usize).checked_add(1)?)
    }

    fn root_id(&self) -> &str {
        self.path_segments.first().map_or("", |segment| &segment.id)
    }
}

/// The path of a connection; an empty one if it has none.
pub fn of(connection: &Connection) -> &Path {
    static EMPTY: Path = Path { index: 0, path_segments: Vec::new() };
    connection.path.as_ref().unwrap_or(&EMPTY)
}
