//! Request, refresh, Close.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, SystemTime};

use tonic::Code;

use super::mesh::*;
use crate::api::connection::{Connection, State as ConnectionState};
use crate::api::path;
use crate::api::registry::{Destination, Match};
use crate::identity::jwt;

fn names(connection: &Connection) -> Vec<&str> {
    path::of(connection).path_segments.iter().map(|segment| segment.name.as_str()).collect()
}

fn ids(connection: &Connection) -> Vec<&str> {
    path::of(connection).path_segments.iter().map(|segment| segment.id.as_str()).collect()
}

fn assert_gone(hops: &[&Hop]) {
    for hop in hops {
        assert!(hop.hub.is_empty(), "{} still has {:?}", hop.chain.name(), hop.hub.connections());
    }
}

/// The shape of a recorded exchange between Go components.
#[tokio::test]
async fn request_refresh_and_close_have_the_shape_of_the_go_components() {
    let (mesh, manager, forwarder, endpoint) = one_of_each().await;
    let client = mesh.client("nsc");
    let made = client.request(&manager, client.first(0, "icmp-responder")).await.unwrap();
    assert_eq!(names(&made), ["nsc", "nsmgr-1", "forwarder-1", "responder-1"]);
    assert_eq!((made.id.as_str(), path::of(&made).index), ("nsc-0", 0));
    assert_eq!(
        (made.payload.as_str(), made.network_service_endpoint_name.as_str()),
        ("ETHERNET", "responder-1")
    );
    assert_eq!(made.mechanism, Some(Client::preference()));
    let who = [("nsc", "nsmgr"), ("nsmgr", "forwarder"), ("forwarder", "nse"), ("nse", "forwarder")];
    for (segment, (sub, aud)) in path::of(&made).path_segments.iter().zip(who) {
        let claims = jwt::read(&segment.token).unwrap();
        assert_eq!(claims.sub, format!("spiffe://example.org/{sub}"), "{}", segment.name);
        assert_eq!(claims.aud, [format!("spiffe://example.org/{aud}")], "{}", segment.name);
        let end = SystemTime::try_from(segment.expires.unwrap()).unwrap();
        assert!(end > SystemTime::now() && end <= SystemTime::now() + TOKEN_LIFE);
    }
    // Each hop has it in its own coordinates.
    for (index, hop) in [(1, &manager), (2, &forwarder), (3, &endpoint)] {
        let own = hop.hub.get(ids(&made)[index]).unwrap();
        assert_eq!(path::of(&own).index as usize, index);
    }

    let again = client.request(&manager, made.clone()).await.unwrap();
    assert_eq!(ids(&again), ids(&made), "a refresh keeps ids");
    assert_eq!((again.id.as_str(), again.mechanism), ("nsc-0", made.mechanism.clone()));
    assert_eq!(endpoint.probe.counts(), (2, 0));

    client.close(&manager, made.clone()).await.unwrap();
    assert_eq!(endpoint.probe.counts(), (2, 1), "one Close each");
    assert_gone(&[&manager, &forwarder, &endpoint]);
    client.close(&manager, made).await.unwrap();
    assert_eq!(endpoint.probe.counts(), (2, 1));
}

#[tokio::test]
async fn an_error_names_its_hops_and_leaves_nothing() {
    let (mesh, manager, forwarder, endpoint) = one_of_each().await;
    let client = mesh.client("nsc");
    let routes = vec![Destination { destination_selector: [("app".into(), "bar".into())].into(), weight: 0 }];
    let picky = Match { routes, ..Default::default() };
    mesh.register_service(crate::api::registry::NetworkService { matches: vec![picky], ..service("picky") })
        .await;
    mesh.register_endpoint("picky-1", "picky", &[("app", "foo")], &endpoint.target).await;
    let status = client.request(&manager, client.first(0, "picky")).await.unwrap_err();
    assert_eq!(
        status.message(),
        "nsmgr-1: forwarder-1: no endpoint of `picky` matches no labels; 1 candidate refused: \
         picky-1: app=foo where app=bar is asked for"
    );
    assert_eq!(status.code(), Code::NotFound);
    let status = client.request(&manager, client.first(1, "nothing")).await.unwrap_err();
    assert_eq!(status.message(), "nsmgr-1: network service `nothing` is not registered");
    endpoint.probe.fail_next(1);
    client.request(&manager, client.first(2, "icmp-responder")).await.unwrap_err();
    assert_gone(&[&manager, &forwarder, &endpoint]);
}

#[tokio::test]
async fn a_bad_request_is_refused_at_the_door_and_the_role_lives_on() {
    let (mesh, manager, _forwarder, _endpoint) = one_of_each().await;
    let client = mesh.client("nsc");
    let mut bad = client.first(0, "icmp-responder");
    bad.path.as_mut().unwrap().index = 7;
    let status = client.request(&manager, bad).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(status.message(), "nsmgr-1: connection.path.index: 7 is not the index of one of 1 segments");
    let other = Connection { id: "else".into(), ..client.first(0, "icmp-responder") };
    let status = client.request(&manager, other).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    client.request(&manager, client.first(0, "icmp-responder")).await.unwrap();
}

#[tokio::test]
async fn reselection_closes_below_once_and_asks_anew() {
    let (mesh, manager, forwarder, endpoint) = one_of_each().await;
    let client = mesh.client("nsc");
    let made = client.request(&manager, client.first(0, "icmp-responder")).await.unwrap();
    let second = mesh.endpoint("responder-2", "icmp-responder", &[]).await;
    mesh.unregister_endpoint("responder-1").await;
    let mut again = made.clone();
    again.set_state(ConnectionState::ReselectRequested);
    again.network_service_endpoint_name.clear();
    again.mechanism = None;
    let moved = client.request(&manager, again).await.unwrap();
    assert_eq!(moved.network_service_endpoint_name, "responder-2");
    assert_eq!(moved.state(), ConnectionState::Up);
    assert_eq!(ids(&moved)[..3], ids(&made)[..3]);
    assert_eq!((endpoint.probe.counts(), second.probe.counts()), ((1, 1), (1, 0)));
    assert_eq!((forwarder.hub.len(), endpoint.hub.len(), second.hub.len()), (1, 0, 1));
}

#[tokio::test]
async fn a_forwarder_that_fails_is_passed_over_and_the_chosen_one_is_kept() {
    let (mesh, manager, first, endpoint) = one_of_each().await;
    let second = mesh.forwarder("forwarder-2").await;
    let client = mesh.client("nsc");
    first.probe.fail_next(1);
    second.probe.fail_next(1);
    let status = client.request(&manager, client.first(0, "icmp-responder")).await.unwrap_err();
    assert!(status.message().starts_with("nsmgr-1: all 2 forwarders failed: forwarder-"), "{status}");
    first.probe.fail_next(1);
    let made = client.request(&manager, client.first(0, "icmp-responder")).await.unwrap();
    assert_eq!(names(&made)[2], "forwarder-2");
    for _ in 0..3 {
        let again = client.request(&manager, made.clone()).await.unwrap();
        assert_eq!(ids(&again), ids(&made));
    }
    assert_eq!(endpoint.probe.counts(), (4, 0));
    // Gone for good: said so, with its name; a reselection takes the other one.
    mesh.unregister_endpoint("forwarder-2").await;
    let status = client.request(&manager, made.clone()).await.unwrap_err();
    assert_eq!(
        status.message(),
        "nsmgr-1: forwarder forwarder-2, which has this connection, is not registered any more"
    );
    let mut again = made;
    again.set_state(ConnectionState::ReselectRequested);
    let moved = client.request(&manager, again).await.unwrap();
    assert_eq!(names(&moved)[2], "forwarder-1");
    assert_eq!((second.hub.len(), first.hub.len(), endpoint.hub.len()), (0, 1, 1));
}

#[tokio::test]
async fn endpoints_are_tried_until_one_accepts_and_taken_in_turn() {
    let (mesh, manager, _forwarder, _first) = one_of_each().await;
    let refuse = || vec![Arc::new(Refuse(AtomicUsize::new(usize::MAX))) as Arc<dyn crate::chain::Element>];
    mesh.register_service(service("busy")).await;
    let mut hops = Vec::new();
    for i in 0..3 {
        hops.push(mesh.endpoint_with(&format!("busy-{i}"), "busy", &[], refuse()).await);
    }
    let client = mesh.client("nsc");
    let status = client.request(&manager, client.first(0, "busy")).await.unwrap_err();
    assert!(status.message().contains("all 3 endpoints of `busy` failed: busy-"), "{status}");
    let good = mesh.endpoint("good", "busy", &[]).await;
    let made = client.request(&manager, client.first(0, "busy")).await.unwrap();
    assert_eq!(made.network_service_endpoint_name, "good");
    assert_eq!((good.probe.counts(), good.hub.len()), ((1, 0), 1));
    hops.iter().for_each(|hop| assert!(hop.hub.is_empty()));
}

#[tokio::test]
async fn a_connection_ends_when_its_callers_token_does() {
    let (mesh, manager, forwarder, endpoint) = one_of_each().await;
    // The token lives 3 s, and the Request has 1 s: the manager ends it after 2 s.
    let client = mesh.client_with("nsc", Duration::from_secs(3));
    let asked = std::time::Instant::now();
    let first = client.first(0, "icmp-responder");
    client.request_with(&manager, first, vec![Client::preference()], Duration::from_secs(1)).await.unwrap();
    eventually("the connection ends by itself", || endpoint.hub.is_empty()).await;
    assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
    eventually("everywhere", || manager.hub.is_empty() && forwarder.hub.is_empty()).await;
    assert_eq!(endpoint.probe.counts(), (1, 1));
}

#[tokio::test]
async fn two_callers_with_one_id_do_not_disturb_each_other() {
    let (mesh, manager, _forwarder, endpoint) = one_of_each().await;
    let (client, mallory) = (mesh.client("nsc"), mesh.client("mallory"));
    let made = client.request(&manager, client.first(0, "icmp-responder")).await.unwrap();
    // The victim's whole path, as if it were the attacker's; and the victim's id behind a path of its own.
    let mut own = mallory.first(0, "icmp-responder");
    let victim = path::of(&made).path_segments[1].clone();
    own.path.as_mut().unwrap().path_segments.push(victim.clone());
    for stolen in [made.clone(), own] {
        let status = mallory.request(&manager, stolen.clone()).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{status}");
        let status = mallory.close(&manager, stolen).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    }
    // An id without a path names a connection of the manager's own making: there is none.
    let bare = Connection { id: victim.id, ..Default::default() };
    assert_eq!(mallory.close(&manager, bare).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(endpoint.probe.counts(), (1, 0));
    client.request(&manager, made.clone()).await.unwrap();
    client.close(&manager, made).await.unwrap();
}

#[tokio::test]
async fn a_caller_that_leaves_before_the_answer_leaves_no_connection() {
    let (mesh, manager, forwarder, endpoint) = one_of_each().await;
    let client = mesh.client("nsc");
    let gate = Arc::new(tokio::sync::Notify::new());
    *endpoint.probe.gate.lock().unwrap() = Some(Arc::clone(&gate));
    {
        let asked = client.request(&manager, client.first(0, "icmp-responder"));
        let arrived = eventually("the Request is at the endpoint", || endpoint.probe.counts().0 == 1);
        tokio::select! {
            answer = asked => panic!("{answer:?}"),
            () = arrived => {}
        }
    }
    // The caller is gone; the rest of the mesh goes on.
    eventually("the manager has seen it", || manager.probe.counts().0 == 1).await;
    *endpoint.probe.gate.lock().unwrap() = None;
    gate.notify_waiters();
    eventually("the connection is closed again", || endpoint.probe.counts().1 == 1).await;
    eventually("everywhere", || [&manager, &forwarder, &endpoint].iter().all(|hop| hop.hub.is_empty())).await;
}

#[tokio::test]
async fn close_frees_what_is_here_even_if_the_next_hop_is_dead() {
    let (mesh, manager, forwarder, endpoint) = one_of_each().await;
    let client = mesh.client("nsc");
    let made = client.request(&manager, client.first(0, "icmp-responder")).await.unwrap();
    drop(forwarder);
    eventually("the manager hears of it", || {
        manager.hub.connections().iter().all(|one| one.state() == ConnectionState::Down)
    })
    .await;
    let status = client.close(&manager, made).await.unwrap_err();
    assert!(matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded), "{status}");
    assert!(manager.hub.is_empty());
    assert_eq!(endpoint.probe.counts(), (1, 0));
}

#[tokio::test]
async fn a_hundred_clients_at_once_get_a_connection_each() {
    let (mesh, manager, forwarder, endpoint) = one_of_each().await;
    let (mesh, manager) = (Arc::new(mesh), Arc::new(manager));
    let client = Arc::new(mesh.client("nsc"));
    let run = |i: usize| {
        let (client, manager) = (Arc::clone(&client), Arc::clone(&manager));
        tokio::spawn(async move {
            let made = client.request(&manager, client.first(i, "icmp-responder")).await?;
            let again = client.request(&manager, made.clone()).await?;
            assert_eq!(ids(&made), ids(&again));
            Ok::<_, tonic::Status>(made)
        })
    };
    let runs: Vec<_> = (0..100).map(run).collect();
    let mut made = Vec::new();
    for run in runs {
        made.push(run.await.unwrap().unwrap());
    }
    assert_eq!((manager.hub.len(), forwarder.hub.len(), endpoint.hub.len()), (100, 100, 100));
    assert_eq!(endpoint.probe.counts(), (200, 0));
    let closes: Vec<_> = made
        .into_iter()
        .map(|one| {
            let (client, manager) = (Arc::clone(&client), Arc::clone(&manager));
            tokio::spawn(async move { client.close(&manager, one).await })
        })
        .collect();
    for close in closes {
        close.await.unwrap().unwrap();
    }
    assert_eq!(endpoint.probe.counts(), (200, 100));
    assert_gone(&[&manager, &forwarder, &endpoint]);
}

/// `cargo test --release -p vwire-control --lib -- --ignored --nocapture rate` shows it; nothing is asserted of time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "shows how many Requests per second go through four hops in one process; a figure, not a test"]
async fn rate() {
    let (mesh, manager, _forwarder, endpoint) = one_of_each().await;
    let (mesh, manager) = (Arc::new(mesh), Arc::new(manager));
    for clients in [1, 16, 64] {
        let each = 1600 / clients;
        let began = std::time::Instant::now();
        let runs: Vec<_> = (0..clients)
            .map(|i| {
                let (mesh, manager) = (Arc::clone(&mesh), Arc::clone(&manager));
                tokio::spawn(async move {
                    let client = mesh.client(&format!("nsc{clients}x{i}"));
                    let mut times = Vec::new();
                    for j in 0..each {
                        let began = std::time::Instant::now();
                        client.request(&manager, client.first(j, "icmp-responder")).await.unwrap();
                        times.push(began.elapsed());
                    }
                    times
                })
            })
            .collect();
        let mut times = Vec::new();
        for run in runs {
            times.extend(run.await.unwrap());
        }
        times.sort_unstable();
        let per_second = times.len() as f64 / began.elapsed().as_secs_f64();
        let (p50, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
        println!("{clients} clients: {per_second:.0} Requests/s, p50 {p50:?}, p99 {p99:?}");
    }
    assert_eq!(endpoint.hub.len(), endpoint.probe.counts().0);
}
