//! Namespaces, and the underlay that joins nodes.

use std::net::IpAddr;
use std::path::Path;
use std::process::Command;

use super::layout::{addresses, replica};
use super::{Dns, LabError, Layout, Spec};

/// Runs `ip` with these words.
pub(super) fn ip(words: &[&str]) -> Result<(), LabError> {
    let what = format!("ip {}", words.join(" "));
    let output = Command::new("ip").args(words).output().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => LabError::failed(&what, "not found; install iproute2"),
        _ => LabError::failed(&what, error),
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let hint = if said.contains("Operation not permitted") { " (labs need root)" } else { "" };
    Err(LabError::failed(what, format!("{}{hint}", said.trim())))
}

/// The parts of a lab that have a namespace: the underlay's bridge, domains, nodes, endpoints and clients.
pub fn parts(layout: &Layout, spec: &Spec) -> Vec<String> {
    let mut parts = vec![layout.underlay().to_owned()];
    for domain in &spec.domains {
        parts.push(domain.name.clone());
        parts.extend(domain.nodes.iter().map(|node| node.name.clone()));
    }
    parts.extend(spec.endpoints().map(|(_, endpoint)| endpoint.name.clone()));
    parts.extend(spec.vl3().map(|(_, _, vl3)| vl3.name.clone()));
    parts.extend(spec.clients().map(|(_, client)| client.name.clone()));
    parts
}

/// Makes a part's namespace.
pub fn add_namespace(layout: &Layout, part: &str) -> Result<(), LabError> {
    let name = layout.namespace(part);
    ip(&["netns", "add", &name])?;
    ip(&["-n", &name, "link", "set", "lo", "up"])
}

/// Removes a namespace; one that is not there is removed already.
pub fn remove_namespace(name: &str) -> Result<(), LabError> {
    if !Path::new("/run/netns").join(name).exists() {
        return Ok(());
    }
    ip(&["netns", "del", name])
}

/// Joins domains' and nodes' namespaces by a bridge. All of it is inside the lab's namespaces, and goes with them.
pub fn make_underlay(layout: &Layout, spec: &Spec) -> Result<(), LabError> {
    let net = layout.namespace(layout.underlay());
    ip(&["-n", &net, "link", "add", "br0", "type", "bridge"])?;
    ip(&["-n", &net, "link", "set", "br0", "up"])?;
    if spec.dns == Dns::Nsd {
        // The name server is at the bridge itself.
        for address in addresses(spec, layout.underlay()) {
            add_address(&net, "br0", address)?;
        }
    }
    // What is between domains takes all that any of them sends.
    let largest = spec.domains.iter().map(|domain| domain.mtu).max().unwrap_or_default();
    let parts = spec.domains.iter().flat_map(|domain| {
        let all = std::iter::once(&domain.name).chain(domain.nodes.iter().map(|node| &node.name));
        all.map(move |part| (domain, part))
    });
    for (index, (domain, part)) in parts.enumerate() {
        let namespace = layout.namespace(part);
        // Names of interfaces have 15 bytes; the namespace tells them apart on the other side.
        let port = format!("p{index}");
        ip(&["-n", &net, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &namespace])?;
        ip(&["-n", &net, "link", "set", &port, "master", "br0", "up"])?;
        let proxies = spec.domains.iter().filter(|domain| domain.name == *part);
        let more =
            proxies.flat_map(|domain| (1..domain.replicas).flat_map(|index| replica(spec, domain, index)));
        for address in addresses(spec, part).into_iter().chain(more) {
            add_address(&namespace, "eth0", address)?;
        }
        ip(&["-n", &net, "link", "set", &port, "mtu", &largest.to_string()])?;
        ip(&["-n", &namespace, "link", "set", "eth0", "mtu", &domain.mtu.to_string(), "up"])?;
    }
    Ok(())
}

/// Gives an interface an underlay address; the whole underlay is on the link.
fn add_address(namespace: &str, interface: &str, address: IpAddr) -> Result<(), LabError> {
    match address {
        IpAddr::V4(_) => ip(&["-n", namespace, "addr", "add", &format!("{address}/16"), "dev", interface]),
        // At once, without asking whether somebody has it: nobody else is there.
        IpAddr::V6(_) => {
            ip(&["-n", namespace, "addr", "add", &format!("{address}/32"), "dev", interface, "nodad"])
        }
    }
}

/// What `ip -j link` says of an interface.
#[derive(serde::Deserialize)]
struct Link {
    ifname: String,
}

/// Joins the two interfaces of an endpoint in the middle, which have no addresses of its own, by a bridge.
pub fn join(namespace: &str) -> Result<(), LabError> {
    let what = format!("interfaces of {namespace}");
    let output = Command::new("ip").args(["-n", namespace, "-j", "link"]).output();
    let output = output.map_err(|error| LabError::failed(&what, error))?;
    let links: Vec<Link> =
        serde_json::from_slice(&output.stdout).map_err(|error| LabError::failed(&what, error))?;
    let both: Vec<String> = links.into_iter().map(|link| link.ifname).filter(|name| name != "lo").collect();
    if both.len() != 2 {
        return Err(LabError::failed(what, format!("not two but {both:?}")));
    }
    ip(&["-n", namespace, "link", "add", "br0", "type", "bridge"])?;
    ip(&["-n", namespace, "link", "set", "br0", "up"])?;
    for interface in both {
        ip(&["-n", namespace, "addr", "flush", "dev", &interface])?;
        ip(&["-n", namespace, "link", "set", &interface, "master", "br0"])?;
    }
    Ok(())
}
