//! Descriptors beside calls: a peer that keeps all it gets keeps them for a while only.

use std::fs::File;
use std::io::Write;

use vwire_dataplane::fdpass::identify;

use super::support::*;
use crate::transport::*;

/// More than fit on three carriers.
const CALLS: usize = 100;

fn file() -> (File, Inode) {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"of the caller").unwrap();
    let inode = identify(&file).unwrap();
    (file, inode)
}

#[tokio::test]
async fn descriptors_go_by_connections_that_end_and_streams_by_one_that_stays() {
    let authority = authority("example.org");
    let server = start(&identity(&authority, "/nsmgr")).await;
    let pool = pool(&identity(&authority, "/nsc"));
    let lasting = pool.hop(server.unix()).await.unwrap();
    let mut events = monitor(&lasting).await;
    // The server takes none of them, as if it kept them: so many it has at one time.
    let mut most = 0;
    let mut carriers: Vec<Hop> = Vec::new();
    for _ in 0..CALLS {
        let hop = pool.hop_with(server.unix(), 1).await.unwrap();
        assert!(!hop.same_as(&lasting));
        hop.peer().fds.as_ref().unwrap().sender.send(file().0).unwrap();
        let held: usize = request(&hop).await.unwrap().labels["fds"].parse().unwrap();
        most = most.max(held);
        if !carriers.last().is_some_and(|last| last.same_as(&hop)) {
            carriers.push(hop);
        }
    }
    assert_eq!((most, carriers.len()), (32, 4), "most descriptors on a connection, and connections");
    // Those that are full end as soon as nobody has a call on them.
    let full: Vec<_> = carriers.drain(..3).collect();
    let ends: Vec<_> = full.iter().map(Hop::ended).collect();
    drop(full);
    for end in ends {
        end.cancelled().await;
    }
    assert!(carriers[0].is_open());
    assert_eq!(request(&lasting).await.unwrap().labels["fds"], "0");
    assert!(pool.hop(server.unix()).await.unwrap().same_as(&lasting), "calls without descriptors share it");
    assert!(pool.hop_with(server.unix(), 0).await.unwrap().same_as(&lasting));
    assert!(futures::FutureExt::now_or_never(events.message()).is_none(), "the stream goes on");
}

#[tokio::test]
async fn a_full_carrier_ends_its_calls_first() {
    let authority = authority("example.org");
    let server = start(&identity(&authority, "/nsmgr")).await;
    let pool = pool(&identity(&authority, "/nsc"));
    let full = pool.hop_with(server.unix(), 100).await.unwrap();
    let call = tokio::spawn({
        let full = full.clone();
        async move { request_as(&full, NEVER).await }
    });
    let next = pool.hop_with(server.unix(), 1).await.unwrap();
    assert!(!next.same_as(&full));
    request(&next).await.unwrap();
    assert!(full.is_open() && !call.is_finished());
    let ended = full.ended();
    call.abort();
    drop(full);
    ended.cancelled().await;
}

#[tokio::test]
async fn tcp_carries_none_and_has_one_connection() {
    let authority = authority("example.org");
    let server = start(&identity(&authority, "/nsmgr")).await;
    let pool = pool(&identity(&authority, "/nsc"));
    let hop = pool.hop(server.tcp()).await.unwrap();
    assert!(pool.hop_with(server.tcp(), 3).await.unwrap().same_as(&hop));
}

#[tokio::test]
async fn the_servers_descriptors_come_ahead_of_its_answers() {
    let authority = authority("example.org");
    let server = start(&identity(&authority, "/nsmgr")).await;
    let hop = pool(&identity(&authority, "/nsc")).hop(server.unix()).await.unwrap();
    for _ in 0..3 {
        let answer = request_as(&hop, DESCRIPTOR).await.unwrap();
        let inode: Inode = answer.labels["sent"].parse().unwrap();
        let came = hop.peer().fds.as_ref().unwrap().received.take(inode).expect("it is ahead of the answer");
        assert_eq!(std::io::read_to_string(std::io::BufReader::new(rewound(came))).unwrap(), "of the server");
    }
}

fn rewound(fd: std::os::fd::OwnedFd) -> File {
    use std::io::Seek;
    let mut file = File::from(fd);
    file.rewind().unwrap();
    file
}
