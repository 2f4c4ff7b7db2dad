//! Addresses within a domain, and the same as others reach them: what a file says that `NSM_MAP_IP_FILE_PATH` names.

use std::net::IpAddr;
use std::path::PathBuf;

use crate::config::WatchedMap;

/// The domain's addresses as others reach them. One that the file does not name is the same everywhere; the Go proxy makes an empty
/// one of it.
pub struct AddressMap(WatchedMap);

impl AddressMap {
    /// As this file says, `internal: external`, followed as it changes.
    pub fn new(file: impl Into<PathBuf>) -> Self {
        Self(WatchedMap::new(file))
    }

    /// An address as others reach it.
    pub fn outward(&self, address: &str) -> String {
        self.mapped(address).unwrap_or_else(|| address.to_owned())
    }

    /// What the file says of an address.
    pub fn mapped(&self, address: &str) -> Option<String> {
        let map = self.0.current();
        if let Some(external) = map.get(address) {
            return Some(external.clone());
        }
        // IPv6 has many forms.
        let asked: IpAddr = address.parse().ok()?;
        let is_same = |key: &&String| key.parse::<IpAddr>() == Ok(asked);
        asked.is_ipv6().then(|| map.keys().find(is_same).and_then(|key| map.get(key).cloned())).flatten()
    }

    /// A URL `tcp://host:port` with its host as others reach it.
    pub fn url_outward(&self, url: &str) -> String {
        let (scheme, address) = url.split_once("://").map_or(("", url), |(scheme, rest)| (scheme, rest));
        let Some((host, port)) = address.rsplit_once(':') else { return url.to_owned() };
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let Some(external) = self.mapped(bare) else { return url.to_owned() };
        let host = if external.contains(':') { format!("[{external}]") } else { external };
        let scheme = if scheme.is_empty() { String::new() } else { format!("{scheme}://") };
        format!("{scheme}{host}:{port}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_file_names_is_mapped_and_the_rest_stays() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("map");
        std::fs::write(&file, "10.0.0.1: 192.0.2.1\nfd00:0:0::1: 2001:db8::1\n10.0.0.2: proxy.example.com\n")
            .unwrap();
        let map = AddressMap::new(&file);
        for (inside, outside) in [
            ("tcp://10.0.0.1:5004", "tcp://192.0.2.1:5004"),
            ("10.0.0.1:5004", "192.0.2.1:5004"),
            ("tcp://10.0.0.3:5004", "tcp://10.0.0.3:5004"),
            ("tcp://[fd00::1]:5004", "tcp://[2001:db8::1]:5004"),
            ("tcp://10.0.0.2:1", "tcp://proxy.example.com:1"),
            ("unix:///run/a.sock", "unix:///run/a.sock"),
            ("", ""),
        ] {
            assert_eq!(map.url_outward(inside), outside, "{inside}");
        }
        assert_eq!(map.outward("10.0.0.1"), "192.0.2.1");
        assert_eq!(map.outward("10.9.9.9"), "10.9.9.9");
    }
}
