//! Three trust domains that believe each other: a vWire of two of them, and what the third may do about it, which is nothing.

use std::sync::Arc;

use tonic::Code;

use super::domains::*;
use super::mesh::*;
use crate::api::connection::{Connection, MonitorScopeSelector, Path, PathSegment};
use crate::api::path;
use crate::identity::issuer::Authority;
use crate::identity::jwt::Claims;
use crate::identity::{Bundles, TrustDomain, jwt};
use crate::transport::Target;

/// Meshes of three trust domains.
fn meshes() -> [Mesh; 3] {
    let authorities = ["a.test", "b.test", "c.test"]
        .map(|name| Arc::new(Authority::new(TrustDomain::new(name).unwrap()).unwrap()));
    let all: Bundles = authorities.iter().flat_map(|authority| authority.bundles()).collect();
    authorities.map(|authority| Mesh::of(authority, all.clone()))
}

/// The connection as a caller between a proxy and the client would send it: `first` are the segments up to the caller, whose own names
/// the hop that was before the proxy; the proxy's own segment follows.
fn claimed(made: &Connection, proxy: usize, first: Vec<PathSegment>) -> Connection {
    let segments = &path::of(made).path_segments;
    let mut connection = made.clone();
    let index = first.len() as u32 - 1;
    connection.id.clone_from(&first[index as usize].id);
    let path_segments = first.into_iter().chain([segments[proxy].clone()]).collect();
    connection.path = Some(Path { index, path_segments });
    connection
}

#[tokio::test]
async fn a_third_domain_can_neither_take_nor_end_nor_see_what_two_others_have() {
    let [a, b, c] = meshes();
    let two = two_of([a, b], |_, _| {}).await;
    let made = two.ask("icmp-responder@b.test", "").await.unwrap();
    assert_eq!(hops(&made), EIGHT);
    let door = Target::Tcp(format!("{}:5004", two.b.address));
    let segments = path::of(&made).path_segments.clone();
    let stranger = c.client("nsmgr-proxy-a");

    // It knows the ids, and says honestly who it is.
    let own = PathSegment { token: String::new(), ..segments[3].clone() };
    let honest = claimed(&made, 4, vec![own.clone()]);
    let told =
        stranger.request_at(&door, honest.clone(), vec![Client::preference()], TIME).await.unwrap_err();
    assert_eq!(told.code(), Code::PermissionDenied, "{told}");
    let told = stranger.close_at(&door, honest).await.unwrap_err();
    assert_eq!(told.code(), Code::PermissionDenied, "{told}");

    // It shows the path of others, whose tokens it has seen, and then one of its own making, which names it: it does not speak for them.
    let mut others = segments[..3].to_vec();
    others.push(own.clone());
    let claims = Claims {
        sub: "spiffe://a.test/nsc-a".to_owned(),
        aud: vec!["spiffe://c.test/nsmgr-proxy-a".to_owned()],
        exp: 4_000_000_000,
        nbf: None,
    };
    let forger = c.authority.issue("/forger", TIME * 1000).unwrap();
    let forged = PathSegment { token: jwt::sign(&claims, &forger.key).unwrap(), ..segments[0].clone() };
    for (path, policy) in [(others, "tokens_chained"), (vec![forged, own], "foreign_domain")] {
        let theirs = claimed(&made, 4, path);
        let told =
            stranger.request_at(&door, theirs.clone(), vec![Client::preference()], TIME).await.unwrap_err();
        assert_eq!(told.code(), Code::PermissionDenied, "{told}");
        assert!(told.message().contains(policy), "{policy}: {told}");
        let told = stranger.close_at(&door, theirs).await.unwrap_err();
        assert_eq!(told.code(), Code::PermissionDenied, "{told}");
        assert!(told.message().contains("made by another caller"), "{told}");
    }

    // By nothing that it asks for does it see them; the proxy before it sees them all.
    let by_id = MonitorScopeSelector { path_segments: vec![segments[4].clone()], ..Default::default() };
    for selector in [MonitorScopeSelector::default(), by_id] {
        let mut seen = stranger.monitor_at(&door, selector.clone()).await;
        assert!(seen.next().await.connections.is_empty());
        let mut seen = two.a.mesh.client("nsmgr-proxy-a").monitor_at(&door, selector).await;
        assert_eq!(seen.next().await.connections.len(), 1);
    }

    // All is as it was.
    let client = two.a.client();
    let again = client.request_at(&two.a.manager, made, vec![Client::preference()], TIME).await.unwrap();
    assert_eq!(hops(&again), EIGHT);
    assert_eq!(two.endpoint.probe.counts().1, 0, "no Close came to the endpoint");
    client.close_at(&two.a.manager, again).await.unwrap();
    assert_eq!(two.endpoint.probe.counts().1, 1);
}
