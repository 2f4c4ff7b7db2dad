//! What agrees with a query: all that the query sets must agree, what it leaves empty agrees with everything.
//!
//! The rules are those of the Go registries (sdk, `pkg/tools/matchutils`), odd ones included: an endpoint's URL agrees if it
//! *contains* the queried one, and times are compared by their seconds.

use vwire_proto::nsm::registry::{NetworkService, NetworkServiceEndpoint};

/// True if `service` is one that `query` asks for.
pub fn service(query: &NetworkService, service: &NetworkService) -> bool {
    (query.name.is_empty() || query.name == service.name)
        && (query.payload.is_empty() || query.payload == service.payload)
        && (query.matches.is_empty() || query.matches == service.matches)
}

/// True if `endpoint` is one that `query` asks for.
pub fn endpoint(query: &NetworkServiceEndpoint, endpoint: &NetworkServiceEndpoint) -> bool {
    let seconds = |e: &NetworkServiceEndpoint| e.expiration_time.as_ref().map_or(0, |time| time.seconds);
    (query.name.is_empty() || query.name == endpoint.name)
        && query.network_service_names.iter().all(|name| endpoint.network_service_names.contains(name))
        && labels(query, endpoint)
        && (query.expiration_time.is_none() || seconds(query) == seconds(endpoint))
        && endpoint.url.contains(&query.url)
}

fn labels(query: &NetworkServiceEndpoint, endpoint: &NetworkServiceEndpoint) -> bool {
    query.network_service_labels.iter().all(|(service, wanted)| {
        endpoint.network_service_labels.get(service).is_some_and(|has| {
            wanted.labels.iter().all(|(key, value)| has.labels.get(key).is_some_and(|v| v == value))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost_types::Timestamp;
    use vwire_proto::nsm::registry::{Match, NetworkServiceLabels};

    fn with_labels(service: &str, labels: &[(&str, &str)]) -> NetworkServiceEndpoint {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        NetworkServiceEndpoint {
            network_service_labels: [(service.to_owned(), NetworkServiceLabels { labels })].into(),
            ..Default::default()
        }
    }

    #[test]
    fn services_agree_in_name_payload_and_matches() {
        let rule = |fallthrough| Match { fallthrough, ..Default::default() };
        let there = NetworkService {
            name: "icmp".into(),
            payload: "IP".into(),
            matches: vec![rule(true)],
            ..Default::default()
        };
        let query = |name: &str, payload: &str, matches| NetworkService {
            name: name.into(),
            payload: payload.into(),
            matches,
            ..Default::default()
        };
        assert!(service(&NetworkService::default(), &there));
        assert!(service(&query("icmp", "IP", vec![rule(true)]), &there));
        assert!(!service(&query("icm", "", vec![]), &there), "names are exact");
        assert!(!service(&query("", "ETHERNET", vec![]), &there));
        assert!(!service(&query("", "", vec![rule(false)]), &there));
    }

    #[test]
    fn endpoints_agree_in_all_that_is_asked() {
        let there = NetworkServiceEndpoint {
            name: "nse-1".into(),
            network_service_names: vec!["a".into(), "b".into()],
            url: "tcp://10.0.0.1:5001".into(),
            expiration_time: Some(Timestamp { seconds: 7, nanos: 5 }),
            ..with_labels("a", &[("app", "foo"), ("zone", "1")])
        };
        let ask = NetworkServiceEndpoint::default;
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        let at = |seconds| Some(Timestamp { seconds, nanos: 0 });
        let yes = [
            ask(),
            NetworkServiceEndpoint { name: "nse-1".into(), ..ask() },
            NetworkServiceEndpoint { network_service_names: names(&["b"]), ..ask() },
            NetworkServiceEndpoint { network_service_names: names(&["b", "a", "a"]), ..ask() },
            NetworkServiceEndpoint { url: "10.0.0.1".into(), ..ask() },
            NetworkServiceEndpoint { expiration_time: at(7), ..ask() },
            with_labels("a", &[("app", "foo")]),
            with_labels("a", &[]),
        ];
        let no = [
            NetworkServiceEndpoint { name: "nse".into(), ..ask() },
            NetworkServiceEndpoint { network_service_names: names(&["a", "c"]), ..ask() },
            NetworkServiceEndpoint { url: "tcp://10.0.0.2".into(), ..ask() },
            NetworkServiceEndpoint { expiration_time: at(8), ..ask() },
            with_labels("a", &[("app", "bar")]),
            with_labels("a", &[("other", "")]),
            with_labels("b", &[]),
        ];
        yes.iter().for_each(|query| assert!(endpoint(query, &there), "{query:?}"));
        no.iter().for_each(|query| assert!(!endpoint(query, &there), "{query:?}"));
    }
}
