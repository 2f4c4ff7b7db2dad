//! The record of a connection that the engine keeps for us, with the port toward the client: what a forwarder has to know of a
//! connection that it has never heard of, because it has just started.

use prost::Message;
use vwire_proto::dataplane::v1 as pb;

use crate::api::connection::{Connection, Mechanism};

/// Grows when an older forwarder could not read what a newer wrote.
const VERSION: u32 = 1;
/// Bytes that the engine keeps of one note.
const MAX: usize = 16_384;

/// The record. It has no tokens: they are nobody else's business, and stale by the time they would be read.
#[derive(Clone, PartialEq, Message)]
pub struct Note {
    /// `VERSION`.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// The forwarder's name; several may share an engine.
    #[prost(string, tag = "2")]
    pub owner: String,
    /// As it was answered, in our own coordinates, with the mechanism toward the client.
    #[prost(message, optional, tag = "3")]
    pub connection: Option<Connection>,
    /// The mechanism toward the endpoint.
    #[prost(message, optional, tag = "4")]
    pub toward_endpoint: Option<Mechanism>,
    /// When the client's token ends, in seconds since 1970: unless it refreshes until then, it is gone.
    #[prost(int64, tag = "5")]
    pub expires: i64,
    /// Routing tables of the policy rules in the client's namespace.
    #[prost(uint32, repeated, tag = "6")]
    pub tables: Vec<u32>,
    /// The port toward the client.
    #[prost(string, tag = "7")]
    pub server_port: String,
    /// The port toward the endpoint.
    #[prost(string, tag = "8")]
    pub client_port: String,
    /// Where the next hop listens, if that is a place that can be found again.
    #[prost(string, tag = "9")]
    pub next_hop: String,
    /// [`super::wanted::End::key`] of the end toward the client.
    #[prost(string, tag = "10")]
    pub server_key: String,
    /// Likewise, toward the endpoint.
    #[prost(string, tag = "11")]
    pub client_key: String,
    /// The SPIFFE ID of the caller, if it has one.
    #[prost(string, tag = "12")]
    pub caller: String,
    /// The SPIFFE ID that the path's first token names.
    #[prost(string, tag = "13")]
    pub client: String,
}

impl Note {
    /// A note of `owner` about a connection.
    pub fn new(owner: &str, connection: &Connection) -> Self {
        let mut connection = connection.clone();
        for segment in connection.path.iter_mut().flat_map(|path| &mut path.path_segments) {
            segment.token.clear();
            segment.metrics.clear();
        }
        Self { version: VERSION, owner: owner.to_owned(), connection: Some(connection), ..Self::default() }
    }

    /// As the engine keeps it. A connection that describes itself at too great length goes without a part that the next Request
    /// brings anyway.
    pub fn encoded(&self) -> Vec<u8> {
        let bytes = self.encode_to_vec();
        if bytes.len() <= MAX {
            return bytes;
        }
        let mut short = self.clone();
        if let Some(connection) = &mut short.connection {
            connection.labels.clear();
            connection.context = None;
        }
        short.encode_to_vec()
    }

    /// All notes of `owner` in the engine's state.
    pub fn all(state: &pb::State, owner: &str) -> Vec<Self> {
        let ports = state.ports.iter().map(|port| (&port.name, &port.note));
        let relays = state.relays.iter().map(|relay| (&relay.name, &relay.note));
        ports.chain(relays).filter_map(|(name, note)| Self::of(name, note, owner)).collect()
    }

    /// The note of what is called `name`, if it has one of `owner`.
    fn of(name: &str, note: &[u8], owner: &str) -> Option<Self> {
        let note = Self::decode(note).ok()?;
        (note.version == VERSION && note.owner == owner && note.server_port == name).then_some(note)
    }

    /// The connection's id in our coordinates.
    pub fn id(&self) -> Option<&str> {
        self.connection.as_ref().map(|connection| connection.id.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::connection::{Path, PathSegment};

    #[test]
    fn a_note_comes_back_without_tokens_and_only_to_its_owner() {
        let segment =
            PathSegment { name: "nsc".into(), id: "a".into(), token: "secret".into(), ..Default::default() };
        let connection = Connection {
            id: "b".into(),
            path: Some(Path { index: 0, path_segments: vec![segment] }),
            labels: [("l".to_owned(), "x".repeat(MAX))].into(),
            ..Default::default()
        };
        let mut note = Note::new("fwd", &connection);
        note.server_port = "b.s0".into();
        let encoded = note.encoded();
        assert!(encoded.len() < MAX && !String::from_utf8_lossy(&encoded).contains("secret"));
        let back = Note::of("b.s0", &encoded, "fwd").unwrap();
        assert_eq!(back.id(), Some("b"));
        assert_eq!(Note::of("b.s0", &encoded, "other"), None);
        assert_eq!(Note::of("copy", &encoded, "fwd"), None);
        assert_eq!(Note::of("b.s0", &[0xff], "fwd"), None);
    }
}
