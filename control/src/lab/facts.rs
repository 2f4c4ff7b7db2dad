//! Checks that only read what the roles report.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{Lab, LabError, Outcome, roles};
use crate::api::mechanism::{DST_IP, SRC_IP, VXLAN};
use crate::cli::AdminClient;
use crate::obs::ConnectionView;

/// How many hops a connection has.
pub(super) fn path(from: &str, view: &ConnectionView, hops: usize) -> Outcome {
    let names: Vec<&str> = view.hops.iter().map(|hop| hop.name.as_str()).collect();
    let seen = names.join(" → ");
    let failed = (names.len() != hops).then(|| format!("{} hops: {seen}", names.len()));
    Outcome { check: format!("{from} → {}: {hops} hops", view.service), failed, seen }
}

/// What the forwarder beside the client counted of it.
pub(super) fn counters(from: &str, view: &ConnectionView, at_least: u64) -> Outcome {
    let figure = |metrics: &BTreeMap<String, String>| {
        metrics.get("client_rx_packets").and_then(|text| text.parse::<u64>().ok())
    };
    let counted = view.hops.iter().find_map(|hop| figure(&hop.metrics));
    let seen =
        counted.map_or_else(|| "no counters in the path".to_owned(), |count| format!("{count} packets"));
    let failed = (counted.unwrap_or(0) < at_least).then(|| seen.clone());
    Outcome {
        check: format!("{from} → {}: at least {at_least} packets counted", view.service), failed, seen
    }
}

/// How many addresses of each version both ends have.
pub(super) fn addresses(from: &str, view: &ConnectionView, ipv4: usize, ipv6: usize) -> Outcome {
    let count = |all: &[String]| {
        let six = all.iter().filter(|address| address.contains(':')).count();
        (all.len() - six, six)
    };
    let ends = [&view.client_addresses, &view.endpoint_addresses];
    let seen = ends.map(|all| all.join(", ")).join(" – ");
    let failed = ends.iter().any(|all| count(all) != (ipv4, ipv6)).then(|| seen.clone());
    let check = format!("{from} → {}: {ipv4} IPv4 and {ipv6} IPv6 addresses at each end", view.service);
    Outcome { check, failed, seen }
}

/// Between which addresses the tunnel of a connection is, as the client's node has it.
pub(super) async fn tunnel(
    lab: &Lab,
    from: &str,
    view: &ConnectionView,
    between: [IpAddr; 2],
) -> Result<Outcome, LabError> {
    let [here, there] = between;
    let check = format!("{from} → {}: a tunnel between {here} and {there}", view.service);
    let Some((node, _)) = lab.spec().clients().find(|(_, client)| client.name == from) else {
        return Err(LabError::failed(check, "no such client"));
    };
    let admin = AdminClient(lab.layout().admin(&roles::forwarder(node)));
    let all: Result<Vec<ConnectionView>, _> = admin.get("/connections").await;
    let all = all.map_err(|error| LabError::failed(&check, error))?;
    let legs = all.iter().filter(|one| one.root == view.root).flat_map(|one| &one.mechanisms);
    let vxlan = legs.filter(|leg| leg.kind == VXLAN);
    let ends =
        vxlan.map(|leg| [SRC_IP, DST_IP].map(|key| leg.parameters.get(key).cloned().unwrap_or_default()));
    let ends: Vec<[String; 2]> = ends.collect();
    let seen = ends.iter().map(|ends| ends.join(" – ")).collect::<Vec<_>>().join(", ");
    let is_there = ends.iter().any(|ends| ends.each_ref().map(|end| end.parse().ok()) == between.map(Some));
    Ok(Outcome { check, failed: (!is_there).then(|| format!("tunnels: {seen}")), seen })
}
