//! Members of other trust domains at our registry.

use std::sync::Arc;

use tonic::{Code, Status};

use super::support::*;
use crate::identity::issuer::Authority;
use crate::identity::{Bundles, Identity, TokenSource, TrustDomain};
use crate::registry::authorize::{Authorize, Strict};
use crate::registry::foreign::{Admit, Foreign};
use crate::registry::hops::Hops;
use crate::registry::memory::{Settings, Store};
use crate::registry::remote::Remote;
use crate::registry::{Registry, RegistryCall, find};
use crate::transport::{Dialling, Pool};

/// Three trust domains that believe each other; the registry is of the first.
struct Border {
    domains: [Authority; 3],
    served: Served,
    admit: Admit,
}

fn member(authority: &Authority, all: &Bundles, name: &str) -> Member {
    let mut svid = authority.issue(&format!("/{name}"), TIME * 1000).unwrap();
    svid.bundles = all.clone();
    let identity = Identity::fixed(svid);
    let tokens = TokenSource::new(identity.clone(), TIME * 60);
    let dialling = Dialling { timeout: TIME, ..Dialling::default() };
    let pool = Arc::new(Pool::new(identity.clone(), tokens.clone(), dialling));
    Member { identity, tokens, pool }
}

impl Border {
    async fn new(admit: &str) -> Self {
        let domains = ["ours.test", "b.test", "c.test"]
            .map(|name| Authority::new(TrustDomain::new(name).unwrap()).unwrap());
        let admit: Admit = admit.parse().unwrap();
        let all = domains.iter().flat_map(Authority::bundles).collect();
        let registry = member(&domains[0], &all, "registry");
        let store = Foreign::new(Store::new(Settings::default()), admit.clone());
        let chain = Hops::new(Authorize::new(store, rules(), Strict::default()), registry.tokens.clone());
        let served = registry.serve(Arc::new(chain)).await;
        Self { domains, served, admit }
    }

    fn of(&self, domain: usize, name: &str) -> Remote {
        let all = self.domains.iter().flat_map(Authority::bundles).collect();
        member(&self.domains[domain], &all, name).client(&self.served.tcp)
    }
}

async fn register(registry: &Remote, name: &str, service: &str) -> Result<(), Status> {
    registry.register_endpoint(&mut call(), endpoint(name, service)).await.map(drop)
}

fn refused(result: Result<(), Status>) -> String {
    let status = result.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    status.message().to_owned()
}

async fn names(registry: &Remote, service: &str) -> Vec<String> {
    let found = find::endpoints(registry, &mut call(), of_service(service)).await.unwrap();
    found.iter().map(|event| event.endpoint.name.clone()).collect()
}

#[tokio::test]
async fn by_default_foreign_endpoints_offer_what_none_of_ours_does() {
    let border = Border::new("apart").await;
    assert_eq!(border.admit, Admit::default());
    let (ours, b, c) = (border.of(0, "nse"), border.of(1, "nse"), border.of(2, "nse"));
    // A floating domain: endpoints of two other domains side by side.
    register(&b, "nse-b", "floating").await.unwrap();
    register(&c, "nse-c", "floating").await.unwrap();
    assert_eq!(names(&ours, "floating").await, ["nse-b", "nse-c"]);

    register(&ours, "nse", "icmp").await.unwrap();
    let told = refused(register(&b, "nse-b2", "icmp").await);
    assert!(told.contains("`icmp`") && told.contains("VWIRE_REGISTRY_FOREIGN"), "{told}");
    assert_eq!(names(&ours, "icmp").await, ["nse"]);

    // One of ours comes later: the foreign ones can't renew.
    register(&ours, "nse-2", "floating").await.unwrap();
    refused(register(&b, "nse-b", "floating").await);
    let mut withdrawn = call();
    b.unregister_endpoint(&mut withdrawn, named("nse-b")).await.unwrap();
    assert_eq!(names(&ours, "floating").await, ["nse-2", "nse-c"]);
}

#[tokio::test]
async fn names_are_first_of_all_ours_and_then_whose_who_came_first() {
    let border = Border::new("apart").await;
    let (ours, b, c) = (border.of(0, "nse"), border.of(1, "nse"), border.of(2, "nse"));
    b.register_service(&mut call(), service("wanted")).await.unwrap();
    register(&b, "nse-1", "theirs").await.unwrap();
    refused(register(&c, "nse-1", "theirs").await);
    refused(c.register_service(&mut call(), service("wanted")).await.map(drop));
    refused(c.unregister_endpoint(&mut call(), named("nse-1")).await);

    let wanted = ours.register_service(&mut call(), service("wanted")).await.unwrap();
    assert_eq!(wanted.path_ids[0], "spiffe://ours.test/nse");
    register(&ours, "nse-1", "own").await.unwrap();
    assert_eq!(names(&ours, "own").await, ["nse-1"]);
    assert!(names(&ours, "theirs").await.is_empty());
    refused(b.register_service(&mut call(), service("wanted")).await.map(drop));
    refused(register(&b, "nse-1", "theirs").await);
    refused(b.unregister_endpoint(&mut call(), named("nse-1")).await);
}

#[tokio::test]
async fn the_setting_shuts_foreign_domains_out_or_lets_named_ones_do_all() {
    let nobody = Border::new("none").await;
    let told = refused(register(&nobody.of(1, "nse"), "nse-b", "icmp").await);
    assert!(told.contains("b.test") && told.contains("VWIRE_REGISTRY_FOREIGN"), "{told}");
    refused(nobody.of(1, "nse").register_service(&mut call(), service("icmp")).await.map(drop));
    register(&nobody.of(0, "nse"), "nse", "icmp").await.unwrap();
    assert_eq!(names(&nobody.of(1, "nsc"), "icmp").await, ["nse"], "finding is open to all whom we believe");

    let some = Border::new("b.test").await;
    register(&some.of(0, "nse"), "nse", "icmp").await.unwrap();
    register(&some.of(1, "nse"), "nse-b", "icmp").await.unwrap();
    refused(register(&some.of(2, "nse"), "nse-c", "icmp").await);
    let any = Border::new("any").await;
    register(&any.of(0, "nse"), "nse", "icmp").await.unwrap();
    register(&any.of(2, "nse"), "nse-c", "icmp").await.unwrap();
}

#[tokio::test]
async fn a_foreign_peer_can_not_act_in_the_name_of_one_of_ours() {
    let border = Border::new("any").await;
    register(&border.of(0, "nse"), "nse", "icmp").await.unwrap();
    // The proxy of b passes on a path that begins with a token in our member's name.
    let b = border.of(1, "proxy");
    let ours = Arc::new(border.domains[0].issue("/nse", TIME * 1000).unwrap());
    let claims = crate::identity::jwt::Claims {
        sub: ours.id.to_string(),
        aud: vec!["spiffe://b.test/proxy".to_owned()],
        exp: 4_000_000_000,
        nbf: None,
    };
    let forged: Arc<str> = crate::identity::jwt::sign(&claims, &ours.key).unwrap().into();
    let path = crate::registry::RegistryPath { index: 1, tokens: vec![forged, "".into()] };
    let mut call = RegistryCall { path: Some(path), ..call() };
    let told = refused(b.unregister_endpoint(&mut call, named("nse")).await);
    assert!(told.contains("foreign_domain"), "{told}");
    assert_eq!(names(&b, "icmp").await, ["nse"]);
}

#[test]
fn the_setting_is_read() {
    for (text, admit) in [("apart", Admit::Apart), ("any", Admit::Any), ("none", Admit::Nobody)] {
        assert_eq!(text.parse::<Admit>().unwrap(), admit);
    }
    let Admit::Only(domains) = "b.test, c.test".parse().unwrap() else { panic!("a list") };
    assert_eq!(domains.len(), 2);
    for bad in ["", "a.test,,b.test", "spiffe//x"] {
        assert!(bad.parse::<Admit>().unwrap_err().contains("apart"), "{bad}");
    }
}
