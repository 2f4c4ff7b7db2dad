use hickory_resolver::proto::op::{Edns, MessageType, OpCode, Query};

use super::*;
use vwire_proto::nsm::connection::{Path, PathSegment};

const DEFAULT: &str = r#"{{ index .Labels "podName" }}.{{ .NetworkService }}."#;

fn directory(templates: &[&str], services: &[&str]) -> Directory {
    Directory::new(Naming {
        templates: templates.iter().map(|template| template.parse().unwrap()).collect(),
        services: services.iter().map(|service| (*service).to_owned()).collect(),
        ttl: Duration::from_secs(60),
    })
}

fn connection(service: &str, pod: &str) -> Connection {
    let labels = [("podName".to_owned(), pod.to_owned())].into();
    Connection { id: pod.into(), network_service: service.into(), labels, ..Default::default() }
}

fn names(directory: &Directory, service: &str, pod: &str) -> Vec<String> {
    directory.names(&connection(service, pod)).iter().map(ToString::to_string).collect()
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut query = Message::new(7, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    query
}

fn ask(directory: &Directory, query: &Message, from: [u8; 4]) -> (bool, Reply) {
    match directory.step(query, from.into(), Some([172, 16, 1, 1].into())) {
        Step::Answer(reply) => (false, reply),
        Step::Ask(reply) => (true, reply),
    }
}

fn said(directory: &Directory, name: &str, kind: RecordType) -> (ResponseCode, Vec<String>) {
    let (_, reply) = ask(directory, &query(name, kind), [172, 16, 1, 2]);
    let answers = reply.message.answers.iter().map(|record| record.data.to_string()).collect();
    (reply.message.metadata.response_code, answers)
}

fn with_clients() -> Directory {
    let directory = directory(&[DEFAULT], &["vl3"]);
    let both: [IpAddr; 2] = ["172.16.1.2".parse().unwrap(), "fd00::2".parse().unwrap()];
    directory.records.set("a", &directory.names(&connection("vl3", "a")), &both);
    directory.records.set("b", &directory.names(&connection("vl3", "b")), &both[..1]);
    directory.set_prefixes(["172.16.1.0/16".parse().unwrap(), "0.0.0.0/0".parse().unwrap()]);
    directory
}

#[test]
fn clients_are_named_by_every_template() {
    let two = directory(
        &[
            DEFAULT,
            r#"{{ index .Labels "podName" }}.{{ target .NetworkService }}.{{ domain .NetworkService }}."#,
        ],
        &["vl3", "other@my.cluster3"],
    );
    assert_eq!(names(&two, "vl3", "pod-1"), ["pod-1.vl3."], "dots side by side are one");
    let floating: Vec<String> = two
        .names(&connection("other@my.cluster3", "pod-1"))
        .iter()
        .map(|name| name.iter().map(String::from_utf8_lossy).collect::<Vec<_>>().join("."))
        .collect();
    assert_eq!(floating, ["pod-1.other@my.cluster3", "pod-1.other.my.cluster3"]);
    for none in ["", "a b", "ä", &"x".repeat(64), &"x.".repeat(200)] {
        assert_eq!(names(&two, "vl3", none), Vec::<String>::new(), "{none:?}");
    }
    let mut unlabelled = connection("vl3", "");
    unlabelled.labels.clear();
    let segment = |name: &str| PathSegment { name: name.into(), ..Default::default() };
    unlabelled.path = Some(Path { index: 1, path_segments: vec![segment("nsc-1@a.test"), segment("nsmgr")] });
    assert_eq!(two.names(&unlabelled)[0].to_string(), "nsc-1.vl3.", "its own name");
    assert_eq!(names(&two, "elsewhere", "www"), Vec::<String>::new(), "a service that is not ours");
}

#[test]
fn search_domains_are_what_names_are_in() {
    let names: Vec<Name> = ["t.d1.d2.", "u.d2.", "alone."].map(|name| Name::from_ascii(name).unwrap()).into();
    assert_eq!(search_domains(&names), ["d1.d2", "d2"]);
}

#[test]
fn answers_are_of_the_type_that_is_asked_for() {
    let directory = with_clients();
    let (no_error, no_name) = (ResponseCode::NoError, ResponseCode::NXDomain);
    for (name, kind, code, answers) in [
        ("a.vl3.", RecordType::A, no_error, &["172.16.1.2"][..]),
        ("A.VL3.", RecordType::AAAA, no_error, &["fd00::2"]),
        ("a.vl3.", RecordType::ANY, no_error, &["fd00::2", "172.16.1.2"]),
        ("b.vl3.", RecordType::AAAA, no_error, &[]),
        ("b.vl3.", RecordType::MX, no_error, &[]),
        ("vl3.", RecordType::A, no_error, &[]),
        ("c.vl3.", RecordType::A, no_name, &[]),
        ("x.a.vl3.", RecordType::A, no_name, &[]),
        ("2.1.16.172.in-addr.arpa.", RecordType::PTR, no_error, &["b.vl3.", "a.vl3."]),
        ("2.1.16.172.in-addr.arpa.", RecordType::A, no_error, &[]),
        ("3.1.16.172.in-addr.arpa.", RecordType::PTR, no_name, &[]),
        // Not ours: another server may know.
        ("3.1.17.172.in-addr.arpa.", RecordType::PTR, ResponseCode::Refused, &[]),
        ("www.example.", RecordType::A, ResponseCode::Refused, &[]),
        ("a.vl3.", RecordType::AXFR, ResponseCode::Refused, &[]),
        ("vl3.", RecordType::IXFR, ResponseCode::Refused, &[]),
    ] {
        let answers = answers.iter().map(|answer| (*answer).to_owned()).collect();
        assert_eq!(said(&directory, name, kind), (code, answers), "{name} {kind}");
    }
    let mut chaos = query("a.vl3.", RecordType::A);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(ask(&directory, &chaos, [1; 4]).1.message.metadata.response_code, ResponseCode::Refused);
    directory.records.remove("a");
    assert_eq!(said(&directory, "a.vl3.", RecordType::A), (no_name, vec![]), "gone with its client");
}

#[test]
fn answers_say_what_they_are() {
    let directory = with_clients();
    let mut question = query("A.vl3.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_max_payload(4096).set_dnssec_ok(true);
    question.set_edns(edns);
    let (_, reply) = ask(&directory, &question, [172, 16, 1, 2]);
    let metadata = reply.message.metadata;
    assert!(metadata.authoritative && metadata.recursion_desired && metadata.recursion_available);
    assert_eq!((reply.message.queries.clone(), reply.most), (question.queries.clone(), 1232));
    assert!(reply.message.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok));
    assert_eq!(reply.message.answers[0].ttl, 60);
    assert_eq!(reply.message.answers[0].name.to_string(), "A.vl3.", "written as it was asked");
    let (_, refused) = ask(&directory, &query("www.example.", RecordType::A), [172, 16, 1, 2]);
    assert!(!refused.message.metadata.authoritative && refused.message.edns.is_none());
}

#[test]
fn only_questions_of_clients_are_passed_on() {
    let directory = with_clients();
    let unknown = query("far.vl3.", RecordType::A);
    let client = [172, 16, 1, 2];
    assert!(!ask(&directory, &unknown, client).0, "nobody to ask");
    directory.set_peer_addresses("peers", [IpAddr::from([172, 16, 2, 1])]);
    assert!(ask(&directory, &unknown, client).0);
    assert!(ask(&directory, &query("www.example.", RecordType::A), client).0, "peers may have other names");
    assert!(!ask(&directory, &query("a.vl3.", RecordType::A), client).0, "what is known is known");
    assert!(!ask(&directory, &query("a.vl3.", RecordType::TXT), client).0);
    assert!(!ask(&directory, &unknown, [172, 16, 2, 1]).0, "a peer's");
    assert!(!ask(&directory, &unknown, [172, 16, 1, 1]).0, "our own");
    let mut direct = unknown.clone();
    direct.metadata.recursion_desired = false;
    assert!(!ask(&directory, &direct, client).0, "shall not be passed on");
    directory.set_peer_addresses("peers", None);
    assert!(!ask(&directory, &unknown, client).0);
}

#[test]
fn peers_are_by_who_names_them() {
    let directory = with_clients();
    let server = |n: u8| SocketAddr::from(([172, 16, n, 1], 53));
    directory.set_peers("one", [server(2), server(3)]);
    directory.set_peers("two", [server(3)]);
    assert_eq!(directory.peers(), [server(2), server(3)]);
    directory.set_peers("one", None);
    assert_eq!(directory.peers(), [server(3)]);
    directory.set_peers("many", (0..2000_u32).map(|n| SocketAddr::from((n.to_be_bytes(), 53))));
    assert_eq!(directory.peers().len(), MAX_PEERS);
}

#[test]
fn what_is_ours_follows_from_the_templates() {
    let floating = directory(
        &[
            r#"{{ index .Labels "podName" }}.{{ target .NetworkService }}.{{ domain .NetworkService }}."#,
            "fixed.local.",
        ],
        &["vl3-dns@my.cluster3"],
    );
    for (name, ours) in [
        ("x.vl3-dns.my.cluster3.", true),
        ("x.my.cluster3.", false),
        ("other.local.", true),
        ("local.", true),
        ("example.", false),
    ] {
        assert_eq!(floating.is_ours(&LowerName::from(Name::from_ascii(name).unwrap())), ours, "{name}");
    }
    let bare = directory(&[r#"{{ index .Labels "podName" }}."#], &["vl3"]);
    assert!(bare.zones.is_empty(), "not everything is ours");
}
