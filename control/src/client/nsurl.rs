//! What a client wants, written as a URL: `kernel://icmp-responder/nsm-1?app=foo`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use rand::RngExt;
use url::Url;
use vwire_proto::nsm::connection::Mechanism;

use crate::api::mechanism;

/// Most bytes of an interface's name (the kernel's `IFNAMSIZ` less its NUL).
pub const MAX_INTERFACE_NAME: usize = 15;
/// Bytes of the service's name in a made-up interface name; a dash and random letters follow.
const NAME_FROM_SERVICE: usize = 10;

/// One network service, and how it is to be carried: `mechanism://[service@]domain-or-service[/interface][?label=value&…]`.
/// A label given several times has its values joined by commas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceUrl {
    /// In capitals: `KERNEL`, `MEMIF`.
    pub mechanism: String,
    /// `service` or `service@domain`.
    pub service: String,
    /// The interface's name, if one is given; at most 15 bytes.
    pub interface: Option<String>,
    /// The client's labels for this connection.
    pub labels: BTreeMap<String, String>,
}

/// Why a text is no [`ServiceUrl`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{url}\": {reason}; write kernel://service/interface?label=value or memif://service")]
pub struct BadServiceUrl {
    url: String,
    reason: String,
}

impl FromStr for ServiceUrl {
    type Err = BadServiceUrl;

    fn from_str(text: &str) -> Result<Self, BadServiceUrl> {
        let text = text.trim();
        let bad = |reason: String| BadServiceUrl { url: text.to_owned(), reason };
        let url = Url::parse(text).map_err(|error| bad(error.to_string()))?;
        let mechanism = url.scheme().to_uppercase();
        if ![mechanism::KERNEL, mechanism::MEMIF].contains(&mechanism.as_str()) {
            return Err(bad(format!("the mechanism {} is not one of kernel, memif", url.scheme())));
        }
        let service = service(&url).map_err(bad)?;
        let last = url.path_segments().and_then(|mut parts| parts.next_back()).unwrap_or_default();
        let interface = match last {
            "" => None,
            name => {
                check_interface_name(name).map_err(bad)?;
                Some(name.to_owned())
            }
        };
        let mut labels: BTreeMap<String, String> = BTreeMap::new();
        for (key, value) in url.query_pairs() {
            let values = labels.entry(key.into_owned()).or_default();
            if !values.is_empty() {
                values.push(',');
            }
            values.push_str(&value);
        }
        Ok(Self { mechanism, service, interface, labels })
    }
}

fn service(url: &Url) -> Result<String, String> {
    let host = url.host_str().filter(|host| !host.is_empty()).ok_or("no service is named")?;
    let service = match (url.username(), url.port()) {
        ("", _) => host.to_owned(),
        (name, None) => format!("{name}@{host}"),
        (name, Some(port)) => format!("{name}@{host}:{port}"),
    };
    if service.contains('%') {
        return Err(format!("the service's name {service} has characters that a URL can't hold"));
    }
    Ok(service)
}

/// What the kernel asks of an interface's name.
///
/// # Errors
/// What is wrong with it, and the limit.
pub fn check_interface_name(name: &str) -> Result<(), String> {
    if name.len() > MAX_INTERFACE_NAME {
        return Err(format!(
            "the interface name {name} has {} bytes; the kernel takes {MAX_INTERFACE_NAME}",
            name.len()
        ));
    }
    let forbidden = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':' | '%');
    if name.is_empty() || name == "." || name == ".." || name.contains(forbidden) {
        return Err(format!("the kernel takes no interface with the name {name:?}"));
    }
    Ok(())
}

/// A name for a service's interface that nobody named: the first ten characters of the service, a dash, and random letters and digits
/// up to 15 bytes.
pub fn made_up_interface_name(service: &str) -> String {
    let mut rng = rand::rng();
    let plain =
        |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '@') { c } else { '-' };
    let mut name: String = service.chars().map(plain).take(NAME_FROM_SERVICE).collect();
    name.push('-');
    while name.len() < MAX_INTERFACE_NAME {
        name.push(char::from(rng.sample(rand::distr::Alphanumeric)));
    }
    name
}

impl ServiceUrl {
    /// The mechanism as a preference, without its namespace. A kernel interface that has no name gets one.
    pub fn preference(&self) -> Mechanism {
        let name = match (&self.interface, self.mechanism.as_str()) {
            (Some(name), _) => Some(name.clone()),
            (None, mechanism::KERNEL) => Some(made_up_interface_name(&self.service)),
            (None, _) => None,
        };
        Mechanism {
            cls: mechanism::LOCAL.to_owned(),
            r#type: self.mechanism.clone(),
            parameters: name.map(|name| (mechanism::NAME.to_owned(), name)).into_iter().collect(),
        }
    }
}

impl fmt::Display for ServiceUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.mechanism.to_lowercase(), self.service)?;
        if let Some(interface) = &self.interface {
            write!(f, "/{interface}")?;
        }
        let mut separator = '?';
        for (key, value) in &self.labels {
            let pair: String =
                url::form_urlencoded::Serializer::new(String::new()).append_pair(key, value).finish();
            write!(f, "{separator}{pair}")?;
            separator = '&';
        }
        Ok(())
    }
}

/// `NSM_NETWORK_SERVICES`: URLs with commas between; spaces around them don't count.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServiceUrls(pub Vec<ServiceUrl>);

impl FromStr for ServiceUrls {
    type Err = BadServiceUrl;

    fn from_str(text: &str) -> Result<Self, BadServiceUrl> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let urls = parts.map(str::parse).collect::<Result<Vec<ServiceUrl>, _>>()?;
        let mut names = std::collections::BTreeSet::new();
        for url in &urls {
            if let Some(name) = &url.interface
                && !names.insert(name)
            {
                let reason = format!("the interface name {name} is given twice");
                return Err(BadServiceUrl { url: url.to_string(), reason });
            }
        }
        Ok(Self(urls))
    }
}

/// `NSM_AWARENESS_GROUPS`, `[url,url],[url]`: services whose connections may have overlapping addresses.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AwarenessGroups(pub Vec<Vec<ServiceUrl>>);

impl FromStr for AwarenessGroups {
    type Err = BadServiceUrl;

    fn from_str(text: &str) -> Result<Self, BadServiceUrl> {
        let brackets = || BadServiceUrl {
            url: text.to_owned(),
            reason: "awareness groups are written [url,url],[url]".to_owned(),
        };
        let mut groups = Vec::new();
        let mut rest = text.trim();
        while !rest.is_empty() {
            let (group, after) =
                rest.strip_prefix('[').and_then(|inside| inside.split_once(']')).ok_or_else(brackets)?;
            let urls = group.split(',').map(str::trim).filter(|part| !part.is_empty());
            groups.push(urls.map(str::parse).collect::<Result<_, _>>()?);
            rest = after.trim_start();
            if !rest.is_empty() {
                rest = rest.strip_prefix(',').ok_or_else(brackets)?.trim_start();
            }
        }
        Ok(Self(groups))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> (String, String, Option<String>, Vec<(String, String)>) {
        let url: ServiceUrl = text.parse().unwrap_or_else(|error| panic!("{error}"));
        (url.mechanism, url.service, url.interface, url.labels.into_iter().collect())
    }

    #[test]
    fn urls_of_manifests_are_read() {
        let label = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        for (text, service, interface, labels) in [
            ("kernel://icmp-responder", "icmp-responder", None, vec![]),
            ("kernel://icmp-responder/", "icmp-responder", None, vec![]),
            ("kernel://icmp-responder/nsm-1", "icmp-responder", Some("nsm-1"), vec![]),
            ("KERNEL://a/b/nsm-1", "a", Some("nsm-1"), vec![]),
            (
                " kernel://my-vl3@my.cluster3/nsm-1?app=foo&version=v1.1 ",
                "my-vl3@my.cluster3",
                Some("nsm-1"),
                vec![label("app", "foo"), label("version", "v1.1")],
            ),
            ("kernel://svc?a=1&a=2&b=", "svc", None, vec![label("a", "1,2"), label("b", "")]),
            ("kernel://svc@10.0.0.1/n", "svc@10.0.0.1", Some("n"), vec![]),
            ("kernel://svc@10.0.0.1:5002/n", "svc@10.0.0.1:5002", Some("n"), vec![]),
            ("kernel://svc@[2001:db8::1]/n", "svc@[2001:db8::1]", Some("n"), vec![]),
            ("kernel://svc:80/n", "svc", Some("n"), vec![]),
            ("kernel://svc/n?k=a%20b%26c", "svc", Some("n"), vec![label("k", "a b&c")]),
        ] {
            let expected = ("KERNEL".to_owned(), service.to_owned(), interface.map(str::to_owned), labels);
            assert_eq!(parsed(text), expected, "{text}");
            let again = text.parse::<ServiceUrl>().unwrap();
            assert_eq!(again.to_string().parse::<ServiceUrl>().as_ref(), Ok(&again), "{again}");
        }
        assert_eq!(parsed("memif://svc").0, "MEMIF");
    }

    #[test]
    fn others_are_refused_with_the_url_and_the_reason() {
        for (text, part) in [
            ("", "relative URL"),
            ("icmp-responder", "relative URL"),
            ("kernel:///nsm-1", "no service"),
            ("kernel:svc", "no service"),
            ("carrier-pigeon://svc", "carrier-pigeon is not one of kernel, memif"),
            ("kernel://svc/sixteen-bytes-16", "16 bytes; the kernel takes 15"),
            ("kernel://svc/a:b", "no interface with the name"),
            ("kernel://svc/a%20b", "no interface with the name"),
            ("kernel://a b/c", "invalid domain character"),
            ("kernel://x%2Fy@b/c", "can't hold"),
        ] {
            let error = text.parse::<ServiceUrl>().unwrap_err().to_string();
            assert!(error.contains(part) && error.contains(text), "{text}: {error}");
        }
    }

    #[test]
    fn lists_may_have_spaces_and_interfaces_only_once() {
        let urls: ServiceUrls = "kernel://a/n1, memif://b ,kernel://c/n2,".parse().unwrap();
        let services: Vec<_> = urls.0.iter().map(|url| url.service.as_str()).collect();
        assert_eq!(services, ["a", "b", "c"]);
        assert_eq!("".parse(), Ok(ServiceUrls::default()));
        assert!(
            "kernel://a/n1,kernel://b/n1".parse::<ServiceUrls>().unwrap_err().to_string().contains("twice")
        );
        let groups: AwarenessGroups = "[kernel://a/n1, kernel://b],[memif://c]".parse().unwrap();
        assert_eq!(groups.0.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1]);
        for text in ["kernel://a", "[kernel://a", "[kernel://a][kernel://b]"] {
            assert!(text.parse::<AwarenessGroups>().unwrap_err().to_string().contains("[url,url]"), "{text}");
        }
    }

    #[test]
    fn a_preference_has_a_name_that_the_kernel_takes() {
        let url: ServiceUrl = "kernel://icmp-responder".parse().unwrap();
        let (one, two) = (url.preference(), url.preference());
        let name = &one.parameters["name"];
        assert!(name.starts_with("icmp-respo-") && name.len() == MAX_INTERFACE_NAME, "{name}");
        assert_ne!(one, two);
        for service in ["a", "svc@[2001:db8::1]:80", "ééééééééééééé", "..", "10.0.0.1:1"] {
            let name = made_up_interface_name(service);
            assert_eq!((check_interface_name(&name), name.len()), (Ok(()), MAX_INTERFACE_NAME), "{name}");
        }
        let memif: ServiceUrl = "memif://svc".parse().unwrap();
        assert!(memif.preference().parameters.is_empty());
    }
}
