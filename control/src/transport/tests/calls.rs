use std::time::{Duration, SystemTime};

use tonic::Code;
use vwire_proto::nsm::connection::Connection;
use vwire_proto::nsm::networkservice::NetworkServiceRequest;
use vwire_proto::nsm::networkservice::network_service_client::NetworkServiceClient;

use super::support::*;
use crate::identity::{Identity, jwt};
use crate::transport::*;

#[tokio::test]
async fn each_side_knows_the_other_over_unix_and_tcp_and_tokens_are_made_for_the_peer() {
    let authority = authority("example.org");
    let server = start(&identity(&authority, "/nsmgr")).await;
    let pool = pool(&identity(&authority, "/nsc"));
    for target in &server.targets {
        let hop = pool.hop(target).await.unwrap();
        assert_eq!(hop.peer().id.as_ref().unwrap().to_string(), "spiffe://example.org/nsmgr");
        let answer = request(&hop).await.unwrap();
        assert_eq!(answer.labels["id"], "spiffe://example.org/nsc");
        let claims =
            jwt::verify(&answer.labels["token"], &hop.peer().local.as_ref().unwrap().chain[0]).unwrap();
        assert_eq!(claims.sub, "spiffe://example.org/nsc");
        assert_eq!(claims.aud, ["spiffe://example.org/nsmgr"]);
        let left = claims.exp - SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
        assert!((TOKEN_LIFE.as_secs() - 5..=TOKEN_LIFE.as_secs()).contains(&left), "{left}");
        assert_eq!(answer.labels.contains_key("fds"), target.is_local());
        assert_eq!(answer.labels.contains_key("uid"), target.is_local());
    }
}

#[tokio::test]
async fn a_connection_is_dialled_once_and_shared() {
    let authority = authority("example.org");
    let server = start(&identity(&authority, "/nsmgr")).await;
    let pool = pool(&identity(&authority, "/nsc"));
    let hops = futures::future::join_all((0..20).map(|_| pool.hop(server.tcp()))).await;
    let first = hops[0].as_ref().unwrap();
    assert!(hops.iter().all(|hop| hop.as_ref().unwrap().same_as(first)));
    assert_eq!(pool.len(), 1);
}

#[tokio::test]
async fn a_call_ends_with_its_time_and_says_where() {
    let authority = authority("example.org");
    let server = start(&identity(&authority, "/nsmgr")).await;
    let hop = pool(&identity(&authority, "/nsc")).hop(server.unix()).await.unwrap();
    let connection = Some(Connection { id: NEVER.to_owned(), ..Connection::default() });
    let mut call = tonic::Request::new(NetworkServiceRequest { connection, ..Default::default() });
    call.set_timeout(Duration::from_millis(50));
    let error = NetworkServiceClient::new(hop.clone()).request(call).await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded);
    assert!(error.message().contains("nsm.io.sock"), "{error}");
    request(&hop).await.unwrap();
}

#[tokio::test]
async fn the_servers_end_is_noticed_and_the_next_hop_is_dialled_anew() {
    let authority = authority("example.org");
    let nsmgr = identity(&authority, "/nsmgr");
    let mut server = start(&nsmgr).await;
    let pool = pool(&identity(&authority, "/nsc"));
    let hop = pool.hop(server.unix()).await.unwrap();
    let mut events = monitor(&hop).await;
    let Target::Unix(path) = server.unix().clone() else { unreachable!() };
    server.shutdown.cancel();
    let error = events.message().await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    hop.closed().await;
    (&mut server.task).await.unwrap().unwrap();
    let error = pool.hop(server.unix()).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.message().contains("nsm.io.sock: No such file"), "{error}");
    assert!(!path.exists(), "the socket's file is removed");
}

#[tokio::test]
async fn without_tls_there_are_no_ids_and_no_tokens() {
    let server = start(&Identity::insecure()).await;
    let pool = pool(&Identity::insecure());
    for target in &server.targets {
        let hop = pool.hop(target).await.unwrap();
        assert!(hop.peer().id.is_none());
        let answer = request(&hop).await.unwrap();
        assert_eq!((answer.labels["id"].as_str(), answer.labels.get("token")), ("", None));
    }
}

#[tokio::test]
async fn a_handlers_panic_ends_one_call() {
    let authority = authority("example.org");
    let server = start(&identity(&authority, "/nsmgr")).await;
    let hop = pool(&identity(&authority, "/nsc")).hop(server.unix()).await.unwrap();
    let error = request_as(&hop, PANIC).await.unwrap_err();
    assert_eq!(error.code(), Code::Internal);
    request(&hop).await.unwrap();
}
