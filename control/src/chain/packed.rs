//! Connections as they are kept between calls.

use std::sync::Arc;

use prost::Message;

use crate::api::connection::{Connection, Mechanism};
use crate::identity::jwt;

/// A connection in a seventh of the space. As a message it is dozens of small allocations, and most of its bytes are tokens, which
/// connections of the same hops have in common.
#[derive(Debug, Clone)]
pub struct Packed {
    /// Encoded, without tokens.
    rest: Box<[u8]>,
    /// Of the path's segments, in their order.
    tokens: Box<[Arc<str>]>,
}

impl From<Connection> for Packed {
    fn from(mut connection: Connection) -> Self {
        let segments = connection.path.iter_mut().flat_map(|path| &mut path.path_segments);
        let tokens = segments.map(|segment| jwt::shared(&std::mem::take(&mut segment.token))).collect();
        Self { rest: connection.encode_to_vec().into(), tokens }
    }
}

impl Packed {
    /// The connection as it was.
    ///
    /// # Panics
    /// Never: what we have encoded can be read.
    pub fn unpack(&self) -> Connection {
        let mut connection = Connection::decode(&*self.rest).expect("it was encoded here");
        let segments = connection.path.iter_mut().flat_map(|path| &mut path.path_segments);
        for (segment, token) in segments.zip(&self.tokens) {
            segment.token = token.to_string();
        }
        connection
    }
}

/// Mechanisms, likewise.
#[derive(Debug, Clone, Default)]
pub struct PackedMechanisms(Box<[u8]>);

impl From<&[Mechanism]> for PackedMechanisms {
    fn from(mechanisms: &[Mechanism]) -> Self {
        let mut bytes = Vec::with_capacity(mechanisms.iter().map(|one| one.encoded_len() + 3).sum());
        for mechanism in mechanisms {
            mechanism.encode_length_delimited(&mut bytes).expect("a vector has room");
        }
        Self(bytes.into())
    }
}

impl PackedMechanisms {
    /// The mechanisms as they were.
    ///
    /// # Panics
    /// Never: what we have encoded can be read.
    pub fn unpack(&self) -> Vec<Mechanism> {
        let mut rest = &*self.0;
        let mut mechanisms = Vec::new();
        while !rest.is_empty() {
            mechanisms.push(Mechanism::decode_length_delimited(&mut rest).expect("it was encoded here"));
        }
        mechanisms
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::connection::{Path, PathSegment};
    use crate::api::token::tests::unsigned;

    fn segment(name: &str, token: String) -> PathSegment {
        PathSegment { name: name.into(), id: format!("{name}-1"), token, ..Default::default() }
    }

    #[test]
    fn a_connection_comes_out_as_it_went_in() {
        let tokens = [unsigned("spiffe://a/nsc"), String::new(), "no token".to_owned()];
        let segments =
            tokens.into_iter().zip(["nsc", "nsmgr", "nse"]).map(|(token, name)| segment(name, token));
        let mechanism =
            Mechanism { parameters: [("name".to_owned(), "nsm-1".to_owned())].into(), ..Default::default() };
        let whole = Connection {
            id: "nsc-1".into(),
            path: Some(Path { index: 1, path_segments: segments.collect() }),
            mechanism: Some(mechanism),
            context: Some(Default::default()),
            ..Default::default()
        };
        let mechanisms = [whole.mechanism.clone().unwrap(), Mechanism::default()];
        assert_eq!(PackedMechanisms::from(&mechanisms[..]).unpack(), mechanisms);
        assert!(PackedMechanisms::default().unpack().is_empty());
        for connection in [whole, Connection::default()] {
            assert_eq!(Packed::from(connection.clone()).unpack(), connection);
        }
    }

    #[test]
    fn connections_of_the_same_hops_share_their_tokens() {
        let token = unsigned("spiffe://a/shared");
        jwt::read(&token).unwrap();
        let pack = |id: &str| {
            let path = Path { index: 0, path_segments: vec![segment(id, token.clone())] };
            Packed::from(Connection { id: id.into(), path: Some(path), ..Default::default() })
        };
        assert!(Arc::ptr_eq(&pack("a").tokens[0], &pack("b").tokens[0]));
    }
}
