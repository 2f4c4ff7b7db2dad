//! What a lab's namespaces let through: between domains only what they need of each other, and nodes behind addresses of others.
//!
//! | from another domain to … | what for |
//! |---|---|
//! | TCP 5002, 5004 of the domain's own part | its registry, its proxy |
//! | UDP 4789 of nodes | tunnels |
//!
//! Nothing else: no manager and no forwarder is called from outside, nor is the issuer.

use std::fmt::Write;

use super::layout::{NODE_PORT, PROXY_PORT, REGISTRY_PORT, inner, v4, v6};
use super::net::ip;
use super::spec::{Domain, Node, Spec};
use super::{LabError, Layout};

/// Puts filters and translations into place, with nftables, inside the lab's own namespaces.
pub fn put(layout: &Layout, spec: &Spec) -> Result<(), LabError> {
    for domain in &spec.domains {
        if spec.firewall {
            load(
                layout,
                &domain.name,
                &filter(spec, domain, &format!("tcp dport {{ {REGISTRY_PORT}, {PROXY_PORT} }}")),
            )?;
        }
        for node in &domain.nodes {
            let mut rules = String::new();
            if spec.firewall {
                rules += &filter(spec, domain, &format!("udp dport {NODE_PORT}"));
            }
            if node.nat {
                hide(layout, spec, node)?;
                rules += &translation(spec, node);
            }
            load(layout, &node.name, &rules)?;
        }
    }
    Ok(())
}

/// Drops what is neither of the domain, nor an answer, nor `allowed`.
fn filter(spec: &Spec, domain: &Domain, allowed: &str) -> String {
    let [a, b, c, _] = v4(spec, &domain.name).octets();
    let [d, e, f, ..] = v6(spec, &domain.name).segments();
    format!(
        "table inet lab {{\n chain input {{\n  type filter hook input priority 0; policy drop;\n  iif lo accept\n  \
         ct state established,related accept\n  ip saddr {a}.{b}.{c}.0/24 accept\n  ip6 saddr {d:x}:{e:x}:{f:x}::/48 accept\n  \
         {allowed} accept\n  icmp type destination-unreachable accept\n  \
         icmpv6 type {{ destination-unreachable, packet-too-big, nd-neighbor-solicit, nd-neighbor-advert }} accept\n }}\n}}\n"
    )
}

/// A node that knows only its inner address, with an outer one before it, one to one.
fn translation(spec: &Spec, node: &Node) -> String {
    let (inner, outer) = (inner(spec, &node.name), v4(spec, &node.name));
    format!(
        "table ip lab_nat {{\n chain out {{\n  type nat hook postrouting priority 100;\n  ip saddr {inner} snat to {outer}\n }}\n \
         chain in {{\n  type nat hook prerouting priority -100;\n  ip daddr {outer} udp dport {NODE_PORT} dnat to {inner}\n }}\n}}\n"
    )
}

/// Gives a node its inner address.
fn hide(layout: &Layout, spec: &Spec, node: &Node) -> Result<(), LabError> {
    let namespace = layout.namespace(&node.name);
    let inner = format!("{}/32", inner(spec, &node.name));
    // An end of a pair of which nobody uses the other: not every kernel has dummies.
    ip(&["-n", &namespace, "link", "add", "inside0", "type", "veth", "peer", "name", "inside1"])?;
    ip(&["-n", &namespace, "addr", "add", &inner, "dev", "inside0"])?;
    ip(&["-n", &namespace, "link", "set", "inside1", "up"])?;
    ip(&["-n", &namespace, "link", "set", "inside0", "up"])
}

fn load(layout: &Layout, part: &str, rules: &str) -> Result<(), LabError> {
    if rules.is_empty() {
        return Ok(());
    }
    let file = layout.scratch(&format!("{part}.nft"));
    let shown = file.display().to_string();
    std::fs::write(&file, rules).map_err(|error| LabError::failed(&shown, error))?;
    ip(&["netns", "exec", &layout.namespace(part), "nft", "-f", &shown])
}

/// Tells each proxy the outer addresses of its domain's nodes (`NSM_MAP_IP_FILE_PATH`).
pub fn write_maps(layout: &Layout, spec: &Spec) -> Result<(), LabError> {
    for domain in &spec.domains {
        let mut map = String::new();
        for node in domain.nodes.iter().filter(|node| node.nat) {
            let _ = writeln!(map, "{}: {}", inner(spec, &node.name), v4(spec, &node.name));
        }
        let file = layout.address_map(domain);
        std::fs::write(&file, map).map_err(|error| LabError::failed(file.display().to_string(), error))?;
    }
    Ok(())
}
