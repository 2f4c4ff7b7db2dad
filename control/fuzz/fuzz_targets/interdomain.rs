//! Names of other domains: whatever comes is read or refused; what was taken apart can be put together again; and an endpoint that
//! goes out under its bare names comes back under the same ones.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vwire_control::domain::{self, Domain};
use vwire_proto::nsm::registry::{NetworkServiceEndpoint, NetworkServiceLabels};

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let mut names = text.split('\n').map(str::to_owned);
    let name = names.next().unwrap_or_default();
    let (target, of) = domain::split(&name);
    assert!(!domain::is_interdomain(target));
    match of {
        Some(of) => assert_eq!(domain::join(target, of), name),
        None => assert_eq!(target, name),
    }
    match Domain::parse(&name) {
        Ok(Domain::Name(found)) => {
            assert!(found.len() <= 229 && found.is_ascii() && !found.contains("..") && !found.contains('@'));
            assert_eq!(Domain::parse(&found), Ok(Domain::Name(found.clone())));
        }
        Ok(Domain::Host(ip)) => assert_eq!(Domain::parse(&ip.to_string()), Ok(Domain::Host(ip))),
        // A zone (%eth0) is of one machine only, and is not shown in the same form everywhere.
        Ok(Domain::Address(address)) => assert_ne!(address.port(), 0),
        Err(error) => assert!(error.to_string().len() < 1024),
    }

    let services: Vec<String> = names.take(8).collect();
    let labels = services.iter().map(|service| (service.clone(), NetworkServiceLabels::default())).collect();
    let endpoint = NetworkServiceEndpoint {
        name: name.clone(),
        network_service_names: services,
        network_service_labels: labels,
        ..Default::default()
    };
    let Ok(Some(of)) = domain::of_endpoint(&endpoint).map(|of| of.map(str::to_owned)) else { return };
    let mut there = endpoint.clone();
    domain::strip_endpoint(&mut there);
    assert_eq!(domain::of_endpoint(&there).unwrap(), None);
    // An endpoint that names its domain everywhere, and no name twice, is back as it was.
    let everywhere = |name: &String| domain::domain(name) == Some(&of);
    if everywhere(&endpoint.name)
        && endpoint.name != format!("@{of}")
        && endpoint.network_service_names.iter().all(everywhere)
    {
        domain::join_endpoint(&mut there, &of);
        assert_eq!(there, endpoint);
    }
});
