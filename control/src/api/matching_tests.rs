use super::*;
use crate::api::registry::{Destination, Metadata, NetworkServiceLabels};
use proptest::prelude::*;
use std::collections::BTreeMap;

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn endpoint(name: &str, service: &str, pairs: &[(&str, &str)]) -> NetworkServiceEndpoint {
    let of_service = NetworkServiceLabels { labels: labels(pairs) };
    NetworkServiceEndpoint {
        name: name.to_owned(),
        network_service_names: vec![service.to_owned()],
        network_service_labels: BTreeMap::from([(service.to_owned(), of_service)]),
        ..Default::default()
    }
}

fn route(pairs: &[(&str, &str)], weight: u32) -> Destination {
    Destination { destination_selector: labels(pairs), weight }
}

fn service(matches: Vec<Match>) -> NetworkService {
    NetworkService { name: "s".to_owned(), matches, ..Default::default() }
}

fn names(endpoints: &[NetworkServiceEndpoint], chosen: &[Chosen]) -> Vec<String> {
    chosen.iter().map(|choice| endpoints[choice.index].name.clone()).collect()
}

#[test]
fn a_service_without_matches_takes_every_endpoint_that_is_alive() {
    let mut gone = endpoint("gone", "s", &[]);
    gone.expiration_time = Some(std::time::SystemTime::UNIX_EPOCH.into());
    let endpoints = [endpoint("a", "s", &[]), gone, endpoint("b", "s", &[])];
    let said = explain(&labels(&[]), &service(vec![]), &endpoints);
    assert_eq!(names(&endpoints, &said.chosen), ["a", "b"]);
    assert_eq!(
        said.refused,
        [Refusal { endpoint: "gone".into(), reason: "its registration has expired".into() }]
    );
}

#[test]
fn routes_give_the_order_and_an_endpoint_is_chosen_once() {
    let endpoints = [endpoint("a", "s", &[("v", "1")]), endpoint("b", "s", &[("v", "2"), ("x", "y")])];
    let one = Match { routes: vec![route(&[("v", "2")], 3), route(&[], 1)], ..Default::default() };
    let chosen = select(&labels(&[]), &service(vec![one]), &endpoints);
    assert_eq!(chosen, [Chosen { index: 1, weight: 3 }, Chosen { index: 0, weight: 1 }]);
}

#[test]
fn an_empty_match_ends_the_search_unless_it_falls_through() {
    let endpoints = [endpoint("a", "s", &[("node", "n1")])];
    let strict = Match {
        routes: vec![route(&[("node", "{{.nodeName}}")], 0)],
        fallthrough: false,
        ..Default::default()
    };
    let any = Match { routes: vec![route(&[], 0)], ..Default::default() };
    let client = labels(&[("nodeName", "n2")]);
    assert!(select(&client, &service(vec![strict.clone(), any.clone()]), &endpoints).is_empty());
    let loose = Match { fallthrough: true, ..strict };
    assert_eq!(select(&client, &service(vec![loose, any]), &endpoints).len(), 1);
}

#[test]
fn metadata_without_routes_takes_all() {
    let endpoints = [endpoint("a", "s", &[]), endpoint("b", "s", &[])];
    let one =
        Match { metadata: Some(Metadata { labels: labels(&[("p2mp", "true")]) }), ..Default::default() };
    assert_eq!(select(&labels(&[]), &service(vec![one]), &endpoints).len(), 2);
    assert!(select(&labels(&[]), &service(vec![Match::default()]), &endpoints).is_empty());
}

#[test]
fn a_refusal_names_every_candidate_and_its_reason() {
    let endpoints = [endpoint("a", "s", &[("v", "1")]), endpoint("b", "s", &[])];
    let one = Match { routes: vec![route(&[("v", "2")], 0)], ..Default::default() };
    let said = explain(&labels(&[("app", "foo")]), &service(vec![one.clone()]), &endpoints).to_string();
    assert_eq!(
        said,
        "no endpoint of `s` matches app=foo; 2 candidates refused: a: v=1 where v=2 is asked for; \
         b: it has 0 labels where 1 are asked for"
    );
    let other = Match { source_selector: labels(&[("app", "bar")]), ..one };
    let said = explain(&labels(&[("app", "foo")]), &service(vec![other]), &endpoints[..1]).to_string();
    assert_eq!(
        said,
        "no endpoint of `s` matches app=foo; none of the service's 1 matches is for these labels; \
         1 candidate refused: a: no match is for this client (app=foo where app=bar is asked for)"
    );
    let said = explain(&labels(&[]), &service(vec![]), &[] as &[NetworkServiceEndpoint]).to_string();
    assert_eq!(said, "no endpoint of `s` matches no labels; none is registered");
}

#[test]
fn forwarders_are_chosen_by_metadata_and_by_default_point_to_point() {
    let forwarders = [
        endpoint("p2mp", "forwarder", &[("p2mp", "true")]),
        endpoint("p2p", "forwarder", &[("p2p", "true")]),
        endpoint("bare", "other", &[]),
    ];
    let choose =
        |service: &NetworkService| select_forwarders(&labels(&[]), service, "forwarder", &forwarders);
    assert_eq!(choose(&service(vec![])).unwrap(), [0, 1, 2]);
    let plain = Match { routes: vec![route(&[], 0)], ..Default::default() };
    assert_eq!(choose(&service(vec![plain.clone()])).unwrap(), [1]);
    let p2mp = Match { metadata: Some(Metadata { labels: labels(&[("p2mp", "true")]) }), ..plain.clone() };
    assert_eq!(choose(&service(vec![p2mp])).unwrap(), [0]);
    let none = Match { metadata: Some(Metadata { labels: labels(&[("sriov", "true")]) }), ..plain.clone() };
    let refused = choose(&service(vec![none.clone()])).unwrap_err();
    assert_eq!(refused.len(), 3);
    assert_eq!(refused[2].reason, "it has no labels for `forwarder`");
    let falling = Match { fallthrough: true, ..none };
    assert_eq!(choose(&service(vec![falling, plain])).unwrap(), [1]);
}

fn candidates(weights: &[u32]) -> Vec<Candidate> {
    let one = |(i, weight): (usize, &u32)| Candidate {
        endpoint: Arc::new(endpoint(&i.to_string(), "s", &[])),
        weight: *weight,
        socket: None,
    };
    weights.iter().enumerate().map(one).collect()
}

fn firsts(weights: &[u32], turns: u64) -> Vec<usize> {
    let mut counts = vec![0; weights.len()];
    for turn in 0..turns {
        let mut order = candidates(weights);
        in_turn(&mut order, turn);
        counts[order[0].endpoint.name.parse::<usize>().unwrap()] += 1;
    }
    counts
}

#[test]
fn equal_weights_take_turns_and_others_get_their_share() {
    assert_eq!(firsts(&[0, 0, 0], 9), [3, 3, 3]);
    assert_eq!(firsts(&[7, 7], 10), [5, 5]);
    assert_eq!(firsts(&[3, 1], 40), [30, 10]);
    assert_eq!(firsts(&[0, 2, 1], 30), [0, 20, 10], "weight 0 beside others is the last resort");
    assert_eq!(firsts(&[0, 5], 10), [0, 10]);
    assert_eq!(firsts(&[u32::MAX, u32::MAX, 1], 10), [10, 0, 0]);
}

#[test]
fn each_service_has_its_turns() {
    let turns = Turns::default();
    assert_eq!([turns.next("a"), turns.next("a"), turns.next("b"), turns.next("a")], [0, 1, 0, 2]);
}

/// The rules once more, as a slow and plain function.
fn model(client: &Labels, service: &NetworkService, endpoints: &[NetworkServiceEndpoint]) -> Vec<String> {
    let all: Vec<String> = endpoints.iter().map(|endpoint| endpoint.name.clone()).collect();
    if service.matches.is_empty() {
        return all;
    }
    let subset = |have: &Labels, want: &Labels| {
        have.len() >= want.len() && want.iter().all(|(key, value)| have.get(key).map_or("", |v| v) == value)
    };
    for one in &service.matches {
        if !subset(client, &one.source_selector) {
            continue;
        }
        let mut found: Vec<String> = Vec::new();
        for route in &one.routes {
            for endpoint in endpoints {
                let have = endpoint.network_service_labels.get("s").map(|labels| labels.labels.clone());
                if subset(&have.unwrap_or_default(), &route.destination_selector)
                    && !found.contains(&endpoint.name)
                {
                    found.push(endpoint.name.clone());
                }
            }
        }
        if found.is_empty() && one.fallthrough {
            continue;
        }
        return if found.is_empty() && one.metadata.is_some() && one.routes.is_empty() { all } else { found };
    }
    Vec::new()
}

prop_compose! {
    fn some_labels()(map in proptest::collection::btree_map("[ab]", "[xy]?", 0..3)) -> Labels { map }
}

prop_compose! {
    fn some_match()(
        source_selector in some_labels(),
        routes in proptest::collection::vec(some_labels(), 0..3),
        fallthrough in any::<bool>(),
        metadata in any::<bool>(),
    ) -> Match {
        Match {
            source_selector,
            routes: routes.into_iter().map(|destination_selector| Destination { destination_selector, weight: 0 }).collect(),
            fallthrough,
            metadata: metadata.then(Metadata::default),
        }
    }
}

proptest! {
    #[test]
    fn matching_is_what_the_model_says_and_is_fully_explained(
        client in some_labels(),
        matches in proptest::collection::vec(some_match(), 0..4),
        of_endpoints in proptest::collection::vec(some_labels(), 0..5),
    ) {
        let endpoints: Vec<_> = of_endpoints.into_iter().enumerate().map(|(i, labels)| {
            let mut one = endpoint(&format!("e{i}"), "s", &[]);
            one.network_service_labels.get_mut("s").unwrap().labels = labels;
            one
        }).collect();
        let service = service(matches);
        let said = explain(&client, &service, &endpoints);
        prop_assert_eq!(names(&endpoints, &said.chosen), model(&client, &service, &endpoints));
        prop_assert_eq!(&said.chosen, &select(&client, &service, &endpoints));
        prop_assert_eq!(said.chosen.len() + said.refused.len(), endpoints.len());
        prop_assert!(said.refused.iter().all(|refusal| !refusal.reason.is_empty()));
    }

    #[test]
    fn turns_keep_every_candidate(weights in proptest::collection::vec(0u32..4, 0..6), turn in any::<u64>()) {
        let mut order = candidates(&weights);
        in_turn(&mut order, turn);
        let mut left: Vec<usize> = order.iter().map(|c| c.endpoint.name.parse().unwrap()).collect();
        left.sort_unstable();
        prop_assert_eq!(left, (0..weights.len()).collect::<Vec<_>>());
    }
}
