//! What the engine keeps for us of each connection, beside its port: what an endpoint that has just started has to know of it.

use prost::Message;
use vwire_proto::nsm::connection::Connection;

use super::addresses::Held;
use crate::api::path::{self, PathExt};
use crate::api::token::claimed_subject;

/// Marks a port as a client's; peers' ports have notes of another kind.
const KIND: &str = "vl3-client";
/// Grows when an older endpoint could not read what a newer wrote.
const VERSION: u32 = 1;
/// Bytes that the engine keeps of one note.
const MAX: usize = 16_384;

/// The record. It has no tokens: they are nobody else's business, and stale by the time they would be read.
#[derive(Clone, PartialEq, Message)]
pub struct Record {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(uint32, tag = "2")]
    version: u32,
    /// As it was answered, in our coordinates.
    #[prost(message, optional, tag = "3")]
    pub connection: Option<Connection>,
    /// When the client's token ends, in seconds since 1970: unless it refreshes until then, it is gone. 0: it does not end.
    #[prost(int64, tag = "4")]
    pub expires: i64,
    /// The SPIFFE ID of the caller, if it has one.
    #[prost(string, tag = "5")]
    pub caller: String,
    /// The SPIFFE ID that the path's first token names.
    #[prost(string, tag = "6")]
    pub client: String,
    #[prost(message, repeated, tag = "7")]
    held: Vec<Slot>,
}

/// [`Held`], as text; both empty for none.
#[derive(Clone, PartialEq, Message)]
struct Slot {
    #[prost(string, tag = "1")]
    prefix: String,
    #[prost(string, tag = "2")]
    address: String,
}

impl Record {
    /// Of a connection that is about to be answered, with what it has of each slot.
    pub fn new(connection: &Connection, caller: Option<String>, held: &[Option<Held>]) -> Self {
        let first = path::of(connection).path_segments.first();
        let client = first.and_then(|segment| claimed_subject(&segment.token)).unwrap_or_default();
        let said = path::of(connection).previous().and_then(|segment| segment.expires.as_ref());
        let expires = said.map_or(0, |expires| expires.seconds);
        let mut connection = connection.clone();
        for segment in connection.path.iter_mut().flat_map(|path| &mut path.path_segments) {
            segment.token.clear();
            segment.metrics.clear();
        }
        let text = |held: &Option<Held>| match held {
            None => Slot::default(),
            Some(held) => Slot {
                prefix: held.prefix.to_string(),
                address: held.address.map(|address| address.to_string()).unwrap_or_default(),
            },
        };
        Self {
            kind: KIND.to_owned(),
            version: VERSION,
            connection: Some(connection),
            expires,
            caller: caller.unwrap_or_default(),
            client,
            held: held.iter().map(text).collect(),
        }
    }

    /// What the connection has of each slot.
    pub fn held(&self) -> Vec<Option<Held>> {
        let read = |slot: &Slot| {
            Some(Held { prefix: slot.prefix.parse().ok()?, address: slot.address.parse().ok() })
        };
        self.held.iter().map(read).collect()
    }

    /// As the engine keeps it. A connection that describes itself at too great length goes without labels, which the next Request brings
    /// anyway.
    pub fn encoded(&self) -> Vec<u8> {
        let bytes = self.encode_to_vec();
        if bytes.len() <= MAX {
            return bytes;
        }
        let mut short = self.clone();
        if let Some(connection) = &mut short.connection {
            connection.labels.clear();
        }
        let bytes = short.encode_to_vec();
        if bytes.len() <= MAX { bytes } else { Vec::new() }
    }

    /// A port's note, if it is one of these.
    pub fn read(note: &[u8]) -> Option<Self> {
        let record = Self::decode(note).ok()?;
        (record.kind == KIND && record.version == VERSION && record.connection.is_some()).then_some(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::connection::{Path, PathSegment};

    #[test]
    fn a_record_comes_back_without_tokens() {
        let segment =
            PathSegment { name: "nsc".into(), id: "a".into(), token: "secret".into(), ..Default::default() };
        let mut connection = Connection {
            id: "b".into(),
            path: Some(Path { index: 0, path_segments: vec![segment] }),
            ..Default::default()
        };
        let held = [
            Some(Held { prefix: "10.0.0.0/24".parse().unwrap(), address: "10.0.0.3".parse().ok() }),
            None,
            Some(Held { prefix: "fd00::/64".parse().unwrap(), address: None }),
        ];
        let record = Record::new(&connection, Some("spiffe://a/b".into()), &held);
        let back = Record::read(&record.encoded()).unwrap();
        assert_eq!((&back, back.held()), (&record, held.to_vec()));
        assert!(!String::from_utf8_lossy(&record.encoded()).contains("secret"));
        connection.labels.insert("l".into(), "x".repeat(MAX));
        let short = Record::read(&Record::new(&connection, None, &held).encoded()).unwrap();
        assert_eq!((short.held(), short.connection.unwrap().id), (held.to_vec(), "b".to_owned()));
        assert!(
            [&b""[..], b"\xff", &Connection::default().encode_to_vec()].map(Record::read)
                == [None, None, None]
        );
    }
}
