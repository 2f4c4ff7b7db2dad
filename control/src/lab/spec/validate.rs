//! What a lab must be beyond what its types say.

use std::collections::BTreeSet;

use super::{Check, Client, Leg, Spec, Stack, UNDERLAY};

/// Longest name: the paths of sockets have 107 bytes in all.
const MAX_NAME: usize = 24;
/// Most nodes of a domain, and most domains: what the underlay's addresses have room for.
const MAX_NODES: usize = 200;
/// Most proxies of a domain: nodes' addresses come after theirs.
const MAX_REPLICAS: u8 = 8;

/// The field, and why it can't be so.
pub(super) type Wrong = (String, String);

fn bad(field: &str, reason: &str) -> Result<(), Wrong> {
    Err((field.to_owned(), reason.to_owned()))
}

impl Spec {
    /// Whether all of it goes together.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub(super) fn validate(&self) -> Result<(), Wrong> {
        name("name", &self.name)?;
        if self.domains.is_empty() || self.domains.len() > MAX_NODES {
            return bad("domains", "a lab has 1 to 200");
        }
        self.validate_names()?;
        self.validate_domains()?;
        self.validate_endpoints()?;
        self.validate_vl3()?;
        self.validate_clients()?;
        self.validate_checks()
    }

    fn validate_names(&self) -> Result<(), Wrong> {
        let mut all = Vec::new();
        for domain in &self.domains {
            all.push(("domains", &domain.name));
            all.extend(domain.nodes.iter().map(|node| ("nodes", &node.name)));
        }
        all.extend(self.endpoints().map(|(_, endpoint)| ("endpoints", &endpoint.name)));
        all.extend(self.vl3().map(|(_, _, vl3)| ("vl3", &vl3.name)));
        all.extend(self.clients().map(|(_, client)| ("clients", &client.name)));
        let mut taken = BTreeSet::from([UNDERLAY]);
        for (kind, wanted) in all {
            name(&format!("{kind}.name"), wanted)?;
            if !taken.insert(wanted) {
                return bad(
                    &format!("{kind}.name"),
                    &format!("{wanted:?} is taken; all names in a lab differ"),
                );
            }
        }
        Ok(())
    }

    fn validate_domains(&self) -> Result<(), Wrong> {
        for domain in &self.domains {
            let field = format!("domains.{}", domain.name);
            if domain.nodes.len() > MAX_NODES {
                return bad(&format!("{field}.nodes"), "a domain has at most 200");
            }
            if !domain.registry && domain.nodes.len() != 1 {
                return bad(&format!("{field}.registry"), "without one there can be one node only");
            }
            if domain.stack != Stack::Ipv4 && domain.nodes.iter().any(|node| node.nat) {
                return bad(
                    &format!("{field}.stack"),
                    "a node with nat has IPv4 alone: its address is translated",
                );
            }
            if domain.nodes.len() > 1 && domain.nodes.iter().any(|node| node.nat) {
                return bad(
                    &format!("{field}.nodes"),
                    "a node with nat is the only one of its domain: only the proxy translates",
                );
            }
            if !(1..=MAX_REPLICAS).contains(&domain.replicas) {
                return bad(&format!("{field}.replicas"), "a domain has 1 to 8");
            }
            if !domain.registry && domain.proxy {
                return bad(&format!("{field}.proxy"), "a proxy needs a registry");
            }
        }
        Ok(())
    }

    fn validate_endpoints(&self) -> Result<(), Wrong> {
        for (_, endpoint) in self.endpoints() {
            if endpoint.cidr.is_empty() {
                return bad(
                    &format!("endpoints.{}.cidr", endpoint.name),
                    "no prefix to assign addresses from",
                );
            }
            let passes_memif = endpoint.passes_to.is_some() && endpoint.mechanism == Leg::Memif;
            if passes_memif {
                return bad(
                    &format!("endpoints.{}.mechanism", endpoint.name),
                    "kernel: both its interfaces are",
                );
            }
            if !["ETHERNET", "IP"].contains(&endpoint.payload.as_str()) {
                return bad(&format!("endpoints.{}.payload", endpoint.name), "ETHERNET or IP");
            }
        }
        Ok(())
    }

    fn validate_vl3(&self) -> Result<(), Wrong> {
        for (domain, _, vl3) in self.vl3() {
            let field = |what: &str| format!("vl3.{}.{what}", vl3.name);
            if vl3.services.is_empty() {
                return Err((field("services"), "none".to_owned()));
            }
            if vl3.env.contains_key("VWIRE_VL3_PREFIX") {
                continue;
            }
            let from = vl3.ipam.as_ref().unwrap_or(&domain.name);
            let found = self.domains.iter().find(|domain| domain.name == *from);
            if found.is_none_or(|domain| domain.ipam.is_empty()) {
                return Err((
                    field("ipam"),
                    format!("domain {from:?} has no prefixes (ipam) to give a part of"),
                ));
            }
        }
        Ok(())
    }

    fn validate_clients(&self) -> Result<(), Wrong> {
        for (_, client) in self.clients() {
            let field = format!("clients.{}.services", client.name);
            if client.services.is_empty() {
                return Err((field, "none".to_owned()));
            }
            for service in &client.services {
                if Client::leg(service).is_none() {
                    return Err((
                        field,
                        format!("{service:?}: write kernel://SERVICE/INTERFACE or memif://SERVICE"),
                    ));
                }
            }
        }
        Ok(())
    }

    fn validate_checks(&self) -> Result<(), Wrong> {
        let names: BTreeSet<&str> = self.clients().map(|(_, client)| client.name.as_str()).collect();
        for check in &self.checks {
            let from = match check {
                Check::Ping { from, .. }
                | Check::Path { from, .. }
                | Check::Addresses { from, .. }
                | Check::Tunnel { from, .. }
                | Check::Counters { from, .. }
                | Check::Transfer { from, .. } => from,
                Check::Peers { of, .. } => {
                    if !self.vl3().any(|(_, _, vl3)| vl3.name == *of) {
                        return Err(("checks".to_owned(), format!("of: {of:?} is no vl3 of this lab")));
                    }
                    continue;
                }
                Check::Reach { between, .. } => {
                    if let Some(other) = between.iter().find(|name| !names.contains(name.as_str())) {
                        let reason = format!("between: {other:?} is no client of this lab");
                        return Err(("checks".to_owned(), reason));
                    }
                    continue;
                }
                Check::NoSecretsInLogs {} => continue,
            };
            if !names.contains(from.as_str()) {
                return Err(("checks".to_owned(), format!("from: {from:?} is no client of this lab")));
            }
        }
        Ok(())
    }
}

/// Names become parts of file names and of namespaces.
fn name(field: &str, name: &str) -> Result<(), Wrong> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let ends = name.starts_with('-') || name.ends_with('-');
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(fits) || ends {
        let reason = format!("{name:?}: a name has 1 to {MAX_NAME} of a-z, 0-9 and -, and no - at its ends");
        return Err((field.to_owned(), reason));
    }
    Ok(())
}
