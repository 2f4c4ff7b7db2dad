//! Monitoring through every hop.

use super::mesh::*;
use crate::api::connection::ConnectionEventType::{Delete, InitialStateTransfer, Update};
use crate::api::connection::{MonitorScopeSelector, PathSegment, State as ConnectionState};
use crate::api::path;
use crate::api::registry::{Destination, Match, NetworkService};

fn of_id(id: &str) -> MonitorScopeSelector {
    let segment = PathSegment { id: id.to_owned(), ..Default::default() };
    MonitorScopeSelector { path_segments: vec![segment], ..Default::default() }
}

#[tokio::test]
async fn a_client_hears_of_its_connection_from_the_manager() {
    let (mesh, manager, _forwarder, _endpoint) = one_of_each().await;
    let client = mesh.client("nsc");
    let mut events = client.monitor(&manager, of_id("nsc-0")).await;
    let first = events.next().await;
    assert_eq!((first.r#type(), first.connections.len()), (InitialStateTransfer, 0));
    let made = client.request(&manager, client.first(0, "icmp-responder")).await.unwrap();
    let own = &path::of(&made).path_segments[1].id;
    let update = events.next().await;
    assert_eq!(update.r#type(), Update);
    let seen = &update.connections[own];
    assert_eq!((&seen.id, path::of(seen).index), (own, 1), "in the manager's coordinates");
    assert_eq!(path::of(seen).path_segments.len(), 4);
    assert!(path::of(seen).path_segments.iter().all(|segment| segment.token.is_empty()));

    // A client that starts again takes its connection from the first event.
    let mut again = client.monitor(&manager, of_id("nsc-0")).await;
    let mut found = again.next().await.connections.into_values().next().unwrap();
    found.path.as_mut().unwrap().index = 0;
    found.id = "nsc-0".into();
    let kept = client.request(&manager, found).await.unwrap();
    assert_eq!(path::of(&kept).path_segments[3].id, path::of(&made).path_segments[3].id);

    client.close(&manager, made.clone()).await.unwrap();
    loop {
        let event = again.next().await;
        if event.r#type() == Delete {
            assert_eq!(event.connections[own].network_service, "icmp-responder");
            break;
        }
    }
}

#[tokio::test]
async fn others_see_nothing_of_it() {
    let (mesh, manager, _forwarder, _endpoint) = one_of_each().await;
    let (client, mallory) = (mesh.client("nsc"), mesh.client("mallory"));
    client.request(&manager, client.first(0, "icmp-responder")).await.unwrap();
    for selector in [MonitorScopeSelector::default(), of_id("nsc-0")] {
        assert!(mallory.monitor(&manager, selector).await.next().await.connections.is_empty());
    }
    // The forwarder's own identity is a hop of it.
    let forwarder = mesh.client("forwarder");
    assert_eq!(
        forwarder.monitor(&manager, MonitorScopeSelector::default()).await.next().await.connections.len(),
        1
    );
}

#[tokio::test]
async fn what_is_deleted_below_is_down_above() {
    let (mesh, manager, forwarder, endpoint) = one_of_each().await;
    let client = mesh.client("nsc");
    let made = client.request(&manager, client.first(0, "icmp-responder")).await.unwrap();
    let mut events = client.monitor(&manager, of_id("nsc-0")).await;
    events.next().await;
    for hop in [&manager, &forwarder] {
        assert_eq!(hop.follow.as_ref().unwrap().len(), 1);
    }
    // The streams downward are open once the forwarder is a watcher of the endpoint.
    eventually("the hops are heard", || forwarder.hub.watchers() == 1 && endpoint.hub.watchers() == 1).await;
    let id = path::of(&made).path_segments[3].id.clone();
    let mut close = crate::chain::Call::internal("test", std::time::Duration::from_secs(5));
    let own = crate::api::connection::Connection { id, ..Default::default() };
    endpoint.chain.close(&mut close, own).await.unwrap();
    let event = events.until(ConnectionState::Down).await;
    assert_eq!(event.r#type(), Update);
    assert_eq!((forwarder.hub.len(), endpoint.hub.len()), (1, 0));
    // A Request heals it.
    let healed = client.request(&manager, made).await.unwrap();
    assert_eq!(healed.state(), ConnectionState::Up);
    events.until(ConnectionState::Up).await;
}

#[tokio::test]
async fn the_death_of_a_hop_is_down_for_all_that_goes_there_by_one_stream() {
    let (mesh, manager, forwarder, endpoint) = one_of_each().await;
    let client = mesh.client("nsc");
    for i in 0..5 {
        client.request(&manager, client.first(i, "icmp-responder")).await.unwrap();
    }
    eventually("the hops are heard", || endpoint.hub.watchers() == 1 && forwarder.hub.watchers() == 1).await;
    let mut events = client.monitor(&manager, MonitorScopeSelector::default()).await;
    assert_eq!(events.next().await.connections.len(), 5);
    drop(endpoint);
    for _ in 0..5 {
        events.until(ConnectionState::Down).await;
    }
    eventually("each is down", || {
        manager.hub.connections().iter().all(|one| one.state() == ConnectionState::Down)
    })
    .await;
}

#[tokio::test]
async fn a_changed_service_closes_what_does_not_match_and_leaves_the_rest() {
    let (mesh, manager, forwarder, endpoint) = one_of_each().await;
    mesh.register_endpoint("responder-1", "icmp-responder", &[("app", "one")], &endpoint.target).await;
    let client = mesh.client("nsc");
    client.request(&manager, client.first(0, "icmp-responder")).await.unwrap();
    let mut events = client.monitor(&manager, of_id("nsc-0")).await;
    events.next().await;
    let only = |app: &str| {
        let routes =
            vec![Destination { destination_selector: [("app".into(), app.into())].into(), weight: 0 }];
        NetworkService { matches: vec![Match { routes, ..Default::default() }], ..service("icmp-responder") }
    };
    mesh.register_service(only("one")).await;
    mesh.register_service(only("two")).await;
    loop {
        if events.next().await.r#type() == Delete {
            break;
        }
    }
    eventually("closed everywhere", || {
        [&manager, &forwarder, &endpoint].iter().all(|hop| hop.hub.is_empty())
    })
    .await;
    assert_eq!(endpoint.probe.counts(), (1, 1));
}
