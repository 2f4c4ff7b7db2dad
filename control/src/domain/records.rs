//! Endpoints' names in and out of a domain.

use std::collections::BTreeMap;

use tonic::Status;
use vwire_proto::nsm::registry::NetworkServiceEndpoint;

use super::{domain, join, target};

/// The domain that an endpoint, or a query for one, is of; none if all its names are of this domain.
///
/// Go takes the first that it meets, and so sends `a@x` with the service `s@y` to `x` under false names.
///
/// # Errors
/// INVALID_ARGUMENT if its names are of two domains.
pub fn of_endpoint(endpoint: &NetworkServiceEndpoint) -> Result<Option<&str>, Status> {
    let mut found: Option<&str> = None;
    for name in std::iter::once(&endpoint.name).chain(&endpoint.network_service_names) {
        let Some(domain) = domain(name) else { continue };
        if let Some(other) = found.filter(|other| *other != domain) {
            return Err(Status::invalid_argument(format!(
                "name, network_service_names: endpoint `{}` is of {other:?} and of {domain:?}; all names of one registration are of one domain",
                endpoint.name
            )));
        }
        found = Some(domain);
    }
    Ok(found)
}

/// Names as the other domain knows them.
pub fn strip_endpoint(endpoint: &mut NetworkServiceEndpoint) {
    translate(endpoint, |name| target(name).to_owned());
}

/// Names as this domain knows what is of the other.
pub fn join_endpoint(endpoint: &mut NetworkServiceEndpoint, domain: &str) {
    translate(endpoint, |name| join(name, domain));
}

fn translate(endpoint: &mut NetworkServiceEndpoint, to: impl Fn(&str) -> String) {
    // A query by service has no name to translate, and keeps none.
    if !endpoint.name.is_empty() {
        endpoint.name = to(&endpoint.name);
    }
    for service in &mut endpoint.network_service_names {
        *service = to(service);
    }
    let labels = std::mem::take(&mut endpoint.network_service_labels);
    endpoint.network_service_labels =
        labels.into_iter().map(|(service, labels)| (to(&service), labels)).collect::<BTreeMap<_, _>>();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(name: &str, services: &[&str]) -> NetworkServiceEndpoint {
        NetworkServiceEndpoint {
            name: name.into(),
            network_service_names: services.iter().map(|name| (*name).into()).collect(),
            network_service_labels: services
                .iter()
                .map(|name| ((*name).into(), Default::default()))
                .collect(),
            ..Default::default()
        }
    }

    #[test]
    fn an_endpoint_goes_out_and_comes_back_with_its_labels() {
        let ours = endpoint("nse@b.test", &["svc@b.test", "two@b.test"]);
        assert_eq!(of_endpoint(&ours).unwrap(), Some("b.test"));
        let mut there = ours.clone();
        strip_endpoint(&mut there);
        assert_eq!(there, endpoint("nse", &["svc", "two"]));
        join_endpoint(&mut there, "b.test");
        assert_eq!(there, ours);
    }

    #[test]
    fn a_query_by_service_has_no_name_on_either_side() {
        let mut query = endpoint("", &["svc@b.test"]);
        strip_endpoint(&mut query);
        assert_eq!(query, endpoint("", &["svc"]));
    }

    #[test]
    fn names_of_two_domains_are_refused() {
        assert_eq!(of_endpoint(&endpoint("nse", &["svc@floating"])).unwrap(), Some("floating"));
        assert_eq!(of_endpoint(&endpoint("nse", &["svc"])).unwrap(), None);
        let told = of_endpoint(&endpoint("nse@a", &["svc@b"])).unwrap_err();
        assert!(told.message().contains("\"a\" and of \"b\""), "{told}");
    }
}
