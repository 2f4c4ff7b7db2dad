//! No identity takes a server for itself.

use std::time::Duration;

use tonic::Code;

use super::support::*;
use crate::transport::*;

#[tokio::test]
async fn calls_and_watches_of_one_identity_are_limited_and_others_are_served() {
    let authority = authority("example.org");
    let limits = Limits { calls_per_identity: 2, ..Limits::default() };
    let server = start_with(&identity(&authority, "/nsmgr"), limits).await;
    let greedy = identity(&authority, "/greedy");
    let [one, two] = [pool(&greedy), pool(&greedy)];
    let (first, second) = (one.hop(server.tcp()).await.unwrap(), two.hop(server.unix()).await.unwrap());
    let watches = (monitor(&first).await, monitor(&second).await);
    let told = request(&second).await.unwrap_err();
    assert_eq!(told.code(), Code::ResourceExhausted);
    for part in ["spiffe://example.org/greedy", "2 calls", "VWIRE_MAX_CALLS_PER_IDENTITY"] {
        assert!(told.message().contains(part), "{part}: {told}");
    }
    let other = pool(&identity(&authority, "/other")).hop(server.tcp()).await.unwrap();
    request(&other).await.unwrap();
    drop(watches);
    // The server hears of the end a moment later.
    let freed = async {
        while request(&first).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), freed).await.expect("the places are free again");
}

#[tokio::test]
async fn connections_of_one_identity_are_limited_and_come_free() {
    let authority = authority("example.org");
    let limits = Limits { connections_per_identity: 1, ..Limits::default() };
    let server = start_with(&identity(&authority, "/nsmgr"), limits).await;
    let greedy = identity(&authority, "/greedy");
    let [one, two] = [pool(&greedy), pool(&greedy)];
    let first = one.hop(server.tcp()).await.unwrap();
    request(&first).await.unwrap();
    if let Ok(hop) = two.hop(server.tcp()).await {
        assert_eq!(request(&hop).await.unwrap_err().code(), Code::Unavailable);
    }
    let other = pool(&identity(&authority, "/other")).hop(server.tcp()).await.unwrap();
    request(&other).await.unwrap();
    first.cut();
    first.closed().await;
    let freed = async {
        loop {
            if let Ok(hop) = two.hop(server.tcp()).await
                && request(&hop).await.is_ok()
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), freed).await.expect("the place is free again");
}

#[tokio::test]
async fn a_rate_is_kept_where_one_is_set() {
    let authority = authority("example.org");
    let limits = Limits { calls_per_second: 1, ..Limits::default() };
    let server = start_with(&identity(&authority, "/nsmgr"), limits).await;
    let hop = pool(&identity(&authority, "/nsc")).hop(server.tcp()).await.unwrap();
    request(&hop).await.unwrap();
    let refused = async {
        loop {
            if let Err(told) = request(&hop).await {
                return told;
            }
        }
    };
    let told = tokio::time::timeout(Duration::from_secs(10), refused).await.unwrap();
    assert_eq!(told.code(), Code::ResourceExhausted);
    assert!(told.message().contains("VWIRE_MAX_CALLS_PER_SECOND"), "{told}");
}
