//! The `path` metadata of registry calls: a token for each hop from the registrant to the registry.
//!
//! It is JSON in a request's metadata, and in the *headers* of the answer:
//! `{"Index":0,"PathSegments":[{"token":"<jwt>"},…]}`. Go writes an empty list as `null`, and reads keys in any case.
//! The caller's token comes beside it, in the metadata of every call; each hop puts it in the caller's segment, and a token of its
//! own after that. The answer's path is in the caller's coordinates again (sdk, `pkg/registry/common/{grpcmetadata,updatepath}`).

use std::fmt;
use std::sync::Arc;

use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, SerializeStruct, Serializer};
use tonic::Status;

/// The metadata's key.
pub const KEY: &str = "path";
/// Most hops that are accepted; across two domains there are five.
pub const MAX_HOPS: usize = 64;
/// Longest text that is read, bytes.
pub const MAX_BYTES: usize = 64 << 10;

/// The tokens of the hops.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegistryPath {
    /// Whose coordinates it is in.
    pub index: u32,
    /// A JWT for each hop.
    pub tokens: Vec<Arc<str>>,
}

impl RegistryPath {
    /// Reads the metadata's value.
    ///
    /// # Errors
    /// INVALID_ARGUMENT if it is not a path, has an empty segment, or is too long.
    pub fn parse(text: &[u8]) -> Result<Self, Status> {
        if text.len() > MAX_BYTES {
            let told = format!("metadata `{KEY}`: {} bytes; at most {MAX_BYTES} are read", text.len());
            return Err(Status::invalid_argument(told));
        }
        serde_json::from_slice::<Option<Self>>(text)
            .map(Option::unwrap_or_default)
            .map_err(|error| Status::invalid_argument(format!("metadata `{KEY}`: {error}")))
    }

    /// The metadata's value.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Puts in the caller's token and ours, and goes on to our index. Returns the caller's.
    ///
    /// # Errors
    /// INVALID_ARGUMENT if the index is beyond the segments; RESOURCE_EXHAUSTED if there are too many.
    pub fn advance(&mut self, callers: Arc<str>, ours: Arc<str>) -> Result<u32, Status> {
        if self.tokens.is_empty() {
            *self = Self { index: 1, tokens: vec![callers, ours] };
            return Ok(0);
        }
        let (at, hops) = (self.index as usize, self.tokens.len());
        if at >= hops {
            return Err(Status::invalid_argument(format!("metadata `{KEY}`: Index {at} of {hops} segments")));
        }
        if at + 2 > MAX_HOPS {
            return Err(Status::resource_exhausted(format!(
                "metadata `{KEY}`: more than {MAX_HOPS} segments"
            )));
        }
        self.tokens[at] = callers;
        match self.tokens.get_mut(at + 1) {
            Some(token) => *token = ours,
            None => self.tokens.push(ours),
        }
        self.index += 1;
        Ok(at as u32)
    }

    /// The segments up to ours: what came to us, without what a refresh brings from beyond.
    pub fn up_to_here(&self) -> &[Arc<str>] {
        &self.tokens[..self.tokens.len().min(self.index as usize + 1)]
    }
}

/// Puts an identity at its place in a record's `path_ids`; at the end if there is none yet.
pub fn put_id(ids: &mut Vec<String>, index: usize, id: &str) {
    match ids.get_mut(index) {
        Some(there) => id.clone_into(there),
        None => ids.push(id.to_owned()),
    }
}

impl Serialize for RegistryPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut path = serializer.serialize_struct("Path", 2)?;
        path.serialize_field("Index", &self.index)?;
        let segments: Vec<_> = self.tokens.iter().map(|token| Segment(Arc::clone(token))).collect();
        path.serialize_field("PathSegments", &(!segments.is_empty()).then_some(segments))?;
        path.end()
    }
}

impl<'de> Deserialize<'de> for RegistryPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(PathVisitor)
    }
}

struct PathVisitor;

impl<'de> Visitor<'de> for PathVisitor {
    type Value = RegistryPath;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(r#"{"Index":…,"PathSegments":[{"token":…},…]}"#)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RegistryPath, A::Error> {
        let mut path = RegistryPath::default();
        while let Some(key) = map.next_key::<String>()? {
            match key.to_ascii_lowercase().as_str() {
                "index" => path.index = map.next_value::<Option<u32>>()?.unwrap_or_default(),
                "pathsegments" => path.tokens = map.next_value::<Option<Segments>>()?.unwrap_or_default().0,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(path)
    }
}

/// The list of segments, no longer than is accepted.
#[derive(Default)]
struct Segments(Vec<Arc<str>>);

impl<'de> Deserialize<'de> for Segments {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(SegmentsVisitor)
    }
}

struct SegmentsVisitor;

impl<'de> Visitor<'de> for SegmentsVisitor {
    type Value = Segments;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at most {MAX_HOPS} segments")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Segments, A::Error> {
        let mut segments = Vec::new();
        while let Some(Segment(token)) = list.next_element()? {
            if segments.len() == MAX_HOPS {
                return Err(de::Error::invalid_length(MAX_HOPS + 1, &self));
            }
            segments.push(token);
        }
        Ok(Segments(segments))
    }
}

struct Segment(Arc<str>);

impl Serialize for Segment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry("token", &*self.0)?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for Segment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(SegmentVisitor)
    }
}

struct SegmentVisitor;

impl<'de> Visitor<'de> for SegmentVisitor {
    type Value = Segment;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(r#"a segment, {"token":…}"#)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Segment, A::Error> {
        let mut token = None;
        while let Some(key) = map.next_key::<String>()? {
            if key.eq_ignore_ascii_case("token") {
                token = map.next_value::<Option<String>>()?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(Segment(token.unwrap_or_default().into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(index: u32, tokens: &[&str]) -> RegistryPath {
        RegistryPath { index, tokens: tokens.iter().map(|token| Arc::from(*token)).collect() }
    }

    #[test]
    fn what_go_writes_is_read_and_written() {
        let cases = [
            (r#"{"Index":0,"PathSegments":null}"#, path(0, &[])),
            (r#"{"Index":1,"PathSegments":[{"token":"a"},{"token":"b"}]}"#, path(1, &["a", "b"])),
        ];
        for (text, meant) in cases {
            assert_eq!(RegistryPath::parse(text.as_bytes()).unwrap(), meant);
            assert_eq!(meant.to_json(), text);
        }
    }

    #[test]
    fn keys_are_read_in_any_case_and_unknown_ones_passed_over() {
        for (text, meant) in [
            (r#"{"INDEX":2,"pathsegments":[{"Token":"a","x":[1]}],"y":{}}"#, path(2, &["a"])),
            (r#"{"PathSegments":[]}"#, path(0, &[])),
            (r#"{"PathSegments":[{}]}"#, path(0, &[""])),
            ("null", path(0, &[])),
        ] {
            assert_eq!(RegistryPath::parse(text.as_bytes()).unwrap(), meant, "{text}");
        }
    }

    #[test]
    fn what_is_no_path_is_refused() {
        let deep = format!("{{\"PathSegments\":{}1{}}}", "[".repeat(1000), "]".repeat(1000));
        let long = format!("{{\"PathSegments\":[{}{{}}]}}", "{},".repeat(MAX_HOPS));
        let big = " ".repeat(MAX_BYTES + 1);
        for text in [
            "",
            "{",
            "[]",
            r#"{"Index":0,"PathSegments":[null]}"#,
            r#"{"Index":-1}"#,
            r#"{"Index":4294967296}"#,
            r#"{"PathSegments":{}}"#,
            r#"{"PathSegments":[{"token":1}]}"#,
            "{}{}",
            &deep,
            &long,
            &big,
        ] {
            let error = RegistryPath::parse(text.as_bytes()).unwrap_err();
            assert_eq!(error.code(), tonic::Code::InvalidArgument, "{text:.40}");
            assert!(error.message().starts_with("metadata `path`: "), "{}", error.message());
        }
    }

    #[test]
    fn an_empty_path_gets_both_segments() {
        let mut first = path(0, &[]);
        assert_eq!(first.advance("caller".into(), "me".into()).unwrap(), 0);
        assert_eq!(first, path(1, &["caller", "me"]));
    }

    #[test]
    fn the_next_hop_appends_and_a_refresh_replaces() {
        let mut second = path(1, &["a", "b"]);
        assert_eq!(second.advance("b for c".into(), "c".into()).unwrap(), 1);
        assert_eq!(second, path(2, &["a", "b for c", "c"]));
        let mut again = path(0, &["a", "old", "beyond"]);
        assert_eq!(again.advance("a2".into(), "b2".into()).unwrap(), 0);
        assert_eq!(again, path(1, &["a2", "b2", "beyond"]));
        assert_eq!(again.up_to_here().len(), 2);
    }

    #[test]
    fn an_index_beyond_the_segments_is_refused_and_changes_nothing() {
        for index in [2, 3, u32::MAX] {
            let mut bad = path(index, &["a", "b"]);
            assert_eq!(bad.advance("x".into(), "y".into()).unwrap_err().code(), tonic::Code::InvalidArgument);
            assert_eq!(bad, path(index, &["a", "b"]));
        }
    }

    #[test]
    fn ids_are_put_where_they_belong() {
        let mut ids = vec![];
        put_id(&mut ids, 0, "a");
        put_id(&mut ids, 1, "b");
        put_id(&mut ids, 0, "c");
        assert_eq!(ids, ["c", "b"]);
    }
}
