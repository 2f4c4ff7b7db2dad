//! Other domains whose endpoints of the same network service are peers: the lists of the first vL3 (`REMOTE_IP`, `REMOTE_CLUSTERIP`,
//! `NSM_REMOTE_NS_IP_LIST`).

use std::fmt;
use std::str::FromStr;

use crate::config::List;
use crate::domain::{self, Domain};

/// Most domains in a list: each is watched.
const MAX: usize = 256;

/// Domains, separated by commas: addresses at which their API is reached, with or without a port, or names. Each is one of its own; the
/// first vL3 asked the second one as `service@first@second`.
///
/// A role has it as a setting by `NSM_REMOTE_NS_IP_LIST`; the two older variables stand for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Remotes(Vec<String>);

impl Remotes {
    /// What to ask for to find the endpoints of `service` in each of the domains, in the list's order: `service@10.0.0.1`.
    pub fn targets(&self, service: &str) -> Vec<String> {
        self.0.iter().map(|remote| domain::join(domain::target(service), remote)).collect()
    }

    /// True if there is no other domain.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromStr for Remotes {
    type Err = String;

    /// A domain that is there twice is asked once.
    fn from_str(text: &str) -> Result<Self, String> {
        let items: List<String> = text.parse()?;
        let mut remotes = Vec::new();
        for item in items.iter() {
            let item = item.trim_matches(['"', '\'']);
            let remote = shown(&Domain::parse(item).map_err(|error| format!("item {item:?}: {error}"))?);
            if !remotes.contains(&remote) {
                remotes.push(remote);
            }
        }
        if remotes.len() > MAX {
            return Err(format!("{} domains; a list has at most {MAX}", remotes.len()));
        }
        Ok(Self(remotes))
    }
}

impl fmt::Display for Remotes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(","))
    }
}

/// A domain as it stands behind the `@`.
fn shown(domain: &Domain) -> String {
    match domain {
        Domain::Name(name) => name.clone(),
        Domain::Host(host) => host.to_string(),
        Domain::Address(address) => address.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_item_is_a_domain_of_its_own() {
        let remotes: Remotes =
            "10.1.0.4, 10.2.0.4,10.3.0.4:30501,[fd00::1],b.test.,10.1.0.4".parse().unwrap();
        let targets = [
            "vl3-service@10.1.0.4",
            "vl3-service@10.2.0.4",
            "vl3-service@10.3.0.4:30501",
            "vl3-service@fd00::1",
            "vl3-service@b.test",
        ];
        assert_eq!(remotes.targets("vl3-service"), targets);
        assert_eq!(
            remotes.targets("vl3-service@a.test"),
            targets,
            "the service's own domain is another one there"
        );
        for target in targets {
            let (_, domain) = domain::split(target);
            assert!(Domain::parse(domain.unwrap()).is_ok(), "{target} is asked for as any name is");
        }
        assert_eq!(remotes.to_string().parse(), Ok(remotes));
    }

    #[test]
    fn nothing_is_no_domain() {
        for text in ["", " ", "\n"] {
            let remotes: Remotes = text.parse().unwrap();
            assert!(remotes.is_empty() && remotes.targets("vl3").is_empty());
        }
        assert_eq!("\"10.0.0.1\"\n".parse::<Remotes>().unwrap().targets("v"), ["v@10.0.0.1"]);
    }

    #[test]
    fn what_is_no_domain_is_named() {
        let many: Vec<String> = (0..300).map(|n| format!("10.0.{}.{}", n / 256, n % 256)).collect();
        for (text, told) in [
            ("10.0.0.1,", "an empty item"),
            ("10.0.0.1,10.0.0", "item \"10.0.0\": "),
            ("vl3@10.0.0.1", "item \"vl3@10.0.0.1\": "),
            ("10.0.0.1:0", "port 0"),
            (&many.join(","), "at most 256"),
        ] {
            let error = text.parse::<Remotes>().unwrap_err();
            assert!(error.contains(told), "{text}: {error}");
        }
    }
}
