//! What is refused at the door: messages that are larger than any honest one, or make no sense.

use std::collections::BTreeMap;

use tonic::Status;
use vwire_proto::nsm::connection::{Connection, Mechanism, MonitorScopeSelector, Path, PathSegment};
use vwire_proto::nsm::connectioncontext::ConnectionContext;
use vwire_proto::nsm::networkservice::NetworkServiceRequest;

use crate::api::path::MAX_SEGMENTS;

/// Longest id or name, bytes.
pub(crate) const MAX_NAME: usize = 253;
/// Longest token, bytes.
const MAX_TOKEN: usize = 16 * 1024;
/// Longest value of a label or parameter, bytes.
const MAX_VALUE: usize = 8 * 1024;
/// The seconds of the years 1 to 9999, as protobuf has them.
const TIMES: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;
/// Most labels, parameters or metrics in one map.
const MAX_PAIRS: usize = 256;
/// Most mechanism preferences.
const MAX_PREFERENCES: usize = 64;
/// Most addresses, routes, rules or servers in one list of a context.
const MAX_LIST: usize = 4096;

fn refuse(field: impl AsRef<str>, reason: impl std::fmt::Display) -> Status {
    Status::invalid_argument(format!("{}: {reason}", field.as_ref()))
}

/// Checks a Request.
pub(super) fn request(request: &NetworkServiceRequest) -> Result<(), Status> {
    let connection =
        request.connection.as_ref().ok_or_else(|| refuse("connection", "missing from the request"))?;
    self::connection(connection)?;
    count("mechanism_preferences", request.mechanism_preferences.len(), MAX_PREFERENCES)?;
    for (i, preference) in request.mechanism_preferences.iter().enumerate() {
        mechanism(&format!("mechanism_preferences[{i}]"), preference)?;
    }
    Ok(())
}

/// Checks a connection: of a Request, a Close, or an answer.
pub(crate) fn connection(connection: &Connection) -> Result<(), Status> {
    name("connection.id", &connection.id)?;
    name("connection.network_service", &connection.network_service)?;
    name("connection.network_service_endpoint_name", &connection.network_service_endpoint_name)?;
    name("connection.payload", &connection.payload)?;
    pairs("connection.labels", &connection.labels)?;
    if let Some(one) = &connection.mechanism {
        mechanism("connection.mechanism", one)?;
    }
    if let Some(context) = &connection.context {
        self::context(context)?;
    }
    connection.path.as_ref().map_or(Ok(()), path)
}

/// Checks a selector.
pub(super) fn selector(selector: &MonitorScopeSelector) -> Result<(), Status> {
    count("path_segments", selector.path_segments.len(), MAX_SEGMENTS)?;
    count("network_services", selector.network_services.len(), MAX_LIST)?;
    selector.network_services.iter().try_for_each(|service| name("network_services", service))?;
    let segments = selector.path_segments.iter().enumerate();
    segments.into_iter().try_for_each(|(i, one)| segment(&format!("path_segments[{i}]"), one))
}

fn path(path: &Path) -> Result<(), Status> {
    let segments = path.path_segments.len();
    count("connection.path.path_segments", segments, MAX_SEGMENTS)?;
    if segments > 0 && path.index as usize >= segments {
        let reason = format!("{} is not the index of one of {segments} segments", path.index);
        return Err(refuse("connection.path.index", reason));
    }
    for (i, one) in path.path_segments.iter().enumerate() {
        segment(&format!("connection.path.path_segments[{i}]"), one)?;
    }
    Ok(())
}

fn segment(field: &str, segment: &PathSegment) -> Result<(), Status> {
    name_of(field, "name", &segment.name)?;
    name_of(field, "id", &segment.id)?;
    if segment.token.len() > MAX_TOKEN {
        return Err(refuse(format!("{field}.token"), format!("longer than {MAX_TOKEN} bytes")));
    }
    if segment.expires.is_some_and(|time| !TIMES.contains(&time.seconds)) {
        return Err(refuse(format!("{field}.expires"), "not a time"));
    }
    pairs_of(field, "metrics", &segment.metrics)
}

fn mechanism(field: &str, mechanism: &Mechanism) -> Result<(), Status> {
    name_of(field, "cls", &mechanism.cls)?;
    name_of(field, "type", &mechanism.r#type)?;
    pairs_of(field, "parameters", &mechanism.parameters)
}

fn context(context: &ConnectionContext) -> Result<(), Status> {
    pairs("connection.context.extra_context", &context.extra_context)?;
    if let Some(dns) = &context.dns_context {
        count("connection.context.dns_context.configs", dns.configs.len(), MAX_LIST)?;
    }
    let Some(ip) = &context.ip_context else { return Ok(()) };
    let lists = [
        ("src_ip_addrs", ip.src_ip_addrs.len()),
        ("dst_ip_addrs", ip.dst_ip_addrs.len()),
        ("src_routes", ip.src_routes.len()),
        ("dst_routes", ip.dst_routes.len()),
        ("excluded_prefixes", ip.excluded_prefixes.len()),
        ("ip_neighbors", ip.ip_neighbors.len()),
        ("extra_prefix_request", ip.extra_prefix_request.len()),
        ("extra_prefixes", ip.extra_prefixes.len()),
        ("policies", ip.policies.len()),
    ];
    lists.iter().try_for_each(|(list, len)| {
        if *len <= MAX_LIST {
            return Ok(());
        }
        count(&format!("connection.context.ip_context.{list}"), *len, MAX_LIST)
    })
}

fn count(field: &str, len: usize, most: usize) -> Result<(), Status> {
    if len <= most {
        return Ok(());
    }
    Err(refuse(field, format!("{len} entries; at most {most} are taken")))
}

fn name(field: &str, text: &str) -> Result<(), Status> {
    match bad_name(text) {
        Some(reason) => Err(refuse(field, reason)),
        None => Ok(()),
    }
}

fn name_of(field: &str, part: &str, text: &str) -> Result<(), Status> {
    match bad_name(text) {
        Some(reason) => Err(refuse(format!("{field}.{part}"), reason)),
        None => Ok(()),
    }
}

fn bad_name(text: &str) -> Option<String> {
    if text.len() > MAX_NAME {
        return Some(format!("{} bytes; at most {MAX_NAME} are taken", text.len()));
    }
    text.contains(|c: char| c.is_control()).then(|| "has control characters".to_owned())
}

fn pairs(field: &str, map: &BTreeMap<String, String>) -> Result<(), Status> {
    match bad_pairs(map) {
        Some(reason) => Err(refuse(field, reason)),
        None => Ok(()),
    }
}

fn pairs_of(field: &str, part: &str, map: &BTreeMap<String, String>) -> Result<(), Status> {
    match bad_pairs(map) {
        Some(reason) => Err(refuse(format!("{field}.{part}"), reason)),
        None => Ok(()),
    }
}

fn bad_pairs(map: &BTreeMap<String, String>) -> Option<String> {
    if map.len() > MAX_PAIRS {
        return Some(format!("{} entries; at most {MAX_PAIRS} are taken", map.len()));
    }
    map.iter().find_map(|(key, value)| {
        if key.contains('\0') || value.contains('\0') {
            return Some("has a NUL character".to_owned());
        }
        let len = key.len().max(value.len());
        (len > MAX_VALUE).then(|| format!("a text of {len} bytes; at most {MAX_VALUE} are taken"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(change: impl FnOnce(&mut NetworkServiceRequest, &mut Connection)) -> String {
        let mut connection = Connection { id: "nsc-0".into(), ..Default::default() };
        let segment = PathSegment { name: "nsc".into(), id: "nsc-0".into(), ..Default::default() };
        connection.path = Some(Path { index: 0, path_segments: vec![segment] });
        let mut request = NetworkServiceRequest::default();
        change(&mut request, &mut connection);
        request.connection = Some(connection);
        match self::request(&request) {
            Ok(()) => "fine".to_owned(),
            Err(status) => {
                assert_eq!(status.code(), tonic::Code::InvalidArgument);
                status.message().to_owned()
            }
        }
    }

    fn path_of(connection: &mut Connection) -> &mut Path {
        connection.path.as_mut().unwrap()
    }

    #[test]
    fn an_honest_request_passes_and_each_bad_field_is_named() {
        assert_eq!(with(|_, _| ()), "fine");
        assert_eq!(with(|_, c| c.path = None), "fine");
        assert_eq!(
            with(|_, c| path_of(c).index = 1),
            "connection.path.index: 1 is not the index of one of 1 segments"
        );
        assert_eq!(
            with(|_, c| path_of(c).index = u32::MAX),
            "connection.path.index: 4294967295 is not the index of one of 1 segments"
        );
        assert_eq!(
            with(|_, c| path_of(c).path_segments = vec![PathSegment::default(); 257]),
            "connection.path.path_segments: 257 entries; at most 256 are taken"
        );
        assert_eq!(with(|_, c| c.id = "a\0b".into()), "connection.id: has control characters");
        assert_eq!(
            with(|_, c| c.network_service = "x".repeat(300)),
            "connection.network_service: 300 bytes; at most 253 are taken"
        );
        assert_eq!(
            with(|_, c| c.labels = (0..300).map(|i| (i.to_string(), String::new())).collect()),
            "connection.labels: 300 entries; at most 256 are taken"
        );
        assert_eq!(
            with(|_, c| path_of(c).path_segments[0].token = "t".repeat(20_000)),
            "connection.path.path_segments[0].token: longer than 16384 bytes"
        );
        assert_eq!(
            with(|_, c| {
                path_of(c).path_segments[0].expires =
                    Some(prost_types::Timestamp { seconds: i64::MAX, nanos: i32::MAX });
            }),
            "connection.path.path_segments[0].expires: not a time"
        );
        assert_eq!(
            with(|r, _| r.mechanism_preferences = vec![Mechanism::default(); 65]),
            "mechanism_preferences: 65 entries; at most 64 are taken"
        );
        let nul = Mechanism { parameters: [("name".into(), "a\0".into())].into(), ..Default::default() };
        assert_eq!(
            with(|r, _| r.mechanism_preferences = vec![nul]),
            "mechanism_preferences[0].parameters: has a NUL character"
        );
        let empty = NetworkServiceRequest::default();
        assert_eq!(request(&empty).unwrap_err().message(), "connection: missing from the request");
    }
}
