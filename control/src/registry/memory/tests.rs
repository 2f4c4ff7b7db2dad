//! The store, called directly.

use super::*;
use crate::registry::Owner;
use std::collections::BTreeMap;
use tonic::Code;
use vwire_proto::nsm::registry::NetworkServiceLabels;

const TIME: Duration = Duration::from_secs(5);

fn call() -> RegistryCall {
    RegistryCall::internal("test", TIME)
}

fn call_of(identity: &str) -> RegistryCall {
    let id: Arc<str> = format!("spiffe://example.org/{identity}").into();
    RegistryCall { owner: Some(Owner { identity: Arc::clone(&id), asserter: id }), ..call() }
}

fn endpoint(name: &str, services: &[&str]) -> NetworkServiceEndpoint {
    NetworkServiceEndpoint {
        name: name.into(),
        network_service_names: services.iter().map(|s| (*s).to_owned()).collect(),
        url: format!("tcp://{name}:5001"),
        ..Default::default()
    }
}

fn service(name: &str) -> NetworkService {
    NetworkService { name: name.into(), ..Default::default() }
}

fn in_time(millis: i64) -> Option<Timestamp> {
    let since_epoch = SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let millis = i64::try_from(since_epoch.as_millis()).unwrap() + millis;
    let nanos = i32::try_from(millis % 1000).unwrap() * 1_000_000;
    Some(Timestamp { seconds: millis / 1000, nanos })
}

async fn names(store: &Store, query: NetworkServiceEndpoint) -> Vec<String> {
    let found = store.find_endpoints(&mut call(), query, false).await.unwrap();
    let mut names: Vec<_> = found.map(|event| event.unwrap().endpoint.name.clone()).collect().await;
    names.sort();
    names
}

async fn next(watch: &mut Found<EndpointEvent>) -> (String, bool) {
    let event = tokio::time::timeout(TIME, watch.next()).await.expect("an event in time").unwrap().unwrap();
    (event.endpoint.name.clone(), event.deleted)
}

#[tokio::test]
async fn a_service_without_payload_gets_ip() {
    let store = Store::new(Settings::default());
    assert_eq!(store.register_service(&mut call(), service("icmp")).await.unwrap().payload, "IP");
    let found = store.find_services(&mut call(), service("icmp"), false).await.unwrap();
    let found: Vec<_> = found.map(|event| event.unwrap().service.payload.clone()).collect().await;
    assert_eq!(found, ["IP"]);
    store.unregister_service(&mut call(), service("icmp")).await.unwrap();
    assert!(store.is_empty());
}

#[tokio::test]
async fn endpoints_are_found_by_name_service_label_and_all() {
    let store = Store::new(Settings::default());
    for (name, services) in [("a", &["x"][..]), ("b", &["x", "y"]), ("c", &["y"])] {
        store.register_endpoint(&mut call(), endpoint(name, services)).await.unwrap();
    }
    let labels = NetworkServiceLabels { labels: BTreeMap::from([("k".into(), "v".into())]) };
    let labelled = NetworkServiceEndpoint {
        network_service_labels: BTreeMap::from([("z".into(), labels.clone())]),
        ..endpoint("d", &[])
    };
    store.register_endpoint(&mut call(), labelled).await.unwrap();
    assert_eq!(
        names(&store, endpoint("", &[])).await,
        Vec::<String>::new(),
        "the url `tcp://:5001` is nobody's"
    );
    let ask = |name: &str, services: &[&str]| NetworkServiceEndpoint {
        url: String::new(),
        ..endpoint(name, services)
    };
    assert_eq!(names(&store, ask("", &[])).await, ["a", "b", "c", "d"]);
    assert_eq!(names(&store, ask("b", &[])).await, ["b"]);
    assert_eq!(names(&store, ask("b", &["z"])).await, Vec::<String>::new());
    assert_eq!(names(&store, ask("", &["x"])).await, ["a", "b"]);
    assert_eq!(names(&store, ask("", &["y", "x"])).await, ["b"]);
    let by_label = NetworkServiceEndpoint {
        network_service_labels: BTreeMap::from([("z".into(), labels)]),
        ..ask("", &[])
    };
    assert_eq!(names(&store, by_label).await, ["d"]);
    let by_url = NetworkServiceEndpoint { url: "//c:".into(), ..ask("", &[]) };
    assert_eq!(names(&store, by_url).await, ["c"]);
}

#[tokio::test]
async fn a_renewed_endpoint_moves_between_services_and_keeps_its_first_time() {
    let store = Store::new(Settings::default());
    let first = store.register_endpoint(&mut call(), endpoint("a", &["x"])).await.unwrap();
    let again = store.register_endpoint(&mut call(), endpoint("a", &["y"])).await.unwrap();
    assert_eq!(first.initial_registration_time, again.initial_registration_time);
    assert!(again.expiration_time.unwrap().seconds >= first.expiration_time.unwrap().seconds);
    let ask = |s: &str| NetworkServiceEndpoint { url: String::new(), ..endpoint("", &[s]) };
    assert_eq!(names(&store, ask("x")).await, Vec::<String>::new());
    assert_eq!(names(&store, ask("y")).await, ["a"]);
    let given = NetworkServiceEndpoint { initial_registration_time: in_time(-900_000), ..endpoint("b", &[]) };
    let kept = store.register_endpoint(&mut call(), given.clone()).await.unwrap();
    assert_eq!(kept.initial_registration_time, given.initial_registration_time);
}

#[tokio::test]
async fn what_is_not_renewed_goes_and_watchers_are_told_the_last_of_it() {
    let store = Store::new(Settings::default());
    let mut watch = store.find_endpoints(&mut call(), NetworkServiceEndpoint::default(), true).await.unwrap();
    let short = NetworkServiceEndpoint { expiration_time: in_time(200), ..endpoint("short", &["x"]) };
    store.register_endpoint(&mut call_of("a"), endpoint("long", &["x"])).await.unwrap();
    store.register_endpoint(&mut call_of("a"), short).await.unwrap();
    assert_eq!(next(&mut watch).await, ("long".into(), false));
    assert_eq!(next(&mut watch).await, ("short".into(), false));
    let gone = tokio::time::timeout(TIME, watch.next()).await.unwrap().unwrap().unwrap();
    assert!(gone.deleted);
    assert_eq!(gone.endpoint.url, "tcp://short:5001");
    // The owner went with the record: anybody may have the name now.
    store.register_endpoint(&mut call_of("b"), endpoint("short", &["x"])).await.unwrap();
}

#[tokio::test]
async fn the_token_ends_a_registration_too() {
    let store = Store::new(Settings::default());
    let mut short = RegistryCall { not_after: in_time(2000), ..call() };
    let registered = store.register_endpoint(&mut short, endpoint("a", &["x"])).await.unwrap();
    assert_eq!(registered.expiration_time, short.not_after);
    let mut watch = store.find_endpoints(&mut call(), NetworkServiceEndpoint::default(), true).await.unwrap();
    assert_eq!(next(&mut watch).await, ("a".into(), false));
    assert_eq!(next(&mut watch).await, ("a".into(), true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_expiries_leave_nothing() {
    let store = Store::new(Settings { expire: Duration::from_millis(1500), ..Settings::default() });
    for n in 0..100_000 {
        let mut call = call_of(&format!("identity-{}", n % 1000));
        let services = [format!("service-{}", n % 100)];
        let endpoint = endpoint(&format!("nse-{n}"), &services.each_ref().map(String::as_str));
        store.register_endpoint(&mut call, endpoint).await.unwrap();
    }
    tokio::time::timeout(Duration::from_secs(60), async {
        while !store.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("all expire");
}

#[tokio::test]
async fn a_name_belongs_to_who_registered_it() {
    let store = Store::new(Settings::default());
    store.register_endpoint(&mut call_of("a"), endpoint("e", &["x"])).await.unwrap();
    store.register_service(&mut call_of("a"), service("s")).await.unwrap();
    let b = &mut call_of("b");
    let refused = [
        store.register_endpoint(b, endpoint("e", &["evil"])).await.unwrap_err(),
        store.unregister_endpoint(b, endpoint("e", &[])).await.unwrap_err(),
        store.register_service(b, service("s")).await.unwrap_err(),
        store.unregister_service(b, service("s")).await.unwrap_err(),
    ];
    for status in refused {
        assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    }
    let ask = NetworkServiceEndpoint { url: String::new(), ..endpoint("", &["x"]) };
    assert_eq!(names(&store, ask).await, ["e"], "what it was before");
    store.register_endpoint(&mut call_of("a"), endpoint("e", &["x"])).await.unwrap();
    store.unregister_endpoint(&mut call_of("a"), endpoint("e", &[])).await.unwrap();
    store.register_endpoint(&mut call_of("b"), endpoint("e", &[])).await.unwrap();
}

#[tokio::test]
async fn bad_registrations_are_refused_by_name_of_the_field_or_limit() {
    let limits = Limits { per_identity: 2, total: 3, labels: 4, watches: 1, ..Limits::default() };
    let store = Store::new(Settings { limits, ..Settings::default() });
    let many = |n: usize| (0..n).map(|n| (n.to_string(), String::new())).collect();
    let labelled = NetworkServiceEndpoint {
        network_service_labels: BTreeMap::from([("x".into(), NetworkServiceLabels { labels: many(4) })]),
        ..endpoint("e", &["x"])
    };
    let names: Vec<String> = (0..65).map(|n| n.to_string()).collect();
    let services: Vec<&str> = names.iter().map(String::as_str).collect();
    let bad = [
        (endpoint("", &["x"]), "name: "),
        (endpoint(&"n".repeat(1025), &["x"]), "name bytes: 1025"),
        (labelled, "labels: 5"),
        (endpoint("e", &services), "network_service_names: 65"),
        (NetworkServiceEndpoint { url: "u".repeat(70_000), ..endpoint("e", &[]) }, "encoded bytes: 70"),
        (
            NetworkServiceEndpoint { expiration_time: in_time(-1000), ..endpoint("e", &[]) },
            "expiration_time: ",
        ),
    ];
    for (endpoint, told) in bad {
        let status = store.register_endpoint(&mut call(), endpoint).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().starts_with(told), "{}", status.message());
    }
    assert_eq!(
        store.register_service(&mut call(), service("")).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    assert!(store.is_empty());
    for name in ["1", "2"] {
        store.register_endpoint(&mut call_of("a"), endpoint(name, &[])).await.unwrap();
    }
    let status = store.register_endpoint(&mut call_of("a"), endpoint("3", &[])).await.unwrap_err();
    assert_eq!((status.code(), status.message().contains("identity has 2")), (Code::ResourceExhausted, true));
    store.register_endpoint(&mut call_of("a"), endpoint("2", &["renewed"])).await.unwrap();
    store.register_endpoint(&mut call_of("b"), endpoint("3", &[])).await.unwrap();
    let status = store.register_endpoint(&mut call_of("b"), endpoint("4", &[])).await.unwrap_err();
    assert!(status.message().contains("there are 3 endpoints"), "{status}");
    let watch = || async { store.find_endpoints(&mut call(), endpoint("", &[]), true).await };
    let held = watch().await.unwrap();
    assert_eq!(watch().await.err().unwrap().code(), Code::ResourceExhausted);
    drop(held);
    assert!(watch().await.is_ok());
}

#[tokio::test]
async fn watchers_see_what_is_there_and_what_changes_by_their_query() {
    let store = Store::new(Settings::default());
    store.register_endpoint(&mut call(), endpoint("a", &["x"])).await.unwrap();
    let ask = |name: &str, services: &[&str]| NetworkServiceEndpoint {
        url: String::new(),
        ..endpoint(name, services)
    };
    let mut all = store.find_endpoints(&mut call(), ask("", &[]), true).await.unwrap();
    let mut by_name = store.find_endpoints(&mut call(), ask("a", &[]), true).await.unwrap();
    let mut by_service = store.find_endpoints(&mut call(), ask("", &["y"]), true).await.unwrap();
    assert_eq!(next(&mut all).await, ("a".into(), false));
    assert_eq!(next(&mut by_name).await, ("a".into(), false));
    store.register_endpoint(&mut call(), endpoint("b", &["y"])).await.unwrap();
    store.register_endpoint(&mut call(), endpoint("a", &["x"])).await.unwrap();
    store.unregister_endpoint(&mut call(), ask("b", &[])).await.unwrap();
    assert_eq!(next(&mut by_service).await, ("b".into(), true), "the latest of a name is enough");
    assert_eq!(next(&mut by_name).await, ("a".into(), false), "a renewal is a change");
    assert_eq!(next(&mut all).await, ("b".into(), true));
    assert_eq!(next(&mut all).await, ("a".into(), false));
    // An endpoint that changes its service is gone for those who asked for the old one.
    store.register_endpoint(&mut call(), endpoint("b", &["y"])).await.unwrap();
    assert_eq!(next(&mut by_service).await, ("b".into(), false));
    store.register_endpoint(&mut call(), endpoint("b", &["z"])).await.unwrap();
    assert_eq!(next(&mut by_service).await, ("b".into(), true));
    drop((all, by_name, by_service));
    assert_eq!(read(&store.0.endpoints).watchers.len(), 0);
}

#[tokio::test]
async fn a_watcher_that_does_not_read_is_disconnected_and_holds_up_nobody() {
    let limits = Limits { watch_backlog: 100, ..Limits::default() };
    let store = Store::new(Settings { limits, ..Settings::default() });
    let everything = NetworkServiceEndpoint::default;
    let mut stalled = store.find_endpoints(&mut call(), everything(), true).await.unwrap();
    let mut reading = store.find_endpoints(&mut call(), everything(), true).await.unwrap();
    for n in 0..1000 {
        let name = format!("nse-{n}");
        store.register_endpoint(&mut call(), endpoint(&name, &[])).await.unwrap();
        assert_eq!(next(&mut reading).await, (name, false));
    }
    // Renewals of the same names take no more room.
    let mut coalescing = store.find_endpoints(&mut call(), endpoint("nse-1", &[]), true).await.unwrap();
    for _ in 0..1000 {
        store.register_endpoint(&mut call(), endpoint("nse-1", &[])).await.unwrap();
    }
    assert_eq!(next(&mut coalescing).await, ("nse-1".into(), false));
    assert_eq!(next(&mut coalescing).await, ("nse-1".into(), false));
    let status = stalled.next().await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("100 changes not read"), "{status}");
    assert!(stalled.next().await.is_none());
    assert_eq!(read(&store.0.endpoints).watchers.len(), 2);
}

#[tokio::test]
async fn names_keep_their_owners_when_the_registry_starts_anew() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("registry.redb");
    let store = Store::open(Settings::default(), &file).unwrap();
    let first = store.register_endpoint(&mut call_of("a"), endpoint("e", &["x"])).await.unwrap();
    let short = NetworkServiceEndpoint { expiration_time: in_time(300), ..endpoint("short", &["x"]) };
    store.register_endpoint(&mut call_of("a"), short).await.unwrap();
    store.register_endpoint(&mut call_of("a"), endpoint("ended", &["x"])).await.unwrap();
    store.register_service(&mut call_of("a"), service("s")).await.unwrap();
    store.unregister_endpoint(&mut call_of("a"), endpoint("ended", &[])).await.unwrap();
    store.flush().await;
    drop(store);
    tokio::time::sleep(Duration::from_millis(400)).await;
    // The file is free when the former store's tasks have seen its end.
    let store = loop {
        match Store::open(Settings::default(), &file) {
            Ok(store) => break store,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    let ask = NetworkServiceEndpoint { url: String::new(), ..endpoint("", &["x"]) };
    // What expired meanwhile is gone, or goes in its time.
    while names(&store, ask.clone()).await != ["e"] {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for told in [
        store.register_endpoint(&mut call_of("b"), endpoint("e", &["x"])).await.unwrap_err(),
        store.unregister_service(&mut call_of("b"), service("s")).await.unwrap_err(),
    ] {
        assert_eq!(told.code(), Code::PermissionDenied, "{told}");
    }
    let again = store.register_endpoint(&mut call_of("a"), endpoint("e", &["x"])).await.unwrap();
    assert_eq!(again.initial_registration_time, first.initial_registration_time);
    assert_eq!(store.counts(), (1, 1));
}

#[tokio::test]
async fn a_file_that_is_none_is_refused_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("registry.redb");
    std::fs::write(&file, "something else").unwrap();
    let told = Store::open(Settings::default(), &file).err().unwrap().to_string();
    assert!(told.contains("registry.redb"), "{told}");
}
