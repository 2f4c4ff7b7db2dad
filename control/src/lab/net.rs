//! Namespaces, and the underlay that joins nodes.

use std::path::Path;
use std::process::Command;

use super::layout::address;
use super::{Dns, LabError, Layout, Spec};

/// Runs `ip` with these words.
fn ip(words: &[&str]) -> Result<(), LabError> {
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
        ip(&["-n", &net, "addr", "add", &format!("{}/16", address(spec, layout.underlay())), "dev", "br0"])?;
    }
    let parts = spec
        .domains
        .iter()
        .flat_map(|domain| std::iter::once(&domain.name).chain(domain.nodes.iter().map(|node| &node.name)));
    for (index, part) in parts.enumerate() {
        let namespace = layout.namespace(part);
        // Names of interfaces have 15 bytes; the namespace tells them apart on the other side.
        let port = format!("p{index}");
        let address = format!("{}/16", address(spec, part));
        ip(&["-n", &net, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &namespace])?;
        ip(&["-n", &net, "link", "set", &port, "master", "br0", "up"])?;
        ip(&["-n", &namespace, "addr", "add", &address, "dev", "eth0"])?;
        ip(&["-n", &namespace, "link", "set", "eth0", "up"])?;
    }
    Ok(())
}
