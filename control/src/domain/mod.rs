//! Names that lead to another domain: `service@domain`, `endpoint@domain`.
//!
//! A name is split at its first `@` (sdk, `pkg/tools/interdomain`). What is behind it is a DNS name, or an address for domains that
//! have none: `svc@10.0.0.1`, `svc@10.0.0.1:5002`, `svc@[fd00::1]:5002`, and with `tcp://` before it, as Go wants it.

use std::net::{IpAddr, SocketAddr};

mod addresses;
mod ourselves;
mod places;
mod records;

pub use addresses::AddressMap;
pub use ourselves::Ourselves;
pub use places::Places;
pub use records::{join_endpoint, of_endpoint, strip_endpoint};

/// What stands between a name and its domain.
const SEPARATOR: char = '@';
/// The longest DNS name, without the dot at its end (RFC 1035, 2.3.4).
const MAX_NAME: usize = 253;
/// Room for what is put before a domain to find its parts: `nsmgr-proxy.nsm-system.`, `_nsm-registry._tcp.`.
const MAX_PREFIX: usize = 24;
/// The longest label of a DNS name.
const MAX_LABEL: usize = 63;

/// True for a name of another domain.
pub fn is_interdomain(name: &str) -> bool {
    name.contains(SEPARATOR)
}

/// A name, and the domain that it is of, if it says one.
pub fn split(name: &str) -> (&str, Option<&str>) {
    match name.split_once(SEPARATOR) {
        Some((target, domain)) => (target, Some(domain)),
        None => (name, None),
    }
}

/// A name as its own domain knows it.
pub fn target(name: &str) -> &str {
    split(name).0
}

/// The domain that a name is of, if it says one.
pub fn domain(name: &str) -> Option<&str> {
    split(name).1
}

/// A name as other domains know it.
pub fn join(target: &str, domain: &str) -> String {
    format!("{target}{SEPARATOR}{domain}")
}

/// Where a domain is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Domain {
    /// To be looked up. In lower case, without a dot at the end.
    Name(String),
    /// There, at the usual ports.
    Host(IpAddr),
    /// There.
    Address(SocketAddr),
}

/// A domain that can't be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("domain {shown:?}: {reason}; write name@example.com, name@10.0.0.1 or name@[fd00::1]:5002")]
pub struct BadDomain {
    shown: String,
    reason: &'static str,
}

impl Domain {
    /// Reads what is behind the `@`.
    ///
    /// # Errors
    /// [`BadDomain`] if it is neither a DNS name nor an address.
    pub fn parse(text: &str) -> Result<Self, BadDomain> {
        let bad = |reason| BadDomain { shown: text.chars().take(80).collect(), reason };
        if text.is_empty() {
            return Err(bad("empty"));
        }
        if text.contains(SEPARATOR) {
            return Err(bad("a second @: a name leads to one domain, not by way of others"));
        }
        let address = text.strip_prefix("tcp://").unwrap_or(text);
        if let Ok(address) = address.parse::<SocketAddr>() {
            return if address.port() == 0 { Err(bad("port 0")) } else { Ok(Self::Address(address)) };
        }
        let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
        if let Ok(host) = bare.parse::<IpAddr>() {
            return Ok(Self::Host(host));
        }
        if address.len() != text.len() {
            return Err(bad("tcp:// is for an address with a port"));
        }
        name(text).map(Self::Name).map_err(bad)
    }
}

/// A DNS name, as it is looked up.
fn name(text: &str) -> Result<String, &'static str> {
    let name = text.strip_suffix('.').unwrap_or(text);
    if name.len() > MAX_NAME - MAX_PREFIX {
        return Err("longer than 229 bytes, which is the most that leaves room for its registry's name");
    }
    if name.contains(':') {
        return Err("a port is for addresses; the ports of a name are in its SRV records");
    }
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    for label in name.split('.') {
        if label.is_empty() || label.len() > MAX_LABEL || !label.chars().all(fits) {
            return Err("its parts need 1 to 63 of a-z, 0-9, - and _ between dots");
        }
    }
    if name.split('.').next_back().is_some_and(|last| last.chars().all(|c| c.is_ascii_digit())) {
        return Err("neither an address nor a name: a name does not end in a number");
    }
    Ok(name.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_split_at_its_first_at_and_joined_again() {
        for (name, parts) in [
            ("svc", ("svc", None)),
            ("svc@b.test", ("svc", Some("b.test"))),
            ("svc@b@c", ("svc", Some("b@c"))),
            ("@b", ("", Some("b"))),
            ("svc@", ("svc", Some(""))),
        ] {
            assert_eq!(split(name), parts, "{name}");
            let (target, domain) = parts;
            assert_eq!(domain.map_or(target.to_owned(), |domain| join(target, domain)), name);
            assert_eq!(is_interdomain(name), domain.is_some());
        }
    }

    #[test]
    fn a_domain_is_a_name_or_an_address() {
        let name = |text: &str| Domain::Name(text.into());
        for (text, domain) in [
            ("Finance.Example.com", name("finance.example.com")),
            ("my.cluster3.", name("my.cluster3")),
            ("cluster2", name("cluster2")),
            ("10.0.0.1", Domain::Host("10.0.0.1".parse().unwrap())),
            ("fd00::1", Domain::Host("fd00::1".parse().unwrap())),
            ("[fd00::1]", Domain::Host("fd00::1".parse().unwrap())),
            ("10.0.0.1:5002", Domain::Address("10.0.0.1:5002".parse().unwrap())),
            ("[fd00::1]:5002", Domain::Address("[fd00::1]:5002".parse().unwrap())),
            ("tcp://10.0.0.1:5002", Domain::Address("10.0.0.1:5002".parse().unwrap())),
        ] {
            assert_eq!(Domain::parse(text), Ok(domain), "{text}");
        }
    }

    #[test]
    fn what_is_no_domain_is_told_what_one_is() {
        let long = format!("{}.test", "a.".repeat(120));
        for (text, reason) in [
            ("", "empty"),
            ("b@a", "a second @"),
            ("b..test", "between dots"),
            (".", "between dots"),
            ("b test", "between dots"),
            ("b.test:5002", "SRV records"),
            ("10.0.0", "does not end in a number"),
            ("10.0.0.1:0", "port 0"),
            ("tcp://b.test", "an address with a port"),
            (&long, "229 bytes"),
        ] {
            let told = Domain::parse(text).unwrap_err().to_string();
            assert!(told.contains(reason) && told.contains("name@example.com"), "{text}: {told}");
        }
    }
}
