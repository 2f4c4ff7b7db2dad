//! Trust domains that are federated with ours, and what becomes of their sessions when they are not any more.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tonic::Code;

use super::support::*;
use crate::identity::issuer::Authority;
use crate::identity::{Bundles, Identity, Svid};
use crate::transport::*;

/// An identity of `ours` that believes `others` beside it, and may be told to believe others.
struct Member {
    authority: Authority,
    svids: watch::Sender<Option<Arc<Svid>>>,
}

impl Member {
    fn new(domain: &str, others: Bundles) -> (Self, Identity) {
        let authority = authority(domain);
        let (svids, receiver) = watch::channel(None);
        let member = Self { authority, svids };
        member.believe(others);
        (member, Identity::rotated_by(receiver))
    }

    /// As an issuer does when a link is made or ends: a new SVID with the bundles of now.
    fn believe(&self, others: Bundles) {
        let mut svid = self.authority.issue("/member", DAY).unwrap();
        svid.bundles.extend(others);
        self.svids.send_replace(Some(Arc::new(svid)));
    }
}

async fn soon<T>(what: &str, wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), wait)
        .await
        .unwrap_or_else(|_| panic!("not in time: {what}"))
}

/// A server of `a.test` and a client of `b.test` that believe each other, with a call that does not end.
struct Two {
    a: Member,
    b: Member,
    server: Running,
    pool: Pool,
    hop: Hop,
    events: tonic::Streaming<vwire_proto::nsm::connection::ConnectionEvent>,
}

impl Two {
    async fn linked() -> Self {
        let (a, server) = Member::new("a.test", Bundles::new());
        let (b, client) = Member::new("b.test", a.authority.bundles());
        a.believe(b.authority.bundles());
        let server = start(&server).await;
        let pool = pool(&client);
        let hop = pool.hop(server.tcp()).await.unwrap();
        assert_eq!(request(&hop).await.unwrap().labels["id"], "spiffe://b.test/member");
        let events = monitor(&hop).await;
        Self { a, b, server, pool, hop, events }
    }

    async fn ended(mut self, pool: Pool) {
        let end = soon("the end of the call", self.events.message()).await;
        assert_eq!(end.unwrap_err().code(), Code::Unavailable);
        soon("the end of the session", self.hop.closed()).await;
        let refused = match pool.hop(self.server.tcp()).await {
            Err(error) => error,
            // In TLS 1.3 the client has finished when the server refuses it: the first call notices.
            Ok(hop) => request(&hop).await.unwrap_err(),
        };
        assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    }
}

#[tokio::test]
async fn a_server_ends_the_sessions_of_a_domain_that_is_taken_away_and_refuses_new_ones() {
    let two = Two::linked().await;
    two.a.believe(Bundles::new());
    let again = pool(&Identity::fixed({
        let mut svid = two.b.authority.issue("/again", DAY).unwrap();
        svid.bundles.extend(two.a.authority.bundles());
        svid
    }));
    two.ended(again).await;
}

#[tokio::test]
async fn a_client_ends_its_sessions_with_a_domain_that_is_taken_away_and_dials_it_no_more() {
    let mut two = Two::linked().await;
    two.b.believe(Bundles::new());
    let client = std::mem::replace(&mut two.pool, pool(&identity(&two.b.authority, "/unused")));
    let told = {
        soon("the end of the session", two.hop.closed()).await;
        client.hop(two.server.tcp()).await.unwrap_err()
    };
    assert!(told.message().contains("no bundle of trust domain a.test"), "{told}");
    two.ended(client).await;
}

#[tokio::test]
async fn sessions_go_on_while_other_domains_come_and_go_and_while_the_bundle_grows() {
    let mut two = Two::linked().await;
    let (third, newer) = (authority("third.test"), authority("b.test"));
    for _ in 0..2 {
        let mut others = two.b.authority.bundles();
        others.extend(third.bundles());
        two.a.believe(others.clone());
        // The foreign domain's next authority, beside the old one.
        others.get_mut(newer.domain()).unwrap().push(newer.certificate().clone());
        two.a.believe(others);
        two.a.believe(two.b.authority.bundles());
    }
    assert_eq!(
        request(&two.pool.hop(two.server.tcp()).await.unwrap()).await.unwrap().labels["id"],
        "spiffe://b.test/member"
    );
    let quiet = tokio::time::timeout(Duration::from_millis(200), two.events.message()).await;
    assert!(quiet.is_err(), "the call under way ended: {quiet:?}");
    // All of the old authority's word ends with it.
    two.a.believe(newer.bundles());
    let again = pool(&Identity::fixed(two.b.authority.issue("/again", DAY).unwrap()));
    two.ended(again).await;
}
