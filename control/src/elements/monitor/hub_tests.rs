use futures::{FutureExt, StreamExt};

use super::*;
use crate::api::connection::PathSegment;
use crate::chain::testing::{connection, spiffe};

fn by_id(id: &str) -> MonitorScopeSelector {
    let segment = PathSegment { id: id.into(), ..Default::default() };
    MonitorScopeSelector { path_segments: vec![segment], ..Default::default() }
}

fn one(client: &str, id: &str) -> Connection {
    connection(&[&format!("{client}/{client}-0"), &format!("nsmgr/{id}")])
}

/// The next event that is there already.
fn next(watch: &mut Watch) -> Option<(ConnectionEventType, Vec<Connection>)> {
    let event = watch.next().now_or_never()??.unwrap();
    Some((event.r#type(), event.connections.into_values().collect()))
}

fn ids_of(event: Option<(ConnectionEventType, Vec<Connection>)>) -> (ConnectionEventType, Vec<String>) {
    let (kind, connections) = event.expect("an event");
    (kind, connections.into_iter().map(|one| one.id).collect())
}

use ConnectionEventType::{Delete, InitialStateTransfer, Update};

#[test]
fn a_watcher_gets_what_there_is_even_if_nothing_and_then_each_change_of_its_own() {
    let hub = Hub::new(Strictness::Open);
    let mut mine = hub.watch(by_id("nsc-0"), None, None);
    assert_eq!(ids_of(next(&mut mine)), (InitialStateTransfer, vec![]));
    hub.update(one("nsc", "a"), None);
    hub.update(one("other", "b"), None);
    assert_eq!(ids_of(next(&mut mine)), (Update, vec!["a".into()]));
    hub.down("a");
    let (kind, connections) = next(&mut mine).unwrap();
    assert_eq!((kind, connections[0].state()), (Update, ConnectionState::Down));
    hub.down("a");
    hub.down("nobody");
    assert!(next(&mut mine).is_none(), "what did not change is not told");
    hub.remove("a");
    hub.remove("a");
    let (kind, connections) = next(&mut mine).unwrap();
    assert_eq!(
        (kind, connections[0].network_service.as_str()),
        (Delete, "s"),
        "a DELETE has the whole connection"
    );
    assert!(next(&mut mine).is_none());

    let mut all = hub.watch(MonitorScopeSelector::default(), None, None);
    assert_eq!(ids_of(next(&mut all)), (InitialStateTransfer, vec!["b".into()]));
    assert_eq!(hub.watchers(), 2);
    drop((mine, all));
    let inner = hub.lock();
    assert!(inner.watchers.is_empty() && inner.watchers_of.is_empty() && inner.watchers_of_all.is_empty());
}

#[test]
fn strictly_a_watcher_sees_what_it_is_a_hop_of_and_no_tokens() {
    let hub = Hub::new(Strictness::Strict);
    hub.update(one("nsc", "a"), Some(&spiffe("nsc")));
    hub.update(one("other", "b"), Some(&spiffe("previous")));
    let seen = |by: &str, own: &str| {
        let mut watch = hub.watch(MonitorScopeSelector::default(), Some(&spiffe(by)), Some(&spiffe(own)));
        let (_, connections) = next(&mut watch).unwrap();
        assert!(connections.iter().all(|one| path::of(one).path_segments.iter().all(|s| s.token.is_empty())));
        connections.into_iter().map(|one| one.id).collect::<Vec<_>>()
    };
    assert_eq!(seen("nsc", "x"), ["a"]);
    assert_eq!(seen("other", "x"), ["b"]);
    assert_eq!(seen("previous", "x"), ["b"]);
    assert_eq!(seen("nsmgr", "x"), ["a", "b"]);
    assert_eq!(seen("mallory", "x"), Vec::<String>::new());
    assert_eq!(seen("x", "x"), ["a", "b"], "our own identity sees all");
    // A caller of another identity, by the same path: after its restart, say.
    hub.update(one("other", "b"), Some(&spiffe("restarted")));
    assert_eq!((seen("restarted", "x"), seen("previous", "x")), (vec!["b".to_owned()], vec![]));
    // To name the id of another does not help.
    let mut watch = hub.watch(by_id("nsc-0"), Some(&spiffe("mallory")), None);
    assert_eq!(ids_of(next(&mut watch)), (InitialStateTransfer, vec![]));
    hub.update(one("nsc", "a"), Some(&spiffe("nsc")));
    hub.remove("a");
    assert!(next(&mut watch).is_none());
}

#[test]
fn openly_tokens_stay() {
    let hub = Hub::new(Strictness::Open);
    hub.update(one("nsc", "a"), None);
    let mut watch = hub.watch(by_id("nsc-0"), None, None);
    let (_, connections) = next(&mut watch).unwrap();
    assert!(path::of(&connections[0]).path_segments.iter().all(|segment| !segment.token.is_empty()));
}

#[test]
fn a_watcher_that_does_not_read_is_sent_away_and_the_others_hear_on() {
    let hub = Hub::new(Strictness::Open);
    let mut stalled = hub.watch(by_id("nsc-0"), None, None);
    let mut brisk = hub.watch(by_id("nsc-0"), None, None);
    next(&mut brisk).unwrap();
    for _ in 0..MAX_WAITING + 1 {
        hub.update(one("nsc", "a"), None);
        next(&mut brisk).unwrap();
    }
    assert_eq!(hub.watchers(), 1);
    for _ in 0..MAX_WAITING + 1 {
        next(&mut stalled).unwrap();
    }
    let end = stalled.next().now_or_never().unwrap().unwrap().unwrap_err();
    assert_eq!(end.code(), tonic::Code::ResourceExhausted);
    assert!(stalled.next().now_or_never().unwrap().is_none());
}

#[test]
fn lists_by_segment_follow_the_path_and_go_with_the_connection() {
    let hub = Hub::new(Strictness::Open);
    hub.update(connection(&["nsc/nsc-0", "nsmgr/a"]), None);
    hub.change_from_below("a", |one| {
        let segment = PathSegment { name: "fwd".into(), id: "f".into(), ..Default::default() };
        one.path.as_mut().unwrap().path_segments.push(segment);
    });
    let mut watch = hub.watch(by_id("f"), None, None);
    assert_eq!(ids_of(next(&mut watch)), (InitialStateTransfer, vec!["a".into()]));
    hub.update(connection(&["nsc/nsc-0", "nsmgr/a"]), None);
    assert_eq!(hub.lock().of_segment("f").count(), 0);
    hub.remove("a");
    assert!(hub.lock().by_segment.is_empty() && hub.is_empty());
}
