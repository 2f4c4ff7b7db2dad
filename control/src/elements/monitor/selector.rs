//! What a watcher wants to hear of.

use crate::api::connection::{Connection, MonitorScopeSelector, PathSegment};
use crate::api::path;

/// True if the selector means this connection: its service is one of those named, if any are, and its path has a run of segments
/// that agree with the selector's in all that those set of name, id and token.
pub(super) fn selects(selector: &MonitorScopeSelector, connection: &Connection) -> bool {
    let services = &selector.network_services;
    let service = services.is_empty() || services.contains(&connection.network_service);
    let wanted = &selector.path_segments;
    let segments = &path::of(connection).path_segments;
    let run = wanted.is_empty()
        || segments
            .windows(wanted.len())
            .any(|run| run.iter().zip(wanted).all(|(have, want)| agrees(have, want)));
    service && run
}

fn agrees(have: &PathSegment, want: &PathSegment) -> bool {
    let same = |have: &str, want: &str| want.is_empty() || have == want;
    same(&have.name, &want.name) && same(&have.id, &want.id) && same(&have.token, &want.token)
}

/// A segment id that every connection the selector means has, if it names one.
pub(super) fn id_of(selector: &MonitorScopeSelector) -> Option<&str> {
    selector.path_segments.iter().map(|segment| segment.id.as_str()).find(|id| !id.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::connection::Path;

    fn segment(name: &str, id: &str, token: &str) -> PathSegment {
        PathSegment { name: name.into(), id: id.into(), token: token.into(), ..Default::default() }
    }

    fn connection() -> Connection {
        let path_segments =
            vec![segment("nsc", "0", "t0"), segment("nsmgr", "1", "t1"), segment("fwd", "2", "t2")];
        let path = Some(Path { index: 1, path_segments });
        Connection { id: "1".into(), network_service: "s".into(), path, ..Default::default() }
    }

    #[test]
    fn a_selector_means_a_contiguous_run_and_compares_what_it_sets() {
        let cases: &[(&[PathSegment], &[&str], bool)] = &[
            (&[], &[], true),
            (&[], &["s"], true),
            (&[], &["t", "s"], true),
            (&[], &["t"], false),
            (&[segment("", "0", "")], &[], true),
            (&[segment("nsmgr", "", "")], &["s"], true),
            (&[segment("nsmgr", "1", "t1"), segment("fwd", "", "")], &[], true),
            (&[segment("nsmgr", "0", "")], &[], false),
            (&[segment("nsc", "", ""), segment("fwd", "", "")], &[], false),
            (&[segment("fwd", "", ""), segment("", "", "")], &[], false),
            (&[segment("nsc", "", "other")], &[], false),
        ];
        for (segments, services, expected) in cases {
            let selector = MonitorScopeSelector {
                path_segments: segments.to_vec(),
                network_services: services.iter().map(|s| (*s).to_owned()).collect(),
            };
            assert_eq!(selects(&selector, &connection()), *expected, "{selector:?}");
        }
    }
}
