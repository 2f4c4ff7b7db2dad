//! Connections over time: rotation, descriptors, names, sockets.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use vwire_dataplane::fdpass::identify;

use super::support::*;
use crate::identity::{Identity, Svid};
use crate::transport::*;

type Rotor = watch::Sender<Option<Arc<Svid>>>;

fn rotated(svid: Svid) -> (Rotor, Identity) {
    let (rotor, svids) = watch::channel(Some(Arc::new(svid)));
    (rotor, Identity::rotated_by(svids))
}

fn turn(rotor: &Rotor, svid: Svid) {
    rotor.send_replace(Some(Arc::new(svid)));
}

#[tokio::test]
async fn our_new_svid_makes_the_next_hop_new_and_leaves_streams_alone() {
    let authority = authority("example.org");
    let server = start(&identity(&authority, "/nsmgr")).await;
    let (rotor, nsc) = rotated(authority.issue("/nsc", DAY).unwrap());
    let pool = pool(&nsc);
    let old = pool.hop(server.unix()).await.unwrap();
    let mut events = monitor(&old).await;
    turn(&rotor, authority.issue("/renamed", DAY).unwrap());
    let new = pool.hop(server.unix()).await.unwrap();
    assert!(!new.same_as(&old));
    assert_eq!(request(&new).await.unwrap().labels["id"], "spiffe://example.org/renamed");
    assert_eq!(
        request(&old).await.unwrap().labels["id"],
        "spiffe://example.org/nsc",
        "who holds it may use it"
    );
    assert_eq!(pool.len(), 1);
    drop(old);
    // The stream holds its connection: a call on the new one, a turn of the wheel, and it still waits.
    assert!(futures::FutureExt::now_or_never(events.message()).is_none());
    request(&new).await.unwrap();
    assert!(futures::FutureExt::now_or_never(events.message()).is_none());
}

#[tokio::test]
async fn a_servers_new_svid_is_seen_by_new_calls_while_streams_live_on() {
    let authority = authority("example.org");
    let (rotor, nsmgr) = rotated(authority.issue("/nsmgr", DAY).unwrap());
    let server = start(&nsmgr).await;
    let pool = pool(&identity(&authority, "/nsc"));
    let old = pool.hop(server.tcp()).await.unwrap();
    let mut events = monitor(&old).await;
    turn(&rotor, authority.issue("/nsmgr", DAY).unwrap());
    // The server says that it takes no new calls on the old connection.
    while old.is_open() {
        tokio::task::yield_now().await;
    }
    let new = pool.hop(server.tcp()).await.unwrap();
    assert_ne!(new.peer().leaf, old.peer().leaf);
    request(&new).await.unwrap();
    assert!(futures::FutureExt::now_or_never(events.message()).is_none(), "the stream goes on");
    assert!(futures::FutureExt::now_or_never(old.closed()).is_none());
    drop(events);
    // With its last stream the old connection ends.
    old.closed().await;
}

#[tokio::test]
async fn a_hop_can_be_renewed_when_its_server_signs_with_a_newer_key() {
    let authority = authority("example.org");
    let server = start(&identity(&authority, "/nsmgr")).await;
    let pool = pool(&identity(&authority, "/nsc"));
    let old = pool.hop(server.tcp()).await.unwrap();
    let (a, b) = futures::join!(pool.renew(&old), pool.renew(&old));
    let new = a.unwrap();
    assert!(new.same_as(&b.unwrap()) && !new.same_as(&old));
    assert!(pool.renew(&old).await.unwrap().same_as(&new), "one that is newer already will do");
    assert!(pool.hop(server.tcp()).await.unwrap().same_as(&new));
}

#[tokio::test]
async fn descriptors_ride_beside_the_calls_of_their_connection_both_ways() {
    let authority = authority("example.org");
    let server = start(&identity(&authority, "/nsmgr")).await;
    let pool = pool(&identity(&authority, "/nsc"));
    let hop = pool.hop(server.unix()).await.unwrap();
    let lane = hop.peer().fds.clone().unwrap();
    let files: Vec<File> = (0..3).map(|_| tempfile::tempfile().unwrap()).collect();
    for file in &files {
        let inode = lane.sender.send(file).unwrap();
        assert_eq!(inode, identify(file).unwrap());
    }
    assert_eq!(request(&hop).await.unwrap().labels["fds"], "3", "they are there when the call is");
    assert!(pool.hop(server.tcp()).await.unwrap().peer().fds.is_none());
}

#[tokio::test]
async fn a_socket_is_dialled_by_its_file_wherever_its_path_is() {
    let authority = authority("example.org");
    let server = start(&identity(&authority, "/nsmgr")).await;
    let Target::Unix(path) = server.unix() else { unreachable!() };
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    let file: OwnedFd = rustix::fs::open(path, flags, rustix::fs::Mode::empty()).unwrap();
    let inode = identify(&file).unwrap();
    let target = Target::File { inode, file: Arc::new(file) };
    let hop = pool(&identity(&authority, "/nsc")).hop(&target).await.unwrap();
    assert!(hop.peer().fds.is_some());
    request(&hop).await.unwrap();
}

#[tokio::test]
async fn a_name_with_several_addresses_is_dialled_at_the_one_that_answers() {
    let authority = authority("example.org");
    // localhost is ::1 and 127.0.0.1 on most machines; only the second listens.
    let server = start(&identity(&authority, "/nsmgr")).await;
    let Target::Tcp(address) = server.tcp() else { unreachable!() };
    let port = address.rsplit_once(':').unwrap().1;
    for name in [format!("localhost:{port}"), format!(":{port}")] {
        let hop = pool(&identity(&authority, "/nsc")).hop(&Target::Tcp(name)).await.unwrap();
        request(&hop).await.unwrap();
    }
}

#[tokio::test]
async fn dialling_has_its_time_and_says_what_was_missing() {
    let authority = authority("example.org");
    let folder = tempfile::tempdir().unwrap();
    // Accepts by its backlog, and never says a word.
    let silent = folder.path().join("silent.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&silent).unwrap();
    let dialling = Dialling { timeout: Duration::from_millis(100), ..Dialling::default() };
    let pool = pool_with(&identity(&authority, "/nsc"), dialling);
    let error = pool.hop(&Target::Unix(silent)).await.unwrap_err();
    assert!(
        error.message().contains("silent.sock: no connection within 100ms (NSM_DIAL_TIMEOUT)"),
        "{error}"
    );
    let error = pool.hop(&Target::Tcp("127.0.0.1:1".to_owned())).await.unwrap_err();
    assert!(error.message().contains("tcp://127.0.0.1:1") && error.message().contains("refused"), "{error}");
    let error = pool.hop(&Target::Tcp("no-such-name.invalid:1".to_owned())).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::Unavailable);
    assert!(pool.is_empty());
}

#[tokio::test]
async fn only_a_dead_socket_is_replaced() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nsm.sock");
    let bind = |mode| {
        let target = Target::Unix(path.clone());
        async move { Server::bind(&[target], Limits { socket_mode: mode, ..Limits::default() }).await }
    };
    std::fs::write(&path, "precious").unwrap();
    let error = bind(0o777).await.err().unwrap().to_string();
    assert!(error.contains("nsm.sock") && error.contains("not a socket"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    std::fs::remove_file(&path).unwrap();

    // What a killed process leaves.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let first = bind(0o600).await.unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let error = bind(0o777).await.err().unwrap().to_string();
    assert!(error.contains("another process listens there"), "{error}");
    drop(first);
    assert!(!path.exists());
    // A file that took the socket's place is not ours to remove.
    let second = bind(0o777).await.unwrap();
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "precious").unwrap();
    drop(second);
    assert!(path.exists());
}

#[tokio::test]
async fn every_address_is_listened_on_where_no_host_is_named() {
    let authority = authority("example.org");
    let shutdown = tokio_util::sync::CancellationToken::new();
    let server = Server::bind(&[Target::parse("tcp://:0").unwrap()], Limits::default()).await.unwrap();
    let Target::Tcp(address) = server.targets()[0].clone() else { unreachable!() };
    let port = address.rsplit_once(':').unwrap().1.to_owned();
    let routes = tonic::service::Routes::default();
    tokio::spawn(server.serve(identity(&authority, "/nsmgr"), routes, shutdown.clone()));
    let pool = pool(&identity(&authority, "/nsc"));
    pool.hop(&Target::Tcp(format!("127.0.0.1:{port}"))).await.unwrap();
    if address.starts_with('[') {
        pool.hop(&Target::Tcp(format!("[::1]:{port}"))).await.unwrap();
    }
    shutdown.cancel();
}

#[tokio::test]
async fn a_connection_that_is_cut_breaks_its_streams() {
    let authority = authority("example.org");
    let server = start(&identity(&authority, "/nsmgr")).await;
    let pool = pool(&identity(&authority, "/nsc"));
    let hop = pool.hop(server.tcp()).await.unwrap();
    let mut events = monitor(&hop).await;
    hop.cut();
    let error = events.message().await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::Unavailable, "{error}");
    hop.closed().await;
    assert!(!pool.hop(server.tcp()).await.unwrap().same_as(&hop));
}

/// Passes bytes between a client and a server until it is told to hold them back; nobody closes anything.
async fn freezing_relay(to: &Target, frozen: watch::Receiver<bool>) -> Target {
    let Target::Tcp(to) = to.clone() else { unreachable!() };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = Target::Tcp(listener.local_addr().unwrap().to_string());
    tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut server = tokio::net::TcpStream::connect(to).await.unwrap();
        let mut stop = frozen.clone();
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
            _ = stop.wait_for(|frozen| *frozen) => {}
        }
        // Both ends stay open for as long as the test runs.
        let _ = stop.wait_for(|frozen| !frozen).await;
    });
    at
}

#[tokio::test]
async fn a_peer_that_falls_silent_for_good_is_given_up() {
    let authority = authority("example.org");
    let server = start(&identity(&authority, "/nsmgr")).await;
    let (freeze, frozen) = watch::channel(false);
    let relay = freezing_relay(server.tcp(), frozen).await;
    let dialling = Dialling {
        timeout: Duration::from_secs(5),
        silence: Duration::from_millis(50),
        sign_of_life: Duration::from_millis(500),
        ..Dialling::default()
    };
    let hop = pool_with(&identity(&authority, "/nsc"), dialling).hop(&relay).await.unwrap();
    let mut events = monitor(&hop).await;
    // Silent, but alive: it has no health service, and says so.
    assert!(tokio::time::timeout(Duration::from_millis(300), events.message()).await.is_err());
    freeze.send_replace(true);
    let error = events.message().await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::Unavailable, "{error}");
    hop.closed().await;
}

#[tokio::test]
async fn connections_that_nobody_uses_are_closed_and_those_in_use_are_kept() {
    let authority = authority("example.org");
    let server = start(&identity(&authority, "/nsmgr")).await;
    let dialling =
        Dialling { timeout: Duration::from_secs(5), idle: Duration::from_millis(80), ..Dialling::default() };
    let pool = pool_with(&identity(&authority, "/nsc"), dialling);
    let used = pool.hop(server.unix()).await.unwrap();
    let events = monitor(&used).await;
    drop(used);
    let unused = pool.hop(server.tcp()).await.unwrap();
    request(&unused).await.unwrap();
    drop(unused);
    while pool.len() == 2 {
        tokio::task::yield_now().await;
    }
    assert!(pool.hop(server.unix()).await.unwrap().is_open(), "a stream is use");
    drop(events);
    while !pool.is_empty() {
        tokio::task::yield_now().await;
    }
}
