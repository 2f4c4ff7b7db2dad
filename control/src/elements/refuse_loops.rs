//! A Request that comes back to a proxy that it has passed would go round for ever: domain A leads to A, or by way of B.
//!
//! Unless an endpoint of the domain has passed it on: then it came in by the proxy and goes out by it. Such an endpoint gives it back to
//! the manager that it has it from, so that the manager is there twice since the proxy; a loop of proxies has nobody twice before it is
//! seen. What endpoints pass on to each other in a circle ends at the longest path that is taken.

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;
use tonic::Status;

use crate::api::connection::{Connection, Path, PathSegment};
use crate::api::networkservice::NetworkServiceRequest;
use crate::api::path;
use crate::api::token::claimed_subject;
use crate::chain::{Call, Element, Next};
use crate::identity::Identity;

/// Looks for us among the hops before us; stands ahead of `updatepath`. Names alone don't tell us from a proxy of another domain:
/// a hop is us if its token names us, too, where there are tokens.
pub struct RefuseLoops {
    name: Arc<str>,
    identity: Identity,
}

impl RefuseLoops {
    /// For the role of this name and identity.
    pub fn new(name: impl Into<Arc<str>>, identity: Identity) -> Self {
        Self { name: name.into(), identity }
    }

    fn check(&self, request: &NetworkServiceRequest) -> Result<(), Status> {
        let Some(connection) = &request.connection else { return Ok(()) };
        let path = path::of(connection);
        let passed = &path.path_segments[..path.path_segments.len().min(path.index as usize + 1)];
        let ours = self.identity.current().map(|svid| svid.id.to_string());
        let is_us = |token: &str| match (&ours, token) {
            (None, _) | (_, "") => true,
            (Some(ours), token) => claimed_subject(token).is_none_or(|subject| subject == *ours),
        };
        let before = passed.iter().rposition(|segment| *segment.name == *self.name && is_us(&segment.token));
        if before.is_some_and(|before| !is_passed_on(&passed[before + 1..])) {
            return Err(Status::failed_precondition(format!(
                "loop: {} → {}: endpoint `{}` of service `{}` leads back here; the URL that its domain's registry or DNS gives must be of that domain's own nsmgr-proxy",
                shown(path, passed.len()),
                self.name,
                connection.network_service_endpoint_name,
                connection.network_service,
            )));
        }
        if before.is_none() && passed.last().is_some_and(|caller| *caller.name == *self.name) {
            return Err(Status::failed_precondition(format!(
                "connection.path: the hop before us is called `{0}`, too, and can't be told from us; give one of both another NSM_NAME",
                self.name
            )));
        }
        Ok(())
    }
}

/// True if an endpoint among these hops has given the connection back to the manager that it has it from.
fn is_passed_on(hops: &[PathSegment]) -> bool {
    let who = |hop: &PathSegment| (hop.name.clone(), claimed_subject(&hop.token));
    let mut seen = HashSet::new();
    hops.iter().any(|hop| !seen.insert(who(hop)))
}

/// The hops up to the caller.
fn shown(path: &Path, hops: usize) -> String {
    let names: Vec<&str> = path.path_segments[..hops].iter().map(|segment| segment.name.as_str()).collect();
    names.join(" → ")
}

#[async_trait]
impl Element for RefuseLoops {
    async fn request(
        &self,
        call: &mut Call,
        request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        if call.peer().is_some() {
            self.check(&request)?;
        }
        next.request(call, request).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::token::tests::unsigned;
    use crate::chain::Chain;
    use crate::chain::testing::{call_by, connection, request, spiffe};
    use crate::identity::TrustDomain;
    use crate::identity::issuer::Authority;
    use std::time::Duration;

    fn chain() -> Arc<Chain> {
        let authority = Authority::new(TrustDomain::new("example.org").unwrap()).unwrap();
        let svid = authority.issue("/proxy-a", Duration::from_secs(3600)).unwrap();
        Chain::new("proxy-a", |_| vec![Arc::new(RefuseLoops::new("proxy-a", Identity::fixed(svid)))])
    }

    #[tokio::test]
    async fn a_loop_is_shown_hop_by_hop() {
        for (path, told) in [
            (&["nsc/1", "fwd/2", "proxy-a/3"][..], "loop: nsc → fwd → proxy-a → proxy-a:"),
            (&["nsc/1", "proxy-a/3", "proxy-b/4"], "loop: nsc → proxy-a → proxy-b → proxy-a:"),
        ] {
            let refused = chain().request(&mut call_by("x"), request(connection(path))).await.unwrap_err();
            assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
            assert!(refused.message().starts_with(told), "{refused}");
        }
    }

    #[tokio::test]
    async fn what_an_endpoint_of_the_domain_passes_on_is_no_loop() {
        let into =
            ["nsc/1", "proxy-b/2", "proxy-a/3", "nsmgr-a/4", "fwd-a/5", "relay/6", "nsmgr-a/7", "fwd-a/8"];
        chain().request(&mut call_by("fwd-a"), request(connection(&into))).await.unwrap();
        // But one that comes back from there without another endpoint in between is.
        let back = [&into[..], &["proxy-a/9", "proxy-b/10"]].concat();
        let refused = chain().request(&mut call_by("proxy-b"), request(connection(&back))).await.unwrap_err();
        assert!(refused.message().starts_with("loop: "), "{refused}");
    }

    #[tokio::test]
    async fn a_refresh_and_a_proxy_of_our_name_in_another_domain_are_none() {
        // On a refresh our own segment is there already, after the caller's.
        let mut refresh = connection(&["nsc/1", "fwd/2", "proxy-a/3", "proxy-b/4"]);
        refresh.path.as_mut().unwrap().index = 1;
        chain().request(&mut call_by("fwd"), request(refresh)).await.unwrap();
        let mut other = connection(&["nsc/1", "proxy-a/2", "proxy-b/3"]);
        other.path.as_mut().unwrap().path_segments[1].token = unsigned(&spiffe("another").to_string());
        chain().request(&mut call_by("proxy-b"), request(other.clone())).await.unwrap();
        // But beside us it can't be told from us.
        let path = other.path.as_mut().unwrap();
        path.path_segments.truncate(2);
        path.index = 1;
        let refused = chain().request(&mut call_by("another"), request(other)).await.unwrap_err();
        assert!(refused.message().contains("NSM_NAME"), "{refused}");
    }
}
