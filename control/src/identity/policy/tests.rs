use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tonic::Code;
use vwire_proto::nsm::connection::{Path, PathSegment};

use super::*;
use crate::identity::issuer::Authority;
use crate::identity::jwt::{self, Claims};
use crate::identity::{Svid, TrustDomain};
use crate::transport::PeerAddress;

struct Mesh {
    nsc: Svid,
    nsmgr: Svid,
    forwarder: Svid,
}

impl Mesh {
    fn new() -> Self {
        let authority = Authority::new(TrustDomain::new("example.org").unwrap()).unwrap();
        let svid = |path| authority.issue(path, Duration::from_secs(3600)).unwrap();
        Self { nsc: svid("/nsc"), nsmgr: svid("/nsmgr"), forwarder: svid("/forwarder") }
    }

    /// Its caller's token, then ours: what a manager sees.
    fn path(&self) -> Path {
        path(1, [token(&self.nsc, &self.nsmgr, 60), token(&self.nsmgr, &self.nsc, 60)])
    }
}

fn peer(svid: &Svid) -> Peer {
    Peer {
        id: Some(svid.id.clone()),
        leaf: Some(svid.chain[0].clone()),
        not_after: Some(svid.not_after),
        local: None,
        address: PeerAddress::Tcp(([127, 0, 0, 1], 1).into()),
        fds: None,
    }
}

fn token(by: &Svid, for_: &Svid, left: i64) -> String {
    named(&by.id.to_string(), by, &[&for_.id.to_string()], left)
}

fn named(sub: &str, signer: &Svid, aud: &[&str], left: i64) -> String {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let aud = aud.iter().map(|&aud| aud.to_owned()).collect();
    let claims = Claims { sub: sub.to_owned(), aud, exp: now.saturating_add_signed(left), nbf: None };
    jwt::sign(&claims, &signer.key).unwrap()
}

fn path<const N: usize>(index: u32, tokens: [String; N]) -> Path {
    let segment = |token| PathSegment { token, ..PathSegment::default() };
    Path { index, path_segments: tokens.into_iter().map(segment).collect() }
}

fn policy(result: Result<(), Status>) -> String {
    let error = result.unwrap_err();
    assert_eq!(error.code(), Code::PermissionDenied);
    error.message().strip_prefix("no sufficient privileges: policy ").unwrap().to_owned()
}

#[test]
fn an_honest_path_passes_on_both_sides() {
    let mesh = Mesh::new();
    let policies = Policies::standard();
    policies.check_server(&mesh.path(), &peer(&mesh.nsc)).unwrap();
    // What the client gets back: the manager's token is made for the next hop now.
    let (nsc, nsmgr, forwarder) = (&mesh.nsc, &mesh.nsmgr, &mesh.forwarder);
    let back = path(0, [token(nsc, nsmgr, 60), token(nsmgr, forwarder, 60), token(forwarder, nsmgr, 60)]);
    policies.check_client(&back, &peer(nsmgr)).unwrap();
    assert_eq!(policy(policies.check_client(&back, &peer(forwarder))), "next_token_signed");
}

#[test]
fn what_lies_beyond_our_segment_is_not_asked_of_a_call() {
    // A refresh brings the whole path of the last time.
    let mesh = Mesh::new();
    let mut path = mesh.path();
    path.path_segments.push(PathSegment { token: "stale".to_owned(), ..PathSegment::default() });
    Policies::standard().check_server(&path, &peer(&mesh.nsc)).unwrap();
}

#[test]
fn each_policy_refuses_what_it_is_there_for() {
    let mesh = Mesh::new();
    let (nsc, nsmgr, forwarder) = (&mesh.nsc, &mesh.nsmgr, &mesh.forwarder);
    let ours = || token(nsmgr, nsc, 60);
    let (id, aud) = (nsc.id.to_string(), nsmgr.id.to_string());
    let cases = [
        ("tokens_valid", "no token".to_owned()),
        ("tokens_valid", String::new()),
        ("tokens_expired", token(nsc, nsmgr, 0)),
        ("tokens_chained", token(nsc, forwarder, 60)),
        ("tokens_chained", named(&id, nsc, &[], 60)),
        ("prev_token_signed", token(forwarder, nsmgr, 60)),
        ("prev_token_signed", named(&id, forwarder, &[&aud], 60)),
        ("prev_token_signed", named("spiffe://example.org/victim", nsc, &[&aud], 60)),
    ];
    for (expected, token) in cases {
        let denied = Policies::standard().check_server(&path(1, [token, ours()]), &peer(nsc));
        assert_eq!(policy(denied), expected);
    }
}

#[test]
fn paths_without_the_peers_segment_are_refused() {
    let mesh = Mesh::new();
    let policies = Policies::standard();
    let alone = path(0, [token(&mesh.nsc, &mesh.nsmgr, 60)]);
    for bad in [Path::default(), alone.clone(), Path { index: u32::MAX, ..alone.clone() }] {
        assert_eq!(policy(policies.check_server(&bad, &peer(&mesh.nsc))), "prev_token_signed");
        assert_eq!(policy(policies.check_client(&bad, &peer(&mesh.nsmgr))), "next_token_signed");
    }
    let unproven = Peer { id: None, leaf: None, ..peer(&mesh.nsc) };
    assert_eq!(policy(policies.check_server(&mesh.path(), &unproven)), "prev_token_signed");
    Policies::off().check_server(&alone, &unproven).unwrap();
}

#[test]
fn registrations_are_asked_the_same() {
    let mesh = Mesh::new();
    let policies = Policies::standard();
    let tokens: Vec<Arc<str>> =
        mesh.path().path_segments.iter().map(|segment| segment.token.as_str().into()).collect();
    policies.check_registry_server(&tokens, &peer(&mesh.nsc)).unwrap();
    policies.check_registry_client(&tokens, 0, &peer(&mesh.nsmgr)).unwrap();
    assert_eq!(policy(policies.check_registry_server(&tokens[1..], &peer(&mesh.nsc))), "prev_token_signed");
    assert_eq!(policy(policies.check_registry_client(&tokens, 1, &peer(&mesh.nsmgr))), "next_token_signed");
}

fn masks(list: &[&str]) -> Result<Rules, BadPolicies> {
    masks::select(&list.iter().map(|&mask| mask.to_owned()).collect::<Vec<_>>())
}

#[test]
fn the_defaults_of_the_go_registry_select_everything() {
    let server = ["etc/nsm/opa/common/.*.rego", "etc/nsm/opa/registry/.*.rego", "etc/nsm/opa/server/.*.rego"];
    assert_eq!(masks(&server).unwrap(), Rules::standard());
    let one = Rules { expired: true, ..Rules::default() };
    for mask in ["tokens_expired", "etc/nsm/opa/common/tokens_expired.rego", "/etc/nsm/opa/common/tokens_e.*"]
    {
        assert_eq!(masks(&[mask]).unwrap(), one, "{mask}");
    }
}

#[test]
fn a_list_that_selects_nothing_ends_the_start() {
    assert_eq!(masks(&[]), Err(BadPolicies::Empty));
    assert_eq!(masks(&["", " "]), Err(BadPolicies::Empty));
    let typo = masks(&["tokens_valid", "etc/nsm/opa/comon/.*.rego"]);
    assert_eq!(typo, Err(BadPolicies::Nothing("etc/nsm/opa/comon/.*.rego".to_owned())));
    assert!(matches!(masks(&["etc/("]), Err(BadPolicies::Mask { .. })));
}

/// A peer of `b.test` at a process of `a.test`, and who is behind it.
struct Border {
    ours: Svid,
    theirs: Svid,
    behind: Svid,
    third: Svid,
}

impl Border {
    fn new() -> Self {
        let issue = |domain: &str, path: &str| {
            let authority = Authority::new(TrustDomain::new(domain).unwrap()).unwrap();
            authority.issue(path, Duration::from_secs(3600)).unwrap()
        };
        let b = Authority::new(TrustDomain::new("b.test").unwrap()).unwrap();
        let of_b = |path| b.issue(path, Duration::from_secs(3600)).unwrap();
        Self {
            ours: issue("a.test", "/proxy"),
            theirs: of_b("/proxy"),
            behind: of_b("/nsc"),
            third: issue("c.test", "/nsc"),
        }
    }

    fn peer(&self) -> Peer {
        let ours = Arc::new(
            Svid::new(self.ours.chain.clone(), self.ours.key.clone_key(), self.ours.bundles.clone()).unwrap(),
        );
        Peer { local: Some(ours), ..peer(&self.theirs) }
    }

    /// What comes in when `first` is behind the peer.
    fn incoming(&self, first: &Svid) -> Path {
        let tokens = [
            token(first, &self.theirs, 60),
            token(&self.theirs, &self.ours, 60),
            token(&self.ours, &self.theirs, 60),
        ];
        path(2, tokens)
    }

    /// What comes back when `last` is behind the peer.
    fn returned(&self, last: &Svid) -> Path {
        let tokens = [
            token(&self.ours, &self.theirs, 60),
            token(&self.theirs, last, 60),
            token(last, &self.theirs, 60),
        ];
        path(0, tokens)
    }
}

#[test]
fn a_foreign_peer_speaks_for_members_of_its_own_domain_only() {
    let border = Border::new();
    let (policies, peer) = (Policies::standard(), border.peer());
    policies.check_server(&border.incoming(&border.behind), &peer).unwrap();
    policies.check_client(&border.returned(&border.behind), &peer).unwrap();
    for pretended in [&border.ours, &border.third] {
        assert_eq!(policy(policies.check_server(&border.incoming(pretended), &peer)), "foreign_domain");
        assert_eq!(policy(policies.check_client(&border.returned(pretended), &peer)), "foreign_domain");
        // Registrations, with the same tokens.
        let tokens = |path: Path| -> Vec<Arc<str>> {
            path.path_segments.into_iter().map(|segment| segment.token.into()).collect()
        };
        let registration = tokens(border.incoming(pretended));
        assert_eq!(policy(policies.check_registry_server(&registration, &peer)), "foreign_domain");
        let answer = tokens(border.returned(pretended));
        assert_eq!(policy(policies.check_registry_client(&answer, 0, &peer)), "foreign_domain");
    }
}

#[test]
fn a_domain_between_two_others_may_speak_for_those_that_the_setting_names() {
    let border = Border::new();
    let with = |transit: &[&str]| {
        let transit: Vec<Transit> = transit.iter().map(|text| text.parse().unwrap()).collect();
        Policies::standard().with_transit(&transit)
    };
    let peer = border.peer();
    for (transit, ours, third) in [
        (&["b.test=c.test"][..], false, true),
        (&["b.test=*"], true, true),
        (&["c.test=*", "b.test=other.test"], false, false),
        (&["b.test=other.test", "b.test=a.test"], true, false),
    ] {
        let policies = with(transit);
        for (who, may) in [(&border.ours, ours), (&border.third, third)] {
            assert_eq!(
                policies.check_server(&border.incoming(who), &peer).is_ok(),
                may,
                "{transit:?} {}",
                who.id
            );
            assert_eq!(
                policies.check_client(&border.returned(who), &peer).is_ok(),
                may,
                "{transit:?} {}",
                who.id
            );
        }
    }
    for bad in ["", "b.test", "b.test=", "=c.test", "B_!=x"] {
        assert!(bad.parse::<Transit>().is_err(), "{bad}");
    }
}
