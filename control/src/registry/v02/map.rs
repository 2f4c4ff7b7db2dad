//! The old messages as today's, and back.

use std::collections::BTreeMap;

use tonic::Status;
use vwire_proto::nsm::registry as v1;
use vwire_proto::nsm02 as old;

use crate::api::mechanism::PAYLOAD_IP;

/// The label by which an endpoint's manager is remembered; today's endpoints have no place for its name.
pub const MANAGER: &str = "networkServiceManagerName";
/// What the old registry says of all that it knows.
const RUNNING: &str = "RUNNING";

/// What a registration says of the service and of the endpoint.
pub fn registration(
    of: old::NseRegistration,
) -> Result<(v1::NetworkService, v1::NetworkServiceEndpoint), Status> {
    let missing = |field: &str| Status::invalid_argument(format!("{field}: missing"));
    let service = of.network_service.ok_or_else(|| missing("network_service"))?;
    let manager = of.network_service_manager.ok_or_else(|| missing("network_service_manager"))?;
    let endpoint = of.network_service_endpoint.ok_or_else(|| missing("network_service_endpoint"))?;
    for (field, value) in [
        ("network_service.name", &service.name),
        ("network_service_endpoint.name", &endpoint.name),
        ("network_service_manager.url", &manager.url),
    ] {
        if value.is_empty() {
            return Err(missing(field));
        }
    }
    if !endpoint.network_service_name.is_empty() && endpoint.network_service_name != service.name {
        return Err(Status::invalid_argument(format!(
            "network_service_endpoint.network_service_name: `{}` in a registration of `{}`",
            endpoint.network_service_name, service.name
        )));
    }
    let mut labels = endpoint.labels;
    labels.insert(MANAGER.to_owned(), qualified(&manager));
    let endpoint = v1::NetworkServiceEndpoint {
        name: endpoint.name,
        network_service_names: vec![service.name.clone()],
        network_service_labels: BTreeMap::from([(service.name.clone(), v1::NetworkServiceLabels { labels })]),
        url: with_scheme(&manager.url),
        ..Default::default()
    };
    Ok((new_service(service), endpoint))
}

/// Managers of several clusters may have one name: their addresses tell them apart, as the old server does it. One that comes back to us
/// has it already.
fn qualified(manager: &old::NetworkServiceManager) -> String {
    let mark = format!("_{}", manager.url.replace(':', "_"));
    if manager.name.ends_with(&mark) {
        manager.name.clone()
    } else {
        format!("{}{mark}", manager.name).replace(':', "_")
    }
}

fn with_scheme(url: &str) -> String {
    if url.contains("://") { url.to_owned() } else { format!("tcp://{url}") }
}

fn new_service(service: old::NetworkService) -> v1::NetworkService {
    let route = |route: old::Destination| v1::Destination {
        destination_selector: route.destination_selector,
        weight: route.weight,
    };
    let matching = |of: old::Match| v1::Match {
        source_selector: of.source_selector,
        routes: of.routes.into_iter().map(route).collect(),
        ..Default::default()
    };
    let payload = if service.payload.is_empty() { PAYLOAD_IP.to_owned() } else { service.payload };
    v1::NetworkService {
        name: service.name,
        payload,
        matches: service.matches.into_iter().map(matching).collect(),
        ..Default::default()
    }
}

/// True if two services are defined alike; whose they are plays no part.
pub fn same(a: &v1::NetworkService, b: &v1::NetworkService) -> bool {
    (&a.name, &a.payload, &a.matches) == (&b.name, &b.payload, &b.matches)
}

fn old_service(service: &v1::NetworkService) -> old::NetworkService {
    let route = |route: &v1::Destination| old::Destination {
        destination_selector: route.destination_selector.clone(),
        weight: route.weight,
    };
    let matching = |of: &v1::Match| old::Match {
        source_selector: of.source_selector.clone(),
        routes: of.routes.iter().map(route).collect(),
    };
    old::NetworkService {
        name: service.name.clone(),
        payload: service.payload.clone(),
        matches: service.matches.iter().map(matching).collect(),
    }
}

fn manager(service: &str, endpoint: &v1::NetworkServiceEndpoint) -> old::NetworkServiceManager {
    let url = endpoint.url.strip_prefix("tcp://").unwrap_or(&endpoint.url).to_owned();
    let labels = endpoint.network_service_labels.get(service);
    let name = labels.and_then(|labels| labels.labels.get(MANAGER)).cloned();
    old::NetworkServiceManager {
        // One that was registered by today's calls has but an address.
        name: name.unwrap_or_else(|| url.replace(':', "_")),
        url,
        expiration_time: endpoint.expiration_time,
        state: RUNNING.to_owned(),
    }
}

fn old_endpoint(
    service: &v1::NetworkService,
    endpoint: &v1::NetworkServiceEndpoint,
) -> old::NetworkServiceEndpoint {
    let labels = endpoint.network_service_labels.get(&service.name).cloned().unwrap_or_default().labels;
    old::NetworkServiceEndpoint {
        name: endpoint.name.clone(),
        payload: service.payload.clone(),
        network_service_name: service.name.clone(),
        network_service_manager_name: manager(&service.name, endpoint).name,
        labels: labels.into_iter().filter(|(key, _)| key != MANAGER).collect(),
        state: RUNNING.to_owned(),
    }
}

/// What is registered now.
pub fn answer(service: &v1::NetworkService, endpoint: &v1::NetworkServiceEndpoint) -> old::NseRegistration {
    old::NseRegistration {
        network_service: Some(old_service(service)),
        network_service_manager: Some(manager(&service.name, endpoint)),
        network_service_endpoint: Some(old_endpoint(service, endpoint)),
    }
}

/// A service and who offers it.
pub fn found<'a>(
    service: &v1::NetworkService,
    endpoints: impl Iterator<Item = &'a v1::NetworkServiceEndpoint>,
) -> old::FindNetworkServiceResponse {
    let mut answer = old::FindNetworkServiceResponse {
        payload: service.payload.clone(),
        network_service: Some(old_service(service)),
        ..Default::default()
    };
    for endpoint in endpoints {
        let manager = manager(&service.name, endpoint);
        answer.network_service_managers.insert(manager.name.clone(), manager);
        answer.network_service_endpoints.push(old_endpoint(service, endpoint));
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> old::NseRegistration {
        old::NseRegistration {
            network_service: Some(old::NetworkService {
                name: "icmp".into(),
                payload: "IP".into(),
                matches: vec![old::Match {
                    source_selector: [("app".to_owned(), "a".to_owned())].into(),
                    routes: vec![old::Destination {
                        destination_selector: [("x".to_owned(), "y".to_owned())].into(),
                        weight: 3,
                    }],
                }],
            }),
            network_service_manager: Some(old::NetworkServiceManager {
                name: "node-1".into(),
                url: "10.0.0.1:5001".into(),
                ..Default::default()
            }),
            network_service_endpoint: Some(old::NetworkServiceEndpoint {
                name: "nse-1".into(),
                network_service_name: "icmp".into(),
                labels: [("x".to_owned(), "y".to_owned())].into(),
                ..Default::default()
            }),
        }
    }

    #[test]
    fn a_registration_comes_back_as_it_was_with_its_manager_told_apart() {
        let (service, endpoint) = registration(full()).unwrap();
        assert_eq!(endpoint.url, "tcp://10.0.0.1:5001");
        assert_eq!(endpoint.network_service_names, ["icmp"]);
        let back = answer(&service, &endpoint);
        assert_eq!(back.network_service, full().network_service);
        let manager = back.network_service_manager.clone().unwrap();
        assert_eq!((manager.name.as_str(), manager.url.as_str()), ("node-1_10.0.0.1_5001", "10.0.0.1:5001"));
        let of = back.network_service_endpoint.clone().unwrap();
        assert_eq!(of.network_service_manager_name, manager.name);
        assert_eq!(of.labels, full().network_service_endpoint.unwrap().labels);
        // A keep-alive sends back what it got.
        let (_, again) = registration(back).unwrap();
        assert_eq!(again, endpoint);
    }

    #[test]
    fn what_is_missing_is_named() {
        let without = |change: fn(&mut old::NseRegistration)| {
            let mut changed = full();
            change(&mut changed);
            registration(changed).unwrap_err().message().to_owned()
        };
        for (told, field) in [
            (without(|of| of.network_service = None), "network_service:"),
            (without(|of| of.network_service_manager = None), "network_service_manager:"),
            (without(|of| of.network_service_endpoint = None), "network_service_endpoint:"),
            (without(|of| of.network_service.as_mut().unwrap().name.clear()), "network_service.name"),
            (
                without(|of| of.network_service_endpoint.as_mut().unwrap().name.clear()),
                "network_service_endpoint.name",
            ),
            (
                without(|of| of.network_service_manager.as_mut().unwrap().url.clear()),
                "network_service_manager.url",
            ),
            (
                without(|of| {
                    of.network_service_endpoint.as_mut().unwrap().network_service_name = "other".into()
                }),
                "network_service_endpoint.network_service_name",
            ),
        ] {
            assert!(told.starts_with(field), "{told}");
        }
    }
}
